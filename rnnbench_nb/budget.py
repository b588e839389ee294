"""How many batches and epochs a budget holds."""

import math
from typing import Protocol


class Budget(Protocol):
    """The part of a run's parameters that limits its training."""

    epochs: int
    steps: int | None
    batch_size: int
    drop_last: bool


def batches_of(budget: Budget, examples: int) -> int:
    """The number of batches in a whole epoch; the last may be incomplete, unless it is dropped."""
    whole, rest = divmod(examples, budget.batch_size)
    return whole + (rest > 0 and not (budget.drop_last and whole))


def epochs_of(budget: Budget, examples: int) -> int:
    """The number of epochs in the budget; if steps end it, the last epoch may be short."""
    if not budget.steps:
        return budget.epochs
    return min(budget.epochs, math.ceil(budget.steps / batches_of(budget, examples)))
