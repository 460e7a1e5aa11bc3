// What InstantID Doctor and InstantID Profile say, shown in the nodes themselves.
// It outlives a reload of the page, and is stored neither in workflows nor in pictures: it describes the machine.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const WRAPS = { InstantIDDoctor: true, InstantIDProfile: false };

app.registerExtension({
  name: "FastInstantID.Said",

  nodeCreated(node) {
    if (!(node.comfyClass in WRAPS)) return;
    const said = textArea(WRAPS[node.comfyClass]);
    const open = document.createElement("button");
    open.textContent = "Open the timeline";
    const box = document.createElement("div");
    box.style.cssText = "display: flex; flex-direction: column; gap: 4px;";
    box.append(said, open);
    const widget = node.addDOMWidget("said", "said", box, { serialize: false, getMinHeight: () => 120 });
    widget.serialize = false;

    node.showWhatItSaid = ({ text = [], page = [] }) => {
      said.value = text.join("\n");
      open.style.display = page.length ? "" : "none";
      open.onclick = () => openPage(page[0]);
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
  area.placeholder = "What it found is shown here after a run.";
  area.className = "comfy-multiline-input";
  area.rows = 20; // where the node leaves its height to what is in it
  area.style.cssText = "flex: 1 1 auto; min-height: 0; resize: none; font-family: monospace;";
  area.style.whiteSpace = wraps ? "pre-wrap" : "pre";
  return area;
}

// The server sends pages as downloads, for fear of what could be in them. In a sandbox it can do nothing to this page.
async function openPage({ filename, subfolder, type }) {
  const tab = window.open("", "_blank");
  const answer = await api.fetchApi(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
  const frame = tab.document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  frame.srcdoc = answer.ok ? await answer.text() : `${filename} is not in ComfyUI's output folder any more.`;
  frame.style.cssText = "position: fixed; inset: 0; width: 100%; height: 100%; border: 0;";
  tab.document.title = filename;
  tab.document.body.append(frame);
}

function keyOf(node) {
  return `fast-instantid/${node.graph?.id}/${node.id}`;
}

function remember(node, { text, page }) {
  try {
    sessionStorage.setItem(keyOf(node), JSON.stringify({ text, page }));
  } catch {
    // The browser's storage is full or forbidden: it is then gone with the page.
  }
}

function recall(node) {
  try {
    return JSON.parse(sessionStorage.getItem(keyOf(node)));
  } catch {
    return null;
  }
}
