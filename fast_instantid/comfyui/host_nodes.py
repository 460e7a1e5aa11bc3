"""The nodes that ComfyUI runs, as stages.

Importing this raises ImportError where the host tells nobody of them: before July 2025 (Comfy-Org/ComfyUI#8830).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from comfy_execution.progress import ProgressHandler, add_progress_handler, get_progress_state

from ..recorder import stage

_NAME = "fast_instantid"  # ours, among the handlers of a prompt


class HostNodes(ProgressHandler):
    """Each node of the prompt that runs now is a stage under the name of its class, until :meth:`stop`.

    Args:
        without: the class that is left out.
    """

    def __init__(self, without: str) -> None:
        super().__init__(_NAME)
        self.ran: set[str] = set()
        """Ids of the nodes that were started."""
        self._without = without
        self._open = ExitStack()
        add_progress_handler(self)

    def stop(self) -> None:
        """Close the stage that is open, and listen no more."""
        self._open.close()
        if get_progress_state().handlers.get(_NAME) is self:
            get_progress_state().unregister_handler(_NAME)

    def set_registry(self, registry: Any) -> None:
        self._prompt = registry.dynprompt

    def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        # One at a time: a node that was started and then waits for others (lazy inputs, async nodes) says no more.
        self._open.close()
        self.ran.add(node_id)
        name = self._prompt.get_node(node_id)["class_type"]
        if name != self._without:
            self._open.enter_context(stage(name, node=node_id))

    def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        self._open.close()
