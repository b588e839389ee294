"""Small reports written without training: each run's accuracy is given."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_notebook, new_output

from rnnbench_nb import folders, results
from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import write_file

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
EXAMPLES = 1000  # test examples of a run


def write_report(folder: Path, accuracies: dict[str, list[float]], note: str = "") -> Path:
    """Write a report whose variants are cells, with one run for each accuracy.

    A run without a number (None) did not finish; one with a text failed for that reason.
    """
    seeds = {name: list(range(42, 42 + len(each))) for name, each in accuracies.items()}
    looks = {
        name: {
            **{key: getattr(CELLS[name], key) for key in ("label", "colour", "dashes", "marker")},
            **{"model": name, "task": "image_sequence", "parameters": {"model": name}},
            "group": "rows",
        }
        for name in accuracies
    }
    marker = {"format": 2, "protocol": folder.name, "metrics": "classification", "seeds": seeds}
    marker |= {"models": dict.fromkeys(accuracies), "variants": looks}
    marker |= {"note": note, "stand_in": bool(note)}
    results.write_json(folder / folders.MARKER, marker)
    folders.own(folder, ["protocol.yaml", "runs/", "notebooks/03_compare.ipynb"])
    write_file(folder / "protocol.yaml", "models: [lstm]\n")
    for name, each in accuracies.items():
        for seed, accuracy in zip(seeds[name], each, strict=True):
            if accuracy is not None:
                _write_run(folder / f"runs/{name}-seed{seed}", name, seed, accuracy)
    return folder


def _write_run(run: Path, name: str, seed: int, accuracy: float | str) -> None:
    failed = isinstance(accuracy, str)
    label = np.zeros(EXAMPLES, np.uint8)
    predicted = np.ones_like(label)
    right = np.random.default_rng(seed).permutation(EXAMPLES)
    predicted[right[: 0 if failed else round(EXAMPLES * accuracy)]] = 0
    keys = {"variant": name, "model": name, "seed": seed}
    data = {"dataset": "mnist", "reading": "row", "train": 51000, "validation": 9000, "steps": 28}
    data |= {"test": EXAMPLES, "input_size": 28, "outputs": 10, "class_names": list("0123456789")}
    metrics = dict.fromkeys(("accuracy", "precision", "recall", "f1"), accuracy)
    record = {**keys, "format": 2, "metrics": "classification", "status": "completed", "data": data}
    record |= {"parameters": {"model": name, "seed": seed}, "device": "cpu", "parameter_count": 20}
    record |= {"free_parameter_count": 10, "epochs": 5, "best_epoch": 4}
    record |= {"started": "2025-01-02T03:04:05+00:00", "finished": "2025-01-02T04:05:06+00:00"}
    record |= {"seconds": 61.0 + seed + len(name), "test": metrics | {"loss": 0.1}}
    if failed:
        record |= {"status": "failed", "reason": accuracy, "test": {}}
    columns = results.history_columns("accuracy")
    row = {**keys, "epoch": 1, "loss": 1.0, "accuracy": 0.5, "seconds": 1.0}
    history = [{**row, "split": split} for split in ("train", "validation")]
    write_file(run / "run.json", json.dumps(record))
    results.write_frame(run / "history.csv", pd.DataFrame(history, columns=columns))
    tensors = {"label": label, "predicted": predicted}
    results.write_tensors(run / "predictions.safetensors", tensors)


def ran(source: str, *outputs: dict, **metadata: object) -> dict:
    """A code cell that was executed."""
    return new_code_cell(source, execution_count=1, outputs=list(outputs), metadata=metadata)


def figure(alt: str | None = None, **words: object) -> dict:
    """A figure of one pixel as a cell's output."""
    metadata = {"image/png": {"alt": alt, **words}} if alt else {}
    return new_output("display_data", {"image/png": PIXEL}, metadata=metadata)


def save_notebook(path: Path, *cells: dict) -> None:
    """Write an executed notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=list(cells), metadata={"kernelspec": kernel}), path)
