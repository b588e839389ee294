"""Any torch module with the interface of torch.nn.GRU, from a package or a file, as a cell."""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnnbench_nb.cells.base import Cell, Frozen
from rnnbench_nb.errors import UserError


@cache
def find_class(place: str) -> type[nn.Module]:
    """The class at "package.module:Class", or at "path/to/file.py:Class".

    Raises:
        UserError: There is no such file, module or class, or it cannot be imported.
    """
    where, _, name = place.rpartition(":")
    try:
        if where.endswith(".py"):
            path = Path(where).expanduser().resolve()
            known = f"rnnbench_module_{path.stem}"
            spec = importlib.util.spec_from_file_location(known, path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[known] = module  # a class is copied and pickled by its module's name
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        return getattr(module, name)
    except Exception as error:  # whatever a foreign module raises
        raise UserError(
            f"module: {place!r} cannot be imported ({error}); write package.module:Class or "
            "path/to/file.py:Class."
        ) from error


class Module(Cell):
    """A module of somebody else: CLASS(input_size, hidden_size, batch_first=True, **arguments).

    It is called as torch.nn.GRU is, and returns its outputs (B, T, H) and its last state. It keeps
    the start of its own, which it draws from torch's global generator, seeded by the run. Steps and
    Jacobians are there if its state is one tensor (layers, B, ...) or a tuple of them, as those of
    torch.nn.GRU and torch.nn.LSTM are.
    """

    name, label = "module", "module"
    colour, dashes, marker = "#4D4D4D", (5, 2, 2, 2), "P"
    equation = r"""
(any torch module), a step of which takes an input and a state:

$$h_s = f(x_s, h_{s-1})$$
"""

    class Options(Frozen):
        """The module and its arguments.

        Attributes:
            module: "package.module:Class" or "path/to/file.py:Class"; by default torch's plain
                tanh network.
            arguments: What the class is given beside the sizes and `batch_first`.
        """

        module: str = "torch.nn:RNN"
        arguments: dict[str, Any] = {}

    options: Options

    def declare(self) -> None:
        """Make the module, and see what its state is like."""
        del self.weight_ih  # the module has its own
        self.inner = self._make()
        self.parts = self._state_parts()

    def has_bias(self) -> bool:
        """Whether u has a bias: the module has its own."""
        return False

    def _make(self) -> nn.Module:
        sizes, place = (self.input_size, self.hidden_size), self.options.module
        try:
            return find_class(place)(*sizes, batch_first=True, **self.options.arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"module: {place} cannot be made: {error}") from error

    def _state_parts(self) -> list[tuple[int, int]]:
        """Layers and size of each tensor of the state; empty if it is not like a torch cell's.

        The last layer of the first tensor must be what is read out, and zeros the start.

        Raises:
            UserError: The module does not have the interface of torch.nn.GRU.
        """
        x, place = torch.linspace(-1, 1, 6 * self.input_size).view(3, 2, -1), self.options.module
        self.inner.eval()
        with torch.no_grad():
            answer = self.inner(x)
            if not (isinstance(answer, tuple) and len(answer) == 2):
                raise UserError(f"module: {place} must return its outputs and its last state.")
            output, state = answer
            if output.shape != (3, 2, self.hidden_size):
                raise UserError(
                    f"module: {place} must give outputs (B, T, H) = {(3, 2, self.hidden_size)}, "
                    f"but gives {tuple(output.shape)}."
                )
            tensors = state if isinstance(state, tuple) else (state,)
            if not all(isinstance(t, Tensor) and t.dim() == 3 and t.shape[1] == 3 for t in tensors):
                return []
            self.parts = [(len(tensor), tensor.shape[2]) for tensor in tensors]
            again, _ = self.inner(x, self._unpack(torch.zeros(3, self.state_size)))
            alike = torch.allclose(again, output, atol=1e-6)
            read = self._pack(state)[:, : self.hidden_size]
        self.inner.train()
        return self.parts if alike and torch.equal(read, output[:, -1]) else []

    @property
    def state_size(self) -> int:
        """Numbers n in a state."""
        return sum(layers * size for layers, size in self.parts) or self.hidden_size

    def _pack(self, state: Tensor | tuple[Tensor, ...]) -> Tensor:
        """A state as one tensor (B, n), the last layer first."""
        tensors = state if isinstance(state, tuple) else (state,)
        return torch.cat([tensor.flip(0).transpose(0, 1).flatten(1) for tensor in tensors], -1)

    def _unpack(self, state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """A state (B, n) as the module takes it."""
        tensors = tuple(
            part.unflatten(1, shape).transpose(0, 1).flip(0).contiguous()
            for part, shape in zip(
                state.split([layers * size for layers, size in self.parts], 1),
                self.parts,
                strict=True,
            )
        )
        return tensors if len(tensors) > 1 else tensors[0]

    def draw(self, generator: torch.Generator | None, initialisation: str = "uniform") -> None:
        """Do nothing: the module keeps the start of its own."""

    def initialise(self, generator: torch.Generator | None) -> None:
        """Start the module anew, from torch's global generator seeded by this one."""
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            self.inner.load_state_dict(self._make().state_dict())

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """All that is read out (T, B, H), and the last state (B, n)."""
        self.served = self.options.module
        given = [self._unpack(state)] if self.parts else []
        output, last = self.inner(x.transpose(0, 1), *given)
        return output.transpose(0, 1), self._pack(last) if self.parts else output[:, -1]

    def drive(self, x: Tensor) -> Tensor:
        """The inputs themselves."""
        return x

    def step(self, u: Tensor, state: Tensor) -> Tensor:
        """One step of the module.

        Raises:
            UserError: Its state is not like a torch cell's.
        """
        if not self.parts:
            raise UserError(
                f"{self.options.module} has a state that is not like a torch cell's, so that its "
                "steps and Jacobians cannot be computed."
            )
        return self._pack(self.inner(u.unsqueeze(1), self._unpack(state))[1])

    def jacobian(self, u: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        """The step Jacobian (B, n, n), row by row by differentiation in reverse."""
        with torch.enable_grad():
            before = state.detach().requires_grad_()
            rows = self.step(u, before).sum(0)  # samples do not see each other
            found = [torch.autograd.grad(row, before, retain_graph=True)[0] for row in rows]
        return torch.stack(found, 1)
