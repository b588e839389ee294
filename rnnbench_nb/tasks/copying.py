"""The copying memory task (Hochreiter and Schmidhuber 1997; as in Arjovsky et al. 2016)."""

import math

from rnnbench_nb.tasks.base import Part, Score, torch
from rnnbench_nb.tasks.synthetic import Synthetic
from rnnbench_nb.validation import Size

SYMBOLS, KINDS = 10, 8  # so many symbols, of so many kinds: 1 to 8; 0 is blank, 9 says "now"


class CopyingMemory(Synthetic):
    """Which ten symbols were seen at the start?

    Ten symbols, T - 1 blanks, a sign to answer, ten blanks; wanted are T + 10 blanks, then the
    symbols. The loss is the mean cross entropy over all T + 20 steps: without memory at least
    10 ln 8 / (T + 20), since ten steps of them cannot be known and the rest are certain.
    """

    name, label, read = "copying_memory", "copying memory", "every"
    loss_label = "Cross entropy (nats a step)"
    score = Score("recalled")
    metric_names = ("recalled",)
    metrics_note = "Recalled is the share of the ten symbols that are right."
    tiny = {"delay": 5, "training_examples": 640, "validation_examples": 60, "test_examples": 50}

    class Options(Synthetic.Options):
        """The delay T between the last symbol and the first answer."""

        delay: Size = 100

    def draw(self, count, random):
        """The symbols (N, 10) alone: they are the targets, and the rest of the inputs is known."""
        symbols = torch.randint(1, KINDS + 1, (count, SYMBOLS), generator=random)
        return Part(symbols, symbols)

    def inputs(self, stored):
        """One-hot float32 (B, T + 20, 10) of symbols, blanks and the sign."""
        tokens = torch.nn.functional.pad(stored, (0, self.options.delay + SYMBOLS))
        tokens[:, SYMBOLS + self.options.delay - 1] = KINDS + 1
        return torch.nn.functional.one_hot(tokens, KINDS + 2).float()

    def outputs(self):
        """A score for each kind of symbol, and for the blank."""
        return KINDS + 1

    def losses(self, outputs, targets, reduction="none"):
        """Cross entropy of outputs (B, T + 20, 9) and symbols (B, 10), in nats a step.

        Fewer steps, with what is wanted at the last of them, are judged alike.
        """
        blanks = outputs.shape[1] - targets.shape[1]
        wanted = torch.nn.functional.pad(targets, (blanks, 0))
        each = torch.nn.functional.cross_entropy(outputs.mT, wanted, reduction="none").mean(1)
        return each.mean() if reduction == "mean" else each

    def answers(self, outputs):
        """What is said at the last ten steps (B, 10)."""
        return outputs[:, -SYMBOLS:].argmax(2)

    def scores(self, label, predicted):
        """The share of the ten symbols of each example that are right."""
        return (predicted == label).mean(1)

    def memoryless(self, split):
        """That of guessing."""
        return 1 / KINDS

    def memoryless_loss(self):
        """10 ln 8 / (T + 20), in nats a step."""
        return SYMBOLS * math.log(KINDS) / (self.options.delay + 2 * SYMBOLS)
