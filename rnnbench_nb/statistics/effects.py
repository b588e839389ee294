"""Comparisons within a report: its variants on test examples, and changes of one reference."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rnnbench_nb.errors import UserError
from rnnbench_nb.results import COMPLETED, Report
from rnnbench_nb.statistics.verdicts import compare

MARGIN = 0.002  # differences within it count as equivalent, in the unit of the score
PAIRS = 4  # variants of a group that are compared pair by pair; of more, each with the first alone
NO_CHANGE = {"seed", "device", "variant"}  # these parameters change no model


def comparison(report: Report, margin: float = MARGIN, reference: str = "") -> pd.DataFrame:
    """Compare the variants of a report on their test examples, within each group.

    Args:
        report: The report.
        margin: Differences within it count as equivalent, in the unit of the score.
        reference: Compare with this variant alone; empty: every pair, of more than `PAIRS` variants
            in a group each with the first.

    Returns:
        As `compare`; the mean score of a run is that of its predictions.
    """
    score, examples = report.score, {run.key: run.scores for run in report.runs}
    results = report.results[["variant", "seed"]].copy()
    keys = results.itertuples(index=False, name=None)
    results[score.name] = [examples[key].mean() if key in examples else np.nan for key in keys]
    if not reference and max(map(len, report.groups)) > PAIRS:
        reference = next(iter(report.variants))
    return compare(
        results,
        margin,
        score,
        reference=reference or None,
        examples=examples,
        groups={name: variant["group"] for name, variant in report.variants.items()},
        stand_in=report.stand_in,
    )


def effects(report: Report, margin: float = MARGIN, reference: str = "") -> pd.DataFrame:
    """Compare each variant with the reference of its family, at the epoch that each run chose.

    All is judged on validation examples, so that the test set can still judge what is chosen.

    Args:
        report: The report.
        margin: Effects within it count as equivalent, in the unit of the score.
        reference: The reference of its family; every other family's is its first variant.

    Returns:
        As `compare`, with `change` (the parameters that differ from the reference, with their
        values) and `keys` (their names). Variants that change the same parameters are neighbours.

    Raises:
        UserError: Fewer than two variants have a finished run, or the reference has none.
    """
    scores, tables = validation_scores(report.results, report.history, report.score.name), []
    for base, *others in families(report, reference):
        own = {name: report.variants[name]["parameters"] for name in (base, *others)}
        changed = {name: changes(own[name], own[base]) for name in others}
        alike = list(dict.fromkeys(tuple(change) for change in changed.values()))
        others.sort(key=lambda name: alike.index(tuple(changed[name])))
        family = scores.set_index("variant").loc[[base, *others]].reset_index()
        table = compare(
            family,
            margin,
            report.score,
            reference=base,
            split="validation",
            stand_in=report.stand_in,
        )
        text = {name: ", ".join(f"{k} {v}" for k, v in changed[name].items()) for name in others}
        table["change"] = table["a"].map(text)
        table["keys"] = [" ".join(changed[name]) for name in table["a"]]
        tables.append(table)
    if not tables:
        raise UserError(f"{report.folder} has finished runs of fewer than two variants to compare.")
    return pd.concat(tables, ignore_index=True)


def families(report: Report, reference: str = "") -> list[list[str]]:
    """The variants with finished runs that are compared with one another, the reference first.

    The variants of a group are one family. If every model of the group has several variants, as in
    a search for each model's best, its models are families. A variant alone is in no family.

    Args:
        report: The report.
        reference: The reference of its family; every other family's is its first variant.

    Raises:
        UserError: The reference has no finished run.
    """
    finished = {run.key[0] for run in report.runs}
    if reference and reference not in finished:
        names = ", ".join(name for name in report.variants if name in finished)
        raise UserError(f"The reference {reference!r} has no finished run; name one of {names}.")
    result: list[list[str]] = []
    for group in report.groups:
        models: dict[str, list[str]] = {}
        for name in (name for name in group if name in finished):
            models.setdefault(report.variants[name]["model"], []).append(name)
        several = min(map(len, models.values()), default=0) > 1
        result += models.values() if several else [sum(models.values(), [])]
    return [sorted(family, key=lambda name: name != reference) for family in result if family[1:]]


def changes(own: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that both variants have and whose values differ from the reference's."""
    return {k: v for k, v in own.items() if k in base and v != base[k] and k not in NO_CHANGE}


def validation_scores(results: pd.DataFrame, history: pd.DataFrame, score: str) -> pd.DataFrame:
    """The validation score of each finished run at the epoch that it chose.

    Args:
        results: Of a report.
        history: Of the same report.
        score: The name of the score.

    Returns:
        `variant, seed`, the score, `free_parameters`.
    """
    done = results[results["status"] == COMPLETED].drop(columns=score)
    chosen = history[history["split"] == "validation"].rename(columns={"epoch": "best_epoch"})
    keys = ["variant", "seed", "best_epoch"]
    scores = done.astype({"best_epoch": int}).merge(chosen[[*keys, score]], on=keys)
    return scores[["variant", "seed", score, "free_parameters"]]
