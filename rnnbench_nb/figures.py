"""One function a figure: a tidy frame or plain arrays in, a matplotlib figure out.

Saving is the caller's job (`save`), as is showing in a notebook (`show`). Every model keeps one
colour, line style and marker throughout; they differ in greyscale and to the colour-blind.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from rnnbench_nb.files import write_file
from rnnbench_nb.stats import t_interval

LABELS = {"lstm": "LSTM", "gru": "GRU", "agru": "A-GRU"}
COLOURS = {"lstm": "#0072B2", "gru": "#E69F00", "agru": "#882255"}  # after Okabe and Ito (2008)
DASHES = {"lstm": (4, 1.5), "gru": (1, 1), "agru": (1, 0)}
MARKERS = {"lstm": "s", "gru": "^", "agru": "o"}

sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
mpl.rcParams |= {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "svg.hashsalt": "rnnbench",  # the same figure gives the same file
}


def label(variant: str) -> str:
    """The name of a variant in figures: the field's name of the model, or its own."""
    return LABELS.get(variant, variant)


def _look(variants: Iterable[str], table: dict) -> dict:
    """A row of the table of colours, dashes or markers for each label; others get the next ones."""
    variants = list(dict.fromkeys(variants))
    others = [variant for variant in variants if variant not in table]
    spare = {
        id(COLOURS): sns.color_palette("colorblind", max(len(others), 1)),
        id(DASHES): [(3, 1, 1, 1)],
        id(MARKERS): ["D", "v", "P", "X"],
    }[id(table)]
    extra = {variant: spare[i % len(spare)] for i, variant in enumerate(others)}
    return {label(variant): table.get(variant, extra.get(variant)) for variant in variants}


def _labelled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(model=frame["variant"].map(label))


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


def _curves(history: pd.DataFrame, value: str, ylabel: str, scale: float, log: bool) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    frame = _labelled(history).assign(**{value: scale * history[value]})
    for ax, (split, title) in zip(
        axes,
        {"train": "Training (mean over the epoch)", "validation": "Validation"}.items(),
        strict=True,
    ):
        if not frame.empty:  # a report none of whose runs finished has empty axes
            sns.lineplot(
                frame[frame["split"] == split], x="epoch", y=value, hue="model", style="model",
                errorbar="sd", err_kws={"alpha": 0.15, "linewidth": 0}, ax=ax,
                palette=_look(history["variant"], COLOURS), legend=ax is axes[0],
                dashes=_look(history["variant"], DASHES),
            )  # fmt: skip
        ax.set(title=title, xlabel="Epoch", ylabel=ylabel)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if log:
            ax.set_yscale("log")
    if axes[0].get_legend():
        axes[0].get_legend().set_title(None)
    return figure


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss against epoch: mean over seeds, band of one standard deviation."""
    return _curves(history, "loss", "Cross entropy (nats, log scale)", 1, log=True)


def accuracy_curves(history: pd.DataFrame) -> Figure:
    """Accuracy against epoch: mean over seeds, band of one standard deviation."""
    return _curves(history, "accuracy", "Accuracy (%)", 100, log=False)


def test_comparison(results: pd.DataFrame) -> Figure:
    """Test error of every seed, with each variant's mean and 95% t interval over seeds."""
    frame = _labelled(results[results["status"] == "completed"])
    frame["error"] = 100 * (1 - frame["accuracy"].astype(float))
    order = [label(variant) for variant in frame["variant"].unique()]
    figure, ax = plt.subplots(figsize=(7, 0.7 * len(order) + 1.6))
    colours, markers = (_look(frame["variant"], table) for table in (COLOURS, MARKERS))
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


