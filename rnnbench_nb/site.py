"""The pages of a report: executed notebooks as HTML, and the index that ties them together.

Pages need no network and no script: styles are inlined, formulas become MathML here.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathBlockParser
from traitlets.config import Config

from rnnbench_nb.config import Protocol, load_protocol
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.results import (
    COMPLETED,
    MISSING,
    RESULT_COLUMNS,
    formatted,
    load_run,
    read_csv,
    result_row,
    summary,
)

TEMPLATES = Path(__file__).parent / "templates"
FORMATS = [  # of an output, best first: no scripts and no widgets
    "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg",
    "text/plain",
]  # fmt: skip
PAGE_LIMIT = 3_000_000  # bytes: what a phone on a slow line still opens
MODEL_NAMES = {"lstm": "LSTM", "gru": "GRU", "agru": "A-GRU"}
DATASET_NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "digits": "the 8 × 8 digits of scikit-learn",
}
FIGURES = {
    "test_comparison": "Test accuracy of every run, by variant",
    "accuracy_curves": "Accuracy by epoch on the training and validation images, by variant",
    "training_curves": "Loss by epoch on the training and validation images, by variant",
}
FILES = ["results_summary.md", "results.csv", "history.csv", "protocol.yaml"]


class Page(NamedTuple):
    """One executed notebook: its file name without ending, its heading, its body as HTML."""

    name: str
    title: str
    body: Markup
    stopped: bool  # with an error, or before its last cell

    @property
    def run(self) -> str:
        """The run that a training page shows; empty for the other notebooks."""
        return self.name.partition("02_train-")[2]

    @property
    def label(self) -> str:
        """The name in the bar of links: `03_compare` is `Compare`."""
        return self.run or self.name.partition("_")[2].replace("_", " ").capitalize() or self.name


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as MathML; `display` is "inline" or "block".

    Raises:
        UserError: The formula is not wholly understood.
    """
    # latex2mathml aligns in align* only, and numbers align, which JupyterLab does not
    known = re.sub(r"\\(begin|end)\{(aligned|align|split)\}", r"\\\1{align*}", latex)
    try:
        markup = convert(known, display=display)
    except Exception as error:  # the converter raises a dozen unrelated types
        raise UserError(f"the formula {latex.strip()!r} is not valid LaTeX; correct it.") from error
    bare = known.replace(r"\{", "").replace(r"\}", "")
    misread = "\\" in markup or "<mi>&</mi>" in markup or 'linebreak="newline"' in markup
    if misread or bare.count("{") != bare.count("}"):
        raise UserError(
            f"the formula {latex.strip()!r} has a command, an environment or a brace that "
            "latex2mathml cannot read; write it with simpler LaTeX."
        )
    return markup


class _MathBlocks(MathBlockParser):
    """Display formulas begin a line, so that a code span such as `$$x$$` stays code."""

    SPECIFICATION = {
        **MathBlockParser.SPECIFICATION,
        "multiline_math": rf"^ {{0,3}}(?:{MathBlockParser.MULTILINE_MATH})",
    }


class _Renderer(IPythonRenderer):
    """Markdown to HTML, formulas to MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return f'<span class="formula" tabindex="0">{mathml(body, "block")}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


class _Exporter(HTMLExporter):
    """The body of a page, from the project's own notebook template."""

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, attachments=attachments)
        return MarkdownWithMath(renderer, block=_MathBlocks()).render(source)


