"""The README's page "Add a cell", followed word for word."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_tiny

from rnnbench_nb.files import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"`(rnnbench_nb/cells/(?!base)\w+\.py)`[^`]*```python\n(.*?)```", README, re.DOTALL)
)


def python(folder: Path, *arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
    )


def rnnbench(folder: Path, *arguments) -> subprocess.CompletedProcess:
    return python(folder, "-c", "from rnnbench_nb.cli import main; main()", *arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the cells of the README, and no other change."""
    ours = tmp_path_factory.mktemp("project") / "rnnbench"
    skipped = shutil.ignore_patterns(".*", "published", "__pycache__", "*.egg-info")
    shutil.copytree(PROJECT, ours, ignore=skipped)
    for file, text in FILES.items():
        (ours / file).write_text(text)
    return ours


def test_the_cell_is_one_short_file():
    assert list(FILES) == ["rnnbench_nb/cells/elman.py"]
    assert all(len(text.splitlines()) <= 40 for text in FILES.values())


def test_the_cell_keeps_the_contract_of_every_cell(project):
    done = rnnbench(project, "test-cell", "elman")
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b1\d passed", done.stdout)


def test_a_broken_cell_does_not(project):
    good = (project / "rnnbench_nb/cells/elman.py").read_text()
    bad = good.replace('name, label = "elman"', 'name, label = "deaf"')
    bad = bad.replace("class Elman", "class Deaf").replace(" + h @ self.recurrent.T", "")
    (project / "rnnbench_nb/cells/deaf.py").write_text(bad)
    try:
        only = ("-m", "pytest", "-p", "no:xdist", "tests/test_battery.py", "-k", "gradient")
        done = python(project, *only, RNNBENCH_CELL="deaf")
        assert done.returncode == 1 and "recurrent never learns" in done.stdout
    finally:
        (project / "rnnbench_nb/cells/deaf.py").unlink()


@pytest.mark.slow
def test_a_report_with_it_and_a_foreign_module_beside_the_gru_is_whole(project, tmp_path):
    models, variants = "[elman, gru, mine]", "{mine: {module: 'torch.nn:RNN'}}"
    parameters = write_tiny(tmp_path / "p.yaml", models=models, variants=variants)
    out = tmp_path / "out"
    done = rnnbench(project, "run", parameters, "--output-dir", out)
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(out / "results.csv").set_index("variant")
    assert results["status"].eq("completed").all() and len(results) == 3
    head = 8 * 10 + 10
    assert results.loc["elman", "parameters"] == 8 * 8 + 8 * 8 + 8 + head  # W, U, b
    assert results.loc["mine", "parameters"] == 8 * 8 + 8 * 8 + 2 * 8 + head
    page = (out / "pages/07_gradients.html").read_text()
    assert all(label in page for label in ("Elman", "GRU", "mine"))
