"""The lines of progress that `rnnbench run` prints."""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rnnbench_nb.errors import UserError
from rnnbench_nb.results import COMPLETED, Run, load_run, readable

FIRST, LAST = 5.0, 60.0  # seconds between two lines: at the start, and from ten minutes on


class Progress:
    """Reports each training that ends in a report's folder, and every few seconds what is running.

    `epochs` has the most epochs of each run, by the name of the run; `say` takes a line.
    """

    def __init__(self, out: Path, epochs: Mapping[str, int], say: Callable[[str], None]):
        self.out, self.epochs, self.say = out, epochs, say
        self.failed: dict[str, str | None] = {}  # when the runs started that had failed before
        records = {name: run.record for name in epochs if (run := self._ended(name))}
        for name, record in records.items():
            if record["status"] != COMPLETED:
                self.failed[name] = record.get("started")
        self.starts = {name: self._epoch(name) for name in epochs if not self._ended(name)}
        self.open = [*self.starts]
        self.start = self.last_line = time.monotonic()

    def look(self) -> None:
        """Report what has ended since the last look and, if it is time, what is running."""
        for name in [*self.open]:
            if run := self._ended(name):
                self.open.remove(name)
                self._line(_result(run))
        now = time.monotonic()
        if now - self.last_line >= min(max(FIRST, (now - self.start) / 10), LAST):
            self._line(self._running(now - self.start))

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        ended = len(self.epochs) - len(self.open)
        have = "has" if ended == 1 else "have"
        self.say(f"{ended} of {len(self.epochs)} trainings {have} ended; {text}.")

    def _running(self, seconds: float) -> str:
        now = {name: self._epoch(name) for name in self.open}
        rest = sum(self.epochs[name] - epoch for name, epoch in now.items())
        if not rest:
            return f"notebooks and pages follow{self._jobs()}"
        new = [name for name in self.open if now[name] > self.starts[name]]
        names = [f"{name} is at epoch {now[name]} of {self.epochs[name]}" for name in new[:4]]
        text = ", ".join(names) or f"no new epoch has ended yet{self._jobs()}"
        done = sum(now.get(name, self.epochs[name]) - first for name, first in self.starts.items())
        return text + (f"; at most {in_words(seconds / done * rest)} are left" if done else "")

    def _ended(self, name: str) -> Run | None:
        """Return the run if it has ended."""
        folder = self.out / "runs" / name
        try:
            run = load_run(folder) if (folder / "run.json").exists() else None
        except UserError:  # the report will say that it is damaged
            return None
        return run if run and run.record.get("started") != self.failed.get(name, "") else None

    def _epoch(self, name: str) -> int:
        """Return the number of finished epochs of a run, from the progress.json of its training."""
        try:
            text = (self.out / "runs" / name / "progress.json").read_text()
            return min(int(json.loads(text)["epoch"]), self.epochs[name])
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def _jobs(self) -> str:
        log = self.out / "logs/snakemake.txt"
        jobs = re.findall(r"(\d+ of \d+) steps", log.read_text() if log.exists() else "")
        return f" ({jobs[-1]} jobs are done)" if jobs else ""


def _result(run: Run) -> str:
    name, record = run.folder.name, run.record
    if record["status"] != COMPLETED:
        return f"{name} {record['status']}"
    score = run.metrics.score
    value = f"{readable(score.name)} {score.scale * record['test'][score.name]:.4g}{score.unit}"
    return f"{name} has {value} after {record['epochs']} epochs"


def in_words(seconds: float) -> str:
    """Format a duration, such as "40 s", "7 min" or "14.0 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
