"""What code a number depends on, and which commit that was."""

import ast
import json
import os
import shutil
import subprocess

import nbformat
import pytest

from rnnbench_nb import provenance
from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT
from rnnbench_nb.provenance import PACKAGE, commit, environment, fingerprint

TASK = "image_sequence"
ANTISYMMETRIC = {"antisymmetric_rnn", "gated_antisymmetric_rnn"}  # one builds on the other


@pytest.fixture
def copied(monkeypatch, tmp_path):
    """A copy of the package, to be changed."""
    shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "package")

    def changed(file, old, new):
        path = tmp_path / "package" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        fingerprint.cache_clear()
        return {name: fingerprint(name, TASK) for name in CELLS}

    fingerprint.cache_clear()
    yield changed
    fingerprint.cache_clear()


def test_comments_docstrings_formatting_and_what_errors_say_change_nothing(copied):
    before = copied("cells/gru.py", "n = torch.tanh(", "n = torch.tanh(")
    assert (
        copied("cells/gru.py", "n = torch.tanh(", "# a comment\n        n  =  torch.tanh(")
        == before
    )
    assert copied("training.py", '"""The one training loop', '"""Another word') == before
    assert copied("cells/kernels/agru.cpp", "\n", "\n// a comment\n") == before
    assert copied("training.py", "holds a run with other", "has a run with other") == before


@pytest.mark.parametrize(
    ("file", "old", "new", "concerned"),
    [
        ("cells/gru.py", "r * h_n", "h_n", {"gru"}),
        ("cells/agru.py", "h + epsilon * (z", "h - epsilon * (z", {"agru"}),
        ("cells/kernels/agru.cpp", "+=", "-=", {"agru"}),
        ("cells/antisymmetric_rnn.py", "return h +", "return h -", ANTISYMMETRIC),
        ("training.py", "MOMENTUM = 0.9", "MOMENTUM = 0.8", set(CELLS)),
        ("training.py", "there != self", "there == self", set(CELLS)),
        ("tasks/images.py", "FRACTION = 0.15", "FRACTION = 0.2", set(CELLS)),
        ("site.py", "import", "import os, ", set()),
    ],
)
def test_what_a_number_depends_on_changes_it_for_those_concerned(copied, file, old, new, concerned):
    before = copied(file, old, old)
    after = copied(file, old, new)
    assert {name for name in before if before[name] != after[name]} == concerned


def test_every_cell_has_a_fingerprint_of_its_own():
    assert len({fingerprint(name, TASK) for name in CELLS}) == len(CELLS)


def test_a_machine_without_git_has_an_unknown_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] == "unknown"


def git(folder, *arguments):
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        check=True, capture_output=True,
    )  # fmt: skip


def test_the_commits_of_published_runs_are_in_the_history():
    asked = ["git", "-C", PROJECT, "rev-parse", "--is-shallow-repository"]
    if subprocess.run(asked, capture_output=True, text=True).stdout.strip() != "false":
        pytest.skip("this copy of the project has no whole history")
    records = (PROJECT / "reports/published").glob("*/runs/*/run.json")
    named = {json.loads(path.read_text())["commit"].removesuffix("-dirty") for path in records}
    history = subprocess.run(["git", "-C", PROJECT, "rev-list", "HEAD"], check=True,
                             capture_output=True, text=True).stdout.split()  # fmt: skip
    assert len(named) > 10 and named <= set(history)


def test_the_commit_is_the_projects_own_not_one_around_it(monkeypatch, tmp_path):
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "around")
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(provenance, "PROJECT", tmp_path / "inside")
    assert commit() == "unknown"
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    ours = commit()
    assert len(ours) == 40
    monkeypatch.setenv("GIT_DIR", os.devnull)
    assert commit() == ours


def test_a_notebook_that_was_executed_and_saved_has_not_changed(monkeypatch, tmp_path):
    """JupyterLab saves outputs by itself; the code that made a run is still that of the commit."""
    git(tmp_path, "init")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    nbformat.write(notebook, tmp_path / "ä.ipynb")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "made")
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    ours = commit()
    notebook.cells[0].update(
        execution_count=1, outputs=[nbformat.v4.new_output("stream", text="2")]
    )
    nbformat.write(notebook, tmp_path / "ä.ipynb")
    assert commit() == ours and not ours.endswith("-dirty")
    notebook.cells[0]["source"] = "1 + 2"
    nbformat.write(notebook, tmp_path / "ä.ipynb")
    assert commit() == f"{ours}-dirty"


def test_a_fingerprint_is_the_same_from_every_version_of_python():
    """From 3.12 on a function has `type_params`, which are empty here, and 3.13 dumps no such."""
    tree = ast.parse("def f(a, b=1):\n    return a[0]")
    text = (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='a'), arg(arg='b')], "
        "defaults=[Constant(value=1)]), body=[Return(value=Subscript(value=Name(id='a', "
        "ctx=Load()), slice=Constant(value=0), ctx=Load()))])])"
    )
    assert provenance._written(tree) == text
    (function,) = tree.body
    function._fields, function.type_params = (*ast.FunctionDef._fields, "type_params"), []
    assert provenance._written(tree) == text
