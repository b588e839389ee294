"""What of a finished run needs its weights, as small tidy tables, computed in the run's own job.

Everything is taken along the first examples of the test set, at two moments: `initial`, before the
first step of training, and `trained`, at the best epoch.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rnnbench_nb import dynamics
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import RunParameters
from rnnbench_nb.tasks import Task
from rnnbench_nb.tasks.base import Split

EXAMPLES, FEW = 32, 8  # examples of most measures, and of exponents
JACOBIANS, FEWEST = 1024, 4  # steps of all examples of a measure, but at least so many examples
SHORT = 100  # steps: up to here exponents come from the singular values of the whole product
POINTS = 60  # most points along a curve
REACH = 0.01  # of an example's largest gradient: an input with less no longer matters
DAMPED, SAMPLES = 2, 4  # examples, and steps of each, at which the least damping is looked for
BINS = 15  # of confidence

Tables = dict[str, pd.DataFrame]


class Finished(NamedTuple):
    """A finished run."""

    task: Task
    data: Split
    models: dict[str, SequenceModel]  # by moment
    outputs: Tensor  # of the trained model's head for the test examples (N, ...)
    matrices: Sequence[dict[str, Tensor]]  # `SequenceModel.tracked` at the start and each epoch

    def examples(self, count: int = EXAMPLES) -> tuple[Tensor, Tensor]:
        """The first test examples: sequences (count, T, D) and their targets."""
        inputs, targets = self.data.test
        return self.task.inputs(inputs[:count]), targets[:count]

    @property
    def length(self) -> int:
        """Steps of a sequence, T."""
        return self.examples(1)[0].shape[1]

    def count(self, most: int) -> int:
        """How many examples have their Jacobians multiplied: fewer of long sequences."""
        return max(min(most, JACOBIANS // self.length), FEWEST)


def measure(parameters: RunParameters, run: Finished) -> tuple[Tables, dict[str, str]]:
    """The tables of a run, keyed `variant, seed`, and why a cell made some measures impossible."""
    models = {moment: copy.deepcopy(model).cpu().eval() for moment, model in run.models.items()}
    run, failures = run._replace(models=models), {}
    found: Tables = {}
    for part in (spectra, training, gradients, exponents, growth, damping, memoryless, reliability):
        try:
            for name, table in part(run).items():
                found[name] = found[name].merge(table, on="moment") if name in found else table
        except Exception as error:  # whatever a contributed cell raises costs its own tables alone
            failures[part.__name__] = f"{type(error).__name__}: {error}"
    for table in found.values():
        table.insert(0, "variant", parameters.name)
        table.insert(1, "seed", parameters.seed)
    return found, failures


def of_both(part: Callable[[Finished, SequenceModel], Tables]) -> Callable[[Finished], Tables]:
    """Make the measure of a model one of a run: the rows of both models, by `moment`."""

    @wraps(part)
    def measured(run: Finished) -> Tables:
        each = {moment: part(run, model) for moment, model in run.models.items()}
        return {
            name: pd.concat({moment: tables[name] for moment, tables in each.items()})
            .reset_index(0, names="moment")
            .reset_index(drop=True)
            for name in each["trained"]
        }

    return measured


@of_both
def spectra(run: Finished, model: SequenceModel) -> Tables:
    """The recurrent matrix A of a cell that has one, and the Euler step along it.

    Returns:
        `stability` (moment): what `dynamics.stability` says. `spectra` (moment): `step_size`, the
        eigenvalues of A, `real, imaginary`, and the `frequency` of its antisymmetric part.
    """
    tracked = model.tracked()
    if not tracked:
        return {}
    a, epsilon = (tensor.double() for tensor in tracked.values())
    modes = torch.linalg.eigvals(a)
    modes = modes[modes.imag.argsort()]
    frequency = torch.linalg.eigvals((a - a.mT) / 2).imag.sort().values
    columns = {"real": modes.real, "imaginary": modes.imag, "frequency": frequency}
    return {
        "stability": pd.DataFrame([dynamics.stability(a, epsilon)]),
        "spectra": pd.DataFrame({"step_size": float(epsilon), **columns}),
    }


def training(run: Finished) -> Tables:
    """The table `training` (epoch): some columns of `dynamics.stability` after every epoch."""
    if not run.matrices[0]:
        return {}
    places = pd.DataFrame([dynamics.stability(*each.values()) for each in run.matrices])
    columns = ["epsilon", "lambda_max", "modulus_max", "share_outside"]
    return {"training": places[columns].rename_axis("epoch").reset_index()}


def thinned(length: int) -> np.ndarray:
    """At most `POINTS` places from 0 to length - 1, evenly, both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(POINTS, length)).round().astype(int))


