"""A report written by hand: runs with given answers and curves, without training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rnnbench_nb import results


def write_report(
    folder: Path,
    variants: Mapping[str, Mapping[str, Any]],
    answers: Mapping[tuple[str, int], tuple[Any, Any]],
    curves: Mapping[tuple[str, int], Any] | None = None,
    metrics: str = "classification",
    stand_in: bool = False,
) -> results.Report:
    """Write a report.

    Args:
        folder: Of the report.
        variants: For each variant its `model`; its `group`, and other parameters.
        answers: For each (variant, seed) the labels and the answers; a run without is missing.
        curves: For each (variant, seed) the validation score of each epoch of 10 s.
        metrics: The kind of metrics.
        stand_in: Whether other data stand in for those asked for.
    """
    answers = {key: answer for key, answer in answers.items() if key[0] in variants}
    seeds = sorted({seed for _, seed in answers}) or [1]
    colours, markers = ("#0072B2", "#E69F00", "#882255", "#117733"), "osDv"
    common = {"dashes": [], "task": "image_sequence"}
    looks = {
        name: {"label": name.upper(), "colour": colours[i % 4], "marker": markers[i % 4], **common}
        | {"model": own["model"], "group": own.get("group", "all")}
        | {"parameters": {k: v for k, v in own.items() if k != "group"}}
        for i, (name, own) in enumerate(variants.items())
    }
    models = {own["model"]: {"label": own["model"], "equation": ""} for own in variants.values()}
    marker = {"format": 2, "protocol": "by_hand", "metrics": metrics, "note": "a note"}
    marker["stand_in"] = stand_in
    marker |= {"models": models, "variants": looks, "seeds": dict.fromkeys(variants, seeds)}
    results.write_json(folder / results.MARKER, marker)
    kind = results.METRICS[metrics]
    for (variant, seed), (label, predicted) in answers.items():
        run = folder / f"runs/{variant}-seed{seed}"
        curve = (curves or {}).get((variant, seed), [0.5])
        keys = {"variant": variant, "model": looks[variant]["model"], "seed": seed}
        rows = [
            {**keys, "epoch": epoch, "split": split, "loss": 1.0, kind.score.name: at, "seconds": s}
            for epoch, at in enumerate(curve, start=1)
            for split, s in (("train", 9.0), ("validation", 1.0))
        ]
        columns = results.history_columns(kind.score.name)
        results.write_frame(run / "history.csv", pd.DataFrame(rows, columns=columns))
        tensors = {"label": np.asarray(label), "predicted": np.asarray(predicted)}
        results.write_tensors(run / "predictions.safetensors", tensors)
        parameters = looks[variant]["parameters"] | {"seed": seed}
        size = parameters.get("hidden_size", 128)
        record = {"format": 2, **keys, "status": results.COMPLETED, "metrics": metrics}
        record |= {"parameters": parameters, "epochs": len(curve), "device": "cpu"}
        record |= {"best_epoch": int(np.argmax(curve)) + 1, "seconds": 10.0 * len(curve)}
        record |= {"parameter_count": 10 * size, "free_parameter_count": 9 * size}
        record["data"] = {"class_names": [str(k) for k in range(10)], "train": 4}
        record["test"] = kind.values(**tensors) | {"loss": 1.0}
        results.write_json(run / "run.json", record)
    return results.Report(folder)
