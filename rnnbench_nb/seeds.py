"""One seed a run, one independent generator for each thing that is random in it."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# The place in this tuple is part of the stream: append, never reorder.
PURPOSES = ("split", "order", "initialisation", "dropout", "examples", "test")


def generator(seed: int, purpose: str) -> "torch.Generator":
    """Return the generator of one purpose in the run with this seed.

    The streams are independent of each other, so what one model draws (its initialisation, say)
    never moves another's split or batch order. They are the same on every machine: numpy's
    SeedSequence mixes the seed and the purpose, and torch's generator on the CPU is seeded with
    the 32 bits that it uses.

    Args:
        seed: The run's seed, at least 0.
        purpose: One of `PURPOSES`.

    Raises:
        ValueError: The purpose is not in `PURPOSES`, or the seed is negative.
    """
    import torch

    sequence = np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose),))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
