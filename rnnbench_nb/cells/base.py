"""The base of every cell: interface of torch.nn.GRU, loop over time, initialisation, Jacobian.

B sequences of T steps have D features. A state has n = `states` x H numbers, and the head reads the
first H of them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional as F

from rnnbench_nb.cells.kernels import Kernel, KernelOutput, cuda_graph, unroll
from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import Count, Frozen, validate

_switches = {"kernels": True}


@contextmanager
def plain_loop() -> Iterator[None]:
    """Run every cell of this package by its plain loop, without a kernel, inside this context."""
    before, _switches["kernels"] = _switches["kernels"], False
    try:
        yield
    finally:
        _switches["kernels"] = before


def parameter(*shape: int, trained: bool = True) -> nn.Parameter:
    """Return an uninitialised parameter of this shape."""
    return nn.Parameter(torch.empty(shape), requires_grad=trained)


def damp(matrix: Tensor, gamma: float) -> Tensor:
    """Return a matrix (H, H) minus gamma I."""
    return matrix - gamma * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def draw(
    module: nn.Module, hidden_size: int, generator: torch.Generator | None, initialisation: str
) -> None:
    """Draw every matrix uniformly on +-1/sqrt(H) or by Xavier's rule; set all vectors to zero.

    Xavier's rule takes the fans of each matrix as it is stored, with its gates stacked.
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
    """Options of a cell with a gate that keeps the state: its chrono start (Tallec, Ollivier 2018).

    Without it, such a cell may learn nothing from sequences of hundreds of steps.
    """

    chrono: Count = 0  # longest memory of the gates at the start, in steps; 0: off

    def draw_chrono(self, bias: Tensor, generator: torch.Generator | None) -> None:
        """Set a gate's bias (H,) to log u with u uniform on [1, chrono - 1] (eq. 14 and 16)."""
        if self.chrono:
            with torch.no_grad():
                bias.uniform_(1, max(self.chrono - 1, 1), generator=generator).log_()


