"""Verdicts on pairs of variants over their common seeds, and the sentences that say them.

There is one rule. One interval decides, corrected for all comparisons of its family: "better" or
"worse" if it excludes 0, "equivalent" if it lies inside the margin, "not distinguishable" else, and
"without a verdict" where there is none, as of one seed.
"""

from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from rnnbench_nb.errors import UserError
from rnnbench_nb.statistics.intervals import (
    ACCURACY,
    shown,
    shown_range,
    t_interval,
    two_way_interval,
)
from rnnbench_nb.tasks.base import Score

COMPARISON_COLUMNS = [
    "a", "b", "split", "n", "difference", "low", "high", "family_low", "family_high", "resolution",
    "seeds_needed", "correlation", "p", "verdict", "scope", "margin", "level", "comparisons",
]  # fmt: skip
LENT = 4  # degrees of freedom that a family's spread lends to each pair
SIGNS = 2**17  # sign flips looked at: all of them up to 17 pairs
MOST_SEEDS = 1000  # that are asked for
UNKNOWN = "without a verdict"  # for want of an interval


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
    split: str = "test",
) -> pd.DataFrame:
    """Compare variants pairwise over their common seeds, with one verdict a pair (see `verdict`).

    The interval that decides is Student's of the paired differences, corrected over the pairs
    (Bonferroni). Of two or three seeds the spread of one pair is hardly known, so each variance is
    moderated by that of the family, as Smyth (2004, Stat. Appl. Genet. Mol. Biol. 3:3) does for
    few replicates and many comparisons: (f F + d v) / (f + d) with f + d degrees of freedom, v
    being the pair's own variance with d = n - 1, F the mean over all pairs, and f = `LENT`, or less
    where the family has less to lend: (variants - 2) d. Two variants are the paired t test; with
    ten seeds a pair's own spread prevails. In families simulated with the spreads of the published
    runs (in the tests), equal models were called different in at most 5 of 100 at 2, 3, 7 and 10
    seeds, and models that differ by the margin equivalent no more often.

    Without `examples` a verdict is about new seeds on the same test examples. Two models equal on
    all digits still differ on 10,000 of them, about as much as ten seeds leave open, and seeds
    cannot show it. With `examples` it covers new seeds and new examples: the interval is then the
    wider at each end of this one and of `two_way_interval`.

    Args:
        results: Columns `variant, seed` and the score, one row a run.
        margin: Half-width of the equivalence zone, in the unit of the score (0.002 = 0.2 points).
        score: What is compared, more being better.
        level: Coverage of the intervals, of the corrected ones over the whole family.
        reference: Compare each other variant with this one only, and those that were tested on
            other examples with the first of them; every pair if None.
        examples: For each (variant, seed) the score of each test example (N,).
        tested_on: The test examples of each variant, as any key; only pairs with the same ones are
            compared, and all are if None.
        split: On which examples the scores are.

    Returns:
        `COMPARISON_COLUMNS`, one row a pair: `n` common seeds; mean `difference` a - b; `low, high`
        its paired t interval; `family_low, family_high`, which decides; `resolution`, its
        half-width: the smallest difference that can be told from none; `seeds_needed` for one of
        the margin, as far as seeds can (at most `MOST_SEEDS`); `correlation` of the paired scores;
        `p` of the exact sign flips, uncorrected, which takes no spread for known and decides
        nothing; `scope`, what the verdict covers.

    Raises:
        UserError: The margin is not positive, the reference is no variant, or a run is twice there.
    """
    if not margin > 0:
        raise UserError(f"The margin is {margin}, but must be above 0.")
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
    both = [scores[[a, b]].dropna() for a, b in pairs]
    each = [(frame.iloc[:, 0] - frame.iloc[:, 1]).to_numpy() for frame in both]
    table = pd.DataFrame(pairs, columns=["a", "b"]).assign(
        split=split, margin=margin, level=level, comparisons=len(pairs),
        n=[d.size for d in each],
        difference=[d.mean() if d.size else np.nan for d in each],
        correlation=[frame.iloc[:, 0].corr(frame.iloc[:, 1]) for frame in both],
        p=[sign_flip_p(d) if d.size > 1 else 1.0 for d in each],
    )  # fmt: skip
    table[["low", "high"]] = [t_interval(d, level) for d in each]
    family = 1 - (1 - level) / len(pairs)
    spreads = _moderated(pairs, each, [place[a] for a, _ in pairs])
    half = np.array([float(_half_width(spread, spread.d, family)) for spread in spreads])
    table["family_low"] = table["difference"] - half
    table["family_high"] = table["difference"] + half
    table["seeds_needed"] = [_seeds_needed(spread, family, margin) for spread in spreads]
    scope = f"for new seeds on these {split} examples"
    if examples is not None:
        scope = f"for new seeds and new {split} examples"
        for i, frame in enumerate(both):
            if len(frame) > 1:
                of_pair = [np.stack([examples[name, seed] for seed in frame.index])
                           for name in pairs[i]]  # fmt: skip
                low, high = two_way_interval(*of_pair, family)
                table.loc[i, "family_low"] = np.fmin(table.loc[i, "family_low"], low)
                table.loc[i, "family_high"] = np.fmax(table.loc[i, "family_high"], high)
    table["resolution"] = (table["family_high"] - table["family_low"]) / 2
    table["scope"] = scope
    ends = zip(table["family_low"], table["family_high"], strict=True)
    table["verdict"] = [verdict(low, high, margin, score) for low, high in ends]
    return table[COMPARISON_COLUMNS]


