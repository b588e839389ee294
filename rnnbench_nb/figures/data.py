"""Figures of images: examples, classes, an image as a sequence, a confusion matrix."""

from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay


def images(
    pictures: np.ndarray,
    titles: Sequence[str],
    columns: int = 8,
    size: float = 1.15,
    aspect: str = "equal",
) -> Figure:
    """A grid of grey images (N, h, w), each under its title."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, (size + 0.25) * rows), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, title in zip(axes.flat, pictures, titles, strict=False):
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=255, aspect=aspect)
        ax.set_title("\n".join(fill(line, 18) for line in title.split("\n")), fontsize=8)
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
        axes["rows"].plot(place - 0.8 * picture[row] / 255, color="black", linewidth=1)
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
