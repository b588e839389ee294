"""Where numbers come from: the code, the versions and the machine that a run's record states."""

import ast
import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rnnbench_nb.cells import CELLS, Cell
from rnnbench_nb.files import PROJECT, unexecuted
from rnnbench_nb.tasks import TASKS, Task

PACKAGE = Path(__file__).parent
SHARED = (
    "training.py", "model.py", "seeds.py", "cells/base.py", "tasks/base.py",
    "cells/kernels/cuda_graph.py",
)  # fmt: skip
PACKAGES = ("torch", "numpy", "scikit-learn", "pandas", "snakemake", "papermill")


def _stripped(path: Path) -> str:
    """A source file without comments, docstrings, formatting and what errors say."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".cpp":
        return " ".join(re.sub(r"//.*|/\*.*?\*/", " ", text).split())
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = []
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant):
                del body[0]
    return _written(tree)


def _written(part: Any) -> str:
    """A syntax tree as text, the same from every version of Python: what is empty is left out."""
    if isinstance(part, list):
        return f"[{', '.join(map(_written, part))}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    fields = {name: value for name, value in ast.iter_fields(part) if value not in (None, [])}
    told = (f"{name}={_written(value)}" for name, value in fields.items())
    return f"{type(part).__name__}({', '.join(told)})"


def _files(entry: type, base: type) -> list[Path]:
    """The file of a cell or task, and those of the ones that it builds on."""
    kinds = [kind for kind in entry.__mro__ if issubclass(kind, base) and kind is not base]
    names = dict.fromkeys(kind.__module__.removeprefix("rnnbench_nb.") for kind in kinds)
    return [PACKAGE / f"{name.replace('.', '/')}.py" for name in names]


def _sources(model: str, task: str) -> list[Path]:
    """The files that the numbers of this cell on this task depend on."""
    cells, tasks = _files(CELLS[model], Cell), _files(TASKS[task], Task)
    kernels = sorted((PACKAGE / "cells/kernels").glob(f"{cells[0].stem}.*"))
    kernels += [PACKAGE / "cells/kernels/build.py"] if kernels else []
    found = [*cells, *tasks, *kernels, *(PACKAGE / s for s in SHARED)]
    return [path for path in found if path.suffix in (".py", ".cpp")]


@cache
def fingerprint(model: str, task: str) -> str:
    """A hash of the code that the numbers of this cell on this task depend on.

    Comments, docstrings, formatting and what errors say are set aside.
    """
    content = "\0".join(_stripped(path) for path in _sources(model, task))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def commit() -> str:
    """The project's commit, with `-dirty` where files have changed; "unknown" outside its git.

    A notebook that was executed and saved, as JupyterLab does by itself, has not changed.
    """
    try:
        top = _git("rev-parse", "--show-toplevel").decode().strip()
        if not top or Path(top).resolve() != PROJECT.resolve():  # a repository around it
            return "unknown"
        head = _git("describe", "--always", "--abbrev=40").decode().strip()
        names = _git("diff", "--name-only", "--no-ext-diff", "-z", "HEAD").decode().split("\0")
        return head + "-dirty" * any(map(_changed, filter(None, names))) if head else "unknown"
    except OSError:  # no git here
        return "unknown"


def _git(*arguments: str) -> bytes:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, env=clean, capture_output=True, check=False).stdout


def _changed(name: str) -> bool:
    """Whether a file that git calls changed says something else than that of the commit."""
    path = PROJECT / name
    if path.suffix != ".ipynb" or not path.is_file():
        return True
    return unexecuted(path.read_bytes()) != unexecuted(_git("show", f"HEAD:{name}"))


def processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def environment() -> dict:
    """The versions, commit, machine and time that a run's record states."""
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