def images(
    pictures: np.ndarray, titles: Sequence[str], columns: int = 8, size: float = 1.15
) -> Figure:
    """A grid of grey images (N, h, w), each under its title."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, (size + 0.25) * rows), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, title in zip(axes.flat, pictures, titles, strict=False):
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=255)
        ax.set_title(title, fontsize=8)
    return figure


def class_counts(counts: pd.DataFrame) -> Figure:
    """Images of each class and split, from columns `class, split, images`."""
    figure, ax = plt.subplots(figsize=(8, 3))
    sns.barplot(counts, x="class", y="images", hue="split", ax=ax)
    ax.set(xlabel="Class", ylabel="Images")
    ax.legend(title=None, ncols=3, loc="lower right")
    return figure


def read_as_sequence(picture: np.ndarray, steps: int = 8) -> Figure:
    """One image (h, w), its rows as they arrive one a step, and its pixels as one long series."""
    height, width = picture.shape
    figure, axes = plt.subplot_mosaic(
        [["image", "rows"], ["pixels", "pixels"]], figsize=(9, 5), width_ratios=(1, 2.2)
    )
    axes["image"].imshow(picture, cmap="gray_r")
    axes["image"].set(title="The image", xlabel="Column", ylabel="Row")
    axes["image"].grid(visible=False)
    shown = np.linspace(0, height - 1, min(steps, height)).round().astype(int)
    for place, row in enumerate(shown):
        axes["rows"].plot(place + 0.8 * picture[row] / 255, color="black", linewidth=1)
    axes["rows"].set_yticks(range(len(shown)), [f"step {row + 1}" for row in shown])
    axes["rows"].invert_yaxis()
    axes["rows"].set(title=f"Read row by row: {height} steps of {width}", xlabel="Column")
    axes["pixels"].plot(picture.reshape(-1) / 255, color="black", linewidth=0.8)
    axes["pixels"].set(
        title=f"Read pixel by pixel: {height * width} steps of 1", xlabel="Step", ylabel="Intensity"
    )
    return figure


def confusion(truth: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Confusion matrix of labels (N,): counts, the diagonal left blank so that errors show."""
    figure, ax = plt.subplots(figsize=(5.6, 5))
    matrix = ConfusionMatrixDisplay.from_predictions(
        truth, predicted, labels=range(len(class_names)), display_labels=class_names, ax=ax,
        colorbar=False, cmap="Blues",
    )  # fmt: skip
    errors = matrix.confusion_matrix.copy()
    np.fill_diagonal(errors, 0)
    matrix.im_.set(data=errors, clim=(0, max(errors.max(), 1)))
    for row, column in np.ndindex(errors.shape):
        dark = errors[row, column] > errors.max() / 2
        matrix.text_[row, column].set(color="white" if dark else "black", fontsize=8)
    ax.grid(visible=False)
    ax.set(xlabel="Predicted class", ylabel="True class")
    ax.tick_params(axis="x", rotation=90 if max(map(len, class_names)) > 2 else 0)
    return figure


def class_errors(errors: pd.DataFrame) -> Figure:
    """Test error of each class, from columns `variant, seed, class, error` (fractions)."""
    figure, ax = plt.subplots(figsize=(9, 3.6))
    frame = _labelled(errors).assign(error=100 * errors["error"])
    apart = 0.4 if errors["variant"].nunique() > 1 else False  # seaborn cannot dodge one alone
    sns.pointplot(
        frame, x="class", y="error", hue="model", dodge=apart, linestyle="none", errorbar="sd",
        markers=list(_look(errors["variant"], MARKERS).values()), err_kws={"linewidth": 1.2},
        palette=_look(errors["variant"], COLOURS), ax=ax,
    )  # fmt: skip
    ax.set(xlabel="Class", ylabel="Test error (%)", ylim=(0, None))
    ax.legend(title=None)
    return figure


def spectrum(panels: dict[str, np.ndarray], epsilon: dict[str, float]) -> Figure:
    """Eigenvalues in the complex plane, with the forward-Euler disc of each panel's step size.

    Args:
        panels: Title to eigenvalues (n,), complex.
        epsilon: The step size of each panel, by the same titles. The Euler step
            h + epsilon A h grows along a mode unless its eigenvalue is in the disc of radius
            1/epsilon around -1/epsilon.
    """
    figure, axes = plt.subplots(
        -(-len(panels) // 2), 2, figsize=(9, 2 * len(panels) + 0.6), sharey="row", squeeze=False
    )
    for ax, (title, eigenvalues) in zip(axes.flat, panels.items(), strict=True):
        radius = 1 / epsilon[title]
        ax.add_patch(
            plt.Circle(
                (-radius, 0),
                radius,
                facecolor="0.9",
                edgecolor="0.4",
                linestyle="--",
                label="Euler step stable",
            )  # fmt: skip
        )
        ax.scatter(
            eigenvalues.real, eigenvalues.imag, s=14, color=COLOURS["agru"], zorder=3,
            label="eigenvalues",
        )  # fmt: skip
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set(title=title, xlabel="Real part")
        ax.set_aspect("equal", adjustable="datalim")
    for ax in axes[:, 0]:
        ax.set_ylabel("Imaginary part")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    return figure


def frequency_density(frequencies: pd.DataFrame, theory: np.ndarray, density: np.ndarray) -> Figure:
    """Histograms of imaginary parts, from columns `frequency, moment`, and a density to compare."""
    figure, ax = plt.subplots(figsize=(8, 3.4))
    sns.histplot(
        frequencies, x="frequency", hue="moment", stat="density", common_norm=False,
        element="step", bins=60, palette=["0.5", COLOURS["agru"]], ax=ax,
    )  # fmt: skip
    (line,) = ax.plot(theory, density, color="black", linestyle="--")
    old = ax.get_legend()
    handles = [*old.legend_handles, line]
    ax.legend(handles, [*(text.get_text() for text in old.texts), "semicircle"])
    ax.set(xlabel="Imaginary part of the eigenvalues", ylabel="Density")
    return figure
