"""The environment: what make does about it, and what a stranger's machine does to a report."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pandas as pd
import pytest
from conftest import RNNBENCH, one_sentence, write_tiny

from rnnbench_nb.files import PROJECT


def make(folder: Path, *arguments: str) -> str:
    """What make prints in a folder with the project's Makefile."""
    shutil.copy(PROJECT / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    return subprocess.check_output(["make", *arguments], cwd=folder, text=True)


def test_environment_yml_lists_what_pyproject_asks_for():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {
        line
        for line in [*project["dependencies"], *extras["report"], *extras["lab"], *extras["dev"]]
        if "rnnbench" not in line
    }
    listed = set(re.findall(r'- "([^"]+)"', (PROJECT / "environment.yml").read_text()))
    assert listed - {"-e ."} == asked


ALONE = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refusal())
import rnnbench_nb.tasks, rnnbench_nb.training
import rnnbench_nb.cli
"""


def test_cells_tasks_and_training_need_none_of_the_packages_of_a_report():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    asked = project["optional-dependencies"]["report"]
    asked = {re.match(r"[\w.-]+", line)[0].replace("-", "_") for line in asked}
    modules = [
        module
        for module, names in packages_distributions().items()
        if {name.replace("-", "_") for name in names} & asked
    ]
    assert {"pandas", "sklearn", "ruamel"} <= set(modules)
    command = [sys.executable, "-c", ALONE, *modules]
    done = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True)
    assert one_sentence(done) == "rnnbench: needs more: pip install 'rnnbench_nb[report]'."


def test_a_target_installs_what_it_needs(tmp_path):
    for target, extra in (("report", "report"), ("lab", "lab"), ("test", "dev"), ("lint", "dev")):
        wanted = make(tmp_path, "-n", target)
        assert f'-e ".[{extra}]"' in wanted and wanted.count("-e ") == 1
    assert "whl/cpu" in make(tmp_path, "-n", "env", "TORCH=cpu")


def test_make_clean_leaves_results_where_they_are(tmp_path):
    for name in ("reports/quick", ".venv", ".ruff_cache"):
        (tmp_path / name).mkdir(parents=True)
    make(tmp_path, "-s", "clean")
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "pyproject.toml", "reports"}


@pytest.mark.parametrize("there", ["broken", "moved", "ready"])
def test_an_environment_that_is_broken_or_was_moved_is_made_anew(tmp_path, there):
    programs, python = tmp_path / "mein Gerät/.venv/bin", tmp_path / "python"
    programs.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "python $@"\ncp "$0" .venv/bin/python 2> /dev/null || :\n')
    python.chmod(0o755)
    home = "/elsewhere/.venv/bin" if there == "moved" else programs
    (programs / "rnnbench").write_text(f"#!{home}/python\n")
    if there != "broken":
        shutil.copy(python, programs)
        (programs.parents[1] / "pyproject.toml").touch()
        (programs.parent / "report.ready").touch()
    printed = make(programs.parents[1], "-s", "env", f"PYTHON={python}")
    assert ("-I -m venv --clear .venv" in printed) == (there != "ready")


def test_a_program_of_a_copied_environment_names_the_command_that_renews_it(tmp_path):
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    copied = Path(shutil.copy(RNNBENCH, programs))
    sentence = one_sentence(subprocess.run([copied, "list"], text=True, capture_output=True))
    assert str(copied) in sentence and sys.prefix in sentence and "make env" in sentence


def hostile(place: Path) -> tuple[dict[str, str], Path]:
    """The environment of a machine that was set up for other work, and a folder to stand in."""
    broken = "raise SystemExit('this module is not the project\\'s')\n"
    kernel = {"argv": ["false"], "display_name": "another", "language": "python"}
    files = {
        "startup.py": "history_file = '~/.python_history'\n",
        "matplotlibrc": "figure.dpi: 30\nlines.linewidth: 9\nsvg.fonttype: none\nbackend: TkAgg\n",
        "ipython/profile_default/startup/00.py": "gamma = 3\nhistory_file = 'x'\n",
        "ipython/profile_default/ipython_config.py": broken,
        "jupyter/kernels/python3/kernel.json": json.dumps(kernel),
        "jupyter/jupyter_config.py": broken,
        "snakemake/config.yaml": "dry-run: true\n",
        "here/random.py": broken,
        "here/torch.py": broken,
        "here/matplotlibrc": "figure.dpi: 20\n",
    }
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    settings = {
        "MATPLOTLIBRC": "matplotlibrc",
        "PYTHONSTARTUP": "startup.py",
        "IPYTHONDIR": "ipython",
        "JUPYTER_PATH": "jupyter",
        "JUPYTER_CONFIG_DIR": "jupyter",
        "JUPYTER_DATA_DIR": "jupyter",
        "XDG_CONFIG_HOME": "",
        "XDG_DATA_HOME": "",
        "SNAKEMAKE_PROFILE": "snakemake",
        "GIT_DIR": "none",
        "HOME": "startup.py/none",
    }
    values = {
        "MPLBACKEND": "TkAgg",
        "LANG": "C",
        "LC_ALL": "POSIX",
        "LANGUAGE": "de",
        "PYTHONINSPECT": "1",
        "PYTHONHASHSEED": "7",
        "CDPATH": "/",
        "PIP_USER": "1",
        "JPY_SESSION_NAME": "x.ipynb",
    }
    return {name: str(place / value) for name, value in settings.items()} | values, place / "here"


@pytest.mark.slow
def test_a_report_of_a_hostile_machine_is_that_of_a_clean_one(report, tmp_path):
    settings, here = hostile(tmp_path / "hostile")
    out, parameters = tmp_path / "out", write_tiny(tmp_path / "tiny.yaml")
    done = subprocess.run(
        [RNNBENCH, "run", parameters, "--output-dir", out],
        cwd=here,
        text=True,
        capture_output=True,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
    )
    # The exit code is not rnnbench's: PYTHONINSPECT has Python print its SystemExit and return 1.
    assert done.stdout.endswith(f"{out}/index.html\n"), done.stderr
    assert "rnnbench: " not in done.stderr and not list(out.glob("**/*.failed"))
    for name in ("results.csv", "history.csv"):
        ours, theirs = (pd.read_csv(folder / name) for folder in (out, report))
        pd.testing.assert_frame_equal(
            ours.drop(columns="seconds"), theirs.drop(columns="seconds"), check_exact=True
        )
    files = ["runs/agru-seed42/predictions.safetensors", "runs/agru-seed42/best.safetensors"]
    files += [
        f"figures/{name}.{kind}"
        for kind in ("png", "svg")
        for name in ("training_curves", "error_curves", "test_comparison")
    ]
    for file in files:
        assert (out / file).read_bytes() == (report / file).read_bytes(), file


def test_all_that_a_run_reads_is_installed():
    build = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {
        path: f"{place}/{path.name}".removeprefix("share/rnnbench/")
        for place, patterns in build["data-files"].items()
        for pattern in patterns
        for path in PROJECT.glob(pattern)
    }
    folders = ("params", "notebooks", "profiles")
    command = ["git", "-C", PROJECT, "ls-files", "Snakefile", *folders]
    asked = {PROJECT / name for name in subprocess.check_output(command, text=True).split()}
    assert len(asked) > 30 and asked <= installed.keys()
    assert all(str(path.relative_to(PROJECT)) == place for path, place in installed.items())


@pytest.mark.slow
def test_an_installed_package_makes_a_report_in_an_empty_folder(tmp_path):
    """With the packages of this environment, which need no network."""
    source, here, venv = (tmp_path / name for name in ("source", "here", "venv"))
    skipped = shutil.ignore_patterns(".*", "reports", "tests", "build", "__pycache__")
    shutil.copytree(PROJECT, source, ignore=skipped)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run([sys.executable, *wheel], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python, (site,) = venv / "bin/python", venv.glob("lib/python*/site-packages")
    install = [*pip, "install", "--no-deps", *tmp_path.glob("*.whl")]
    subprocess.run([python, *install], check=True, capture_output=True)
    papermill = Path(RNNBENCH).with_name("papermill").read_text()
    (venv / "bin/papermill").write_text(f"#!{python}\n{papermill.partition(os.linesep)[2]}")
    (venv / "bin/papermill").chmod(0o755)
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (venv / "share/jupyter").mkdir(parents=True, exist_ok=True)
    (venv / "share/jupyter/nbconvert").symlink_to(Path(sys.prefix, "share/jupyter/nbconvert"))
    subprocess.run(["git", "clone", "-qn", PROJECT, here], check=True)  # another project's commit
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def rnnbench(*arguments):
        command = [venv / "bin/rnnbench", *arguments]
        return subprocess.run(command, cwd=here, env=clean, text=True, capture_output=True)

    tiny = ["--quick", "--models", "gru", "--runs", "1", "--set", "dataset=digits"]
    done = rnnbench("run", "quick", *tiny, "--set", "hidden_size=8")
    assert done.returncode == 0, done.stderr
    report = here / "reports/quick-quick"
    assert done.stdout.endswith(f"{report}/index.html\n")
    assert (report / "pages/03_compare.html").exists() and not list(report.glob("**/*.failed"))
    run = report / "runs/gru-seed42"
    assert json.loads((run / "run.json").read_text())["commit"] == "unknown"
    assert "reports/quick-quick: 1 of 1 runs\n" in rnnbench("list").stdout
    assert rnnbench("show", run).stdout.startswith("gru, seed 42, is completed.")
    assert "agrees" in rnnbench("verify", report).stdout
    assert rnnbench("publish", report).stdout.endswith("reports/published/quick-quick/index.html\n")
    assert "quick-quick agrees" in rnnbench("verify").stdout
    assert "use a checkout" in one_sentence(rnnbench("test-cell", "gru"))
    assert not {path.name for path in here.iterdir()} - {"reports", ".git"}
