"""Figures of results: curves, errors, differences, calibration, speed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rnnbench_nb.figures.style import labelled, legend_below, look
from rnnbench_nb.stats import t_interval, wilson

if TYPE_CHECKING:
    from rnnbench_nb.report import Report


def _curves(history: pd.DataFrame, value: str, ylabel: str, scale: float, log: bool) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    frame = labelled(history).assign(**{value: scale * history[value]})
    for ax, (split, title) in zip(
        axes,
        {"train": "Training (mean over the epoch)", "validation": "Validation"}.items(),
        strict=True,
    ):
        if not frame.empty:  # a report none of whose runs finished has empty axes
            sns.lineplot(
                frame[frame["split"] == split], x="epoch", y=value, hue="model", style="model",
                errorbar=("pi", 100), err_kws={"alpha": 0.15, "linewidth": 0}, ax=ax,
                palette=look(history["variant"], COLOURS), legend=ax is axes[0],
                dashes=look(history["variant"], DASHES),
            )  # fmt: skip
        ax.set(title=title, xlabel="Epoch", ylabel=ylabel)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if log:
            ax.set_yscale("log")
    legend_below(figure, axes[0])
    return figure


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss against epoch: mean over seeds, band from the lowest to the highest."""
    return _curves(history, "loss", "Cross entropy (nats, log scale)", 1, log=True)


def accuracy_curves(history: pd.DataFrame) -> Figure:
    """Accuracy against epoch: mean over seeds, band from the lowest to the highest."""
    return _curves(history, "accuracy", "Accuracy (%)", 100, log=False)


