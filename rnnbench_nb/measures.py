"""Measures of a finished run that need its weights, as small tidy tables.

The job of the run computes them along the first examples of the test set, at two moments:
`initial`, before the first step of training, and `trained`, at the best epoch.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rnnbench_nb import dynamics
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import RunParameters
from rnnbench_nb.tasks import Task
from rnnbench_nb.tasks.base import Split

EXAMPLES, FEW = 32, 8  # examples of most measures, and of exponents (half as many if not `SHORT`)
SHORT = 100  # steps up to which exponents come from the singular values of the whole product
POINTS = 60  # most points of a curve
REACH = 0.01  # an input matters if its gradient is at least this share of the largest one
DAMPING_EXAMPLES, SAMPLES = 2, 4  # examples, and steps of each, for the least damping
BINS = 15  # bins of confidence

Tables = dict[str, pd.DataFrame]


class RunData(NamedTuple):
    """The parts of a finished run that measures need."""

    task: Task
    data: Split
    models: dict[str, SequenceModel]  # by moment: initial, trained
    outputs: Tensor  # of the trained model for the test examples, (N, ...)
    matrices: Sequence[dict[str, Tensor]]  # `SequenceModel.recurrence` at the start and each epoch

    def examples(self, count: int = EXAMPLES) -> tuple[Tensor, Tensor]:
        """Return the first test examples: sequences (count, T, D) and their targets."""
        inputs, targets = self.data.test
        return self.task.inputs(inputs[:count]), targets[:count]

    @property
    def length(self) -> int:
        """The number of steps of a sequence, T."""
        return self.examples(1)[0].shape[1]


def measure(parameters: RunParameters, run: RunData) -> tuple[Tables, dict[str, str]]:
    """Return a run's tables by name, with `variant, seed`, and the errors of failed measures."""
    models = {moment: copy.deepcopy(model).cpu().eval() for moment, model in run.models.items()}
    run, failures = run._replace(models=models), {}
    tables: Tables = {}
    for part in (spectra, training, gradients, exponents, growth, damping, memoryless, reliability):
        try:
            for name, table in part(run).items():
                tables[name] = tables[name].merge(table, on="moment") if name in tables else table
        except Exception as error:  # an error in a contributed cell costs only these tables
            failures[part.__name__] = f"{type(error).__name__}: {error}"
    for table in tables.values():
        table.insert(0, "variant", parameters.name)
        table.insert(1, "seed", parameters.seed)
    return tables, failures


def of_both(part: Callable[[RunData, SequenceModel], Tables]) -> Callable[[RunData], Tables]:
    """Turn a measure of one model into one of both models of a run, with the column `moment`."""

    @wraps(part)
    def measure_both(run: RunData) -> Tables:
        each = {moment: part(run, model) for moment, model in run.models.items()}
        return {
            name: pd.concat({moment: tables[name] for moment, tables in each.items()})
            .reset_index(0, names="moment")
            .reset_index(drop=True)
            for name in each["trained"]
        }

    return measure_both


@of_both
def spectra(run: RunData, model: SequenceModel) -> Tables:
    """The recurrent matrix A of a cell that has one, and the Euler step along it.

    Returns:
        `stability` (moment): the values of `dynamics.stability`. `spectra` (moment): `step_size`,
        the eigenvalues of A as `real, imaginary`, and the `frequency` of its antisymmetric part.
    """
    recurrence = model.recurrence()
    if not recurrence:
        return {}
    a, epsilon = (tensor.double() for tensor in recurrence.values())
    modes = torch.linalg.eigvals(a)
    modes = modes[modes.imag.argsort()]
    frequency = torch.linalg.eigvals((a - a.mT) / 2).imag.sort().values
    columns = {"real": modes.real, "imaginary": modes.imag, "frequency": frequency}
    return {
        "stability": pd.DataFrame([dynamics.stability(a, epsilon)]),
        "spectra": pd.DataFrame({"step_size": float(epsilon), **columns}),
    }


def training(run: RunData) -> Tables:
    """The table `training` (epoch) has some values of `dynamics.stability` after each epoch."""
    if not run.matrices[0]:
        return {}
    places = pd.DataFrame([dynamics.stability(*each.values()) for each in run.matrices])
    columns = ["epsilon", "lambda_max", "modulus_max", "share_outside"]
    return {"training": places[columns].rename_axis("epoch").reset_index()}


