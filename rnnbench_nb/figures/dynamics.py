"""Figures of the dynamics: spectra, stability, growth, gradients, exponents, trajectories."""

import os
from itertools import product
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from rnnbench_nb.figures.theme import few, legend_below, look, show

if TYPE_CHECKING:
    from rnnbench_nb.report import Report


def spectrum(spectra: pd.DataFrame, report: "Report") -> Figure:
    """Eigenvalues in the complex plane at each moment, with the disc of a stable Euler step.

    Args:
        spectra: Columns `variant, moment, real, imaginary, step_size`, of one variant.
        report: Where the variant's label and colour are.
    """
    variant = spectra["variant"].iloc[0]
    moments = spectra.groupby("moment", sort=False)
    panels = {f"{report.labels[variant]}, {moment}": part for moment, part in moments}
    return _spectra(panels, report.looks[variant].colour, sharey=True)


def moved_spectra(
    spectra: pd.DataFrame, report: "Report", gammas: list[float], epsilons: list[float]
) -> Figure:
    """The last moment's S - gamma I and its disc, for every damping and step size.

    Args:
        spectra: Columns `variant, moment, frequency`, of one variant.
        report: Where the variant's colour is.
        gammas: Dampings.
        epsilons: Step sizes.
    """
    last = spectra[spectra["moment"] == spectra["moment"].iloc[-1]]
    panels = {
        rf"$\gamma = {gamma:g}$, $\epsilon = {epsilon:.3g}$": last.assign(
            real=-gamma, imaginary=last["frequency"], step_size=epsilon
        )
        for gamma, epsilon in product(gammas, epsilons)
    }
    return _spectra(panels, report.looks[last["variant"].iloc[0]].colour)


def moving(modes: pd.DataFrame) -> dict[str, list]:
    """What a page's script moves: lists of epochs, their moments, dampings, steps and frequencies.

    Args:
        modes: Columns `epoch, moment, gamma, epsilon, frequency`, of one run.
    """
    keys = ["epoch", "moment", "gamma", "epsilon"]
    frequencies = modes.groupby(keys)["frequency"].agg(list).reset_index()
    return frequencies.to_dict("list")


def sliders(modes: pd.DataFrame, report: "Report") -> None:
    """In JupyterLab, sliders that move damping, step size and epoch; elsewhere nothing.

    Args:
        modes: Columns `variant, epoch, frequency`, the last 0 or above, of one run.
        report: Where the variant's colour is.
    """
    if "JPY_SESSION_NAME" not in os.environ:  # reports are made without it
        return
    import ipywidgets

    both = pd.concat([modes, modes.assign(frequency=-modes["frequency"])])
    ipywidgets.interact(
        lambda gamma, epsilon, epoch: show(
            moved_spectra(both[both["epoch"] == epoch], report, [gamma], [epsilon]),
            "The spectrum of an epoch and the disc of the damping and step size chosen.",
        ),
        gamma=ipywidgets.FloatSlider(0.01, min=0.0, max=3.0, step=0.01),
        epsilon=ipywidgets.FloatLogSlider(1.0, min=-2, max=1),
        epoch=ipywidgets.SelectionSlider(options=modes["epoch"].unique().tolist()),
    )


def _spectra(panels: dict[str, pd.DataFrame], colour: str, sharey: bool = False) -> Figure:
    """Columns `real, imaginary, step_size` as panels, two a row.

    The Euler step h + epsilon A h grows along a mode unless its eigenvalue is in the disc of radius
    1/epsilon around -1/epsilon.
    """
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.5 * columns, 0.6 + 3.5 * rows), sharey=sharey, squeeze=False
    )
    for ax, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        radius = 1 / panel["step_size"].iloc[0]
        style = {"facecolor": "0.9", "edgecolor": "0.4", "linestyle": "--"}
        ax.add_patch(plt.Circle((-radius, 0), radius, **style, label="Euler step stable"))
        modes = panel["real"], panel["imaginary"]
        ax.scatter(*modes, s=14, color=colour, zorder=3, label="eigenvalues")
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set_title(title)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set(xlabel="Real part", ylabel="Imaginary part")
        ax.tick_params(labelleft=True)
    figure.get_layout_engine().set(h_pad=0.12)  # or titles touch the numbers above them
    legend_below(figure, axes[0, 0])
    return figure


