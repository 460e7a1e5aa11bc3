"""One step of the diffusion training: loss, gradients, optimizer."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.conditions import Batch
from training.diffusion import Losses, Stack

MAX_NORM = 1.0
"""Gradients longer than that are shortened to it."""


class Step:
    """One training step of a stack.

    On a GPU it is recorded once for each shape of batch, as a CUDA graph, and played back: the networks are so small
    that launching some ten thousand kernels takes longer than running them.

    Args:
        optimizer: on a GPU ``capturable``, with its learning rate in a tensor.
        processes: that average their gradients, on the CPU.
    """

    def __init__(self, stack: Stack, optimizer: torch.optim.Optimizer, processes: int = 1) -> None:
        self.stack, self.optimizer, self.processes = stack, optimizer, processes
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Batch, Losses]] = {}

    def __call__(self, batch: Batch) -> Losses:
        """Of a GPU they are overwritten by the next step with a batch of this shape."""
        if batch.latents.device.type != "cuda":
            return self._run(batch)
        shape = batch.latents.shape
        if shape not in self._recorded:
            self._recorded[shape] = self._record(batch)
        graph, given, losses = self._recorded[shape]
        torch._foreach_copy_(given.tensors, batch.tensors)
        graph.replay()
        return losses

    def _run(self, batch: Batch) -> Losses:
        losses = self.stack.loss(batch)
        self.optimizer.zero_grad()
        losses.total.backward()
        _average_gradients(self.stack, self.processes)
        torch.nn.utils.clip_grad_norm_(self.stack.parameters(), MAX_NORM)
        self.optimizer.step()
        return losses

    def _record(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, Losses]:
        given = Batch(**{name: value.clone() for name, value in vars(batch).items()})
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up, and the optimizer makes its state
            for _ in range(3):
                self._run(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self._run(given)
        return graph, given, losses


def _average_gradients(stack: nn.Module, processes: int) -> None:
    if processes == 1:
        return
    # Whoever got no gradient in this step, the last layers of a text encoder, gets none in any process.
    gradients: list[Tensor] = [parameter.grad for parameter in stack.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
