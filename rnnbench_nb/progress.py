"""The lines that `rnnbench run` prints while a report is made."""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rnnbench_nb.errors import UserError
from rnnbench_nb.results import COMPLETED, Run, load_run, readable

FIRST, LAST = 5.0, 60.0  # seconds between two lines: at the start, and after ten minutes


class Progress:
    """Says each training that ends in a report's folder, and every few seconds what is under way.

    `epochs` is the largest number of epochs of each run, by the run's name.
    """

    def __init__(self, out: Path, epochs: Mapping[str, int], say: Callable[[str], None]):
        self.out, self.epochs, self.say = out, epochs, say
        self.begun = {name: self._epoch(name) for name in epochs if not self._ended(name)}
        self.open = [*self.begun]
        self.start = self.last_line = time.monotonic()

    def look(self) -> None:
        """Print what has ended since the last look and, if it is time, what is under way."""
        for name in [*self.open]:
            if run := self._ended(name):
                self.open.remove(name)
                self._line(_result(run))
        now = time.monotonic()
        if now - self.last_line >= min(max(FIRST, (now - self.start) / 10), LAST):
            self._line(self._under_way(now - self.start))

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.say(f"{len(self.epochs) - len(self.open)} of {len(self.epochs)} trainings; {text}.")

    def _under_way(self, seconds: float) -> str:
        at = {name: self._epoch(name) for name in self.open}
        rest = sum(self.epochs[name] - epoch for name, epoch in at.items())
        if not rest:
            return f"notebooks and pages, {self._jobs()}"
        new = [name for name in self.open if at[name] > self.begun[name]]
        names = [f"{name} at epoch {at[name]} of {self.epochs[name]}" for name in new[:4]]
        text = ", ".join(names) or f"the first epochs, {self._jobs()}"
        done = sum(at.get(name, self.epochs[name]) - epoch for name, epoch in self.begun.items())
        return text + (f"; about {in_words(seconds / done * rest)} left at most" if done else "")

    def _ended(self, name: str) -> Run | None:
        """A run that has ended."""
        folder = self.out / "runs" / name
        try:
            return load_run(folder) if (folder / "run.json").exists() else None
        except UserError:  # damaged: the report will say so
            return None

    def _epoch(self, name: str) -> int:
        """The number of epochs that a run has had, from the progress.json that training writes."""
        try:
            text = (self.out / "runs" / name / "progress.json").read_text()
            return min(int(json.loads(text)["epoch"]), self.epochs[name])
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def _jobs(self) -> str:
        log = self.out / "logs/snakemake.txt"
        jobs = re.findall(r"(\d+ of \d+) steps", log.read_text() if log.exists() else "")
        return f"job {jobs[-1]} done" if jobs else "Snakemake is starting"


def _result(run: Run) -> str:
    name, record = run.folder.name, run.record
    if record["status"] != COMPLETED:
        return f"{name} {record['status']}"
    score = run.metrics.score
    value = f"{readable(score.name)} {score.scale * record['test'][score.name]:.4g}{score.unit}"
    return f"{name}: {value}, {record['epochs']} epochs"


def in_words(seconds: float) -> str:
    """A duration such as `40 s`, `7 min` or `14.0 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
