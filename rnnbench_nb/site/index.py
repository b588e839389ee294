"""The pages of a report: its executed notebooks, and the index that answers its question."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from rnnbench_nb import folders, statistics
from rnnbench_nb.files import SOURCES, write_file
from rnnbench_nb.results import Report, formatted, readable, summary
from rnnbench_nb.site.render import Page, fill, link_pages, render
from rnnbench_nb.statistics import Verdict

ANSWERS = 6  # most verdicts that an index states
FRONT = "front.html.j2"  # the words of a front page, beside published reports
FIGURE = "figures/test_comparison.svg"
FILES = ("results_summary.md", "results.csv", "history.csv", "history.parquet", "protocol.yaml")
WHERE = ("device", "machine", "processor", "versions", "commit")


def build(report: Path | str) -> Path:
    """Write `pages/*.html` and `index.html` of a report that `rnnbench run` made.

    The notebooks are those in `notebooks/` and `runs/<run>/02_train.ipynb`. Beside a notebook that
    failed lies an empty file of its name and `.failed`. Returns the path of `index.html`.

    Raises:
        UserError: A formula cannot be converted.
    """
    found = Report(report)
    notebooks = sorted(found.folder.glob("notebooks/*.ipynb"))
    notebooks += [run / "02_train.ipynb" for run in found.run_folders]
    return write(found, [render(path) for path in notebooks if path.is_file()])


def write(report: Report, pages: Sequence[Page]) -> Path:
    """Write the pages of a report and its index, whose path it returns; remove other pages of it.

    Raises:
        UserError: A file of a page's name is not the project's.
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
    folders.own(folder, html)
    for name, text in html.items():
        write_file(folder / name, text)
    old = {name for name in folders.listed(folder) if re.fullmatch(r"pages/[^/]+\.html", name)}
    folders.remove(folder, old - html.keys())
    return folder / "index.html"


def with_data(body: Markup, report: Report) -> Markup:
    """A page on which the caption of every figure says that other data stand in, if they do."""

    def caption(match: re.Match[str]) -> str:
        start = " " if match[1] else "<figcaption>"
        return f"{start}{Markup.escape(report.note)}.</figcaption></figure>"

    return Markup(re.sub("(</figcaption>)?</figure>", caption, body)) if report.stand_in else body


def summarise(report: Report) -> dict[str, Any]:
    """What an index states: question, verdicts, results, runs, machines and versions."""
    done = [run.record for run in report.runs]
    name, protocol = report.score.name, report.folder / "protocol.yaml"
    shown = report.results.assign(variant=report.results["variant"].map(report.labels))
    runs = shown[["variant", "seed", "status", name, "best_epoch", "epochs", "seconds"]]
    runs = runs.assign(**{name: report.score.scale * runs[name].astype(float)})
    where = {key: {str(run[key]): None for run in done if run.get(key)} for key in WHERE}
    lengths = " or ".join(map(str, sorted({run["data"]["steps"] for run in done})))
    return {
        **protocol_comment(report.name),
        "answers": verdicts(report) if done else [],
        "results": table(formatted(summary(shown), report.metrics)) if done else "",
        "runs": table(runs.rename(columns=readable)),
        "figure": FIGURE if done and (report.folder / FIGURE).is_file() else "",
        "data": {**done[0]["data"], "steps": lengths} if done else {},
        "where": {key: " / ".join(texts) for key, texts in where.items()},
        "finished": max((run["finished"][:10] for run in done), default=""),
        "protocol": protocol.read_text(encoding="utf-8") if protocol.is_file() else "",
        "files": [name for name in FILES if (report.folder / name).is_file()],
    }


def table(frame: pd.DataFrame) -> Markup:
    """A frame as a table of a page."""
    options: dict[str, Any] = {"index": False, "border": 0, "na_rep": ""}
    html = frame.to_html(**options, float_format="{:.4g}".format)
    return Markup(f'<div class="table" tabindex="0">{html}</div>')


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


def protocol_comment(name: str) -> dict[str, str]:
    """The `question` at the top of params/NAME.yaml, and the rest of that `comment`."""
    path = SOURCES / f"params/{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    comment = " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), lines))
    question, mark, rest = comment.partition("?")
    if not mark:
        return {"question": f"The report {name}", "comment": comment}
    return {"question": question + mark, "comment": rest.strip()}
