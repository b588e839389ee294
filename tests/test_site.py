"""The pages and the index of small reports: tiny notebooks, a figure of one pixel."""

import re
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from small_reports import figure, ran, save_notebook, write_small

from rnnbench_nb.errors import UserError
from rnnbench_nb.results import Report
from rnnbench_nb.site import index, render

NASTY = """<b>&"'</b>"""
FIVE, WORSE = [0.96, 0.97, 0.98, 0.97, 0.96], [0.91, 0.92, 0.93, 0.92, 0.92]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Two seeds of an LSTM and a GRU; of the GRU's runs one failed and one is missing."""
    runs = {"lstm": [0.97, 0.99], "gru": [f"loss is nan {NASTY}", None]}
    report = write_small(tmp_path / "small", runs)
    save_notebook(report / "notebooks/01_data.ipynb", new_markdown_cell("# Which digits?"))
    save_notebook(
        report / "notebooks/03_compare.ipynb",
        new_markdown_cell("# Which cell, $W^\\top$ or not?\n\nSee [data](01_data.ipynb)."),
        ran("plot()", figure("Loss falls"), figure('"><script>', width=950), figure()),
    )
    for seed in (42, 43):
        path = report / f"runs/lstm-seed{seed}/02_train.ipynb"
        save_notebook(path, new_markdown_cell("# One model"), ran("1"))
    return report


def addresses(text: str) -> list[str]:
    """Every address of a page."""
    tags = BeautifulSoup(text, "html.parser").find_all(True)
    return [tag[key] for tag in tags for key in ("href", "src", "srcset", "data") if tag.get(key)]


def page(report: Path, *cells: dict) -> str:
    """The page of a notebook with these cells."""
    save_notebook(report / "notebooks/05_extra.ipynb", *cells)
    index.build(Report(report))
    return (report / "pages/05_extra.html").read_text()


def test_every_link_resolves_nothing_is_fetched_and_no_script_is_needed(report):
    assert index.build(Report(report)) == report / "index.html"
    pages = [report / "index.html", *(report / "pages").glob("*.html")]
    assert len(pages) == 5  # the index, two notebooks, two training runs
    for path in pages:
        text = path.read_text()
        assert not any(word in text for word in ("<script", "@import", "url(", "://"))
        links = [link for link in addresses(text) if not link.startswith(("data:", "#"))]
        linked = {(path.parent / unquote(link.split("#")[0])).resolve() for link in links}
        assert all(target.is_file() for target in linked)
        assert {report / "index.html", report / "pages/03_compare.html"} <= linked


def test_a_link_to_a_notebook_leads_to_its_page_or_else_to_the_index(report):
    text = page(report, new_markdown_cell("[a](01_data.ipynb) [b](./02_train.ipynb#x)"))
    assert 'href="01_data.html">a</a>' in text and 'href="../index.html#x">b</a>' in text


