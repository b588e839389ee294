"""Page 07: do states and gradients explode or vanish on their way through a sequence?"""

from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from rnnbench_nb import dynamics
from rnnbench_nb.analyses import Analysis, examples, keyed, short, weighted
from rnnbench_nb.analyses.growth import FAR, KEPT, MOMENTS, WORDS, word
from rnnbench_nb.report import Report, Run

SHORT = 100  # steps: up to it, exponents are those of the product's singular values
DRAWN, POINTS = 20, 60  # examples whose trajectories are drawn; most points along any curve
WARM_UP, NOISE_STEPS, NOISE_SEQUENCES = 500, 100, 15  # as Vogt et al. 2022 measured


def analyse(report: Report, count: int = 32) -> Analysis:
    """Gradients, states and exponents along test examples, initial and trained.

    Args:
        report: Its runs must have their weights.
        count: Test examples, the first ones of the test set.

    Returns:
        Frames, keyed by `variant, seed, moment`, all means over the examples: `along`
        (`step, log10_gradient, state_norm`); `exponents` and `noise_exponents` in nats a step
        (`position, exponent`), the latter of the first seed alone; `measures`, one row each
        (`decades, largest_exponent, noise_exponent`), and `summary`, their means over the seeds.
        Of the first seed, trained: `trajectories` (`example, target, step, first, second`) and
        `shares` of the variance. Findings on `answer`, one a variant, `words` and `lost`.

    Raises:
        UserError: No run has weights.
    """
    found, lost = {}, {}
    for run in weighted(report):
        try:
            for name, frame in _frames(run, run is report.of(run.key[0])[0], count):
                found.setdefault(name, []).append(frame)
        except Exception as error:  # whatever a contributed cell raises costs its own rows alone
            lost.setdefault(run.key[0], f"{type(error).__name__}: {error}")
    frames = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}
    analysis = Analysis(frames)
    for variant, reason in lost.items():
        analysis.say(f"{report.labels[variant]} is missing here: {reason}", "lost")
    if frames:
        frames["summary"] = summary(frames["measures"])
        _findings(analysis, report)
    return analysis


def _frames(run: Run, first: bool, count: int) -> list[tuple[str, pd.DataFrame]]:
    """All frames of one run, so that a run that fails leaves none."""
    inputs, targets = examples(run, count)
    variant, seed = run.key
    frames = []
    for moment, model in zip(MOMENTS, (run.initial_model, run.model), strict=True):
        key = {"variant": variant, "seed": seed, "moment": moment}
        path = dynamics.trajectories(model.cell, inputs)[..., : model.cell.hidden_size]
        measure = partial(dynamics.gradient_norms, model, run.task)
        gradients = dynamics.over_examples(measure, inputs, targets)
        rates = exponents(model.cell, inputs)
        row = {"decades": decades(gradients), "largest_exponent": float(np.nanmax(rates))}
        frames.append(("along", keyed(key, along(gradients, path))))
        frames.append(("exponents", keyed(key, spectrum(rates))))
        if first:
            noisy = noise_exponents(model.cell)
            row["noise_exponent"] = float(np.nanmax(noisy))
            frames.append(("noise_exponents", keyed(key, spectrum(noisy))))
        frames.append(("measures", pd.DataFrame([key | row])))
    if first:
        names = run.record["data"].get("class_names")
        drawn, shares = trajectories(path[:DRAWN], targets[:DRAWN], names)
        frames.append(("trajectories", keyed({"variant": variant}, drawn)))
        frames.append(("shares", pd.DataFrame([{"variant": variant} | shares])))
    return frames


