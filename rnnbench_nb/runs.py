"""One run: its data, its model, its training, one look at the test set, and its folder."""

import hashlib
import io
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rnnbench_nb import report as results
from rnnbench_nb import results as tables
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.model import SequenceModel, build_model, count
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import NO_GPU, Protocol, RunParameters, recorded_parameters
from rnnbench_nb.provenance import environment, fingerprint
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import TASKS, Task
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import arithmetic, evaluate, fit

CHECKPOINT = "checkpoint.pt"  # which `fit` writes


def marker(name: str, protocol: Protocol) -> dict[str, Any]:
    """The content of report.json, which readers of a report need instead of cells and tasks."""
    variants = protocol.parameterisations
    cells = {variant: CELLS[parameters.model] for variant, parameters in variants.items()}
    labels, looks = tables.labels(cells), tables.looks(cells)
    first = next(iter(variants.values()))
    return {
        "format": tables.FORMAT,
        "protocol": name,
        "metrics": TASKS[first.task].metrics,  # type: ignore[dict-item]
        "note": protocol.note,
        "models": {
            cell.name: {"label": cell.label, "equation": cell.equation} for cell in cells.values()
        },
        "seeds": {variant: protocol.seeds_of(variant) for variant in variants},
        "variants": {
            variant: {
                "label": labels[variant],
                **looks[variant]._asdict(),
                "model": parameters.model,
                "task": parameters.task,
                "group": parameters.group,
                "parameters": parameters.flat(),
            }
            for variant, parameters in variants.items()
        },
    }


def by_hand(parameters: RunParameters) -> Path:
    """The folder of a run of no report: one for each choice of parameters and code.

    So a run that was killed goes on when it is given again, and one of other values is another.
    """
    said = to_yaml(parameters.flat()) + fingerprint(parameters.model, parameters.task)
    digest = hashlib.sha256(said.encode()).hexdigest()[:8]
    return PROJECT / "reports/by_hand" / f"{parameters.run}-{digest}"


def device_of(parameters: RunParameters) -> torch.device:
    """The device that `device: auto | cpu | cuda` means here.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if parameters.device == "cuda" and not torch.cuda.is_available():
        raise UserError(NO_GPU)
    gpu = parameters.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def started(parameters: RunParameters, task: Task, part: Part) -> SequenceModel:
    """The model of a run before its first step, for examples like those of a part."""
    features = task.inputs(part.inputs[:1]).shape[2]
    random = generator(parameters.seed, "initialisation")
    return build_model(parameters, features, task.outputs(), random, task.read)


def _described(task: Task, data: Split) -> dict:
    """What run.json says of a run's data, with a hash of what the run sees in all parts."""
    digest = hashlib.sha256()
    for tensor in (tensor for part in data for tensor in part):
        digest.update(tensor.contiguous().numpy())
    steps, input_size = task.inputs(data.train.inputs[:1]).shape[1:]
    return {
        **task.describe(),
        **{name: len(part.targets) for name, part in data._asdict().items()},
        "steps": steps,
        "input_size": input_size,
        "outputs": task.outputs(),
        "hash": digest.hexdigest()[:16],
    }


def _finished_elsewhere(record: dict, parameters: RunParameters, folder: Path) -> Path | None:
    """The folder of the same run, finished in another report of this project.

    It is the same if its parameters are, and the code, the data, the kind of device and the
    precision that it had; and all the files of a run must be there.
    """
    alike = ("fingerprint", "data", "device", "precision")
    for path in sorted((PROJECT / "reports").glob(f"*/runs/*-seed{parameters.seed}/run.json")):
        try:
            run = results.load_run(path.parent)
            same = all(run.record.get(key) == record[key] for key in alike)
            done = run.record["status"] == results.COMPLETED
            if done and same and run.parameters.same_as(parameters) and path.parent != folder:
                if all(run.has(name) for name in ("initial", "best", "outputs", "predicted")):
                    return path.parent
        except (UserError, KeyError):
            continue
    return None


def _go_on_from_elsewhere(
    record: dict, parameters: RunParameters, folder: Path, report: Callable[[str], None]
) -> None:
    """Take the checkpoint of the same run from a published report, where there is none here."""
    if (folder / CHECKPOINT).exists():
        return
    published = (PROJECT / "reports/published").glob(f"*/runs/{parameters.run}/{CHECKPOINT}")
    for path in sorted(published):
        there = results.load_run(path.parent)
        alike = all(there.record.get(key) == record[key] for key in ("fingerprint", "data"))
        if alike and there.parameters == parameters:
            write_file(folder / CHECKPOINT, path.read_bytes())
            origin = path.parent.relative_to(PROJECT).as_posix()
            report(f"{parameters.run} goes on after epoch {there.record['epochs']} of {origin}.")
            return


