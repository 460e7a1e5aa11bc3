"""Stages for ComfyUI's nodes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from comfy_execution.progress import ProgressHandler, add_progress_handler, get_progress_state

from ...recorder import stage

_NAME = "fast_instantid"  # of our handler


class HostNodes(ProgressHandler):
    """Make each node of the running prompt a stage with the name of its class, until :meth:`stop`.

    Args:
        without: a class of nodes to leave out.
    """

    def __init__(self, without: str) -> None:
        super().__init__(_NAME)
        self._without = without
        self._open = ExitStack()
        add_progress_handler(self)

    def stop(self) -> None:
        """Close the open stage, and remove the handler."""
        self._open.close()
        if get_progress_state().handlers.get(_NAME) is self:
            get_progress_state().unregister_handler(_NAME)

    def set_registry(self, registry: Any) -> None:
        self._prompt = registry.dynprompt

    def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        # A node that starts and then waits for others (lazy inputs, async nodes) reports no finish: close it here.
        self._open.close()
        name = self._prompt.get_node(node_id)["class_type"]
        if name != self._without:
            self._open.enter_context(stage(name, node=node_id))

    def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        self._open.close()
