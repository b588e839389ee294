"""What of a finished run needs its weights, as small tidy tables, computed in the run's own job.

Everything is taken along the first examples of the test set, at two moments: `initial`, before the
first step of training, and `trained`, at the best epoch.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
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


class Measured(NamedTuple):
    """Tables by name, each keyed `variant, seed`, and the reasons of measures that failed."""

    tables: dict[str, pd.DataFrame]
    failures: dict[str, str]


class Finished(NamedTuple):
    """A finished run: its models by moment, and the rest as `measure` takes it."""

    task: Task
    data: Split
    models: dict[str, SequenceModel]
    outputs: Tensor
    matrices: Sequence[dict[str, Tensor]]

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

    def by_moment(self, rows: Callable[[SequenceModel], pd.DataFrame]) -> pd.DataFrame:
        """The rows of both models under one another, with a column `moment` before theirs."""
        parts = {moment: rows(model) for moment, model in self.models.items()}
        return pd.concat(parts, names=["moment", None]).reset_index("moment").reset_index(drop=True)


def measure(
    parameters: RunParameters,
    task: Task,
    data: Split,
    initial: SequenceModel,
    trained: SequenceModel,
    outputs: Tensor,
    matrices: Sequence[dict[str, Tensor]],
) -> Measured:
    """Measure a run.

    Args:
        parameters: Of the run.
        task: That was learned.
        data: The run's three parts.
        initial: The model before its first step.
        trained: The model at its best epoch.
        outputs: What the trained model's head gave for the test examples, (N, K).
        matrices: What `SequenceModel.tracked` gave before training and after each epoch.

    Returns:
        The tables, and a reason for each measure that a cell made impossible.
    """
    models = {"initial": initial, "trained": trained}
    models = {moment: copy.deepcopy(model).cpu().eval() for moment, model in models.items()}
    run = Finished(task, data, models, outputs.cpu(), matrices)
    tables: dict[str, pd.DataFrame] = {}
    failures = {}
    for part in (spectra, gradients, exponents, growth, damping, memoryless, reliability):
        try:
            tables |= part(run)
        except Exception as error:  # whatever a contributed cell raises costs its own tables alone
            failures[part.__name__] = f"{type(error).__name__}: {error}"
    if {"memory", "lasting"} <= tables.keys():
        tables["memory"] = tables["memory"].merge(tables.pop("lasting"), on="moment")
    for frame in tables.values():
        frame.insert(0, "variant", parameters.name)
        frame.insert(1, "seed", parameters.seed)
    return Measured(tables, failures)


def spectra(run: Finished) -> dict[str, pd.DataFrame]:
    """The recurrent matrix A of a cell that has one, and the Euler step along it.

    Returns:
        `stability` (moment): the columns of `dynamics.stability`, `dynamics.abscissas` of
        epsilon A, and the `defect` of A from S - gamma I. `training` (epoch): four of these after
        every epoch. `spectra` (moment): `step_size`, the eigenvalues `real, imaginary` of A, and
        the `frequency` of its antisymmetric part, ascending.
    """
    if not run.matrices or not run.matrices[0]:
        return {}
    a, epsilon = (torch.stack([torch.as_tensor(epoch[name]) for epoch in run.matrices])
                  .cpu().double() for name in ("matrix", "step_size"))  # fmt: skip
    places = dynamics.stability(dynamics.over_examples(torch.linalg.eigvals, a), epsilon)
    columns = ("epsilon", "lambda_max", "modulus_max", "share_outside")
    training = pd.DataFrame({"epoch": range(len(a)), **{name: places[name] for name in columns}})

    def place(model: SequenceModel) -> pd.DataFrame:
        a, epsilon = (tensor.double() for tensor in model.tracked().values())
        row = dynamics.stability(torch.linalg.eigvals(a), epsilon)
        row |= dynamics.abscissas(epsilon * a) | {"defect": dynamics.defect(a)}
        return pd.DataFrame([{name: float(value) for name, value in row.items()}])

    def modes(model: SequenceModel) -> pd.DataFrame:
        a, epsilon = (tensor.double() for tensor in model.tracked().values())
        modes = torch.linalg.eigvals(a)
        modes = modes[modes.imag.argsort()]
        frequency = torch.linalg.eigvals(dynamics.antisymmetric_part(a)).imag.sort().values
        columns = {"real": modes.real, "imaginary": modes.imag, "frequency": frequency}
        return pd.DataFrame({"step_size": float(epsilon), **columns})

    return {
        "stability": run.by_moment(place),
        "training": training,
        "spectra": run.by_moment(modes),
    }


def thinned(length: int) -> np.ndarray:
    """At most `POINTS` places from 0 to length - 1, evenly, both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(POINTS, length)).round().astype(int))


