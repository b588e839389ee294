"""Intervals over seeds, over examples and over both, and how numbers are worded.

A score is one of which more is better, in the unit of `Score`: a fraction for accuracy, of which a
point is 0.01. All intervals over seeds treat runs as independent. They share one training pool, so
the true spread over new training sets is wider than any of them says.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from rnnbench_nb.tasks.base import Score

UNKNOWN = (np.nan, np.nan)
ACCURACY = Score()


def shown(value: float, score: Score, sign: str = "") -> str:
    """A score or a difference as people read it, without its unit."""
    return f"{score.scale * value:{sign}.{2 if score.scale > 1 else 4}f}"


def shown_range(low: float, high: float, score: Score, sign: str = "+") -> str:
    """An interval as people read it."""
    return f"{shown(low, score, sign)} to {shown(high, score, sign)}" if low == low else "unknown"


def with_unit(text: str, score: Score) -> str:
    """A number of scores with its unit: `98.1%`, but `0.2 nats`."""
    return f"{text}{score.unit}" if score.unit in ("", "%") else f"{text} {score.unit}"


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean; NaN where fewer than two distinct values show no spread."""
    if np.unique(np.round(values, 12)).size < 2:  # 0.3 - 0.2 and 0.2 - 0.1 are one value
        return UNKNOWN
    return DescrStatsW(values).tconfint_mean(1 - level)


def prediction_interval(
    mean: float, sd: float, n: int, runs: int, level: float = 0.95
) -> tuple[float, float]:
    """Student's interval for the mean of `runs` further runs, by mean and sd (ddof 1) of n runs.

    NaN for one run, which shows no spread.
    """
    if n < 2:
        return UNKNOWN
    half = stats.t.ppf((1 + level) / 2, n - 1) * sd * (1 / n + 1 / runs) ** 0.5
    return mean - half, mean + half


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for one fitted model's accuracy, `correct` of `n` examples."""
    return proportion_confint(correct, n, alpha=1 - level, method="wilson")


def example_interval(scores: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of one fitted model's mean score over new examples, from those of N examples.

    Wilson's where each score is 0 or 1, Student's elsewhere.
    """
    if np.isin(scores, (0, 1)).all():
        return wilson(int(scores.sum()), len(scores), level)
    return t_interval(scores, level)


def two_way_interval(
    scores_a: np.ndarray, scores_b: np.ndarray, level: float = 0.95
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


def summary(results: pd.DataFrame, score: Score = ACCURACY, level: float = 0.95) -> pd.DataFrame:
    """Each variant over its seeds; runs without a score (failed ones) do not count.

    Returns:
        One row a variant: `variant, n, mean, sd` (ddof 1), `low, high` (t interval of the mean),
        `min, max, level`; sd and interval are NaN for one seed.
    """
    groups = results.dropna(subset=score.name).groupby("variant", sort=False)[score.name]
    table = groups.agg(n="size", mean="mean", sd="std", min="min", max="max")
    ends = [t_interval(values.to_numpy(), level) for _, values in groups]
    table[["low", "high"]] = np.reshape(ends, (-1, 2))
    return table.assign(level=level).reset_index()[
        ["variant", "n", "mean", "sd", "low", "high", "min", "max", "level"]
    ]


def summary_sentence(row: Mapping, label: str, score: Score = ACCURACY) -> str:
    """One row of `summary` in plain English."""
    head = f"{label}: {with_unit(shown(row['mean'], score), score)}"
    if row["n"] == 1:
        return f"{head} with one seed, which shows no spread."
    details = [f"sd {shown(row['sd'], score)}"]
    if not np.isnan(row["low"]):
        ends = shown_range(row["low"], row["high"], score, "")
        details.append(f"{100 * row['level']:.3g}% interval {ends}")
    details.append(f"runs {shown_range(row['min'], row['max'], score, '')}")
    return f"{head} on average over {row['n']} seeds ({', '.join(details)})."


def time_to_score(
    history: pd.DataFrame, levels: Sequence[float], score: Score = ACCURACY
) -> pd.DataFrame:
    """When each run's validation score first reaches each level.

    Args:
        history: `variant, seed, epoch, split, seconds` and the score; `seconds` is what the split
            took in that epoch, so an epoch costs the sum over its splits.
        levels: Scores.
        score: The task's.

    Returns:
        `variant, seed, level, epoch, seconds` (cumulative), one row a run and level; NaN if never.
    """
    run = ["variant", "seed"]
    history = history.sort_values("epoch", kind="stable")
    cost = history.groupby([*run, "epoch"], sort=False)["seconds"].sum()
    cost = cost.groupby(run, sort=False).cumsum().reset_index()
    curve = history.query("split == 'validation'").drop(columns="seconds").merge(cost)
    rows = []
    for key, epochs in curve.groupby(run, sort=False):
        for level in levels:
            reached = epochs.loc[epochs[score.name] >= level, ["epoch", "seconds"]]
            rows.append([*key, level, *(reached.iloc[0] if len(reached) else UNKNOWN)])
    return pd.DataFrame(rows, columns=[*run, "level", "epoch", "seconds"])