def build(report: Path | str) -> Path:
    """Write `pages/*.html` and `index.html` of a report folder; remove pages of no notebook.

    A notebook is taken from `notebooks/` or `runs/<run>/02_train.ipynb`; where it did not finish,
    its partly executed copy is taken from `logs/<page name>.ipynb`.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: A file cannot be read, a formula cannot be rendered, or a page is too big.
    """
    report = Path(report)
    protocol = load_protocol(report / "protocol.yaml")
    runs = [f"{name}-seed{seed}" for name in protocol.parameterisations() for seed in protocol.seeds]
    pages = [render(name, path) for name, path in find_notebooks(report, runs).items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = {"report": report.resolve().name, "pages": pages}
    names = {page.name for page in pages}
    for page in pages:
        body = Markup(_link_pages(page.body, names))
        values = {**shared, "page": page._replace(body=body), "root": "../"}
        html = environment.get_template("page.html.j2").render(values)
        if len(html.encode()) > PAGE_LIMIT:
            raise UserError(
                f"pages/{page.name}.html would be {len(html.encode()) / 1e6:.1f} MB; keep the "
                f"notebook's outputs under {PAGE_LIMIT / 1e6:.0f} MB with fewer or smaller figures."
            )
        write_file(report / "pages" / f"{page.name}.html", html)
    for path in (report / "pages").glob("*.html"):
        if path.stem not in names:
            path.unlink()
    values = {**shared, **summarise(report, protocol, runs), "page": None, "root": ""}
    write_file(report / "index.html", environment.get_template("index.html.j2").render(values))
    return report / "index.html"


def find_notebooks(report: Path, runs: list[str]) -> dict[str, Path]:
    """The notebooks to show, by page name, in reading order; finished ones before copies."""
    found = {
        path.stem: path
        for folder in ("logs", "notebooks")
        for path in (report / folder).glob("*.ipynb")
    }
    trained = {}
    for run in runs:
        path = report / "runs" / run / "02_train.ipynb"
        path = path if path.is_file() else found.get(f"02_train-{run}")
        if path:
            trained[f"02_train-{run}"] = path
    others = {name: found[name] for name in sorted(found) if not name.startswith("02_train")}
    return {**others, **trained}


def render(name: str, path: Path) -> Page:
    """The page of an executed notebook.

    Raises:
        UserError: It is no notebook, or one of its formulas cannot be rendered.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError) as error:  # nbformat's own derive from these
        raise UserError(f"{path}: not a readable notebook; delete it and run again.") from error
    notebook.cells = [  # papermill's own notices: the page says it in its own way
        cell
        for cell in notebook.cells
        if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    stopped = any(
        cell.execution_count is None or any(out.output_type == "error" for out in cell.outputs)
        for cell in code
    )
    exporter = _Exporter(
        template_name="basic",
        template_file=str(TEMPLATES / "notebook.html.j2"),
        config=Config({"NbConvertBase": {"display_data_priority": FORMATS}}),
    )
    try:
        body, _ = exporter.from_notebook_node(notebook)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    heading = re.search(r"<h[1-6][^>]*>(.*?)(<a class=.anchor-link.*?)?</h[1-6]>", body, re.DOTALL)
    return Page(name, Markup(heading[1]).striptags() if heading else name, Markup(body), stopped)


def _link_pages(body: str, names: set[str]) -> str:
    """The body with links between notebooks as links between pages."""

    def page_of(match: re.Match) -> str:
        return f'href="{match[1]}.html' if match[1] in names else 'href="../index.html'

    return re.sub(r'href="(?:\./)?([\w.-]+)\.ipynb', page_of, body)


def summarise(report: Path, protocol: Protocol, runs: list[str]) -> dict[str, Any]:
    """What the index tells: the runs one by one, the results by variant, data and machines."""
    table = report / "results.csv"
    table = read_csv(table) if table.is_file() else pd.DataFrame(columns=RESULT_COLUMNS)
    rows = {f"{row['variant']}-seed{row['seed']}": row for row in table.to_dict("records")}
    found = [_record(report / "runs" / run, rows.get(run, {})) for run in runs]
    done = [run for run in found if run["status"] == COMPLETED]
    if table.empty:  # the comparison did not get to write it
        table = pd.DataFrame([result_row(run) for run in found])
    times = [run[key] for run in done for key in ("started", "finished") if key in run]
    whens = sorted(datetime.fromisoformat(time).astimezone(UTC) for time in times)
    data = next((run["data"] for run in done if "data" in run), {})
    dataset = data.get("dataset", protocol.dataset)
    images = {
        name: f"{name}.{kind}"
        for kind in ("png", "svg")  # SVG where there is one
        for name in FIGURES
        if (report / "figures" / f"{name}.{kind}").is_file()
    }
    return {
        "protocol": protocol,
        "parameters": {key: _plain(value) for key, value in protocol.model_dump().items()},
        "models": _listed([MODEL_NAMES.get(model, model) for model in protocol.models]),
        "dataset": DATASET_NAMES.get(dataset, dataset),
        "fallback": dataset == protocol.offline_fallback,
        "data": data,
        "runs": found,
        "done": done,
        "when": [f"{when:%d %B %Y, %H:%M} UTC".lstrip("0") for when in (*whens[:1], *whens[-1:])],
        "where": {
            key: " / ".join(sorted({_plain(run[key]) for run in done if key in run}))
            for key in ("device", "machine", "commit", "versions")
        },
        "results": formatted(summary(table)) if COMPLETED in set(table["status"]) else None,
        "figures": [(images[name], caption) for name, caption in FIGURES.items() if name in images],
        "files": [name for name in FILES if (report / name).is_file()],
    }


def _record(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A run's record with its results; without one, its row of results.csv, if it has one."""
    try:
        record = load_run(folder).record
    except UserError:
        record = {"status": MISSING, "reason": "its run.json is missing or damaged", **row}
    return {"reason": "no reason was recorded", **record, **result_row(record), "run": folder.name}


def _plain(value: Any) -> str:
    """A value as a reader writes it: `python 3.11.4, torch 2.9.0`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)


def _listed(names: list[str]) -> str:
    """`LSTM, GRU and A-GRU`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
