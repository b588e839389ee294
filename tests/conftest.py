"""What several test files share: tiny protocols on digits, and one finished tiny report."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from rnnbench_nb.cli import main
from rnnbench_nb.experiment import PROJECT, RunParameters, run_parameters

RNNBENCH = str(Path(sys.executable).with_name("rnnbench"))
TINY = {"dataset": "digits", "hidden_size": 8, "epochs": 2, "learning_rate": 0.01}


def rnnbench(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own, as a user calls it."""
    return subprocess.run(
        [RNNBENCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=PROJECT,
    )


def rnnbench_here(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The same in this process, where all is imported; what Snakemake prints is not captured."""
    result = CliRunner().invoke(main, [*map(str, arguments)], env=environment)
    code, output, errors = result.exit_code, result.stdout, result.stderr
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    del result  # with it goes the lock on the output folder, which ends with the process elsewhere
    gc.collect()
    return subprocess.CompletedProcess(arguments, code, output, errors)


def one_sentence(result):
    """The error of a command that failed: one line, no traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("rnnbench: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def write_tiny(path: Path, **values) -> Path:
    """A small parameter file."""
    settings = {**TINY, "models": ["lstm", "agru"], "runs": 1, **values}
    path.write_text("\n".join(f"{key}: {value}" for key, value in settings.items()))
    return path


@pytest.fixture
def tiny() -> RunParameters:
    return run_parameters({"model": "agru", **TINY}, "the test")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    """A finished report, in a folder whose name a shell, HTML or ASCII would trip over."""
    folder = tmp_path_factory.mktemp("""a report's "höme" $(false); <b>&""")
    out = folder / "tiny"
    finished = rnnbench("run", write_tiny(folder / "tiny.yaml"), "--output-dir", out)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip().endswith(str(out / "index.html"))
    return out
