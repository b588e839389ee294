"""Page 04: where the eigenvalues of a cell's recurrent matrix lie, and whether its step is stable.

Real parts judge a flow. What a network takes T times is a step, and is judged by moduli against 1.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rnnbench_nb import dynamics
from rnnbench_nb.analyses import Analysis, growth, keyed, short, weighted
from rnnbench_nb.errors import UserError
from rnnbench_nb.report import Report, Run

MOMENTS = ("initial", "best epoch")
BINS = 60  # of the histogram of frequencies
GAMMAS, EPSILONS = np.logspace(-2, 0.7, 19), np.logspace(-2, 1, 21)  # of the map
MAP_STEPS, MAP_STATES, SMALL_STATE = 50, 8, 1e-6
MOVED = 30  # most epochs between which sliders move
TRACKED = ["epsilon", "lambda_max", "modulus_max", "share_outside"]  # at every epoch


def analyse(report: Report, count: int = 8) -> Analysis:
    """Spectra, stability and growth of every variant whose cell has a recurrent matrix.

    Args:
        report: Its runs must have their weights.
        count: Test examples along which growth is measured, the first of the test set.

    Returns:
        Frames, keyed by `variant, seed, moment`: `stability` (see `stability_row`) and
        `stability_means` over the seeds; `training`, four of these numbers at each `epoch`;
        `frequencies`, densities over the seeds of each variant; `spectra` of the first run, and
        its `modes` through training (see `modes`);
        `map` and `boundary` over `gamma, epsilon` (for cells with these options); and those of
        `growth.add` (for cells that tell the parts of their step).
        Findings on `answer`, one a variant and one on all, `growth`, `words`, `map` and `lost`.

    Raises:
        UserError: No run has weights, or none a recurrent matrix.
    """
    every = weighted(report)
    runs = [run for run in every if run.has("recurrent")]
    if not runs:
        raise UserError(f"{report.folder} has no finished run of a cell with a recurrent matrix.")
    rows, training, spectra, edges = [], [], [], {}
    for run in runs:
        key = dict(zip(("variant", "seed"), run.key, strict=True))
        a, epsilon = (torch.from_numpy(run.recurrent[n]).double() for n in ("matrix", "step_size"))
        eigenvalues = dynamics.over_examples(torch.linalg.eigvals, a)
        places = dynamics.stability(eigenvalues, epsilon)
        columns = {name: short(places[name].numpy()) for name in TRACKED}
        training.append(pd.DataFrame({**key, "epoch": range(len(a)), **columns}))
        edge = dynamics.semicircle_edge(dynamics.antisymmetric_part(a[0]))
        edges.setdefault(run.key[0], []).append(float(edge))
        for moment, t in zip(MOMENTS, (0, run.record["best_epoch"]), strict=True):
            key["moment"] = moment
            rows.append(key | stability_row(a[t], eigenvalues[t], epsilon[t]))
            spectra.append(keyed(key, spectrum(a[t], float(epsilon[t]))))
    stability = pd.DataFrame(rows)
    histograms = []
    for name, part in pd.concat(spectra).groupby("variant", sort=False):
        found = dict(list(part.groupby("moment", sort=False)["frequency"]))
        histograms.append(keyed({"variant": name}, densities(found, np.mean(edges[name]))))
    analysis = Analysis({
        "stability": stability,
        "stability_means": means(stability, ["variant", "moment"]),
        "training": pd.concat(training, ignore_index=True),
        "frequencies": pd.concat(histograms, ignore_index=True),
        "spectra": pd.concat(spectra[: len(MOMENTS)], ignore_index=True),
        "modes": modes(runs[0]),
    })  # fmt: skip
    _stability_findings(analysis, report)
    growth.add(analysis, report, every, count)
    _map(analysis, runs)
    return analysis


def stability_row(matrix: Tensor, eigenvalues: Tensor, step_size: Tensor) -> dict[str, float]:
    """What the page says of one recurrent matrix A (H, H) with eigenvalues (H,) and a step size.

    Returns:
        The columns of `dynamics.stability`; `abscissa` and `numerical_abscissa` of epsilon A; and
        the `defect` of A from S - gamma I.
    """
    values = dynamics.stability(eigenvalues, step_size) | dynamics.abscissas(step_size * matrix)
    values["defect"] = dynamics.defect(matrix)
    return {name: float(value) for name, value in values.items()}


def means(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means over all but the keys, and the number of `seeds` that they are over."""
    groups = frame.groupby(keys, sort=False)
    table = groups.mean(numeric_only=True).drop(columns="seed")
    table.insert(0, "seeds", groups["seed"].nunique())
    return table.reset_index()