def partial(folder: Path) -> tuple[dict, pd.DataFrame, bytes]:
    """The record, the history and the checkpoint of a run that is not finished.

    Raises:
        UserError: The checkpoint is damaged.
    """
    path = folder / CHECKPOINT
    try:
        checkpoint = path.read_bytes()  # once: training writes the next
        content = torch.load(io.BytesIO(checkpoint), weights_only=True, map_location="cpu")
        where, epochs = str(path), content["progress"]["epoch"]
        parameters = recorded_parameters(content["parameters"], where)
        history, made_by = pd.DataFrame(content["history"]), content["fingerprint"]
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError,
            pickle.UnpicklingError) as error:  # fmt: skip
        raise UserError(f"{path} is damaged; move it away, or train that run again.") from error
    task = TASKS[parameters.task](parameters.task_options)
    reason = f"it has had {epochs} epoch{'s' * (epochs > 1)}, and its checkpoint goes on from there"
    record = {
        "variant": parameters.name, "model": parameters.model, "seed": parameters.seed,
        "status": results.PARTIAL, "reason": reason, "parameters": parameters.flat(),
        "fingerprint": made_by, "epochs": epochs,
        "data": _described(task, task.load(parameters.seed)),
    }  # fmt: skip
    history = history.reindex(columns=results.history_columns(task.score.name))
    return record, history, checkpoint


def train_run(
    parameters: RunParameters, folder: Path | str, report: Callable[[str], None] = print
) -> results.Run:
    """Train one model with one seed, read the test set once, and write the run's folder.

    Args:
        parameters: Everything the run depends on.
        folder: The run's folder; a run that was killed there goes on from its last epoch.
        report: Takes the lines of progress.

    Returns:
        The finished run; one that was finished before, here or in another report of the project,
        is read, not trained again.

    Raises:
        UserError: The run cannot be trained; run.json then says why.
    """
    folder = Path(folder)
    if (folder / "run.json").exists():
        run = results.load_run(folder)
        if run.record["status"] == results.COMPLETED and run.parameters.same_as(parameters):
            report(f"{parameters.run} is finished: its results are read, not trained again.")
            return run
    record = {"variant": parameters.name, "model": parameters.model, "seed": parameters.seed}
    record |= {"status": results.FAILED, **environment()}
    try:
        changed, note = TASKS[parameters.task](parameters.task_options).resolve()
        if note:
            report(f"{note}.")
            parameters = parameters.changed(**changed)
        with arithmetic(parameters.precision):
            task = TASKS[parameters.task](parameters.task_options)
            data = task.load(parameters.seed)
            device = device_of(parameters)
            model = started(parameters, task, data.train).to(device)
            total, free = count(model)
            record |= {
                "parameters": parameters.flat(),
                "fingerprint": fingerprint(parameters.model, parameters.task),
                "parameter_count": total,
                "free_parameter_count": free,
                "device": str(device),
                "threads": torch.get_num_threads(),
                "precision": torch.get_float32_matmul_precision(),
                "data": _described(task, data),
            }
            elsewhere = _finished_elsewhere(record, parameters, folder)
            if elsewhere:
                return _take(elsewhere, parameters, folder, report)
            _go_on_from_elsewhere(record, parameters, folder, report)
            state = fit(model, data, task, parameters, folder, report)
            model.load_state_dict(state.best)
            loss, _, outputs = evaluate(model, data.test, task)
    except UserError as error:
        results.write_record(folder, {**record, "reason": str(error)})
        raise
    label, predicted = data.test.targets.numpy(), task.answers(outputs).numpy()
    results.write_tensors(
        folder / "predicted.safetensors", _narrow(label=label, predicted=predicted)
    )
    tensors = {"initial": state.initial, "best": state.best, "outputs": {"outputs": outputs}}
    if state.tracked[0]:
        names = state.tracked[0].keys()
        stacked = {name: torch.stack([epoch[name] for epoch in state.tracked]) for name in names}
        tensors["recurrent"] = stacked
    for name, content in tensors.items():
        arrays = {key: tensor.detach().cpu().numpy() for key, tensor in content.items()}
        results.write_tensors(folder / f"{name}.safetensors", arrays)
    history = pd.DataFrame(state.history, columns=results.history_columns(task.score.name))
    results.write_csv(folder / "history.csv", history)
    record |= {
        "status": results.COMPLETED,
        "path": state.progress.get("path", model.cell.served),
        "epochs": state.progress["epoch"],
        "best_epoch": state.progress["best_epoch"],
        "test": {**METRICS[task.metrics].values(label, predicted), "loss": loss},
        "seconds": state.progress["seconds"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    results.write_record(folder, record)
    return results.load_run(folder)


def _narrow(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Whole numbers in the smallest type that holds all of them; others as they are."""
    if any(array.dtype.kind not in "iu" for array in arrays.values()):
        return arrays
    ends = [end for array in arrays.values() for end in (array.min(), array.max())]
    kind = np.result_type(*(np.min_scalar_type(end) for end in ends))
    return {name: array.astype(kind) for name, array in arrays.items()}


def _take(
    source: Path, parameters: RunParameters, folder: Path, report: Callable[[str], None]
) -> results.Run:
    """Copy the files of a run that another report has, under this run's name."""
    for path in source.iterdir():
        if path.suffix in (".safetensors", ".csv"):
            write_file(folder / path.name, path.read_bytes())
    names = {"variant": parameters.name}
    history = results.read_csv(source / "history.csv").assign(**names)
    results.write_csv(folder / "history.csv", history)
    found = results.load_run(source)
    origin = source.relative_to(PROJECT).as_posix()
    record = {**found.record, **names, "parameters": parameters.flat(), "taken_from": origin}
    results.write_record(folder, record)
    report(f"{parameters.run} is finished in {origin}: it is taken from there, not trained again.")
    return results.load_run(folder)
