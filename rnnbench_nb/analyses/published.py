"""What published reports say together, on their front page; each row is a comparison."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import pandas as pd

from rnnbench_nb import statistics
from rnnbench_nb.analyses import PAGES, Analysis, Finding, load
from rnnbench_nb.analyses.comparison import PAIRS, test_sets
from rnnbench_nb.cells import CELLS
from rnnbench_nb.metrics import Score
from rnnbench_nb.report import Report


def saved(name: str, report: Report) -> Analysis:
    """The analysis of a report as it was saved, with whatever options; or made, if it was not."""
    folder = report.folder / "analyses" / name
    if (folder / "findings.json").exists():
        return load(folder)
    return import_module(f"rnnbench_nb.analyses.{name}").analyse(report)


def across(
    reports: Iterable[Report], pair: Sequence[str], names: Mapping[str, str]
) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Compare two cells wherever a report tested one variant of each alike.

    Args:
        reports: With finished runs.
        pair: Names of two cells: differences are the first minus the second.
        names: Protocols in words, by report; another is named by its folder.

    Returns:
        One finding for each verdict, and the rows (`compared`), their `label` being the protocol,
        and `long` whether its sequences are. Of two that compare the same settings the one with
        more seeds speaks.
    """
    by_settings, kinds = {}, {}
    first, second = (CELLS[name].label for name in pair)
    for report in reports:
        if not set(pair) <= {own.model for own in report.variants.values()}:
            continue
        tests = test_sets(report)
        alone = [
            ours
            for tested in tests
            for ours in [[n for n in tested if report.variants[n].model in pair]]
            if sorted(report.variants[n].model for n in ours) == sorted(pair)
        ]
        for row in compared(report):
            if sorted([row["a"], row["b"]]) in map(sorted, alone):
                row = row if report.variants[row["a"]].model == pair[0] else flipped(row)
                name = report.folder.name
                where = names.get(name, name.replace("_", " "))
                both = [report.labels[row[side]] for side in "ab"]
                several = f": {' − '.join(both)}" if len(tests) > 1 else ""
                row |= {"report": name, "label": where + several}
                row |= {"long": PAGES["08_memory"](report.protocol)}
                settings = str([report.variants[row[side]].flat() | {"variant": None, "seed": 0}
                                for side in "ab"])  # fmt: skip
                if row["n"] > by_settings.get(settings, {"n": 0})["n"]:
                    by_settings[settings] = row
    rows = list(by_settings.values())
    for row in rows:
        kind, comma, less = row["verdict"].partition(",")
        better = {"better": f"{first} is better than {second}",
                  "worse": f"{second} is better than {first}"}  # fmt: skip
        kind = better.get(kind, f"{first} and {second} are {kind}") + comma + less
        kinds.setdefault(kind, []).append(row)
    found = []
    for kind, alike in kinds.items():
        parts = [f"{row['label']} ({first} minus {second} {interval(row)})" for row in alike]
        numbers = {row["label"]: [row["difference"], row["family_low"], row["family_high"]]
                   for row in alike}  # fmt: skip
        found.append(Finding(f"**{kind}**: {'; '.join(parts)}.", numbers))
    return found, rows


def evidence(report: Report) -> tuple[list[str], list[dict[str, Any]]]:
    """What one report says: sentences in Markdown, and the rows behind them.

    Of an ablation what each change does on the validation examples; of one variant what its
    spectrum says, where that was saved; of others how they compare on the test examples, and first,
    of long sequences, who keeps what over how many steps, and of published settings, whether they
    give the published figures.
    """
    if PAGES["06_ablation"](report.protocol) and len(report.variants) > PAIRS:
        found = saved("ablation", report)
        return found.texts("recommendation") + found.texts("highest"), changed(report)
    if len(report.variants) == 1 and (report.folder / "analyses/eigenvalues").exists():
        return saved("eigenvalues", report).texts("answer"), []
    kept = report.folder / "analyses/memory"
    texts = load(kept).texts("answer") if kept.exists() else []
    found = saved("comparison", report)
    texts += [text for topic in ("reproduced", "answer", "verdicts") for text in found.texts(topic)]
    return texts, compared(report)


def compared(report: Report) -> list[dict[str, Any]]:
    """The comparisons of a report.

    Returns:
        The rows of `statistics.compare` that have seeds, with `label`, `words` (the verdict),
        `group` (""), `dots` (the difference in each common seed) and `score`.
    """
    rows, labels = saved("comparison", report)["comparison"].query("n > 0"), report.labels
    named = [(f"{labels[row['a']]} − {labels[row['b']]}", statistics.verdict_text(row, labels), "")
             for row in rows.to_dict("records")]  # fmt: skip
    return _rows(rows, named, report.results, report.task.score)


def changed(report: Report) -> list[dict[str, Any]]:
    """The effects of an ablation, as `compared`; `group` is the keys that are changed."""
    found = saved("ablation", report)
    rows = found["effects"].query("n > 0")
    named = list(zip(rows["change"], rows["verdict"], rows["keys"], strict=True))
    return _rows(rows, named, found["scores"], report.task.score)


def _rows(
    table: pd.DataFrame, named: list[tuple[str, str, str]], results: pd.DataFrame, score: Score
) -> list[dict[str, Any]]:
    by_seed = results.pivot(index="seed", columns="variant", values=score.name)
    found = []
    for row, (label, words, group) in zip(table.to_dict("records"), named, strict=True):
        dots = (by_seed[row["a"]] - by_seed[row["b"]]).dropna().tolist()
        found.append({**row, "label": label, "words": words, "group": group, "dots": dots})
        found[-1]["score"] = score
    return found


def flipped(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `compared` as the second minus the first."""
    turned = {**row, "a": row["b"], "b": row["a"], "difference": -row["difference"]}
    turned["dots"] = [-dot for dot in row["dots"]]
    for kind in ("", "family_"):
        turned[f"{kind}low"], turned[f"{kind}high"] = -row[f"{kind}high"], -row[f"{kind}low"]
    kind, comma, less = row["verdict"].partition(",")
    other = {"better": "worse", "worse": "better"}.get(kind, kind)
    return turned | {"verdict": other + comma + less}


def signed(value: float, score: Score) -> str:
    """A difference as people read it, with a real minus sign."""
    return statistics.shown(value, score, "+").replace("-", "−")


def interval(row: Mapping[str, Any]) -> str:
    """`+0.14 points, 95% interval +0.02 to +0.27, 10 seeds`; the interval is that which decides."""
    score, low, high = row["score"], row["family_low"], row["family_high"]
    known = f", {100 * row['level']:g}% interval {signed(low, score)} to {signed(high, score)}"
    return (
        f"{signed(row['difference'], score)} {score.difference}".rstrip()
        + f"{known if low == low else ''}, "
        f"{row['n']} seed{'s' * (row['n'] > 1)}"
    )
