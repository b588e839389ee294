"""One run: its data, its model, its training, one look at the test set, and its folder."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rnnbench_nb import results
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.looks import labels, looks
from rnnbench_nb.measures import measure
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.model import SequenceModel, build_model, count
from rnnbench_nb.probe import agrees, probe
from rnnbench_nb.protocol import NO_GPU, Protocol, RunParameters, run_parameters
from rnnbench_nb.provenance import environment
from rnnbench_nb.results import COMPLETED, FAILED, Report, Run, load_run
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import TASKS, Task
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import State, arithmetic, evaluate, fit, read_checkpoint


def marker(name: str, protocol: Protocol) -> dict[str, Any]:
    """The content of report.json, from which a report is read without cells and tasks."""
    variants = protocol.parameterisations
    cells = {variant: CELLS[parameters.model] for variant, parameters in variants.items()}
    names, styles = labels(cells), looks(cells)
    return {
        "format": results.FORMAT,
        "protocol": name,
        "metrics": TASKS[next(iter(variants.values())).task].metrics,
        "note": protocol.note,
        "models": {c.name: {"label": c.label, "equation": c.equation} for c in cells.values()},
        "seeds": {variant: protocol.seeds_of(variant) for variant in variants},
        "variants": {
            variant: {
                "label": names[variant],
                **styles[variant]._asdict(),
                "model": parameters.model,
                "task": parameters.task,
                "group": parameters.group,
                "parameters": parameters.flat(),
            }
            for variant, parameters in variants.items()
        },
    }


def by_hand(parameters: RunParameters) -> Path:
    """The folder of a run that belongs to no report."""
    return PROJECT / "reports/by_hand" / parameters.run


def device_of(parameters: RunParameters) -> torch.device:
    """The device that `device: auto | cpu | cuda` means here.

    Raises:
        UserError: cuda is asked for and there is no GPU.
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


def load_model(run: Run, name: str = "best") -> SequenceModel:
    """The model of a run in evaluation mode, at its "best" epoch or as "initial".

    Raises:
        UserError: The run has no weights, as in a published report, or they are damaged.
    """
    tensors = run.tensors(name)
    parameters = run_parameters(run.record["parameters"], f"{run.folder}/run.json")
    random, data = generator(parameters.seed, "initialisation"), run.record["data"]
    read = TASKS[parameters.task].read
    model = build_model(parameters, data["input_size"], data["outputs"], random, read)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    return model.eval()


def described(task: Task, data: Split) -> dict[str, Any]:
    """The `data` of run.json, with a hash of all examples that the run sees."""
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


def _runs_of_the_project(seed: int) -> Iterator[Run]:
    """The runs with this seed in the project's reports, published ones last; damaged ones not."""
    folder = PROJECT / "reports"
    for path in sorted(folder.glob(f"*/runs/*-seed{seed}/run.json")):
        try:
            yield load_run(path.parent)
        except UserError:
            continue
    for path in sorted(folder.glob("published/*/report.json")):
        try:
            yield from (run for run in Report(path.parent).runs if run.key[1] == seed)
        except UserError:
            continue


def finished(record: Mapping[str, Any]) -> Run | None:
    """A completed run of the project with the parameters, data and probe of a record.

    The name of the variant may differ.
    """

    def same(run: Run) -> bool:
        ours, theirs = (
            {key: value for key, value in each["parameters"].items() if key != "variant"}
            for each in (record, run.record)
        )
        return (
            run.record["status"] == COMPLETED
            and ours == theirs
            and run.record["data"]["hash"] == record["data"]["hash"]
            and agrees(run.record["probe"], record["probe"], ours["precision"])
        )

    return next((run for run in _runs_of_the_project(record["seed"]) if same(run)), None)


def copy_run(run: Run, parameters: RunParameters, folder: Path) -> Run:
    """Write a run's record, history, predictions and tables to a folder, without its weights."""
    names = {"variant": parameters.name}
    results.write_csv(folder / "history.csv", run.history.assign(**names))
    results.write_tensors(folder / "predictions.safetensors", run.predictions)
    for name, table in run.tables().items():
        results.write_parquet(folder / f"measures/{name}.parquet", table.assign(**names))
    record = {**run.record, **names, "parameters": parameters.flat()}
    origin = run.folder.relative_to(PROJECT).as_posix()
    results.write_json(folder / "run.json", {**record, "copied_from": origin})
    return load_run(folder)


def train_run(
    parameters: RunParameters, folder: Path | str, report: Callable[[str], None] = print
) -> Run:
    """Train one model with one seed, look at the test set once, and write the run's folder.

    Args:
        parameters: Everything that the run depends on.
        folder: The run's folder; a run that was killed there goes on from its last epoch.
        report: Takes the lines of progress.

    Returns:
        The finished run. If it was finished before, here or in another report of the project, it
        is not trained again.

    Raises:
        UserError: The run cannot be trained, and run.json says why; or the folder holds a run with
            other parameters, and stays as it is.
    """
    folder = Path(folder)
    parameters, note = _settled(parameters)
    if note:
        report(f"{note}.")
    stamp = {"parameters": parameters.flat()}
    if (folder / "run.json").exists():
        run = load_run(folder)
        _require_same(run.record.get("parameters", stamp["parameters"]), parameters, folder)
        if run.record["status"] == COMPLETED:
            report(f"{parameters.run} is finished: its results are read, not trained again.")
            return run
    checkpoint = _checkpoint(folder, report)
    if checkpoint:
        _require_same(checkpoint["stamp"]["parameters"], parameters, folder)
    record = {"format": results.FORMAT, "variant": parameters.name, "model": parameters.model}
    record |= {"seed": parameters.seed, "status": FAILED, **environment(), **stamp}
    try:
        with arithmetic(parameters.precision):
            return _trained(parameters, folder, report, record, checkpoint)
    except Exception as error:  # whatever a contributed cell raises
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        results.write_json(folder / "run.json", {**record, "reason": reason})
        raise


