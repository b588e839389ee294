"""Estimate how long a protocol takes on this machine, from a few steps of each variant."""

import pandas as pd
import torch

from rnnbench_nb.parameters import batches_of, epochs_of
from rnnbench_nb.protocol import Protocol, RunParameters
from rnnbench_nb.runs import device_of, new_model, task_of
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import arithmetic, fit

STEPS = 3  # steps to measure, after as many for warming up
VALIDATION_EXAMPLES = 200


def hours(protocol: Protocol) -> pd.DataFrame:
    """Estimate the time of each variant's whole budget, with one training at a time.

    Returns:
        One row a variant: `variant`, `step` (seconds a step of the optimiser), `steps`,
        `validation` (seconds an epoch), `epochs`, `seeds`, and `hours` for all its seeds.
    """
    torch.set_num_threads(1)  # as a training of a report has
    table = pd.DataFrame([_row(own) for own in protocol.parameterisations.values()])
    table["seeds"] = table["variant"].map(protocol.runs)
    seconds = table["steps"] * table["step"] + table["epochs"] * table["validation"]
    return table.assign(hours=table["seeds"] * seconds / 3600)


def _row(parameters: RunParameters) -> dict[str, str | float]:
    task = task_of(parameters)
    train, validation, test = task.load(parameters.seed)
    sizes = (train, STEPS * parameters.batch_size), (validation, VALIDATION_EXAMPLES), (test, None)
    small = Split(*(Part(part.inputs[:n], part.targets[:n]) for part, n in sizes))
    few = parameters.replace(steps=STEPS, epochs=STEPS, patience=None)
    model = new_model(parameters, task, train).to(device_of(parameters))
    with arithmetic(parameters.precision):
        for _ in range(2):  # the first may compile a kernel
            state = fit(model, small, task, few, report=lambda line: None)
    seconds = pd.DataFrame(state.history).groupby("split")["seconds"].sum()
    share = len(validation.targets) / len(small.validation.targets) / state.progress["epoch"]
    epochs, batches = (each(parameters, len(train.targets)) for each in (epochs_of, batches_of))
    steps = min(epochs * batches, parameters.steps or 10**12)
    row = {"variant": parameters.name, "step": seconds["train"] / STEPS, "steps": steps}
    return row | {"validation": share * seconds["validation"], "epochs": epochs}
