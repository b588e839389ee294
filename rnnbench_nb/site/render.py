"""The pages of a report: executed notebooks as HTML, and the index that ties them together.

Pages need no network, and say all without a script: styles are inlined, formulas are MathML.
"""

import base64
import io
import re
from datetime import UTC, datetime
from html import unescape
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from traitlets.config import Config

from rnnbench_nb.analyses import captions
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.launch import analysis_pages, provenance_notes
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.protocol import Protocol
from rnnbench_nb.report import COMPLETED, Report, formatted, listed, result_row, said, summary

TEMPLATES = Path(__file__).parent / "templates"
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
FORMATS = [  # of an output, best first: no scripts and no widgets
    "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg",
    "text/plain",
]  # fmt: skip
RUN_PAGES = 100  # in a report of more runs only the first seed's and the failed ones have a page
PAGE_LIMIT = 3_000_000  # bytes: what a phone on a slow line still opens
FIGURE = "test_comparison"  # of the first page; what else is drawn is on the others
FILES = ["results_summary.md", "results.csv", "history.csv", "history.csv.xz", "protocol.yaml"]


class Page(NamedTuple):
    """One executed notebook: its file name without ending, its heading, its body as HTML."""

    name: str
    title: str
    body: Markup
    stopped: bool  # with an error, or because its kernel died
    notebook: str = ""  # the executed notebook, from the report's folder
    before: "Page | None" = None
    after: "Page | None" = None

    @property
    def run(self) -> str:
        """The run that a training page shows; empty for the other notebooks."""
        return self.name.partition("02_train-")[2]

    @property
    def label(self) -> str:
        """The name in the bar of links: `03_compare` is `Compare`."""
        return self.run or self.name.partition("_")[2].replace("_", " ").capitalize() or self.name

    @property
    def headings(self) -> list[tuple[str, str]]:
        """Anchor and text of each section."""
        found = re.findall(
            r'<h2 id="([^"]+)"[^>]*>(.*?)<a class=.anchor-link', self.body, re.DOTALL
        )
        return [(Markup(anchor), Markup(heading).striptags()) for anchor, heading in found]

    @property
    def description(self) -> str:
        """The first paragraph, in plain text."""
        found = re.search(r"<p>(.*?)</p>", self.body, re.DOTALL)
        return Markup(found[1]).striptags() if found else self.title


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


class _Renderer(IPythonRenderer):
    """Markdown to HTML, formulas to MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return f'<span class="formula" tabindex="0">{mathml(body, "block")}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def address(data: str, kind: str) -> str:
    """A picture as an address: SVG as text, others in base64, PNG as the lighter lossless WebP."""
    if kind == "image/svg+xml":
        short = re.sub(r"<[^>']+>", lambda tag: tag[0].replace('"', "'"), data)
        return "data:image/svg+xml," + re.sub(r'["#%&\n]', lambda mark: quote(mark[0]), short)
    content = data.replace("\n", "")
    if kind == "image/png":
        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        slow = {"quality": 100, "method": 5}  # 6: no smaller, in 8 times as long
        picture.save(buffer, "webp", lossless=True, **slow)
        kind, content = "image/webp", base64.b64encode(buffer.getvalue()).decode()
    return f"data:{kind};base64,{content}"


def markdown(text: str) -> Markup:
    """Markdown as HTML."""
    return Markup(MarkdownWithMath(_Renderer(escape=False)).render(text))


def tight(css: str) -> str:
    """A style sheet without the white space that says nothing."""
    return re.sub(r"(?<=[{}:;,])\s+|\s+(?=[{}])", "", css)


ENVIRONMENT.filters |= {"markdown": markdown, "said": said, "tight": tight}


class _Exporter(HTMLExporter):
    """The body of a page, from the project's own notebook template."""

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, attachments=attachments)
        return MarkdownWithMath(renderer).render(source)


def build(report: Path | str, front: bool = False, limit: int = PAGE_LIMIT) -> Path:
    """Write `pages/*.html` and `index.html` of a report folder.

    The notebooks are those of `notebooks/` and `runs/<run>/02_train.ipynb`. One that failed lies
    there too, as far as it got, with an empty file of its name and `.failed` beside it.

    Args:
        report: The folder.
        front: Whether a front page over several reports lies in the folder above.
        limit: What a page may weigh, in bytes.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: The protocol is wrong, a formula cannot be rendered, or a page is too big.
    """
    report = Path(report)
    notebooks = find_notebooks(report, run_pages(Report(report)))
    pages = {name: render(name, path) for name, path in notebooks.items()}
    return write(report, pages, front, limit)