def test_the_index_states_the_verdict_first_and_then_the_numbers(tmp_path):
    text = index.build(Report(write_small(tmp_path, {"lstm": FIVE, "gru": WORSE}))).read_text()
    answer = text.partition('class="answer"')[2].partition("</section>")[0]
    assert "LSTM is better than GRU by 4.80 points" in answer
    assert text.index('class="answer"') < text.index("96.80 ± 0.84") < text.index("<h2>How it was")
    for fact in ("51,000 examples for training", "9,000 for validation", "1,000 for testing"):
        assert fact in text
    assert text.index("10 training runs</summary>") > text.index("96.80")
    assert "arithmetic" not in text
    record = tmp_path / "runs/gru-seed42/run.json"
    record.write_text(record.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    text = index.build(Report(tmp_path)).read_text()
    assert "LSTM (cpu) is better than GRU (cpu and cuda) by 4.80 points" in text
    assert "<td>GRU (cpu and cuda)</td>" in text and "the arithmetic of devices differs" in text


def test_an_index_has_the_comment_of_its_parameter_file_by_paragraphs():
    study, rows = index.protocol_comment("study_rows"), index.protocol_comment("row_mnist")
    assert study["question"].startswith("Does antisymmetry") and "`frozen`" in study["comment"]
    assert render.markdown(study["comment"]).count("<p>") == 3
    assert rows["question"].endswith("start alike?") and "explains the keys" not in rows["comment"]


def test_data_that_stand_in_are_named_on_every_page_and_give_no_verdict(report):
    assert "stands in" not in index.build(Report(report)).read_text()
    write_small(report, {"lstm": FIVE, "gru": WORSE}, f"mnist_5k stands in {NASTY}")
    text = index.build(Report(report)).read_text()
    assert "stand-in data: no verdict" in text and "is better" not in text
    for path in [report / "index.html", *(report / "pages").glob("*.html")]:
        soup = BeautifulSoup(path.read_text(), "html.parser")
        assert soup.select_one("p.warning").text.startswith("Mnist_5k stands in <b>"), path
        for drawn in soup("figure"):
            assert "mnist_5k stands in <b>" in drawn.figcaption.text, path


def test_failed_and_missing_runs_are_listed_with_their_reasons_escaped(report):
    text = index.build(Report(report)).read_text()
    assert "2 of 4 runs are finished" in text
    assert "gru-seed42 failed: loss is nan &lt;b&gt;&amp;&#34;&#39;&lt;/b&gt;" in text
    assert "gru-seed43 is missing: " in text and "logs/gru-seed43.txt" in text
    assert NASTY not in text


def test_a_report_without_a_finished_run_has_an_index_that_says_so(tmp_path):
    text = index.build(Report(write_small(tmp_path / "none", {"lstm": [None]}))).read_text()
    assert "No run has a test score yet" in text


def test_a_notebook_that_failed_is_shown_as_far_as_it_got(report):
    error = new_output("error", ename="E", evalue="v", traceback=["\x1b[31mE\x1b[0m: <v> & co"])
    notice = new_markdown_cell("papermill says", metadata={"tags": ["papermill-error-cell-tag"]})
    text = page(report, notice, ran("1", error), new_code_cell("2"))
    assert "This notebook stopped with an error" in text and "papermill says" not in text
    assert '<span class="ansi-red-fg">E</span>: &lt;v&gt; &amp; co' in text
    assert "(stopped with an error)" in (report / "index.html").read_text()
    assert "stopped with an error" not in (report / "pages/01_data.html").read_text()


def test_a_notebook_that_ended_itself_is_shown_to_its_end_and_has_not_failed(report):
    words = new_output("display_data", {"text/markdown": "no run **finished**"})
    noise = new_output("stream", name="stderr", text="UserWarning: To exit: use 'exit'")
    error = new_output("error", ename="SystemExit", evalue="", traceback=["use %tb to see"])
    text = page(report, ran("1", words, noise, error), new_markdown_cell("What follows"))
    assert "<strong>finished</strong>" in text and "stopped with an error" not in text
    assert not any(part in text for part in ("%tb", "To exit", "What follows"))


def test_a_notebook_whose_kernel_died_or_that_left_nothing_is_marked(report):
    (report / "notebooks/05_extra.ipynb.failed").touch()
    assert "stopped with an error" in page(report, ran("1"), new_code_cell("2"))
    (report / "runs/gru-seed42/02_train.ipynb").touch()
    index.build(Report(report))
    text = (report / "pages/02_train-gru-seed42.html").read_text()
    assert "stopped with an error" in text and "<code>logs/gru-seed42.txt</code>" in text


def test_a_page_that_has_no_notebook_any_more_goes_and_files_of_the_user_stay(report):
    page(report, ran("1"))
    (report / "pages/mine.html").write_text("mine")
    (report / "notebooks/05_extra.ipynb").unlink()
    index.build(Report(report))
    assert not (report / "pages/05_extra.html").exists()
    assert (report / "pages/mine.html").read_text() == "mine"


def test_figures_have_alternative_texts_and_wide_ones_scroll(report):
    index.build(Report(report))
    text = (report / "pages/03_compare.html").read_text()
    images = BeautifulSoup(text, "html.parser").find_all("img")
    assert [image["alt"] for image in images] == ["Loss falls", '"><script>', "figure"]
    assert text.count('class="sheet wide" tabindex="0"') == 1


def test_formulas_are_mathml_and_code_is_left_alone(report):
    source = (
        "Inline $W - W^\\top$, a span `$a$` and ``$$b$$`` stay.\n\n$$\n\\lVert x \\rVert\n$$\n\n"
        "\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}\n\n```\n$$c_1$$ and $d$\n```\n"
    )
    text = page(report, new_markdown_cell(source))
    assert len(re.findall("<math ", text)) == 3 and len(re.findall("<math [^>]*block", text)) == 2
    assert "<msup><mi>W</mi><mo>⊤</mo></msup>" in text and "<mo>‖</mo>" in text
    assert text.count("<mtr>") == 2 and "(1)" not in text  # aligned, not numbered
    for code in ("<code>$a$</code>", "<code>$$b$$</code>", "$$c_1$$ and $d$"):
        assert code in text


@pytest.mark.parametrize(
    "latex",
    [r"\nosuchcommand x", r"\frac{a", "a_{b", r"\begin{gather}a \\ b\end{gather}", "a & b", ""],
)
def test_a_formula_that_cannot_be_converted_is_refused(latex):
    with pytest.raises(UserError, match=re.escape(repr(latex))):
        render.mathml(latex)


@pytest.mark.parametrize(
    "latex",
    [
        r"\begin{aligned}a &= b \\ c &= d\end{aligned}",
        r"\begin{pmatrix}0 & 1 \\ -1 & 0\end{pmatrix}",
        r"z \odot \sigma(\mathrm{Re}\,\lambda) \quad \text{if } \{x_{i_{j_k}}\}",
    ],
)
def test_the_formulas_of_the_notebooks_are_converted(latex):
    assert "\\" not in render.mathml(latex) and render.mathml(latex).startswith("<math")


def test_a_broken_formula_names_its_notebook(report):
    with pytest.raises(UserError, match=r"05_extra\.ipynb: the formula '\\\\nosuch'"):
        page(report, new_markdown_cell("# A $\\nosuch$"))


def test_a_damaged_picture_costs_no_page_and_a_missing_one_names_its_notebook(report):
    damaged = new_output("display_data", {"image/png": "aGVsbG8="})
    assert "aGVsbG8=" in page(report, ran("x", damaged))
    with pytest.raises(UserError, match=r"05_extra\.ipynb: missing attachment: x\.png"):
        page(report, new_markdown_cell("![x](attachment:x.png)"))


def test_outputs_are_tables_and_text_without_warnings(report):
    log = [new_output("stream", name="stdout", text=f"epoch {i}\n") for i in (1, 2)]
    log.append(new_output("stream", name="stderr", text="NOISE"))
    frame = new_output("execute_result", {"text/html": "<table></table>", "text/plain": "PLAIN"})
    script = new_output("display_data", {"application/javascript": "J", "text/plain": "<plain>"})
    text = page(report, ran("a < b", *log, frame, script))
    assert "NOISE" not in text and "PLAIN" not in text
    assert "epoch 1\nepoch 2\n</pre>" in text  # one block
    assert "&lt;plain&gt;" in text and "<table></table>" in text


def test_the_tables_of_pandas_lose_the_names_of_their_cells(report):
    frame = pd.DataFrame({"a": [1]}, index=["x"])
    shown = new_output("display_data", {"text/html": frame.style.to_html(), "text/plain": ""})
    text = page(report, ran("frame", shown))
    assert re.search("<td ?>1</td>", text) and "row0" not in text
    assert re.search(r"<td ?></td>\s*<th ?>a</th>", text)


def test_the_names_of_an_index_stand_in_one_row_with_the_columns():
    keys = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["p", "q"])
    frame = pd.DataFrame({"x": [1, 2]}, keys)
    for html in (frame.style.to_html(), frame.to_html()):
        (row,) = BeautifulSoup(render.compress(html), "html.parser").thead("tr")
        assert [cell.text for cell in row(["td", "th"])] == ["p", "q", "x"]
    both = frame.unstack().to_html()  # the columns have names too, so each row says something
    assert len(BeautifulSoup(render.compress(both), "html.parser").thead("tr")) == 3


