"""The table of tasks: one file a task, found by name. To add a task, put one file here."""

import sys

from rnnbench_nb.plugins import discover
from rnnbench_nb.tasks.base import Task

__all__ = ["DEFAULT", "TASKS", "Task"]

TASKS: dict[str, type[Task]] = discover(sys.modules[__name__], Task)  # type: ignore[type-abstract]
DEFAULT = "image_sequence"  # of a parameter file that names no task
