"""The base of every cell: interface of torch.nn.GRU, loop over time, start, step Jacobian.

B sequences of T steps have D features. A state has n = `states` x H numbers, of which the first H
are read out.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional as F

from rnnbench_nb.cells.kernels import Served, cuda_graph, unroll
from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import Count, Frozen, validate

_switches = {"kernels": True}


@contextmanager
def plain_loop() -> Iterator[None]:
    """Inside this context every cell of ours runs its plain loop, without a kernel."""
    before, _switches["kernels"] = _switches["kernels"], False
    try:
        yield
    finally:
        _switches["kernels"] = before


def parameter(*shape: int, trained: bool = True) -> nn.Parameter:
    """An empty parameter of this shape."""
    return nn.Parameter(torch.empty(shape), requires_grad=trained)


def damped(matrix: Tensor, gamma: float) -> Tensor:
    """A matrix (H, H) less gamma I."""
    return matrix - gamma * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def draw(
    module: nn.Module, hidden_size: int, generator: torch.Generator | None, initialisation: str
) -> None:
    """The start that all cells share: matrices uniform on +-1/sqrt(H) or Xavier, all else zero.

    Xavier takes the fans of a stored matrix as it stands, the gates stacked.
    """
    bound = 1 / math.sqrt(hidden_size)
    for tensor in module.state_dict(keep_vars=True).values():
        if tensor.dim() < 2:
            nn.init.zeros_(tensor)
        elif initialisation == "xavier":
            nn.init.xavier_uniform_(tensor, generator=generator)
        else:
            nn.init.uniform_(tensor, -bound, bound, generator=generator)


class Chrono(Frozen):
    """The option of a cell with a gate that keeps the state (Tallec and Ollivier 2018).

    Sequences of hundreds of steps may teach nothing without it.
    """

    chrono: Count = 0  # the longest memory of the gates at the start, in steps; 0 for none

    def draw_chrono(self, bias: Tensor, generator: torch.Generator | None) -> None:
        """Set the bias (H,) of a gate to log u, u uniform on 1 to chrono - 1 (eq. 14 and 16)."""
        if self.chrono:
            with torch.no_grad():
                bias.uniform_(1, max(self.chrono - 1, 1), generator=generator).log_()


class Cell(nn.Module):
    """A recurrent cell with the interface of torch.nn.GRU: one layer, one direction.

    A subclass is one file. It declares its parameters (`declare`) and `step(u, state, *prepared)`,
    which computes the state (B, n) after a step from u (B, blocks H), the state before it, and the
    tensors that `prepare` returns.

    Args:
        input_size: Number of input features D.
        hidden_size: Number of hidden units H.
        num_layers, bias, dropout, bidirectional: The defaults of torch.nn.GRU alone are served.
        batch_first: Whether input and output are (B, T, ...) instead of (T, B, ...).
        device, dtype: Of the parameters.
        options: The cell's own options, as its `Options` describes them.

    Attributes:
        name, label: Name in parameter files and folders; name in tables and figures.
        colour, dashes, marker: Look in figures; None lets the report choose one.
        equation: Markdown with LaTeX.
        blocks, states: Blocks of H numbers in u, and in the state.
        no_decay: Names of the parameters without weight decay.
        kernels: Faster ways to run the loop, best first; each gives states or why it cannot.
        Options: The cell's own options, with types, limits and defaults.
        served: The path of the last call: a kernel, or the loop and why no kernel served it.

    Raises:
        UserError: An argument is out of its range, or the cell does not have it.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    colour: ClassVar[str | None] = None
    dashes: ClassVar[tuple[float, ...] | None] = None
    marker: ClassVar[str | None] = None
    equation: ClassVar[str] = ""
    blocks: ClassVar[int] = 1
    states: ClassVar[int] = 1
    no_decay: ClassVar[tuple[str, ...]] = ()
    kernels: ClassVar[tuple[Callable[..., Served | str], ...]] = ()
    Options: ClassVar[type[Frozen]] = Frozen
    options: Any
    step: Callable[..., Tensor]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        if (num_layers, bias, dropout, bidirectional) != (1, True, 0, False):
            raise UserError(f"{self.label} has one layer, one direction, biases and no dropout.")
        self.options = validate(self.Options, options, self.label)
        self.served = "not called yet"
        self._build(input_size, hidden_size, batch_first=batch_first, device=device, dtype=dtype)

    def _build(self, input_size: int, hidden_size: int, batch_first: bool, **place: Any) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.batch_first = batch_first
        self.weight_ih = parameter(self.blocks * hidden_size, input_size)
        self.declare()
        self.bias = parameter(self.blocks * hidden_size)
        self.to(**place)
        self.reset_parameters()

    # A cell's file may override these.

    def declare(self) -> None:
        """Declare the parameters besides `weight_ih` (blocks H, D) and `bias` (blocks H,)."""

    def initialise(self, generator: torch.Generator | None) -> None:
        """Change the common start: matrices uniform on +-1/sqrt(H), all else zero."""

    def drive(self, x: Tensor) -> Tensor:
        """The part of all steps that depends on the input x (..., D) alone: u (..., blocks H)."""
        return F.linear(x, self.weight_ih, self.bias)

    def prepare(self) -> tuple[Tensor, ...]:
        """Tensors for `step` that are computed once a sequence, from the current weights."""
        return ()

    def jacobian(self, u: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        """The exact step Jacobian (B, n, n): entry [b, i, j] is d after_i / d before_j."""
        # The sum over sequences, which do not know of each other, has all their Jacobians.
        return jacrev(lambda before: self.step(u, before, *prepared).sum(0))(state).transpose(0, 1)

    @property
    def state_size(self) -> int:
        """Numbers n in a state."""
        return self.states * self.hidden_size

    def zero_state(self, batch: int) -> Tensor:
        """The start (B, n) of a sequence, all zeros."""
        return next(self.parameters()).new_zeros(batch, self.state_size)

    def redundant(self) -> int:
        """The number of trained parameters that act only together with others."""
        return 0

    def recurrent_matrix(self) -> Tensor | None:
        """The matrix (H, H) of the flow that the cell steps along, if it has one."""
        return None

    def step_size(self) -> Tensor | float:
        """The size of the forward Euler step along that flow."""
        return 1.0

    # The same for every cell.

    def draw(self, generator: torch.Generator | None, initialisation: str = "uniform") -> None:
        """Give the weights the start that all cells share."""
        draw(self, self.hidden_size, generator, initialisation)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew; frozen ones stay frozen."""
        self.draw(generator)
        self.initialise(generator)

    def flatten_parameters(self) -> None:
        """Lay out the weights for cuDNN where torch.nn runs the cell; else do nothing."""
        getattr(super(), "flatten_parameters", lambda: None)()

    def decayed(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters with weight decay, and those without."""
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
        for name, tensor in self.named_parameters():
            if tensor.requires_grad:
                parts[name in self.no_decay].append(tensor)
        return parts

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the cell over a batch of sequences.

        Args:
            input: Inputs (T, B, D), (B, T, D) with batch_first, or (T, D) without a batch.
            hx: Initial state h_0 (1, B, n), or (1, n) without a batch; zeros if None.

        Returns:
            The part of each state that is read out, laid out like the input with H in place of D,
            and the last state, laid out like h_0.

        Raises:
            UserError: The input or h_0 has another kind, shape or dtype, or there is no time step.
        """
        if not isinstance(input, Tensor):
            raise UserError(f"{self.label} takes a tensor, not a {type(input).__name__}.")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x  # (T, B, D)
        if x.dim() != 3 or x.shape[2] != self.input_size or not len(x):
            shape = tuple(input.shape)
            raise UserError(f"input must be steps of {self.input_size} features, got {shape}")
        state = self.zero_state(x.shape[1])
        if hx is not None:
            expected = (1, *state.shape) if batched else tuple(state.shape)
            if hx.shape != expected:
                raise UserError(f"h_0 must have the shape {expected}, got {tuple(hx.shape)}")
            if hx.dtype != state.dtype:
                raise UserError(f"h_0 must be {state.dtype} as the weights are, got {hx.dtype}")
            state = hx[0] if batched else hx
        states, last = self._run(x, state)
        output = states[..., : self.hidden_size]
        if not batched:
            return output.squeeze(1), last
        return (output.transpose(0, 1) if self.batch_first else output), last.unsqueeze(0)

    def loop(self, x: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        """The states (T, B, n) of inputs (T, B, D) and a start (B, n), one step at a time."""
        return unroll(self.step, self.drive(x), state, *prepared)

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """All states (T, B, n) and the last (B, n), by the first kernel that serves the call."""
        prepared, refusals = self.prepare(), []
        kernels = (*self.kernels, *([cuda_graph.run] if x.is_cuda else []))
        for kernel in kernels if _switches["kernels"] else []:
            answer = kernel(self, x, state, *prepared)
            if isinstance(answer, Served):
                self.served = answer.path
                return answer.states, answer.last
            refusals.append(answer)
        if not torch.compiler.is_compiling():
            self.served = ": ".join(["loop", *refusals])
        states = self.loop(x, state, *prepared)
        return states, states[-1]

    def extra_repr(self) -> str:
        """Describe the module by its arguments, as torch's recurrent modules do."""
        parts = [f"{self.input_size}, {self.hidden_size}"] + ["batch_first=True"] * self.batch_first
        changed = self.options.model_dump(exclude_defaults=True).items()
        return ", ".join(parts + [f"{name}={value!r}" for name, value in changed])


class TorchCell(Cell):
    """A cell that one of torch.nn's modules runs; `step` is that module's equation."""

    weight_ih_l0: Tensor
    bias_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_hh_l0: Tensor
    mode: str

    def _build(self, *sizes: int, **layout: Any) -> None:
        super(Cell, self).__init__(*sizes, **layout)

    def drive(self, x: Tensor) -> Tensor:
        """The part of all steps that depends on the input alone, with torch's first biases."""
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0)

    def prepare(self) -> tuple[Tensor, ...]:
        """Torch's recurrent weights (blocks H, H) and second biases (blocks H,)."""
        return self.weight_hh_l0, self.bias_hh_l0

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run torch's module."""
        self.served = f"torch.nn.{self.mode}"
        return super(Cell, self).forward(input, hx)
