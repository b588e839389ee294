"""Run the loop of a cell as a CUDA graph: one launch a sequence instead of dozens a step.

With small tensors a GPU spends more time waiting for launches than computing. So the loop over a
sequence, forward and backward, is captured once for each set of shapes, and replayed after that.
"""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from rnnbench_nb.cells.kernels import KernelOutput, general_refusal

SHAPES = 4  # most graphs that a cell keeps; each holds the memory of a training step
WARM_UP = 3  # calls before a capture, in which libraries initialise

_graphs: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by cell, then by shapes


class CapturedLoop:
    """A function of tensors and its gradient, captured as two graphs with their own memory.

    `replay` computes `states` from `inputs`. `replay_backward` computes `gradients` from `outer`,
    the gradient of the states: one for each input that requires it, None for an input without
    effect. `owner` returns the call whose backward pass still needs the memory.
    """

    def __init__(self, function: Callable[..., Tensor], tensors: list[Tensor]):
        self.inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        self.leaves = [tensor for tensor in self.inputs if tensor.requires_grad]
        self.owner: Callable[[], object] = lambda: None
        self._capture(function)

    def _capture(self, function: Callable[..., Tensor]) -> None:
        main_stream, side_stream = torch.cuda.current_stream(), torch.cuda.Stream()

        def differentiate(states: Tensor, outer: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(states, self.leaves, outer, allow_unused=True)

        side_stream.wait_stream(main_stream)
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP):
                states = function(*self.inputs)
                self.outer = torch.zeros_like(states)
                differentiate(states, self.outer)
                del states
        main_stream.wait_stream(side_stream)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, stream=side_stream):
            self.states = function(*self.inputs)
        with torch.cuda.graph(backward, pool=forward.pool(), stream=side_stream):
            self.gradients = differentiate(self.states, self.outer)
        self.replay, self.replay_backward = forward.replay, backward.replay


class _Replay(torch.autograd.Function):
    """Replay a captured loop on tensors, and copy its states and gradients for the caller."""

    @staticmethod
    def forward(ctx: Any, loop: CapturedLoop, *tensors: Tensor) -> Tensor:
        ctx.loop = loop
        loop.owner = weakref.ref(ctx)
        for place, tensor in zip(loop.inputs, tensors, strict=True):
            place.copy_(tensor)
        loop.replay()
        return loop.states.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        loop = ctx.loop
        if loop.owner() is not ctx:
            raise RuntimeError(
                "the gradient of this sequence is not available a second time; run the cell again, "
                "or run it under rnnbench_nb.cells.plain_loop()"
            )
        loop.owner = lambda: None
        loop.outer.copy_(outer)
        loop.replay_backward()
        gradients = iter(loop.gradients)
        of_inputs = (next(gradients) if t.requires_grad else None for t in loop.inputs)
        return None, *(None if grad is None else grad.clone() for grad in of_inputs)


def run(cell: Any, x: Tensor, state: Tensor, *_: Tensor) -> KernelOutput | str:
    """Run the cell on x (T, B, D) from a state (B, n), or say why no graph can."""
    named = dict(cell.named_parameters()) | dict(cell.named_buffers())
    tensors = [x, state, *named.values()]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return "no gradient is needed"
    if reason := general_refusal(tensors, x.device.type):
        return reason
    kinds = tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in tensors)
    key = torch.get_float32_matmul_precision(), kinds
    graphs = _graphs.setdefault(cell, {})
    if key not in graphs:
        if len(graphs) == SHAPES:
            return f"there are graphs for {SHAPES} other shapes already"
        twin = copy.deepcopy(cell)  # a reference to the cell itself would keep it alive
        twin.forward = lambda x, state: twin.loop(x, state, *twin.prepare())

        def function(x: Tensor, state: Tensor, *weights: Tensor) -> Tensor:
            return functional_call(twin, dict(zip(named, weights, strict=True)), (x, state))

        graphs[key] = CapturedLoop(function, tensors)
    loop = graphs[key]
    if loop.owner() is not None:
        return "an earlier sequence of this shape still waits for its gradient"
    states = _Replay.apply(loop, *tensors)
    return KernelOutput("loop as a CUDA graph", states, states[-1])
