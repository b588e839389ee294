"""Classification of images that are read as sequences, row by row or pixel by pixel."""

import hashlib
from functools import cache
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
FITTED = 6000  # training images that are enough for a logistic regression
BATCH = 500  # images that are converted to sequences at once, since long ones take memory


# The order of pixels in each paper's "permuted MNIST".
PERMUTATIONS = (
    "torch_12008",  # coRNN, LipschitzRNN
    "torch_5544",  # LEM, UnICORNN
    "numpy_92916",  # expRNN
    "numpy_0",  # LMU
    "bit_reversal",  # S4
)


@cache
def permutation(name: str, n: int) -> Tensor:
    """The order (n,), int64, in which n pixels are read: step t reads pixel `order[t]`."""
    if name == "bit_reversal":
        bits = (n - 1).bit_length()
        mirrored = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
        return torch.tensor([number for number in mirrored if number < n])
    library, seed = name.split("_")
    if library == "torch":
        return torch.randperm(n, generator=torch.Generator().manual_seed(int(seed)))
    legacy = np.random.RandomState(int(seed))  # noqa: NPY002 (the published stream)
    return torch.from_numpy(legacy.permutation(n))


def permutation_hash(name: str, n: int) -> str:
    """The first 16 digits of the SHA-256 of the order as little-endian int64 numbers."""
    return hashlib.sha256(permutation(name, n).numpy().astype("<i8").tobytes()).hexdigest()[:16]


def split(images: data.Images, seed: int) -> Split:
    """Draw round(0.15 N) validation images from the N training images; keep all test images.

    The draw has its own generator, so every model of one seed gets the same split.
    """
    count = len(images.train_labels)
    order = torch.randperm(count, generator=generator(seed, "split"))
    validation, train = order.tensor_split([round(VALIDATION_FRACTION * count)])
    return Split(
        train=Part(images.train_images[train], images.train_labels[train]),
        validation=Part(images.train_images[validation], images.train_labels[validation]),
        test=Part(images.test_images, images.test_labels),
    )


class Fallback(Frozen):
    """A data set that stands in, and the parameters of a run that change with it."""

    dataset: Literal["digits", "mnist_5k"]
    epochs: Size | None = None
    batch_size: Size | None = None
    learning_rate: Positive | None = None
    schedule: Schedule | None = None


class ImageSequence(Task):
    """Which class has the image that was read? The answer is read after the last step."""

    name, label = "image_sequence", "image classification"
    data_page: ClassVar[str | None] = "01_data"
    tiny = {"dataset": "digits"}

    class Options(Frozen):
        """Which images are used, and how they are read.

        Attributes:
            dataset: A data set of `data.DATASETS`.
            offline_fallback: What stands in, with a note, if the data set cannot be downloaded.
            reading: "row" for a row of pixels at each step, "pixel" for one pixel.
            permutation: The order of the pixels for all images, a name in `PERMUTATIONS`.
            training_examples: How many images of the split are trained on; None for all.
        """

        dataset: Literal["mnist", "fashion_mnist", "mnist_5k", "digits"] = "mnist"
        offline_fallback: Fallback | None = None
        reading: Literal["row", "pixel"] = "row"
        permutation: Literal["none", *PERMUTATIONS] = "none"  # type: ignore[valid-type]
        training_examples: Size | None = None

        @field_validator("permutation")
        @classmethod
        def _of_pixels(cls, name: str, others: ValidationInfo) -> str:
            if name != "none" and others.data.get("reading") == "row":
                raise ValueError("rows cannot be permuted; give reading: pixel, or none")
            return name

    @property
    def source(self) -> data.Source:
        """Where the images come from."""
        return data.DATASETS[self.options.dataset]

    def fetch(self) -> str:
        """Download and verify what is missing of the data set."""
        data.fetch(self.options.dataset, into_named_folder=True)
        where = f" in {data.data_folder()}" if self.source.sha256 else ""
        return f"{self.source.title} is complete and verified{where}."

    def resolve(self, download: bool = True) -> tuple[dict[str, Any], str]:
        """Settle on the data set, or on its fallback if it cannot be downloaded."""
        fallback = self.options.offline_fallback
        seconds = data.SECONDS_WITH_FALLBACK if fallback else data.SECONDS
        try:
            data.fetch(self.options.dataset, seconds if download else 0.0)
        except data.FetchError:
            if not download:
                return {}, f"{self.source.title} is not on this machine; a run downloads it"
            if fallback is None:
                raise
            title = data.DATASETS[fallback.dataset].title
            note = (
                f"{self.source.title} is not on this machine and could not be downloaded; "
                f"{title} stand in for it"
            )
            return {**fallback.model_dump(exclude_none=True), "offline_fallback": None}, note
        return {"offline_fallback": None}, ""

    def describe(self) -> dict[str, Any]:
        """The data set, the reading, a permutation with its hash, and the classes."""
        order, names = self.options.permutation, list(self.source.class_names)
        values = {"dataset": self.options.dataset, "reading": self.options.reading}
        if order != "none":
            values["permutation"] = order
            values["permutation_hash"] = permutation_hash(order, self.source.pixels)
        return {**values, "classes": len(names), "class_names": names}

    def load(self, seed: int) -> Split:
        """Load the images of the data set; the seed draws those of the validation part."""
        parts, count = split(data.load(self.options.dataset), seed), self.options.training_examples
        available = len(parts.train.targets)
        if (count or 0) > available:
            raise UserError(
                f"training_examples: {self.options.dataset} has {available:,}, not {count:,}; "
                "give fewer, or null for all."
            )
        return parts._replace(train=Part(*(tensor[:count] for tensor in parts.train)))

    def inputs(self, stored: Tensor) -> Tensor:
        """Convert images uint8 (B, h, w) to sequences float32 with values from 0 to 1."""
        images = self.pictures(stored)
        if self.options.reading == "row":
            return images  # (B, h, w): T = h steps of D = w pixels, from the top
        pixels = images.flatten(1).unsqueeze(2)  # (B, h w, 1)
        name = self.options.permutation
        return pixels if name == "none" else pixels[:, permutation(name, pixels.shape[1])]

    def pictures(self, stored: Tensor) -> Tensor:
        """Convert images uint8 (B, h, w) to float32 with values from 0 to 1."""
        return stored.float() / 255

    def outputs(self) -> int:
        """One class score for each class."""
        return len(self.source.class_names)

    def losses(self, outputs: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        """Compute the cross entropy of class scores (B, K) in nats."""
        return F.cross_entropy(outputs, targets, reduction=reduction)

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the class with the highest score."""
        return outputs.argmax(1)

    def memoryless(self, split: Split) -> float:
        """The accuracy of a logistic regression on the last step of some training images."""
        from sklearn.linear_model import LogisticRegression

        def last_steps(part: Part) -> tuple[np.ndarray, np.ndarray]:
            batches = part.inputs[:FITTED].split(BATCH)
            steps = torch.cat([self.inputs(batch)[:, -1] for batch in batches])
            return steps.numpy(), part.targets[:FITTED].numpy()

        regression = LogisticRegression(max_iter=300).fit(*last_steps(split.train))
        return float(regression.score(*last_steps(split.validation)))
