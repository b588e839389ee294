"""Figures of the dynamics: spectra, stability, growth, gradients, exponents, trajectories."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rnnbench_nb.figures.style import labelled, legend_below, look


def spectrum(panels: dict[str, np.ndarray], epsilon: dict[str, float]) -> Figure:
    """Eigenvalues in the complex plane, with the forward-Euler disc of each panel's step size.

    Args:
        panels: Title to eigenvalues (n,), complex.
        epsilon: The step size of each panel, by the same titles. The Euler step
            h + epsilon A h grows along a mode unless its eigenvalue is in the disc of radius
            1/epsilon around -1/epsilon.
    """
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.5 * columns, 4.1 * rows), sharey="row", squeeze=False
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


def stability_through_training(places: pd.DataFrame) -> Figure:
    """The spectrum's place in the stability region against epoch: mean and band over seeds.

    Args:
        places: Columns `variant, seed, epoch` and those of `dynamics.stability`, and `epsilon`.
    """
    panels = {
        "lambda_max": r"Largest frequency $\lambda_{\max}$",
        "epsilon": r"Step size $\epsilon$",
        "modulus_max": "Largest modulus of the Euler step",
        "share_outside": "Modes outside the disc (%)",
    }
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 6), sharex=True)
    frame = labelled(places).assign(share_outside=100 * places["share_outside"])
    for ax, (column, title) in zip(axes.flat, panels.items(), strict=True):
        sns.lineplot(
            frame, x="epoch", y=column, hue="model", style="model", errorbar="sd", ax=ax,
            palette=look(places["variant"], COLOURS), dashes=look(places["variant"], DASHES),
            legend=ax is axes[0, 0], err_kws={"alpha": 0.15, "linewidth": 0},
        )  # fmt: skip
        ax.set(title=title, xlabel="Epoch (0: initialisation)", ylabel="")
    axes[1, 0].axhline(1, color="0.3", linestyle="--", linewidth=1)
    legend_below(figure, axes[0, 0])
    return figure


def growth_sources(sources: pd.DataFrame) -> Figure:
    """What makes a step grow: spectrum and symmetric part of each operator, on real images.

    Args:
        sources: Columns `operator, moment, seed, abscissa, numerical_abscissa`.
    """
    frame = sources.melt(["operator", "moment", "seed"], var_name="measure")
    names = {
        "abscissa": "Largest real part (growth in the long run)",
        "numerical_abscissa": "Numerical abscissa (growth at once)",
    }
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
    for ax, (measure, title) in zip(axes, names.items(), strict=True):
        sns.pointplot(
            frame[frame["measure"] == measure], y="operator", x="value", hue="moment", ax=ax,
            dodge=0.3, linestyle="none", errorbar="sd", palette=["0.5", COLOURS["agru"]],
            markers=["D", "o"], err_kws={"linewidth": 1.2}, legend=ax is axes[0],
        )  # fmt: skip
        ax.axvline(0, color="0.3", linestyle="--", linewidth=1)
        ax.set(title=title, xlabel="per step", ylabel="")
    axes[0].legend(title=None)
    return figure


def _by_moment(frame: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """One panel a moment of training, one line a variant: mean and band over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    for ax, moment in zip(axes, frame["moment"].unique(), strict=True):
        sns.lineplot(
            labelled(frame[frame["moment"] == moment]), x=x, y=y, hue="model", style="model",
            palette=look(frame["variant"], COLOURS), dashes=look(frame["variant"], DASHES),
            errorbar="sd", err_kws={"alpha": 0.15, "linewidth": 0}, legend=ax is axes[0], ax=ax,
        )  # fmt: skip
        ax.set(title=moment.capitalize(), xlabel=xlabel, ylabel=ylabel)
    legend_below(figure, axes[0])
    return figure


def gradient_flow(norms: pd.DataFrame) -> Figure:
    """Gradient norm at each step, from columns `variant, seed, moment, step, log10_norm`."""
    ylabel = r"$\log_{10}$ of the gradient norm"
    return _by_moment(norms, "step", "log10_norm", "Step (the loss is at the last)", ylabel)


def state_norms(norms: pd.DataFrame) -> Figure:
    """Norm of the hidden state at each step, from columns `variant, seed, moment, step, norm`."""
    return _by_moment(norms, "step", "norm", "Step", "Norm of the hidden state")


def exponent_spectra(exponents: pd.DataFrame) -> Figure:
    """Finite-time exponents, from columns `variant, seed, moment, position, exponent`."""
    figure = _by_moment(
        exponents, "position", "exponent", "Position in the spectrum (0: largest)",
        "Finite-time exponent (nats a step)",
    )  # fmt: skip
    for ax in figure.axes:
        ax.axhline(0, color="0.3", linestyle="--", linewidth=1)
    return figure


def growth_map(
    gammas: np.ndarray, epsilons: np.ndarray, rates: np.ndarray, boundary: np.ndarray
) -> Figure:
    """Measured growth (gammas, epsilons) in nats a step, and the boundary that theory draws.

    Args:
        gammas: Dampings, ascending.
        epsilons: Step sizes, ascending.
        rates: Growth of the state, above 0 where it grows.
        boundary: The largest stable step of each gamma, by theory.
    """
    figure, ax = plt.subplots(figsize=(7, 4.2))
    limit = np.abs(rates).max()
    mesh = ax.pcolormesh(
        gammas, epsilons, rates.T, cmap="PuOr_r", vmin=-limit, vmax=limit, shading="nearest"
    )
    ax.contour(gammas, epsilons, rates.T, levels=[0], colors="black", linewidths=1.5)
    ax.plot(gammas, boundary, color="black", linestyle="--")
    handles = [plt.Line2D([], [], color="black", linestyle=style) for style in ("-", "--")]
    ax.legend(handles, ["measured: no growth", "theory: stable below"], loc="upper right")
    ax.set(
        xscale="log", yscale="log", xlabel=r"Damping $\gamma$", ylabel=r"Step size $\epsilon$",
        ylim=(epsilons.min(), epsilons.max()), xlim=(gammas.min(), gammas.max()),
    )  # fmt: skip
    figure.colorbar(mesh, label="Growth of the state (nats a step)")
    return figure


def trajectories(paths: pd.DataFrame, shares: dict[str, np.ndarray]) -> Figure:
    """Hidden states along a sequence in their two main directions, one panel a variant.

    Args:
        paths: Columns `variant, image, class, step, first, second`.
        shares: Variant to the fractions of the variance along the two directions.
    """
    variants = list(paths["variant"].unique())
    rows, columns = -(-len(variants) // 4), min(len(variants), 4)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 3.6 * rows), squeeze=False)
    for ax in axes.flat[len(variants) :]:
        ax.set_visible(False)
    for ax, variant in zip(axes.flat, variants, strict=False):
        sns.lineplot(
            paths[paths["variant"] == variant].sort_values("class", kind="stable"),
            x="first", y="second", hue="class", units="image",
            estimator=None, sort=False, linewidth=0.7, palette="tab10", ax=ax,
            legend=ax is axes[0, -1],
        )  # fmt: skip
        first, second = 100 * shares[variant]
        ax.set(title=label(variant), xlabel=f"1st direction ({first:.0f}%)")
        ax.set_ylabel(f"2nd direction ({second:.0f}%)")
    sns.move_legend(axes[0, -1], "center left", bbox_to_anchor=(1, 0.5), title="Class")
    return figure