def _lines(
    frame: pd.DataFrame, by: str, x: str, y: str, xlabel: str, ylabel: str, report: "Report",
    **options: Any,
) -> Figure:  # fmt: skip
    """A panel for each value of `by`, two a row, and in it one line a variant.

    A line is the mean and a band the standard deviation over seeds.
    """
    rows = frame[by].nunique() // 2
    figure, axes = plt.subplots(
        rows, 2, figsize=(9.5, 1.6 + 2.2 * rows), sharex=rows > 1, sharey=rows == 1, squeeze=False
    )
    parts = few(frame, report, figure).groupby(by, sort=False)
    for ax, (title, part) in zip(axes.flat, parts, strict=True):
        ax.tick_params(labelbottom=True, labelleft=True)  # a narrow page shows it alone
        sns.lineplot(
            part, x=x, y=y, hue="label", style="label", errorbar="sd", ax=ax,
            palette=look(report, "colour"), dashes=look(report, "dashes"),
            legend=ax is axes[0, 0], err_kws={"alpha": 0.15, "linewidth": 0}, **options,
        )  # fmt: skip
        ax.set(title=title[0].upper() + title[1:], xlabel=xlabel, ylabel=ylabel)
    legend_below(figure, axes[0, 0])
    return figure


def frequency_density(frequencies: pd.DataFrame, report: "Report") -> Figure:
    """Densities of the frequencies of S at each moment, one line a variant, and the semicircle.

    Args:
        frequencies: Columns `variant, moment, frequency, density, semicircle`.
        report: Where labels and looks are.
    """
    labels = "Imaginary part of the eigenvalues of S", "Density"
    columns = "moment", "frequency", "density"
    figure = _lines(frequencies, *columns, *labels, report, drawstyle="steps-mid")
    _, first = next(iter(frequencies.groupby(["variant", "moment"], sort=False)))
    for ax in figure.axes:
        ax.plot(first["frequency"], first["semicircle"], color="black", linestyle="--")
    return figure


def stability_through_training(training: pd.DataFrame, report: "Report") -> Figure:
    """The spectrum's place in the stability region against epoch: mean and band over seeds.

    Args:
        training: Columns `variant, seed, epoch, lambda_max, epsilon, modulus_max, share_outside`.
        report: Where labels and looks are.
    """
    frame = training.assign(share_outside=100 * training["share_outside"])
    names = {
        "lambda_max": r"Largest frequency $\lambda_{\max}$",
        "epsilon": r"Step size $\epsilon$",
        "modulus_max": "Largest modulus of the Euler step",
        "share_outside": "Modes outside the disc (%)",
    }
    frame = frame.rename(columns=names).melt(["variant", "seed", "epoch"], list(names.values()))
    labels = "Epoch (0: initialisation)", ""
    figure = _lines(frame, "variable", "epoch", "value", *labels, report)
    figure.axes[2].axhline(1, color="0.3", linestyle="--", linewidth=1)
    return figure


def gradient_growth(growth: pd.DataFrame, report: "Report") -> Figure:
    """The gradient's growth from end to end with each step in the place of the Jacobian.

    Args:
        growth: Columns `variant, replacement, moment, seed, gradient`.
        report: Where labels are.
    """
    figure, ax = plt.subplots()
    several = growth.groupby("variant")["replacement"].nunique()
    shown = few(growth[growth["variant"].map(several) > 1], report, figure)
    shown["row"] = shown["replacement"]
    if shown["variant"].nunique() > 1:
        shown["row"] = shown["label"] + ", " + shown["row"]
    figure.set_size_inches(9.5, 1.6 + 0.4 * shown["row"].nunique())
    sns.pointplot(
        shown, y="row", x="gradient", hue="moment", ax=ax, dodge=0.3, linestyle="none",
        errorbar="sd", palette=["0.6", "0.1"], markers=["D", "o"], err_kws={"linewidth": 1.2},
    )  # fmt: skip
    ax.axvline(0, color="0.3", linestyle="--", linewidth=1)
    ax.set(xlabel="Growth of the gradient on its way back (decades)", ylabel="")
    legend_below(figure, ax)
    return figure


