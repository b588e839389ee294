"""One seed for each run, and one independent generator for each random purpose in it."""

import numpy as np
import torch

# The position in this tuple determines the random numbers, so append here and never reorder.
PURPOSES = ("split", "order", "initialisation", "dropout", "examples", "test")


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return the generator for one of the `PURPOSES` in the run with this seed, at least 0.

    The random streams are independent, so that leaving out one model changes nothing for another,
    and they are the same on every machine.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose),))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
