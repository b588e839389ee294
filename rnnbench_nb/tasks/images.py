"""Classification of images that a model reads as sequences, row by row or pixel by pixel."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import Frozen, Positive, Schedule, Size
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import data
from rnnbench_nb.tasks.base import Part, Split, Task

VALIDATION_FRACTION = 0.15  # of the training images: 9,000 of MNIST's 60,000
FIT_EXAMPLES = 6000  # training images that are enough for a logistic regression
BATCH = 500  # images converted to sequences at once; long sequences take much memory


def split(train: Part, test: Part, seed: int) -> Split:
    """Draw round(0.15 N) validation images from the N training images; keep all test images.

    The draw has its own generator, so every model of one seed gets the same split.
    """
    count = len(train.targets)
    order = torch.randperm(count, generator=generator(seed, "split"))
    first, rest = order.tensor_split([round(VALIDATION_FRACTION * count)])
    training, validation = (Part(train.inputs[i], train.targets[i]) for i in (rest, first))
    return Split(training, validation, test)


class Fallback(Frozen):
    """A data set that replaces another, and the parameters of a run that change with it."""

    dataset: Literal["digits", "mnist_5k"]
    epochs: Size | None = None
    batch_size: Size | None = None
    learning_rate: Positive | None = None
    schedule: Schedule | None = None


class ImageSequence(Task):
    """Which class does the image have? The model answers after the last step."""

    name, label = "image_sequence", "image classification"
    data_page: ClassVar[str | None] = "01_data"
    tiny = {"dataset": "digits"}

    class Options(Frozen):
        """The images, and how a model reads them.

        `offline_fallback` replaces a data set that cannot be downloaded, and the report says so. A
        step reads a row of pixels or one pixel. `permutation` reorders the pixels of all images as
        a paper's "permuted MNIST" does: torch_12008 is coRNN's and LipschitzRNN's, torch_5544 LEM's
        and UnICORNN's. `training_examples` limits the training part to its first examples.
        """

        dataset: Literal["mnist", "fashion_mnist", "mnist_5k", "digits"] = "mnist"
        offline_fallback: Fallback | None = None
        reading: Literal["row", "pixel"] = "row"
        permutation: Literal["none", "torch_12008", "torch_5544"] = "none"
        training_examples: Size | None = None

        @field_validator("permutation")
        @classmethod
        def _of_pixels(cls, name: str, others: ValidationInfo) -> str:
            if name != "none" and others.data.get("reading") == "row":
                raise ValueError("rows have no permutation; set reading: pixel, or none")
            return name

    @property
    def source(self) -> data.Source:
        """The source of the images."""
        return data.DATASETS[self.options.dataset]

    def resolve(self) -> tuple[dict[str, Any], str]:
        """Fetch the data set, or choose its fallback if it cannot be downloaded."""
        fallback, changes = self.options.offline_fallback, {"offline_fallback": None}
        try:
            data.fetch(self.options.dataset)
        except data.FetchError:
            if fallback is None:
                raise
            note = (
                f"{self.source.title} is not on this machine and could not be downloaded; "
                f"{data.DATASETS[fallback.dataset].title} stand in for it"
            )
            return fallback.model_dump(exclude_none=True) | changes, note
        return changes, ""

    def describe(self) -> dict[str, Any]:
        """The options, and the names of the classes."""
        return super().describe() | {"class_names": list(self.source.class_names)}

    def load(self, seed: int) -> Split:
        """Load the images; the seed draws the validation part. Raise UserError if too few."""
        parts, count = split(*data.load(self.options.dataset), seed), self.options.training_examples
        available = len(parts.train.targets)
        if (count or 0) > available:
            has = f"{self.options.dataset} has {available:,} training images, not {count:,}"
            raise UserError(f"training_examples: {has}; set fewer, or null for all.")
        return parts._replace(train=Part(*(tensor[:count] for tensor in parts.train)))

    def inputs(self, stored: Tensor) -> Tensor:
        """Convert images uint8 (B, h, w) to sequences float32 (B, T, D), values from 0 to 1."""
        images = self.pictures(stored)
        if self.options.reading == "row":
            return images  # (B, h, w): T = h steps of D = w pixels, from the top
        pixels = images.flatten(1).unsqueeze(2)  # (B, h w, 1)
        if self.options.permutation == "none":
            return pixels
        random = torch.Generator().manual_seed(int(self.options.permutation.split("_")[1]))
        return pixels[:, torch.randperm(pixels.shape[1], generator=random)]

    def pictures(self, stored: Tensor) -> Tensor:
        """Convert images uint8 (B, h, w) to float32 with values from 0 to 1."""
        return stored.float() / 255

    def outputs(self) -> int:
        """Return the number of classes, each of which has a score."""
        return len(self.source.class_names)

    def losses(self, outputs: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        """Compute the cross entropy of class scores (B, K) in nats."""
        return F.cross_entropy(outputs, targets, reduction=reduction)

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the class (B,) with the highest score."""
        return outputs.argmax(1)

    def memoryless(self, split: Split) -> tuple[str, float]:
        """The validation accuracy of a logistic regression on the last step of the images."""
        from sklearn.linear_model import LogisticRegression

        def last_steps(part: Part) -> tuple[np.ndarray, np.ndarray]:
            batches = part.inputs[:FIT_EXAMPLES].split(BATCH)
            steps = torch.cat([self.inputs(batch)[:, -1] for batch in batches])
            return steps.numpy(), part.targets[:FIT_EXAMPLES].numpy()

        regression = LogisticRegression(max_iter=300).fit(*last_steps(split.train))
        return self.score.name, float(regression.score(*last_steps(split.validation)))
