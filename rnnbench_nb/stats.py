"""Intervals, comparisons and verdicts over seeds: scipy, scikit-learn and statsmodels put to use.

Scores are fractions of which more is better (accuracy, F1); a point is 0.01. All intervals over
seeds treat runs as independent. They share one training pool, so the true spread over new
training sets is wider than any of them says.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil, log2

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import softmax
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from rnnbench_nb.errors import UserError

COMPARISON_COLUMNS = [
    "a", "b", "n", "difference", "low", "high", "family_low", "family_high", "p", "p_holm",
    "correlation", "p_equivalence", "p_equivalence_holm", "two_way_low", "two_way_high",
    "verdict", "limit", "margin", "level", "comparisons",
]  # fmt: skip
UNKNOWN = (np.nan, np.nan)
SIGNS = 2**17  # sign flips looked at: all of them up to 17 pairs


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean; NaN where fewer than two distinct values show no spread."""
    if np.unique(np.round(values, 12)).size < 2:  # 0.3 - 0.2 and 0.2 - 0.1 are one value
        return UNKNOWN
    return DescrStatsW(values).tconfint_mean(1 - level)


def summary(results: pd.DataFrame, value: str = "accuracy", level: float = 0.95) -> pd.DataFrame:
    """Each variant over its seeds; runs without a value (failed ones) do not count.

    Returns:
        One row a variant: `variant, n, mean, sd` (ddof 1), `low, high` (t interval of the mean),
        `min, max, level`; sd and interval are NaN for one seed.
    """
    groups = results.dropna(subset=value).groupby("variant", sort=False)[value]
    table = groups.agg(n="size", mean="mean", sd="std", min="min", max="max")
    ends = [t_interval(values.to_numpy(), level) for _, values in groups]
    table[["low", "high"]] = np.reshape(ends, (-1, 2))
    return table.assign(level=level).reset_index()[
        ["variant", "n", "mean", "sd", "low", "high", "min", "max", "level"]
    ]


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of paired differences (n,) over signs: exact, never below 2 / 2^n, up to n = 17.

    Beyond, the 2^n signs are sampled: `SIGNS` draws, always the same ones.
    """

    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return np.round(np.mean(values, axis=axis), 12)  # sums that tie must tie in floats too

    return stats.permutation_test(
        (differences,), mean, permutation_type="samples", n_resamples=SIGNS, batch=2**14,
        random_state=np.random.default_rng(0),
    ).pvalue  # fmt: skip


def compare(
    results: pd.DataFrame,
    margin: float,
    value: str = "accuracy",
    level: float = 0.95,
    reference: str | None = None,
    correct: Mapping[tuple[str, int], np.ndarray] | None = None,
) -> pd.DataFrame:
    """Compare variants pairwise over their common seeds, with one verdict a pair.

    - "A is better": the exact sign-flip p, Holm-adjusted over the pairs, is at most 1 - level
      (and the two-way interval, if there is one, excludes 0);
    - "equivalent within m points": the p of two one-sided paired t tests (TOST), Holm-adjusted,
      is at most 1 - level (and the two-way interval lies inside the margin);
    - "not distinguishable": neither. Better goes first when both hold.

    Without `correct` a verdict is about new seeds on the same test images. Two models equal on all
    digits still differ on 10,000 of them, about as much as ten seeds leave open, and seeds cannot
    show it. With `correct` the verdict covers new seeds and new images: in the studies simulated
    in the tests, equal models were called different in 4 of 100, and in 16 by seeds alone.

    Args:
        results: Columns `variant, seed` and `value`, one row a run.
        margin: Half-width of the equivalence zone, in the unit of `value` (0.002 = 0.2 points).
        value: The score compared, a fraction of which more is better.
        level: Coverage of the intervals; tests are at 1 - level, family-wise over the pairs.
        reference: Compare each other variant with this one only; every pair if None.
        correct: For each (variant, seed), whether each test image was right, bool (N,).

    Returns:
        `COMPARISON_COLUMNS`, one row a pair: `n` common seeds; mean `difference` a - b; `low, high`
        its paired t interval; `family_low, family_high` the same, corrected over the pairs
        (Bonferroni); `correlation` of the paired scores; `two_way_low, two_way_high`
        (`two_way_interval`, corrected over the pairs); `limit`, a sentence where the seeds are
        too few for any difference to count, else "".

    Raises:
        UserError: The margin is not positive, the reference is no variant, or a run is twice there.
    """
    if not margin > 0:
        raise UserError(f"The equivalence margin is {margin}, but must be above 0.")
    if results.duplicated(["variant", "seed"]).any():
        raise UserError("The results hold a variant and seed twice: keep one row a run.")
    scores = results.dropna(subset=value).pivot(index="seed", columns="variant", values=value)
    variants = list(results["variant"].unique())
    scores = scores.reindex(columns=variants)  # a variant whose runs all failed keeps its column
    if reference is None:
        pairs = list(combinations(variants, 2))
    elif reference in variants:
        pairs = [(variant, reference) for variant in variants if variant != reference]
    else:
        raise UserError(f"The reference {reference!r} is none of the variants {variants}.")
    if not pairs:
        return pd.DataFrame(columns=COMPARISON_COLUMNS)
    family = 1 - (1 - level) / len(pairs)
    rows = []
    for a, b in pairs:
        both = scores[[a, b]].dropna()
        d = (both[a] - both[b]).to_numpy()
        spread = not np.isnan(t_interval(d)[0])
        row = {"a": a, "b": b, "n": d.size, "difference": d.mean() if d.size else np.nan}
        row["low"], row["high"] = t_interval(d, level)
        row["family_low"], row["family_high"] = t_interval(d, family)
        row["p"] = sign_flip_p(d) if d.size > 1 else 1.0
        row["correlation"] = both[a].corr(both[b])
        row["p_equivalence"] = DescrStatsW(d).ttost_mean(-margin, margin)[0] if spread else 1.0
        row["two_way_low"], row["two_way_high"] = UNKNOWN
        if correct is not None and d.size > 1:
            right = [np.stack([correct[name, seed] for seed in both.index]) for name in (a, b)]
            row["two_way_low"], row["two_way_high"] = two_way_interval(*right, family)
        row["limit"] = _limit(d.size, len(pairs), level)
        rows.append(row)
    table = pd.DataFrame(rows).assign(margin=margin, level=level, comparisons=len(pairs))
    table["p_holm"] = multipletests(table["p"], method="holm")[1]
    table["p_equivalence_holm"] = multipletests(table["p_equivalence"], method="holm")[1]
    images = correct is not None
    table["verdict"] = [_verdict(row, images) for row in table.to_dict("records")]
    return table[COMPARISON_COLUMNS]


def _limit(n: int, pairs: int, level: float) -> str:
    needed = ceil(log2(2 * pairs / (1 - level)))  # the least n with pairs * 2 / 2^n <= 1 - level
    if n >= needed:
        return ""
    floor = min(1.0, 2 / 2**n)
    return (
        f"With {n} common seed{'' if n == 1 else 's'} the sign-flip p cannot go below {floor:.4g}, "
        f"and Holm's correction of {pairs} comparison{'' if pairs == 1 else 's'} leaves at least "
        f"{min(1.0, pairs * floor):.4g} for the smallest, so no difference, however large, can be "
        f"established at the {100 * (1 - level):.3g}% level: that needs at least {needed} seeds."
    )


def _verdict(row: Mapping, images: bool) -> str:
    alpha, margin = 1 - row["level"] + 1e-12, row["margin"]  # 1 - 0.95 is not quite 0.05
    low, high = row["two_way_low"], row["two_way_high"]
    if row["p_holm"] <= alpha and (not images or low > 0 or high < 0):
        return f"{row['a'] if row['difference'] > 0 else row['b']} is better"
    if row["p_equivalence_holm"] <= alpha and (not images or -margin < low <= high < margin):
        return f"equivalent within {100 * margin:.3g} points"
    return "not distinguishable"


def two_way_interval(
    correct_a: np.ndarray, correct_b: np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the accuracy difference over new seeds and new images together.

    With D[s, i] = correct_a - correct_b and the mean squares of the two-way layout without
    replication, var(mean D) = (MS_seed + MS_image - MS_rest) / (S N), with Satterthwaite's degrees
    of freedom: the multi-reader multi-case design of Dorfman, Berbaum and Metz (1992, Invest.
    Radiol. 27:723), seeds as readers. Never taken below the variance over seeds alone.

    Args:
        correct_a: Bool (S, N), one row a seed, the seeds paired with those of `correct_b`.
        correct_b: Bool (S, N).
        level: Coverage.

    Returns:
        The ends, as fractions; NaN where nothing varies over the seeds or S < 2.
    """
    d = np.asarray(correct_a, np.int8) - np.asarray(correct_b, np.int8)  # (S, N), -1, 0 or 1
    s, n = d.shape
    mean, by_seed, by_image = d.mean(), d.mean(1), d.mean(0)
    if np.isnan(t_interval(by_seed)[0]):
        return UNKNOWN
    sums = np.array([n * ((by_seed - mean) ** 2).sum(), s * ((by_image - mean) ** 2).sum()])
    sums = np.append(sums, np.count_nonzero(d) - s * n * mean**2 - sums.sum())
    freedom = np.array([s - 1, n - 1, (s - 1) * (n - 1)])
    squares = sums / freedom
    if squares[1] < squares[2]:  # no sign of images that favour one model
        total, df = squares[0], s - 1
    else:
        total = squares @ [1, 1, -1]
        df = total**2 / (squares**2 / freedom).sum()
    return stats.t.interval(level, df, mean, np.sqrt(total / (s * n)))


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for one fitted model's accuracy, `correct` of `n` test images."""
    return proportion_confint(correct, n, alpha=1 - level, method="wilson")


