"""A probe of the code: the numbers of a tiny training, which the record of each run keeps.

A run is stale if the code of today gives other numbers than the code that trained it. The probe is
three short epochs on the CPU with the run's own cell, task and settings, but one seed for all, on
made-up examples. Rounding must not grow in it, or no tolerance would tell it from a change of the
code: sequences end after `STEPS` steps, over which no cell is chaotic, and the rate is a tenth.
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

Probe = dict[str, list[float]]  # numbers by kind

EXAMPLES, BATCH = 64, 24  # so that the last batch of an epoch is incomplete
STEPS, OUTPUTS = 32, 16  # of a sequence; numbers of the trained model's outputs that are kept
NO_FALL = 1e6  # min_delta with which no epoch but the first lowers the validation loss

# Ten times the largest relative difference that was seen, by `precision`: over ten cells and five
# tasks, with the kernel and torch at AVX2 and at the compiler's least, with one and two threads;
# for "medium" between products of float32 and of operands rounded to bfloat16.
TOLERANCE = {"highest": 2.1e-5, "medium": 8.5e-2}


def shortened(parameters: RunParameters) -> RunParameters:
    """The parameters with a budget of three epochs in which schedule, patience and steps act."""
    changed: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "epochs": 3, "plateau_patience": 0}
    changed["learning_rate"] = parameters.learning_rate / 10
    if parameters.patience:
        changed |= {"epochs": 4, "patience": 2, "min_delta": NO_FALL}
    short = parameters.model_copy(update=changed)
    if parameters.steps:
        changed["steps"] = 2 * batches_of(short, EXAMPLES) + 1
    return short.model_copy(update=changed)


def made_up(data: Split) -> Split:
    """Random examples with the shapes, types and ranges of the test part, equal for all seeds.

    The targets to validate on are others than those to train on: the validation loss rises, so
    that plateaus, patience and the choice of the best epoch act.
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
    """Train on made-up examples like those of a run.

    Returns:
        For each epoch `training_loss`, `gradient_norm`, `learning_rate` and the validation `loss`;
        and some `outputs` of the best epoch, the number of which is the last of `best_epoch`. No
        numbers at all if the loss is not finite, which is for the run's own training to tell.
    """
    parameters, task, data = shortened(parameters), copy.copy(task), made_up(data)
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


def agrees(recorded: Probe | None, today: Probe, precision: str) -> bool:
    """Whether a recorded probe and today's are equal, up to rounding of the largest of a kind."""
    if recorded is None or recorded.keys() != today.keys():
        return False
    limit = TOLERANCE[precision]
    kinds = [(np.array(recorded[name]), np.array(today[name])) for name in today]
    return all(x.size == y.size and abs(x - y).max() <= limit * abs(x).max() for x, y in kinds)
