"""Made reports: variants with their labels and looks, without runs or with runs made by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from rnnbench_nb.files import write_file
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.report import (
    COMPLETED,
    Report,
    history_columns,
    labels,
    looks,
    write_csv,
    write_record,
    write_tensors,
)
from rnnbench_nb.tasks import TASKS


def made_report(*variants: str, **models: str) -> SimpleNamespace:
    """A report of these variants, each of the cell of its name, or of the one that is given."""
    models = dict.fromkeys(variants, "") | models
    parameters = {
        name: run_parameters({"model": model or name, "variant": name}, "a test")
        for name, model in models.items()
    }
    first = next(iter(parameters.values()))
    return SimpleNamespace(
        variants=parameters, labels=labels(parameters), looks=looks(parameters),
        task=TASKS[first.task](first.task_options),
    )  # fmt: skip


CLASSES = [str(number) for number in range(10)]


def write_made_report(folder, variants, answers, history=None, outputs=None, seeds=(1, 2)):
    """Write a report without training it.

    Args:
        folder: Of the report.
        variants: The values of each, by name.
        answers: For each (variant, seed) the labels and the predicted classes; runs that are
            missing here did not finish.
        history: For each (variant, seed) the validation accuracy of each epoch; an epoch takes
            10 s, of which 1 s is validation.
        outputs: For each (variant, seed) the class scores (N, 10), where there are any.
        seeds: Those of the protocol.

    Returns:
        The report.
    """
    models = list(dict.fromkeys(values["model"] for values in variants.values()))
    sweep = {"models": models, "runs": len(seeds), "seed": seeds[0], "variants": variants}
    write_file(folder / "protocol.yaml", to_yaml({"dataset": "digits", **sweep}))
    for (variant, seed), (label, predicted) in answers.items():
        values = {"dataset": "digits", **variants[variant], "variant": variant, "seed": seed}
        parameters = run_parameters(values, "a test")
        task = TASKS[parameters.task](parameters.task_options)
        label, predicted = np.array(label, np.uint8), np.array(predicted, np.uint8)
        curve = (history or {}).get((variant, seed), [0.5])
        keys = {"variant": variant, "model": parameters.model, "seed": seed}
        rows = [
            {**keys, "epoch": epoch, "split": split, "loss": 1.0, "accuracy": at, "seconds": s}
            for epoch, at in enumerate(curve, start=1)
            for split, s in (("train", 9.0), ("validation", 1.0))
        ]  # fmt: skip
        run = folder / "runs" / parameters.run
        write_csv(run / "history.csv", pd.DataFrame(rows, columns=history_columns("accuracy")))
        write_tensors(run / "predicted.safetensors", {"label": label, "predicted": predicted})
        if outputs:
            write_tensors(run / "outputs.safetensors", {"outputs": outputs[variant, seed]})
        size = parameters.hidden_size
        data = {**task.describe(), "steps": 8, "input_size": 8, "class_names": CLASSES}
        data |= {"train": 9, "validation": 1, "test": len(label)}
        record = {**keys, "status": COMPLETED, "parameters": parameters.flat(), "data": data}
        record |= {"parameter_count": 10 * size, "free_parameter_count": 9 * size}
        record |= {"epochs": len(curve), "best_epoch": int(np.argmax(curve)) + 1}
        record |= {"seconds": 10.0 * len(curve), "device": "cpu", "threads": 1}
        write_record(run, record | {"test": {**METRICS[task.metrics].values(label, predicted), "loss": 1.0}})
    return Report(folder)