def gradient_flow(along: pd.DataFrame, report: "Report") -> Figure:
    """Gradient norm at each step, from columns `variant, seed, moment, step, log10_gradient`."""
    labels = "Step (the loss is at the last)", r"$\log_{10}$ of the gradient norm"
    return _lines(along, "moment", "step", "log10_gradient", *labels, report)


def state_norms(along: pd.DataFrame, report: "Report") -> Figure:
    """Norm of the state at each step, from columns `variant, seed, moment, step, state_norm`."""
    return _lines(along, "moment", "step", "state_norm", "Step", "Norm of the hidden state", report)


def exponent_spectra(exponents: pd.DataFrame, report: "Report") -> Figure:
    """Finite-time exponents, from columns `variant, seed, moment, position, exponent`."""
    labels = "Position in the spectrum (0: largest)", "Finite-time exponent (nats a step)"
    figure = _lines(exponents, "moment", "position", "exponent", *labels, report)
    for ax in figure.axes:
        ax.axhline(0, color="0.3", linestyle="--", linewidth=1)
    return figure


def growth_map(growth: pd.DataFrame, boundary: pd.DataFrame) -> Figure:
    """Measured growth over damping and step size, and the boundary that theory draws.

    Args:
        growth: Columns `gamma, epsilon, rate`, in nats a step, above 0 where the state grows.
        boundary: Columns `gamma, epsilon`: the largest stable step by theory.
    """
    rates = growth.pivot(index="epsilon", columns="gamma", values="rate")
    gammas, epsilons = rates.columns.to_numpy(), rates.index.to_numpy()
    figure, ax = plt.subplots(figsize=(7, 4.2))
    mesh = ax.pcolormesh(
        gammas, epsilons, rates, cmap="PuOr_r", norm=CenteredNorm(), shading="nearest"
    )
    ax.contour(gammas, epsilons, rates, levels=[0], colors="black", linewidths=1.5)
    dashed = {"color": "black", "linestyle": "--", "label": "theory: stable below"}
    ax.plot(boundary["gamma"], boundary["epsilon"], **dashed)
    ax.plot([], [], color="black", label="measured: no growth")
    legend_below(figure, ax)
    ax.set(
        xscale="log", yscale="log", xlabel=r"Damping $\gamma$", ylabel=r"Step size $\epsilon$",
        ylim=(epsilons.min(), epsilons.max()), xlim=(gammas.min(), gammas.max()),
    )  # fmt: skip
    figure.colorbar(mesh, label="Growth of the state (nats a step)")
    return figure


def trajectories(paths: pd.DataFrame, shares: pd.DataFrame, report: "Report") -> Figure:
    """Hidden states along a sequence in their two main directions, one panel a variant.

    Args:
        paths: Columns `variant, example, target, step, first, second`.
        shares: Columns `variant, first, second`: fractions of the variance along the two.
        report: Where labels are.
    """
    rows, columns = -(-len(shares) // 4), min(len(shares), 4)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 3.6 * rows), squeeze=False)
    for ax in axes.flat[len(shares) :]:
        ax.set_visible(False)
    classes = paths["target"].nunique() <= 10  # classes, not numbers
    for ax, share in zip(axes.flat, shares.itertuples(), strict=False):
        sns.lineplot(
            paths[paths["variant"] == share.variant].sort_values("target", kind="stable"),
            x="first", y="second", hue="target", units="example",
            estimator=None, sort=False, linewidth=0.7, palette="tab10" if classes else "viridis",
            ax=ax, legend="auto" if ax is axes[0, -1] else False,
        )  # fmt: skip
        ax.set(
            title=report.labels[share.variant],
            xlabel=f"1st direction ({share.first:.0%})",
            ylabel=f"2nd direction ({share.second:.0%})",
        )
        ax.locator_params(nbins=4)
    sns.move_legend(axes[0, -1], "center left", bbox_to_anchor=(1, 0.5), title="Target")
    return figure
