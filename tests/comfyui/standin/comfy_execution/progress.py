"""Progress handlers, which get the start and finish of each node. Each prompt has a registry."""

from __future__ import annotations

from typing import Any


class ProgressHandler:
    def __init__(self, name: str) -> None:
        self.name = name
        self.enabled = True

    def set_registry(self, registry: ProgressRegistry) -> None:
        pass

    def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        pass

    def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        pass

    def reset(self) -> None:
        pass


class ProgressRegistry:
    """The nodes of one prompt, whose graph is ``dynprompt``."""

    def __init__(self, prompt_id: str, dynprompt: Any) -> None:
        self.prompt_id = prompt_id
        self.dynprompt = dynprompt
        self.handlers: dict[str, ProgressHandler] = {}

    def register_handler(self, handler: ProgressHandler) -> None:
        self.handlers[handler.name] = handler

    def unregister_handler(self, handler_name: str) -> None:
        if handler_name in self.handlers:
            self.handlers.pop(handler_name).reset()

    def start_progress(self, node_id: str) -> None:
        for handler in self.handlers.values():
            if handler.enabled:
                handler.start_handler(node_id, {}, self.prompt_id)

    def finish_progress(self, node_id: str) -> None:
        for handler in self.handlers.values():
            if handler.enabled:
                handler.finish_handler(node_id, {}, self.prompt_id)


_registry = ProgressRegistry("", None)


def reset_progress_state(prompt_id: str, dynprompt: Any) -> None:
    """Reset the registry, as the host does for each prompt."""
    global _registry
    for handler in _registry.handlers.values():
        handler.reset()
    _registry = ProgressRegistry(prompt_id, dynprompt)


def get_progress_state() -> ProgressRegistry:
    return _registry


def add_progress_handler(handler: ProgressHandler) -> None:
    handler.set_registry(_registry)
    _registry.register_handler(handler)
