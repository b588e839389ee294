"""Figures of the dynamics: spectra, stability, growth, gradients, exponents, trajectories."""

import os
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rnnbench_nb.figures.style import labelled, legend_below, look, show

if TYPE_CHECKING:
    from rnnbench_nb.report import Report

FEW = 8  # lines, beyond which they cannot be told apart


def _few(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of the first few variants, and a title that says so where there are more."""
    names = list(frame["variant"].unique())
    title = f"The first {FEW} of {len(names)} variants" if len(names) > FEW else ""
    return frame[frame["variant"].isin(names[:FEW])], title


def spectrum(spectra: pd.DataFrame, report: "Report") -> Figure:
    """Eigenvalues in the complex plane at each moment, with the disc of a stable Euler step.

    Args:
        spectra: Columns `variant, moment, real, imaginary, step_size`.
        report: Where the variant's label and colour are.
    """
    panels = {
        f"{report.labels[variant]}, {moment}": part
        for (variant, moment), part in spectra.groupby(["variant", "moment"], sort=False)
    }
    return _spectra(panels, report.looks[spectra["variant"].iloc[0]].colour)


def moved_spectra(
    spectra: pd.DataFrame, report: "Report", gammas: list[float], epsilons: list[float]
) -> Figure:
    """The last moment's S - gamma I and its disc, for every damping and step size.

    Args:
        spectra: Columns `variant, moment, frequency`.
        report: Where the variant's colour is.
        gammas: Dampings.
        epsilons: Step sizes.
    """
    last = spectra[spectra["moment"] == spectra["moment"].iloc[-1]]
    panels = {
        rf"$\gamma = {gamma:g}$, $\epsilon = {epsilon:.3g}$": pd.DataFrame(
            {"real": -gamma, "imaginary": last["frequency"], "step_size": epsilon}
        )
        for gamma in gammas
        for epsilon in epsilons
    }
    return _spectra(panels, report.looks[last["variant"].iloc[0]].colour)


def sliders(spectra: pd.DataFrame, report: "Report") -> None:
    """In JupyterLab, sliders that move the damping and the step size; elsewhere nothing."""
    if "JPY_SESSION_NAME" not in os.environ or "RNNBENCH_OUTPUT" in os.environ:
        return
    import ipywidgets

    ipywidgets.interact(
        lambda gamma, epsilon: show(
            moved_spectra(spectra, report, [gamma], [epsilon]),
            "The trained spectrum and the disc of the damping and step size chosen.",
        ),
        gamma=ipywidgets.FloatSlider(0.01, min=0.0, max=3.0, step=0.01),
        epsilon=ipywidgets.FloatLogSlider(1.0, min=-2, max=1),
    )


def _spectra(panels: dict[str, pd.DataFrame], colour: str) -> Figure:
    """Columns `real, imaginary, step_size` as panels, two a row.

    The Euler step h + epsilon A h grows along a mode unless its eigenvalue is in the disc of radius
    1/epsilon around -1/epsilon.
    """
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.5 * columns, 4.1 * rows), sharey="row", squeeze=False
    )
    for ax, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        radius = 1 / panel["step_size"].iloc[0]
        ax.add_patch(
            plt.Circle(
                (-radius, 0), radius, facecolor="0.9", edgecolor="0.4", linestyle="--",
                label="Euler step stable",
            )
        )  # fmt: skip
        ax.scatter(
            panel["real"], panel["imaginary"], s=14, color=colour, zorder=3, label="eigenvalues"
        )
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set(title=title, xlabel="Real part")
        ax.set_aspect("equal", adjustable="datalim")
    for ax in axes[:, 0]:
        ax.set_ylabel("Imaginary part")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    return figure


def frequency_density(frequencies: pd.DataFrame, report: "Report") -> Figure:
    """Densities of the frequencies of S at each moment, one line a variant, and the semicircle.

    Args:
        frequencies: Columns `variant, moment, frequency, density, semicircle`.
        report: Where labels and looks are.
    """
    figure = _by_moment(
        frequencies, "frequency", "density", "Imaginary part of the eigenvalues of S", "Density",
        report, drawstyle="steps-mid",
    )  # fmt: skip
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
    panels = {
        "lambda_max": r"Largest frequency $\lambda_{\max}$",
        "epsilon": r"Step size $\epsilon$",
        "modulus_max": "Largest modulus of the Euler step",
        "share_outside": "Modes outside the disc (%)",
    }
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 6), sharex=True)
    few, title = _few(training)
    frame = labelled(few, report).assign(share_outside=100 * few["share_outside"])
    for ax, (column, name) in zip(axes.flat, panels.items(), strict=True):
        sns.lineplot(
            frame, x="epoch", y=column, hue="label", style="label", errorbar="sd", ax=ax,
            palette=look(report, "colour"), dashes=look(report, "dashes"),
            legend=ax is axes[0, 0], err_kws={"alpha": 0.15, "linewidth": 0},
        )  # fmt: skip
        ax.set(title=name, xlabel="Epoch (0: initialisation)", ylabel="")
    axes[1, 0].axhline(1, color="0.3", linestyle="--", linewidth=1)
    figure.suptitle(title or None)
    legend_below(figure, axes[0, 0])
    return figure


def growth_terms(terms: pd.DataFrame, report: "Report") -> Figure:
    """What one step with each term of the Jacobian multiplies by, and what its flow does.

    Args:
        terms: Columns `variant, term, moment, seed, euler_radius, numerical_abscissa`.
        report: Where labels are.
    """
    names = {
        "euler_radius": ("Largest modulus of the step", 1),
        "numerical_abscissa": ("Numerical abscissa (growth at once of the flow)", 0),
    }
    few, title = _few(terms)
    few = labelled(few, report)
    several = few["variant"].nunique() > 1
    few = few.assign(row=few["label"] + ", " + few["term"] if several else few["term"])
    height = 1.4 + 0.5 * few["row"].nunique()
    figure, axes = plt.subplots(1, 2, figsize=(9.5, height), sharey=True)
    for ax, (measure, (name, neutral)) in zip(axes, names.items(), strict=True):
        sns.pointplot(
            few, y="row", x=measure, hue="moment", ax=ax, dodge=0.3, linestyle="none",
            errorbar="sd", palette=["0.6", "0.1"], markers=["D", "o"],
            err_kws={"linewidth": 1.2}, legend=ax is axes[0],
        )  # fmt: skip
        ax.axvline(neutral, color="0.3", linestyle="--", linewidth=1)
        ax.set(title=name, xlabel="per step", ylabel="")
    axes[0].legend(title=None)
    figure.suptitle(title or None)
    return figure


def _by_moment(
    frame: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, report: "Report", **options: Any
) -> Figure:
    """One panel a moment of training, one line a variant: mean and band over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    few, title = _few(labelled(frame, report))
    for ax, moment in zip(axes, few["moment"].unique(), strict=True):
        sns.lineplot(
            few[few["moment"] == moment], x=x, y=y, hue="label", style="label",
            palette=look(report, "colour"), dashes=look(report, "dashes"), errorbar="sd",
            err_kws={"alpha": 0.15, "linewidth": 0}, legend=ax is axes[0], ax=ax, **options,
        )  # fmt: skip
        ax.set(title=moment.capitalize(), xlabel=xlabel, ylabel=ylabel)
    figure.suptitle(title or None)
    legend_below(figure, axes[0])
    return figure


def gradient_flow(along: pd.DataFrame, report: "Report") -> Figure:
    """Gradient norm at each step, from columns `variant, seed, moment, step, log10_gradient`."""
    ylabel = r"$\log_{10}$ of the gradient norm"
    return _by_moment(
        along, "step", "log10_gradient", "Step (the loss is at the last)", ylabel, report
    )


def state_norms(along: pd.DataFrame, report: "Report") -> Figure:
    """Norm of the state at each step, from columns `variant, seed, moment, step, state_norm`."""
    return _by_moment(along, "step", "state_norm", "Step", "Norm of the hidden state", report)


def exponent_spectra(exponents: pd.DataFrame, report: "Report") -> Figure:
    """Finite-time exponents, from columns `variant, seed, moment, position, exponent`."""
    figure = _by_moment(
        exponents, "position", "exponent", "Position in the spectrum (0: largest)",
        "Finite-time exponent (nats a step)", report,
    )  # fmt: skip
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
    limit = np.abs(rates.to_numpy()).max()
    mesh = ax.pcolormesh(
        gammas, epsilons, rates, cmap="PuOr_r", vmin=-limit, vmax=limit, shading="nearest"
    )
    ax.contour(gammas, epsilons, rates, levels=[0], colors="black", linewidths=1.5)
    ax.plot(boundary["gamma"], boundary["epsilon"], color="black", linestyle="--")
    handles = [plt.Line2D([], [], color="black", linestyle=style) for style in ("-", "--")]
    ax.legend(handles, ["measured: no growth", "theory: stable below"], loc="upper right")
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
    few = paths["target"].nunique() <= 10  # classes, not numbers
    for ax, share in zip(axes.flat, shares.itertuples(), strict=False):
        sns.lineplot(
            paths[paths["variant"] == share.variant].sort_values("target", kind="stable"),
            x="first", y="second", hue="target", units="example",
            estimator=None, sort=False, linewidth=0.7, palette="tab10" if few else "viridis",
            ax=ax, legend="auto" if ax is axes[0, -1] else False,
        )  # fmt: skip
        ax.set(title=report.labels[share.variant])
        ax.set_xlabel(f"1st direction ({100 * share.first:.0f}%)")
        ax.set_ylabel(f"2nd direction ({100 * share.second:.0f}%)")
    sns.move_legend(axes[0, -1], "center left", bbox_to_anchor=(1, 0.5), title="Target")
    return figure