def write(report: Path, pages: dict[str, "Page"], front: bool, limit: int) -> Path:
    """Write the pages of a report, by name and in order, and its index; see `build`."""
    found = Report(report)
    notebooks = find_notebooks(report, found.run_folders)
    pages = [
        page._replace(notebook=notebooks[name].relative_to(report).as_posix())
        if name in notebooks
        else page
        for name, page in pages.items()
    ]
    shared = {"report": report.resolve().name, "pages": pages, "front": front}
    names = {page.name for page in pages}
    for before, page, after in zip([None, *pages], pages, [*pages[1:], None], strict=False):
        body = Markup(_link_pages(page.body, names))
        here = page._replace(body=body, before=before, after=after)
        values = {**shared, "page": here, "root": "../"}
        html = ENVIRONMENT.get_template("page.html.j2").render(values)
        if len(html.encode()) > limit:
            raise UserError(
                f"pages/{page.name}.html would be {len(html.encode()) / 1e6:.1f} MB; keep the "
                f"notebook's outputs under {limit / 1e6:.2g} MB with fewer or smaller figures."
            )
        write_file(report / "pages" / f"{page.name}.html", html)
    kept = all(run.has("best") for run in found.runs)
    without = [] if kept else [name for name in analysis_pages(found.protocol) if name not in names]
    values = {**shared, **summarise(found), "without": without, "page": None, "root": ""}
    write_file(report / "index.html", ENVIRONMENT.get_template("index.html.j2").render(values))
    return report / "index.html"


def run_pages(report: Report) -> list[Path]:
    """The runs that have a page: all, or of many those of the first seed and the failed ones."""
    runs = report.run_folders
    if len(runs) <= RUN_PAGES:
        return runs
    first = first_seed(report)
    return [run for run in runs if run in first or _has_failed(run / "02_train.ipynb")]


def first_seed(report: Report) -> list[Path]:
    """The runs of the first seed."""
    ending = f"-seed{report.protocol.seeds[0]}"
    return [run for run in report.run_folders if run.name.endswith(ending)]


def _has_failed(notebook: Path) -> bool:
    return notebook.with_name(f"{notebook.name}.failed").is_file()


def find_notebooks(report: Path, runs: list[Path]) -> dict[str, Path]:
    """The notebooks to show, by page name, in reading order, the training runs last."""
    found = {path.stem: path for path in sorted((report / "notebooks").glob("*.ipynb"))}
    found |= {f"02_train-{run.name}": run / "02_train.ipynb" for run in runs}
    return {name: path for name, path in found.items() if path.is_file()}


