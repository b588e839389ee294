"""The copying memory task (Hochreiter and Schmidhuber 1997; as in Arjovsky et al. 2016)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.parameters import Size
from rnnbench_nb.tasks.base import Part, Split, Synthetic

SYMBOLS, KINDS = 10, 8  # ten symbols of kinds 1 to 8; 0 is a blank, 9 the signal to answer


class CopyingMemory(Synthetic):
    """Which ten symbols were shown at the start?

    The inputs are ten symbols, T - 1 blanks, a signal to answer and ten blanks. The targets are
    T + 10 blanks and the ten symbols. The loss is the mean cross entropy over all T + 20 steps. A
    model without memory can only guess ten of them, so its loss is at least 10 ln 8 / (T + 20).
    """

    name, label, read = "copying_memory", "copying memory", "every"
    metrics = "symbols"
    tiny = {"delay": 5, "training_examples": 640, "validation_examples": 60, "test_examples": 50}

    class Options(Synthetic.Options):
        """The delay T is the number of steps between the last symbol and the first answer."""

        delay: Size = 100

    def draw(self, count: int, random: torch.Generator) -> Part:
        """Draw the symbols (N, 10), int64; only they are stored, as the other steps are fixed."""
        symbols = torch.randint(1, KINDS + 1, (count, SYMBOLS), generator=random)
        return Part(symbols, symbols)

    def inputs(self, stored: Tensor) -> Tensor:
        """Convert symbols to one-hot float32 (B, T + 20, 10)."""
        tokens = F.pad(stored, (0, self.options.delay + SYMBOLS))  # (B, T + 20)
        tokens[:, SYMBOLS + self.options.delay - 1] = KINDS + 1
        return F.one_hot(tokens, KINDS + 2).float()

    def outputs(self) -> int:
        """Return 9: one class score for each kind of symbol, and one for the blank."""
        return KINDS + 1

    def losses(self, outputs: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        """Compute the cross entropy of outputs (B, T + 20, 9), in nats a step.

        Outputs may have fewer steps, at least one; the targets (B, 10) belong to the last ones.
        """
        blanks = outputs.shape[1] - targets.shape[1]
        padded = F.pad(targets, (blanks, 0))  # a negative number of blanks crops
        each = F.cross_entropy(outputs.mT, padded, reduction="none").mean(1)
        return each.mean() if reduction == "mean" else each

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the symbols at the last ten steps (B, 10)."""
        return outputs[:, -SYMBOLS:].argmax(2)

    def memoryless(self, split: Split) -> tuple[str, float]:
        """The least expected loss without memory: 10 ln 8 / (T + 20), in nats a step."""
        return "loss", SYMBOLS * math.log(KINDS) / (self.options.delay + 2 * SYMBOLS)
