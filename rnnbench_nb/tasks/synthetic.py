"""What tasks have in common whose examples are drawn, not fetched."""

from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks.base import Frozen, Part, Split, Task, torch
from rnnbench_nb.validation import Size


class Synthetic(Task):
    """A task that draws its examples; a subclass says how, and how long they are."""

    class Options(Frozen):
        """How many examples each part has."""

        training_examples: Size = 20_000
        validation_examples: Size = 2_000
        test_examples: Size = 2_000

    def draw(self, count: int, random: "torch.Generator") -> Part:
        """So many examples, from this source of randomness."""
        raise TypeError(f"{type(self).__name__} has no draw: write it.")

    def load(self, seed):
        """Training and validation examples of the seed, test examples that are always the same."""
        sizes, random = self.options, generator(seed, "examples")
        validation = self.draw(sizes.validation_examples, random)
        train = self.draw(sizes.training_examples, random)
        return Split(train, validation, self.draw(sizes.test_examples, generator(0, "test")))

    def describe(self):
        """The options, and the loss that no model without memory can go below."""
        options = self.options.model_dump(exclude=set(Synthetic.Options.model_fields))
        return {**options, "memoryless_loss": self.memoryless_loss()}
