"""Intervals and verdicts on scores, for which higher is better; nothing here needs torch.

All intervals over seeds treat runs as independent. Runs share one pool of training data, so the
spread over new training sets is wider than any of these intervals.
"""

from collections.abc import Hashable, Iterable, Mapping
from enum import StrEnum
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import SOURCES
from rnnbench_nb.metrics import Score
from rnnbench_nb.results import COMPLETED, MARKER, Report

LEVEL = 0.95  # coverage of every interval
LEAST_SEEDS = 5  # with fewer, there is no verdict
MARGIN = 0.002  # differences within +-MARGIN count as equivalent; unscaled, so 0.2 points
PAIRS = 6  # up to so many variants in a group, all pairs are compared; beyond, each with the first
LOAN = 4  # degrees of freedom that the spread of all pairs lends to each pair
SOLVED = 0.95  # mean score from which a seed solves a task without a margin
NUMBERS = ("no common seed", "one seed", "two seeds", "three seeds", "four seeds")
NO_CHANGE = {"seed", "device", "variant"}  # parameters that change no model
ACCURACY = Score()
COLUMNS = (
    "a b n difference low high family_low family_high correlation p margin comparisons "
    "verdict small reason"
).split()


class Verdict(StrEnum):
    """What an interval says about a difference a - b."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    NONE = "none"


Pair = tuple[str, str, str, float | None, int, Mapping[tuple[str, int], np.ndarray]]
OPPOSITE = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}


def format_score(value: float, score: Score, sign: str = "", unit: str = "") -> str:
    """Format an unscaled score, such as 0.9884, or with the sign "+" a difference of scores.

    `unit` follows the number: `score.unit` for a score, `score.difference` for a difference.
    """
    if np.isnan(value):
        return "unknown"
    text = f"{score.scale * value:{sign}z.{2 if score.scale > 1 else 4}f}".replace("-", "−")
    return text + (unit if unit in ("", "%") else f" {unit}")


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval for the mean of values (n,); NaN if fewer than two of them differ."""
    if np.unique(np.round(values, 12)).size < 2:  # 0.3 - 0.2 and 0.2 - 0.1 are one value
        return np.nan, np.nan
    return DescrStatsW(values).tconfint_mean(1 - LEVEL)


def example_interval(scores: np.ndarray) -> tuple[float, float]:
    """Interval for the mean score of a fitted model over new examples, from its scores (N,).

    It is Wilson's interval if all scores are 0 or 1, and else Student's.
    """
    if np.isin(scores, (0, 1)).all():
        return proportion_confint(scores.sum(), scores.size, 1 - LEVEL, method="wilson")
    return t_interval(scores)


