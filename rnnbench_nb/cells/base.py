"""What a cell says of itself; the module around it and its loop are in `recurrent`."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rnnbench_nb.plugins import torch
from rnnbench_nb.validation import Count, Frozen

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cell", "Chrono", "Frozen", "Start", "torch"]


class Start(Frozen):
    """The option of a cell whose authors start it in a way of their own.

    Attributes:
        start: common, the policy of all cells (see `Cell.initialise`), or source, the authors' way
            for the cell's own weights; the head has the common start either way. The default is
            common where the cell learns with it: each file says how far both came in the first 300
            steps of row MNIST (128 units, batch 128, Adam 1e-3, one seed, accuracy on 2,000
            validation images), which shows that they learn and no more.
    """

    start: Literal["common", "source"] = "common"


class Chrono(Frozen):
    """The option of a cell with a gate that keeps the state (Tallec and Ollivier 2018).

    Attributes:
        chrono: The longest memory, in steps, that the gates have at the start; 0 leaves them as the
            other options say. Sequences of hundreds of steps may teach nothing without it.
    """

    chrono: Count = 0

    def draw_chrono(self, bias: "Tensor", generator: "torch.Generator | None") -> None:
        """Set the bias (H,) of such a gate to log u, so that it keeps a state for some u steps.

        u is uniform on 1 to chrono - 1 (their equations 14 and 16); where `chrono` is 0 the bias
        stays as it is.
        """
        if self.chrono:
            with torch.no_grad():
                bias.uniform_(1, max(self.chrono - 1, 1), generator=generator).log_()


class Cell:
    """One recurrent cell: its name, options, weights and one step. A subclass is one file.

    B sequences of T steps have D features; a state has `states` parts of H numbers each, the first
    of which is read out. `drive` computes, for all steps at once, what depends on the input alone:
    u = W x + b, with `blocks` blocks of H numbers; the step adds the rest.

    Attributes:
        name: In parameter files and folder names.
        label: In tables and figures.
        colour, dashes, marker: Its look in figures; None for one that nothing else uses.
        equation: Markdown with LaTeX, as the notebooks print it.
        blocks: Blocks of H numbers in u.
        states: Blocks of H numbers in the state.
        no_decay: Names of the parameters that know no weight decay.
        torch_module: The class of `torch.nn` that runs the loop; None where `step` does.
        Options: The cell's own parameters, with types, limits and defaults.
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
    torch_module: ClassVar[str | None] = None

    class Options(Frozen):
        """A cell without options of its own."""

    options: Any
    hidden_size: int

    def weights(self) -> dict[str, tuple[int, ...] | None]:
        """The shape of each parameter besides `weight_ih` (blocks H, D) and `bias` (blocks H,).

        A cell without a bias says `{"bias": None}`.
        """
        return {}

    def initialise(self, generator: "torch.Generator | None") -> None:
        """Change what the common policy drew: matrices uniform on +-1/sqrt(H), all else zero."""

    def prepare(self) -> tuple["Tensor", ...]:
        """What a sequence needs once, computed from the current weights; `step` takes it."""
        return ()

    def step(self, u: "Tensor", state: "Tensor", *prepared: "Tensor") -> "Tensor":
        """The state (B, states H) after one step, from u (B, blocks H) and the state before it."""
        raise TypeError(f"{type(self).__name__} has no step: write it.")

    def redundant(self) -> int:
        """How many trained parameters act only together with others, and are no capacity."""
        return 0

    def recurrent_matrix(self) -> "Tensor | None":
        """The matrix (H, H) of the flow that the cell steps along, where it has one."""
        return None

    def step_size(self) -> "Tensor | float":
        """The size of the forward Euler step along that flow."""
        return 1.0

    def backends(self) -> list:
        """Faster ways to run the loop, best first; see `rnnbench_nb.recurrent`."""
        return []
