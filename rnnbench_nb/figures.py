"""Figures: each function takes a tidy frame and its report, and returns a figure without torch.

The report has the label and the style of each variant. The caller saves or shows the figure.
"""

import base64
import colorsys
import io
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rnnbench_nb.files import write_file
from rnnbench_nb.results import COMPLETED, Report, readable
from rnnbench_nb.statistics import LEAST_SEEDS, Verdict, format_score, t_interval

MANY = 9  # from so many variants on, bands are left out and rows are closer

mpl.rcdefaults()  # ignore the user's matplotlibrc
sns.set_theme(context="notebook", style="whitegrid")
mpl.rcParams |= {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.sans-serif": ["Arial", "DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "rnnbench",  # the same figure gives the same file
}


def with_labels(frame: pd.DataFrame, report: Report) -> pd.DataFrame:
    """Return the frame with a column `label`, the label of each `variant`."""
    return frame.assign(label=frame["variant"].map(report.labels))


def look(report: Report, part: str) -> dict[str, Any]:
    """Return the `colour`, `dashes` or `marker` of each variant, by label."""
    values = {report.labels[name]: getattr(each, part) for name, each in report.looks.items()}
    return {label: legible(v) for label, v in values.items()} if part == "colour" else values


def legible(colour: str) -> str:
    """Darken a colour #rrggbb until its contrast with white (by WCAG 2) is above 3."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*mpl.colors.to_rgb(colour))
    while True:
        rgb = colorsys.hls_to_rgb(hue, lightness, saturation)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        if 1.05 / (np.dot((0.2126, 0.7152, 0.0722), linear) + 0.05) > 3.02:
            return mpl.colors.to_hex(rgb)
        lightness -= 0.01


sns.set_palette([legible(colour) for colour in sns.color_palette("colorblind").as_hex()])


def errors(scores: pd.Series, report: Report) -> tuple[pd.Series, str]:
    """Return errors in percent if scores are percentages, else scores; and the axis label."""
    score, scores = report.score, scores.astype(float)
    if score.unit == "%":
        return score.scale * (1 - scores), "Error (%)"
    label = readable(score.name) + (f" ({score.unit})" if score.unit else "")
    return score.scale * scores, label[0].upper() + label[1:]


def training_curves(history: pd.DataFrame, report: Report) -> Figure:
    """Plot training and validation loss by epoch: mean over seeds, band from minimum to maximum."""
    return _curves(history, history["loss"], report, report.metrics.loss_label, log=True)


def error_curves(history: pd.DataFrame, report: Report) -> Figure:
    """Plot the error by epoch on a log scale, or the score if it is not a percentage."""
    values, label = errors(history[report.score.name], report)
    return _curves(history, values, report, label, log=report.score.unit == "%")


def _curves(history: pd.DataFrame, y: pd.Series, report: Report, ylabel: str, log: bool) -> Figure:
    """Plot values `y` of a history by epoch, training on the left and validation on the right."""
    frame = with_labels(history, report).assign(y=y)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    bands = ("pi", 100) if frame["variant"].nunique() < MANY else None
    style = {"palette": look(report, "colour"), "dashes": look(report, "dashes"), "errorbar": bands}
    titles = {"train": "Training (mean over the epoch)", "validation": "Validation"}
    for ax, (split, title) in zip(axes, titles.items(), strict=True):
        part = frame[frame["split"] == split]
        sns.lineplot(part, x="epoch", y="y", hue="label", style="label", **style, ax=ax)
        ax.set(title=title, xlabel="Epoch", ylabel=ylabel)
        ax.xaxis.get_major_locator().set_params(integer=True)
    if log:  # after seaborn has taken the means
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    legend_below(figure, *axes)
    return figure


def test_errors(results: pd.DataFrame, report: Report) -> Figure:
    """Plot every seed's test error, and means, with 95% t intervals from five seeds on."""
    frame = with_labels(results[results["status"] == COMPLETED], report)
    frame["shown"], xlabel = errors(frame[report.score.name], report)
    groups = frame.groupby("label", sort=False)["shown"]
    height = 0.7 if len(groups) < MANY else 0.4
    figure, ax = plt.subplots(figsize=(7, height * len(groups) + 1.6))
    colours, markers = look(report, "colour"), look(report, "marker")
    label = "mean and 95% t interval" if groups.size().max() >= LEAST_SEEDS else "mean"
    for y, (name, values) in enumerate(groups):
        _seeds(ax, y, values, color=colours[name], marker=markers[name])
        half = np.diff(t_interval(values))[0] / 2 if len(values) >= LEAST_SEEDS else None
        ax.errorbar(values.mean(), y, xerr=half, fmt="k|", markersize=14, capsize=4, label=label)
    _rows(ax, list(groups.groups), f"Test {xlabel[0].lower()}{xlabel[1:]}")
    legend_below(figure, ax)
    return figure


