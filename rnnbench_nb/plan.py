"""How long a protocol will take on this machine, from a few measured steps of each variant."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from rnnbench_nb.protocol import Protocol, RunParameters
from rnnbench_nb.runs import device_of, started
from rnnbench_nb.tasks import TASKS
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import batches_of, epochs_of, fit

STEPS = 3  # measured, after as many that are not
VALIDATED = 200  # examples


def hours(protocol: Protocol) -> pd.DataFrame:
    """What the whole budget of each variant takes, one training at a time.

    Returns:
        A row a variant: `variant`, `step` (seconds a step of the optimiser), `steps`, `validation`
        (seconds an epoch), `epochs`, `seeds`, and `hours` of all its seeds. Early stopping, where
        the protocol has it, may end them before.
    """
    return pd.DataFrame([_row(own, len(protocol.seeds_of(name)))
                         for name, own in protocol.parameterisations.items()])  # fmt: skip


def _row(parameters: RunParameters, seeds: int) -> dict:
    task = TASKS[parameters.task](parameters.task_options)
    data = task.load(parameters.seed)
    examples, checked = len(data.train.targets), len(data.validation.targets)
    small = Split(
        _first(data.train, STEPS * parameters.batch_size), _first(data.validation, VALIDATED),
        data.test,
    )  # fmt: skip
    few = parameters.model_copy(update={"steps": STEPS, "epochs": STEPS, "patience": None})
    model = started(parameters, task, data.train).to(device_of(parameters))
    for _ in range(2):  # the first may build a kernel
        with TemporaryDirectory() as folder:
            state = fit(model, small, task, few, Path(folder), lambda line: None)
    seconds = pd.DataFrame(state.history).groupby("split")["seconds"].sum()
    passes = state.progress["epoch"]
    epochs = epochs_of(parameters, examples)
    steps = min(epochs * batches_of(parameters, examples), parameters.steps or examples * epochs)
    step = seconds["train"] / STEPS
    validation = seconds["validation"] / passes * checked / len(small.validation.targets)
    total = seeds * (steps * step + epochs * validation) / 3600
    return {"variant": parameters.name, "step": step, "steps": steps, "validation": validation,
            "epochs": epochs, "seeds": seeds, "hours": total}  # fmt: skip


def _first(part: Part, count: int) -> Part:
    return Part(*(tensor[:count] for tensor in part))