def mcnemar_per_seed(
    predicted_a: np.ndarray,
    predicted_b: np.ndarray,
    label: np.ndarray,
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """McNemar's exact test for each seed: about two fitted models, never about two architectures.

    Args:
        predicted_a: Predicted classes (S, N), one row a seed.
        predicted_b: Predicted classes (S, N), the same seeds.
        label: True classes (N,).
        seeds: The seeds of the rows; 0 to S - 1 if None.

    Returns:
        `seed, both_right, only_a, only_b, both_wrong` (images) and `p`.
    """
    rows = []
    for right_a, right_b in zip(predicted_a == label, predicted_b == label, strict=True):
        table = confusion_matrix(right_a, right_b, labels=[True, False])
        rows.append([*table.ravel(), mcnemar(table, exact=True).pvalue])
    columns = ["both_right", "only_a", "only_b", "both_wrong", "p"]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[:-1], int))
    frame.insert(0, "seed", range(len(rows)) if seeds is None else seeds)
    return frame


def reliability_table(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Confidence (the largest probability) against accuracy in bins of equal width.

    Args:
        logits: Class scores or log-probabilities (N, K).
        label: True classes (N,).
        bins: Number of bins on [0, 1].

    Returns:
        One row a bin: `low, high, count`, and mean `confidence` and `accuracy` (NaN if empty).
    """
    parts = np.array_split(logits, len(logits) // 10_000 + 1)  # for the memory of a large sweep
    confidence = np.concatenate([softmax(part.astype(float), axis=1).max(1) for part in parts])
    confidence = confidence.clip(0, 1)
    right = (np.argmax(logits, axis=1) == label).astype(float)
    means, edges, bin_of = stats.binned_statistic(
        confidence, [confidence, right], "mean", bins=bins, range=(0, 1)
    )
    return pd.DataFrame({
        "low": edges[:-1], "high": edges[1:],
        "count": np.bincount(bin_of - 1, minlength=bins),
        "confidence": means[0], "accuracy": means[1],
    })  # fmt: skip


def expected_calibration_error(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    """Mean gap of confidence and accuracy over the bins, weighted by count (Guo et al. 2017)."""
    table = reliability_table(logits, label, bins).query("count > 0")
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gap, weights=table["count"]))


def disagreements(correct: Mapping[str, np.ndarray], missed: float = 0.5) -> pd.DataFrame:
    """Images that one variant gets with every seed and the others mostly miss.

    Args:
        correct: For each variant, whether each image was right, bool (S, N).
        missed: Least share of the others' runs (each variant weighing the same) that miss it.

    Returns:
        `variant` (the one that is right), `image` (index), `missed` (share), worst first.
    """
    right = pd.DataFrame({name: np.mean(runs, axis=0) for name, runs in correct.items()})  # (N, V)
    rows = []
    for variant in right:
        share = 1 - right.drop(columns=variant).mean(axis=1)
        share = share[(right[variant] == 1) & (share >= missed)].sort_values(
            ascending=False, kind="stable"
        )
        rows += [(variant, image, value) for image, value in share.items()]
    return pd.DataFrame(rows, columns=["variant", "image", "missed"])


def time_to_accuracy(history: pd.DataFrame, levels: Sequence[float]) -> pd.DataFrame:
    """When each run's validation accuracy first reaches each level.

    Args:
        history: `variant, seed, epoch, split, accuracy, seconds`; `seconds` is what the split took
            in that epoch, so an epoch costs the sum over its splits.
        levels: Accuracies, as fractions.

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
            reached = epochs.loc[epochs["accuracy"] >= level, ["epoch", "seconds"]]
            rows.append([*key, level, *(reached.iloc[0] if len(reached) else UNKNOWN)])
    return pd.DataFrame(rows, columns=[*run, "level", "epoch", "seconds"])


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.3g}"


