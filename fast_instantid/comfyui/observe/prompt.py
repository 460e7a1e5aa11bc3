"""Recording of one prompt while ComfyUI runs it.

The recording starts when ComfyUI asks the node for its lazy inputs, before it runs the nodes behind them. It ends when
the node runs, or with the prompt if that fails or is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from comfy_execution.progress import ProgressHandler, add_progress_handler, get_progress_state

from ...recorder import Recorder, stage

# There is one recorder per process, and ComfyUI runs one prompt at a time.
_running: RecordedPrompt | None = None
_last_prompt: Any = None
_NAME = "fast_instantid"  # of our handler


class RecordedPrompt(ProgressHandler):
    """A prompt that is recorded from :func:`begin` to :func:`end`: each node is a stage with the name of its class.

    Args:
        prompt: the host's ``DynamicPrompt``.
        node: class of the recording node, which is no stage.
        when_lost: called with this object if the prompt ends without :func:`end`.
    """

    def __init__(self, prompt: Any, node: str, when_lost: Callable[[RecordedPrompt], object]) -> None:
        super().__init__(_NAME)
        self.prompt = prompt
        self.recorder = Recorder()
        self.recorder.start()
        self._recording_node, self._when_lost = node, when_lost
        self._open = ExitStack()
        add_progress_handler(self)
        try:
            task = asyncio.current_task()
        except RuntimeError:  # called outside of ComfyUI's loop: the next recording ends this one
            task = None
        if task is not None:
            task.add_done_callback(lambda _: self.lose())

    def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        # A node that starts and then waits for others (lazy inputs, async nodes) reports no finish: close it here.
        self._open.close()
        name = self.prompt.get_node(node_id)["class_type"]
        if name != self._recording_node:
            self._open.enter_context(stage(name, node=node_id))

    def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        self._open.close()

    def stop(self) -> None:
        """End the recording."""
        global _running
        _running = None
        self._open.close()
        if get_progress_state().handlers.get(_NAME) is self:
            get_progress_state().unregister_handler(_NAME)
        self.recorder.stop()

    def lose(self) -> None:
        """Stop and report the loss, unless the recording has ended."""
        if self is _running:
            self.stop()
            self._when_lost(self)


def begin(prompt: Any, node: str, when_lost: Callable[[RecordedPrompt], object]) -> None:
    """Start recording ``prompt``, but never twice. A FastInstantIDError if another recorder runs in this process."""
    global _running, _last_prompt
    if prompt is _last_prompt:
        return
    if _running is not None:
        _running.lose()
    _running, _last_prompt = RecordedPrompt(prompt, node, when_lost), prompt


def end(prompt: Any) -> RecordedPrompt | None:
    """Stop the recording of ``prompt`` and return it; None if none is running."""
    recorded = _running
    if recorded is None or recorded.prompt is not prompt:
        return None
    recorded.stop()
    return recorded