def two_way(differences: np.ndarray) -> tuple[float, float]:
    """Standard error of the mean difference over new seeds and new examples together.

    It follows the multi-reader multi-case design of Dorfman, Berbaum and Metz (1992, Invest.
    Radiol. 27:723), with seeds as readers: var(mean) = (MS_seed + MS_example - MS_rest) / (S N).
    The mean squares are those of a two-way layout without replication, and the degrees of freedom
    are Satterthwaite's. The variance is at least that over seeds alone and that over examples.

    Args:
        differences: Score differences of two models (S, N): a row a seed, a column an example.

    Returns:
        The error, in the unit of the scores, and its degrees of freedom; NaN if the means of the
        seeds do not vary or S < 2.
    """
    if len(differences) < 2 or np.isnan(t_interval(differences.mean(1))[0]):
        return np.nan, np.nan
    s, n = differences.shape
    by_seed, by_example = differences.mean(1), differences.mean(0)
    seed, example = n * by_seed.var(ddof=1), s * by_example.var(ddof=1)  # mean squares
    rest = differences - by_seed[:, None] - by_example + differences.mean()
    rest = (rest**2).sum() / ((s - 1) * (n - 1))
    total = max(seed + example - rest, seed, example)
    squares = np.array([seed, example, rest]) ** 2
    df = total**2 / (squares / [s - 1, n - 1, (s - 1) * (n - 1)]).sum()
    if example <= rest:  # nothing suggests that examples favour a model
        df = s - 1
    return np.sqrt(total / (s * n)), df


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Interval of a mean for new seeds and new examples, from values (S, N) of seeds and examples.

    With one column the interval is for new seeds alone. It is NaN for fewer than `LEAST_SEEDS`.
    """
    if len(values) < LEAST_SEEDS:
        return np.nan, np.nan
    if values.shape[1] == 1:
        return t_interval(values.ravel())
    error, df = two_way(values)
    return stats.t.interval(LEVEL, df, values.mean(), error)


def compare(
    results: pd.DataFrame,
    margin: float,
    score: Score = ACCURACY,
    reference: str = "",
    examples: Mapping[tuple[str, int], np.ndarray] | None = None,
    groups: Mapping[str, Hashable] | None = None,
    stand_in: bool = False,
) -> pd.DataFrame:
    """Compare variants pairwise over their common seeds, with one verdict a pair.

    One interval decides. A difference is better or worse if the interval excludes 0, equivalent if
    it lies inside the margin, and undecided otherwise. It is Student's interval of the paired
    differences with Bonferroni's correction for the number of pairs.

    With `examples` the interval covers new examples too (`two_way`), on which equal models differ
    by chance. Without them it covers seeds alone. A few seeds estimate their spread badly, so the
    variance is then moderated by that of all pairs (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3):
    (f F + d v) / (f + d) with f + d degrees of freedom. Here v is the pair's variance, d = n - 1, F
    is the mean over the pairs, and f is the smaller of `LOAN` and (variants - 2) d. In simulations
    (see the tests) error rates hold at 5%.

    Args:
        results: Columns `variant, seed` and the score, one row a run.
        margin: Half-width of the equivalence zone, in the unit of the score (0.002 = 0.2 points).
        score: The score that is compared.
        reference: Compare each variant of its group with this one only, and each variant of another
            group with the first of that group; if empty, compare every pair.
        examples: For each (variant, seed) the score of each example (N,).
        groups: A key for each variant; only variants with equal keys are compared.
        stand_in: Whether other data replace those of the protocol; there is then no verdict.

    Returns:
        `COLUMNS`, one row a pair: `n`, the number of common seeds; `difference`, the mean of a - b;
        `low, high`, its paired t interval; `family_low, family_high`, the interval that decides;
        `correlation` of the scores; `p` of the t test that the interval inverts, uncorrected, and 1
        without one; `comparisons`, the number of pairs; `verdict`, a `Verdict`; `small`, whether a
        better or worse difference is below the margin; `reason` for no verdict.

    Raises:
        UserError: The margin is not positive, or the reference is not a variant.
    """
    if not margin > 0:
        raise UserError(f"margin must be above 0, not {margin}.")
    variants = list(results["variant"].unique())
    group = groups or dict.fromkeys(variants, "all")
    pairs = _pairs(variants, group, reference)
    if not pairs:
        return pd.DataFrame(columns=COLUMNS)
    scores = results.pivot(index="seed", columns="variant", values=score.name)
    both = [scores[[a, b]].dropna() for a, b in pairs]
    each = [(frame.iloc[:, 0] - frame.iloc[:, 1]).to_numpy(float) for frame in both]
    table = pd.DataFrame(pairs, columns=["a", "b"]).assign(
        n=[d.size for d in each],
        difference=[d.mean() if d.size else np.nan for d in each],
        correlation=[frame.iloc[:, 0].corr(frame.iloc[:, 1]) for frame in both],
        margin=margin,
        comparisons=len(pairs),
    )
    table[["low", "high"]] = [t_interval(d) for d in each]
    if examples:
        error, df = np.transpose([two_way(differences(examples, a, b)) for a, b in pairs])
    else:
        tried = {name for pair, d in zip(pairs, each, strict=True) if d.size > 1 for name in pair}
        error, df = _moderated(each, len(tried) - 2)
    difference, family = table["difference"].to_numpy(), 1 - (1 - LEVEL) / len(pairs)
    table["family_low"], table["family_high"] = stats.t.interval(family, df, difference, error)
    table["p"] = np.nan_to_num(2 * stats.t.sf(abs(difference) / error, df), nan=1.0)
    verdicts = [_judge(row, stand_in) for row in table.to_dict("records")]
    table[["verdict", "small", "reason"]] = verdicts
    return table[COLUMNS]


def _pairs(
    variants: list[str], group: Mapping[str, Hashable], reference: str
) -> list[tuple[str, str]]:
    """Return the pairs (a, b) to compare."""
    if not reference:
        return [(a, b) for a, b in combinations(variants, 2) if group[a] == group[b]]
    if reference not in variants:
        raise UserError(f"reference: {reference!r} must be one of {', '.join(variants)}.")
    first = {group[name]: name for name in (*reversed(variants), reference)}
    return [(name, first[group[name]]) for name in variants if first[group[name]] != name]


def differences(scores: Mapping[tuple[str, int], np.ndarray], a: str, b: str) -> np.ndarray:
    """Return the score differences of two variants (S, N), a row for each common seed."""
    seeds = [seed for variant, seed in scores if variant == a and (b, seed) in scores]
    return np.array([1.0 * scores[a, seed] - scores[b, seed] for seed in seeds])


def _moderated(each: list[np.ndarray], others: int) -> np.ndarray:
    """Return moderated standard errors and their degrees of freedom (2, P); NaN without spread."""
    n = np.array([values.size for values in each])
    own = np.array([values.var(ddof=1) if values.size > 1 else np.nan for values in each])
    d, some = np.maximum(n - 1, 1), n > 1
    loan = np.minimum(LOAN, others * d)
    shared = np.average(own[some], weights=d[some]) if some.any() else np.nan
    variance = (loan * shared + d * own) / (loan + d)
    return np.array([np.sqrt(np.where(variance > 1e-24, variance / n, np.nan)), loan + d])


@cache
def study() -> dict[str, Any]:
    """Return the protocols of the study, params/study_*.yaml, by name."""
    from rnnbench_nb.protocol import load_protocol  # needs torch

    return {path.stem: load_protocol(path) for path in sorted(SOURCES.glob("params/study_*.yaml"))}


def declared(report: Report) -> list[set[str]]:
    """Return the pairs of a report that the page of the study beside it judges."""
    beside = report.published and (report.folder.absolute().parent / "study.html.j2").exists()
    own = study().get(report.name) if beside else None
    return [set(pair) for pair in own.primary] if own else []


def primary_family(folder: Path | str) -> pd.DataFrame:
    """Judge the study's declared pairs, by the reports in `folder`, with `judge_family`."""
    pairs: list[Pair] = []
    for name, protocol in study().items():
        place = Path(folder) / name
        report = Report(place) if (place / MARKER).exists() else None
        runs = report.runs if report and not report.stand_in else []
        scores = {run.key: run.scores for run in runs}
        for a, b in protocol.primary:
            seeds = min(protocol.runs.get(variant, 0) for variant in (a, b))
            pairs.append((name, a, b, protocol.margin, seeds, scores))
    return judge_family(pairs)


