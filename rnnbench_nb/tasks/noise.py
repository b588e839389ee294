"""Images read by row, then rows of noise, through which the image has to be remembered."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rnnbench_nb.parameters import Size
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.tasks.images import ImageSequence

KEY = 8  # bytes


class NoisePadded(ImageSequence):
    """Which class has the image whose rows came before the noise? (Chang et al. 2019)."""

    name, label = "noise_padded", "classification of images before noise"
    tiny = {"dataset": "digits", "padded_length": 28}
    data_page = None  # the page of the images shows them without noise

    class Options(ImageSequence.Options):
        """Which images are used, and the number of steps T with the noise.

        All validation images (None) would take a third of the training's time at 1,000 steps.
        """

        reading: Literal["row"] = "row"
        permutation: Literal["none"] = "none"
        padded_length: Annotated[int, Field(ge=28, le=100_000)] = 1000
        validation_examples: Size | None = None

    def load(self, seed: int) -> Split:
        """Load the images, each with the key of its noise: seed (0 for the test), part, place."""
        train, validation, test = super().load(seed)
        some = self.options.validation_examples
        return Split(
            Part(_with_keys(train.inputs, seed, 0), train.targets),
            Part(_with_keys(validation.inputs[:some], seed, 1), validation.targets[:some]),
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
    """Append a row to images uint8 (N, h, w): 32 bits of seed, 2 of part, 30 of place."""
    size, _, width = images.shape
    row = np.zeros((size, 1, width), np.uint8)
    keys = np.uint64(seed << 32 | part << 30) | np.arange(size, dtype=np.uint64)
    row[:, 0, :KEY] = keys.astype("<u8").view(np.uint8).reshape(size, KEY)
    return torch.cat([images, torch.from_numpy(row)], 1)  # (N, h + 1, w)