def gradients(run: Finished) -> dict[str, pd.DataFrame]:
    """Gradients on their way back through a sequence, and states; means over the examples.

    Returns:
        `along` (moment, step): `log10_gradient` of the loss with respect to the state after a
        step, and `state_norm` of the part that is read out. `memory` (moment): `decades`, by how
        many factors of ten the gradient grows on its way from the last step to the start; and
        `reach` (see there).
    """
    inputs, targets = run.examples()

    def sizes(model: SequenceModel, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat(dynamics.sensitivities(model, run.task, x, y), dim=1)

    parts = {moment: dynamics.over_examples(partial(sizes, model), inputs, targets, size=8)
             .split([run.length + 1, run.length], dim=1)
             for moment, model in run.models.items()}  # fmt: skip
    along, memory = [], []
    for moment, (of_states, of_inputs) in parts.items():
        cell = run.models[moment].cell
        states = (step.after[:, : cell.hidden_size] for step in dynamics.walk(cell, inputs))
        norm = [0.0, *(float(h.norm(dim=-1).mean()) for h in states)]
        size = of_states.clamp(min=1e-300).log10().mean(0).numpy()
        frame = pd.DataFrame({"log10_gradient": size, "state_norm": norm}).rename_axis("step")
        frame = frame.iloc[thinned(len(frame))].reset_index()
        frame.insert(0, "moment", moment)
        along.append(frame)
        memory.append([moment, size[0] - size[-1], reach(of_inputs)])
    columns = ["moment", "decades", "reach"]
    return {"along": pd.concat(along), "memory": pd.DataFrame(memory, columns=columns)}


def reach(gradients: Tensor) -> float:
    """How far back an input matters: a mean over gradients with respect to the inputs (B, T).

    It is the place, counted back from the last step, which is 1, of the first input whose gradient
    is at least `REACH` of the largest in its sequence; 0 where all gradients are 0.
    """
    matters = (gradients >= REACH * gradients.amax(1, keepdim=True)) & (gradients > 0)
    return float((matters * torch.arange(gradients.shape[1], 0, -1)).amax(1).double().mean())


def exponents(run: Finished) -> dict[str, pd.DataFrame]:
    """Finite-time exponents along whole sequences, each a mean over the examples.

    Returns:
        `exponents` (moment): `position` from 0, the largest, to 1, and `exponent` in nats a step.
        Directions that a step erases are left out of the mean. `lasting` (moment), which goes to
        `memory`: `largest_exponent`, and `lasting`, the share of directions that lose less than a
        factor e over the whole sequence.
    """
    inputs, _ = run.examples(run.count(FEW))
    short = run.length <= SHORT
    exponents_of = dynamics.singular_exponents if short else dynamics.lyapunov_exponents

    def rates(model: SequenceModel, x: Tensor) -> Tensor:
        return exponents_of(map(dynamics.jacobian, dynamics.walk(model.cell, x)))

    means = {}
    for moment, model in run.models.items():
        each = dynamics.over_examples(partial(rates, model), inputs, size=4)
        ranked = pd.DataFrame(each.sort(descending=True).values.numpy())
        means[moment] = ranked.replace(-np.inf, np.nan).mean().rename_axis("position")
    spectrum = pd.DataFrame(means).melt(
        var_name="moment", value_name="exponent", ignore_index=False
    )
    n = len(means["trained"])
    spectrum = spectrum[spectrum.index.isin(thinned(n))].reset_index()
    spectrum["position"] /= max(n - 1, 1)
    lasting = [[m, r.max(), (r > -1 / run.length).mean()] for m, r in means.items()]
    columns = ["moment", "largest_exponent", "lasting"]
    return {
        "exponents": spectrum[["moment", "position", "exponent"]],
        "lasting": pd.DataFrame(lasting, columns=columns),
    }


def growth(run: Finished) -> dict[str, pd.DataFrame]:
    """Growth from end to end of a sequence, by what stands in the place of each step's Jacobian.

    Returns:
        `growth` (moment, example, replacement): the columns of `dynamics.end_to_end`, `exponent` in
        nats a step; the replacements are those of `dynamics.REPLACEMENTS`, or "whole" alone for a
        cell without `jacobian_terms`.
    """
    inputs, targets = run.examples(run.count(EXAMPLES))

    def grown(model: SequenceModel, x: Tensor, y: Tensor) -> Tensor:  # (B, replacements, 4)
        gradient = dynamics.gradients(model, run.task, x, y)[0][:, -1]
        products: list[Tensor] = []
        for step in dynamics.walk(model.cell, x):
            if hasattr(model.cell, "jacobian_terms"):
                jacobians = list(dynamics.replaced(dynamics.parts_of(step)).values())
            else:
                jacobians = [dynamics.jacobian(step)]
            steps = zip(jacobians, products, strict=True)
            products = [j @ product for j, product in steps] if products else jacobians
        ends = [dynamics.end_to_end(product, gradient) for product in products]
        return torch.stack([torch.stack(list(end.values()), -1) for end in ends], 1)

    def rows(model: SequenceModel) -> pd.DataFrame:
        values = dynamics.over_examples(partial(grown, model), inputs, targets)
        values[..., 2] /= run.length  # a step
        names = list(dynamics.REPLACEMENTS)[: values.shape[1]]
        keys = pd.MultiIndex.from_product(
            [range(len(values)), names], names=["example", "replacement"]
        )
        columns = ["gradient", "random", "exponent", "growing"]
        return pd.DataFrame(values.flatten(0, 1).float(), keys, columns).reset_index()

    return {"growth": run.by_moment(rows)}


def damping(run: Finished) -> dict[str, pd.DataFrame]:
    """The least damping that keeps the path's step from growing, states and gates held fixed.

    It is looked for at `SAMPLES` steps, from a quarter of the way to the last.

    Returns:
        `damping` (moment), for cells with `jacobian_terms`: `gamma`, in use; `least`, a median,
        and `none`, the share of steps where none exists (NaN where gamma is 0: see
        `dynamics.least_damping`); `abnormality`, a mean of `dynamics.abnormality` of the balanced
        path.
    """
    if not hasattr(run.models["trained"].cell, "jacobian_terms"):
        return {}
    inputs, _ = run.examples(DAMPED)
    chosen = np.linspace(run.length // 4, run.length - 1, SAMPLES).astype(int)

    def row(model: SequenceModel) -> pd.DataFrame:
        steps = enumerate(dynamics.walk(model.cell, inputs))
        parts = [dynamics.parts_of(step) for t, step in steps if t in chosen]
        even = [dynamics.abnormality(dynamics.balanced(p.path, p.matrix)) for p in parts]
        gamma, least = getattr(model.cell.options, "gamma", 0.0), torch.tensor([math.nan])
        if gamma:
            least = torch.cat([dynamics.least_damping(p, gamma) for p in parts])
        none = float(least.isinf().double().mean()) if gamma else math.nan
        columns = {"gamma": gamma, "least": float(least.median()), "none": none}
        return pd.DataFrame([columns | {"abnormality": float(torch.cat(even).mean())}])

    return {"damping": run.by_moment(row)}


def memoryless(run: Finished) -> dict[str, pd.DataFrame]:
    """The error without memory, by a formula or of a model that sees the last step alone.

    Returns:
        `memoryless`: `judged`, the column of results.csv that is judged (the loss where a formula
        gives the least loss without memory, else the score); `right`, its value for right answers;
        and `floor`, by how much a model without memory misses that.
    """
    judged, value = run.task.memoryless(run.data)
    label = run.data.test.targets.numpy()
    right = 0.0 if judged == "loss" else float(run.task.scores(label, label).mean())
    row = {"judged": judged, "right": right, "floor": abs(right - value)}
    return {"memoryless": pd.DataFrame([row])}


def reliability(run: Finished) -> dict[str, pd.DataFrame]:
    """Confidence (the largest probability) against accuracy, for a task with one class to name.

    Returns:
        `reliability`: `low, high` of each bin of confidence, `count`, and the means `confidence`
        and `accuracy` of its examples, NaN if it is empty. `calibration`: `ece`, the expected
        calibration error (Guo et al. 2017), their mean gap weighted by the counts.
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
