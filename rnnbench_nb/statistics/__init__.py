"""Intervals, tests and verdicts on scores, without torch."""

from rnnbench_nb.statistics.effects import changes, comparison, effects, families, validation_scores
from rnnbench_nb.statistics.intervals import (
    LEVEL,
    example_interval,
    shown,
    t_interval,
    two_way_interval,
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
