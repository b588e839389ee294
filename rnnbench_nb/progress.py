"""The lines that `rnnbench run` prints while a report is made."""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rnnbench_nb.errors import UserError
from rnnbench_nb.results import COMPLETED, load_run, readable

FIRST, LAST = 5.0, 60.0  # seconds between two lines: at the start, and after ten minutes


class Progress:
    """Prints each training that ends, and every few seconds what is under way.

    Args:
        out: The report's folder.
        epochs: The largest number of epochs of each run, by the run's name.
        say: Prints a line.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        out: Path,
        epochs: Mapping[str, int],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.out, self.epochs, self.say, self.clock = out, dict(epochs), say, clock
        self.open = {run for run in epochs if not self._record(run)}
        self.begun = {run: self._epoch(run) for run in epochs if run in self.open}
        self.start = self.last_line = clock()

    def look(self) -> None:
        """Print what has ended since the last look and, if it is time, what is under way."""
        for run in [run for run in self.epochs if run in self.open]:
            if record := self._record(run):
                self.open.remove(run)
                self._line(_result(self.out / "runs" / run, record))
        elapsed = self.clock() - self.start
        if self.clock() - self.last_line >= min(max(FIRST, elapsed / 10), LAST):
            self._line(self._under_way())

    def _line(self, text: str) -> None:
        self.last_line = self.clock()
        self.say(f"{len(self.epochs) - len(self.open)} of {len(self.epochs)} trainings; {text}.")

    def _under_way(self) -> str:
        at = {run: self._epoch(run) if run in self.open else self.epochs[run] for run in self.begun}
        new = {run: epoch - self.begun[run] for run, epoch in at.items()}
        rest = sum(self.epochs[run] - epoch for run, epoch in at.items())
        if not rest:
            return f"notebooks and pages, {self._steps()}"
        names = [f"{run} at epoch {at[run]} of {self.epochs[run]}"
                 for run in new if new[run] and run in self.open]  # fmt: skip
        text = ", ".join(names[:4]) or f"the first epochs, {self._steps()}"
        if done := sum(new.values()):
            seconds = (self.clock() - self.start) / done * rest
            text += f"; about {in_words(seconds)} left at most"
        return text

    def _record(self, run: str) -> dict[str, Any] | None:
        """The run.json of a run that has ended."""
        path = self.out / "runs" / run / "run.json"
        try:
            return load_run(path.parent).record if path.exists() else None
        except UserError:  # damaged: the report will say so
            return None

    def _epoch(self, run: str) -> int:
        """The number of epochs that a run has had, from the progress.json that training writes."""
        try:
            path = self.out / "runs" / run / "progress.json"
            return min(int(json.loads(path.read_text())["epoch"]), self.epochs[run])
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def _steps(self) -> str:
        """How many of its jobs Snakemake has done."""
        try:
            log = (self.out / "logs/snakemake.txt").read_text(errors="replace")
        except OSError:
            log = ""
        steps = re.findall(r"(\d+) of (\d+) steps", log)
        return "job {} of {} done".format(*steps[-1]) if steps else "Snakemake is starting"


def _result(folder: Path, record: Mapping[str, Any]) -> str:
    if record["status"] != COMPLETED:
        return f"{folder.name} {record['status']}"
    score = load_run(folder).metrics.score
    value = f"{readable(score.name)} {score.scale * record['test'][score.name]:.4g}{score.unit}"
    return f"{folder.name}: {value}, {record['epochs']} epochs"


def in_words(seconds: float) -> str:
    """A duration such as `40 s`, `7 min` or `14.0 h`."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{max(1, round(seconds))} s"
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{round(minutes)} min"