def test_errors(results: pd.DataFrame) -> Figure:
    """Test error of every seed, with each variant's mean and 95% t interval over seeds."""
    frame = labelled(results[results["status"] == "completed"])
    frame["error"] = 100 * (1 - frame["accuracy"].astype(float))
    order = [label(variant) for variant in frame["variant"].unique()]
    figure, ax = plt.subplots(figsize=(7, 0.7 * len(order) + 1.6))
    colours, markers = (look(frame["variant"], table) for table in (COLOURS, MARKERS))
    spread = np.linspace(-0.18, 0.18, max(frame["seed"].nunique(), 2))
    for row, name in enumerate(order):
        errors = frame.loc[frame["model"] == name, "error"].to_numpy()
        ax.scatter(
            errors, row + spread[: len(errors)], color=colours[name], marker=markers[name],
            alpha=0.6, s=28, label="one seed" if row == 0 else None,
        )  # fmt: skip
        low, high = t_interval(errors)
        if np.isfinite(low):
            ax.errorbar(
                errors.mean(), row, xerr=(high - low) / 2, fmt="|", color="black", markersize=14,
                capsize=4, label="mean and 95% t interval" if row == 0 else None,
            )  # fmt: skip
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel="Test error (%), lower is better", ylim=(max(len(order), 1) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    if order:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def class_errors(errors: pd.DataFrame) -> Figure:
    """Test error of each class, from columns `variant, seed, class, error` (fractions)."""
    figure, ax = plt.subplots(figsize=(9, 3.6))
    frame = labelled(errors).assign(error=100 * errors["error"])
    apart = 0.4 if errors["variant"].nunique() > 1 else False  # seaborn cannot dodge one alone
    sns.pointplot(
        frame, x="class", y="error", hue="model", dodge=apart, linestyle="none", errorbar="sd",
        markers=list(look(errors["variant"], MARKERS).values()), err_kws={"linewidth": 1.2},
        palette=look(errors["variant"], COLOURS), ax=ax,
    )  # fmt: skip
    ax.set(xlabel="Class", ylabel="Test error (%)", ylim=(0, None))
    legend_below(figure, ax)
    return figure


def paired_differences(
    comparison: pd.DataFrame,
    results: pd.DataFrame,
    value: str = "accuracy",
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Figure:
    """Each pair's difference in every common seed, its intervals, the margin and the verdict.

    An interval that leaves the axes ends in an arrowhead: two seeds would else hide the dots.

    Args:
        comparison: One row a pair, as from `stats.compare` or `ablation.effects`.
        results: The runs compared: `variant, seed` and `value`.
        value: What was compared, a fraction.
        names: The row labels; "a - b" if None.
        groups: For each row a key; a line parts rows whose keys differ.
    """
    scores = results.dropna(subset=value).pivot(index="seed", columns="variant", values=value)
    scores = 100 * scores.reindex(columns=pd.unique(comparison[["a", "b"]].to_numpy().ravel()))
    rows = comparison.to_dict("records")
    dots = [(scores[row["a"]] - scores[row["b"]]).dropna().to_numpy(float) for row in rows]
    images = "two_way_low" in comparison and comparison["two_way_low"].notna().any()
    wide = "two_way" if images else "family"
    margin, level = (100 * comparison[column].iloc[0] for column in ("margin", "level"))
    near = np.concatenate([[-margin, margin], *dots])
    ends = 100 * comparison[["low", "high", f"{wide}_low", f"{wide}_high"]].to_numpy(float)
    reach = 2.5 * np.abs(near).max()
    seen = np.concatenate([near, np.clip(ends[~np.isnan(ends)], -reach, reach)])
    edges = np.array([seen.min(), seen.max()]) + np.array([-0.05, 0.05]) * np.ptp(seen)
    figure, ax = plt.subplots(figsize=(9.5, 0.46 * len(rows) + 1.7))
    ax.axvspan(-margin, margin, color="0.9", label=f"margin: {margin:.3g} points either way")
    ax.axvline(0, color="0.35", linewidth=1)
    labels = {wide: f"{level:.3g}% interval, corrected", "": f"mean and {level:.3g}% interval"}
    labels[wide] += " and for new images" if images else ""
    for y, (row, each) in enumerate(zip(rows, dots, strict=True)):
        _interval(ax, y, row, f"{wide}_", edges, color="0.45", linewidth=1.2, label=labels[wide])
        _interval(ax, y, row, "", edges, color="black", linewidth=3.5, label=labels[""])
        ax.plot(100 * row["difference"], y, "|", color="black", markersize=17, mew=2.2, zorder=4)
        ax.scatter(
            each, y + np.linspace(-0.2, 0.2, len(each)) if len(each) > 1 else y, s=22, zorder=5,
            facecolor="white", edgecolor="0.25", linewidth=1.1, label="one seed",
        )  # fmt: skip
        ax.text(1.02, y, row["verdict"], transform=ax.get_yaxis_transform(), va="center", size=10)
        if groups is not None and y and groups[y] != groups[y - 1]:
            ax.axhline(y - 0.5, color="0.75", linewidth=0.8)
    ax.set_yticks(range(len(rows)), names or [f"{row['a']} − {row['b']}" for row in rows])
    ax.set(xlim=edges, ylim=(len(rows) - 0.5, -0.5))
    bases = {row["b"] for row in rows}
    better = f"better than {bases.pop() if len(bases) == 1 else 'its reference'}"
    better = better if names else "the first is better"
    ax.set_xlabel(f"Difference (points of accuracy), right of 0: {better}")
    ax.grid(axis="y", visible=False)
    legend_below(figure, ax)
    return figure


def _interval(
    ax: mpl.axes.Axes, y: float, row: dict, prefix: str, edges: np.ndarray, **line
) -> None:
    """A horizontal interval of a comparison's row, in points, with an arrowhead where it is cut."""
    ends = 100 * np.array([row[f"{prefix}low"], row[f"{prefix}high"]], float)
    if np.isnan(ends).any():
        return
    ax.plot(np.clip(ends, *edges), [y, y], solid_capstyle="butt", zorder=3, **line)
    for end, edge, marker, inwards in zip(ends, edges, "<>", (1, -1), strict=True):
        if inwards * (edge - end) > 0:
            place = edge + inwards * 0.015 * np.ptp(edges)
            ax.plot(place, y, marker=marker, color=line["color"], markersize=7, zorder=3)


def error_curves(history: pd.DataFrame) -> Figure:
    """Error against epoch on a log scale, which keeps apart what accuracy near 1 presses together.

    Lines are means over seeds, bands go from the lowest to the highest.
    """
    errors = history.assign(error=1 - history["accuracy"].astype(float))
    figure = _curves(errors, "error", "Error (%, log scale)", 100, log=True)
    axis = figure.axes[0].yaxis
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(mpl.ticker.NullFormatter())
    return figure


def learning_speed(times: pd.DataFrame) -> Figure:
    """Epochs and seconds to each validation accuracy, from `stats.time_to_accuracy`.

    Points are medians over the runs that get there, bars reach from the fastest to the slowest.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    frame = labelled(times).dropna(subset="epoch")
    frame["percent"] = (100 * frame["level"]).map("{:.4g}".format)
    for ax, (column, title) in zip(
        axes, {"epoch": "Epochs", "seconds": "Seconds of training"}.items(), strict=True
    ):
        if not frame.empty:
            sns.pointplot(
                frame, x="percent", y=column, hue="model", estimator="median",
                errorbar=("pi", 100), linestyle="none", err_kws={"linewidth": 1.2},
                order=sorted(frame["percent"].unique(), key=float), legend=ax is axes[0],
                dodge=0.4 if frame["variant"].nunique() > 1 else False, ax=ax,
                markers=list(look(frame["variant"], MARKERS).values()),
                palette=look(frame["variant"], COLOURS),
            )  # fmt: skip
        ax.set(xlabel="Validation accuracy (%)", ylabel=title, ylim=(0, None))
    legend_below(figure, axes[0])
    return figure


def reliability(bins: pd.DataFrame) -> Figure:
    """Accuracy against confidence, with Wilson intervals, and how many answers have it.

    Args:
        bins: `variant` and the columns of `stats.reliability_table`, one row a variant and bin.
    """
    figure, (curve, counts) = plt.subplots(1, 2, figsize=(9.5, 4))
    curve.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="confidence = accuracy")
    looks = [look(bins["variant"], table) for table in (COLOURS, MARKERS)]
    for name, table in labelled(bins[bins["count"] > 0]).groupby("model", sort=False):
        style = {"color": looks[0][name], "marker": looks[1][name], "markersize": 6}
        low, high = wilson(table["accuracy"] * table["count"], table["count"])
        reach = np.clip([table["accuracy"] - low, high - table["accuracy"]], 0, None)
        curve.errorbar(
            table["confidence"], table["accuracy"], reach, label=name, linewidth=1, capsize=2,
            elinewidth=0.8, **style,
        )  # fmt: skip
        counts.plot((table["low"] + table["high"]) / 2, table["count"], linewidth=1, **style)
    curve.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    counts.set(xlabel="Confidence", ylabel="Answers (log scale)", yscale="log", xlim=(0, 1.02))
    legend_below(figure, curve)
    return figure


def speed(table: pd.DataFrame) -> Figure:
    """The A-GRU's speed over that of torch's GRU and LSTM, from `bench.summarise`."""
    ours = table[(table["model"] == "agru") & (table["precision"] == "highest")]
    shape = ours.apply(
        lambda row: f"T {row['steps']}, H {row['hidden']}, B {row['batch']}, {row['threads']} thr.",
        axis=1,
    )
    figure, axes = plt.subplots(
        1, 2, figsize=(9.5, 1.4 + 0.45 * shape.nunique()), sharex=True, sharey=True
    )
    for ax, (task, title) in zip(
        axes, {"train": "Training step", "infer": "Inference"}.items(), strict=True
    ):
        part = ours["task"] == task
        for baseline in ("gru", "lstm"):
            ax.plot(
                ours.loc[part, f"{baseline}_ratio"], shape[part], MARKERS[baseline],
                color=COLOURS[baseline], label=f"times as fast as {label(baseline)}",
            )  # fmt: skip
        ax.axvline(1, color="0.3", linestyle="--", linewidth=1)
        ax.set(title=title, xlabel="Ratio (above 1: the A-GRU is faster)", xlim=(0, None))
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    return figure
