"""An environment that was moved or copied with its folder, and what `make env` does about it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RNNBENCH, one_sentence

from rnnbench_nb.files import PROJECT
from rnnbench_nb.relocate import relocate


def test_programs_start_the_python_beside_them(tmp_path, monkeypatch):
    python = tmp_path / "mein Gerät" / ".venv/bin/python"  # a space needs more than #!
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(python))
    (python.parent / "papermill").write_text("#!/elsewhere/.venv/bin/python\n")
    relocate(python.parent)
    for name in ("rnnbench", "papermill", "snakemake", "pytest"):
        text = (python.parent / name).read_text()
        assert str(python) in text and "/elsewhere" not in text
    for name in ("activate", "../pyvenv.cfg"):
        assert str(python.parent.parent) in (python.parent / name).read_text()
    shutil.copy(python.parent / "rnnbench", python.parent / "echo")
    text = (python.parent / "echo").read_text()
    (python.parent / "echo").write_text(text[: text.index("import")] + "print('started')\n")
    assert subprocess.check_output([python.parent / "echo"], text=True) == "started\n"


@pytest.mark.parametrize("name", ["plain", "mein Gerät (2)"])
def test_make_mends_an_environment_of_another_folder_and_leaves_its_own_alone(tmp_path, name):
    folder = tmp_path / name
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    shutil.copy(PROJECT / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    python = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/called"\n'
    (programs / "python").write_text(python)
    (programs / "python").chmod(0o755)
    (folder / ".venv/ready").touch()

    def called():
        subprocess.run(
            ["make", "-s", "env", "PYTHON=false"], cwd=folder, check=True, capture_output=True
        )
        path = programs / "called"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    (programs / "rnnbench").write_text(f"#!{programs}/python\n")
    assert called() == []
    (programs / "rnnbench").write_text("#!/elsewhere/.venv/bin/python\n")
    mended, installed = called()
    assert mended == "-I rnnbench_nb/relocate.py"
    assert installed.endswith("--quiet --no-deps --no-build-isolation -e .")
    assert (folder / ".venv/ready").exists()
    os.utime(folder / "pyproject.toml")  # newer than the environment, as in a clone
    assert [line for line in called() if "relocate.py" in line]  # or others' programs stay
    (programs / "rnnbench").write_text(f"#!{programs}/python\n")
    folder = folder.rename(tmp_path / "moved")
    programs = folder / ".venv/bin"
    assert len(called()) == 2


@pytest.mark.parametrize("there", ["absent", "broken"])
def test_make_makes_an_environment_where_there_is_none_that_starts(tmp_path, there):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    if there == "broken":
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/python").symlink_to("/no/python")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    command = ["make", "-s", "env", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "-I -m venv --clear .venv" in done.stdout
    assert "some minutes, and several GB" in done.stdout  # said before it takes them
    assert "`make env TORCH=cpu` takes the one without CUDA" in done.stdout


def test_a_copied_environment_does_not_silently_run_the_originals_code(tmp_path):
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    copied = Path(shutil.copy(RNNBENCH, programs))
    done = subprocess.run([copied, "list"], text=True, capture_output=True)
    assert f"{copied} starts the Python of another folder, {sys.prefix}: make env" in (
        one_sentence(done)
    )


def test_make_says_what_it_can(tmp_path):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    said = subprocess.check_output(["make", "-s", "help"], cwd=tmp_path, text=True)
    targets = {line.split()[1] for line in said.splitlines()}
    assert targets == {"report", "test", "lab", "lint", "env", "clean"}
    wanted = subprocess.check_output(["make", "-n", "env", "TORCH=cpu"], cwd=tmp_path, text=True)
    assert "torch --index-url https://download.pytorch.org/whl/cpu" in (
        wanted.replace("\\\n", "").replace("\t", "")
    )


def test_make_clean_leaves_results_where_they_are(tmp_path):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("reports/quick", ".venv", ".ruff_cache"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["make", "-s", "clean"], cwd=tmp_path, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "reports"}
    assert (tmp_path / "reports/quick").exists()


def test_make_test_slurm_sets_up_what_it_needs(tmp_path):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    wanted = subprocess.check_output(["make", "-n", "test-slurm"], cwd=tmp_path, text=True)
    assert '-e ".[slurm]"' in wanted[: wanted.index("tests/slurm/run.sh")]
