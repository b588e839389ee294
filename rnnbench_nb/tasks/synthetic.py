"""The base of tasks whose examples are drawn at random."""

from abc import abstractmethod
from typing import Any

import torch

from rnnbench_nb.parameters import Frozen, Size
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks.base import Part, Split, Task


class Synthetic(Task):
    """A task that draws its examples; a subclass says how."""

    class Options(Frozen):
        """The number of examples in each part."""

        training_examples: Size = 20_000
        validation_examples: Size = 2_000
        test_examples: Size = 2_000

    @abstractmethod
    def draw(self, count: int, random: torch.Generator) -> Part:
        """Draw `count` examples from a generator."""

    def load(self, seed: int) -> Split:
        """Draw training and validation examples by the seed, and test examples by a fixed one."""
        sizes, random = self.options, generator(seed, "examples")
        validation = self.draw(sizes.validation_examples, random)
        train = self.draw(sizes.training_examples, random)
        return Split(train, validation, self.draw(sizes.test_examples, generator(0, "test")))

    def describe(self) -> dict[str, Any]:
        """The subclass's options, and the least loss of a model without memory."""
        options = self.options.model_dump(exclude=set(Synthetic.Options.model_fields))
        return {**options, "memoryless_loss": self.memoryless_loss()}