@of_both
def gradients(run: Finished, model: SequenceModel) -> Tables:
    """Gradients on their way back through a sequence, and states; means over the examples.

    Returns:
        `along` (moment, step): `log10_gradient` of the loss with respect to the state after a
        step, and `state_norm` of the part that is read out. `memory` (moment): the `decades` by
        which the gradient grows on its way from the last step to the start; and `reach`.
    """
    inputs, targets = run.examples()

    def norms(x: Tensor, y: Tensor) -> Tensor:
        of_states, of_inputs = dynamics.gradients(model, run.task, x, y)
        return torch.cat([dynamics.norm(of_states), dynamics.norm(of_inputs)], dim=1)

    both = dynamics.over_examples(norms, inputs, targets, size=8)
    of_states, of_inputs = both.split([run.length + 1, run.length], dim=1)
    states = (step.after[:, : model.cell.hidden_size] for step in dynamics.walk(model.cell, inputs))
    state_norm = [0.0, *(float(h.norm(dim=-1).mean()) for h in states)]
    sizes = log10(of_states).mean(0).numpy()
    along = pd.DataFrame({"log10_gradient": sizes, "state_norm": state_norm}).rename_axis("step")
    memory = {"decades": sizes[0] - sizes[-1], "reach": reach(of_inputs)}
    along = along.iloc[thinned(len(along))].reset_index()
    return {"along": along, "memory": pd.DataFrame([memory])}


def reach(gradients: Tensor) -> float:
    """The number of steps after which inputs matter, a mean over their gradients (B, T).

    The first that matters has a gradient of at least `REACH` of the largest in its sequence; the
    last step is 1, and 0 is where all gradients are 0.
    """
    matters = (gradients >= REACH * gradients.amax(1, keepdim=True)) & (gradients > 0)
    return float((matters * torch.arange(gradients.shape[1], 0, -1)).amax(1).double().mean())


@of_both
def exponents(run: Finished, model: SequenceModel) -> Tables:
    """Finite-time exponents along whole sequences, each a mean over the examples.

    Returns:
        `exponents` (moment): `position` from 0, the largest, to 1, and `exponent` in nats a step.
        Directions that a step erases are left out of the mean. `memory` (moment):
        `largest_exponent`, and `lasting`, the share of directions that lose less than a factor e
        over the whole sequence.
    """
    inputs, _ = run.examples(run.count(FEW))
    short = run.length <= SHORT
    exponents_of = dynamics.singular_exponents if short else dynamics.lyapunov_exponents

    def rates(x: Tensor) -> Tensor:
        return exponents_of(map(dynamics.jacobian, dynamics.walk(model.cell, x)))

    each = dynamics.over_examples(rates, inputs, size=4).sort(descending=True).values
    ranked = pd.DataFrame(each.numpy()).replace(-np.inf, np.nan).mean()
    places = thinned(len(ranked))
    spectrum = {"position": places / max(places[-1], 1), "exponent": ranked[places].to_numpy()}
    memory = {"largest_exponent": ranked.max(), "lasting": (ranked > -1 / run.length).mean()}
    return {"exponents": pd.DataFrame(spectrum), "memory": pd.DataFrame([memory])}


