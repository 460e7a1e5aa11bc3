// InstantID Pose Editor: the canvas is the widget "poses", whose value is JSON.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { PoseCanvas } from "./pose_canvas.js";

const LOOK_MS = 400; // how often the nodes before it are looked at: they tell no other node of a change
const UNDO_MS = 250; // edits that follow each other faster are one step of the host's undo
const SIDE = 1024;

app.registerExtension({
  name: "FastInstantID.PoseEditor",

  getCustomWidgets: () => ({
    INSTANTID_POSES(node, name, [, options]) {
      let timer;
      const canvas = new PoseCanvas(options.canvas, () => {
        widget.callback?.(widget.value);
        clearTimeout(timer);
        timer = setTimeout(() => {
          app.canvas.emitBeforeChange();
          app.canvas.emitAfterChange();
        }, UNDO_MS);
      });
      const widget = node.addDOMWidget(name, "INSTANTID_POSES", canvas.element, {
        getValue: () => canvas.text,
        setValue: (text) => canvas.read(String(text)),
        getMinHeight: () => 360,
      });
      widget.value = options.default;
      canvas.element.addEventListener("wheel", (event) => {
        if (!LiteGraph.vueNodesMode) app.canvas.processMouseWheel(event); // what the canvas did not take
      });
      follow(node, canvas);
      return { widget, minWidth: 360, minHeight: 480 };
    },
  }),
});

/** Show the size of the latent and the background, as far as the page or the last run knows them. */
function follow(node, canvas) {
  let ran, shown, timer;
  const picture = new Image();
  const look = () => {
    const background = origin(node, "background");
    const file = background && (loaded(background) ?? ran?.background);
    const address = file && api.apiURL(`/view?${new URLSearchParams(file)}`);
    if (!address) picture.removeAttribute("src");
    else if (picture.getAttribute("src") !== address) picture.src = address;
    const [width, height] = sizeOf(origin(node, "latent")) ?? (ran ? [ran.width, ran.height] : likely(picture));
    const seen = [width, height, address].join();
    if (seen !== shown) canvas.show(width, height, address);
    shown = seen;
  };
  const { onAdded, onRemoved, onExecuted } = node;
  node.onAdded = function () {
    onAdded?.apply(this, arguments);
    clearInterval(timer);
    timer = setInterval(look, LOOK_MS);
  };
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    clearInterval(timer);
  };
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    ran = output.canvas?.[0];
    look();
  };
}

const origin = (node, name) => node.getInputNode?.(node.inputs.findIndex((input) => input.name === name));
const valueOf = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value;

/** The size of a node's width and height, as Empty Latent Image has them; not where another node gives them. */
function sizeOf(node) {
  const isLinked = node?.inputs?.some((input) => ["width", "height"].includes(input.name) && input.link != null);
  const sides = node && !isLinked && ["width", "height"].map((name) => Math.floor(valueOf(node, name) / 8) * 8);
  return sides && sides.every((side) => side > 0) ? sides : undefined;
}

/** The place of the picture that Load Image has, whose name may end with a folder: "face.png [output]". */
function loaded(node) {
  const named = /^(?:(.*)\/)?([^/]+?\.\w+)(?: \[(\w+)\])?$/.exec(valueOf(node, "image") ?? "");
  return named && { filename: named[2], subfolder: named[1] ?? "", type: named[3] ?? "input" };
}

/** A size of a picture's shape for about one megapixel. */
function likely({ naturalWidth: width, naturalHeight: height }) {
  const scale = SIDE / Math.sqrt(width * height || 1);
  return width ? [width * scale, height * scale] : [SIDE, SIDE];
}
