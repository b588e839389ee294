"""Verdicts on pairs of variants over their common seeds, and the sentences that say them."""

from collections.abc import Hashable, Mapping
from itertools import combinations
from math import ceil, log2

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from rnnbench_nb.errors import UserError
from rnnbench_nb.statistics.intervals import (
    ACCURACY,
    UNKNOWN,
    shown,
    shown_range,
    t_interval,
    two_way_interval,
)
from rnnbench_nb.tasks.base import Score

COMPARISON_COLUMNS = [
    "a", "b", "n", "difference", "low", "high", "family_low", "family_high", "p", "p_holm",
    "correlation", "p_equivalence", "p_equivalence_holm", "two_way_low", "two_way_high",
    "verdict", "p_floor", "p_holm_floor", "seeds_needed", "margin", "level", "comparisons",
]  # fmt: skip
SIGNS = 2**17  # sign flips looked at: all of them up to 17 pairs


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
    score: Score = ACCURACY,
    level: float = 0.95,
    reference: str | None = None,
    examples: Mapping[tuple[str, int], np.ndarray] | None = None,
    tested_on: Mapping[str, Hashable] | None = None,
) -> pd.DataFrame:
    """Compare variants pairwise over their common seeds, with one verdict a pair.

    - "better" or "worse" (a than b): the exact sign-flip p, Holm-adjusted over the pairs, is at
      most 1 - level (and the two-way interval, if there is one, excludes 0);
    - "equivalent within m points": the p of two one-sided paired t tests (TOST), Holm-adjusted,
      is at most 1 - level (and the two-way interval lies inside the margin);
    - "not distinguishable": neither. "Better" and "worse" go before it.

    Without `examples` a verdict is about new seeds on the same test examples. Two models equal on
    all digits still differ on 10,000 of them, about as much as ten seeds leave open, and seeds
    cannot show it. With `examples` the verdict covers new seeds and new examples: in the studies
    simulated in the tests, equal models were called different in 4 of 100, in 16 by seeds alone.

    Args:
        results: Columns `variant, seed` and the score, one row a run.
        margin: Half-width of the equivalence zone, in the unit of the score (0.002 = 0.2 points).
        score: What is compared, more being better.
        level: Coverage of the intervals; tests are at 1 - level, family-wise over the pairs.
        reference: Compare each other variant with this one only, and those that were tested on
            other examples with the first of them; every pair if None.
        examples: For each (variant, seed) the score of each test example (N,).
        tested_on: The test examples of each variant, as any key; only pairs with the same ones are
            compared, and all are if None.

    Returns:
        `COMPARISON_COLUMNS`, one row a pair: `n` common seeds; mean `difference` a - b; `low, high`
        its paired t interval; `family_low, family_high` the same, corrected over the pairs
        (Bonferroni); `correlation` of the paired scores; `two_way_low, two_way_high`
        (`two_way_interval`, corrected over the pairs); `p_floor, p_holm_floor`, below which the
        smallest p cannot go with these seeds, and `seeds_needed` for any difference to count.

    Raises:
        UserError: The margin is not positive, the reference is no variant, or a run is twice there.
    """
    if not margin > 0:
        raise UserError(f"The equivalence margin is {margin}, but must be above 0.")
    if results.duplicated(["variant", "seed"]).any():
        raise UserError("The results hold a variant and seed twice: keep one row a run.")
    scores = results.dropna(subset=score.name)
    scores = scores.pivot(index="seed", columns="variant", values=score.name)
    variants = list(results["variant"].unique())
    scores = scores.reindex(columns=variants)  # a variant whose runs all failed keeps its column
    place = {name: (tested_on or {}).get(name) for name in variants}
    if reference is None:
        pairs = [(a, b) for a, b in combinations(variants, 2) if place[a] == place[b]]
    elif reference in variants:
        first = {place[name]: name for name in (*reversed(variants), reference)}
        pairs = [(name, first[place[name]]) for name in variants if first[place[name]] != name]
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
        if examples is not None and d.size > 1:
            each = [np.stack([examples[name, seed] for seed in both.index]) for name in (a, b)]
            row["two_way_low"], row["two_way_high"] = two_way_interval(*each, family)
        rows.append(row)
    table = pd.DataFrame(rows).assign(margin=margin, level=level, comparisons=len(pairs))
    table["p_floor"] = np.minimum(1, 2.0 ** (1 - table["n"]))
    table["p_holm_floor"] = np.minimum(1, len(pairs) * table["p_floor"])
    # the least n with pairs * 2 / 2^n <= 1 - level
    table["seeds_needed"] = ceil(log2(2 * len(pairs) / (1 - level)))
    table["p_holm"] = multipletests(table["p"], method="holm")[1]
    table["p_equivalence_holm"] = multipletests(table["p_equivalence"], method="holm")[1]
    new = examples is not None
    table["verdict"] = [_verdict(row, new, score) for row in table.to_dict("records")]
    return table[COMPARISON_COLUMNS]