def even_places(length: int) -> np.ndarray:
    """Return at most `POINTS` evenly spaced places from 0 to length - 1, with both ends."""
    return np.unique(np.linspace(0, length - 1, min(POINTS, length)).round().astype(int))


@of_both
def gradients(run: RunData, model: SequenceModel) -> Tables:
    """Gradients on their way back through a sequence, and norms of states; means over examples.

    Returns:
        `along` (moment, step): `log10_gradient` of the loss with respect to the state after a
        step, and `state_norm` of its first H numbers. `memory` (moment): the `decades` by
        which the gradient grows from the last step back to the start; and `reach`, in steps.
    """
    inputs, targets = run.examples()

    def norms(x: Tensor, y: Tensor) -> Tensor:
        of_states, of_inputs = dynamics.gradients(model, run.task, x, y)
        return torch.cat([dynamics.norm(of_states), dynamics.norm(of_inputs)], dim=1)

    both = dynamics.over_examples(norms, inputs, targets, size=8)
    of_states, of_inputs = both.split([run.length + 1, run.length], dim=1)
    states = (step.after[:, : model.cell.hidden_size] for step in dynamics.walk(model.cell, inputs))
    state_norm = [0.0, *(float(h.norm(dim=-1).mean()) for h in states)]
    sizes = dynamics.log10(of_states).mean(0).numpy()
    along = pd.DataFrame({"log10_gradient": sizes, "state_norm": state_norm}).rename_axis("step")
    memory = {"decades": sizes[0] - sizes[-1], "reach": reach(of_inputs)}
    along = along.iloc[even_places(len(along))].reset_index()
    return {"along": along, "memory": pd.DataFrame([memory])}


def reach(gradients: Tensor) -> float:
    """Count the steps from the first input that matters to the last; mean over gradients (B, T).

    An input matters if its gradient is at least `REACH` times the largest of its sequence. The
    count is 1 if only the last input matters, and 0 if all gradients are 0.
    """
    matters = (gradients >= REACH * gradients.amax(1, keepdim=True)) & (gradients > 0)
    return float((matters * torch.arange(gradients.shape[1], 0, -1)).amax(1).double().mean())


