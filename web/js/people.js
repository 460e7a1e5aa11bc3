// The picture of the chosen person in the node InstantID Load Person. ComfyUI reads it from the person's file.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "FastInstantID.People",
  nodeCreated(node) {
    if (node.comfyClass !== "InstantIDLoadPerson") return;
    const picture = document.createElement("img");
    picture.alt = "";
    picture.style.objectFit = "contain";
    const widget = node.addDOMWidget("thumbnail", "thumbnail", picture, { serialize: false, getMinHeight: () => 112 });
    widget.serialize = false;
    const show = (name) => {
      const file = String(name ?? "").split(/[\\/]/).map(encodeURIComponent).join("/");
      picture.src = api.apiURL(`/experiment/models/preview/instantid_people/0/${file}`);
    };
    picture.onerror = () => (picture.style.visibility = "hidden"); // a file without a picture
    picture.onload = () => (picture.style.visibility = "visible");
    const chooser = node.widgets.find((widget) => widget.name === "person");
    const [chosen, configured] = [chooser.callback, node.onConfigure];
    chooser.callback = function (name) {
      show(name);
      return chosen?.apply(this, arguments);
    };
    node.onConfigure = function () {
      configured?.apply(this, arguments);
      show(chooser.value);
    };
    show(chooser.value);
  },
});
