// Shows the text of InstantID Doctor, Profile, Person and Likeness in the nodes.
// It survives a reload of the page. It describes the machine, so workflows and pictures do not store it.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const WRAPS = { InstantIDDoctor: true, InstantIDProfile: false, InstantIDPerson: true, InstantIDLikeness: true };

app.registerExtension({
  name: "FastInstantID.Report",

  nodeCreated(node) {
    if (!(node.comfyClass in WRAPS)) return;
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.spellcheck = false;
    area.placeholder = "The text is shown here after a run.";
    area.className = "comfy-multiline-input";
    area.rows = 20; // for nodes that fit their height to the content
    area.style.cssText = "flex: 1 1 auto; min-height: 0; resize: none; font-family: monospace;";
    area.style.lineHeight = 1.2; // else each machine's font sets the height, and nodes outgrow the room of workflows
    area.style.whiteSpace = WRAPS[node.comfyClass] ? "pre-wrap" : "pre";
    const save = document.createElement("button");
    save.textContent = "Save the trace for ui.perfetto.dev";
    const box = document.createElement("div");
    box.style.cssText = "display: flex; flex-direction: column; gap: 4px;";
    box.append(area, save);
    const widget = node.addDOMWidget("report", "report", box, { serialize: false, getMinHeight: () => 120 });
    widget.serialize = false;

    node.showReport = ({ text = [], trace = [] }) => {
      area.value = text.join("\n");
      save.style.display = trace.length ? "" : "none";
      save.onclick = () => window.open(api.apiURL(`/view?${new URLSearchParams(trace[0])}`)); // sent as a download
    };
    node.showReport({});

    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      this.showReport(output);
      try {
        sessionStorage.setItem(storageKey(this), JSON.stringify({ text: output.text, trace: output.trace }));
      } catch {
        // The browser's storage is full or forbidden: a reload of the page then loses the text.
      }
    };
    if (node.size[0] < 420) node.setSize([420, 280]);
  },

  loadedGraphNode(node) {
    try {
      const output = node.showReport && JSON.parse(sessionStorage.getItem(storageKey(node)));
      if (output) node.showReport(output);
    } catch {
      // Storage is forbidden, or another program has changed the text: the node stays empty.
    }
  },
});

function storageKey(node) {
  return `fast-instantid/${node.graph?.id}/${node.id}`;
}
