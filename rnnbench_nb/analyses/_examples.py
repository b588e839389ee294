"""The comparison example by example, where answers are right or wrong: parts of `comparison`."""

from itertools import starmap

import numpy as np
import pandas as pd

from rnnbench_nb import statistics
from rnnbench_nb.analyses import Analysis
from rnnbench_nb.report import Report, Run

LEVEL = 0.95
BINS = 15  # of confidence
SHOWN = 24  # examples that one variant gets alone


def _judged(report: Report, names: list[str]) -> dict[str, list[Run]]:
    """The runs of the variants whose every score is 0 or 1."""
    runs = {name: report.of(name) for name in names}
    return {k: v for k, v in runs.items() if all(np.isin(run.scores, (0, 1)).all() for run in v)}


def classes(run: Run) -> list[str]:
    """The names of the classes that a run tells apart; empty where its task has none."""
    return run.record["data"].get("class_names", [])


def mcnemar(found: Analysis, report: Report, groups: list[list[str]]) -> None:
    """The frame `mcnemar`: pairs of fitted models of one seed, and a sentence a pair."""
    judged = {run.key: run.scores for names in groups
              for runs in _judged(report, names).values() for run in runs}  # fmt: skip
    tables = []
    compared = found["comparison"].query("n > 0")
    for a, b in zip(compared["a"], compared["b"], strict=True):
        seeds = sorted(seed for name, seed in judged if name == a and (b, seed) in judged)
        if not seeds:
            continue
        right = [np.array([judged[name, seed] for seed in seeds]) for name in (a, b)]
        table = statistics.mcnemar_per_seed(*right, seeds)
        text = statistics.mcnemar_sentence(table, report.labels[a], report.labels[b], LEVEL)
        found.say(
            f"- {text}", "mcnemar", pairs=len(table), significance=1 - LEVEL,
            different=int((table["p"] <= 1 - LEVEL).sum()),
            only_a=table["only_a"].mean(), only_b=table["only_b"].mean(),
        )  # fmt: skip
        tables.append(table.assign(a=a, b=b))
    columns = ["a", "b", "seed", "both_right", "only_a", "only_b", "both_wrong", "p"]
    found.frames["mcnemar"] = (
        pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)
    )


def class_errors(found: Analysis, report: Report, groups: list[list[str]]) -> None:
    """The frame `class_errors`: the error of each class and run, and where variants differ most."""
    rows = []
    for run in report.runs:
        names = classes(run)
        wrong = pd.Series(1 - run.scores).groupby(run.predictions["label"]).mean()
        key = dict(zip(("variant", "seed"), run.key, strict=True))
        rows += [{**key, "class": names[k], "error": e} for k, e in wrong.items() if names]
    errors = pd.DataFrame(rows, columns=["variant", "seed", "class", "error"])
    found.frames["class_errors"] = errors
    for variants in groups:
        means = errors[errors["variant"].isin(variants)]
        if means.empty:
            continue
        table = means.pivot_table("error", "class", "variant", sort=False)
        hardest = table.loc[(table.max(axis=1) - table.min(axis=1)).idxmax()]
        low, high = hardest.idxmin(), hardest.idxmax()
        if hardest[low] < hardest[high]:
            found.say(
                f"The variants differ most on class {hardest.name}: {report.labels[low]} has "
                f"{100 * hardest[low]:.2f}% errors there and {report.labels[high]} "
                f"{100 * hardest[high]:.2f}%. With {len(table)} classes some gap of this kind "
                "appears by chance; it is a place to look, not a finding.",
                "classes", low=hardest[low], high=hardest[high], classes=len(table),
                hardest=str(hardest.name),
            )  # fmt: skip


def calibration(found: Analysis, report: Report, groups: list[list[str]]) -> None:
    """The frames `reliability` (bins, all seeds of a variant) and `calibration` (a row a run)."""
    bins, rows = [], []
    for name in (name for names in groups for name in names):
        runs = [run for run in report.of(name) if run.has("outputs") and classes(run)]
        if not runs:
            continue
        logits = [run.outputs for run in runs]  # (N, K) each
        truth = [run.predictions["label"] for run in runs]
        table = statistics.reliability_table(np.concatenate(logits), np.concatenate(truth), BINS)
        table = table.query("count > 0").assign(variant=name)
        bins.append(table)
        each = list(starmap(statistics.expected_calibration_error, zip(logits, truth, strict=True)))
        rows += [(*run.key, ece) for run, ece in zip(runs, each, strict=True)]
        gap = np.average(table["confidence"] - table["accuracy"], weights=table["count"])
        mean = np.mean(each)
        numbers, spread = {"ece": mean, "gap": gap}, ""
        if len(each) > 1:
            numbers["sd"] = np.std(each, ddof=1)
            spread = f" (sd {100 * numbers['sd']:.2f})"
        found.say(
            f"- {report.labels[name]}: ECE {100 * mean:.2f}{spread}; mean confidence "
            f"{100 * abs(gap):.2f} points {'above' if gap > 0 else 'below'} accuracy.",
            "calibration", **numbers,
        )  # fmt: skip
    columns = ["variant", "low", "high", "count", "confidence", "accuracy"]
    found.frames["reliability"] = (
        pd.concat(bins)[columns] if bins else pd.DataFrame(columns=columns)
    )
    found.frames["calibration"] = pd.DataFrame(rows, columns=["variant", "seed", "ece"])
    if not rows:
        found.say(
            "Nothing is said of calibration here: it takes class scores, which these runs do not "
            "hold (a published report leaves them out).", "calibration"
        )  # fmt: skip


def alone(found: Analysis, report: Report, groups: list[list[str]]) -> None:
    """The frame `alone`: examples that every run of one variant gets and most others miss.

    Columns `variant, example` (index among the test examples), `missed` (share of the others),
    `label`, and `mistaken`, the most frequent error of the others; both are names of classes.
    """
    tables = []
    for names in groups:
        runs = _judged(report, names)
        if len(runs) < 2 or not all(classes(run) for each in runs.values() for run in each):
            continue
        right = {name: np.array([run.scores for run in each]) for name, each in runs.items()}
        answers = {name: np.array([run.predictions["predicted"] for run in each])
                   for name, each in runs.items()}  # fmt: skip
        table = statistics.disagreements(right)
        never = int((np.concatenate(list(right.values())) == 0).all(axis=0).sum())
        counts = {name: int((table["variant"] == name).sum()) for name in right}
        first = report.of(names[0])[0]
        truth, words = first.predictions["label"], classes(first)
        texts = ", ".join(f"{report.labels[name]} {count}" for name, count in counts.items())
        found.say(
            f"Of {len(truth):,} examples, {never} are missed by every run. Alone: {texts}.",
            "alone", examples=len(truth), never=never, alone=list(counts.values()),
        )  # fmt: skip
        table = table.groupby("variant", sort=False).head(max(SHOWN // len(runs), 1))
        mistaken = []
        for name, example in zip(table["variant"], table["example"], strict=True):
            others = np.concatenate([a[:, example] for k, a in answers.items() if k != name])
            wrong = others[others != truth[example]]
            mistaken.append(words[np.bincount(wrong).argmax()])
        label = [words[truth[example]] for example in table["example"]]
        tables.append(table.assign(label=label, mistaken=mistaken))
    columns = ["variant", "example", "missed", "label", "mistaken"]
    found.frames["alone"] = pd.concat(tables) if tables else pd.DataFrame(columns=columns)