def _range(low: float, high: float, sign: str = "+") -> str:
    return f"{100 * low:{sign}.2f} to {100 * high:{sign}.2f}"


def sentence(row: Mapping) -> str:
    """One row of `compare` in plain English, with its numbers in points (hundredths)."""
    a, b, n, verdict = row["a"], row["b"], row["n"], row["verdict"]
    if n == 0:
        return f"{a} and {b} have no seed in common, so they cannot be compared."
    over = "in the one common seed" if n == 1 else f"on average over {n} common seeds"
    exact = "exact " if 2 ** row["n"] <= SIGNS else ""
    details = [f"{exact}sign-flip {_p(row['p'])}"]
    if row["comparisons"] > 1:
        details.append(f"{_p(row['p_holm'])} after Holm over {row['comparisons']} comparisons")
    if not np.isnan(row["low"]):
        ends = _range(row["low"], row["high"])
        details.insert(0, f"{100 * row['level']:.3g}% interval {ends}")
    if verdict.endswith("better") and row["p_equivalence_holm"] <= 1 - row["level"]:
        verdict += f", but by less than the margin of {100 * row['margin']:.3g} points"
    elif verdict.startswith("equivalent"):
        details.append(f"equivalence {_p(row['p_equivalence_holm'])}")
    scope = "for new seeds on these test images"
    if not np.isnan(row["two_way_low"]):
        scope = "for new seeds and new images"
        ends = _range(row["two_way_low"], row["two_way_high"])
        details.append(f"{ends} {scope}, corrected")
    head = f"{a} minus {b}: {100 * row['difference']:+.2f} points {over}"
    return f"{head} ({'; '.join(details)}): {verdict}, {scope}."


def summary_sentence(row: Mapping) -> str:
    """One row of `summary` in plain English, in percent."""
    head = f"{row['variant']}: {100 * row['mean']:.2f}%"
    if row["n"] == 1:
        return f"{head} with one seed, which shows no spread."
    details = [f"sd {100 * row['sd']:.2f}"]
    if not np.isnan(row["low"]):
        ends = _range(row["low"], row["high"], "")
        details.append(f"{100 * row['level']:.3g}% interval {ends}")
    details.append(f"runs {_range(row['min'], row['max'], '')}")
    return f"{head} on average over {row['n']} seeds ({', '.join(details)})."


def mcnemar_sentence(table: pd.DataFrame, a: str, b: str, level: float = 0.95) -> str:
    """What `mcnemar_per_seed` says: how many pairs of fitted models differ, and no more."""
    return (
        f"McNemar's exact test tells the fitted {a} from the fitted {b} of the same seed in "
        f"{(table['p'] <= 1 - level).sum()} of {len(table)} pairs at the {100 * (1 - level):.3g}% "
        f"level, uncorrected (on average {table['only_a'].mean():.1f} images only {a} gets, "
        f"{table['only_b'].mean():.1f} only {b}): about these fitted models, not the architectures."
    )
