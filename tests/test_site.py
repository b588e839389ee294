"""Pages and index of synthetic report folders: tiny notebooks, a figure of one pixel."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.provenance import fingerprint
from rnnbench_nb.report import Report, history_columns, write_csv, write_tensors
from rnnbench_nb.site import render as site

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
NASTY = """<b>&"'</b>"""
DATA = {"dataset": "mnist", "reading": "row", "train": 51000, "validation": 9000, "test": 10000}
RECORD = {
    "status": "completed",
    "fingerprint": fingerprint("lstm", "image_sequence"),
    "parameter_count": 82186,
    "free_parameter_count": 82186,
    "best_epoch": 4,
    "epochs": 5,
    "seconds": 61.0,
    "started": "2025-01-02T03:04:05+00:00",
    "finished": "2025-01-02T04:05:06+00:00",
    "versions": {"python": "3.11.4", "torch": "2.9.0"},
    "commit": "0123456789abcdef-dirty",
    "device": "cpu",
    "machine": "Linux, 2 cores",
    "data": {**DATA, "steps": 28, "input_size": 28, "classes": 10},
}


def ran(source: str, *outputs: dict, **metadata) -> dict:
    return new_code_cell(source, execution_count=1, outputs=list(outputs), metadata=metadata)


def figure(alt: str | None = None) -> dict:
    metadata = {"image/png": {"alt": alt}} if alt else {}
    return new_output("display_data", {"image/png": PIXEL}, metadata=metadata)


def save(path: Path, *cells: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)


def add_run(report: Path, variant: str, seed: int, accuracy: float, /, **changes) -> None:
    test = dict.fromkeys(("accuracy", "precision", "recall", "f1"), accuracy) | {"loss": 0.1}
    record = {"variant": variant, "model": variant, "seed": seed, **RECORD, "test": test}
    record |= {"parameters": {"model": variant, "seed": seed}, **changes}
    path = report / "runs" / f"{variant}-seed{seed}" / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    labels = {"label": np.zeros(2, np.uint8), "predicted": np.zeros(2, np.uint8)}
    write_tensors(path.parent / "predicted.safetensors", labels)
    write_csv(path.parent / "history.csv", pd.DataFrame(columns=history_columns("accuracy")))
    save(path.parent / "02_train.ipynb", new_markdown_cell("# One model"), ran("1"))


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Two seeds of an LSTM and a GRU; of the GRU, one failed and one is missing."""
    report = tmp_path / "small"
    save(report / "notebooks" / "01_data.ipynb", new_markdown_cell("# Which digits?"), ran("1"))
    save(
        report / "notebooks" / "03_compare.ipynb",
        new_markdown_cell("# Which cell, $W^\\top$ or not?\n\nSee [data](01_data.ipynb)."),
        ran("plot()", figure("Loss falls"), figure('"><script>'), figure()),
    )
    (report / "protocol.yaml").write_text("dataset: mnist\nruns: 2\nmodels: [lstm, gru]\n")
    add_run(report, "lstm", 42, 0.97)
    add_run(report, "lstm", 43, 0.99)
    add_run(report, "gru", 42, 0.5, status="failed", reason=f"loss is nan {NASTY}", test={})
    (report / "figures").mkdir()
    (report / "figures" / "test_comparison.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'/>"
    )
    (report / "results_summary.md").write_text("| variant |")
    return report


class Links(HTMLParser):
    """Every address of a page, what loads at once apart, and the alternative texts."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.loaded, self.alts, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.alts += [values.get("alt")] if tag == "img" else []
        found = [values[key] for key in ("href", "src", "srcset", "data") if values.get(key)]
        self.addresses += found
        self.loaded += found if tag != "a" else []


def pages_of(report: Path) -> list[Path]:
    return [report / "index.html", *(report / "pages").glob("*.html")]


def page(report: Path, *cells: dict) -> str:
    """The page of a notebook with these cells."""
    save(report / "notebooks" / "05_extra.ipynb", *cells)
    site.build(report)
    return (report / "pages" / "05_extra.html").read_text()


