"""Any torch module with the interface of torch.nn.GRU, from a package or a file, as a cell."""

import importlib
import pydoc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnnbench_nb.cells.base import Cell
from rnnbench_nb.cells.kernels import unroll
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.parameters import Frozen


class Module(Cell):
    """A module that is built by CLASS(input_size, hidden_size, batch_first=True, **arguments).

    It takes inputs (B, T, D) and returns its outputs (B, T, H) and its last state. It keeps its own
    initialisation, which the run's seed determines. It has steps and Jacobians too if its state,
    (1, B, H) or (B, H), starts at zero and always equals its last output, as in torch.nn.GRU.
    """

    name, label = "module", "module"
    colour, dashes, marker = "#4D4D4D", (5, 2, 2, 2), "P"
    equation = "(a torch module with initial weights of its own): $h_s = f(x_s, h_{s-1})$."

    class Options(Frozen):
        module: str = "torch.nn:RNN"  # or "file.py:Class", relative to the project
        arguments: dict[str, Any] = {}  # besides the sizes and `batch_first`

    options: Options

    def _build(self, input_size: int, hidden_size: int, batch_first: bool, **place: Any) -> None:
        nn.Module.__init__(self)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.batch_first = batch_first
        self.inner = self._make()
        with torch.no_grad():
            self.shape = self._shape_of_state()
        self.inner.train().to(**place)

    def _make(self) -> nn.Module:
        where, _, name = self.options.module.rpartition(":")
        try:
            if where.endswith(".py"):
                package: Any = pydoc.importfile(str(PROJECT / Path(where).expanduser()))
            else:
                package = importlib.import_module(where)
            kind, sizes = getattr(package, name), (self.input_size, self.hidden_size)
            return kind(*sizes, batch_first=True, **self.options.arguments)
        except Exception as error:  # whatever a foreign file raises
            raise UserError(
                f"module: {self.options.module!r} cannot be built ({type(error).__name__}: {error}"
                "); write package.module:Class or path/to/file.py:Class."
            ) from error

    def _shape_of_state(self) -> tuple[int, ...]:
        """The shape of a state, with -1 for B; () if the state is not the last output."""
        x, size = torch.linspace(-1, 1, 6 * self.input_size).view(3, 2, -1), self.hidden_size
        answer = self.inner.eval()(x)
        if not isinstance(answer, tuple) or answer[0].shape != (3, 2, size):
            raise UserError(
                f"module: {self.options.module} does not return outputs (B, T, H) and its last "
                "state, as torch.nn.GRU does; wrap it in a class that does."
            )
        output, last = answer
        if not isinstance(last, Tensor) or last.shape not in ((1, 3, size), (3, size)):
            return ()
        self.shape = (*last.shape[:-2], -1, size)
        steps = unroll(self.step, x.transpose(0, 1), torch.zeros(3, size))
        return self.shape if torch.allclose(steps.transpose(0, 1), output) else ()

    def draw(self, generator: torch.Generator | None, initialisation: str = "uniform") -> None:
        """Do nothing: the module keeps its own initialisation."""

    def initialise(self, generator: torch.Generator | None) -> None:
        """Initialise the module again, from the generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            self.inner.load_state_dict(self._make().state_dict())

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.path = self.options.module
        start = [state.view(self.shape)] if self.shape else []
        output = self.inner(x.transpose(0, 1), *start)[0].transpose(0, 1)
        return output, output[-1]

    def drive(self, x: Tensor) -> Tensor:
        """Return the inputs unchanged."""
        return x

    def step(self, u: Tensor, state: Tensor) -> Tensor:
        if not self.shape:
            raise UserError(f"the state of {self.options.module} is not its last output.")
        return self.inner(u.unsqueeze(1), state.view(self.shape))[0].squeeze(1)
