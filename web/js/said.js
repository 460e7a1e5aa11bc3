// Shows the text of InstantID Doctor and InstantID Profile in the nodes.
// It survives a reload of the page. It describes the machine, so workflows and pictures do not store it.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const WRAPS = { InstantIDDoctor: true, InstantIDProfile: false };

app.registerExtension({
  name: "FastInstantID.Said",

  nodeCreated(node) {
    if (!(node.comfyClass in WRAPS)) return;
    const said = textArea(WRAPS[node.comfyClass]);
    const save = document.createElement("button");
    save.textContent = "Save the trace for ui.perfetto.dev";
    const box = document.createElement("div");
    box.style.cssText = "display: flex; flex-direction: column; gap: 4px;";
    box.append(said, save);
    const widget = node.addDOMWidget("said", "said", box, { serialize: false, getMinHeight: () => 120 });
    widget.serialize = false;

    node.showWhatItSaid = ({ text = [], trace = [] }) => {
      said.value = text.join("\n");
      save.style.display = trace.length ? "" : "none";
      save.onclick = () => window.open(api.apiURL(`/view?${new URLSearchParams(trace[0])}`)); // sent as a download
    };
    node.showWhatItSaid({});

    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      this.showWhatItSaid(output);
      remember(this, output);
    };
    if (node.size[0] < 420) node.setSize([420, 280]);
  },

  loadedGraphNode(node) {
    const output = node.showWhatItSaid && recall(node);
    if (output) node.showWhatItSaid(output);
  },
});

function textArea(wraps) {
  const area = document.createElement("textarea");
  area.readOnly = true;
  area.spellcheck = false;
  area.placeholder = "The text is shown here after a run.";
  area.className = "comfy-multiline-input";
  area.rows = 20; // where the node leaves its height to what is in it
  area.style.cssText = "flex: 1 1 auto; min-height: 0; resize: none; font-family: monospace;";
  area.style.whiteSpace = wraps ? "pre-wrap" : "pre";
  return area;
}

function keyOf(node) {
  return `fast-instantid/${node.graph?.id}/${node.id}`;
}

function remember(node, { text, trace }) {
  try {
    sessionStorage.setItem(keyOf(node), JSON.stringify({ text, trace }));
  } catch {
    // The browser's storage is full or forbidden: a reload of the page then loses the text.
  }
}

function recall(node) {
  try {
    return JSON.parse(sessionStorage.getItem(keyOf(node)));
  } catch {
    return null;
  }
}