def test_every_link_resolves_and_nothing_is_fetched(report):
    assert site.build(report) == report / "index.html"
    assert len(pages_of(report)) == 6  # index, two notebooks, three training runs
    for path in pages_of(report):
        text = path.read_text()
        links = Links(text)
        assert len(text) < 1_000_000
        assert links.tags.count("script") == 1 and "@import" not in text and "url(" not in text
        assert all(address.startswith("data:") or ":" not in address for address in links.loaded)
        for address in links.addresses:
            if not address.startswith(("data:", "#")):
                assert (path.parent / unquote(address.split("#")[0])).is_file(), address


def test_every_page_is_reached_from_every_page(report):
    site.build(report)
    for path in pages_of(report):
        targets = {(path.parent / link).resolve() for link in Links(path.read_text()).addresses}
        assert targets >= {other.resolve() for other in pages_of(report)}


def test_notebooks_link_to_pages(report):
    site.build(report)
    assert 'href="01_data.html"' in (report / "pages" / "03_compare.html").read_text()


def test_a_link_to_a_notebook_without_a_page_leads_to_the_index(report):
    assert 'href="../index.html">training</a>' in page(
        report, new_markdown_cell("[training](02_train.ipynb)")
    )


def test_index_tells_what_was_run(report):
    text = re.sub(r"\s+", " ", site.build(report).read_text())
    assert "<title>small: LSTM and GRU on MNIST, read by row</title>" in text
    for fact in (
        "on MNIST, read by row: 28 steps of 28. 51,000 examples are for training, "
        "9,000 for validation, 10,000 for testing. "
        "2 models, 2 seeds each (42 to 43): 2 of 4 runs finished, between 2 January 2025, "
        "03:04 UTC and 2 January 2025, 04:05 UTC.",
        "on CPU, Linux, 2 cores, with Python 3.11.4 and PyTorch 2.9.0, at commit "
        "<code>0123456789-dirty</code>.",
        '<td data-label="accuracy %">98.00 ± 1.41</td>',  # the sd is 0.02 / sqrt(2)
        '<td data-label="parameters">82,186</td>',
        "<tr><th>batch_size</th><td>128</td></tr>",
        '<a href="pages/01_data.html">Which digits?</a>',
        '<a href="results_summary.md">',
        '<img src="figures/test_comparison.svg" alt="Every run&#39;s result on its 10,000 test '
        "examples: a point a seed, 2 seeds a variant;",
        "Best mean accuracy: 98.00%, of LSTM.</figcaption>",
    ):
        assert fact in text


def test_the_index_tells_why_what_ran_and_on_which_versions():
    report = Report(PROJECT / "reports/published/pixel_mnist")
    told = site.summarise(report)
    assert told["comment"].startswith("Which cell keeps a whole image in mind, read pixel by pixel")
    assert "lem" not in told["parameters"]["variants"] and "lstm" in told["parameters"]["variants"]
    assert told["made_with"].count("PyTorch") == 2  # those of two machines
    assert site.comment("nothing of that name") == ""


def test_failed_and_missing_runs_are_listed_with_reason_and_page(report):
    text = site.build(report).read_text()
    assert "2 of 4 runs did not finish" in text
    assert '<a href="pages/02_train-gru-seed42.html">gru-seed42</a> failed: loss is nan' in text
    assert "gru-seed43 is missing: it did not finish; logs/gru-seed43.txt says how far" in text


def test_a_notebook_that_failed_is_shown_as_far_as_it_got(report):
    error = new_output("error", ename="E", evalue="v", traceback=["\x1b[31mE\x1b[0m: <v> & co"])
    notice = new_markdown_cell("papermill says", metadata={"tags": ["papermill-error-cell-tag"]})
    text = page(report, notice, ran("1", error), new_code_cell("2"))
    assert "This notebook stopped with an error" in text and "papermill says" not in text
    assert '<span class="ansi-red-fg">E</span>: &lt;v&gt; &amp; co' in text
    assert "(stopped with an error)" in (report / "index.html").read_text()
    assert "stopped with an error" not in (report / "pages" / "01_data.html").read_text()


