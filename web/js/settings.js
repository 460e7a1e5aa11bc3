// The pack's settings. The server reads them from the user's settings file (fast_instantid/comfyui/settings.py).
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "FastInstantID.Settings",
  settings: [
    {
      id: "FastInstantID.KeepFaces",
      name: "Keep faces on disk",
      category: ["Fast InstantID", "Cache", "Keep faces on disk"],
      type: "boolean",
      defaultValue: false,
      tooltip:
        "Known faces start at once after a restart, and no face network runs. They are biometric data: only your " +
        "account on the server can read them, in ComfyUI's folder user/fast-instantid-cache (2 GB at most).",
    },
  ],
});