def render(name: str, path: Path) -> Page:
    """The page of an executed notebook; one that left nothing readable has an empty page.

    Raises:
        UserError: One of its formulas cannot be rendered.
    """
    failed = _has_failed(path)
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError):  # nbformat's own derive from these
        notebook, failed = nbformat.v4.new_notebook(), True
    notebook.cells = [  # papermill's own notices: the page says it in its own way
        cell
        for cell in notebook.cells
        if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stopped = failed or any(output.output_type == "error" for output in outputs)
    exporter = _Exporter(
        template_name="basic",
        template_file=str(TEMPLATES / "notebook.html.j2"),
        config=Config({
            "NbConvertBase": {"display_data_priority": FORMATS},
            "CoalesceStreamsPreprocessor": {"enabled": True},  # a log is one block
        }),
    )  # fmt: skip
    exporter.register_filter("address", address)
    try:
        body, _ = exporter.from_notebook_node(notebook)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    body = re.sub(r'(?<=[</])ns0:| xmlns:ns0="[^"]*"', "", body)  # of formulas in headings
    body = re.sub(r'src="data:image/svg[^"]*', lambda text: unescape(text[0]), body)  # & is %26
    body = re.sub(r"<th([^>]*)>(&nbsp;)?</th>", r"<td\1></td>", body)  # a heading of nothing
    return _page(name, plain(body), stopped)


def _page(name: str, body: str, stopped: bool = False) -> Page:
    heading = re.search(r"<h[1-6][^>]*>(.*?)(<a class=.anchor-link.*?)?</h[1-6]>", body, re.DOTALL)
    return Page(name, Markup(heading[1]).striptags() if heading else name, Markup(body), stopped)


def kept(path: Path) -> Page:
    """A page as it was written, for one that is not made again."""
    text = path.read_text(encoding="utf-8")
    body = re.search(r'id="show-code">.*?</div>\n(.*?)\n</main>', text, re.DOTALL)
    if not body:
        raise UserError(f"{path} is no page of this project, or damaged; publish the report again.")
    png = r"(?<=src=\")data:(image/png);base64,([^\"]*)"
    return _page(path.stem, re.sub(png, lambda found: address(found[2], found[1]), body[1]))


def plain(html: str) -> str:
    """HTML of tables and code without what has no look of its own, half of its weight.

    pandas names each cell of a table, and Pygments each mark and name in code.
    """
    html = re.sub(r' (?:id="T_|class="(?:data|[a-z]+_heading|blank) )[^"]*"', "", html)
    html = re.sub(r"<style[^>]*>[^<]*</style>\s*(?=<table)", "", html)
    html = re.sub(r"(?<=[a-z]>)\s+(?=</?(?:table|thead|tbody|tr|th|td)\b)", "", html)
    return re.sub(r'<span class="(?:n[a-z]?|p|o|w|bp|fm)">([^<]*)</span>', r"\1", html)


def _link_pages(body: str, names: set[str]) -> str:
    """The body with links between notebooks as links between pages."""

    def page_of(match: re.Match) -> str:
        return f'href="{match[1]}.html' if match[1] in names else 'href="../index.html'

    return re.sub(r'href="(?:\./)?([\w.-]+)\.ipynb', page_of, body)


def summarise(report: Report) -> dict[str, Any]:
    """What the index tells: the runs one by one, the results by variant, data and machines."""
    protocol, task = report.protocol, report.task
    runs = [{"reason": "no reason was recorded", **record, "run": folder.name}
            for folder, record in zip(report.run_folders, report.records, strict=True)]  # fmt: skip
    done = [run for run in runs if run["status"] == COMPLETED]
    rows = [result_row(run, METRICS[task.metrics].names) for run in done]
    table = pd.DataFrame(
        [{**row, "variant": report.labels.get(row["variant"], row["variant"])} for row in rows]
    )
    times = [run[key] for run in done for key in ("started", "finished") if key in run]
    whens = sorted(datetime.fromisoformat(time).astimezone(UTC) for time in times)
    data = next((run["data"] for run in done if "data" in run), {})
    sentence = _subjects(report) or task.label
    versions = [run["versions"] for run in done if "versions" in run]
    made_with = [f"Python {each['python']} and PyTorch {each['torch']}" for each in versions]
    return {
        "protocol": protocol,
        "task": task,
        "metrics": METRICS[task.metrics],
        "comment": comment(report.folder.resolve().name),
        "parameters": {key: _plain(value) for key, value in asked(protocol).items()},
        "models": listed([CELLS[model].label for model in protocol.models]),
        "subject": sentence.partition(":")[0],
        "sentence": sentence,
        "notes": provenance_notes(report),
        "data": data,
        "runs": runs,
        "done": done,
        "when": [f"{when:%d %B %Y, %H:%M} UTC".lstrip("0") for when in (*whens[:1], *whens[-1:])],
        "where": {
            key: " / ".join(dict.fromkeys(_plain(run[key]) for run in done if key in run))
            for key in ("device", "machine", "processor", "versions")
        },
        "made_with": " / ".join(dict.fromkeys(made_with)),
        "commits": list(dict.fromkeys(short(run.get("commit", "unknown")) for run in done)),
        "results": formatted(summary(table), task) if done else None,
        "figure": FIGURE if done and (report.folder / f"figures/{FIGURE}.svg").is_file() else "",
        "caption": captions.scores(report) if data else "",
        "files": [name for name in FILES if (report.folder / name).is_file()],
        "frames": {
            folder.name: sorted(path.name for path in folder.glob("*.csv*"))
            for folder in sorted(report.folder.glob("analyses/*"))
        },
    }


def comment(name: str) -> str:
    """The comment that opens a protocol's file in params/: its question, and why it is as it is."""
    path = PROJECT / f"params/{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), lines))


def asked(protocol: Protocol) -> dict[str, Any]:
    """The values of a protocol, without the variants that `--models` left out."""
    values, own = protocol.dump(), protocol.parameterisations
    if values.get("variants"):
        values["variants"] = {k: v for k, v in values["variants"].items() if k in own}
    return values


def _subjects(report: Report) -> str:
    """The data of all finished runs in words, such as `copying: 120 steps of 10 and 520 ...`."""
    told: dict[str, list[str]] = {}
    for run in (run for run in report.runs if "data" in run.record):
        head, _, steps = run.task.sentence(run.record["data"]).partition(": ")
        told.setdefault(head, []).append(steps)
    return "; ".join(f"{head}: {listed(list(dict.fromkeys(each)))}" for head, each in told.items())


def short(commit: str) -> str:
    """The first ten digits of a commit, and whether files had changed since."""
    name, dirty, _ = commit.partition("-dirty")
    return name[:10] + dirty


def _plain(value: Any) -> str:
    """A value as a reader writes it: `python 3.11.4, torch 2.9.0`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)
