"""Verdicts on pairs of variants over their common seeds.

One interval decides, corrected for all comparisons that are made together: a difference is better
or worse if the interval excludes 0, equivalent if the interval lies inside the margin, and
undecided otherwise. There is no verdict under `LEAST_SEEDS` seeds, nor on data that stand in for
those that were asked for.
"""

from collections.abc import Hashable, Mapping
from enum import StrEnum
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from rnnbench_nb.errors import UserError
from rnnbench_nb.metrics import Score
from rnnbench_nb.statistics.intervals import ACCURACY, LEVEL, shown, t_interval, two_way_interval

COMPARISON_COLUMNS = (
    "a b split n difference low high family_low family_high resolution seeds_needed correlation p "
    "verdict small reason margin level comparisons"
).split()
LEAST_SEEDS = 5  # below, there is no verdict
LENT = 4  # degrees of freedom that a family's spread lends to each pair
SIGNS = 2**17  # sign flips looked at: all of them up to 17 pairs
MOST_SEEDS = 1000  # that `seeds_needed` says
NUMBERS = ("no common seed", "one seed", "two seeds", "three seeds", "four seeds")


class Verdict(StrEnum):
    """What an interval says of a difference a - b."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    NONE = "none"


def verdict(low: float, high: float, margin: float) -> Verdict:
    """Judge a difference by the interval that decides; NONE where there is no interval."""
    if np.isnan([low, high]).any():
        return Verdict.NONE
    if low > 0 or high < 0:
        return Verdict.BETTER if low > 0 else Verdict.WORSE
    return Verdict.EQUIVALENT if -margin < low and high < margin else Verdict.UNDECIDED


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of paired differences (n,) over signs: exact, never below 2 / 2^n, up to n = 17.

    Beyond, the 2^n signs are sampled: `SIGNS` draws, always the same ones.
    """

    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return values.mean(axis=axis).round(12)  # sums that tie must tie in floats too

    result = stats.permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        n_resamples=SIGNS,
        batch=2**14,
        random_state=np.random.default_rng(0),
    )
    return result.pvalue


def compare(
    results: pd.DataFrame,
    margin: float,
    score: Score = ACCURACY,
    reference: str | None = None,
    examples: Mapping[tuple[str, int], np.ndarray] | None = None,
    groups: Mapping[str, Hashable] | None = None,
    split: str = "test",
    stand_in: bool = False,
) -> pd.DataFrame:
    """Compare variants pairwise over their common seeds, with one verdict a pair.

    The interval that decides is Student's of the paired differences, corrected over the pairs
    (Bonferroni). Few seeds hardly know their spread, so each variance is moderated by that of the
    family (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3): (f F + d v) / (f + d) with f + d degrees
    of freedom, v being the pair's own variance with d = n - 1, F the mean over all pairs, and
    f = `LENT`, or less where the family has less to lend: (variants - 2) d. With two variants this
    is the paired t test. Simulations with the spreads of published runs (in the tests) hold the
    error rates at 5%.

    With `examples` the verdict covers new examples too, on which equal models differ by chance: the
    interval is the wider at each end of this one and of `two_way_interval`.

    Args:
        results: Columns `variant, seed` and the score, one row a run.
        margin: Half-width of the equivalence zone, in the unit of the score (0.002 = 0.2 points).
        score: What is compared, more being better.
        reference: Compare each other variant of its group with this one only, and those of another
            group with the first of that group; every pair if None.
        examples: For each (variant, seed) the score of each example (N,).
        groups: A key for each variant; only variants with equal keys are compared, and all are if
            None.
        split: The examples that the scores are of.
        stand_in: Whether other data stand in for those asked for; there is then no verdict.

    Returns:
        `COMPARISON_COLUMNS`, one row a pair: `n` common seeds; mean `difference` a - b; `low, high`
        its paired t interval; `family_low, family_high`, which decides; `resolution`, its half:
        the smallest difference that can be told from none; `seeds_needed` (at most `MOST_SEEDS`)
        for one of the margin; `correlation` of the paired scores; `p` of the sign flips,
        uncorrected; `verdict`, a `Verdict`; `small`, whether a better or worse difference is below
        the margin; `reason` why there is no verdict; `level`, the coverage of an interval, or of
        all that decide together.

    Raises:
        UserError: The margin is not positive, the reference is no variant, or a run is there twice.
    """
    if not margin > 0:
        raise UserError(f"The margin is {margin}, but must be above 0.")
    if results.duplicated(["variant", "seed"]).any():
        raise UserError("The results hold a variant and seed twice: keep one row a run.")
    scores = results.dropna(subset=score.name)
    scores = scores.pivot(index="seed", columns="variant", values=score.name)
    variants = list(results["variant"].unique())
    scores = scores.reindex(columns=variants)  # a variant whose runs all failed keeps its column
    group = {name: (groups or {}).get(name) for name in variants}
    pairs = _pairs(variants, group, reference)
    if not pairs:
        return pd.DataFrame(columns=COMPARISON_COLUMNS)
    both = [scores[[a, b]].dropna() for a, b in pairs]
    each = [(frame.iloc[:, 0] - frame.iloc[:, 1]).to_numpy() for frame in both]
    family = 1 - (1 - LEVEL) / len(pairs)
    spreads = _moderated(pairs, each, [group[a] for a, _ in pairs])
    half = np.array([float(spread.half_width(spread.d, family)) for spread in spreads])
    difference = np.array([d.mean() if d.size else np.nan for d in each])
    low, high = difference - half, difference + half
    if examples is not None:
        for i, frame in enumerate(both):
            if len(frame) > 1:
                a, b = (np.stack([examples[name, s] for s in frame.index]) for name in pairs[i])
                ends = two_way_interval(a, b, family)
                low[i], high[i] = np.fmin(low[i], ends[0]), np.fmax(high[i], ends[1])
    table = pd.DataFrame(pairs, columns=["a", "b"]).assign(
        n=[d.size for d in each],
        difference=difference,
        correlation=[frame.iloc[:, 0].corr(frame.iloc[:, 1]) for frame in both],
        p=[sign_flip_p(d) if d.size > 1 else 1.0 for d in each],
        family_low=low,
        family_high=high,
        resolution=(high - low) / 2,
        seeds_needed=[spread.seeds_needed(family, margin) for spread in spreads],
        split=split,
        margin=margin,
        level=LEVEL,
        comparisons=len(pairs),
    )
    table[["low", "high"]] = [t_interval(d) for d in each]
    judged = [_judge(row, stand_in) for row in table.to_dict("records")]
    table[["verdict", "small", "reason"]] = judged
    return table[COMPARISON_COLUMNS]


