"""The interface of a task, and the base of tasks that draw their examples at random."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnnbench_nb.metrics import METRICS, Score
from rnnbench_nb.parameters import Frozen, Size
from rnnbench_nb.seeds import generator


class Part(NamedTuple):
    """N examples in the form in which they are stored, and their targets, N rows each."""

    inputs: Tensor
    targets: Tensor


class Split(NamedTuple):
    """The three parts of the data that one run sees."""

    train: Part
    validation: Part
    test: Part


class Task(ABC):
    """One task. A subclass is one file.

    Attributes:
        name, label: The name in parameter files, and the name in text.
        read: Whether the model answers after the last step or after every step.
        metrics: The kind of metrics that judges the answers, a name in `METRICS`.
        tiny: Options that make the task small enough for a test.
        data_page: The notebook that shows the data; it takes the task's options and `seed`.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    read: ClassVar[Literal["last", "every"]] = "last"
    metrics: ClassVar[str] = "classification"
    tiny: ClassVar[dict[str, Any]] = {}
    data_page: ClassVar[str | None] = None

    class Options(Frozen):
        """The task's own parameters with types, limits and defaults."""

    def __init__(self, options: Any) -> None:
        self.options = options  # an instance of `Options`

    @property
    def score(self) -> Score:
        """The kind of score of a test example."""
        return METRICS[self.metrics].score

    def scores(self, label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Compute the score of each example (N,) from N targets and N answers."""
        return METRICS[self.metrics].scores(label, predicted)

    def resolve(self) -> tuple[dict[str, Any], str]:
        """Fetch and verify the data, and find the parameters that depend on them.

        Returns:
            The parameters to change, by flat keys; and a sentence if other data stand in, else "".

        Raises:
            UserError: The data are missing and cannot be downloaded, or they are damaged.
        """
        return {}, ""

    def describe(self) -> dict[str, Any]:
        """Return the plain values that describe the data in run.json."""
        return self.options.model_dump()

    @abstractmethod
    def load(self, seed: int) -> Split:
        """Load the three parts of the run with this seed; the test part is equal for all seeds."""

    def inputs(self, stored: Tensor) -> Tensor:
        """Convert stored examples to sequences, float32 (B, T, D)."""
        return stored

    def pictures(self, stored: Tensor) -> Tensor:
        """Convert stored examples to pictures (B, h, w), with values from 0 to 1 for images."""
        return self.inputs(stored).mT  # (B, D, T): a column a step

    @abstractmethod
    def outputs(self) -> int:
        """Return the number of outputs of the head, K."""

    @abstractmethod
    def losses(
        self, outputs: Tensor, targets: Tensor, reduction: Literal["none", "mean"] = "none"
    ) -> Tensor:
        """Compute the loss of each example (B,), or their mean, in nats or squared units.

        The outputs of the head are (B, K), or (B, T, K) if `read` is "every".
        """

    @abstractmethod
    def answers(self, outputs: Tensor) -> Tensor:
        """Convert outputs to the answers that a run keeps, (B,) or (B, symbols)."""

    @abstractmethod
    def memoryless(self, split: Split) -> tuple[str, float]:
        """Return "loss" or the score's name, and its best value for a model without memory."""


class Synthetic(Task):
    """A task whose examples are random; a subclass draws them."""

    class Options(Frozen):
        """The number of examples in each part."""

        training_examples: Size = 20_000
        validation_examples: Size = 2_000
        test_examples: Size = 2_000

    @abstractmethod
    def draw(self, count: int, random: torch.Generator) -> Part:
        """Draw `count` examples from a random generator."""

    def load(self, seed: int) -> Split:
        """Draw training and validation examples with the seed, and test examples with seed 0."""
        sizes, random = self.options, generator(seed, "examples")
        validation = self.draw(sizes.validation_examples, random)
        train = self.draw(sizes.training_examples, random)
        return Split(train, validation, self.draw(sizes.test_examples, generator(0, "test")))
