"""Intervals, tests and verdicts on scores, without torch."""

from rnnbench_nb.statistics.effects import changes, comparison, effects, families, validation_scores
from rnnbench_nb.statistics.intervals import (
    LEVEL,
    example_interval,
    mcnemar_per_seed,
    prediction_interval,
    reproduced,
    shown,
    summary,
    t_interval,
    time_to_score,
    two_way_interval,
    wilson,
)
from rnnbench_nb.statistics.verdicts import (
    COMPARISON_COLUMNS,
    LEAST_SEEDS,
    Verdict,
    compare,
    sentence,
    sign_flip_p,
    verdict,
)

__all__ = [
    "COMPARISON_COLUMNS",
    "LEAST_SEEDS",
    "LEVEL",
    "Verdict",
    "changes",
    "compare",
    "comparison",
    "effects",
    "example_interval",
    "families",
    "mcnemar_per_seed",
    "prediction_interval",
    "reproduced",
    "sentence",
    "shown",
    "sign_flip_p",
    "summary",
    "t_interval",
    "time_to_score",
    "two_way_interval",
    "validation_scores",
    "verdict",
    "wilson",
]
