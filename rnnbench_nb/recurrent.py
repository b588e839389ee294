"""What every cell is given: the interface of torch.nn.GRU, the loop, the start, the Jacobian.

The step Jacobian is exact, by automatic differentiation of `step`. A sequence is run by the first
backend of the cell that serves the call, or by the plain loop.
"""

import math
import numbers
import sys
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional as F

from rnnbench_nb import plugins
from rnnbench_nb.cells.base import Cell
from rnnbench_nb.errors import UserError
from rnnbench_nb.validation import validate

_switches = {"backends": True}


@contextmanager
def plain_loop():
    """Inside, no backend serves: every cell of ours runs its plain loop."""
    before, _switches["backends"] = _switches["backends"], False
    try:
        yield
    finally:
        _switches["backends"] = before


def unroll(step: Callable[..., Tensor], drive: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
    """The states (T, B, n) after each step, from the drive (T, B, blocks H) and a start (B, n)."""
    states = []
    for u in drive:
        state = step(u, state, *prepared)
        states.append(state)
    return torch.stack(states)


class _Shared:
    """What cells with a loop of ours and those of torch.nn have in common."""

    def zero_state(self, batch: int) -> Tensor:
        """The start (B, states H) of a sequence, all zeros."""
        weight = next(self.parameters())
        return weight.new_zeros(batch, self.states * self.hidden_size)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every matrix uniformly from +-1/sqrt(H), set all else to zero; then `initialise`."""
        draw(self, self.hidden_size, generator)
        self.initialise(generator)

    def jacobian(self, u: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        """The exact step Jacobian (B, n, n): entry [b, i, j] is d after_i / d before_j."""

        def advance(state: Tensor, u: Tensor) -> Tensor:
            return self.step(u, state, *prepared)

        return vmap(jacrev(advance))(state, u)

    def decayed(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters that know weight decay, and those that do not."""
        parts = [], []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parts[name in self.no_decay].append(parameter)
        return parts


def draw(
    module: nn.Module,
    hidden_size: int,
    generator: torch.Generator | None,
    initialisation: str = "uniform",
) -> None:
    """The common start: every matrix uniform on +-1/sqrt(H), or Xavier; all else zero.

    Xavier takes the fans of a stored matrix as it stands, the gates stacked.
    """
    bound = 1 / math.sqrt(hidden_size)
    for tensor in module.state_dict(keep_vars=True).values():
        with torch.no_grad():
            if tensor.dim() > 1 and initialisation == "xavier":
                nn.init.xavier_uniform_(tensor, generator=generator)
            elif tensor.dim() > 1:
                tensor.uniform_(-bound, bound, generator=generator)
            else:
                tensor.zero_()


class Recurrent(_Shared, nn.Module):
    """A cell of ours as a module with the interface of torch.nn.GRU, one layer, one direction.

    Args:
        input_size: Number of input features D.
        hidden_size: Number of hidden units H.
        batch_first: Whether input and output are (B, T, ...) instead of (T, B, ...).
        options: The cell's own options, as its `Options` describes them.

    Raises:
        UserError: An argument is out of its range, or the cell does not have it.
    """

    def __init__(
        self, input_size: int, hidden_size: int, batch_first: bool = False, **options
    ) -> None:
        super().__init__()
        for name, size in {"input_size": input_size, "hidden_size": hidden_size}.items():
            if not isinstance(size, numbers.Integral) or isinstance(size, bool) or size < 1:
                raise UserError(f"{name} must be a positive integer, got {size!r}")
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        self.options = validate(self.Options, options, self.label)
        rows = self.blocks * hidden_size
        shapes = {"weight_ih": (rows, input_size), **self.weights()}
        for name, shape in {**shapes, "bias": shapes.get("bias", (rows,))}.items():
            made = None if shape is None else nn.Parameter(torch.empty(shape))
            self.register_parameter(name, made)
        self.reset_parameters()

    def drive(self, x: Tensor) -> Tensor:
        """What depends on the input x (..., D) alone: u (..., blocks H)."""
        return F.linear(x, self.weight_ih, self.bias)

    def forward(self, input: Tensor, h_0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the cell over a batch of sequences.

        Args:
            input: Inputs (T, B, D), (B, T, D) with batch_first, or (T, D) without a batch.
            h_0: Initial state (1, B, states H), or (1, states H) without a batch; zeros if None.

        Returns:
            The part that is read out after every step, laid out like the input with H in place of
            D, and the state after the last step, laid out like h_0.

        Raises:
            UserError: The input or h_0 has the wrong kind, number of dimensions or size, or the
                sequence is empty.
        """
        if not isinstance(input, Tensor):
            raise UserError(
                f"{self.label} takes a tensor, not a {type(input).__name__}: sequences of unequal "
                "length are padded (pad_packed_sequence) and run one length at a time."
            )
        if input.dim() not in (2, 3):
            raise UserError(f"input must have 2 or 3 dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise UserError(
                f"input.size(-1) must be input_size {self.input_size}, got {input.shape[-1]}"
            )
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)  # (T, B, D)
        if x.shape[0] == 0:
            raise UserError("input must have at least one time step, got 0")
        expected = (1, *((x.shape[1],) if batched else ()), self.states * self.hidden_size)
        if h_0 is None:
            state = self.zero_state(x.shape[1])
        elif h_0.shape != expected:
            raise UserError(f"h_0 must have the shape {expected}, got {tuple(h_0.shape)}")
        else:
            state = h_0[0] if batched else h_0
        states, last = self._run(x, state)
        output = states[..., : self.hidden_size]
        if not batched:
            return output.squeeze(1), last
        return (output.transpose(0, 1) if self.batch_first else output), last.unsqueeze(0)

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """All states (T, B, n) and the last (B, n), by the first backend that serves."""
        prepared = self.prepare()
        backend, _ = self._backend(x, state, *prepared)
        if backend:
            return backend.run(self, x, state, *prepared)
        states = unroll(self.step, self.drive(x), state, *prepared)
        return states, states[-1]

    def _backend(self, *tensors: Tensor):
        """The first backend that serves these tensors here and now, or None, and each refusal."""
        refusals, backends = [], self.backends()
        if self.weight_ih.is_cuda:
            from rnnbench_nb.cells.kernels import cuda_graph

            backends = [*backends, cuda_graph]
        for backend in backends if _switches["backends"] else []:
            refusal = backend.refusal([*self.parameters(), *tensors])
            if not refusal:
                return backend, refusals
            refusals.append(refusal)
        return None, refusals

    def path(self) -> str:
        """What runs a sequence: the backend's name, or the loop and why no backend serves."""
        backend, refusals = self._backend(self.weight_ih)
        return backend.name([*self.parameters()]) if backend else ": ".join(["loop", *refusals])

    def extra_repr(self) -> str:
        """Describe the module by its arguments, as torch's recurrent modules do."""
        parts = [f"{self.input_size}, {self.hidden_size}"] + ["batch_first=True"] * self.batch_first
        changed = self.options.model_dump(exclude_defaults=True).items()
        return ", ".join(parts + [f"{name}={value!r}" for name, value in changed])


class _Builtin(_Shared):
    """A cell of torch.nn, which brings its own loop; `step` is its equation, for the dynamics."""

    def __init__(
        self, input_size: int, hidden_size: int, batch_first: bool = False, **options
    ) -> None:
        super().__init__(input_size, hidden_size, batch_first=batch_first)
        self.options = validate(self.Options, options, self.label)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        if hasattr(self, "options"):  # torch's own __init__ calls this before there are any
            super().reset_parameters(generator)

    def drive(self, x: Tensor) -> Tensor:
        """What depends on the input x (..., D) alone: u (..., blocks H)."""
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0)

    def path(self) -> str:
        """What runs a sequence."""
        return f"torch.nn.{self.torch_module}"


def module_of(cell: type[Cell]) -> type[nn.Module]:
    """The module of a cell: the cell itself, on the loop of ours or of torch.nn."""
    for base in cell.__mro__:  # torch is loaded now, and torch.compile cannot look through `torch`
        file = vars(sys.modules[base.__module__])
        file.update({"torch": torch} if file.get("torch") is plugins.torch else {})
    bases = (_Builtin, getattr(nn, cell.torch_module)) if cell.torch_module else (Recurrent,)
    names = {"__module__": "rnnbench_nb", "__doc__": cell.__doc__}  # pickled as rnnbench_nb.NAME
    return type(cell.__name__, (cell, *bases), names)
