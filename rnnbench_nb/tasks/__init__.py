"""The table of tasks, by name. To add a task, put one file here; edit nothing else."""

import sys

from rnnbench_nb.plugins import discover
from rnnbench_nb.tasks.base import Task

__all__ = ["DEFAULT", "TASKS", "Task"]

TASKS: dict[str, type[Task]] = discover(sys.modules[__name__], Task)  # type: ignore[type-abstract]
DEFAULT = "image_sequence"  # the task of a parameter file that names none
