"""On a GPU: the loop of any cell of ours as a CUDA graph, one launch instead of dozens a step.

Where tensors are small a GPU waits for its next instruction more than it computes. The loop over a
sequence, forward and backward, is captured once for the shapes that it was given, and replayed on
whatever stands in them.
"""

import copy
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from rnnbench_nb.recurrent import Recurrent, unroll

SHAPES = 4  # as many are captured for a cell; each keeps the memory of a training step
WARM_UP = 3  # calls before a capture, in which libraries set themselves up

_captured: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by cell, then by shapes


def name(parameters: list[Tensor]) -> str:
    """What runs a cell where nothing is refused."""
    return "loop as a CUDA graph"


def refusal(tensors: list[Tensor]) -> str:
    """Why a graph cannot run these tensors here and now; empty if it can."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the call is compiled or traced"
    if torch._C._are_functorch_transforms_active():  # as torch's own Function asks
        return "a torch.func transform is at work"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return "no gradient is wanted"
    for tensor in tensors:
        if not tensor.is_cuda:
            return f"it runs on a GPU, not on {tensor.device.type}"
        if forward_ad.unpack_dual(tensor).tangent is not None:
            return "forward-mode differentiation is on"
    return "another graph is being captured" if torch.cuda.is_current_stream_capturing() else ""


class _Loop(nn.Module):
    """The states (T, B, n) of a cell by its loop, for x (T, B, D) and a start (B, n)."""

    def __init__(self, cell: Recurrent):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return unroll(self.cell.step, self.cell.drive(x), state, *self.cell.prepare())


class Captured:
    """A function of tensors and its gradient, captured as two graphs on memory of their own.

    Attributes:
        inputs: Where a call puts its tensors.
        states: Where `replay` leaves the result.
        outer: Where the gradient of the result is put.
        gradients: Where `replay_backward` leaves those of the inputs that want one; None for an
            input that does not act.
    """

    def __init__(self, function: Callable[..., Tensor], tensors: list[Tensor]):
        self.inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        self.wanted = [tensor for tensor in self.inputs if tensor.requires_grad]
        self._last = None
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

    def free(self) -> bool:
        """Whether no earlier call still needs what a replay would overwrite."""
        return self._last is None or self._last() is None

    def take(self, call: object) -> None:
        """The memory is this call's, until its backward or until nothing refers to it."""
        self._last = weakref.ref(call)

    def give_back(self, call: object) -> None:
        """The backward of this call takes what stands in the memory.

        Raises:
            RuntimeError: That is another call's.
        """
        if self._last is None or self._last() is not call:
            raise RuntimeError(
                "the gradient of this sequence was asked for twice; run the cell again before the "
                "second time, or under rnnbench_nb.recurrent.plain_loop()"
            )
        self._last = None


class _Replay(torch.autograd.Function):
    """A captured function on tensors: its states, in memory of the caller's."""

    @staticmethod
    def forward(ctx, captured: Captured, *tensors: Tensor) -> Tensor:
        ctx.captured = captured
        captured.take(ctx)
        for place, tensor in zip(captured.inputs, tensors, strict=True):
            place.copy_(tensor)
        captured.replay()
        return captured.states.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, outer: Tensor) -> tuple[Tensor | None, ...]:
        captured = ctx.captured
        captured.give_back(ctx)
        captured.outer.copy_(outer)
        captured.replay_backward()
        found = iter(captured.gradients)
        gradients = (next(found) if place.requires_grad else None for place in captured.inputs)
        return None, *(None if grad is None else grad.clone() for grad in gradients)


def run(cell: Recurrent, x: Tensor, state: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    """Run the cell on x (T, B, D) from a state (B, n): all states (T, B, n), the last (B, n).

    The plain loop runs where an earlier call of the same shapes still waits for its gradient, and
    beyond `SHAPES` of them.
    """
    named = dict(cell.named_parameters()) | dict(cell.named_buffers())
    tensors = [x, state, *named.values()]
    key = (
        torch.get_float32_matmul_precision(),
        *((t.shape, t.dtype, t.device, t.requires_grad) for t in tensors),
    )
    of_cell = _captured.setdefault(cell, {})
    if key not in of_cell and len(of_cell) < SHAPES:
        loop = _Loop(copy.deepcopy(cell))  # a twin, which keeps no hold on the cell
        places = [f"cell.{name}" for name in named]

        def function(x: Tensor, state: Tensor, *weights: Tensor) -> Tensor:
            return functional_call(loop, dict(zip(places, weights, strict=True)), (x, state))

        of_cell[key] = Captured(function, tensors)
    captured = of_cell.get(key)
    if captured and captured.free():
        states = _Replay.apply(captured, *tensors)
    else:
        states = _Loop(cell)(x, state)
    return states, states[-1]
