"""Which settings of a model matter? The page 06_ablation, judged on validation alone."""

import pandas as pd

from rnnbench_nb import statistics
from rnnbench_nb.analyses import Analysis
from rnnbench_nb.analyses.comparison import resolved
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.report import Report, said

VERDICTS = ("better", "worse", "equivalent", "undecided", "none")
SMALLER, LARGER = 0.95, 1.05  # times the free parameters: a difference worth a word


def analyse(report: Report, margin: float = 0.002, reference: str = "") -> Analysis:
    """Compare each variant with the reference of its family, at the epoch that each run chose.

    Args:
        report: With finished runs of at least two variants.
        margin: Effects within it count as equivalent, in the unit of the score.
        reference: What the others are compared with; empty: the first variant of each family.

    Returns:
        Frames `scores` (`statistics.validation_scores`), `variants` (their mean, sd, seeds, free
        parameters) and `effects` (`statistics.compare` with the reference of each family on the
        validation examples, with the `change` and the `keys` that it changes).

    Raises:
        UserError: Fewer than two variants have a finished run, or the reference has none.
    """
    parameters = {name: report.of(name)[0].parameters for name in report.variants
                  if report.of(name)}  # fmt: skip
    families = statistics.families(parameters, reference)
    if not families:
        raise UserError(f"{report.folder} has finished runs of fewer than two variants to compare.")
    found, score = Analysis(), report.task.score
    scores = statistics.validation_scores(report.results, report.history, score)
    found.frames["scores"] = scores
    groups = scores.groupby("variant", sort=False)
    found.frames["variants"] = groups.agg(
        mean=(score.name, "mean"), sd=(score.name, "std"), n=(score.name, "size"),
        free_parameters=("free_parameters", "first"),
    ).reset_index()  # fmt: skip
    tables = [family_effects(parameters, names, scores, margin, report) for names in families]
    if len(tables) > 1:
        bases = [table["b"].iloc[0] for table in tables]
        heads = [CELLS[parameters[base].model].label for base in bases]
        if len(set(heads)) < len(heads):  # a cell has several families, such as one a length
            heads = [report.labels[base] for base in bases]
        for head, table in zip(heads, tables, strict=True):
            table["change"] = f"{head}: " + table["change"]
    found.frames["effects"] = pd.concat(tables, ignore_index=True)
    for table in tables:
        _answer(found, report, table)
    for table in tables:
        _recommend(found, report, table)
    for table in tables:
        _highest(found, report, table)
    later = int(scores["seed"].max()) + 1
    found.say(
        "As the best of all that were tried it looks better than it is: confirm it on seeds that "
        f"had no part in the choice (`--seed {later}`), read once on the test examples. Whether "
        "changes add up, these runs do not show.", "highest", later=later,
    )  # fmt: skip
    for table in tables:
        head = f"{report.labels[table['b'].iloc[0]]}: " if len(tables) > 1 else ""
        text = statistics.resolution_sentence(table, score)
        found.say(head + text, "trust", **resolved(table))
    return found


def family_effects(
    parameters: dict, names: list[str], scores: pd.DataFrame, margin: float, report: Report
) -> pd.DataFrame:
    """The rows of `effects` of one family, its reference first among the names.

    Variants that change the same parameters stand together.
    """
    base, *others = names
    score = report.task.score
    changed = statistics.changes({name: parameters[name] for name in names}, base)
    groups = list(dict.fromkeys(tuple(changed[name]) for name in others))
    others.sort(key=lambda name: groups.index(tuple(changed[name])))
    family = scores[scores["variant"].isin(names)]
    family = family.sort_values("variant", key=lambda column: column.map([base, *others].index))
    table = statistics.compare(family, margin, score, reference=base, split="validation")
    table["change"] = [statistics.settings(changed[name]) for name in table["a"]]
    table["keys"] = [" ".join(changed[name]) for name in table["a"]]
    return table


def _mean(found: Analysis, report: Report, variant: str) -> str:
    """The mean of a variant as text."""
    mean = found["variants"].set_index("variant").loc[variant, "mean"]
    return statistics.with_unit(statistics.shown(mean, report.task.score), report.task.score)


