"""Small reports written without training, by what each run answered or how accurate it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_notebook, new_output

from rnnbench_nb import folders, results
from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import write_file, write_json
from rnnbench_nb.looks import labels, looks

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
EXAMPLES = 1000  # test examples of a run whose accuracy is given
DATA = {
    "dataset": "mnist",
    "reading": "row",
    "train": 51000,
    "validation": 9000,
    "steps": 28,
    "input_size": 28,
    "outputs": 10,
    "class_names": list("0123456789"),
}


def write_report(
    folder: Path,
    variants: Mapping[str, Mapping[str, Any]],
    runs: Mapping[tuple[str, int], Any],
    curves: Mapping[tuple[str, int], Any] | None = None,
    metrics: str = "classification",
    note: str = "",
    stand_in: bool = False,
) -> results.Report:
    """Write a report.

    Args:
        folder: Of the report.
        variants: For each variant its `model`, `group` if there are several, other parameters.
        runs: For each (variant, seed) the labels and the answers; None if the run did not finish,
            a text if it failed for that reason.
        curves: For each (variant, seed) the validation score of each epoch of 10 s.
        metrics, note, stand_in: As in the marker.
    """
    runs = {key: answers for key, answers in runs.items() if key[0] in variants}
    cells = {name: CELLS[own["model"]] for name, own in variants.items()}
    names, styles = labels(cells), looks(cells)
    described = {
        name: {
            "label": names[name],
            **styles[name]._asdict(),
            "task": "image_sequence",
            "model": own["model"],
            "group": own.get("group", "all"),
            "parameters": {key: value for key, value in own.items() if key != "group"},
        }
        for name, own in variants.items()
    }
    models = {cell.name: {"label": cell.label, "equation": ""} for cell in cells.values()}
    marker = {"format": 2, "protocol": folder.name, "metrics": metrics, "models": models}
    marker |= {"note": note, "stand_in": stand_in, "variants": described}
    marker["seeds"] = dict.fromkeys(variants, sorted({seed for _, seed in runs}) or [1])
    write_json(folder / folders.MARKER, marker)
    folders.register(folder, ["protocol.yaml", "runs/", "notebooks/03_compare.ipynb"])
    write_file(folder / "protocol.yaml", "models: [lstm]\n")
    for (name, seed), answers in runs.items():
        if answers is not None:
            keys = {"variant": name, "model": variants[name]["model"], "seed": seed}
            own = {**keys, "parameters": described[name]["parameters"] | {"seed": seed}}
            curve = (curves or {}).get((name, seed), [0.5])
            _write_run(folder / f"runs/{name}-seed{seed}", own, answers, curve, metrics)
    return results.Report(folder)


def write_small(
    folder: Path, accuracies: Mapping[str, list[float | str | None]], note: str = ""
) -> Path:
    """Write a report of cells by their accuracies from seed 42 on; a note is on stand-in data."""
    runs: dict[tuple[str, int], Any] = {}
    for name, each in accuracies.items():
        for seed, accuracy in enumerate(each, start=42):
            runs[name, seed] = accuracy
            if isinstance(accuracy, float):
                right = np.random.default_rng(seed).permutation(EXAMPLES) < EXAMPLES * accuracy
                runs[name, seed] = np.zeros(EXAMPLES, np.uint8), (~right).astype(np.uint8)
    variants = {name: {"model": name} for name in accuracies}
    return write_report(folder, variants, runs, note=note, stand_in=bool(note)).folder


def _write_run(run: Path, own: dict[str, Any], answers: Any, curve: Any, kind: str) -> None:
    record = {**own, "format": 2, "metrics": kind, "device": "cpu", "data": DATA}
    record |= {"status": "failed", "reason": answers}
    if not isinstance(answers, str):
        metrics, size = results.METRICS[kind], own["parameters"].get("hidden_size", 128)
        tensors = {"label": np.asarray(answers[0]), "predicted": np.asarray(answers[1])}
        results.write_tensors(run / "predictions.safetensors", tensors)
        rows = [
            {**own, "epoch": epoch, "split": split, "loss": 1.0, metrics.score.name: at}
            | {"seconds": 9.0 + (epoch == 1) * len(own["variant"]) / 10 if train else 1.0}
            for epoch, at in enumerate(curve, start=1)
            for split, train in (("train", True), ("validation", False))
        ]
        history = pd.DataFrame(rows, columns=results.history_columns(metrics.score.name))
        results.write_frame(run / "history.csv", history)
        del record["reason"]
        record |= {"status": "completed", "test": metrics.values(**tensors) | {"loss": 1.0}}
        record |= {"parameter_count": 10 * size, "free_parameter_count": 9 * size}
        record |= {"epochs": len(curve), "best_epoch": int(np.argmax(curve)) + 1}
        record |= {"seconds": 10.0 * len(curve) + len(own["variant"]) / 10}
        record |= {"data": DATA | {"test": len(tensors["label"])}, "hashes": results.digests(run)}
        record |= {"started": "2025-01-02T03:04:05+00:00", "finished": "2025-01-02T04:05:06+00:00"}
    write_json(run / "run.json", record)


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