def _pairs(
    variants: list[str], group: Mapping[str, Hashable], reference: str | None
) -> list[tuple[str, str]]:
    """The pairs (a, b) that are compared."""
    if reference is None:
        return [(a, b) for a, b in combinations(variants, 2) if group[a] == group[b]]
    if reference not in variants:
        raise UserError(f"The reference {reference!r} is none of the variants {variants}.")
    first = {group[name]: name for name in (*reversed(variants), reference)}
    return [(name, first[group[name]]) for name in variants if first[group[name]] != name]


def _judge(row: Mapping[Any, Any], stand_in: bool) -> tuple[Verdict, bool, str]:
    """The verdict of a pair, whether its difference is small, and why there is no verdict."""
    low, high, margin = row["family_low"], row["family_high"], row["margin"]
    if stand_in:
        return Verdict.NONE, False, "stand-in data"
    if row["n"] < LEAST_SEEDS:
        return Verdict.NONE, False, NUMBERS[row["n"]]
    kind = verdict(low, high, margin)
    different = kind in (Verdict.BETTER, Verdict.WORSE)
    small = different and abs(row["difference"]) < margin
    return kind, small, "seeds that do not vary" if kind == Verdict.NONE else ""


class _Spread(NamedTuple):
    """The moderated variance of one pair's differences; NaN where nothing varies."""

    variance: float
    d: int  # its own degrees of freedom
    others: int  # variants of its family besides the two, each with d to lend

    def half_width(self, d: int | np.ndarray, level: float) -> np.ndarray:
        """Half of Student's interval for the mean of d + 1 differences of this spread."""
        df = d + np.minimum(LENT, self.others * d)
        return stats.t.ppf((1 + level) / 2, df) * np.sqrt(self.variance / (d + 1))

    def seeds_needed(self, level: float, margin: float) -> float:
        """The least number of seeds whose interval has the margin as half-width."""
        seeds = np.arange(2, MOST_SEEDS + 1)
        enough = self.half_width(seeds - 1, level) <= margin
        needed = seeds[enough.argmax()] if enough.any() else MOST_SEEDS
        return np.nan if np.isnan(self.variance) else float(needed)


def _moderated(
    pairs: list[tuple[str, str]], each: list[np.ndarray], group: list[Hashable]
) -> list[_Spread]:
    """The spread of each pair; the pairs of one group are a family."""
    own = [np.round(x.var(ddof=1), 24) if x.size > 1 else np.nan for x in each]
    spreads = []
    for x, variance, here in zip(each, own, group, strict=True):
        family = [i for i, at in enumerate(group) if at == here and each[i].size > 1]
        others = len({name for i in family for name in pairs[i]}) - 2
        d, value = max(x.size - 1, 0), np.nan
        if d > 0:
            whole = np.average([own[i] for i in family], weights=[each[i].size - 1 for i in family])
            lent = min(LENT, others * d)
            value = (lent * whole + d * variance) / (lent + d) or np.nan
        spreads.append(_Spread(value, d, others))
    return spreads


def sentence(row: Mapping[Any, Any], labels: Mapping[str, str], score: Score = ACCURACY) -> str:
    """One row of `compare` as one short sentence.

    Args:
        row: The row.
        labels: The name of each variant for people.
        score: The score that was compared.
    """
    kind, unit, n = row["verdict"], score.difference, row["n"]
    a, b, difference = labels[row["a"]], labels[row["b"]], row["difference"]
    low, high = row["family_low"], row["family_high"]
    if kind == Verdict.NONE:
        if n == 0:
            return f"{a} and {b} have no common seed."
        signed = shown(difference, score, "+", unit)
        return f"{a} minus {b} is {signed}; {row['reason']}: no verdict."
    margin = f"{score.scale * row['margin']:.3g} {unit}".rstrip()
    if kind in (Verdict.BETTER, Verdict.WORSE):
        if kind == Verdict.WORSE:
            a, b, low, high = b, a, -high, -low
        below = f", less than the margin of {margin}" if row["small"] else ""
        amount = shown(abs(difference), score, "", unit)
        ends = f"{shown(low, score)} to {shown(high, score)}"
        return f"{a} is better than {b} by {amount} ({ends}, {n} seeds){below}."
    evidence = f"{shown(low, score, '+')} to {shown(high, score, '+')}, {n} seeds"
    known = f"{shown(difference, score, '+', unit)} ({evidence})"
    if kind == Verdict.EQUIVALENT:
        return f"{a} and {b} are equivalent within {margin}: {known}."
    return f"{a} and {b} cannot be told apart: {known}."