def test_a_notebook_whose_kernel_died_is_marked(report):
    (report / "notebooks" / "05_extra.ipynb.failed").touch()
    assert "stopped with an error" in page(report, ran("1"), new_code_cell("2"))


def test_a_notebook_that_left_nothing_has_a_page_that_says_so(report):
    path = report / "runs" / "gru-seed43" / "02_train.ipynb"
    path.parent.mkdir()
    path.touch()
    link = '<a href="pages/02_train-gru-seed43.html">gru-seed43</a> is missing'
    assert link in site.build(report).read_text()
    text = (report / "pages" / "02_train-gru-seed43.html").read_text()
    assert "stopped with an error" in text and "<code>logs/gru-seed43.txt</code>" in text


def test_data_that_stand_in_are_told_at_the_top(report):
    assert "could not be fetched" not in site.build(report).read_text()
    note = f"mnist could not be fetched: digits instead {NASTY}"
    protocol = (report / "protocol.yaml").read_text()
    (report / "protocol.yaml").write_text(protocol + f"note: {json.dumps(note)}\n")
    text = site.build(report).read_text()
    warning = text.partition('<p class="warning">')[2].partition("</p>")[0]
    assert warning.startswith("<strong>Mnist could not be fetched: digits instead &lt;b&gt;")
    assert text.index("Mnist could not") < text.index('<p class="lead">')


def test_runs_of_other_code_and_of_unknown_code_are_told_at_the_top(report):
    text = site.build(report).read_text()
    assert "other code" not in text and "fingerprint" not in text
    add_run(report, "lstm", 42, 0.97, fingerprint="0" * 16)
    add_run(report, "gru", 43, 0.9, fingerprint=None)
    path = report / "runs/gru-seed43/run.json"
    record = json.loads(path.read_text())
    del record["fingerprint"]
    path.write_text(json.dumps(record))
    text = site.build(report).read_text()
    top = text.partition('<p class="lead">')[0]
    assert top.count('<p class="warning">') == 2
    assert "1 of 3 finished runs is made by other code than stands here" in top
    assert "(lstm-seed42)." in top
    assert "1 of 3 finished runs is of before fingerprints were kept" in top
    assert "(gru-seed43)." in top


def without_script(text):
    """A page but for its own script, which is the same on every page."""
    return re.sub(r"<script>.*?</script>", "", text, flags=re.S)


def test_names_are_escaped(report):
    text = site.build(report).read_text()
    assert NASTY not in text and "<b>" not in without_script(text)
    assert text.count("&lt;b&gt;&amp;&#34;&#39;&lt;/b&gt;") == 1  # the reason


def test_published_folder_keeps_the_results_of_runs_without_notebooks(report):
    for path in (report / "runs").rglob("*.ipynb"):
        path.unlink()
    text = site.build(report).read_text()
    assert ">98.00 ± 1.41</td>" in text and "<th>lstm-seed42</th><td>completed</td>" in text


def test_stale_pages_go_and_pages_of_dropped_runs_too(report):
    site.build(report)
    (report / "pages" / "09_old.html").write_text("old")
    (report / "protocol.yaml").write_text("models: [lstm]\n")
    site.build(report)
    assert {path.stem for path in (report / "pages").iterdir()} == {
        "01_data", "03_compare", "02_train-lstm-seed42",
    }  # fmt: skip


def test_figures_have_alternative_texts(report):
    site.build(report)
    alts = Links((report / "pages" / "03_compare.html").read_text()).alts
    assert alts == ["Loss falls", '"><script>', "figure"]


