"""The pages of a report: its executed notebooks, and an index that answers its question."""

import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from rnnbench_nb import folders, statistics
from rnnbench_nb.choices import Choice, choices
from rnnbench_nb.files import PROJECT, SOURCES, write_file
from rnnbench_nb.results import Report, format_summary, readable, summary
from rnnbench_nb.site.render import Page, fill, link_pages, render
from rnnbench_nb.statistics import Verdict

ANSWERS = 6  # most verdicts on an index
FRONT = "front.html.j2"  # the template of a front page, beside the published reports
FIGURE = "figures/test_comparison.svg"
FILES = ("results_summary.md", "results.csv", "history.csv", "history.parquet", "protocol.yaml")
WHERE = ("device", "machine", "processor", "versions", "commit")


def build(report: Report) -> Path:
    """Write `pages/*.html` and `index.html` of a report that `rnnbench run` made.

    The notebooks are those in `notebooks/` and `runs/<run>/02_train.ipynb`. A notebook that failed
    has an empty file beside it with its name and `.failed`. Returns the path of `index.html`.

    Raises:
        UserError: A formula cannot be converted.
    """
    notebooks = sorted(report.folder.glob("notebooks/*.ipynb"))
    notebooks += [run / "02_train.ipynb" for run in report.run_folders]
    return write(report, [render(path) for path in notebooks if path.is_file()])


def write(report: Report, pages: Sequence[Page]) -> Path:
    """Write the pages and the index of a report, remove its other pages; return the index's path.

    Raises:
        UserError: A file with the name of a page exists and is the user's.
    """
    folder, names = report.folder, {page.name for page in pages}
    front = report.published and (folder.parent / FRONT).exists()
    shared = {"report": report, "pages": pages, "front": front}
    html = {}
    for page in pages:
        body = link_pages(page.body, names)
        values = {"page": page, "body": with_data(body, report), "root": "../"}
        html[f"pages/{page.name}.html"] = fill("page.html.j2", **shared, **values)
    text = fill("index.html.j2", **shared, **summarise(report), page=None, root="")
    html["index.html"] = with_data(Markup(text), report)
    folders.register(folder, html)
    for name, text in html.items():
        write_file(folder / name, text)
    old = {name for name in folders.file_list(folder) if re.fullmatch(r"pages/[^/]+\.html", name)}
    folders.remove(folder, old - html.keys())
    return folder / "index.html"


def with_data(body: Markup, report: Report) -> Markup:
    """Add to every figure's caption that other data stand in, if they do."""

    def caption(match: re.Match[str]) -> str:
        start = " " if match[1] else "<figcaption>"
        return f"{start}{Markup.escape(report.note)}.</figcaption></figure>"

    return Markup(re.sub("(</figcaption>)?</figure>", caption, body)) if report.stand_in else body


def summarise(report: Report) -> dict[str, Any]:
    """Return what the index shows: question, verdicts, results, runs, machines and versions."""
    done, tested = [run.record for run in report.runs], report.tested
    folder, others = report.folder.resolve(), PROJECT / "reports/published/index.html"
    name, protocol = report.score.name, report.folder / "protocol.yaml"
    rows, tests = (
        each.results.assign(variant=each.results["variant"].map(labels))
        for each, labels in ((report, report.labels), (tested, tested.full_labels))
    )
    search = choices(report) if done else []
    tried = {variant for choice in search for variant in choice.table.index}
    judged = tested.runs and not tried >= tested.variants.keys()  # in an old search all were tested
    runs = rows[["variant", "seed", "status", name, "best_epoch", "epochs", "seconds"]]
    shown = report.score.scale * runs[name].astype(float)
    runs = runs.assign(**{name: shown.mask(report.results["variant"].isin(tried))})
    where = {key: {str(run[key]): None for run in done if run.get(key)} for key in WHERE}
    sizes = tests.groupby("variant")["free_parameters"].first().dropna()
    lengths = " or ".join(map(str, sorted({run["data"]["steps"] for run in done})))
    return {
        **protocol_comment(report.name),
        "answers": (verdicts(tested) if judged else []) + settings(report, search, not judged),
        "declared": judged and statistics.declared(tested),
        "search": search,
        "sizes": sizes.sort_values() if judged else sizes[:0],
        "few": not (report.published or statistics.has_enough_seeds(tested)),
        "others": os.path.relpath(others, folder) if folder.is_relative_to(PROJECT) else "",
        "results": table(format_summary(summary(tests), report.metrics)) if judged else "",
        "runs": table(runs.rename(columns=readable)),
        "figure": FIGURE if judged and (report.folder / FIGURE).is_file() else "",
        "data": (tested.runs or report.runs)[0].record["data"] | {"steps": lengths} if done else {},
        "where": {key: " / ".join(texts) for key, texts in where.items()},
        "unprobed": sum(not run.get("probe") for run in done),
        "finished": max((run["finished"][:10] for run in done), default=""),
        "protocol": protocol.read_text(encoding="utf-8") if protocol.is_file() else "",
        "files": [name for name in FILES if (report.folder / name).is_file()],
    }


def table(frame: pd.DataFrame) -> Markup:
    """Return a frame as an HTML table."""
    options: dict[str, Any] = {"index": False, "border": 0, "na_rep": ""}
    html = frame.to_html(**options, float_format="{:.4g}".format)
    return Markup(f'<div class="table" tabindex="0">{html}</div>')


def verdicts(report: Report) -> list[str]:
    """Return the verdicts on pairs of variants as sentences, and the number of those left out."""
    rows = statistics.comparison(report).to_dict("records")
    decisions = [row for row in rows if row["verdict"] != Verdict.NONE]
    decisions.sort(key=lambda row: row["verdict"] == Verdict.UNDECIDED)
    if len(rows) > ANSWERS and not decisions:
        return [f"There is no verdict on any of {len(rows)} pairs: {rows[0]['reason']}."]
    top = (decisions or rows)[:ANSWERS]
    labels = report.full_labels
    sentences = [statistics.sentence(row, labels, report.score) for row in top]
    others = len(rows) - len(top)
    return sentences + [f"{others} more comparisons are on the page Compare."] * (others > 0)


def settings(report: Report, search: Sequence[Choice], whole: bool) -> list[str]:
    """Return what a search chose, or if not `whole` only which choices lie at an edge."""
    if whole:
        return [choice.sentence(report.score) for choice in search]
    edges = [f"{choice.label} ({', '.join(choice.edges)})" for choice in search if choice.edges]
    return [f"Chosen at the edge of the values tried: {'; '.join(edges)}."] * bool(edges)


def protocol_text(name: str) -> str:
    """Return the text of params/NAME.yaml, or "" if there is no such file."""
    path = SOURCES / f"params/{name}.yaml"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def protocol_comment(name: str) -> dict[str, str]:
    """Return the comment at the top of params/NAME.yaml: its `question`, and the rest as Markdown.

    A line `#` parts paragraphs, and the first line without `#` ends the comment.
    """
    lines = protocol_text(name).splitlines()
    comment = "\n".join(line[2:] for line in takewhile(lambda line: line.startswith("#"), lines))
    question, mark, rest = comment.partition("?")
    if not mark:
        return {"question": f"The report {name}", "comment": comment}
    return {"question": " ".join(question.split()) + mark, "comment": rest.strip()}
