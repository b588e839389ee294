"""Convert executed notebooks to HTML with MathML, which needs no network and no script."""

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import nbformat
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import InvalidNotebook, IPythonRenderer, MarkdownWithMath
from PIL import Image
from traitlets.config import Config

from rnnbench_nb.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
CONFIG = Config(
    NbConvertBase={
        "display_data_priority": ["text/html", "text/markdown", "image/png", "text/plain"]
    },
    CoalesceStreamsPreprocessor={"enabled": True},  # join a log into one block
    # the page has its own text for papermill's error cells
    TagRemovePreprocessor={"enabled": True, "remove_cell_tags": ["papermill-error-cell-tag"]},
)


class Page(NamedTuple):
    """One executed notebook as HTML."""

    name: str  # the notebook's file name without its ending
    title: str
    body: Markup
    failed: bool  # whether the notebook stopped with an error or is unreadable

    @property
    def run(self) -> str:
        """The run that a training page shows; empty for other notebooks."""
        return self.name.partition("02_train-")[2]

    @property
    def notebook(self) -> str:
        """The path of the notebook in its report."""
        return f"runs/{self.run}/02_train.ipynb" if self.run else f"notebooks/{self.name}.ipynb"

    @property
    def label(self) -> str:
        """The name in the navigation, such as `Compare` for 03_compare."""
        return self.run or self.name.partition("_")[2].replace("_", " ").capitalize() or self.name

    @property
    def headings(self) -> list[tuple[Markup, str]]:
        """The anchor and the text of each section."""
        pattern = r'<h2 id="([^"]+)"[^>]*>(.*?)<a class=.anchor-link'
        matches = re.findall(pattern, self.body, re.DOTALL)
        return [(Markup(anchor), Markup(heading).striptags()) for anchor, heading in matches]


def mathml(latex: str, display: str = "inline") -> str:
    """Convert a formula to MathML; `display` is "inline" or "block".

    Raises:
        UserError: latex2mathml cannot read the whole formula.
    """
    # latex2mathml aligns only in align*, and unlike JupyterLab numbers the lines of align
    formula = re.sub(r"\\(begin|end)\{(aligned|align|split)\}", r"\\\1{align*}", latex)
    braces = re.sub(r"\\[{}]", "", formula)
    try:
        markup = convert(formula, display=display)
    except Exception:  # the converter raises many types of error
        markup = "\\"
    misread = "\\" in markup or "<mi>&</mi>" in markup or 'linebreak="newline"' in markup
    if misread or braces.count("{") != braces.count("}"):
        raise UserError(
            f"the formula {latex.strip()!r} has a command, an environment or a brace that "
            "latex2mathml cannot read; write it with simpler LaTeX."
        )
    return markup