def _answer(found: Analysis, report: Report, table: pd.DataFrame) -> None:
    """The reference, and the changes by verdict."""
    base, score = table["b"].iloc[0], report.task.score
    run = report.of(base)[0]
    size = {key: run.record["data"][key] for key in ("steps", "input_size")}
    seeds = len(report.of(base))
    unit = f" in {score.difference}" if score.difference else ""
    found.say(
        f"The reference, {report.labels[base]}, has a mean validation {said(score.name)} of "
        f"{_mean(found, report, base)} on {run.task.sentence(run.record['data'])} (seeds: {seeds})."
        f" Changes tried: {len(table)}, with their effects{unit}:",
        "answer", seeds=seeds, changes=len(table), **size,
    )  # fmt: skip
    for verdict in VERDICTS:
        texts = [
            f"{row['change']} ({statistics.shown(row['difference'], score, '+')})"
            for row in table.to_dict("records")
            if row["verdict"].startswith(verdict)
        ]
        if texts or verdict != statistics.UNKNOWN:
            found.say(f"- **{verdict.capitalize()}:** {', '.join(texts) or 'none'}", "answer")


def _recommend(found: Analysis, report: Report, table: pd.DataFrame) -> None:
    """What to take, what is smaller and no worse, and what these runs could not see."""
    base, score = table["b"].iloc[0], report.task.score
    sizes = found["variants"].set_index("variant")["free_parameters"]
    better = table[table["verdict"].str.startswith("better")]
    for row in better.sort_values("difference", ascending=False).to_dict("records"):
        times = sizes[row["a"]] / sizes[base]
        larger = f", with {times:.1f} times the free parameters" if times > LARGER else ""
        ends = statistics.shown_range(row["family_low"], row["family_high"], score)
        found.say(
            f"**Take {row['change']}** ({report.labels[base]} otherwise): "
            f"{statistics.shown(row['difference'], score, '+')} {score.difference}, corrected "
            f"interval {ends}{larger}.", "recommendation", times=times,
        )  # fmt: skip
    if better.empty:
        text = f"**Keep {report.labels[base]}:** no change is shown to be better."
        if table["verdict"].eq("none").all():
            text = f"One seed shows of no change to {report.labels[base]} whether it is better."
        found.say(text, "recommendation")
    cheaper = table[table["verdict"].str.startswith("equivalent")]
    cheaper = cheaper[cheaper["a"].map(sizes) < SMALLER * sizes[base]]
    if len(cheaper):
        text = f"Smaller, and no worse by more than the margin: {', '.join(cheaper['change'])}."
        found.say(text, "recommendation")


def _highest(found: Analysis, report: Report, table: pd.DataFrame) -> None:
    """The highest means of a family; equal ones are all named."""
    means = found["variants"].set_index("variant")["mean"].round(8)
    means = means[[table["b"].iloc[0], *table["a"]]]
    tied = means.index[means == means.max()]
    names = ", ".join(report.labels[name] for name in tied)
    text = f"{names} ({_mean(found, report, tied[0])})."
    found.say(f"Highest mean, where one has to be chosen: {text}", "highest")


def table_of(analysis: Analysis, report: Report) -> pd.DataFrame:
    """Every change as text: validation score, effect, intervals and size."""
    effects, score = analysis["effects"], report.task.score
    own = analysis["variants"].set_index("variant").reindex(effects["a"])
    mean, sd = (own[name].map(lambda x: statistics.shown(x, score)) for name in ("mean", "sd"))

    def ends(kind: str) -> list[str]:
        pairs = zip(effects[f"{kind}_low"], effects[f"{kind}_high"], strict=True)
        return [statistics.shown_range(*pair, score) for pair in pairs]

    return pd.DataFrame({
        "change": effects["change"],
        "n": effects["n"],
        "validation": (mean + " ± " + sd).to_numpy(),
        "effect": effects["difference"].map(lambda x: statistics.shown(x, score, "+")),
        "corrected": ends("family"),
        "smallest effect told": effects["resolution"].map(lambda x: statistics.shown(x, score)),
        "verdict": effects["verdict"],
        "free parameters": own["free_parameters"].map("{:,.0f}".format).to_numpy(),
    })  # fmt: skip
