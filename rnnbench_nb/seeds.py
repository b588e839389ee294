"""One seed a run, one independent generator for each thing that is random in it."""

import numpy as np
import torch

# The place in this tuple is part of the stream: append, never reorder.
PURPOSES = ("split", "order", "initialisation", "dropout", "examples", "test")


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return the generator of one of the `PURPOSES` in the run with this seed, at least 0.

    The streams are independent, so leaving a model out changes nothing for another, and they are
    the same on every machine.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose),))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
