"""Images read by row, then rows of noise: what was seen must outlast them."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rnnbench_nb.tasks.base import Part, Split, torch
from rnnbench_nb.tasks.images import ImageSequence
from rnnbench_nb.validation import Size

KEY = 8  # bytes


class NoisePadded(ImageSequence):
    """Which class is the image whose rows came first, before the noise? (Chang et al. 2019)."""

    name, label = "noise_padded", "classification of images before noise"
    tiny = {"dataset": "digits", "padded_length": 28}
    data_page = None  # that page shows images as they are

    class Options(ImageSequence.Options):
        """Which images, and how many steps with the noise; rows are read as they are.

        Of the validation images so many are used, None for all: at 1,000 steps they would take as
        long as a third of the training.
        """

        reading: Literal["row"] = "row"
        permutation: Literal["none"] = "none"
        padded_length: Annotated[int, Field(ge=28, le=100_000)] = 1000
        validation_examples: Size | None = None

    def describe(self):
        """That of the images, and the padded length."""
        return {**super().describe(), "padded_length": self.options.padded_length}

    def sentence(self, data):
        """Such as `MNIST, read by row, then uniform noise: 1000 steps of 28`."""
        return super().sentence(data).replace(": ", ", then uniform noise: ")

    def load(self, seed):
        """The images, each with the key of its noise.

        The noise of a training or validation image depends on the seed, the part and the image's
        place in it; that of a test image on its place alone, since the test part is the same for
        every seed.
        """
        parts, seeds = super().load(seed), (seed, seed, 0)
        fewer = (tensor[: self.options.validation_examples] for tensor in parts.validation)
        parts = parts._replace(validation=Part(*fewer))
        return Split(
            *(
                Part(_with_keys(part.inputs, seeds[number], number), part.targets)
                for number, part in enumerate(parts)
            )
        )

    def inputs(self, stored):
        """Images (B, h + 1, w) with their keys, as h rows and `padded_length` - h of noise."""
        rows = super().inputs(stored[:, :-1])
        size, height, width = rows.shape
        sequences = torch.empty(size, self.options.padded_length, width)
        sequences[:, :height] = rows
        keys = np.ascontiguousarray(stored[:, -1, :KEY]).view("<u8")[:, 0]
        for noise, key in zip(sequences[:, height:].numpy(), keys, strict=True):
            np.random.Generator(np.random.Philox(key=key)).random(out=noise, dtype=np.float32)
        return sequences

    def mistakes(self, examples, texts):
        """A grid of the images, without their noise."""
        return super().mistakes(examples[:, :-1], texts)


def _with_keys(images, seed: int, part: int):
    """Images uint8 (N, h, w) with a row below them that begins with a key of 64 bits each.

    A key is the seed in 32 bits, the part's number in 2 and the image's place in 30, so no two
    images of a run share one, nor two seeds a training image's.
    """
    size, _, width = images.shape
    row = np.zeros((size, 1, width), np.uint8)
    keys = np.uint64(seed << 32 | part << 30) | np.arange(size, dtype=np.uint64)
    row[:, 0, :KEY] = keys.astype("<u8").view(np.uint8).reshape(size, KEY)
    return torch.cat([images, torch.from_numpy(row)], 1)
