"""Where a run was made: the versions, the commit and the machine that its record states."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rnnbench_nb.files import PROJECT, unexecuted

PACKAGES = ("torch", "numpy", "pydantic", "pandas", "scikit-learn", "snakemake", "papermill")


def commit() -> str:
    """The project's commit, with `-dirty` if its code has changed; "unknown" outside its git.

    A file of the package that git does not know counts as a change; a notebook that was executed
    and saved, as JupyterLab does by itself, does not.
    """
    try:
        top = _git("rev-parse", "--show-toplevel").decode().strip()
        if not top or Path(top).resolve() != PROJECT.resolve():  # a repository around it
            return "unknown"
        head = _git("rev-parse", "HEAD").decode().strip()
        names = _git("diff", "--name-only", "--no-ext-diff", "-z", "HEAD").decode().split("\0")
        new = _git("ls-files", "--others", "--exclude-standard", "-z", "rnnbench_nb")
        dirty = bool(new) or any(_changed(name) for name in names if name)
        return head + "-dirty" * dirty if len(head) == 40 else "unknown"
    except OSError:  # git is not installed
        return "unknown"


def _git(*arguments: str) -> bytes:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, env=clean, capture_output=True, check=False).stdout


def _changed(name: str) -> bool:
    """Whether a file that git lists as changed has another content than that of the commit."""
    path = PROJECT / name
    if path.suffix != ".ipynb" or not path.is_file():
        return True
    return unexecuted(path.read_bytes()) != unexecuted(_git("show", f"HEAD:{name}"))


def _versions() -> dict[str, str]:
    """The versions of Python and of those of `PACKAGES` that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """The name of the processor, or its architecture if the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def environment() -> dict[str, Any]:
    """The versions, commit, machine and time that a run's record states."""
    return {
        "versions": _versions(),
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
