"""The README's page "Add a cell", followed word for word."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import test_battery as battery
from conftest import rnnbench_here, write_tiny

from rnnbench_nb import cells
from rnnbench_nb.cells import CELLS, Cell
from rnnbench_nb.files import PROJECT
from rnnbench_nb.plugins import discover
from rnnbench_nb.tasks import DEFAULT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
((FILE, TEXT),) = re.findall(
    r"`(rnnbench_nb/cells/(?!base)\w+\.py)`[^`]*```python\n(.*?)```", README, re.DOTALL
)
CONTRACT = [
    test
    for name, test in vars(battery).items()
    if name.startswith("test_") and [*inspect.signature(test).parameters] == ["cell"]
]


@pytest.fixture
def add(monkeypatch, tmp_path):
    """Finds a cell's file as if it lay beside the others."""

    def found(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(cells, "__path__", [*cells.__path__, str(tmp_path)])
        monkeypatch.setitem(CELLS, name, discover(cells, Cell)[name])
        sys.modules.pop(f"{cells.__name__}.{name}")

    return found


def test_the_cell_is_one_short_file_that_keeps_the_contract_of_every_cell(add, tmp_path):
    assert FILE == "rnnbench_nb/cells/elman.py" and len(TEXT.splitlines()) <= 40
    add("elman", TEXT)
    assert len(CONTRACT) >= 8
    for test in CONTRACT:
        test("elman")
    battery.test_every_cell_learns_every_task("elman", DEFAULT)
    battery.test_training_that_was_killed_goes_on_to_the_same_weights("elman", tmp_path)


def test_a_broken_cell_does_not(add):
    bad = TEXT.replace('name, label = "elman"', 'name, label = "deaf"')
    add("deaf", bad.replace("class Elman", "class Deaf").replace(" + h @ self.recurrent.T", ""))
    with pytest.raises(AssertionError, match="recurrent never learns"):
        battery.test_every_trained_parameter_has_a_gradient_and_is_counted("deaf")


def test_the_command_runs_the_battery_for_one_cell(monkeypatch):
    calls = []

    def run(command, env, **_):
        calls.append((command[-1], env["RNNBENCH_CELL"]))
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", run)
    assert rnnbench_here("test-cell", "gru").returncode == 3
    assert calls == [("tests/test_battery.py", "gru")]


@pytest.mark.slow
def test_a_report_with_it_and_a_foreign_module_beside_the_gru_is_whole(tmp_path):
    project, out = tmp_path / "rnnbench", tmp_path / "out"
    skipped = shutil.ignore_patterns(".*", "published", "__pycache__", "*.egg-info")
    shutil.copytree(PROJECT, project, ignore=skipped)
    (project / FILE).write_text(TEXT)
    models, variants = "[elman, gru, mine]", "{mine: {module: 'torch.nn:RNN'}}"
    parameters = write_tiny(tmp_path / "p.yaml", models=models, variants=variants)

    def rnnbench(*arguments):
        call = [sys.executable, "-c", "from rnnbench_nb.cli import main; main()", *arguments]
        done = subprocess.run(
            call,
            cwd=project,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(project)},
        )
        assert done.returncode == 0, done.stdout + done.stderr

    rnnbench("test-cell", "elman")
    rnnbench("run", str(parameters), "--output-dir", str(out))
    results = pd.read_csv(out / "results.csv").set_index("variant")
    assert results["status"].eq("completed").all() and len(results) == 3
    head = 8 * 10 + 10
    assert results.loc["elman", "parameters"] == 8 * 8 + 8 * 8 + 8 + head  # W, U, b
    assert results.loc["mine", "parameters"] == 8 * 8 + 8 * 8 + 2 * 8 + head
    page = (out / "pages/07_gradients.html").read_text()
    assert all(label in page for label in ("Elman", "GRU", "mine"))
