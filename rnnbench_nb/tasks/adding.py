"""The adding problem (Hochreiter and Schmidhuber 1997; as in Le, Jaitly and Hinton 2015)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.tasks.base import Part, Split, Synthetic


class AddingProblem(Synthetic):
    """What is the sum of the two values with a mark?

    Each step has a value, uniform on [0, 1), and a mark, which is 1 at one step of the first half
    and at one step of the second half, and 0 elsewhere. The loss is the squared error. Without
    memory its expectation is at least 1/6, the variance of the sum; this neglects that the last
    step has a mark with probability 2/T.
    """

    name, label = "adding_problem", "the adding problem"
    metrics = "regression"
    tiny = {"length": 8, "training_examples": 640, "validation_examples": 60, "test_examples": 50}

    class Options(Synthetic.Options):
        """The length T is at least 2, because each half has a mark."""

        length: Annotated[int, Field(ge=2, le=100_000)] = 200

    def draw(self, count: int, random: torch.Generator) -> Part:
        """Draw inputs float32 (N, T, 2) and sums (N,)."""
        length, example = self.options.length, torch.arange(count)
        values, marks = torch.rand(count, length, generator=random), torch.zeros(count, length)
        for first, end in ((0, length // 2), (length // 2, length)):
            marks[example, torch.randint(first, end, (count,), generator=random)] = 1.0
        return Part(torch.stack([values, marks], 2), (values * marks).sum(1))

    def outputs(self) -> int:
        """One output: the sum."""
        return 1

    def losses(self, outputs: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        """Compute the squared errors of outputs (B, 1) against sums (B,)."""
        return F.mse_loss(outputs[:, 0], targets, reduction=reduction)

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the predicted sums (B,)."""
        return outputs[:, 0]

    def memoryless(self, split: Split) -> tuple[str, float]:
        """The least expected loss without memory: 1/6, of the constant answer 1."""
        return "loss", 1 / 6
