"""Where a run was made: the versions, the commit and the machine that its record states."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rnnbench_nb.files import PROJECT

PACKAGES = ("torch", "numpy", "pydantic", "pandas", "scikit-learn", "snakemake", "papermill")


def commit() -> str:
    """The project's commit, with `-dirty` if its package has changed; "unknown" outside its git."""
    try:
        if _git("rev-parse", "--show-toplevel") != str(PROJECT.resolve()):  # or one around it
            return "unknown"
        dirty = _git("status", "--porcelain", "--untracked-files=all", "rnnbench_nb")
        return (_git("rev-parse", "--verify", "HEAD") or "unknown") + "-dirty" * bool(dirty)
    except OSError:  # git is not installed
        return "unknown"


def _git(*arguments: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, env=clean, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """The name of the processor, or its architecture if the system does not tell the name."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    named = re.search(r"^model name\s*: (.+)", text, re.M)
    return named[1].strip() if named else platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """The versions, commit, machine and time that a run's record states."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