COLUMNS = {
    "seeds": "seeds", "epsilon": "ε", "lambda_max": "λ max", "epsilon_lambda_max": "ε λ max",
    "epsilon_max": "largest stable ε", "modulus_max": "largest modulus",
    "share_outside": "modes outside %", "abscissa": "abscissa",
    "numerical_abscissa": "numerical abscissa", "defect": "defect",
}  # fmt: skip


def stability_table(table: pd.DataFrame, report: Report) -> pd.DataFrame:
    """The means over the seeds as text, a row a variant and moment."""
    shown = table.assign(share_outside=100 * table["share_outside"])
    shown = shown.assign(variant=shown["variant"].map(report.labels))
    shown = shown.set_index(["variant", "moment"])[list(COLUMNS)].rename(columns=COLUMNS)
    return shown.map("{:.4g}".format)


def spectrum(matrix: Tensor, step_size: float) -> pd.DataFrame:
    """`step_size`, the eigenvalues of A `real, imaginary`, and the `frequency` of S, ascending."""
    modes = torch.linalg.eigvals(matrix)
    modes = modes[modes.imag.argsort()].numpy()
    s = dynamics.antisymmetric_part(matrix)
    frequency = torch.linalg.eigvals(s).imag.sort().values.numpy()
    columns = {"real": modes.real, "imaginary": modes.imag, "frequency": frequency}
    columns = {name: short(values) for name, values in columns.items()}
    return pd.DataFrame({"step_size": step_size, **columns})


