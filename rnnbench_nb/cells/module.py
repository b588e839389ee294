"""Any torch module with the interface of torch.nn.GRU, from a package or a file, as a cell."""

import importlib.util
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from rnnbench_nb.cells.base import Cell
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.parameters import Frozen

B, T = 3, 2  # sequences and steps of the call that shows what a module's state is like


@cache
def find_class(place: str) -> type[nn.Module]:
    """Import the class at "package.module:Class", or at "path/to/file.py:Class"."""
    where, _, name = place.rpartition(":")
    try:
        if not where.endswith(".py"):
            return getattr(importlib.import_module(where), name)
        path = Path(where).expanduser()
        path = (path if path.exists() else PROJECT / path).resolve()
        spec = importlib.util.spec_from_file_location(f"rnnbench_file_{path.stem}", path)
        assert spec and spec.loader
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # whatever a foreign file raises
        raise UserError(
            f"module: {place!r} cannot be imported ({type(error).__name__}: {error}); write "
            "package.module:Class or path/to/file.py:Class."
        ) from error


class Module(Cell):
    """A foreign module, made as CLASS(input_size, hidden_size, batch_first=True, **arguments).

    It takes inputs (B, T, D) and a state as torch.nn.GRU does, and returns its outputs (B, T, H)
    and its last state. It keeps its own start, which the run's seed determines. It has steps and
    Jacobians if its state is like a torch cell's: a tensor (layers, B, size) or (B, size), or a
    tuple of them, that starts at zero and whose last layer is read out.
    """

    name, label = "module", "module"
    colour, dashes, marker = "#4D4D4D", (5, 2, 2, 2), "P"
    equation = "(any torch module), a step of which is $h_s = f(x_s, h_{s-1})$."

    class Options(Frozen):
        """The module and its arguments.

        Attributes:
            module: "package.module:Class" or "path/to/file.py:Class"; by default torch's plain
                tanh network.
            arguments: Arguments of the class beside the sizes and `batch_first`.
        """

        module: str = "torch.nn:RNN"
        arguments: dict[str, Any] = {}

    options: Options

    def declare(self) -> None:
        """Make the module, and see what its state is like."""
        del self.weight_ih  # the module has its own
        self.inner = self._make().eval()
        with torch.no_grad():
            self.parts = self._parts_of_state()  # (layers, size) or (size,) of each state tensor
        self.inner.train()

    def has_bias(self) -> bool:
        """Whether u has a bias: the module has its own."""
        return False

    def _make(self) -> nn.Module:
        place, sizes = self.options.module, (self.input_size, self.hidden_size)
        kind = find_class(place)
        try:
            return kind(*sizes, batch_first=True, **self.options.arguments)
        except Exception as error:
            raise UserError(f"module: {place}: {type(error).__name__}: {error}") from error

    def _parts_of_state(self) -> list[tuple[int, ...]]:
        x = torch.linspace(-1, 1, B * T * self.input_size).view(B, T, -1)
        answer, shape = self.inner(x), (B, T, self.hidden_size)
        if not isinstance(answer, tuple) or len(answer) != 2 or answer[0].shape != shape:
            raise UserError(
                f"module: {self.options.module} does not return outputs (B, T, H) and its last "
                "state, as torch.nn.GRU does; wrap it in a class that does."
            )
        output, state = answer
        tensors = state if isinstance(state, tuple) else (state,)
        if any(not isinstance(t, Tensor) or t.shape[-2:-1] != (B,) or t.dim() > 3 for t in tensors):
            return []
        self.parts = [(*tensor.shape[:-2], tensor.shape[-1]) for tensor in tensors]
        from_zero, _ = self.inner(x, self._unpack(torch.zeros(B, self.state_size)))
        read_out = self._pack(state)[:, : self.hidden_size]
        right = torch.equal(read_out, output[:, -1]) and torch.allclose(from_zero, output)
        return self.parts if right else []

    @property
    def state_size(self) -> int:
        """Numbers n in a state; H where only the module knows its state."""
        return sum(map(math.prod, self.parts)) or self.hidden_size

    def _pack(self, state: Tensor | tuple[Tensor, ...]) -> Tensor:
        """A state of the module as one tensor (B, n), the last layer first."""
        tensors = state if isinstance(state, tuple) else (state,)
        turned = (t.flip(0).transpose(0, 1).flatten(1) if t.dim() == 3 else t for t in tensors)
        return torch.cat(list(turned), -1)

    def _unpack(self, state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """A state (B, n) as the module takes it."""
        flat = zip(state.split([*map(math.prod, self.parts)], 1), self.parts, strict=True)
        tensors = tuple(
            t.unflatten(1, part).transpose(0, 1).flip(0).contiguous() if len(part) == 2 else t
            for t, part in flat
        )
        return tensors if len(tensors) > 1 else tensors[0]

    def draw(self, generator: torch.Generator | None, initialisation: str = "uniform") -> None:
        """Do nothing: the module keeps its own start."""

    def initialise(self, generator: torch.Generator | None) -> None:
        """Start the module anew."""
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            place = next(self.parameters()).device
            self.inner.load_state_dict(self._make().to(place).state_dict())

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.served = self.options.module
        output, last = self.inner(x.transpose(0, 1), *([self._unpack(state)] if self.parts else []))
        return output.transpose(0, 1), self._pack(last) if self.parts else output[:, -1]

    def drive(self, x: Tensor) -> Tensor:
        """Return the inputs themselves."""
        return x

    def step(self, u: Tensor, state: Tensor) -> Tensor:
        """Run one step; a module whose state is not like a torch cell's raises UserError."""
        if not self.parts:
            raise UserError(f"{self.options.module} has no state that is like a torch cell's.")
        return self._pack(self.inner(u.unsqueeze(1), self._unpack(state))[1])

    def jacobian(self, u: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        """The step Jacobian (B, n, n), row by row by differentiation in reverse."""
        rows = jacobian(lambda before: self.step(u, before).sum(0), state)  # sequences are apart
        return rows.transpose(0, 1)