def test_a_section_whose_code_shows_nothing_is_left_out(report):
    shown = new_output("display_data", {"text/markdown": "a result"})
    cells = [new_markdown_cell("# Title"), new_code_cell("start")]
    cells += [new_markdown_cell("## Full"), new_code_cell("helper"), ran("1", shown)]
    cells += [new_markdown_cell("## Empty"), new_code_cell("slider"), new_markdown_cell("## Words")]
    text = page(report, *cells)
    assert all(word in text for word in ("start", "Full", "helper", "a result", "Words"))
    assert "Empty" not in text and "slider" not in text
    failed = new_output("error", ename="E", evalue="v", traceback=["E: v"])
    assert "Empty" in page(report, *cells, ran("2", failed))


def test_a_page_has_its_contents_and_its_notebook(report):
    text = page(report, new_markdown_cell("# Title\n\nWhat is *it*?\n\n## A & $b$\n\n## C"))
    assert '<li><a href="#A-&amp;-b">A &amp; b</a></li>' in text and "ns0" not in text
    assert [text.count(f'id="{name}"') for name in ("C", "A-&amp;-b")] == [1, 1]
    assert '<a href="../notebooks/05_extra.ipynb" download>' in text


def test_signs_are_set_in_text_and_not_in_code():
    code = "<p title='-1'></p><pre>-2 <b>-3</b></pre><svg>A-GRU</svg>"
    assert render.typeset(f"{code}<b>-0.5 to 3, 8 x 8, a-1, 2020-01-02, A-GRU-28</b>") == (
        f'{code}<b>−0.5 to 3, 8\xa0×\xa08, a-1, 2020-01-02, <span class="name">A-GRU-28</span></b>'
    )
    zeros, others = "<td>-0</td><td>−0.00</td> -0% (-0.000 to -0).", "<td>-0.01</td> -05 -0.001e-3"
    assert render.typeset(zeros) == "<td>0</td><td>0.00</td> 0% (0.000 to 0)."
    assert render.typeset(others) == others.replace("-0", "−0")
