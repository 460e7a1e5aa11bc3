"""The nodes InstantID Doctor and InstantID Profile, and how a prompt of ComfyUI is recorded."""
