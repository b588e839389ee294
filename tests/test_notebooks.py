"""Notebooks: their sources, and what those of this file show of small reports."""

import ast
import os
import shutil
import socket
import subprocess
import sys

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import CHROMIUM
from in_process import execute
from small_reports import write_small

from rnnbench_nb import launch, notebook
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.notebook import claim, measured_table, open_report
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.results import Report, load_run, write_json
from rnnbench_nb.runs import new_marker, train_run

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
PUBLISHED = PROJECT / "reports/published"


def code_of(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_sources_are_light_and_readable(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    tagged = [cell for cell in code_of(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for cell in code_of(path):
        assert not cell.outputs and cell.execution_count is None
        assert cell in tagged or len(cell.source.splitlines()) <= 25, cell.source
        assert "\nclass " not in cell.source
    for name, entry in papermill.inspect_notebook(path).items():
        assert entry["inferred_type_name"] != "None" and len(entry["help"]) > 3, name


def test_the_notebooks_hold_at_most_a_thousand_lines_of_code():
    code = "\n".join(cell.source for path in NOTEBOOKS for cell in code_of(path))
    assert len([line for line in code.split("\n") if line.strip()]) <= 1000


def test_the_training_notebook_declares_what_a_variant_file_holds_with_the_quick_values():
    declared = papermill.inspect_notebook(PROJECT / "notebooks/02_train.ipynb")
    (quick, *_) = load_protocol("quick").parameterisations.values()
    assert set(declared) == {*quick.for_notebook(), "output_dir"}  # so papermill warns of no key
    for name, value in quick.for_notebook().items():
        if name not in ("model", "variant", "options"):
            assert ast.literal_eval(declared[name]["default"]) == value, name


def test_a_parameter_that_the_training_notebook_does_not_have_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown key 'gama'; the nearest known key is 'gamma'"):
        execute("02_train", tmp_path / "out.ipynb", gama=0.5)


def outputs(executed, kind):
    """The outputs that have data of a kind, such as image/png."""
    every = [output for cell in executed.cells for output in cell.get("outputs", [])]
    return [each for each in every if kind in each.get("data", {})]


def texts(executed):
    return [each.data["text/markdown"] for each in outputs(executed, "text/markdown")]


def pictures(executed):
    """The `alt` text of every figure."""
    return [each.metadata["image/png"]["alt"] for each in outputs(executed, "image/png")]


def test_without_a_report_a_published_one_is_shown_and_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "DEFAULT_REPORT", "reports/none")
    executed = execute("07_gradients", tmp_path / "out.ipynb", output_dir="reports/none")
    first, report = texts(executed)[0], Report(PROJECT / notebook.EXAMPLE)
    assert first.startswith("**There is no reports/none yet**") and notebook.EXAMPLE in first
    runs = measured_table(report, "along").groupby(["label", "moment", "seed"])["log10_gradient"]
    decades = (runs.first() - runs.last()).groupby(["label", "moment"]).mean()
    most = decades.xs("trained", level="moment").abs().idxmax()
    sentence = f"changes by the most in {most}: by {decades[most, 'trained']:+.1f} powers of ten"
    assert any(sentence in text for text in texts(executed))
    assert len(pictures(executed)) == 4 and all(pictures(executed))
    with pytest.raises(UserError, match="has no report"):
        open_report("reports/another")


def test_eigenvalues_of_a_small_report(report):
    executed = nbformat.read(report / "notebooks/04_eigenvalues.ipynb", as_version=4)
    assert any("enlarges some mode in 1 of 1 runs" in text for text in texts(executed))
    assert any(text.startswith("Measured growth and theory agree") for text in texts(executed))
    assert not any("cause" in text for text in texts(executed))  # with one seed none leads
    assert len(pictures(executed)) == 5


def test_eigenvalues_of_a_cell_that_does_not_tell_the_parts_of_its_step(tmp_path):
    values = {"models": ["antisymmetric_rnn"], "dataset": "digits", "epochs": 1, "runs": 1}
    protocol = load_protocol("quick", {**values, "hidden_size": 6, "offline_fallback": None})
    write_json(tmp_path / "report.json", new_marker("x", protocol))
    (parameters,) = protocol.at(protocol.seeds[0])
    assert not hasattr(CELLS[parameters.model], "path_terms")
    train_run(parameters, tmp_path / f"runs/{parameters.run}", lambda line: None)
    executed = execute("04_eigenvalues", tmp_path / "out.ipynb", output_dir=str(tmp_path))
    assert any(text.startswith("No cell of this report has the terms") for text in texts(executed))


def test_memory_over_several_lengths_from_published_tables_alone(tmp_path):
    report = Report(PUBLISHED / "copying")
    executed = execute("08_memory", tmp_path / "out.ipynb", output_dir=str(report.folder))
    floor = report.table("memoryless").query("variant == 'gru_100_rate_0.03'")["floor"].mean()
    loss = report.results.query("variant == 'gru_100_rate_0.03'")["loss"].mean()
    solved = f"With **120 steps**, the task is solved by GRU_rate_0.03 ({loss / floor:.2%})."
    assert solved in texts(executed)
    assert any(
        text.startswith("With **520 steps**, the task is lost by A-GRU (")
        for text in texts(executed)
    )
    learned, dynamics = outputs(executed, "text/html")
    assert "never" in learned.data["text/html"] and "reach" in dynamics.data["text/html"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["04_eigenvalues", "07_gradients", "08_memory"])
@pytest.mark.parametrize("report", ["noise_tuned", "pixel_mnist"])
def test_published_reports_are_shown_from_their_tables(name, report, tmp_path):
    assert pictures(execute(name, tmp_path / "x.ipynb", output_dir=str(PUBLISHED / report)))


def test_the_start_trains_two_cells_one_after_the_other(tmp_path):
    executed = execute("00_start", tmp_path / "out.ipynb", epochs=2, hidden_size=8)
    assert len(pictures(executed)) == 5  # an image, two curves, mistakes, eigenvalues
    assert any("correctly, and the GRU" in text for text in texts(executed))
    assert any(text.startswith("The A-GRU misreads ") for text in texts(executed))


def test_the_page_of_a_run_needs_no_weights(report, tmp_path):
    shutil.copytree(report / "runs", tmp_path / "report/runs")
    run = load_run(tmp_path / "report/runs/agru-seed42")
    for path in run.folder.glob("*.safetensors"):
        if path.stem != "predictions":  # as of a run that was copied from a published report
            path.unlink()
    asked = run_parameters(run.record["parameters"], "the test").for_notebook()
    folder = str(tmp_path / "report")
    executed = execute("02_train", tmp_path / "out.ipynb", **asked, output_dir=folder)
    assert len(pictures(executed)) == 3
    assert any("test examples" in text for text in texts(executed))


@pytest.fixture
def shown(monkeypatch):
    """The sentences that are displayed."""
    sentences = []
    monkeypatch.setattr(notebook, "display", lambda markdown: sentences.append(markdown.data))
    return sentences


def test_what_is_missing_is_shown_first(report, tmp_path, shown):
    shutil.copy(report / "report.json", tmp_path)
    shutil.copytree(report / "runs/agru-seed42", tmp_path / "runs/agru-seed42")
    record = tmp_path / "runs/agru-seed42/run.json"
    text = record.read_text().replace('"unmeasured": {}', '"unmeasured": {"growth": "no"}')
    record.write_text(text)
    open_report(str(tmp_path))
    missing, unmeasured = shown
    assert missing.startswith("**Missing:** lstm-seed42 is missing: ")
    assert unmeasured == "**Missing:** growth of agru-seed42: no"


@pytest.mark.filterwarnings("ignore:To exit")
@pytest.mark.parametrize("page", launch.PAGES)
def test_a_page_ends_with_a_sentence_where_no_run_finished(tmp_path, shown, page):
    folder = write_small(tmp_path / "none", {"lem": [None, "no memory"], "agru": [None]})
    execute(page, tmp_path / "page.ipynb", output_dir=str(folder))
    assert shown[0].startswith("**No run of this report has finished.**")
    assert "**Missing:** lem-seed43 is failed: no memory" in shown


def test_a_page_ends_where_no_run_was_measured(tmp_path, shown):
    report = Report(write_small(tmp_path / "made", {"lem": [0.5]}))
    with pytest.raises(SystemExit):
        measured_table(report, "spectra")
    assert shown == ["**No finished run has the table spectra**, so this page ends here."]


def test_a_claim_is_shown_if_its_condition_holds(shown):
    claim("{n:,} steps and {x:+.2f}", n=1000, x=0.5)
    claim("never", pd.Series([True, False]).all())
    assert shown == ["1,000 steps and +0.50"]


@pytest.fixture
def lab(tmp_path):
    """The address of the start in a JupyterLab over a copy of the notebooks."""
    shutil.copytree(PROJECT / "notebooks", tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        f"--notebook-dir={tmp_path}",
        "--IdentityProvider.token=known",
    ]
    environment = {**os.environ, **places, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        next(line for line in server.stderr if "is running at" in line)
        yield f"http://localhost:{port}/lab/tree/notebooks/00_start.ipynb?token=known"
        server.terminate()


@pytest.mark.slow
def test_in_jupyterlab_the_curve_is_alive_and_sliders_move_the_disc(lab):
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium is installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 6000})  # all cells are there
        page.set_default_timeout(120_000)
        page.goto(lab)
        page.get_by_role("heading", name="Watch it learn").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        curve = page.locator(".jp-RenderedImage img").nth(1)
        curve.wait_for()
        seen = {curve.get_attribute("src")}
        shown = page.locator(".jp-OutputArea-output")  # not the source of a cell
        while not shown.filter(has_text="The A-GRU misreads ").count():
            seen.add(curve.get_attribute("src"))
            page.wait_for_timeout(200)
        assert len(seen) > 3
        shown.filter(has_text="correctly, and the GRU").wait_for()
        slider, picture = page.get_by_role("slider").first, page.locator(".widget-interact img")
        before = picture.get_attribute("src")
        slider.press("ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('.widget-interact img').src !== before", arg=before
        )
        browser.close()