def thinned(length: int) -> np.ndarray:
    """At most `POINTS` places from 0 to length - 1, evenly, both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(POINTS, length)).round().astype(int))


def decades(gradients: Tensor) -> float:
    """Growth of the gradient on its way back, from norms (B, T + 1): mean log10 of first by last.

    Above 0 it grows on its way from the loss to the start, below it shrinks.
    """
    logarithm = gradients.clamp(min=1e-300).log10()
    return float((logarithm[:, 0] - logarithm[:, -1]).mean())


def along(gradients: Tensor, path: Tensor) -> pd.DataFrame:
    """`step, log10_gradient, state_norm`: means over the examples, from (B, T + 1), (B, T + 1, H).

    At most `POINTS` steps, with six digits.
    """
    steps = thinned(gradients.shape[1])
    size = gradients.clamp(min=1e-300).log10().mean(0)
    norm = path.norm(dim=-1).mean(0)
    columns = {"log10_gradient": short(size[steps]), "state_norm": short(norm[steps])}
    return pd.DataFrame({"step": steps, **columns})


def exponents(cell: nn.Module, inputs: Tensor) -> np.ndarray:
    """Exponents (n,) over whole sequences (B, T, D), descending, means over the sequences.

    They are `dynamics.singular_exponents` up to `SHORT` steps and `lyapunov_exponents` above.
    Directions that a step erases are left out of the mean.
    """
    few = inputs.shape[1] <= SHORT
    measure = dynamics.singular_exponents if few else dynamics.lyapunov_exponents
    return _exponents(measure, cell, inputs)


def noise_exponents(cell: nn.Module) -> np.ndarray:
    """Exponents (n,) under uniform noise after a warm-up, by QR, as Vogt et al. 2022 measured."""
    shape = NOISE_SEQUENCES, WARM_UP + NOISE_STEPS, cell.input_size
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return _exponents(dynamics.lyapunov_exponents, cell, noise, WARM_UP, size=4)


def _exponents(
    measure: Callable, cell: nn.Module, inputs: Tensor, skipped: int = 0, **options: int
) -> np.ndarray:
    def of_part(x: Tensor) -> Tensor:
        return measure(map(dynamics.jacobian, islice(dynamics.walk(cell, x), skipped, None)))

    return _ranked_mean(dynamics.over_examples(of_part, inputs, **options))


def _ranked_mean(found: Tensor) -> np.ndarray:
    """The mean (n,) over sequences of exponents (B, n), each first put in descending order."""
    ranked = found.sort(descending=True).values.numpy()
    return pd.DataFrame(ranked).replace(-np.inf, np.nan).mean().to_numpy()


def spectrum(rates: np.ndarray) -> pd.DataFrame:
    """`position` from 0 (largest) to 1, and `exponent`; at most `POINTS` of them, six digits."""
    places = thinned(len(rates))
    positions = places / max(len(rates) - 1, 1)
    return pd.DataFrame({"position": short(positions, 4), "exponent": short(rates[places])})


def trajectories(
    path: Tensor, targets: Tensor, names: list[str] | None = None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """States (B, T + 1, H) in their two main directions, and each one's share of the variance.

    Args:
        path: The states.
        targets: Of each example, the last one where there is one a step.
        names: Of the classes, if the targets are classes.
    """
    pca = PCA(2, svd_solver="full")
    points = pca.fit_transform(path.flatten(0, 1).numpy()).reshape(*path.shape[:2], 2)
    steps = thinned(path.shape[1])
    grid = pd.MultiIndex.from_product([range(len(path)), steps], names=["example", "step"])
    frame = grid.to_frame(index=False)
    last = [target.flatten()[-1].item() for target in targets]
    frame.insert(1, "target", [names[t] if names else t for t in last for _ in steps])
    for i, name in enumerate(("first", "second")):
        frame[name] = short(points[:, steps, i].ravel(), 4)
    return frame, dict(
        zip(("first", "second"), pca.explained_variance_ratio_.tolist(), strict=True)
    )


def summary(measures: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of each variant and moment, `seeds`, and `decades_sd` (ddof 1)."""
    groups = measures.groupby(["variant", "moment"], sort=False)
    means = groups[["decades", "largest_exponent", "noise_exponent"]].mean()
    return means.assign(seeds=groups.size(), decades_sd=groups["decades"].std()).reset_index()


def _findings(analysis: Analysis, report: Report) -> None:
    """What the words mean, and one sentence a variant."""
    analysis.say(WORDS, "words", kept=KEPT, far=FAR)
    rows = analysis["summary"].set_index(["variant", "moment"])
    lengths = analysis["along"].groupby("variant")["step"].max()
    columns = ["decades", "decades_sd", "largest_exponent", "noise_exponent"]
    for variant in rows.index.unique("variant"):
        before, after = (rows.loc[(variant, moment)] for moment in MOMENTS)
        numbers = {f"{name}_{MOMENTS[0]}": float(before[name]) for name in columns}
        numbers |= {f"{name}_{MOMENTS[1]}": float(after[name]) for name in columns}
        seeds, steps = int(after.seeds), int(lengths[variant])
        analysis.say(
            f"**{report.labels[variant]}** ({seeds} seed{'s' * (seeds > 1)}): over {steps} steps "
            f"back the gradient {_change(before)} initially, and {_change(after)} trained; the "
            f"largest exponent goes from {before.largest_exponent:+.3f} to "
            f"{after.largest_exponent:+.3f} nats a step (first seed, under noise: from "
            f"{before.noise_exponent:+.3f} to {after.noise_exponent:+.3f}).",
            seeds=seeds, steps=steps, **numbers,
        )  # fmt: skip


def _change(row: pd.Series) -> str:
    """Such as `shrinks (-1.2 ± 0.1 decades)`."""
    spread = "" if np.isnan(row.decades_sd) else f" ± {row.decades_sd:.1f}"
    return f"{word(row.decades)} ({row.decades:+.1f}{spread} decades)"
