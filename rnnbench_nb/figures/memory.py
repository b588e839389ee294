"""The figure of memory: what is left of the error against the length of the sequences."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rnnbench_nb.figures.theme import labelled, legend_below, look

if TYPE_CHECKING:
    from rnnbench_nb.report import Report


def error_by_length(errors: pd.DataFrame, report: "Report", solved: float, lost: float) -> Figure:
    """Error in percent of the memoryless one against length: means, and bands of one sd over seeds.

    Args:
        errors: Columns `variant, length, ratio`, a row a run.
        report: Where labels and looks are.
        solved: The ratio up to which it counts as solved.
        lost: The ratio from which on it counts as lost.
    """
    figure, ax = plt.subplots(figsize=(8, 4.2))
    frame = labelled(errors, report).assign(ratio=100 * errors["ratio"])
    sns.lineplot(
        frame, x="length", y="ratio", hue="label", style="label", errorbar="sd", ax=ax,
        palette=look(report, "colour"), dashes=look(report, "dashes"),
        markers=look(report, "marker"), err_kws={"alpha": 0.15, "linewidth": 0},
    )  # fmt: skip
    for ratio, text, side in ((solved, "solved below", "right"), (lost, "lost above", "left")):
        ax.axhline(100 * ratio, color="0.3", linestyle="--", linewidth=1)
        ax.annotate(
            text, (side == "right", 100 * ratio), xycoords=("axes fraction", "data"),
            fontsize="small", ha=side, va="bottom",
        )  # fmt: skip
    shown = sorted(frame["length"].unique())
    ax.set(xscale="log", yscale="log", xlabel="Length (steps)", ylabel="Error (% of memoryless)")
    ax.set_xticks(shown, [f"{length:,}" for length in shown])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    legend_below(figure, ax)
    return figure
