"""Functions that notebooks share: opening a report, sentences with numbers, figures, sliders."""

import os
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from rnnbench_nb.figures import show, with_labels
from rnnbench_nb.files import PROJECT
from rnnbench_nb.folders import MARKER
from rnnbench_nb.results import Report

__all__ = ["claim", "facets", "measured_table", "open_report", "show", "sliders"]
DEFAULT_REPORT = "reports/quick"
EXAMPLE = "reports/published/noise_tuned"
END = SystemExit()  # ends a notebook, and is no error to papermill


def open_report(output_dir: str, search: bool = False) -> Report:
    """Open a report, and show its note and what is missing in it.

    Args:
        output_dir: Folder of the report, relative to the project. If the default folder has no
            report yet, a published report is opened in its place, with a note.
        search: Whether to take the runs of a search (`Report.searched`), not those that are tested.

    Raises:
        UserError: The folder has no report.
        SystemExit: No run has finished. The page ends here.
    """
    folder = PROJECT / output_dir
    if output_dir == DEFAULT_REPORT and not (folder / MARKER).exists():
        folder = PROJECT / EXAMPLE
        claim(f"**There is no {output_dir} yet** (`make report` makes it): this is {EXAMPLE}.")
    whole = Report(folder)
    report = whole.searched if search else whole.tested
    claim("**No run of this report has finished.** The reasons follow.", not report.runs)
    claim("**{note}.**", report.note, note=report.note)
    for record in report.missing:
        claim("**Missing:** {variant}-seed{seed} is {status}: {reason}", **record)
    for run in report.runs:
        for part, reason in run.record.get("unmeasured", {}).items():
            claim("**Missing:** {part} of {run}: {why}", part=part, run=run.folder.name, why=reason)
    if not report.runs:
        raise END
    return report


def measured_table(report: Report, name: str) -> pd.DataFrame:
    """Return a table of `measures` with a column `label`.

    Raises:
        SystemExit: No run of the report has this table, which is shown. The page ends here.
    """
    table = report.table(name)
    if table.empty:
        claim("**No finished run has the table {name}**, so this page ends here.", name=name)
        raise END
    return with_labels(table, report)


def claim(text: str, when: Any = True, **numbers: Any) -> None:
    """Show a Markdown sentence if `when` is true; fields such as `{error:.2f}` take `numbers`."""
    if when:
        display(Markdown(text.format(**numbers)))


def facets(
    plot: Callable[..., sns.FacetGrid], frame: pd.DataFrame, **options: Any
) -> sns.FacetGrid:
    """Call `seaborn.relplot` or `catplot`, which lay out their panels themselves."""
    with plt.rc_context({"figure.constrained_layout.use": False}):
        return plot(frame, **options)


def sliders(draw: Callable[..., None], **controls: Any) -> None:
    """In JupyterLab, call `draw` with values from sliders (`ipywidgets.interact`)."""
    if "JPY_SESSION_NAME" in os.environ:
        import ipywidgets

        ipywidgets.interact(draw, **controls)