class Cell(nn.Module):
    """A recurrent cell with the interface of torch.nn.GRU: one layer, one direction.

    A subclass is one file. It defines its parameters (`declare`) and `step(u, state, *prepared)`,
    which returns the next state (B, n). Its arguments are the drive u (B, blocks H), the current
    state (B, n), and the tensors that `prepare` returns.

    Args:
        input_size: Number of input features D.
        hidden_size: Number of hidden units H.
        num_layers, bias, dropout, bidirectional: They must have the defaults of torch.nn.GRU.
        batch_first: Whether input and output are (B, T, ...) instead of (T, B, ...).
        device, dtype: Device and type of the parameters.
        options: The cell's own options, as its `Options` describes them.

    Attributes:
        name, label: Name in parameter files and folders; name in tables and figures.
        colour, dashes, marker: Style in figures; None lets the report choose one.
        equation: The equations as Markdown with LaTeX.
        blocks, states: Number of blocks of H numbers in the drive u, and in the state.
        no_decay: Names of the parameters without weight decay.
        kernels: Faster ways to run the loop, best first; each returns states or why it cannot.
        Options: The cell's own options, with types, limits and defaults.
        path: The code that ran in the last call: a kernel, or the loop and why no kernel ran.

    Raises:
        UserError: An argument is unknown, has the wrong type or is out of range.
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
    kernels: tuple[Kernel, ...] = ()
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
        self.path = "not called yet"
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
        """Change the common start, in which matrices are random and vectors are zero."""

    def drive(self, x: Tensor) -> Tensor:
        """Compute the drive u (..., blocks H): what the inputs x (..., D) add to each step."""
        return F.linear(x, self.weight_ih, self.bias)

    def prepare(self) -> tuple[Tensor, ...]:
        """Compute the tensors that `step` needs from the current weights, once a sequence."""
        return ()

    def jacobian(self, u: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        """The exact step Jacobian (B, n, n): entry [b, i, j] is d after_i / d before_j."""
        # Sequences are independent, so the Jacobian of their sum contains the one of each.
        return jacrev(lambda before: self.step(u, before, *prepared).sum(0))(state).transpose(0, 1)

    @property
    def state_size(self) -> int:
        """The number n of values in a state."""
        return self.states * self.hidden_size

    def zero_state(self, batch: int) -> Tensor:
        """The initial state (B, n), all zeros."""
        return next(self.parameters()).new_zeros(batch, self.state_size)

    def redundant_parameters(self) -> int:
        """Count the trained parameters that could go without changing what the cell can compute."""
        return 0

    def recurrent_matrix(self) -> Tensor | None:
        """The matrix (H, H) of the differential equation that the cell discretises, or None."""
        return None

    def step_size(self) -> Tensor | float:
        """The size of the forward Euler step along its flow."""
        return 1.0

    def draw(self, generator: torch.Generator | None, initialisation: str = "uniform") -> None:
        """Draw the weights by the rule that all cells share."""
        draw(self, self.hidden_size, generator, initialisation)

    def reset_parameters(self) -> None:
        """Draw the weights again; parameters that are not trained stay untrained."""
        self.draw(None)
        self.initialise(None)

    def flatten_parameters(self) -> None:
        """Lay out the weights for cuDNN if torch.nn runs the cell; otherwise do nothing."""
        getattr(super(), "flatten_parameters", lambda: None)()

    def decay_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
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
            The first H numbers of each state, in the layout of the input with H in place of D, and
            the last state, in the layout of h_0.

        Raises:
            UserError: The input or h_0 has a wrong type, shape or dtype, or there is no time step.
        """
        if not isinstance(input, Tensor):
            raise UserError(f"{self.label} takes a tensor, not a {type(input).__name__}.")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x  # (T, B, D)
        if x.dim() != 3 or x.shape[2] != self.input_size or not len(x):
            shape = tuple(input.shape)
            raise UserError(f"input must have steps of {self.input_size} features, got {shape}")
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
        """Compute the states (T, B, n) from x (T, B, D) and a state (B, n), step by step."""
        return unroll(self.step, self.drive(x), state, *prepared)

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """All states (T, B, n) and the last (B, n), by the first kernel that accepts the call."""
        prepared, refusals = self.prepare(), []
        kernels = (*self.kernels, *([cuda_graph.run] if x.is_cuda else []))
        for kernel in kernels if _switches["kernels"] else []:
            answer = kernel(self, x, state, *prepared)
            if isinstance(answer, KernelOutput):
                self.path = answer.path
                return answer.states, answer.last
            refusals.append(answer)
        if not torch.compiler.is_compiling():
            self.path = ": ".join(["loop", *refusals])
        states = self.loop(x, state, *prepared)
        return states, states[-1]

    def extra_repr(self) -> str:
        """Describe the module by its arguments, as torch's recurrent modules do."""
        parts = [f"{self.input_size}, {self.hidden_size}"] + ["batch_first=True"] * self.batch_first
        changed = self.options.model_dump(exclude_defaults=True).items()
        return ", ".join(parts + [f"{name}={value!r}" for name, value in changed])


class TorchCell(Cell):
    """A cell that a module of torch.nn runs; `step` is the equation of that module."""

    weight_ih_l0: Tensor
    bias_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_hh_l0: Tensor
    mode: str

    def _build(self, *sizes: int, **layout: Any) -> None:
        super(Cell, self).__init__(*sizes, **layout)

    def drive(self, x: Tensor) -> Tensor:
        """Compute the drive u (..., blocks H) with the first of torch's two biases."""
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0)

    def prepare(self) -> tuple[Tensor, ...]:
        """Torch's recurrent weights (blocks H, H) and second biases (blocks H,)."""
        return self.weight_hh_l0, self.bias_hh_l0

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run torch's module."""
        self.path = f"torch.nn.{self.mode}"
        return super(Cell, self).forward(input, hx)
