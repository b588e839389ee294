"""Check the tables of a report against the records, histories and predictions of its runs."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from rnnbench_nb import folders
from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import epochs_of
from rnnbench_nb.results import KEYS, Report, Run, read_csv, reading, result_columns, summary_text

UNCHECKED = (
    "whether the times of epochs, test losses, parameter counts, measures and descriptions of "
    "machines were right when they were written",
    "pages and figures of an unpublished report",
)
# Means over the steps of an epoch. A validation loss is of one moment and can differ by percents.
COLUMNS = ["loss", "gradient_norm"]
# Ten times the largest relative difference found in the first epoch of row_mnist: 1.2e-3, for an
# LSTM with torch at AVX2 and at the baseline instructions. In twenty published pairs float32 and
# bfloat16 products differ by less (9e-4), so the tolerance holds for both precisions.
TOLERANCE = 1.2e-2


def verify(report: Report) -> list[str]:
    """Return a sentence for each disagreement of tables, records, histories and predictions.

    Raises:
        UserError: A file is missing or damaged.
    """
    changed = folders.changed_files(report.folder)
    problems = [f"{name} has changed since it was published" for name in changed]
    labels: dict[Any, np.ndarray] = {}
    with reading(report.folder / (folders.RECORDS if report.published else "runs")):
        problems += _rows(report)
        for run in report.runs:
            problems += [f"{run.folder.name}: {problem}" for problem in _run(report, run)]
            (variant, seed), label = run.key, run.predictions["label"]
            first = labels.setdefault((report.variants[variant]["group"], seed), label)
            if not np.array_equal(label, first):
                problems.append(
                    f"{run.folder.name}: its labels differ from those of the other runs"
                )
        texts = {"results_summary.md": summary_text(report)}
        texts["results.csv"] = report.results.to_csv(index=False)
    if not report.published:
        texts["history.csv"] = report.history.to_csv(index=False)
    for name, text in texts.items():
        path = report.folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{name} does not match the runs")
    return problems


def _rows(report: Report) -> Iterator[str]:
    """Yield what is wrong in results.csv."""
    table = read_csv(report.folder / "results.csv", result_columns(report.metrics.names))
    right = {(row["variant"], row["seed"]): row for row in report.results.to_dict("records")}
    counts = Counter(zip(table["variant"], table["seed"], strict=True))
    for variant, seed in dict.fromkeys([*right, *counts]):
        if counts[variant, seed] != ((variant, seed) in right):
            yield f"results.csv has {counts[variant, seed]} rows of {variant}, seed {seed}"
    for row in table.to_dict("records"):
        variant, seed = row["variant"], row["seed"]
        for name, value in right.get((variant, seed), row).items():
            if row[name] != value and not (pd.isna(row[name]) and pd.isna(value)):
                entry = f"{name} {row[name]} for {variant}, seed {seed}"
                yield f"results.csv has {entry}; its record has {value}"


def _run(report: Report, run: Run) -> Iterator[str]:
    """Yield what is wrong in a run's record, by its predictions, its history and the protocol."""
    record, history, values = run.record, run.history, run.record["parameters"]
    protocol = {**report.variants[record["variant"]]["parameters"], "seed": record["seed"]}
    for key in sorted(protocol.keys() | values.keys()):
        if protocol.get(key) != values.get(key):
            yield f"its {key} is {values.get(key)}; the protocol asks for {protocol.get(key)}"
    names = [record["variant"], protocol["model"], record["seed"]]
    if record["model"] != protocol["model"] or not (history[KEYS] == names).all(axis=None):
        yield "its record or history names another run"
    for name, old in record.get("hashes", {}).items():
        if not run.published and folders.digest(run.folder / name) != old:
            yield f"its {name} has changed since it was written"
    if len(run.predictions["label"]) != record["data"]["test"]:
        yield f"it has {len(run.predictions['label'])} answers to {record['data']['test']} examples"
    for name, value in run.metrics.values(**run.predictions).items():
        if record["test"][name] != value:
            yield f"its {name} is {record['test'][name]}; its predictions give {value}"
    epochs = list(range(1, record["epochs"] + 1))
    splits = dict(list(history.groupby("split")))
    both = splits.keys() == {"train", "validation"}
    if not both or any(list(rows["epoch"]) != epochs for rows in splits.values()):
        yield f"its history does not have each of its {len(epochs)} epochs once"
        return
    if not math.isclose(history["seconds"].sum(), record["seconds"], rel_tol=1e-9):
        yield f"its seconds are {record['seconds']}; its history gives {history['seconds'].sum()}"
    rows = splits["validation"]
    worth = rows[report.score.name] if protocol["best_by"] == "score" else -rows["loss"]
    best = int(worth.to_numpy().argmax()) + 1  # the earliest of equals
    if best != record["best_epoch"]:
        yield f"its best_epoch is {record['best_epoch']}; its history gives {best}"
    last = _last(list(rows["loss"]), SimpleNamespace(**protocol), record["data"]["train"])
    if last != len(epochs):
        yield f"it has {len(epochs)} epochs; budget and history give {last}"


def _last(losses: list[float], parameters: SimpleNamespace, examples: int) -> int:
    """Return the epoch at which budget or patience ends, from the validation losses."""
    lowest, without_fall = math.inf, 0
    for epoch, loss in enumerate(losses, start=1):
        fell = loss < lowest - parameters.min_delta
        lowest, without_fall = (loss, 0) if fell else (lowest, without_fall + 1)
        if without_fall == parameters.patience:
            return epoch
    return epochs_of(parameters, examples)


def retrain(report: Report, epochs: int, say: Callable[[str], None]) -> list[str]:
    """Train the first epochs of each run again, and compare training losses and gradient norms.

    `say` takes a line for each run with the largest relative difference.

    Returns:
        For each run "agrees", "differs" or "cannot be checked".
    """
    outcomes = []
    for run in report.runs:
        try:
            difference = _largest_difference(run, epochs)
            outcome = "agrees" if difference <= TOLERANCE else "differs"
            detail = f"{difference:.1g}"
        except UserError as error:
            outcome, detail = "cannot be checked", str(error)
        say(f"{run.folder.name}: {outcome} ({detail})")
        outcomes.append(outcome)
    return outcomes


def _largest_difference(run: Run, epochs: int) -> float:
    """Return the largest relative difference between the first epochs of a run and new ones."""
    import torch

    from rnnbench_nb.protocol import run_parameters
    from rnnbench_nb.runs import data_record, load_data, new_model, task_of
    from rnnbench_nb.training import arithmetic, fit

    record = run.record
    if record["device"] != "cpu" and not torch.cuda.is_available():
        raise UserError("it was trained on a GPU, and there is none here")
    parameters = run_parameters(record["parameters"], run.folder.name)
    task = task_of(parameters)
    data = load_data(parameters)
    if record["data"]["hash"] not in (None, data_record(task, data)["hash"]):
        raise UserError("its data are not those on this machine")
    with arithmetic(parameters.precision):
        model = new_model(parameters, task, data.train).to(record["device"])
        last = min(epochs, record["epochs"])
        state = fit(model, data, task, parameters, report=lambda line: None, last=last)
    new = pd.DataFrame(state.history[::2]).set_index("epoch")[COLUMNS]
    old = run.history[run.history["split"] == "train"].set_index("epoch").loc[new.index, COLUMNS]
    return float(((new - old).abs() / old.abs()).max().max())
