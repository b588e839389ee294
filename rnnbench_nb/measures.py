"""What of a finished run needs its weights, as small tidy tables, computed in the run's own job."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from rnnbench_nb.experiment import RunParameters
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.tasks import Task
from rnnbench_nb.tasks.base import Split


class Measured(NamedTuple):
    """Tables by name, each keyed `variant, seed`, and of tables that failed the reasons."""

    tables: dict[str, pd.DataFrame]
    failures: dict[str, str]


def measure(
    parameters: RunParameters,
    task: Task,
    data: Split,
    initial: SequenceModel,
    trained: SequenceModel,
    outputs: Tensor,
    matrices: Sequence[dict[str, Tensor]],
) -> Measured:
    """Measure a run.

    Args:
        parameters: Of the run.
        task: That was learned.
        data: The run's three parts.
        initial: The model before its first step.
        trained: The model at its best epoch.
        outputs: What the trained model's head gave for the test examples, (N, K).
        matrices: What `SequenceModel.tracked` gave before training and after each epoch.

    Returns:
        The tables, and a reason for each that a cell made impossible; a run never fails by it.
    """
    return Measured({}, {})
