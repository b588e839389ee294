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

from rnnbench_nb.cells import CELLS
from rnnbench_nb.figures.theme import legible
from rnnbench_nb.files import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
PAGE = README[README.index("## Add a cell") : README.index("## Add a task")]
FILES = dict(
    zip(
        re.findall(r"`(rnnbench_nb/cells/(?!base)\w+\.py)`", PAGE),
        re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL),
        strict=True,
    )
)


def command(folder: Path, *arguments) -> subprocess.CompletedProcess:
    code = "from rnnbench_nb.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder, text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the two cells of the README, and no other change."""
    ours = tmp_path_factory.mktemp("project") / "rnnbench"
    skipped = shutil.ignore_patterns(".*", "published", "__pycache__", "*.egg-info")
    shutil.copytree(PROJECT, ours, ignore=skipped)
    for file, text in FILES.items():
        (ours / file).write_text(text)
    return ours


def test_each_is_one_short_file():
    assert list(FILES) == ["rnnbench_nb/cells/elman.py", "rnnbench_nb/cells/oscillators.py"]
    assert all(len(text.splitlines()) <= 40 for text in FILES.values())


@pytest.mark.parametrize("name", ["elman", "oscillators"])
def test_each_keeps_the_contract_of_every_cell(project, name):
    done = command(project, "test-cell", name)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b1\d passed", done.stdout)


def test_a_broken_cell_does_not(project):
    good = (project / "rnnbench_nb/cells/elman.py").read_text()
    bad = good.replace('name, label = "elman"', 'name, label = "deaf"')
    bad = bad.replace("class Elman", "class Deaf").replace(" + h @ self.recurrent.T", "")
    (project / "rnnbench_nb/cells/deaf.py").write_text(bad)
    try:
        done = command(project, "test-cell", "deaf")
        assert done.returncode == 1
        assert "recurrent never learns" in done.stdout
    finally:
        (project / "rnnbench_nb/cells/deaf.py").unlink()


def test_a_report_with_them_beside_the_gru_is_whole(project, tmp_path):
    models = "[elman, oscillators, gru]"
    parameters, out = write_tiny(tmp_path / "p.yaml", models=models), tmp_path / "out"
    done = command(project, "run", parameters, "--output-dir", out)
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(out / "results.csv").set_index("variant")
    assert results["status"].eq("completed").all() and len(results) == 3
    head = 8 * 10 + 10
    assert results.loc["elman", "parameters"] == 8 * 8 + 8 * 8 + 8 + head  # W, U, b
    assert results.loc["oscillators", "free_parameters"] == 8 * 8 + 8 * 16 + 8 + head
    assert not (out / "pages/04_eigenvalues.html").exists()  # none has a matrix to show
    page = (out / "pages/07_gradients.html").read_text()
    assert all(label in page for label in ("Elman", "oscillators", "GRU"))
    figure = (out / "figures/test_comparison.svg").read_text()
    assert "Elman" in (out / "index.html").read_text()
    assert legible(CELLS["gru"].colour) in figure
    code = (
        "from rnnbench_nb.report import Report; import sys; r = Report(sys.argv[1]); "
        "print(len({look.colour for look in r.looks.values()}))"
    )
    looks = subprocess.run(
        [sys.executable, "-c", code, out], cwd=project, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(project)},
    )  # fmt: skip
    assert looks.stdout.strip() == "3", looks.stderr