def _settled(parameters: RunParameters) -> tuple[RunParameters, str]:
    """The parameters with what the task settles on this machine, and what there is to say of it."""
    changed, note = TASKS[parameters.task](parameters.task_options).resolve()
    return parameters.changed(**changed) if changed else parameters, note


def _require_same(there: Mapping[str, Any], parameters: RunParameters, folder: Path) -> None:
    if {**there, "variant": None} != {**parameters.flat(), "variant": None}:
        raise UserError(f"{folder} holds a run with other parameters; name another output folder.")


def _checkpoint(folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    try:
        return read_checkpoint(folder)
    except ValueError as error:
        report(f"{error}: training starts again from the first epoch.")
        return None


def _trained(
    parameters: RunParameters,
    folder: Path,
    report: Callable[[str], None],
    record: dict[str, Any],
    checkpoint: dict[str, Any] | None,
) -> Run:
    """Train a run and write its folder; `record` is filled on the way."""
    task = TASKS[parameters.task](parameters.task_options)
    data = task.load(parameters.seed)
    device = device_of(parameters)
    model = started(parameters, task, data.train)
    total, free = count(model)
    record |= {
        "metrics": task.metrics,
        "parameter_count": total,
        "free_parameter_count": free,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "data": described(task, data),
        "probe": probe(parameters, task, data),
    }
    run = finished(record)
    if run:
        report(f"{parameters.run} is finished in {run.folder}: it is copied, not trained again.")
        return copy_run(run, parameters, folder)
    stamp = {"parameters": parameters.flat(), "probe": record["probe"]}
    there = checkpoint and checkpoint["stamp"]["probe"]
    if checkpoint and not agrees(there, record["probe"], parameters.precision):
        report(f"The checkpoint in {folder} was made by other code: training starts again.")
        checkpoint = None
    state = fit(model.to(device), data, task, parameters, folder, report, stamp, checkpoint)
    model.load_state_dict(state.best)
    loss, _, outputs = evaluate(model, data.test, task)
    label, predicted = data.test.targets.numpy(), task.answers(outputs).numpy()
    answers = narrow(label=label, predicted=predicted)
    results.write_tensors(folder / "predictions.safetensors", answers)
    _write_tensors(folder, state, outputs)
    keys = {"variant": parameters.name, "model": parameters.model, "seed": parameters.seed}
    columns = results.history_columns(task.score.name)
    history = pd.DataFrame(state.history).assign(**keys).reindex(columns=columns)
    results.write_csv(folder / "history.csv", history)
    record |= {
        "status": COMPLETED,
        "path": state.progress["path"],
        "epochs": state.progress["epoch"],
        "best_epoch": state.progress["best_epoch"],
        "test": {**METRICS[task.metrics].values(label, predicted), "loss": loss},
        "seconds": state.progress["seconds"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "unmeasured": _measure(parameters, task, data, state, model.cpu(), outputs, folder),
    }
    results.write_json(folder / "run.json", record)
    return load_run(folder)


def _measure(
    parameters: RunParameters,
    task: Task,
    data: Split,
    state: State,
    model: SequenceModel,
    outputs: torch.Tensor,
    folder: Path,
) -> dict[str, str]:
    """Write the tables that need the run's weights; return a reason for each that failed."""
    initial = started(parameters, task, data.train)
    initial.load_state_dict(state.initial)
    try:
        measured = measure(
            parameters, task, data, initial.eval(), model.eval(), outputs, state.tracked
        )
    except Exception as error:  # a cell that cannot be measured loses its tables, not its run
        return {"all": f"{type(error).__name__}: {error}"}
    for name, table in measured.tables.items():
        results.write_parquet(folder / f"measures/{name}.parquet", table)
    return measured.failures


def _write_tensors(folder: Path, state: State, outputs: torch.Tensor) -> None:
    """Write the weights, the test outputs (N, ...), and what is tracked at each epoch."""
    tensors = {"initial": state.initial, "best": state.best, "outputs": {"outputs": outputs}}
    if state.tracked[0]:
        names = state.tracked[0].keys()
        tensors["recurrent"] = {
            name: torch.stack([epoch[name] for epoch in state.tracked]) for name in names
        }
    for name, content in tensors.items():
        arrays = {key: tensor.detach().cpu().numpy() for key, tensor in content.items()}
        results.write_tensors(folder / f"{name}.safetensors", arrays)


def narrow(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Integers in the smallest type that holds all of them; others as they are."""
    if any(array.dtype.kind not in "iu" for array in arrays.values()):
        return arrays
    ends = [end for array in arrays.values() for end in (array.min(), array.max())]
    kind = np.result_type(*(np.min_scalar_type(end) for end in ends))
    return {name: array.astype(kind) for name, array in arrays.items()}


def stale_runs(report: Report) -> list[str]:
    """The completed runs for which today's code gives other numbers, by their probes.

    A run whose record has no probe, or whose data are not on this machine, is not listed.
    """

    @cache
    def today(variant: str) -> dict[str, list[float]] | None:
        record = report.of(variant)[0].record
        parameters = run_parameters(record["parameters"], f"{report.folder}: {variant}")
        task = TASKS[parameters.task](parameters.task_options)
        try:
            return probe(parameters, task, task.load(parameters.seed))
        except UserError:
            return None

    stale = []
    for run in report.runs:
        there, precision = run.record["probe"], run.record["parameters"]["precision"]
        now = today(run.key[0]) if there else None
        if now and not agrees(there, now, precision):
            stale.append(run.folder.name)
    return stale
