"""How figures look: the theme, the label and look of each variant, saving and showing.

Figures take tidy frames with a column `variant` and the report, which knows the label and the
look of each: one colour, dashes and marker throughout, different in greyscale too.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from rnnbench_nb.files import write_file

if TYPE_CHECKING:
    from rnnbench_nb.report import Report

mpl.rcdefaults()  # not those of a matplotlibrc
sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
mpl.rcParams |= {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "svg.hashsalt": "rnnbench",  # the same figure gives the same file
}


def labelled(frame: pd.DataFrame, report: "Report") -> pd.DataFrame:
    """The frame with a column `label`, the name for people of its `variant`."""
    return frame.assign(label=frame["variant"].map(report.labels))


def look(report: "Report", part: str) -> dict[str, Any]:
    """One part of the look of each variant, `colour`, `dashes` or `marker`, by its label."""
    return {report.labels[name]: getattr(look, part) for name, look in report.looks.items()}


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG and SVG, `path` being the name without its ending; closes it."""
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        write_file(f"{path}.{kind}", buffer.getvalue())
    plt.close(figure)


def show(figure: Figure, alt: str) -> None:
    """Show a figure in a notebook, with a text for those who cannot see it; closes it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def say(*texts: str) -> None:
    """Show texts of Markdown in a notebook, a paragraph each."""
    for text in texts:
        display(Markdown(text))


def legend_below(figure: Figure, ax: mpl.axes.Axes) -> None:
    """The legend of one of the axes, each label once, in four columns under the whole figure."""
    handles = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    if ax.get_legend():
        ax.get_legend().remove()
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False,
            fontsize="small",
        )  # fmt: skip
        figure.set_figheight(figure.get_figheight() + 0.2 * ((len(handles) - 1) // 4))
