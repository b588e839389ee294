"""Intervals, tests and verdicts: scipy, scikit-learn and statsmodels put to use. No torch here."""

from rnnbench_nb.statistics.calibration import (
    disagreements,
    expected_calibration_error,
    mcnemar_per_seed,
    mcnemar_sentence,
    reliability_table,
)
from rnnbench_nb.statistics.effects import changes, families, settings, validation_scores
from rnnbench_nb.statistics.intervals import (
    example_interval,
    prediction_interval,
    shown,
    shown_range,
    summary,
    summary_sentence,
    t_interval,
    time_to_score,
    two_way_interval,
    wilson,
    with_unit,
)
from rnnbench_nb.statistics.verdicts import (
    COMPARISON_COLUMNS,
    UNKNOWN,
    compare,
    resolution_sentence,
    sentence,
    sign_flip_p,
    verdict,
    verdict_text,
)