def test_formulas_are_mathml_and_code_is_left_alone(report):
    text = page(
        report,
        new_markdown_cell(
            "Inline $W - W^\\top$, a span `$a$` and ``$$b$$`` stay.\n\n"
            "$$\n\\lVert x \\rVert\n$$\n\n"
            "\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}\n\n```\n$$c_1$$ and $d$\n```\n"
        ),
    )
    assert len(re.findall("<math ", text)) == 3 and len(re.findall("<math [^>]*block", text)) == 2
    assert "<msup><mi>W</mi><mo>⊤</mo></msup>" in text and "<mo>‖</mo>" in text
    assert text.count("<mtr>") == 2 and "(1)" not in without_script(text)  # aligned, not numbered
    for code in ("<code>$a$</code>", "<code>$$b$$</code>", "$$c_1$$ and $d$"):
        assert code in text


@pytest.mark.parametrize(
    "latex",
    [r"\nosuchcommand x", r"\frac{a", "a_{b", r"\begin{gather}a \\ b\end{gather}", "a & b", ""],
)
def test_a_formula_that_cannot_be_rendered_is_refused(latex):
    with pytest.raises(UserError, match=re.escape(repr(latex))):
        site.mathml(latex)


@pytest.mark.parametrize(
    "latex",
    [
        r"\begin{aligned}a &= b \\ c &= d\end{aligned}",
        r"\begin{pmatrix}0 & 1 \\ -1 & 0\end{pmatrix}",
        r"z \odot \sigma(\mathrm{Re}\,\lambda) \quad \text{if } \{x_{i_{j_k}}\}",
    ],
)
def test_the_notebooks_vocabulary_of_formulas_is_rendered(latex):
    assert "\\" not in site.mathml(latex) and site.mathml(latex).startswith("<math")


def test_a_broken_formula_names_its_notebook(report):
    with pytest.raises(UserError, match=r"05_extra\.ipynb: the formula '\\\\nosuch'"):
        page(report, new_markdown_cell("# A $\\nosuch$"))


def test_outputs_are_tables_text_and_no_noise(report):
    text = page(
        report,
        ran("# Parameters\nseed = 3", tags=["injected-parameters"]),
        ran(
            "a < b",
            new_output("stream", name="stderr", text="NOISE"),
            new_output("stream", name="stdout", text="epoch <1>"),
            new_output("execute_result", {"text/html": "<table></table>", "text/plain": "PLAIN"}),
            new_output("display_data", {"application/javascript": "J", "text/plain": "<plain>"}),
        ),
    )
    assert "NOISE" not in text and "PLAIN" not in text
    for shown in ("epoch &lt;1&gt;", "&lt;plain&gt;", "<table></table>", "Parameters of this run"):
        assert shown in text


def test_a_page_that_is_too_big_is_refused(report):
    log = ran("1", new_output("stream", name="stdout", text="x" * 100_000))
    save(report / "notebooks" / "05_extra.ipynb", log)
    with pytest.raises(UserError, match=r"05_extra\.html would be 0\.\d MB; .* under 0\.05 MB"):
        site.build(report, limit=50_000)


def test_a_page_has_its_contents_its_neighbours_and_its_notebook(report):
    text = page(report, new_markdown_cell("# Title\n\nWhat is *it*?\n\n## A & $b$\n\n## C"))
    assert '<li><a href="#A-&amp;-b">A &amp; b</a></li>' in text
    assert [text.count(f'id="{name}"') for name in ("C", "A-&amp;-b")] == [1, 1]
    assert "ns0" not in text
    assert '<meta name="description" content="What is it?">' in text
    assert '<a rel="prev" href="03_compare.html">← Compare</a>' in text
    assert '<a rel="next" href="02_train-lstm-seed42.html">lstm-seed42 →</a>' in text
    assert '<a href="../notebooks/05_extra.ipynb" download>' in text


def test_under_a_front_page_each_page_leads_up_to_it(report):
    assert '<a href="../index.html">All reports' in site.build(report, front=True).read_text()
    assert '<a href="../../index.html">All reports' in (report / "pages/01_data.html").read_text()


