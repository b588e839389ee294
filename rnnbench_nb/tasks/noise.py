"""Images that are read by row, followed by rows of noise during which a model must remember."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rnnbench_nb.parameters import Size
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.tasks.images import ImageSequence

KEY = 8  # bytes of a key


class NoisePadded(ImageSequence):
    """Which class does the image before the noise have? (Chang et al. 2019)."""

    name, label = "noise_padded", "classification of images before noise"
    tiny = {"dataset": "digits", "padded_length": 28}
    data_page = None  # the page of the images shows them without noise

    class Options(ImageSequence.Options):
        """The images, and the number of steps T, noise included.

        `validation_examples` limits the validation part; at 1,000 steps all of its images (None)
        would take a third as long as the training.
        """

        reading: Literal["row"] = "row"
        permutation: Literal["none"] = "none"
        padded_length: Annotated[int, Field(ge=28, le=100_000)] = 1000
        validation_examples: Size | None = None

    def load(self, seed: int) -> Split:
        """Load the images and give each a noise key: seed (0 for the test), part and place."""
        train, validation, test = super().load(seed)
        limit = self.options.validation_examples
        return Split(
            Part(_with_keys(train.inputs, seed, 0), train.targets),
            Part(_with_keys(validation.inputs[:limit], seed, 1), validation.targets[:limit]),
            Part(_with_keys(test.inputs, 0, 2), test.targets),
        )

    def inputs(self, stored: Tensor) -> Tensor:
        """Convert images with keys (B, h + 1, w) to h rows and T - h rows of noise each."""
        rows = self.pictures(stored)
        size, height, width = rows.shape
        sequences = torch.empty(size, self.options.padded_length, width)
        sequences[:, :height] = rows
        keys = np.ascontiguousarray(stored[:, -1, :KEY]).view("<u8")[:, 0]
        for noise, key in zip(sequences[:, height:].numpy(), keys, strict=True):
            np.random.Generator(np.random.Philox(key=key)).random(out=noise, dtype=np.float32)
        return sequences

    def pictures(self, stored: Tensor) -> Tensor:
        """Convert the images to float32 with values from 0 to 1, without their keys."""
        return super().pictures(stored[:, :-1])


def _with_keys(images: Tensor, seed: int, part: int) -> Tensor:
    """Append a key row to images uint8 (N, h, w): 32 bits of seed, 2 of part, 30 of place."""
    size, _, width = images.shape
    row = np.zeros((size, 1, width), np.uint8)
    keys = np.uint64(seed << 32 | part << 30) | np.arange(size, dtype=np.uint64)
    row[:, 0, :KEY] = keys.astype("<u8").view(np.uint8).reshape(size, KEY)
    return torch.cat([images, torch.from_numpy(row)], 1)  # (N, h + 1, w)
