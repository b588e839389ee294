"""The start notebook: a training that is watched, its time, and its sliders in JupyterLab."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import CHROMIUM
from in_process import execute

from rnnbench_nb import demonstration
from rnnbench_nb.files import PROJECT
from rnnbench_nb.metrics import Score

NAME = "00_start"
SMALL = {"epochs": 2, "hidden_size": 8}


def texts(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [each.data["text/markdown"] for each in outputs if "text/markdown" in each.data]


def test_it_trains_two_cells_one_after_the_other_and_compares_them(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstration, "mkdtemp", lambda: tmp_path / "report")
    notebook = execute(NAME, tmp_path / "out.ipynb", **SMALL)
    said = texts(notebook)
    watched = [text for text in said if ": epoch 2 of 2, validation accuracy " in text]
    assert [text.partition(":")[0] for text in watched] == ["A-GRU", "GRU"]
    assert not [text for text in said if "epoch 1 of 2" in text]  # it was replaced
    assert any("A-GRU minus GRU: " in text for text in said)
    figures = [output for cell in notebook.cells for output in cell.get("outputs", [])
               if {"image/svg+xml", "image/png"} & set(output.get("data", {}))]  # fmt: skip
    assert len(figures) == 5  # an image, what was learned twice, mistakes, eigenvalues


@pytest.mark.parametrize(
    ("epoch", "said"),
    [
        (1, "epoch 1 of 4, validation accuracy 62.5%; about 30 s left at most."),
        (4, "epoch 4 of 4, validation accuracy 62.5%; it took 10 s."),
    ],
)
def test_how_far_a_training_is(epoch, said):
    rows = [(1, "validation", 0.1), (epoch, "train", 0.9), (epoch, "validation", 0.625)]
    history = pd.DataFrame(rows, columns=["epoch", "split", "accuracy"])
    assert demonstration.standing(history, 4, 10.0, Score("accuracy", 100, "%")) == said


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_in_two_minutes(tmp_path):
    def seconds():  # of the processors: a machine that has other work to do is no slow notebook
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    begun, out = seconds(), tmp_path / "out.ipynb"
    papermill.execute_notebook(PROJECT / f"notebooks/{NAME}.ipynb", out, progress_bar=False)
    assert 1 < seconds() - begun < 120
    assert any("A-GRU minus GRU: " in text for text in texts(nbformat.read(out, as_version=4)))


@pytest.fixture
def lab(tmp_path):
    """The address of the notebook in a JupyterLab over a copy of the notebooks."""
    shutil.copytree(PROJECT / "notebooks", tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               f"--notebook-dir={tmp_path}", "--IdentityProvider.token=known"]  # fmt: skip
    environment = {**os.environ, **places, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        for _ in range(60):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/api?token=known").close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://localhost:{port}/lab/tree/notebooks/{NAME}.ipynb?token=known"
        server.terminate()


@pytest.mark.slow
def test_its_figure_is_alive_and_its_sliders_move_the_disc_in_jupyterlab(lab, tmp_path):
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
        told = page.get_by_text("A-GRU: epoch ")
        told.wait_for()
        seen = set()
        while "it took" not in (text := told.inner_text()):
            seen.add(text)
            page.wait_for_timeout(200)
        assert len(seen) > 3
        page.get_by_text("A-GRU minus GRU: ").wait_for()
        slider, picture = page.get_by_role("slider").first, page.locator(".widget-interact img")
        before = picture.get_attribute("src")
        slider.press("ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('.widget-interact img').src !== before", arg=before
        )
        page.screenshot(path=tmp_path / "lab.png")
        browser.close()
