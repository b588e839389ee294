"""The loop of a cell as a CUDA graph: one launch instead of dozens a step.

With small tensors a GPU waits for instructions more than it computes. So the loop over a sequence,
forward and backward, is captured once for the shapes of a call, and replayed for later ones.
"""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from rnnbench_nb.cells.kernels import Served, transformed

SHAPES = 4  # graphs that a cell keeps, each with the memory of a training step
WARM_UP = 3  # calls before a capture, in which libraries set themselves up

_captured: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by cell, then by shapes


class Captured:
    """A function of tensors and its gradient, captured as two graphs on memory of their own.

    A call's tensors go to `inputs` before `replay` leaves the result in `states`; its gradient goes
    to `outer` before `replay_backward` leaves those of the inputs that want one in `gradients`,
    None for one that does not act. `owner` returns the call whose backward needs the memory.
    """

    def __init__(self, function: Callable[..., Tensor], tensors: list[Tensor]):
        self.inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        self.wanted = [tensor for tensor in self.inputs if tensor.requires_grad]
        self.owner: Callable[[], object] = lambda: None
        self._capture(function)

    def _capture(self, function: Callable[..., Tensor]) -> None:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()

        def differentiate(states: Tensor, outer: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(states, self.wanted, outer, allow_unused=True)

        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                states = function(*self.inputs)
                self.outer = torch.zeros_like(states)
                differentiate(states, self.outer)
                del states
        here.wait_stream(aside)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, stream=aside):
            self.states = function(*self.inputs)
        with torch.cuda.graph(backward, pool=forward.pool(), stream=aside):
            self.gradients = differentiate(self.states, self.outer)
        self.replay, self.replay_backward = forward.replay, backward.replay


class _Replay(torch.autograd.Function):
    """A captured function on tensors: its states, in memory of the caller's."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, *tensors: Tensor) -> Tensor:
        ctx.captured = captured
        captured.owner = weakref.ref(ctx)
        for place, tensor in zip(captured.inputs, tensors, strict=True):
            place.copy_(tensor)
        captured.replay()
        return captured.states.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        captured = ctx.captured
        if captured.owner() is not ctx:
            raise RuntimeError(
                "the gradient of this sequence was asked for twice; run the cell again before the "
                "second time, or under rnnbench_nb.cells.plain_loop()"
            )
        captured.owner = lambda: None
        captured.outer.copy_(outer)
        captured.replay_backward()
        gradients = iter(captured.gradients)
        of_inputs = (next(gradients) if t.requires_grad else None for t in captured.inputs)
        return None, *(None if grad is None else grad.clone() for grad in of_inputs)


def run(cell: Any, x: Tensor, state: Tensor, *_: Tensor) -> Served | str:
    """Run the cell on x (T, B, D) from a state (B, n), or say why no graph can."""
    named = dict(cell.named_parameters()) | dict(cell.named_buffers())
    tensors = [x, state, *named.values()]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return "no gradient is wanted"
    if reason := transformed(tensors, x.device.type):
        return reason
    kinds = tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in tensors)
    key = torch.get_float32_matmul_precision(), kinds
    of_cell = _captured.setdefault(cell, {})
    if key not in of_cell:
        if len(of_cell) == SHAPES:
            return f"graphs of {SHAPES} other shapes are kept already"
        twin = copy.deepcopy(cell)  # keeps no hold on the cell
        twin.forward = lambda x, state: twin.loop(x, state, *twin.prepare())

        def function(x: Tensor, state: Tensor, *weights: Tensor) -> Tensor:
            return functional_call(twin, dict(zip(named, weights, strict=True)), (x, state))

        of_cell[key] = Captured(function, tensors)
    captured = of_cell[key]
    if captured.owner() is not None:
        return "an earlier sequence of this shape still waits for its gradient"
    states = _Replay.apply(captured, *tensors)
    return Served("loop as a CUDA graph", states, states[-1])
