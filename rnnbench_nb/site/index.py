"""The pages of a report: its executed notebooks, and the index that answers its question."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rnnbench_nb import folders, statistics
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.results import COMPLETED, Report, formatted, summary
from rnnbench_nb.site.render import Page, fill, link_pages, render
from rnnbench_nb.statistics import Verdict

PAGE_LIMIT = 3_000_000  # bytes: a page that a phone on a slow line still opens
PUBLISHED_LIMIT = 600_000  # bytes of a page that is committed
ANSWERS = 6  # most verdicts that an index states
FRONT = "front.html.j2"  # the words of a front page, beside published reports
FIGURE = "figures/test_comparison.svg"
FILES = ("results_summary.md", "results.csv", "history.csv", "history.parquet", "protocol.yaml")
WHERE = ("device", "machine", "processor", "versions", "commit")


def build(report: Path | str) -> Path:
    """Write `pages/*.html` and `index.html` of a report that `rnnbench run` made.

    The notebooks are those in `notebooks/` and `runs/<run>/02_train.ipynb`. Beside a notebook that
    failed lies an empty file of its name and `.failed`.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: A formula cannot be converted, or a page is too big.
    """
    found = Report(report)
    notebooks = sorted(found.folder.glob("notebooks/*.ipynb"))
    notebooks += [run / "02_train.ipynb" for run in found.run_folders]
    return write(found, [render(path) for path in notebooks if path.is_file()])


def write(report: Report, pages: Sequence[Page]) -> Path:
    """Write the pages of a report, in order, and its index; remove pages that it no longer has.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: A page is too big, or a file of a page's name is not the project's.
    """
    folder, names = report.folder, {page.name for page in pages}
    front = report.published and (folder.parent / FRONT).exists()
    limit = PUBLISHED_LIMIT if report.published else PAGE_LIMIT
    shared = {"report": report, "pages": pages, "front": front}
    html = {}
    for page in pages:
        values = {"page": page, "body": link_pages(page.body, names), "root": "../"}
        html[f"pages/{page.name}.html"] = fill("page.html.j2", **shared, **values)
    html["index.html"] = fill("index.html.j2", **shared, **summarise(report), page=None, root="")
    for name, text in html.items():
        if len(text.encode()) > limit:
            raise UserError(
                f"{name} would be {len(text.encode()) / 1e6:.1f} MB; keep the notebook's outputs "
                f"under {limit / 1e6:.2g} MB with fewer or smaller figures."
            )
    folders.own(folder, html)
    for name, text in html.items():
        write_file(folder / name, text)
    old = {name for name in folders.listed(folder) if re.fullmatch(r"pages/[^/]+\.html", name)}
    folders.remove(folder, old - html.keys())
    return folder / "index.html"


def summarise(report: Report) -> dict[str, Any]:
    """What an index states: question, verdicts, results, runs, machines and versions."""
    done = [record for record in report.records if record["status"] == COMPLETED]
    question, comment = protocol_comment(report.name)
    shown = report.results.assign(variant=report.results["variant"].map(report.labels))
    protocol = report.folder / "protocol.yaml"
    where = {key: dict.fromkeys(_text(run[key]) for run in done if run.get(key)) for key in WHERE}
    return {
        "question": question or f"The report {report.name}",
        "comment": comment,
        "answers": verdicts(report) if done else [],
        "results": formatted(summary(shown), report.metrics) if done else None,
        "figure": FIGURE if done and (report.folder / FIGURE).is_file() else "",
        "data": done[0]["data"] if done else {},
        "done": done,
        "notes": notes(report),
        "where": {key: " / ".join(texts) for key, texts in where.items()},
        "finished": max((run["finished"][:10] for run in done), default=""),
        "protocol": protocol.read_text(encoding="utf-8") if protocol.is_file() else "",
        "files": [name for name in FILES if (report.folder / name).is_file()],
    }


def verdicts(report: Report) -> list[str]:
    """The verdicts on pairs of variants as sentences, and a sentence on what is left out."""
    rows = statistics.comparison(report).to_dict("records")
    judged = [row for row in rows if row["verdict"] != Verdict.NONE]
    if len(rows) > ANSWERS and not judged:
        return [f"No verdict on any of {len(rows)} pairs: {rows[0]['reason']}."]
    stated = (judged or rows)[:ANSWERS]
    sentences = [statistics.sentence(row, report.labels, report.score) for row in stated]
    others = len(rows) - len(stated)
    return sentences + [f"{others} more comparisons are on the page Compare."] * (others > 0)


def notes(report: Report) -> list[str]:
    """Sentences on runs whose device or code is not that of the others."""
    ran: dict[str, dict[str, None]] = {}
    for run in report.runs:
        ran.setdefault(str(run.record["device"]).upper(), {})[report.labels[run.key[0]]] = None
    sentences = []
    if len({frozenset(labels) for labels in ran.values()}) > 1:
        parts = "; ".join(f"{', '.join(labels)} on {device}" for device, labels in ran.items())
        sentences = [f"The variants ran on different devices, whose rounding differs: {parts}."]
    unknown = sum(run.record.get("probe") is None for run in report.runs)
    if unknown:
        sentences.append(
            f"{unknown} of {len(report.runs)} runs have no record of what their code computes; "
            "rnnbench verify --retrain 1 trains their first epoch again and compares."
        )
    return sentences


def protocol_comment(name: str) -> tuple[str, str]:
    """The question at the top of params/NAME.yaml, and the rest of that comment."""
    path = PROJECT / f"params/{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    comment = " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), lines))
    question, mark, reasons = comment.partition("?")
    return (question + mark, reasons.strip()) if mark else ("", comment)


def _text(value: Any) -> str:
    """A value of a record as people write it, such as `python 3.11.4, torch 2.9.0`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
