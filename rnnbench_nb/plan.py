"""How long a protocol takes on this machine, from a few measured steps of each variant."""

import pandas as pd

from rnnbench_nb.protocol import Protocol, RunParameters
from rnnbench_nb.runs import device_of, started
from rnnbench_nb.tasks import TASKS
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import batches_of, epochs_of, fit

STEPS = 3  # measured, after as many that are not
VALIDATED = 200  # examples


def hours(protocol: Protocol) -> pd.DataFrame:
    """Measure what the whole budget of each variant takes, one training at a time.

    Returns:
        One row a variant: `variant`, `step` (seconds a step of the optimiser), `steps`,
        `validation` (seconds an epoch), `epochs`, `seeds`, and `hours` of all its seeds. Early
        stopping may end them before.
    """
    table = pd.DataFrame([_row(own) for own in protocol.parameterisations.values()])
    table["seeds"] = [len(protocol.seeds_of(name)) for name in table["variant"]]
    seconds = table["steps"] * table["step"] + table["epochs"] * table["validation"]
    return table.assign(hours=table["seeds"] * seconds / 3600)


def _row(parameters: RunParameters) -> dict[str, str | float]:
    task = TASKS[parameters.task](parameters.task_options)
    data = task.load(parameters.seed)
    train = _first(data.train, STEPS * parameters.batch_size)
    validation = _first(data.validation, VALIDATED)
    few = parameters.changed(steps=STEPS, epochs=STEPS, patience=None)
    model = started(parameters, task, data.train).to(device_of(parameters))
    for _ in range(2):  # the first time may build a kernel
        state = fit(model, Split(train, validation, data.test), task, few, report=lambda line: None)
    seconds = pd.DataFrame(state.history).groupby("split")["seconds"].sum()
    share = len(data.validation.targets) / len(validation.targets) / state.progress["epoch"]
    epochs, examples = epochs_of(parameters, len(data.train.targets)), len(data.train.targets)
    steps = min(epochs * batches_of(parameters, examples), parameters.steps or 10**12)
    row = {"variant": parameters.name, "step": seconds["train"] / STEPS, "steps": steps}
    return row | {"validation": share * seconds["validation"], "epochs": epochs}


def _first(part: Part, count: int) -> Part:
    return Part(*(tensor[:count] for tensor in part))
