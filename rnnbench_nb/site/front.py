"""The front page over published reports: the answer, the evidence, and how to make it again."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from rnnbench_nb import folders
from rnnbench_nb.analyses import load, published
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.parameters import Frozen, parse_yaml, read_yaml, validate
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report, formatted, summary
from rnnbench_nb.site import drawing
from rnnbench_nb.site import render as site


class Words(Frozen):
    """front.yaml, which lies beside the reports: what no run can change.

    Attributes:
        title: Of the front page.
        about: What it is about, in Markdown.
        pair: Two cells: differences are the first minus the second.
        order: Reports in reading order; others follow.
        names: Protocols in words, by report.
        questions: A reader's questions, each with the address of its answer.
        first: Reports whose comparisons open the answer, each with the words before them.
        fair: What is to be said of the comparison, in Markdown.
        growth: Reports that say here what makes states and gradients grow.
        apart: Parameter files that ask no question of their own, such as searches; a published one
            is told here in words alone.
    """

    title: str
    about: str = ""
    pair: Annotated[list[str], Field(min_length=2, max_length=2)]
    order: list[str] = []
    names: dict[str, str] = {}
    questions: dict[str, str] = {}
    first: dict[str, str] = {}
    fair: str = ""
    growth: list[str] = []
    apart: list[str] = []


def build(folder: Path) -> Path:
    """Write index.html of a folder of published reports, and return its path; see `render`.

    The page of drawn digits is written beside it, where its script is (`drawing`).
    """
    page = render(folder)
    folders.own(folder, {"index.html", drawing.PAGE})
    drawing.build(folder)
    write_file(folder / "index.html", page)
    return folder / "index.html"


def render(folder: Path) -> str:
    """The front page of a folder of published reports.

    Args:
        folder: Holds them and front.yaml (`Words`).

    Raises:
        UserError: There is no report or no front.yaml, or that is wrong.
    """
    words = words_of(folder)
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/protocol.yaml"))}
    order = dict.fromkeys([name for name in words.order if name in found] + list(found))
    every = [Report(found[name]) for name in order]
    if reasons := [reason for report in every for reason in report.damaged]:
        raise UserError(reasons[0])  # or the page would say less than is known
    reports = [report for report in every if report.runs]
    if not reports:
        raise UserError(f"{folder} holds no report with a finished run; publish one first.")
    findings, rows = published.across(reports, words.pair, words.names)
    records = [run.record for report in reports for run in report.runs]
    trained = {(each.get("started"), each["seed"], each["seconds"]) for each in records}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    values = {
        "words": words,
        "pair": [CELLS[name].label for name in words.pair],
        "equation": CELLS[words.pair[0]].equation,
        "answers": [*opening(reports, words), *(finding.text for finding in findings)],
        "trainings": len(trained),
        "strips": [drawn(alike) for alike in together(rows)],
        "chain": [entry(report, words) for report in reports],
        "sizes": sizes(reports[0]),
        "training": reports[0].protocol.values,
        "growth": growth([folder / name for name in words.growth]),
        "open": open_questions({*order, *words.apart}),
        "urls": project.get("urls", {}),
        "cite": parse_yaml((PROJECT / "CITATION.cff").read_text(encoding="utf-8"), "CITATION.cff"),
        "draw": drawing.PAGE if (folder / drawing.SCRIPT).exists() else "",
        "page": None,
        "root": "",
    }
    return site.ENVIRONMENT.get_template("front.html.j2").render(values)


def opening(reports: Iterable[Report], words: Words) -> list[str]:
    """The comparisons of the reports that `words.first` names, a paragraph each."""
    found = {report.folder.name: report for report in reports}
    return [
        f"{lead}: " + "; ".join(f"{row['label']} {published.interval(row)}: {row['words']}"
                                for row in published.compared(found[name])) + "."
        for name, lead in words.first.items() if name in found
    ]  # fmt: skip


def words_of(folder: Path) -> Words:
    """The words of a folder's front page.

    Raises:
        UserError: front.yaml is missing or wrong.
    """
    path = folder / "front.yaml"
    if not path.exists():
        raise UserError(f"{path} is not there, so there is no front page; write it.")
    words = validate(Words, read_yaml(path, "write its words again"), str(path))
    for name in words.pair:
        lookup(CELLS, f"{path}: pair", name)
    return words


def question(name: str) -> str:
    """What a protocol asks: the first question in the comment that opens its file in params/."""
    asked = re.match(r"[^?]*\?", site.comment(name))
    return asked[0] if asked else name.replace("_", " ")


def open_questions(answered: Iterable[str]) -> list[tuple[str, str]]:
    """Name and question of the protocols in params/ that no published report answers."""
    names = [path.stem for path in sorted((PROJECT / "params").glob("*.yaml"))]
    return [(name, question(name)) for name in names if name not in answered]


def entry(report: Report, words: Words) -> dict[str, Any]:
    """A report in the chain of evidence."""
    texts, rows = published.evidence(report)
    records = [run.record for run in report.runs]
    seconds = sum(record["seconds"] for record in records)
    name = report.folder.name
    groups: dict[str, list[dict]] = {}
    known = [row for row in rows if row["family_low"] == row["family_low"]]  # not of one seed
    for row in drawn([] if name in words.apart else known):
        anchor = f"#{name}-{row['group'].replace(' ', '-')}"
        if not row["group"] or anchor in words.questions.values():  # the others are on its page
            groups.setdefault(row["group"], []).append(row)
    if groups:  # whose table has the verdicts
        texts = [text for text in texts if not text.startswith("- **")]
    return {
        "name": name,
        "question": question(name),
        "where": words.names.get(name, name.replace("_", " ")),
        "texts": "\n\n".join([*texts, *report.devices_sentences()]),
        "groups": groups,
        "pages": pages(report.folder),
        "runs": len(records),
        "hours": seconds / 3600,
        "machine": " / ".join(dict.fromkeys(str(r.get("machine", "unknown")) for r in records)),
        "commits": list(dict.fromkeys(site.short(r.get("commit", "unknown")) for r in records)),
        "finished": max(record.get("finished", "")[:10] for record in records),
        "command": command(report),
    }


def command(report: Report) -> str:
    """What makes a report again; empty where its protocol is not in params/."""
    path = PROJECT / f"params/{report.folder.name}.yaml"
    if not path.exists():
        return ""
    asked, made, words = load_protocol(path), report.protocol, [f"rnnbench run params/{path.name}"]
    words += [f"--runs {made.runs}"] * (made.runs != asked.runs)
    words += [f"--models {','.join(made.models)}"] * (made.models != asked.models)
    return " ".join(words)


def pages(folder: Path) -> dict[str, str]:
    """Label and address of the pages of a report, training runs aside."""
    found = sorted(path.stem for path in folder.glob("pages/*.html"))
    every = [site.Page(name, "", "", False) for name in found]
    return {page.label: f"{folder.name}/pages/{page.name}.html" for page in every if not page.run}


def growth(folders: Iterable[Path]) -> dict[str, list[str]]:
    """What makes states and gradients grow, by report, where it was saved with the weights.

    What the words for it mean is said once, in the first of them.
    """
    places = {folder.name: folder / "analyses/eigenvalues" for folder in folders}
    found = {name: load(place) for name, place in places.items()
             if (place / "findings.json").exists()}  # fmt: skip
    words = [analysis.texts("words") for analysis in found.values()][:1]
    told = zip([*words, *[[]] * len(found)], found.items(), strict=False)
    return {name: [*first, *analysis.texts("growth")] for first, (name, analysis) in told}


def sizes(report: Report) -> list[dict[str, str]]:
    """Label, parameters and free parameters of each variant as text."""
    table = formatted(summary(report.results), report.task)
    table["variant"] = table["variant"].map(report.labels)
    return table[["variant", "parameters", "free parameters"]].to_dict("records")


def together(rows: Iterable[Mapping]) -> list[list[Mapping]]:
    """Rows of comparisons that one strip can show: of one score, short sequences before long."""
    groups: dict[tuple[bool, str], list[Mapping]] = {}
    for row in rows:
        groups.setdefault((row["long"], row["score"].name), []).append(row)
    return [groups[key] for key in sorted(groups)]


def drawn(rows: list[Mapping]) -> list[dict]:
    """Rows of comparisons with what a strip needs: places in per cent of its width, and texts."""
    if not rows:
        return []
    ends = ("family_low", "family_high", "margin")
    spans = [abs(x) for row in rows for x in (*map(row.get, ends), *row["dots"])]
    reach = 1.05 * pd.Series(spans).max()
    margin = max(row["margin"] for row in rows)

    def place(value: float, digits: int | None = 1) -> float:
        return round(50 + 50 * value / reach, digits)

    found = []
    for row in rows:
        low, high = row["family_low"], row["family_high"]
        known = low == low
        shown = {"difference": row["difference"], "low": low, "high": high}
        texts = {k: published.signed(x, row["score"]) for k, x in shown.items() if x == x}
        found.append({
            **row, "text": texts, "known": known,
            "mean_at": place(row["difference"]),
            "dots_at": [place(dot, None) for dot in row["dots"]],
            "margin_width": round(100 * margin / reach, 1),
            "interval_at": (place(low), place(high)) if known else None,
        })  # fmt: skip
    return found