def judge_family(pairs: Iterable[Pair]) -> pd.DataFrame:
    """Judge pairs of variants as one family, also if they belong to different tasks.

    `p` is that of a two-sided t test of the mean difference over new seeds and examples (`two_way`)
    and is corrected for all pairs by Holm's method. It is 1 until the declared seeds have run, at
    least `LEAST_SEEDS`. Equivalence is a second family, of the pairs with a margin. Its p is the
    larger of two one-sided tests, with the same error, that a - b is inside the margin.

    Args:
        pairs: For each pair the task, the variants a and b, the margin (unscaled) or None, how many
            seeds are declared, and the scores (N,) of each (variant, seed) of the task.

    Returns:
        One row a pair, with `n`, the number of common seeds; `difference`, the mean of a - b; `low,
        high`, its 95% interval, uncorrected; `holm` and `equivalence`, the corrected p; `verdict`,
        a `Verdict`, "not run" or "not complete"; `small`, whether it is better or worse by less
        than the margin; `solved_a, solved_b`, the seeds that solve a task without a margin.
    """
    rows = []
    for task, a, b, margin, seeds, scores in pairs:
        d = differences(scores, a, b)
        whole = len(d) >= max(seeds, LEAST_SEEDS)
        error, df = two_way(d) if whole else (np.nan, np.nan)
        mean = d.mean() if len(d) else np.nan
        low, high = stats.t.interval(LEVEL, df, mean, error)
        p = 2 * stats.t.sf(abs(mean) / error, df)
        inside = np.nan if margin is None else stats.t.sf((margin - abs(mean)) / error, df)
        means = [[x.mean() for (own, _), x in scores.items() if own == name] for name in (a, b)]
        solved = [np.nan if margin else sum(x >= SOLVED for x in each) for each in means]
        rows.append((task, a, b, margin, len(d), whole, mean, low, high, p, inside, *solved))
    names = "task a b margin n whole difference low high p equivalence solved_a solved_b".split()
    table = pd.DataFrame(rows, columns=names).astype({"margin": float})
    table["p"], some = table["p"].fillna(1), table["margin"].notna()
    table["holm"] = multipletests(table["p"], method="holm")[1]
    inside = table.loc[some, "equivalence"].fillna(1)
    table.loc[some, "equivalence"] = multipletests(inside, method="holm")[1]
    sure, better = table["holm"] < 1 - LEVEL, table["difference"] > 0
    rules = {
        "not run": table["n"] == 0,
        "not complete": ~table["whole"],
        Verdict.BETTER: sure & better,
        Verdict.WORSE: sure,
        Verdict.EQUIVALENT: table["equivalence"] < 1 - LEVEL,
    }
    table["verdict"] = np.select([*rules.values()], [*map(str, rules)], str(Verdict.UNDECIDED))
    return table.assign(small=sure & (table["difference"].abs() < table["margin"]))