@of_both
def growth(run: Finished, model: SequenceModel) -> Tables:
    """Growth from end to end of a sequence, by what stands in the place of each step's Jacobian.

    Returns:
        `growth` (moment, replacement), for what `dynamics.replaced` gives, means over the examples:
        the decades by which the `gradient` grows on its way back, and those of a `random`
        direction (root mean square over all); `exponent`, of the direction that grows most, in
        nats a step; `growing`, the share of directions that grow.
    """
    inputs, targets = run.examples(run.count(EXAMPLES))

    def grown(x: Tensor, y: Tensor) -> Tensor:  # (B, replacements, 4)
        last = dynamics.gradients(model, run.task, x, y)[0][:, -1]
        products: dict[str, Tensor] = {}
        for step in dynamics.walk(model.cell, x):
            for name, j in dynamics.replaced(step).items():
                products[name] = j @ products[name] if name in products else j
        product = torch.stack(list(products.values()), 1)  # (B, replacements, n, n)
        first = torch.einsum("brij,bi->brj", product, last)
        singular = torch.linalg.svdvals(product).clamp(min=1e-300)
        decades = log10(dynamics.norm(first)) - log10(dynamics.norm(last))[:, None]
        random = log10(singular.square().mean(-1).sqrt())
        exponent = singular[..., 0].log() / run.length
        return torch.stack([decades, random, exponent, (singular > 1).double().mean(-1)], -1)

    means = dynamics.over_examples(grown, inputs, targets).mean(0)
    columns = ["gradient", "random", "exponent", "growing"]
    names = list(dynamics.REPLACEMENTS)[: len(means)]
    table = pd.DataFrame(means.numpy(), names, columns)
    return {"growth": table.rename_axis("replacement").reset_index()}


def log10(sizes: Tensor) -> Tensor:
    """The decimal logarithm of sizes, or -300 for what is smaller or 0."""
    return sizes.clamp(min=1e-300).log10()


@of_both
def damping(run: Finished, model: SequenceModel) -> Tables:
    """The least damping that keeps the path's step from growing, states and gates held fixed.

    Returns:
        `damping` (moment), for cells with `jacobian_terms`: `gamma`, in use; `least`, a median
        over `SAMPLES` steps of the last three quarters, and `none`, the share of them where none
        exists (NaN where gamma is 0); `abnormality`, a mean, of the balanced path.
    """
    if not getattr(model.cell, "jacobian_terms", None):
        return {}
    inputs, _ = run.examples(DAMPED)
    chosen = np.linspace(run.length // 4, run.length - 1, SAMPLES).astype(int)
    steps = [step for t, step in enumerate(dynamics.walk(model.cell, inputs)) if t in chosen]
    parts = [(path, matrix) for path, _, matrix in map(dynamics.parts_of, steps)]
    even = torch.cat([dynamics.abnormality(dynamics.balanced(*each)) for each in parts])
    gamma = model.cell.options.gamma
    row = {"gamma": gamma, "least": math.nan, "none": math.nan, "abnormality": float(even.mean())}
    if gamma:
        least = torch.cat([dynamics.least_damping(*each, gamma) for each in parts])
        row |= {"least": float(least.median()), "none": float(least.isinf().double().mean())}
    return {"damping": pd.DataFrame([row])}


def memoryless(run: Finished) -> Tables:
    """The error without memory, by a formula or of a model that sees the last step alone.

    Returns:
        `memoryless`: `judged`, the loss if there is a formula, else the score; `right`, its value
        for right answers; and `floor`, by how much a model without memory misses that.
    """
    judged, value = run.task.memoryless(run.data)
    label = run.data.test.targets.numpy()
    right = 0.0 if judged == "loss" else float(run.task.scores(label, label).mean())
    row = {"judged": judged, "right": right, "floor": abs(right - value)}
    return {"memoryless": pd.DataFrame([row])}


def reliability(run: Finished) -> Tables:
    """Confidence (the largest probability) against accuracy, for a task with one class to name.

    Returns:
        `reliability`: for each bin of confidence `low, high`, `count`, and the means `confidence`
        and `accuracy`, NaN if it is empty. `calibration`: `ece`, the expected calibration error
        (Guo et al. 2017), their mean gap weighted by the counts.
    """
    targets = run.data.test.targets
    if run.outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        return {}
    confidence = run.outputs.double().softmax(1).amax(1).clamp(0, 1)
    right = (run.outputs.argmax(1) == targets).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1).numpy()
    examples = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(bins)
    edges = np.linspace(0, 1, BINS + 1)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:]})
    table["count"] = examples.size().reindex(table.index, fill_value=0)
    table = table.join(examples.mean())
    gap = (table["confidence"] - table["accuracy"]).abs()
    ece = (gap * table["count"]).sum() / table["count"].sum()
    return {"reliability": table, "calibration": pd.DataFrame({"ece": [ece]})}