class _Renderer(IPythonRenderer):
    """A converter from Markdown to HTML, with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return f'<span class="formula" tabindex="0">{mathml(body, "block")}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def markdown(text: str) -> Markup:
    """Convert Markdown to HTML."""
    return Markup(MarkdownWithMath(_Renderer(escape=False)).render(text))


ENVIRONMENT.filters["markdown"] = markdown


def typeset(html: str) -> str:
    """Use true minus and multiplication signs, and keep `A-GRU` and `8 × 8` on one line.

    A rounded zero loses its minus sign. Code, formulas and tags stay as they are.
    """

    def part(match: re.Match[str]) -> str:
        text = re.sub(r"(?<![\w.)\]-])-(?=\d)", "−", match["text"] or "")
        text = re.sub(r"−(?=0(\.0+)?(?![\w.]*\d))", "", text)
        text = re.sub(r"(?<=\d) ?[x×] ?(?=\d)", "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}", text)
        text = re.sub(r"\b[A-Z]-[A-Z]+(?:-\w+)*", r'<span class="name">\g<0></span>', text)
        return text or match[0]

    verbatim = r"<(pre|code|math|svg|style|script|title)\b.*?</\1>"
    return re.sub(rf"(?s){verbatim}|<[^>]+>|(?P<text>[^<]+)", part, html)


def fill(template: str | jinja2.Template, **values: Any) -> str:
    """Fill a template, and typeset its text."""
    return typeset(ENVIRONMENT.get_template(template).render(values))


def render(path: Path) -> Page:
    """Convert an executed notebook to a page, which is empty if the notebook is unreadable.

    Raises:
        UserError: One of its formulas cannot be converted.
    """
    failed = path.with_name(f"{path.name}.failed").is_file()
    name = f"02_train-{path.parent.name}" if path.stem == "02_train" else path.stem
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError):  # nbformat's own errors derive from these
        notebook, failed = nbformat.v4.new_notebook(), True
    for number, cell in enumerate(notebook.cells):
        if any(output.get("ename") == "SystemExit" for output in cell.get("outputs", [])):
            cell.outputs = [each for each in cell.outputs if each.output_type == "display_data"]
            del notebook.cells[number + 1 :]  # `notebook.END` was raised
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    failed = failed or any(output.output_type == "error" for output in outputs)
    if not failed:
        notebook.cells = without_empty_sections(notebook.cells)
    file = str(TEMPLATES / "notebook.html.j2")
    exporter = HTMLExporter(template_name="basic", template_file=file, config=CONFIG)
    exporter.register_filter("markdown2html", markdown)
    try:
        body = compress(exporter.from_notebook_node(notebook)[0])
    except (UserError, InvalidNotebook) as error:
        raise UserError(f"{path}: {error}") from error
    title = re.search(r"<h[1-6][^>]*>(.*?)(<a class=.anchor-link.*?)?</h[1-6]>", body, re.DOTALL)
    return Page(name, Markup(title[1]).striptags() if title else name, Markup(body), failed)


def without_empty_sections(cells: list[Any]) -> list[Any]:
    """Return the cells of a notebook without those of sections whose code shows nothing."""
    sections: list[list[Any]] = [[]]
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        sections[-1].append(cell)
    kept, *others = sections
    for section in others:
        code = [cell for cell in section if cell.cell_type == "code"]
        if not code or any(cell.outputs for cell in code):
            kept += section
    return kept


def join_headings(table: re.Match[str]) -> str:
    """Put the names of pandas' index columns, which have a row of their own, into the row above."""
    *rows, first, names = re.findall(r"(?s)<tr.*?</tr>", table[0])
    cells, own = (re.findall(r"(?s)<t[dh].*?</t[dh]>", row) for row in (first, names))
    count = sum("<th" in cell for cell in own)
    blank = re.compile(r"<td[^>]*></td>")
    if len(cells) != len(own) or not all(map(blank.fullmatch, cells[:count] + own[count:])):
        return table[0]
    return f"<thead>{''.join(rows)}<tr>{''.join(own[:count] + cells[count:])}</tr></thead>"


def compress(body: str) -> str:
    """Remove invisible markup, such as spans of plain code, and convert pictures to WebP."""

    def webp(match: re.Match[str]) -> str:
        buffer = BytesIO()
        try:
            picture = Image.open(BytesIO(base64.b64decode(match[1])))
            picture.save(buffer, "webp", lossless=True, quality=100, method=6)
        except (OSError, ValueError):  # a damaged picture stays as it is
            return match[0]
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    body = re.sub(r"data:image/png;base64,([^\"]+)", webp, body)
    body = re.sub(r'(?<=[</])ns0:| xmlns:ns0="[^"]*"', "", body)  # in the formulas of headings
    body = re.sub(r"<th([^>]*)>(&nbsp;|\s)*</th>", r"<td\1></td>", body)  # pandas' empty headings
    body = re.sub(r"(?s)<thead>\s*<tr(?:(?!</thead>).)*</tr>\s*<tr.*?</thead>", join_headings, body)
    body = re.sub(r' (id="T_|class="(data|blank|\w+_heading) )[^"]*"', "", body)
    body = re.sub(r"<th[^>]*>\w+</th>", lambda heading: heading[0].replace("_", "_<wbr>"), body)
    return re.sub(r'<span class="(?:n[a-z]?|p|o|w|bp|fm|m[if])">([^<]*)</span>', r"\1", body)


def link_pages(body: str, names: set[str]) -> Markup:
    """Turn links to notebooks into links to their pages, or to the index if there is no page."""

    def address(match: re.Match[str]) -> str:
        return f'href="{match[1]}.html' if match[1] in names else 'href="../index.html'

    return Markup(re.sub(r'href="(?:\./)?([\w.-]+)\.ipynb', address, body))
