"""What a task says of itself: its data, its loss, where the answer is read, and its score."""

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from rnnbench_nb.plugins import torch
from rnnbench_nb.validation import Frozen

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["Frozen", "Part", "Score", "Split", "Task", "torch"]


class Score(NamedTuple):
    """The score of one test example, of which more is better; a run's is their mean.

    Attributes:
        name: Of the column of results.csv that holds it.
        scale: What it is multiplied by where people read it (100 for percent).
        unit: What then follows the number, such as "%".
        difference: What follows a difference of two, such as "points".
    """

    name: str = "accuracy"
    scale: float = 100.0
    unit: str = "%"
    difference: str = "points"


class Part(NamedTuple):
    """N examples as they are stored, and what is to be answered, each with N rows."""

    inputs: "Tensor"
    targets: "Tensor"


class Split(NamedTuple):
    """The three parts that one run sees."""

    train: Part
    validation: Part
    test: Part


class Task:
    """One task. A subclass is one file.

    Attributes:
        name: In parameter files.
        label: In text.
        read: "last" for an answer after the last step, "every" for one after each.
        loss_label: The loss and its unit, on the axis of a figure.
        score: What a test example is judged by.
        metric_names: The columns of results.csv that judge a run, the mean score first.
        metrics_note: A sentence on what they mean, where it is not plain.
        data_page: The notebook of a report that shows the data; it takes the task's options and
            `seed`. None for no such page.
        Options: The task's own parameters, with types, limits and defaults.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    read: ClassVar[str] = "last"
    loss_label: ClassVar[str] = "Loss"
    score: ClassVar[Score] = Score()
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    metrics_note: ClassVar[str] = ""
    data_page: ClassVar[str | None] = None

    class Options(Frozen):
        """A task without options of its own."""

    def __init__(self, options: Any):
        """Take the options, any object that has all of `Options` as attributes."""
        self.options = self.Options(**{k: getattr(options, k) for k in self.Options.model_fields})

    def fetch(self) -> str:
        """Have the data on this machine, and say so in a sentence.

        Raises:
            UserError: The data are not there and cannot be had.
        """
        return f"The data of {self.label} need no fetching."

    def resolve(self) -> tuple[dict[str, Any], str]:
        """Options that are settled by what this machine has, and a sentence if that is not asked.

        Raises:
            UserError: The data are not there and cannot be had.
        """
        return {}, ""

    def describe(self) -> dict[str, Any]:
        """What run.json says of the data, plain values."""
        return {}

    def sentence(self, data: dict[str, Any]) -> str:
        """The data of a run in words, from run.json's `data`."""
        return f"{self.label}: {data['steps']} steps of {data['input_size']}"

    def load(self, seed: int) -> Split:
        """The three parts of the run with this seed; the test part is the same for every seed."""
        raise TypeError(f"{type(self).__name__} has no load: write it.")

    def inputs(self, stored: "Tensor") -> "Tensor":
        """A batch of stored examples as sequences, float32 (B, T, D)."""
        return stored

    def outputs(self) -> int:
        """How many numbers the head gives, K."""
        raise TypeError(f"{type(self).__name__} has no outputs: write it.")

    def losses(self, outputs: "Tensor", targets: "Tensor", reduction: str = "none") -> "Tensor":
        """The loss of each example (B,) in nats or squares, or their mean ("mean").

        Args:
            outputs: Of the head, (B, K), or (B, T, K) where every step is read.
            targets: Of these examples.
            reduction: "none" or "mean".
        """
        raise TypeError(f"{type(self).__name__} has no losses: write it.")

    def answers(self, outputs: "Tensor") -> "Tensor":
        """What the outputs answer, to be kept and judged."""
        return outputs

    def scores(self, label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """One score for each example (N,), more being better, from targets and answers."""
        raise TypeError(f"{type(self).__name__} has no scores: write it.")

    def metrics(self, label: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """The values of `metric_names`, the mean score first."""
        return {self.score.name: float(self.scores(label, predicted).mean())}

    def memoryless(self, split: Split) -> float:
        """The validation score that a model reaches which sees the last step alone."""
        raise TypeError(f"{type(self).__name__} has no memoryless: write it.")

    def mistakes(self, examples: "Tensor", texts: list[str]) -> "Figure":
        """Stored examples as a figure, each under its text."""
        raise TypeError(f"{type(self).__name__} has no mistakes: write it.")
