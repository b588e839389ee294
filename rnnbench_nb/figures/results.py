"""Figures of results: curves, errors, differences, calibration, speed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rnnbench_nb.cells import CELLS
from rnnbench_nb.figures.theme import few, labelled, legend_below, look
from rnnbench_nb.report import said
from rnnbench_nb.statistics.intervals import t_interval, wilson
from rnnbench_nb.statistics.verdicts import verdict_text

if TYPE_CHECKING:
    from rnnbench_nb.report import Report


MANY = 9  # variants of which bands and dodged points cannot be told apart

LONG = 45  # characters of a pair's label: a longer one has two lines, or the axes would vanish


def _score_axis(report: "Report", kind: str) -> str:
    """The task's score as an axis says it."""
    score = report.task.score
    return f"{kind} {said(score.name)}" + (f" ({score.unit})" if score.unit else "")


def _losses(values: pd.Series, report: "Report") -> tuple[pd.Series, str]:
    """Scores turned into errors where they are percentages, and what the axis then says."""
    score = report.task.score
    if score.unit != "%":
        return score.scale * values.astype(float), _score_axis(report, "Test")
    return score.scale * (1 - values.astype(float)), "Test error (%), lower is better"


def _curves(history: pd.DataFrame, report: "Report", y: pd.Series, ylabel: str, log: bool):
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    frame = labelled(history, report).assign(shown=y)
    titles = {"train": "Training (mean over the epoch)", "validation": "Validation"}
    for ax, (split, title) in zip(axes, titles.items(), strict=True):
        ax.tick_params(labelleft=True)  # a narrow page shows it alone
        if not frame.empty:  # a report none of whose runs finished has empty axes
            sns.lineplot(
                frame[frame["split"] == split], x="epoch", y="shown", hue="label", style="label",
                errorbar=("pi", 100) if frame["variant"].nunique() < MANY else None, ax=ax,
                err_kws={"alpha": 0.15, "linewidth": 0}, palette=look(report, "colour"),
                dashes=look(report, "dashes"), legend=ax is axes[0],
            )  # fmt: skip
        ax.set(title=title, xlabel="Epoch", ylabel=ylabel)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if log:
            ax.set_yscale("log")
    legend_below(figure, axes[0])
    return figure


def training_curves(history: pd.DataFrame, report: "Report") -> Figure:
    """Loss against epoch: mean over seeds, band from the lowest to the highest."""
    label = report.task.loss_label
    label = f"{label[:-1]}, log scale)" if label.endswith(")") else f"{label} (log scale)"
    return _curves(history, report, history["loss"], label, log=True)


def accuracy_curves(history: pd.DataFrame, report: "Report") -> Figure:
    """The score against epoch: mean over seeds, band from the lowest to the highest."""
    score = report.task.score
    label = _score_axis(report, "").strip()
    label = label[0].upper() + label[1:]
    return _curves(history, report, score.scale * history[score.name], label, log=False)


def error_curves(history: pd.DataFrame, report: "Report") -> Figure:
    """Error against epoch on a log scale, which keeps apart what accuracy near 1 presses together.

    Lines are means over seeds, bands go from the lowest to the highest. A score that is no
    percentage is drawn as it is.
    """
    score = report.task.score
    if score.unit != "%":
        return accuracy_curves(history, report)
    errors = score.scale * (1 - history[score.name].astype(float))
    figure = _curves(history, report, errors, "Error (%, log scale)", log=True)
    axis = figure.axes[0].yaxis
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(mpl.ticker.NullFormatter())
    return figure


