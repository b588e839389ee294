"""One seed a run, one independent generator for each thing that is random in it."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# The place in this tuple is part of the stream: append, never reorder.
PURPOSES = ("split", "order", "initialisation", "dropout", "examples", "test")


def generator(seed: int, purpose: str) -> "torch.Generator":
    """Return the generator of one of the `PURPOSES` in the run with this seed, at least 0.

    The streams are independent, so the initial weights of one model never move another's split or
    batch order, and they are the same on every machine.

    Raises:
        ValueError: The purpose is not in `PURPOSES`, or the seed is negative.
    """
    import torch

    sequence = np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose),))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