class _Spread(NamedTuple):
    """The moderated variance of one pair's differences; NaN where nothing varies."""

    variance: float
    d: int  # its own degrees of freedom
    others: int  # variants of its family besides the two, each with d to lend


def _moderated(
    pairs: list[tuple[str, str]], each: list[np.ndarray], place: list[Hashable]
) -> list[_Spread]:
    """The spread of each pair; the pairs of one place are a family."""
    own = [np.round(x.var(ddof=1), 24) if x.size > 1 else np.nan for x in each]
    found = []
    for x, variance, here in zip(each, own, place, strict=True):
        family = [i for i, at in enumerate(place) if at == here and each[i].size > 1]
        others = len({name for i in family for name in pairs[i]}) - 2
        d, value = max(x.size - 1, 0), np.nan
        if d > 0:
            whole = np.average([own[i] for i in family], weights=[each[i].size - 1 for i in family])
            lent = min(LENT, others * d)
            value = (lent * whole + d * variance) / (lent + d) or np.nan
        found.append(_Spread(value, d, others))
    return found


def _half_width(spread: _Spread, d: int | np.ndarray, family: float) -> np.ndarray:
    """Half of Student's interval for the mean of d + 1 differences of this spread."""
    df = d + np.minimum(LENT, spread.others * d)
    return stats.t.ppf((1 + family) / 2, df) * np.sqrt(spread.variance / (d + 1))


def _seeds_needed(spread: _Spread, family: float, margin: float) -> float:
    """The least number of seeds whose interval has the margin as half-width, this spread given."""
    if np.isnan(spread.variance):
        return np.nan
    seeds = np.arange(2, MOST_SEEDS + 1)
    enough = _half_width(spread, seeds - 1, family) <= margin
    return float(seeds[enough.argmax()] if enough.any() else MOST_SEEDS)


def verdict(low: float, high: float, margin: float, score: Score = ACCURACY) -> str:
    """What an interval of a difference says: the one rule.

    - "better" or "worse": it excludes 0; ", by less than the margin" if it lies inside it too;
    - "equivalent within m points": it lies inside the margin;
    - "not distinguishable": neither;
    - "without a verdict": there is no interval.
    """
    if np.isnan([low, high]).any():
        return UNKNOWN
    inside = -margin < low and high < margin
    if low > 0 or high < 0:
        return ("better" if low > 0 else "worse") + (", by less than the margin" if inside else "")
    if inside:
        return f"equivalent within {score.scale * margin:.3g} {score.difference}".rstrip()
    return "not distinguishable"


def verdict_text(row: Mapping, labels: Mapping[str, str]) -> str:
    """The verdict of a row of `compare`, naming the better one."""
    kind, comma, rest = row["verdict"].partition(",")
    winner = {"better": row["a"], "worse": row["b"]}.get(kind)
    return kind if winner is None else f"{labels[winner]} is better{comma}{rest}"


def resolution_sentence(table: pd.DataFrame, score: Score = ACCURACY) -> str:
    """What the seeds of a table of `compare` can tell, said once; "" for an empty table."""
    if table.empty:
        return ""
    known = table.dropna(subset="resolution")
    if known.empty:
        return "One seed, or seeds that do not vary, tell nothing apart: `--runs 10` asks for more."
    small, large = known["resolution"].min(), known["resolution"].max()
    ends = list(dict.fromkeys(shown(value, score) for value in (small, large)))
    seeds = " or ".join(str(n) for n in sorted(known["n"].unique()))
    margin, unit = known["margin"].iloc[0], f" {score.difference}".rstrip()
    text = (
        f"With {seeds} common seeds the smallest difference that can be told from none is "
        f"{' to '.join(ends)}{unit}{', by pair' * (len(known) > 1)}."
    )
    unable = known[known["resolution"] >= margin]
    if len(unable):
        needed = int(unable["seeds_needed"].max())
        which = f"{len(unable)} of {len(table)} pairs could not be called equivalent if they were"
        which = which if len(table) > 1 else "they could not be called equivalent if they were"
        more = "more test examples could tell"
        if needed > unable["n"].max():
            more = f"this spread needs at least {needed} seeds (`--runs {needed}`)"
        text += f" At a margin of {score.scale * margin:.3g}{unit} {which}: {more}."
    return text


def sentence(row: Mapping, labels: Mapping[str, str], score: Score = ACCURACY) -> str:
    """One row of `compare` in plain English; labels are the variants' names for people."""
    a, b, n = labels[row["a"]], labels[row["b"]], row["n"]
    if n == 0:
        return f"{a} and {b} have no seed in common, so they cannot be compared."
    over = "in the one common seed" if n == 1 else f"on average over {n} common seeds"
    details = []
    if not np.isnan(row["low"]):
        ends = shown_range(row["low"], row["high"], score)
        details.append(f"{100 * row['level']:.3g}% interval {ends}")
    if not np.isnan(row["family_low"]):
        ends, pairs = shown_range(row["family_low"], row["family_high"], score), row["comparisons"]
        corrected = f", corrected for {pairs} comparisons" if pairs > 1 else ""
        details.append(f"{ends} {row['scope']}{corrected}")
    unit = f" {score.difference}".rstrip()
    head = f"{a} minus {b}: {shown(row['difference'], score, '+')}{unit} {over}"
    brackets = f" ({'; '.join(details)})" if details else ""
    return f"{head}{brackets}: {verdict_text(row, labels)}."