def test_figures_are_drawn_from_text_and_logs_are_one_block(report):
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><text fill="#123456">5% &lt; "more"</text></svg>'
    words = {"image/svg+xml": {"alt": "A line", "caption": "A line is a mean.", "live": '["<"]'}}
    text = page(
        report,
        ran("1", new_output("display_data", {"image/svg+xml": svg}, metadata=words)),
        ran("2", *(new_output("stream", name="stdout", text=f"epoch {i}\n") for i in (1, 2))),
    )
    address = text.partition('src="data:image/svg+xml,')[2].partition('"')[0]
    assert "<figure data-live='[\"&lt;\"]'>" in text
    short = svg.replace('"', "'").replace("'more'", '"more"')  # of what is text nothing changes
    assert unquote(address) == short and "<figcaption>A line is a mean.</figcaption>" in text
    assert text.count('<details class="log">') == 1 and "epoch 1\nepoch 2\n</pre>" in text


def test_a_figure_of_panels_has_each_of_them_and_pixels_are_as_they_were(report):
    buffer = io.BytesIO()
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    picture.save(buffer, "png")
    png = base64.b64encode(buffer.getvalue()).decode()
    words = {"image/png": {"alt": "Two", "panels": [png, png]}}
    text = page(report, ran("1", new_output("display_data", {"image/png": PIXEL}, metadata=words)))
    assert '<div class="panels"><img ' in text and Links(text).alts == ["Two", ""]
    for address in re.findall('src="data:image/webp;base64,([^"]*)"', text):
        shown = Image.open(io.BytesIO(base64.b64decode(address)))
        assert np.array_equal(np.array(shown), np.array(picture))


def test_a_page_is_kept_as_it_was(report):
    figures = ran("1", figure("Loss falls")), ran("2 < 3")
    page(report, new_markdown_cell("# A\n\nB."), *figures)
    path = report / "pages/05_extra.html"
    name, title, body, stopped, *_ = site.kept(path)
    assert (name, title, stopped) == ("05_extra", "A", False)
    assert body == site.render(name, report / "notebooks/05_extra.ipynb").body
    path.write_text("<html>")
    with pytest.raises(UserError, match=r"05_extra\.html is no page of this project"):
        site.kept(path)


def test_what_has_no_look_is_left_out_of_tables_and_code():
    styled = pd.DataFrame({"a": [1]}).style.hide().to_html()
    frame = pd.DataFrame({"a": [1]})._repr_html_()
    assert site.plain(styled).strip() == (
        "<table><thead><tr><th >a</th></tr></thead><tbody><tr><td >1</td></tr></tbody></table>"
    )
    assert len(site.plain(frame)) < len(frame) / 2
    code = '<span class="k">if</span> <span class="n">a</span><span class="o">&lt;</span>'
    assert site.plain(code) == '<span class="k">if</span> a&lt;'


def test_of_many_runs_the_first_seed_and_the_failed_ones_have_pages(report, monkeypatch):
    monkeypatch.setattr(site, "RUN_PAGES", 3)

    def runs_with_a_page():
        site.build(report)
        return {path.stem.removeprefix("02_train-") for path in report.glob("pages/02_train-*")}

    assert runs_with_a_page() == {"lstm-seed42", "gru-seed42"}
    assert "Runs without a link have no page here." in (report / "index.html").read_text()
    (report / "runs/lstm-seed43/02_train.ipynb.failed").touch()
    assert runs_with_a_page() == {"lstm-seed42", "gru-seed42", "lstm-seed43"}


def test_a_style_sheet_loses_white_space_alone():
    css = '@media (a: b) {\n  p > a, li :hover { margin: 0 -1px; content: " ↑" }\n}\n'
    assert site.tight(css) == '@media (a:b){p > a,li :hover{margin:0 -1px;content:" ↑"}}'
    sheet = (site.TEMPLATES / "style.css").read_text()
    assert re.sub(r"\s", "", site.tight(sheet)) == re.sub(r"\s", "", sheet)
