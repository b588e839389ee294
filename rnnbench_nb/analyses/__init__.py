"""What the pages of a report compute: one file a page, a report in, frames and findings out.

An analysis is saved in the report, as small CSV files and one JSON file, and shown from what was
saved, so that a page made from a published report, which has no weights, is the same page.
"""

import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from rnnbench_nb.cells import CELLS, Cell
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.protocol import Protocol
from rnnbench_nb.report import Report, Run, read_csv, write_csv
from rnnbench_nb.tasks import DEFAULT, Task

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_REPORT = "reports/quick"  # of the notebooks; a demonstration stands in while it is missing
FEW = 8  # variants: one line each, and more cannot be told apart


class Finding(NamedTuple):
    """A sentence that a page prints, and the numbers in it."""

    text: str  # Markdown
    numbers: dict[str, Any] = {}  # before rounding, by name; plain values
    topic: str = "answer"  # where on the page it belongs


@dataclass
class Analysis:
    """What a page shows: tidy frames by name, and findings in order."""

    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> pd.DataFrame:
        """A frame by its name."""
        return self.frames[name]

    def texts(self, topic: str) -> list[str]:
        """The sentences on a topic, in order."""
        return [finding.text for finding in self.findings if finding.topic == topic]

    def say(self, finding_text: str, topic: str = "answer", **numbers: Any) -> None:
        """Add a finding."""
        self.findings.append(Finding(finding_text, numbers, topic))

    def save(self, folder: Path) -> None:
        """Write the frames as CSV and the findings as JSON."""
        for name, frame in self.frames.items():
            write_csv(folder / f"{name}.csv", frame)
        content = {"options": self.options, "frames": list(self.frames)}
        content["findings"] = [finding._asdict() for finding in self.findings]
        write_file(folder / "findings.json", json.dumps(content, indent=1, default=float) + "\n")


def load(folder: Path) -> Analysis:
    """A saved analysis.

    Raises:
        UserError: A file is missing or damaged.
    """
    path = folder / "findings.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        findings = [Finding(**finding) for finding in content["findings"]]
        names = [str(name) for name in content["frames"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is missing or damaged; make the report again.") from error
    frames = {name: read_csv(folder / f"{name}.csv") for name in names}
    return Analysis(frames, findings, content.get("options", {}))


def analyse(name: str, report: Report, **options: Any) -> Analysis:
    """The analysis of a page: computed, saved and read back, or of a published report read.

    Args:
        name: A module here.
        report: Whose runs are analysed.
        options: Of the module's `analyse`.

    Raises:
        UserError: The report lacks what the analysis needs, or was analysed with other options.
    """
    folder = report.folder / "analyses" / name
    weights = all(run.has("best") for run in report.runs)
    if weights or not (folder / "findings.json").exists():
        module = importlib.import_module(f"rnnbench_nb.analyses.{name}")
        found: Analysis = module.analyse(report, **options)
        found.options = options
        if not weights:  # a report of before analyses were saved is read, and left as it is
            return found
        found.save(folder)
    found = load(folder)
    if found.options != options:
        raise UserError(
            f"{folder} was saved with {found.options}, and without the weights of its runs it "
            f"cannot be made with {options}; take the options that it has."
        )
    return found


def weighted(report: Report) -> list[Run]:
    """The runs of a report whose weights are there, for what is computed from weights.

    Raises:
        UserError: There are none.
    """
    runs = [run for run in report.runs if run.has("initial") and run.has("best")]
    if not runs:
        raise UserError(
            f"{report.folder} holds no weights and no saved analysis of this page; make the report "
            "again or open one that has."
        )
    return runs


def examples(run: Run, count: int) -> tuple["Tensor", "Tensor"]:
    """The first test examples of a run's task: sequences (count, T, D), and their targets."""
    return _first_examples(type(run.task), run.task.options, count)


@cache
def _first_examples(kind: type[Task], options: Any, count: int) -> tuple["Tensor", "Tensor"]:
    task = kind(options)
    part = task.load(0).test  # the same for every seed
    return task.inputs(part.inputs[:count]), part.targets[:count].clone()


def keyed(key: dict[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with these columns before its own."""
    return pd.DataFrame({**key, **frame.to_dict("list")})


def short(values: Iterable[float], digits: int = 6) -> list[float]:
    """The values with this many significant digits, for a small file."""
    return [float(f"{value:.{digits}g}") for value in values]


def open_report(output_dir: str) -> Report:
    """The report in a folder, for the notebooks; a demonstration where the default is missing.

    Raises:
        UserError: Another folder than the default holds no report.
    """
    folder = PROJECT / output_dir
    if output_dir == DEFAULT_REPORT and not (folder / "protocol.yaml").exists():
        from rnnbench_nb.demonstration import demonstration

        return demonstration()
    return Report(folder)


# Which page a protocol has: the notebook's name, and what of the protocol asks for it.
PAGES: dict[str, Callable[[Protocol], bool]] = {
    "03_compare": lambda protocol: True,
    "04_eigenvalues": lambda protocol: any(
        CELLS[parameters.model].recurrent_matrix is not Cell.recurrent_matrix
        for parameters in protocol.parameterisations.values()
    ),
    "06_ablation": lambda protocol: (  # mostly variants of one cell on one task
        2 * len({(own.model, own.group) for own in protocol.parameterisations.values()})
        <= len(protocol.parameterisations)
    ),
    "07_gradients": lambda protocol: len(protocol.parameterisations) <= FEW,
    "08_memory": lambda protocol: any(
        own.task != DEFAULT or getattr(own.task_options, "reading", "row") == "pixel"
        for own in protocol.parameterisations.values()
    ),
}
