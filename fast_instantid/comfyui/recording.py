"""A prompt, recorded while ComfyUI runs it: its nodes as stages, and in them what our code tells.

The host asks nodes with lazy inputs before anything that they wait for runs: that is when a recording begins. It ends
with the node that asked for it, or else with the prompt, however that ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..recorder import Recorder

if TYPE_CHECKING:
    from .host_nodes import HostNodes

# The process has one recorder, and the host runs one prompt at a time.
_running: Recording | None = None
_last_prompt: Any = None


class Recording:
    """One prompt, from :func:`begin` to :func:`end`.

    Args:
        prompt: the host's ``DynamicPrompt``.
        node: the class of the node that asks for it.
        when_lost: called with this when the prompt has ended and nobody has called :func:`end`.
    """

    def __init__(self, prompt: Any, node: str, when_lost: Callable[[Recording], None]) -> None:
        self.prompt = prompt
        self.recorder = Recorder()
        self.recorder.start()
        self._when_lost = when_lost
        self._nodes = _host_nodes(node)
        try:
            task = asyncio.current_task()
        except RuntimeError:  # versions that run prompts without asyncio: the next recording ends this one
            task = None
        if task is not None:
            task.add_done_callback(lambda _: self.lose())

    def stop(self) -> None:
        """What the recorder has is then whole."""
        global _running
        _running = None
        if self._nodes is not None:
            self._nodes.stop()
        self.recorder.stop()

    def lose(self) -> None:
        """Stop, if nobody has, because nobody will any more."""
        if self is _running:
            self.stop()
            self._when_lost(self)

    def kept(self, node_id: str) -> list[str] | None:
        """Classes of the nodes before this one that did not run, because the host still had what they made.

        None where the host does not tell which nodes run.
        """
        if self._nodes is None:
            return None
        before: dict[str, str] = {}
        todo = [node_id]
        while todo:
            for value in self.prompt.get_node(todo.pop())["inputs"].values():
                if isinstance(value, list) and value and isinstance(value[0], str) and value[0] not in before:
                    before[value[0]] = self.prompt.get_node(value[0])["class_type"]
                    todo.append(value[0])
        return sorted({name for node, name in before.items() if node not in self._nodes.ran})


def begin(prompt: Any, node: str, when_lost: Callable[[Recording], None]) -> None:
    """Record ``prompt`` from here on. Another call for the same prompt does nothing, also when its recording has ended.

    Raises:
        FastInstantIDError: something else records this process.
    """
    global _running, _last_prompt
    if prompt is _last_prompt:
        return
    if _running is not None:
        _running.lose()
    _running, _last_prompt = Recording(prompt, node, when_lost), prompt


def end(prompt: Any) -> Recording | None:
    """The recording of ``prompt``, stopped; None if it was not recorded, or its recording has ended before."""
    recording = _running
    if recording is None or recording.prompt is not prompt:
        return None
    recording.stop()
    return recording


def _host_nodes(node: str) -> HostNodes | None:
    try:
        from .host_nodes import HostNodes
    except ImportError:  # see there
        return None
    return HostNodes(without=node)
