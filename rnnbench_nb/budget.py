"""How many batches and epochs the parameters of a run hold."""

import math
from typing import Any


def batches_of(parameters: Any, examples: int) -> int:
    """The number of batches in a whole epoch; the last may be incomplete, unless it is dropped."""
    whole, rest = divmod(examples, parameters.batch_size)
    return whole + (rest > 0 and not (parameters.drop_last and whole))


def epochs_of(parameters: Any, examples: int) -> int:
    """The number of epochs in the budget; if steps end it, the last epoch may be short."""
    if not parameters.steps:
        return parameters.epochs
    return min(parameters.epochs, math.ceil(parameters.steps / batches_of(parameters, examples)))