def paired_differences(comparison: pd.DataFrame, results: pd.DataFrame, report: Report) -> Figure:
    """Plot the difference of each pair in every common seed, with mean, interval and verdict.

    Args:
        comparison: Rows of `statistics.compare`, or of `statistics.effects` with their `change`.
        results: The scores of the runs: `variant, seed` and the score.
        report: Their report.
    """
    score, labels, names = report.score, report.labels, []
    rows = comparison[comparison["n"] > 0].to_dict("records")
    scores = score.scale * results.pivot(index="seed", columns="variant", values=score.name)
    margin = score.scale * comparison["margin"].iloc[0]
    figure, ax = plt.subplots(figsize=(9.5, 0.46 * len(rows) + 1.7))
    band = f"counts as equal: {margin:.3g} {score.difference}".rstrip() + " either way"
    ax.axvspan(-margin, margin, facecolor="0.92", edgecolor="0.45", linestyle=":", label=band)
    ax.axvline(0, color="0.35", linewidth=1)
    for y, row in enumerate(rows):
        a, b, verdict = row["a"], row["b"], row["verdict"] + ", below the margin" * row["small"]
        if row["verdict"] == Verdict.NONE:
            verdict = f"{row['reason']}: no verdict"
        else:
            ends = [score.scale * row[end] for end in ("family_low", "family_high")]
            ax.plot(ends, [y, y], "k", linewidth=2.5, solid_capstyle="butt", label="interval")
        each = (scores[a] - scores[b]).dropna()
        _seeds(ax, y, each, facecolor="white", edgecolor="0.25", zorder=5)
        ax.plot(each.mean(), y, "k|", markersize=17, mew=2.2, zorder=4, label="mean")
        text = f"{format_score(row['difference'], score, '+')}  {verdict}"
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", size=10)
        if y and row.get("keys") != rows[y - 1].get("keys"):
            ax.axhline(y - 0.5, color="0.75", linewidth=0.8)
        several = "" if comparison["b"].nunique() == 1 else f"{labels[b]}: "
        name = several + row["change"] if "change" in row else f"{labels[a]} − {labels[b]}"
        names.append(fill(name, 45, break_on_hyphens=False))
    first = "the change" if "change" in comparison else "the first"
    unit = score.difference or score.name
    _rows(ax, names, f"Difference ({unit}), right of 0: {first} is better")
    legend_below(figure, ax)
    return figure


def _seeds(ax: Axes, y: float, values: pd.Series, **style: Any) -> None:
    """Draw a dot for each seed in row `y`."""
    places = y + np.linspace(-0.3, 0.3, len(values) + 2)[1:-1]
    ax.scatter(values, places, s=25, label="one seed", **style)


def _rows(ax: Axes, names: list[str], xlabel: str) -> None:
    """Name the rows 0, 1, ... of the axes, with the first at the top."""
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)


def legend_below(figure: Figure, *axes: Axes) -> None:
    """Put one legend under the figure, that of the first axes; all axes show the same lines."""
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))  # by label
    for legend in (ax.get_legend() for ax in axes):
        if legend:
            legend.remove()
    columns = int(figure.get_figwidth() / len(axes) / (0.6 + 0.08 * max(map(len, handles))))
    columns = min(max(columns, 2), 4)
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": columns}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", **style)
    figure.set_figheight(figure.get_figheight() + 0.2 * ((len(handles) - 1) // columns))


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG with real text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """Return a figure as PNG with its 48 main colours, which takes a third of the bytes."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png")
    Image.open(full).convert("RGB").quantize(48, kmeans=1).save(small, format="png", optimize=True)
    return small.getvalue()


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as `path`.png and `path`.svg, and close it."""
    write_file(f"{path}.svg", as_svg(figure))
    write_file(f"{path}.png", as_png(figure))
    plt.close(figure)


def show(figure: Figure, alt: str, caption: str = "", **place: Any) -> None:
    """Show a figure in a notebook as PNG, and close it.

    `alt` describes the figure for people who cannot see it. `caption` stands under it on a page.
    `place` may hold `display_id` and `update` of IPython's `display`, for a figure that changes.
    """
    data = {"image/png": base64.b64encode(as_png(figure)).decode(), "text/plain": alt}
    words = {"alt": alt, "width": round(100 * figure.get_figwidth())}  # pixels on the page
    words |= {"caption": caption} if caption else {}
    display(data, metadata={"image/png": words}, raw=True, **place)
    plt.close(figure)
