"""The adding problem (Hochreiter and Schmidhuber 1997; as in Le, Jaitly and Hinton 2015)."""

from typing import Annotated

import numpy as np
from pydantic import Field

from rnnbench_nb.tasks.base import Part, Score, torch
from rnnbench_nb.tasks.synthetic import Synthetic


class AddingProblem(Synthetic):
    """What is the sum of the two values that were marked?

    Each step brings a value, uniform on [0, 1), and a mark, which is 1 at one step of the first
    half and at one of the second, else 0. The loss is the squared error. The two values' sum has
    mean 1 and variance 2/12, so without memory the least mean squared error is 1/6 (the one step
    that the last state sees directly is marked with probability 2/T, and set aside).
    """

    name, label = "adding_problem", "the adding problem"
    loss_label = "Squared error"
    score = Score("negative_mse", 1.0, "", "")
    metric_names = ("negative_mse",)
    metrics_note = "The score is the mean squared error with a minus, so that more is better."
    tiny = {"length": 8, "training_examples": 640, "validation_examples": 60, "test_examples": 50}

    class Options(Synthetic.Options):
        """The length T: the two marks need a half each."""

        length: Annotated[int, Field(ge=2, le=100_000)] = 200

    def draw(self, count, random):
        """Inputs float32 (N, T, 2) and the sums (N,)."""
        length, each = self.options.length, torch.arange(count)
        values, marks = torch.rand(count, length, generator=random), torch.zeros(count, length)
        for first, end in ((0, length // 2), (length // 2, length)):
            marks[each, torch.randint(first, end, (count,), generator=random)] = 1.0
        return Part(torch.stack([values, marks], 2), (values * marks).sum(1))

    def outputs(self):
        """The sum."""
        return 1

    def losses(self, outputs, targets, reduction="none"):
        """Squared errors of outputs (B, 1) and sums (B,)."""
        return torch.nn.functional.mse_loss(outputs[:, 0], targets, reduction=reduction)

    def answers(self, outputs):
        """The sums (B,) that were said."""
        return outputs[:, 0]

    def scores(self, label, predicted):
        """The squared error of each example, with a minus."""
        return -np.square(predicted - label, dtype=float)

    def memoryless(self, split):
        """That of saying 1 always."""
        return -self.memoryless_loss()

    def memoryless_loss(self):
        """1/6, the variance of a sum of two values."""
        return 1 / 6