def test_errors(results: pd.DataFrame, report: "Report") -> Figure:
    """Test error of every seed, with each variant's mean and 95% t interval over seeds."""
    frame = labelled(results[results["status"] == "completed"], report)
    frame["error"], xlabel = _losses(frame[report.task.score.name], report)
    order = list(frame["label"].unique())
    figure, ax = plt.subplots(figsize=(7, (0.7 if len(order) < MANY else 0.4) * len(order) + 1.6))
    colours, markers = look(report, "colour"), look(report, "marker")
    spread = np.linspace(-0.18, 0.18, max(frame["seed"].nunique(), 2))
    for row, name in enumerate(order):
        errors = frame.loc[frame["label"] == name, "error"].to_numpy()
        ax.scatter(
            errors, row + spread[: len(errors)], color=colours[name], marker=markers[name],
            alpha=0.6, s=28, label="one seed" if row == 0 else None,
        )  # fmt: skip
        low, high = t_interval(errors)
        if len(errors) > 2:  # of two seeds the interval would hide the rest
            ax.errorbar(
                errors.mean(), row, xerr=(high - low) / 2, fmt="|", color="black", markersize=14,
                capsize=4, label="mean and 95% t interval" if row == 0 else None,
            )  # fmt: skip
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=xlabel, ylim=(max(len(order), 1) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    if order:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def class_errors(errors: pd.DataFrame, report: "Report") -> Figure:
    """Test error of each class, from columns `variant, seed, class, error` (fractions).

    Points are means over seeds and bars one standard deviation; of many variants, whose points
    would cover one another, the means are a table of colours.
    """
    frame = labelled(errors, report).assign(error=100 * errors["error"])
    variants = frame["variant"].nunique()
    if variants >= MANY:
        means = frame.pivot_table("error", "label", "class", sort=False)
        figure, ax = plt.subplots(figsize=(9, 0.35 * variants + 1.2))
        sns.heatmap(
            means, annot=True, fmt=".1f", cmap="Blues", ax=ax, annot_kws={"size": 8},
            cbar_kws={"label": "Test error (%)"},
        )  # fmt: skip
        ax.set(xlabel="Class", ylabel="")
        return figure
    figure, ax = plt.subplots(figsize=(9, 3.6))
    sns.pointplot(
        frame, x="class", y="error", hue="label", linestyle="none", errorbar="sd",
        dodge=0.4 if variants > 1 else False,  # seaborn cannot dodge one alone
        markers=[look(report, "marker")[name] for name in frame["label"].unique()],
        palette=look(report, "colour"), err_kws={"linewidth": 1.2}, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="Class", ylabel="Test error (%)", ylim=(0, None))
    legend_below(figure, ax)
    return figure


def paired_differences(
    comparison: pd.DataFrame,
    results: pd.DataFrame,
    report: "Report",
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Figure:
    """Each pair's difference in every common seed, its intervals, the margin and the verdict.

    An interval that leaves the axes ends in an arrowhead: two seeds would else hide the dots.

    Args:
        comparison: One row a pair, as from `statistics.compare`.
        results: The runs compared: `variant, seed` and the score.
        report: Whose variants and score they are.
        names: The row labels; "a - b" if None.
        groups: For each row a key; a line parts rows whose keys differ.
    """
    score, labels = report.task.score, report.labels
    scores = results.dropna(subset=score.name)
    scores = scores.pivot(index="seed", columns="variant", values=score.name)
    scores = score.scale * scores.reindex(
        columns=pd.unique(comparison[["a", "b"]].to_numpy().ravel())
    )
    rows = comparison.to_dict("records")
    dots = [(scores[row["a"]] - scores[row["b"]]).dropna().to_numpy(float) for row in rows]
    margin, level = score.scale * comparison["margin"].iloc[0], 100 * comparison["level"].iloc[0]
    near = np.concatenate([[-margin, margin], *dots])
    ends = score.scale * comparison[["low", "high", "family_low", "family_high"]].to_numpy(float)
    reach = 2.5 * np.abs(near).max()
    seen = np.concatenate([near, np.clip(ends[~np.isnan(ends)], -reach, reach)])
    edges = np.array([seen.min(), seen.max()]) + np.array([-0.05, 0.05]) * np.ptp(seen)
    figure, ax = plt.subplots(figsize=(9.5, 0.46 * len(rows) + 1.7))
    ax.axvspan(
        -margin,
        margin,
        color="0.9",
        label=f"margin: {margin:.3g} {score.difference}".rstrip() + " either way",
    )
    ax.axvline(0, color="0.35", linewidth=1)
    legend = {"family_": "interval that decides", "": f"mean and {level:.3g}% interval"}
    for y, (row, each) in enumerate(zip(rows, dots, strict=True)):
        thin, thick = (
            score.scale * np.array([row[f"{kind}low"], row[f"{kind}high"]], float)
            for kind in ("family_", "")
        )
        _interval(ax, y, thin, edges, color="0.45", linewidth=1.2, label=legend["family_"])
        _interval(ax, y, thick, edges, color="black", linewidth=3.5, label=legend[""])
        ax.plot(
            score.scale * row["difference"], y, "|", color="black", markersize=17, mew=2.2, zorder=4
        )
        ax.scatter(
            each, y + np.linspace(-0.2, 0.2, len(each)) if len(each) > 1 else y, s=22, zorder=5,
            facecolor="white", edgecolor="0.25", linewidth=1.1, label="one seed",
        )  # fmt: skip
        verdict = row["verdict"] if names else verdict_text(row, labels)
        ax.text(1.02, y, verdict, transform=ax.get_yaxis_transform(), va="center", size=10)
        if groups is not None and y and groups[y] != groups[y - 1]:
            ax.axhline(y - 0.5, color="0.75", linewidth=0.8)
    pairs = [f"{labels[row['a']]} − {labels[row['b']]}" for row in rows]
    pairs = [pair if len(pair) <= LONG else pair.replace(" − ", "\n− ") for pair in pairs]
    ax.set_yticks(range(len(rows)), names or pairs)
    ax.set(xlim=edges, ylim=(len(rows) - 0.5, -0.5))
    bases = {row["b"] for row in rows}
    better = f"better than {labels[bases.pop()] if len(bases) == 1 else 'its reference'}"
    better = better if names else "the first is better"
    what = f"{score.difference} of {said(score.name)}".removeprefix(" of ")
    ax.set_xlabel(f"Difference ({what}), right of 0: {better}")
    ax.grid(axis="y", visible=False)
    legend_below(figure, ax)
    return figure


def _interval(ax: mpl.axes.Axes, y: float, ends: np.ndarray, edges: np.ndarray, **line) -> None:
    """A horizontal interval, with an arrowhead where it is cut."""
    if np.isnan(ends).any():
        return
    ax.plot(np.clip(ends, *edges), [y, y], solid_capstyle="butt", zorder=3, **line)
    for end, edge, marker, inwards in zip(ends, edges, "<>", (1, -1), strict=True):
        if inwards * (edge - end) > 0:
            place = edge + inwards * 0.015 * np.ptp(edges)
            ax.plot(place, y, marker=marker, color=line["color"], markersize=7, zorder=3)


def learning_speed(times: pd.DataFrame, report: "Report") -> Figure:
    """Epochs and seconds to each validation score, from `statistics.time_to_score`.

    Points are medians over the runs that get there, bars reach from the fastest to the slowest.
    """
    frame = labelled(times, report).dropna(subset="epoch")
    frame["reached"] = (report.task.score.scale * frame["level"]).map("{:.4g}".format)
    columns = {"epoch": "Epochs", "seconds": "Seconds of training"}
    columns = {name: title for name, title in columns.items() if times[name].notna().any()}
    figure, axes = plt.subplots(1, max(len(columns), 1), figsize=(9.5, 3.8), squeeze=False)
    axes = axes[0]
    for ax, (column, title) in zip(axes, columns.items(), strict=False):
        if not frame.empty:
            sns.pointplot(
                frame, x="reached", y=column, hue="label", estimator="median",
                errorbar=("pi", 100), linestyle="none", err_kws={"linewidth": 1.2},
                order=sorted(frame["reached"].unique(), key=float), legend=ax is axes[0],
                dodge=0.4 if frame["variant"].nunique() > 1 else False, ax=ax,
                markers=[look(report, "marker")[name] for name in frame["label"].unique()],
                palette=look(report, "colour"),
            )  # fmt: skip
        ax.set(xlabel=_score_axis(report, "Validation"), ylabel=title, ylim=(0, None))
    legend_below(figure, axes[0])
    return figure


def reliability(bins: pd.DataFrame, report: "Report") -> Figure:
    """Accuracy against confidence, with Wilson intervals, and how many answers have it.

    Args:
        bins: `variant` and the columns of `statistics.reliability_table`, a row a variant and bin.
        report: Whose variants they are.
    """
    figure, (curve, counts) = plt.subplots(1, 2, figsize=(9.5, 4))
    bins = few(bins, report, figure)
    curve.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="confidence = accuracy")
    colours, markers = look(report, "colour"), look(report, "marker")
    for name, table in bins[bins["count"] > 0].groupby("label", sort=False):
        style = {"color": colours[name], "marker": markers[name], "markersize": 6}
        low, high = wilson(table["accuracy"] * table["count"], table["count"])
        reach = np.clip([table["accuracy"] - low, high - table["accuracy"]], 0, None)
        curve.errorbar(
            table["confidence"], table["accuracy"], reach, label=name, linewidth=1, elinewidth=0.8,
            **style,
        )  # fmt: skip
        counts.plot((table["low"] + table["high"]) / 2, table["count"], linewidth=1, **style)
    curve.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    counts.set(xlabel="Confidence", ylabel="Answers (log scale)", yscale="log", xlim=(0, 1.02))
    legend_below(figure, curve)
    return figure


def speed(table: pd.DataFrame, ours: Sequence[str], baselines: Sequence[str]) -> Figure:
    """The speed of cells over that of others.

    Args:
        table: Columns `model, task` ("train" or "infer"), `steps, hidden, batch, threads`, and for
            each baseline NAME a ratio `NAME_ratio`, above 1 where the model is faster.
        ours: Names of the cells whose speed is shown.
        baselines: Names of the cells that it is compared with.
    """
    table = table[table["model"].isin(ours)]
    shape = table.apply(
        lambda row: f"T {row['steps']}, H {row['hidden']}, B {row['batch']}, {row['threads']} thr.",
        axis=1,
    )
    if len(ours) > 1:
        shape = table["model"].map(lambda name: CELLS[name].label) + ": " + shape
    figure, axes = plt.subplots(
        1, 2, figsize=(9.5, 1.4 + 0.45 * shape.nunique()), sharex=True, sharey=True
    )
    titles = {"train": "Training step", "infer": "Inference"}
    for ax, (kind, title) in zip(axes, titles.items(), strict=True):
        part = table["task"] == kind
        for name in baselines:
            cell = CELLS[name]
            ax.plot(
                table.loc[part, f"{name}_ratio"], shape[part], cell.marker or "o",
                color=cell.colour, label=f"times as fast as {cell.label}",
            )  # fmt: skip
        ax.axvline(1, color="0.3", linestyle="--", linewidth=1)
        names = " and ".join(CELLS[name].label for name in ours)
        ax.set(title=title, xlabel=f"Ratio (above 1: {names} is faster)", xlim=(0, None))
        ax.tick_params(labelleft=True)
    axes[0].invert_yaxis()
    legend_below(figure, axes[0])
    return figure
