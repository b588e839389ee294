"""Intervals over seeds, over examples and over both.

A score is a number of which more is better, in the unit of `Score`: a fraction for accuracy, where
a point is 0.01. All intervals over seeds treat runs as independent. Runs share one training pool,
so the spread over new training sets is wider than any of these intervals.
"""

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from rnnbench_nb.metrics import Score

LEVEL = 0.95  # coverage of every interval
UNKNOWN = (np.nan, np.nan)  # the interval of what shows no spread
ACCURACY = Score()


def shown(value: float, score: Score, sign: str = "", unit: str = "") -> str:
    """Format a score or a difference in the score's unit, with a real minus sign.

    Args:
        value: The score, unscaled (0.9884).
        score: The task's.
        sign: `+` for a difference.
        unit: What follows: `score.unit` for a score, `score.difference` for a difference.
    """
    if np.isnan(value):
        return "unknown"
    text = f"{score.scale * value:{sign}.{2 if score.scale > 1 else 4}f}".replace("-", "−")
    return text + (unit if unit in ("", "%") else f" {unit}")


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval for the mean; NaN where fewer than two distinct values show no spread."""
    if np.unique(np.round(values, 12)).size < 2:  # 0.3 - 0.2 and 0.2 - 0.1 are one value
        return UNKNOWN
    return DescrStatsW(values).tconfint_mean(1 - LEVEL)


def example_interval(scores: np.ndarray) -> tuple[float, float]:
    """Interval of one fitted model's mean score over new examples, from those of N examples.

    Wilson's where each score is 0 or 1, Student's elsewhere.
    """
    if np.isin(scores, (0, 1)).all():
        return proportion_confint(scores.sum(), scores.size, 1 - LEVEL, method="wilson")
    return t_interval(scores)


def two_way_interval(
    scores_a: np.ndarray, scores_b: np.ndarray, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the difference in mean score over new seeds and new examples together.

    With D[s, i] = scores_a - scores_b and the mean squares of the two-way layout without
    replication, var(mean D) = (MS_seed + MS_example - MS_rest) / (S N), with Satterthwaite's
    degrees of freedom: the multi-reader multi-case design of Dorfman, Berbaum and Metz (1992,
    Invest. Radiol. 27:723), seeds as readers. Never taken below the variance over seeds alone.

    Args:
        scores_a: (S, N), one row a seed, the seeds paired with those of `scores_b`.
        scores_b: (S, N).
        level: Coverage.

    Returns:
        The ends, in the unit of the scores; NaN where nothing varies over the seeds or S < 2.
    """
    d = np.asarray(scores_a, float) - np.asarray(scores_b, float)  # (S, N)
    s, n = d.shape
    mean, by_seed, by_example = d.mean(), d.mean(1), d.mean(0)
    if np.isnan(t_interval(by_seed)[0]):
        return UNKNOWN
    sums = np.array([n * ((by_seed - mean) ** 2).sum(), s * ((by_example - mean) ** 2).sum()])
    sums = np.append(sums, (d**2).sum() - s * n * mean**2 - sums.sum())
    freedom = np.array([s - 1, n - 1, (s - 1) * (n - 1)])
    squares = sums / freedom
    if squares[1] < squares[2]:  # no sign of examples that favour one model
        total, df = squares[0], s - 1
    else:
        total = squares @ [1, 1, -1]
        df = total**2 / (squares**2 / freedom).sum()
    return stats.t.interval(level, df, mean, np.sqrt(total / (s * n)))