def verdict(low: float, high: float, margin: float) -> Verdict:
    """Judge a difference by the interval that decides; without one (NaN) there is no verdict."""
    if np.isnan([low, high]).any():
        return Verdict.NONE
    if low > 0 or high < 0:
        return Verdict.BETTER if low > 0 else Verdict.WORSE
    return Verdict.EQUIVALENT if -margin < low and high < margin else Verdict.UNDECIDED


def _judge(row: Mapping[Any, Any], stand_in: bool) -> tuple[Verdict, bool, str]:
    """Return a pair's verdict, whether its difference is small, and why there is no verdict."""
    if stand_in:
        return Verdict.NONE, False, "stand-in data"
    if row["n"] < LEAST_SEEDS:
        return Verdict.NONE, False, NUMBERS[row["n"]]
    kind = verdict(row["family_low"], row["family_high"], row["margin"])
    small = kind in OPPOSITE and abs(row["difference"]) < row["margin"]
    return kind, small, "seeds that do not vary" if kind == Verdict.NONE else ""


def reverse(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a row of `compare` as the difference b - a."""
    ends = {"family_low": -row["family_high"], "family_high": -row["family_low"]}
    sides = {"a": row["b"], "b": row["a"], "difference": -row["difference"]}
    return {**row, **sides, **ends, "verdict": OPPOSITE.get(row["verdict"], row["verdict"])}


def sentence(row: Mapping[Any, Any], labels: Mapping[str, str], score: Score = ACCURACY) -> str:
    """Return a row of `compare` as a sentence; `labels` maps variants to their labels."""
    if row["verdict"] == Verdict.WORSE:
        row = reverse(row)
    a, b, n, unit = labels[row["a"]], labels[row["b"]], row["n"], score.difference
    if n == 0:
        return f"{a} and {b} have no common seed."
    sign = "" if row["verdict"] == Verdict.BETTER else "+"
    difference = format_score(row["difference"], score, sign, unit)
    low, high = (format_score(row[end], score, sign) for end in ("family_low", "family_high"))
    evidence = f"{difference} ({low} to {high}, {n} seeds)"
    margin = f"{score.scale * row['margin']:.3g} {unit}".rstrip()
    below = f", less than the margin of {margin}" if row["small"] else ""
    return {
        Verdict.NONE: f"{a} minus {b} is {difference}; {row['reason']}: no verdict.",
        Verdict.BETTER: f"{a} is better than {b} by {evidence}{below}.",
        Verdict.EQUIVALENT: f"{a} and {b} are equivalent within {margin}: {evidence}.",
        Verdict.UNDECIDED: f"{a} and {b} cannot be told apart: {evidence}.",
    }[row["verdict"]]


def has_enough_seeds(report: Report) -> bool:
    """Whether some variant of a report has enough seeds for a verdict."""
    return max(map(len, report.seeds.values()), default=0) >= LEAST_SEEDS


def finding(report: Report) -> str:
    """Return a sentence on the two variants with the best means, or "" if there is none."""
    scores = report.results[report.score.name].astype(float)
    means = scores.groupby(report.results["variant"]).mean()
    best = {*means.nlargest(2).index}
    rows = [row for row in comparison(report).to_dict("records") if {row["a"], row["b"]} == best]
    return sentence(rows[0], report.labels, report.score) if rows else ""


def comparison(report: Report, margin: float = MARGIN, reference: str = "") -> pd.DataFrame:
    """Compare the variants of a report within each group by their test scores.

    Without a `reference`, all pairs of a group are compared; if a group has more than `PAIRS`
    variants, each is compared with the first. After the correction for all of these, pairs that are
    `declared` are left out. Arguments and columns are those of `compare`.
    """
    examples = {run.key: run.scores for run in report.runs}
    results = report.results[["variant", "seed"]].copy()
    keys = results.itertuples(index=False, name=None)
    results[report.score.name] = [examples[k].mean() if k in examples else np.nan for k in keys]
    if not reference and max(map(len, report.groups), default=0) > PAIRS:
        reference = next(iter(report.variants))
    groups = {name: variant["group"] for name, variant in report.variants.items()}
    options: dict[str, Any] = {"examples": examples, "groups": groups, "stand_in": report.stand_in}
    table, hidden = compare(results, margin, report.score, reference, **options), declared(report)
    shown = [{a, b} not in hidden for a, b in zip(table["a"], table["b"], strict=True)]
    return table.loc[shown].reset_index(drop=True)  # table[[]] would lose the columns


def effects(report: Report, margin: float = MARGIN, reference: str = "") -> pd.DataFrame:
    """Compare each variant with the reference of its family by validation scores.

    The scores are those of each run's best epoch. They are validation scores so that the test set
    can still judge the choice. Arguments are those of `compare` and `families`.

    Returns:
        The columns of `compare`, and `change` (the parameters that differ from the reference, with
        their values) and `keys` (their names).

    Raises:
        UserError: Fewer than two variants have a finished run, or the reference has none.
    """
    scores, tables = validation_scores(report.results, report.history, report.score.name), []
    for base, *others in families(report, reference):
        own = {name: report.variants[name]["parameters"] for name in (base, *others)}
        changed = {name: changes(own[name], own[base]) for name in others}
        family = scores.set_index("variant").loc[[base, *others]].reset_index()
        table = compare(family, margin, report.score, base, stand_in=report.stand_in)
        text = {name: ", ".join(f"{k} {v}" for k, v in changed[name].items()) for name in others}
        table["change"] = table["a"].map(text)
        table["keys"] = [" ".join(changed[name]) for name in table["a"]]
        tables.append(table)
    if not tables:
        raise UserError(f"{report.folder} has finished runs of fewer than two variants to compare.")
    return pd.concat(tables, ignore_index=True)


def families(report: Report, reference: str = "") -> list[list[str]]:
    """Return the families of variants with finished runs, each with its reference first.

    Variants of one family are compared. A group is a family. If every model of a group has several
    variants, as in a search for each model's best settings, each model is a family. A family has at
    least two variants. Its reference is `reference` if it has that variant, and else its first.

    Raises:
        UserError: The reference has no finished run.
    """
    finished = {run.key[0] for run in report.runs}
    if reference and reference not in finished:
        names = ", ".join(name for name in report.variants if name in finished)
        raise UserError(f"The reference {reference!r} has no finished run; name one of {names}.")
    result: list[list[str]] = []
    for everyone in report.groups:
        group = [name for name in everyone if name in finished]
        models: dict[str, list[str]] = {}
        for name in group:
            models.setdefault(report.variants[name]["model"], []).append(name)
        result += models.values() if min(map(len, models.values()), default=0) > 1 else [group]
    return [sorted(family, key=lambda name: name != reference) for family in result if family[1:]]


def changes(own: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that both variants have, where they differ, with values of `own`."""
    return {k: v for k, v in own.items() if k in base and v != base[k] and k not in NO_CHANGE}


def validation_scores(results: pd.DataFrame, history: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return `variant, seed, free_parameters` and each run's validation score at its best epoch."""
    runs = results[results["status"] == COMPLETED].drop(columns=score)
    validation = history[history["split"] == "validation"].rename(columns={"epoch": "best_epoch"})
    keys = ["variant", "seed", "best_epoch"]
    scores = runs.astype({"best_epoch": int}).merge(validation[[*keys, score]], on=keys)
    return scores[["variant", "seed", score, "free_parameters"]]
