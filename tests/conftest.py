"""What several test files share: tiny protocols on digits, one finished report, ways to call."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # in every process: more of them only fight over few cores

import pytest  # noqa: E402
import torch  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from filelock import FileLock  # noqa: E402

# Where there is no GPU, kernels in Triton run in its interpreter, if this is set before its import.
os.environ["TRITON_INTERPRET"] = str(int(not torch.cuda.is_available()))

from rnnbench_nb.cli import main  # noqa: E402
from rnnbench_nb.files import PROJECT  # noqa: E402
from rnnbench_nb.protocol import RunParameters, run_parameters  # noqa: E402

RNNBENCH = str(Path(sys.executable).with_name("rnnbench"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
TINY = {"dataset": "digits", "hidden_size": 8, "epochs": 2, "learning_rate": 0.01}


def rnnbench(*arguments: str | Path) -> subprocess.CompletedProcess:
    """The command line in a process of its own, as a user calls it."""
    command = [RNNBENCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)


def rnnbench_here(*arguments: str | Path) -> subprocess.CompletedProcess:
    """The same in this process, where all is imported; what Snakemake prints is not captured."""
    result = CliRunner().invoke(main, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    code, output, errors = result.exit_code, result.stdout, result.stderr
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


def until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of the workers of a test session makes for all of them."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.made").exists():
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir()
            make(root / name)
            (root / f"{name}.made").touch()
    return root / name


# The files that take longest, most of a minute or more each, the longest first.
LONG = ("workflow", "quick_forms", "notebooks", "site", "add_a_cell", "folders", "comparison")


def pytest_collection_modifyitems(items) -> None:
    """The longest files go first, so that no worker waits for another at the end."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture
def tiny() -> RunParameters:
    return run_parameters({"model": "agru", **TINY}, "the test")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    """A finished report, in a folder whose name a shell, HTML or ASCII would trip over."""

    def make(folder: Path) -> None:
        out = folder / "tiny"
        finished = rnnbench("run", write_tiny(folder / "tiny.yaml"), "--output-dir", out)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.strip().endswith(str(out / "index.html"))

    return once(tmp_path_factory, """a report's "höme" $(false); <b>&""", make) / "tiny"
