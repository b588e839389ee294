"""A probe of the code: the numbers of a tiny training, which the record of each run keeps.

A run is stale if today's code gives other numbers than the code that trained it. The probe trains
the run's cell on the CPU for a few short epochs, with the run's task and settings, a fixed seed and
random examples. Rounding errors must not grow in it, or they would look like a change of the code:
sequences end after `STEPS` steps, over which no cell is chaotic, and the learning rate is a tenth.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnnbench_nb.errors import UserError
from rnnbench_nb.model import build_model
from rnnbench_nb.parameters import batches_of
from rnnbench_nb.protocol import RunParameters
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import arithmetic, evaluate, fit

Probe = dict[str, list[float]]  # numbers, by kind

EXAMPLES, BATCH = 64, 24  # the last batch of an epoch is incomplete
STEPS, OUTPUTS = 32, 16  # most steps of a sequence; numbers of the model's outputs to keep
NO_FALL = 1e6  # min_delta, so large that only the first epoch lowers the validation loss

# Ten times the largest relative difference found, by `precision`: over ten cells and five tasks,
# with the kernel and torch at AVX2 and at the baseline instructions, on one and two threads. For
# "medium" it is the difference between products in float32 and in bfloat16.
TOLERANCE = {"highest": 2.1e-5, "medium": 8.5e-2}


def short_parameters(parameters: RunParameters) -> RunParameters:
    """Return parameters of a few epochs in which schedule, patience and step budget have effect."""
    changed: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "epochs": 3, "plateau_patience": 0}
    changed["learning_rate"] = parameters.learning_rate / 10
    if parameters.patience:
        changed |= {"epochs": 4, "patience": 2, "min_delta": NO_FALL}
    short = parameters.model_copy(update=changed)
    if parameters.steps:
        changed["steps"] = 2 * batches_of(short, EXAMPLES) + 1
    return short.model_copy(update=changed)


def random_examples(data: Split) -> Split:
    """Draw random examples with the shapes, types and ranges of the test part, with a fixed seed.

    Validation targets differ from training targets, so the validation loss rises, and plateaus,
    patience and the choice of the best epoch have effect.
    """
    random = torch.Generator().manual_seed(0)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        size = (EXAMPLES, *like.shape[1:])
        if like.is_floating_point():
            return low + (high - low) * torch.rand(size, generator=random, dtype=like.dtype)
        return torch.randint(int(low), int(high) + 1, size, generator=random).to(like.dtype)

    inputs, targets = data.test
    low, high = targets.min().item(), targets.max().item()
    middle = (low + high) / 2
    train, validation = (
        Part(draw(inputs, inputs.min().item(), inputs.max().item()), draw(targets, *ends))
        for ends in ((low, middle), (middle, high))
    )
    return Split(train, validation, validation)


def probe(parameters: RunParameters, task: Any, data: Split) -> Probe:
    """Train on random examples that resemble those of a run.

    Returns:
        For each epoch `training_loss`, `gradient_norm`, `learning_rate` and the validation `loss`;
        the number of the `best_epoch`; and some `outputs` of that epoch. The probe is empty if the
        loss is not finite, which the training of the run will report.
    """
    parameters, task, data = short_parameters(parameters), copy.copy(task), random_examples(data)
    whole = task.inputs
    task.inputs = lambda stored: whole(stored)[:, :STEPS]
    with arithmetic(parameters.precision), torch.random.fork_rng(devices=[]):
        features = task.inputs(data.train.inputs[:1]).shape[2]
        random = generator(parameters.seed, "initialisation")
        model = build_model(parameters, features, task.outputs(), random, task.read)
        try:
            state = fit(model, data, task, parameters, report=lambda line: None)
        except UserError:
            return {}
        model.load_state_dict(state.best)
        outputs = evaluate(model, data.validation, task)[2]
    train, validation = state.history[::2], state.history[1::2]
    return {
        "training_loss": [row["loss"] for row in train],
        "gradient_norm": [row["gradient_norm"] for row in train],
        "learning_rate": [row["learning_rate"] for row in train],
        "loss": [row["loss"] for row in validation],
        "best_epoch": [float(state.progress["best_epoch"])],
        "outputs": outputs.flatten()[:OUTPUTS].tolist(),
    }


def agrees(record: Probe | None, today: Probe, precision: str) -> bool:
    """Whether two probes agree, up to rounding relative to the largest number of each kind."""
    if record is None or record.keys() != today.keys():
        return False
    limit = TOLERANCE[precision]
    kinds = [(np.array(record[name]), np.array(today[name])) for name in today]
    return all(x.size == y.size and abs(x - y).max() <= limit * abs(x).max() for x, y in kinds)
