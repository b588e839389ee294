"""Figures of results that more than one page has: curves, scores of every run, differences.

Each takes a tidy frame, and the report that knows the label and the look of each variant.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnnbench_nb.figures.theme import labelled, legend_below, look
from rnnbench_nb.results import COMPLETED, Report, readable
from rnnbench_nb.statistics import Verdict, shown, t_interval

MANY = 9  # variants whose bands and rows need less room
LONG = 45  # characters of a row's label that fit one line
REACH = 2.5  # how far intervals are drawn, in multiples of the farthest seed or the margin


def training_curves(history: pd.DataFrame, report: Report) -> Figure:
    """Training and validation loss by epoch: mean over seeds, band from lowest to highest."""
    label = report.metrics.loss_label.replace(")", ", log scale)")
    label = label if "log" in label else f"{label} (log scale)"
    return _curves(labelled(history, report).assign(shown=history["loss"]), report, label, log=True)


def error_curves(history: pd.DataFrame, report: Report) -> Figure:
    """Error by epoch on a log scale, or the score where it is no percentage."""
    values, label = errors(history[report.score.name], report)
    log = report.score.unit == "%"
    label = label.replace(")", ", log scale)") if log else label
    figure = _curves(labelled(history, report).assign(shown=values), report, label, log)
    axis = figure.axes[0].yaxis
    if log:
        axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(mpl.ticker.NullFormatter())
    return figure


def errors(scores: pd.Series, report: Report) -> tuple[pd.Series, str]:
    """Errors in percent where scores are percentages, else the scores; and the axis label."""
    score, scores = report.score, scores.astype(float)
    if score.unit == "%":
        return score.scale * (1 - scores), "Error (%)"
    label = readable(score.name) + (f" ({score.unit})" if score.unit else "")
    return score.scale * scores, label[0].upper() + label[1:]


def _curves(frame: pd.DataFrame, report: Report, ylabel: str, log: bool) -> Figure:
    """The column `shown` by epoch, training on the left and validation on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    titles = {"train": "Training (mean over the epoch)", "validation": "Validation"}
    colours, dashes = look(report, "colour"), look(report, "dashes")
    bands = frame["variant"].nunique() < MANY
    for ax, (split, title) in zip(axes, titles.items(), strict=True):
        for name, runs in frame[frame["split"] == split].groupby("label", sort=False):
            seeds = runs.groupby("epoch")["shown"].agg(["mean", "min", "max"])
            style = {"color": colours[name], "dashes": dashes[name] or (None, None)}
            ax.plot(seeds.index, seeds["mean"], label=name, **style)
            if bands:
                area = {"alpha": 0.15, "color": colours[name], "linewidth": 0}
                ax.fill_between(seeds.index, seeds["min"], seeds["max"], **area)
        ax.set(title=title, xlabel="Epoch", ylabel=ylabel, yscale="log" if log else "linear")
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, axes[0])
    return figure