def modes(run: Run) -> pd.DataFrame:
    """S - gamma I of a run through training: `variant, seed, epoch, moment, gamma, epsilon`.

    With `frequency`, 0 or above, of each pair -gamma +- i frequency of modes, to four decimals. The
    epochs are at most `MOVED`, evenly, and the best one; `gamma` is -tr(A) / H.
    """
    best, last = run.record["best_epoch"], len(run.recurrent["matrix"]) - 1
    names = {0: MOMENTS[0], best: MOMENTS[1]}
    parts = []
    for epoch in sorted({*np.linspace(0, last, MOVED).round().astype(int).tolist(), best}):
        a = torch.from_numpy(run.recurrent["matrix"][epoch]).double()
        frequency = spectrum(a, 0.0)["frequency"][len(a) // 2 :]
        key = dict(zip(("variant", "seed"), run.key, strict=True))
        key |= {"epoch": epoch, "moment": names.get(epoch, "in training")}
        size = float(run.recurrent["step_size"][epoch])
        key |= dict(zip(("gamma", "epsilon"), short((-a.diagonal().mean(), size)), strict=True))
        parts.append(keyed(key, pd.DataFrame({"frequency": frequency.abs().round(4)})))
    return pd.concat(parts, ignore_index=True)


def densities(found: dict[str, np.ndarray], edge: float) -> pd.DataFrame:
    """Densities of frequencies by moment, on common bins: `moment, frequency, density, semicircle`.

    `frequency` is the middle of a bin, `semicircle` the density there of a random S whose spectrum
    ends at `edge`.
    """
    limit = max(edge, *(np.abs(values).max() for values in found.values()))
    bins = np.linspace(-limit, limit, BINS + 1)
    middle = (bins[1:] + bins[:-1]) / 2
    theory = dynamics.semicircle(torch.from_numpy(middle), edge).numpy()
    parts = [
        pd.DataFrame({
            "moment": moment, "frequency": short(middle), "semicircle": short(theory),
            "density": short(np.histogram(values, bins, density=True)[0]),
        })
        for moment, values in found.items()
    ]  # fmt: skip
    return pd.concat(parts)


def _stability_findings(analysis: Analysis, report: Report) -> None:
    table = analysis["stability_means"].set_index(["moment", "variant"])
    start, best = (table.loc[moment] for moment in MOMENTS)
    trained = analysis["stability"].query(f"moment == {MOMENTS[1]!r}")
    largest = trained.groupby("variant", sort=False)["modulus_max"].max()
    stable = [report.labels[name] for name in largest.index[largest <= 1]]
    names = " and ".join(filter(None, [", ".join(stable[:-1]), *stable[-1:]]))
    analysis.say(
        "After training, the Euler step $I + \\epsilon A$ "
        + (f"amplifies no mode in any seed of {names}." if stable
           else "amplifies some mode of every variant"
           + " that has such a matrix" * (len(best) < len(report.variants)) + "."),
        stable=len(stable), variants=len(best),
    )  # fmt: skip
    for variant in best.index:
        before, after = start.loc[variant], best.loc[variant]
        numbers = {f"{name}_initial": float(value) for name, value in before.items()}
        numbers |= {f"{name}_best": float(value) for name, value in after.items()}
        defect = max(before.defect, after.defect)
        seeds, steps = int(after.seeds), (f"{row.epsilon:.2f}" for row in (before, after))
        step = " to ".join(dict.fromkeys(steps))
        step = f"goes from {step}" if " to " in step else f"stays {step}"
        analysis.say(
            f"**{report.labels[variant]}** ({seeds} seed{'s' * (seeds > 1)}): the fastest mode is "
            f"multiplied by {before.modulus_max:.3f} a step initially and by "
            f"{after.modulus_max:.3f} trained, where gates and saturation do not hold it; "
            f"{before.share_outside:.0%} and {after.share_outside:.0%} of the modes lie outside "
            f"the disc. $\\lambda_{{\\max}}$ goes from {before.lambda_max:.2f} to "
            f"{after.lambda_max:.2f}, $\\epsilon$ {step}, while the largest stable step would be "
            f"{after.epsilon_max:.4f}. The matrix is "
            + (f"not $S - \\gamma I$, by {before.defect:.0%} of its norm initially and "
               f"{after.defect:.0%} trained." if defect > 1e-3
               else f"$S - \\gamma I$ (defect {defect:.0g})."), **numbers,
        )  # fmt: skip


def _map(analysis: Analysis, runs: list[Run]) -> None:
    """Growth over gamma and epsilon of the first run whose cell has both, and where theory ends."""
    read = {"gamma", "epsilon"}
    having = [run for run in runs if read <= type(run.parameters).model_fields.keys()]
    if not having:
        return
    cell = having[0].initial_model.cell
    generator = torch.Generator().manual_seed(0)
    start = SMALL_STATE * torch.randn(MAP_STATES, len(cell.zero_state(1)[0]), generator=generator)
    rates, boundary = dynamics.growth_map(cell, GAMMAS, EPSILONS, start.double(), MAP_STEPS)
    grid = pd.MultiIndex.from_product([GAMMAS, EPSILONS], names=["gamma", "epsilon"])
    column = {"rate": short(rates.flatten().numpy())}
    analysis.frames["map"] = pd.DataFrame(column, grid).reset_index()
    analysis.frames["boundary"] = pd.DataFrame({"gamma": GAMMAS, "epsilon": boundary.numpy()})
    alike = agreement(rates.numpy(), EPSILONS, boundary.numpy())
    analysis.say(
        f"Measured growth and theory agree on growth or decay at {alike} of {rates.numel()} points "
        f"of the map; {MAP_STEPS} steps from a random state do not yet show the slowest growth.",
        "map", steps=MAP_STEPS, agree=alike, points=rates.numel(),
    )  # fmt: skip


def agreement(rates: np.ndarray, epsilons: np.ndarray, boundary: np.ndarray) -> int:
    """At how many points (gammas, epsilons) a state grows just where epsilon is above theory's."""
    return int(((rates > 0) == (epsilons > boundary[:, None])).sum())
