"""What the notebooks share: a report to read, sentences with numbers, figures and sliders."""

import atexit
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from rnnbench_nb.errors import UserError
from rnnbench_nb.figures import labelled, show
from rnnbench_nb.files import PROJECT, write_json
from rnnbench_nb.folders import MARKER
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.results import Report

__all__ = ["claim", "facets", "measured", "open_report", "show", "sliders"]
DEFAULT_REPORT = "reports/quick"
DEMONSTRATION = {"dataset": "mnist_5k", "epochs": 5, "hidden_size": 32}


def open_report(output_dir: str) -> Report:
    """Open a report and show what its reader has to know first.

    Where the default folder holds no report, a demonstration is trained in a temporary folder.

    Args:
        output_dir: Folder of the report, relative to the project.

    Raises:
        UserError: A folder other than the default holds no report.
    """
    folder = PROJECT / output_dir
    if output_dir == DEFAULT_REPORT and not (folder / MARKER).exists():
        folder = _demonstration()
    report = Report(folder)
    claim("**{note}.**", report.note, note=report.note)
    for record in report.missing:
        claim("**Missing:** {variant}-seed{seed} is {status}: {reason}", **record)
    for run in report.runs:
        for part, reason in run.record.get("unmeasured", {}).items():
            claim("**Missing:** {part} of {run}: {why}", part=part, run=run.folder.name, why=reason)
    return report


def measured(report: Report, name: str) -> pd.DataFrame:
    """A table that was measured on the runs' weights, with a column `label` for people.

    Raises:
        UserError: No run of the report has it.
    """
    table = report.table(name)
    if table.empty:
        raise UserError(f"{report.folder} has no table {name}: no finished run was measured so.")
    return labelled(table, report)


def _demonstration() -> Path:
    """Train the models of params/quick.yaml on few images, in half a minute; the folder."""
    from rnnbench_nb.runs import marker, train_run

    claim(
        "**This is a demonstration:** there is no report yet (`make report` makes one), so a "
        "small one on 5,000 images of MNIST stands in. What it shows holds for nothing else."
    )
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    protocol = load_protocol("quick", DEMONSTRATION).resolved()
    write_json(folder / MARKER, marker("quick", protocol))
    for seed in protocol.seeds:
        for parameters in protocol.at(seed):
            train_run(parameters, folder / "runs" / parameters.run, lambda line: None)
    return folder


def claim(text: str, when: Any = True, **numbers: Any) -> None:
    """Show a sentence, if its condition holds.

    Args:
        text: Markdown with a replacement field for each number, such as `{error:.2f}`.
        when: The condition under which the sentence is true.
        numbers: The numbers in it, by name.
    """
    if when:
        display(Markdown(text.format(**numbers)))


def facets(
    plot: Callable[..., sns.FacetGrid], frame: pd.DataFrame, **options: Any
) -> sns.FacetGrid:
    """A figure with panels by `seaborn.relplot` or `catplot`, which lay them out by themselves."""
    with plt.rc_context({"figure.constrained_layout.use": False}):
        return plot(frame, **options)


def sliders(draw: Callable[..., None], **controls: Any) -> None:
    """In JupyterLab, call `draw` with the values of sliders; elsewhere do nothing.

    Args:
        draw: Shows a figure; its parameters' defaults are where the sliders start.
        controls: For each of its parameters what `ipywidgets.interact` takes: (min, max, step),
            or a list of values.
    """
    if "JPY_SESSION_NAME" in os.environ:
        import ipywidgets

        ipywidgets.interact(draw, **controls)
