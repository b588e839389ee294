"""The pages of a report: its executed notebooks, and the index that answers its question."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rnnbench_nb import folders, statistics
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.results import COMPLETED, Report, formatted, summary
from rnnbench_nb.site.render import ENVIRONMENT, Page, link_pages, render, typeset
from rnnbench_nb.statistics import Verdict

RUN_PAGES = 100  # a report of more runs has training pages of its first seed and of failed runs
PAGE_LIMIT = 3_000_000  # bytes: a page that a phone on a slow line still opens
ANSWERS = 6  # most verdicts that an index states
FIGURE = "figures/test_comparison.svg"
FILES = ("results_summary.md", "results.csv", "history.csv", "history.parquet", "protocol.yaml")
WHERE = ("device", "machine", "processor", "versions", "commit", "finished")


def build(report: Path | str, limit: int = PAGE_LIMIT) -> Path:
    """Write `pages/*.html` and `index.html` of a report that `rnnbench run` made.

    The notebooks are those in `notebooks/` and `runs/<run>/02_train.ipynb`. Beside a notebook that
    failed lies an empty file of its name and `.failed`.

    Args:
        report: The report's folder.
        limit: The most bytes of a page.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: A formula cannot be converted, or a page is too big.
    """
    found = Report(report)
    notebooks = [*sorted(found.folder.glob("notebooks/*.ipynb")), *_training_notebooks(found)]
    pages = {render(path): path for path in notebooks}
    links = {page.name: p.relative_to(found.folder).as_posix() for page, p in pages.items()}
    return write(found, list(pages), links, limit=limit)


def _training_notebooks(report: Report) -> list[Path]:
    """The executed training notebooks that have a page: of many runs some."""
    notebooks = [run / "02_train.ipynb" for run in report.run_folders]
    if len(notebooks) > RUN_PAGES:
        first = {report.seeds[name][0] for name in report.variants}
        notebooks = [
            path
            for path in notebooks
            if int(path.parent.name.rpartition("-seed")[2]) in first
            or path.with_name(f"{path.name}.failed").is_file()
        ]
    return [path for path in notebooks if path.is_file()]


def write(
    report: Report,
    pages: Sequence[Page],
    links: Mapping[str, str],
    front: bool = False,
    limit: int = PAGE_LIMIT,
) -> Path:
    """Write the pages of a report and its index, and remove pages that it no longer has.

    Args:
        report: The report.
        pages: Its pages, in order.
        links: The path of a page's notebook from the report's folder, by page name.
        front: Whether a front page over several reports lies in the folder above.
        limit: The most bytes of a page.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: A page is too big, or a file of a page's name is not the project's.
    """
    folder, names = report.folder, {page.name for page in pages}
    shared = {"report": report, "pages": pages, "front": front, "repository": repository()}
    html = {}
    for before, page, after in zip([None, *pages], pages, [*pages[1:], None], strict=False):
        values = {"page": page, "before": before, "after": after, "root": "../"}
        values |= {"body": link_pages(page.body, names), "notebook": links.get(page.name, "")}
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


def fill(template: str, **values: Any) -> str:
    """Fill a template, and set the signs of its text."""
    return typeset(ENVIRONMENT.get_template(template).render(values))


def repository() -> str:
    """The address of the project's repository; empty where pyproject.toml names none."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def summarise(report: Report) -> dict[str, Any]:
    """What an index states: question, verdicts, results, runs, machines and versions."""
    done = [record for record in report.records if record["status"] == COMPLETED]
    comment = protocol_comment(report.name)
    question = re.match(r"[^?]*\?", comment)
    shown = report.results.assign(variant=report.results["variant"].map(report.labels))
    protocol = report.folder / "protocol.yaml"
    where = {key: dict.fromkeys(_text(run[key]) for run in done if key in run) for key in WHERE}
    answers, more = verdicts(report) if done else ([], "")
    return {
        "question": question[0] if question else f"The report {report.name}",
        "comment": comment[question.end() :].strip() if question else comment,
        "answers": answers,
        "more": more,
        "results": formatted(summary(shown), report.metrics) if done else None,
        "figure": FIGURE if done and (report.folder / FIGURE).is_file() else "",
        "data": next((run["data"] for run in done if "data" in run), {}),
        "done": done,
        "notes": notes(report),
        "where": {key: " / ".join(texts) for key, texts in where.items()}
        | {"finished": max((run.get("finished", "")[:10] for run in done), default="")},
        "protocol": protocol.read_text(encoding="utf-8") if protocol.is_file() else "",
        "files": [name for name in FILES if (report.folder / name).is_file()],
    }


def verdicts(report: Report) -> tuple[list[str], str]:
    """The verdicts on pairs of variants as sentences, and a sentence on what is left out."""
    rows = statistics.comparison(report).to_dict("records")
    judged = [row for row in rows if row["verdict"] != Verdict.NONE]
    stated = (judged or rows)[:ANSWERS]
    sentences = [statistics.sentence(row, report.labels, report.score) for row in stated]
    if len(rows) > ANSWERS and not judged:
        return [f"No verdict on any of {len(rows)} pairs: {rows[0]['reason']}."], ""
    others = len(rows) - len(stated)
    return sentences, f"{others} more comparisons are on the page Compare." if others else ""


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


def protocol_comment(name: str) -> str:
    """The comment at the top of params/NAME.yaml: a question, and the reasons for the settings."""
    path = PROJECT / f"params/{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), lines))


def _text(value: Any) -> str:
    """A value of a record as people write it, such as `python 3.11.4, torch 2.9.0`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