def test_errors(results: pd.DataFrame, report: Report) -> Figure:
    """Test error of every seed, and each variant's mean with its 95% t interval from three on."""
    frame = labelled(results[results["status"] == COMPLETED], report)
    frame["shown"], xlabel = errors(frame[report.score.name], report)
    order = list(frame["label"].unique())
    figure, ax = plt.subplots(figsize=(7, (0.7 if len(order) < MANY else 0.4) * len(order) + 1.6))
    colours, markers = look(report, "colour"), look(report, "marker")
    several = bool(frame["label"].value_counts().max() > 2)
    for y, name in enumerate(order):
        values = frame.loc[frame["label"] == name, "shown"].to_numpy()
        places = y + np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else [y]
        style: dict[str, Any] = {"color": colours[name], "marker": markers[name], "alpha": 0.7}
        ax.scatter(values, places, s=28, label="" if y else "one seed", **style)
        half = np.diff(t_interval(values))[0] / 2 if len(values) > 2 else None
        label = "" if y else "mean" + " and 95% t interval" * several
        ax.errorbar(values.mean(), y, xerr=half, fmt="k|", markersize=14, capsize=4, label=label)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=f"Test {xlabel[0].lower()}{xlabel[1:]}", ylim=(max(len(order), 1) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    legend_below(figure, ax)
    return figure


def paired_differences(comparison: pd.DataFrame, results: pd.DataFrame, report: Report) -> Figure:
    """Each pair's difference in every common seed, its mean, interval and verdict.

    The interval is the one that decides; there is none where there is no verdict. An interval that
    leaves the axes ends in an arrowhead.

    Args:
        comparison: Rows of `statistics.compare`, or of `statistics.effects`, whose rows are named
            by their `change`.
        results: The runs compared: `variant, seed` and the score.
        report: The report that they are of.
    """
    score, rows = report.score, comparison[comparison["n"] > 0].to_dict("records")
    scores = score.scale * results.pivot(index="seed", columns="variant", values=score.name)
    seeds = [(scores[row["a"]] - scores[row["b"]]).dropna().to_numpy(float) for row in rows]
    margin = score.scale * comparison["margin"].iloc[0]
    near = np.concatenate([[-margin, margin], *seeds])
    ends = score.scale * np.array([[row["family_low"], row["family_high"]] for row in rows])
    ends[[row["verdict"] == Verdict.NONE for row in rows]] = np.nan
    reach = REACH * np.abs(near).max()
    drawn = np.concatenate([near, np.clip(ends[~np.isnan(ends)], -reach, reach)])
    edges = np.array([drawn.min(), drawn.max()]) + np.array([-0.05, 0.05]) * np.ptp(drawn)
    figure, ax = plt.subplots(figsize=(9.5, 0.46 * len(rows) + 1.7))
    band = f"counts as equal: {margin:.3g} {score.difference}".rstrip() + " either way"
    ax.axvspan(-margin, margin, facecolor="0.92", edgecolor="0.45", linestyle=":", label=band)
    ax.axvline(0, color="0.35", linewidth=1)
    for y, (row, each, interval) in enumerate(zip(rows, seeds, ends, strict=True)):
        _interval(ax, y, interval, edges)
        places = y + np.linspace(-0.2, 0.2, len(each)) if len(each) > 1 else [y]
        style: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.25", "zorder": 5}
        ax.scatter(each, places, s=22, label="" if y else "one seed", **style)
        ax.plot(each.mean(), y, "k|", markersize=17, mew=2.2, zorder=4, label="" if y else "mean")
        verdict = row["verdict"] + ", below the margin" * row["small"]
        verdict = f"{row['reason']}: no verdict" if row["reason"] else verdict
        text = f"{shown(row['difference'], score, '+')}  {verdict}"
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", size=10)
        if y and row.get("keys") != rows[y - 1].get("keys"):
            ax.axhline(y - 0.5, color="0.75", linewidth=0.8)
    ax.set_yticks(range(len(rows)), _row_labels(rows, report))
    ax.set(xlim=edges, ylim=(len(rows) - 0.5, -0.5))
    first = "the change" if "change" in comparison else "the first"
    ax.set_xlabel(f"Difference ({score.difference or score.name}), right of 0: {first} is better")
    ax.grid(axis="y", visible=False)
    legend_below(figure, ax)
    return figure


def _row_labels(rows: Sequence[dict], report: Report) -> list[str]:
    """The pair of each row, or its change, with the reference where there are several."""
    labels, several = report.labels, len({row["b"] for row in rows}) > 1
    names = []
    for row in rows:
        name = f"{labels[row['a']]} − {labels[row['b']]}"
        if "change" in row:
            name = f"{labels[row['b']]}: {row['change']}" if several else row["change"]
        if len(name) > LONG:
            name = name.replace(" − ", "\n− ").replace(": ", ":\n")
        names.append(name)
    return names


def _interval(ax: Axes, y: float, ends: np.ndarray, edges: np.ndarray) -> None:
    """A horizontal interval, with an arrowhead where it is cut."""
    if np.isnan(ends).any():
        return
    label = None if "interval" in ax.get_legend_handles_labels()[1] else "interval"
    ax.plot(np.clip(ends, *edges), [y, y], "k", linewidth=2.5, solid_capstyle="butt", label=label)
    for end, edge, marker, inwards in zip(ends, edges, "<>", (1, -1), strict=True):
        if inwards * (edge - end) > 0:
            ax.plot(edge + inwards * 0.015 * np.ptp(edges), y, marker=marker, color="k")