@of_both
def exponents(run: RunData, model: SequenceModel) -> Tables:
    """Finite-time exponents of whole sequences, as means over the examples.

    Returns:
        `exponents` (moment): `position` from 0, the largest, to 1, and `exponent` in nats a step.
        The mean leaves out directions that a step erases. `memory` (moment):
        `largest_exponent`, and `lasting`, the share of directions that lose less than a factor e
        over the whole sequence.
    """
    short = run.length <= SHORT
    inputs, _ = run.examples(FEW if short else FEW // 2)
    exponents_of = dynamics.singular_exponents if short else dynamics.lyapunov_exponents

    def rates(x: Tensor) -> Tensor:
        return exponents_of(map(dynamics.jacobian, dynamics.walk(model.cell, x)))

    each = dynamics.over_examples(rates, inputs, size=4).sort(descending=True).values
    ranked = pd.DataFrame(each.numpy()).replace(-np.inf, np.nan).mean()
    places = even_places(len(ranked))
    spectrum = {"position": places / max(places[-1], 1), "exponent": ranked[places].to_numpy()}
    memory = {"largest_exponent": ranked.max(), "lasting": (ranked > -1 / run.length).mean()}
    return {"exponents": pd.DataFrame(spectrum), "memory": pd.DataFrame([memory])}


@of_both
def growth(run: RunData, model: SequenceModel) -> Tables:
    """Growth of each example's gradient over a whole sequence.

    Returns:
        `growth` (moment, example, replacement), with each of `dynamics.REPLACEMENTS` in place of
        the steps' Jacobians: `gradient`, the decades by which it grows on its way back.
    """
    grown = partial(dynamics.growth, model, run.task)
    each = dynamics.over_examples(grown, *run.examples()).float()
    names = pd.Index(list(dynamics.REPLACEMENTS)[: each.shape[1]], name="replacement")
    table = pd.DataFrame(each.numpy(), columns=names).rename_axis("example")
    return {"growth": table.stack().rename("gradient").reset_index()}


def causes_of_growth(table: pd.DataFrame, key: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the growth of gradients among `dynamics.CAUSES`, from rows of the table `growth`.

    Args:
        table: Its rows; the column `key` names the variant.
        key: `variant` or `label`.

    Returns:
        The decades of growth with a column for each of `dynamics.REPLACEMENTS`, by variant, moment,
        seed and example (0 for all if the table has means over examples, or not the same ones in
        each run); and the effects, by cause too: `first`, with the other causes present, `last`,
        without them, and `Shapley`, the mean over all orders of removal.
    """
    runs, table = [key, "moment", "seed"], table.astype({"gradient": float})
    table["example"] = table.get("example", 0)
    if table.groupby(runs)["example"].nunique().nunique() > 1:
        table["example"] = 0
    decades = table.pivot_table("gradient", [*runs, "example"], "replacement")
    decades = decades.reindex(columns=list(dynamics.REPLACEMENTS)).dropna()
    name_of = {frozenset(causes): name for name, causes in dynamics.REPLACEMENTS.items()}

    def effect(cause: str, *others: str) -> pd.Series:
        """The decades that a cause adds to the growth with the other causes alone."""
        return decades[name_of[frozenset({cause, *others})]] - decades[name_of[frozenset(others)]]

    parts = {}
    for cause in dynamics.CAUSES:
        a, b = (other for other in dynamics.CAUSES if other != cause)
        first, last = effect(cause, a, b), effect(cause)
        shapley = (first + last) / 3 + (effect(cause, a) + effect(cause, b)) / 6
        parts[cause] = pd.DataFrame({"first": first, "last": last, "Shapley": shapley})
    return decades, pd.concat(parts, names=["cause"])


@of_both
def damping(run: RunData, model: SequenceModel) -> Tables:
    """The least damping at which the step of the path does not grow, at fixed states and gates.

    Returns:
        `damping` (moment), for cells with `path_terms`: `gamma`, the damping of the cell; `least`,
        the median over `SAMPLES` steps in the last three quarters, and `none`, the share of steps
        without such a damping; `abnormality`, the mean abnormality of the balanced paths.
    """
    cell: Any = model.cell
    if not hasattr(cell, "path_terms"):
        return {}
    inputs, _ = run.examples(DAMPING_EXAMPLES)
    places = np.linspace(run.length // 4, run.length - 1, SAMPLES).astype(int)
    steps = [step for t, step in enumerate(dynamics.walk(cell, inputs)) if t in places]
    terms = [cell.path_terms(step.u, step.before, *step.prepared) for step in steps]
    even = torch.stack([dynamics.abnormality(dynamics.balanced(*each)).mean() for each in terms])
    gamma = cell.options.gamma
    least = torch.cat([dynamics.least_damping(step, gamma) for step in steps])
    row = {"gamma": gamma, "least": float(least.median()), "abnormality": float(even.mean())}
    return {"damping": pd.DataFrame([row | {"none": float(least.isinf().double().mean())}])}


def memoryless(run: RunData) -> Tables:
    """The error without memory, from a formula or from a model of the last step alone.

    Returns:
        `memoryless`: `judged`, "loss" if there is a formula, else the name of the score; `right`,
        its value if all answers are right; `floor`, the distance of a model without memory from it.
    """
    judged, value = run.task.memoryless(run.data)
    label = run.data.test.targets.numpy()
    right = 0.0 if judged == "loss" else float(run.task.scores(label, label).mean())
    row = {"judged": judged, "right": right, "floor": abs(right - value)}
    return {"memoryless": pd.DataFrame([row])}


def reliability(run: RunData) -> Tables:
    """Confidence (the largest probability) against accuracy, for a task with one class to name.

    Returns:
        `reliability`, one row for each bin of confidence: `low, high`, `count`, and the means
        `confidence` and `accuracy`, which are NaN in an empty bin. `calibration`: `ece`, the
        expected calibration error (Guo et al. 2017), the mean of their gaps weighted by `count`.
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
