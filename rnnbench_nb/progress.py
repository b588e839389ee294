"""How the trainings of a report come on, told while they run."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from rnnbench_nb.report import Report, completed, said

SECONDS = 30.0  # between two lines on what is under way


class Progress:
    """Tells each training that ends, and now and then those under way and the time left.

    Args:
        report: The report that is being made.
        say: Takes a line.
        clock: The time in seconds.

    Attributes:
        budget: The epochs at most of each run that is not completed, by its folder.
    """

    def __init__(self, report: Report, say: Callable[[str], None], clock=time.monotonic):
        self.report, self.say, self.clock = report, say, clock
        self.count = len(report.run_folders)
        self.budget = {folder: report.variants[folder.name.rpartition("-seed")[0]].epochs
                       for folder in report.run_folders if not completed(folder)}  # fmt: skip
        self.begun = {folder: self._epoch(folder) for folder in self.budget}
        self.epochs = 0  # of the trainings that ended since the start
        self.start = self.told = clock()

    def look(self) -> None:
        """Tell what has ended since, and every `SECONDS` what is under way."""
        score = self.report.task.score
        for folder in [*self.budget]:
            record = completed(folder)
            if record:
                del self.budget[folder]
                self.epochs += max(0, record["epochs"] - self.begun[folder])
                value = score.scale * record["test"][score.name]
                how = f"{said(score.name)} {value:.4g}{score.unit}, {record['epochs']} epochs"
                self._tell(f": {folder.name}, {how}")
        if self.clock() - self.told >= SECONDS:
            at = {folder: self._epoch(folder) for folder in self.budget}
            under_way = [f"{folder.name} at epoch {epoch} of {self.budget[folder]}"
                         for folder, epoch in at.items() if epoch > self.begun[folder]]  # fmt: skip
            self._tell("; " + ", ".join(under_way[:4]) if under_way else "")

    def _tell(self, what: str) -> None:
        self.told = self.clock()
        if what:
            done = self.count - len(self.budget)
            self.say(f"{done} of {self.count} trainings{what}{self._left()}.")

    def _epoch(self, folder: Path) -> int:
        """The epoch that a run's log has reached."""
        try:
            log = self.report.folder / f"logs/{folder.name}.txt"
            found = re.findall(r"  epoch +(\d+)  ", log.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return 0
        return int(found[-1]) if found else 0

    def _left(self) -> str:
        """The time that the rest takes at most, at the pace so far, in words."""
        at = {folder: self._epoch(folder) for folder in self.budget}
        done = self.epochs + sum(max(0, at[folder] - self.begun[folder]) for folder in at)
        rest = sum(self.budget[folder] - at[folder] for folder in at)
        if rest <= 0 or done <= 0:
            return ""
        return f"; about {in_words((self.clock() - self.start) / done * rest)} left at most"


def in_words(seconds: float) -> str:
    """A span of time such as `40 s`, `7 min` or `14.0 h`."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{max(1, round(seconds))} s"
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{round(minutes)} min"