def limit_sentence(row: Mapping) -> str:
    """That the seeds of a row of `compare` are too few for any difference to count, or ""."""
    n, pairs = row["n"], row["comparisons"]
    if n >= row["seeds_needed"]:
        return ""
    return (
        f"With {n} common seed{'' if n == 1 else 's'} the sign-flip p cannot go below "
        f"{row['p_floor']:.4g}, and Holm's correction of {pairs} "
        f"comparison{'' if pairs == 1 else 's'} leaves at least {row['p_holm_floor']:.4g} for the "
        "smallest, so no difference, however large, can be established at the "
        f"{100 * (1 - row['level']):.3g}% level: that needs at least {row['seeds_needed']} seeds."
    )


def _verdict(row: Mapping, new: bool, score: Score) -> str:
    alpha, margin = 1 - row["level"] + 1e-12, row["margin"]  # 1 - 0.95 is not quite 0.05
    low, high = row["two_way_low"], row["two_way_high"]
    if row["p_holm"] <= alpha and (not new or low > 0 or high < 0):
        return "better" if row["difference"] > 0 else "worse"
    if row["p_equivalence_holm"] <= alpha and (not new or -margin < low <= high < margin):
        return f"equivalent within {score.scale * margin:.3g} {score.difference}"
    return "not distinguishable"


def verdict_text(row: Mapping, labels: Mapping[str, str]) -> str:
    """The verdict of a row of `compare`, naming the better one."""
    winner = {"better": row["a"], "worse": row["b"]}.get(row["verdict"])
    return row["verdict"] if winner is None else f"{labels[winner]} is better"


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.3g}"


def sentence(row: Mapping, labels: Mapping[str, str], score: Score = ACCURACY) -> str:
    """One row of `compare` in plain English; labels are the variants' names for people."""
    a, b, n, verdict = labels[row["a"]], labels[row["b"]], row["n"], verdict_text(row, labels)
    if n == 0:
        return f"{a} and {b} have no seed in common, so they cannot be compared."
    over = "in the one common seed" if n == 1 else f"on average over {n} common seeds"
    exact = "exact " if 2 ** row["n"] <= SIGNS else ""
    details = [f"{exact}sign-flip {_p(row['p'])}"]
    if row["comparisons"] > 1:
        details.append(f"{_p(row['p_holm'])} after Holm over {row['comparisons']} comparisons")
    if not np.isnan(row["low"]):
        ends = shown_range(row["low"], row["high"], score)
        details.insert(0, f"{100 * row['level']:.3g}% interval {ends}")
    if row["verdict"] in ("better", "worse") and row["p_equivalence_holm"] <= 1 - row["level"]:
        verdict += (
            f", but by less than the margin of {score.scale * row['margin']:.3g} {score.difference}"
        )
    elif row["verdict"].startswith("equivalent"):
        details.append(f"equivalence {_p(row['p_equivalence_holm'])}")
    scope = "for new seeds on these test examples"
    if not np.isnan(row["two_way_low"]):
        scope = "for new seeds and new examples"
        ends = shown_range(row["two_way_low"], row["two_way_high"], score)
        details.append(f"{ends} {scope}, corrected")
    head = f"{a} minus {b}: {shown(row['difference'], score, '+')} {score.difference} {over}"
    return f"{head} ({'; '.join(details)}): {verdict}, {scope}."
