"""One run: its data, its model, its training, one evaluation on the test set, and its folder."""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pandas as pd
import torch

from rnnbench_nb import results
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, SOURCES, read_file, write_file, write_json
from rnnbench_nb.folders import FORMAT, RECORDS
from rnnbench_nb.looks import labels, looks
from rnnbench_nb.measures import RunData, measure
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.model import SequenceModel, build_model, count
from rnnbench_nb.probe import agrees, probe
from rnnbench_nb.protocol import Protocol, RunParameters, run_parameters
from rnnbench_nb.results import COMPLETED, FAILED, Report, Run, load_run
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import TASKS, Task
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import CHECKPOINT, arithmetic, evaluate, fit, read_checkpoint

Say = Callable[[str], None]
Record = dict[str, Any]
NO_GPU = "device: cuda needs a GPU, and there is none here; use auto or cpu."
PACKAGES = ("torch", "numpy", "pydantic", "pandas", "scikit-learn", "snakemake", "papermill")


def new_marker(name: str, protocol: Protocol) -> dict[str, Any]:
    """Return the content of report.json, with all that a reader needs about cells and tasks."""
    own = protocol.parameterisations
    cells = {variant: CELLS[parameters.model] for variant, parameters in own.items()}
    names, styles = labels(cells), looks(cells)
    variants: dict[str, dict[str, Any]] = {}
    for variant, parameters in own.items():
        common = {key: getattr(parameters, key) for key in ("model", "task", "group")}
        look = {"label": names[variant], **styles[variant]._asdict()}
        variants[variant] = {**look, **common, "parameters": parameters.flat()}
    models = {c.name: {"label": c.label, "equation": c.equation} for c in cells.values()}
    seeds = {variant: protocol.seeds_of(variant) for variant in own}
    task = TASKS[next(iter(own.values())).task]
    content = {"format": FORMAT, "protocol": name, "metrics": task.metrics}
    content |= {"note": protocol.note, "stand_in": protocol.stand_in, "models": models}
    return content | {"seeds": seeds, "variants": variants}


def commit() -> str:
    """Return the commit of the project, with `-dirty` if the package has changes, or "unknown"."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(SOURCES), *arguments]
        return subprocess.run(command, env=clean, capture_output=True, text=True).stdout.strip()

    if not which("git"):
        return "unknown"
    top, _, head = git("rev-parse", "--show-toplevel", "HEAD").partition("\n")
    if top != str(SOURCES) or len(head) != 40:  # another repository, or none
        return "unknown"
    changes = git("status", "--porcelain", "--untracked-files=all", "rnnbench_nb")
    return head + "-dirty" * bool(changes)


def processor() -> str:
    """Return the name of the processor, or its architecture if the name is unknown."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    named = re.search(r"^model name\s*: (.+)", text, re.M)
    return named[1].strip() if named else platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Return the versions, commit, machine and start time for a run's record."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    place = {"commit": commit(), "machine": machine, "processor": processor()}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions, **place, "started": started}


def device_of(parameters: RunParameters) -> torch.device:
    """Return the device for `device: auto | cpu | cuda`, or raise a UserError without a GPU."""
    if parameters.device == "cuda" and not torch.cuda.is_available():
        raise UserError(NO_GPU)
    gpu = parameters.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def task_of(parameters: RunParameters) -> Task:
    """Return the task of a run, with its options."""
    return TASKS[parameters.task](parameters.task_options)


def load_data(parameters: RunParameters) -> Split:
    """Load the examples of a run; with `test: false` those for validation replace the test set."""
    data = task_of(parameters).load(parameters.seed)
    return data if parameters.test else data._replace(test=data.validation)


def new_model(parameters: RunParameters, task: Task, part: Part) -> SequenceModel:
    """Build the model of a run before its first step, for examples like those of `part`."""
    features = task.inputs(part.inputs[:1]).shape[2]
    random = generator(parameters.seed, "initialisation")
    return build_model(parameters, features, task.outputs(), random, task.read)


def load_model(run: Run) -> SequenceModel:
    """Load the model of a run at its best epoch in evaluation mode, or raise a UserError."""
    parameters = run_parameters(run.record["parameters"], f"{run.folder}/run.json")
    random, data = generator(parameters.seed, "initialisation"), run.record["data"]
    read = TASKS[parameters.task].read
    model = build_model(parameters, data["input_size"], data["outputs"], random, read)
    weights = run.tensors("best")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model.eval()


def data_record(task: Task, data: Split) -> dict[str, Any]:
    """Return the `data` of run.json, with a hash of all examples that the run sees."""
    digest = hashlib.sha256()
    for tensor in (tensor for part in data for tensor in part):
        digest.update(tensor.contiguous().numpy().data)
    steps, input_size = task.inputs(data.train.inputs[:1]).shape[1:]
    sizes = {name: len(part.targets) for name, part in data._asdict().items()}
    shape = {"steps": steps, "input_size": input_size, "outputs": task.outputs()}
    return {**task.describe(), **sizes, **shape, "hash": digest.hexdigest()[:16]}


def find_finished_run(parameters: RunParameters, record: Record) -> Run | None:
    """Find a completed run with these parameters, and with a record's data, device and probe."""
    reports = PROJECT / "reports"
    published = sorted(reports.glob(f"published/*/{RECORDS}"))
    for path in [*sorted(reports.glob("*/runs/*/run.json")), *published]:
        with suppress(UserError), results.reading(path):  # skip a damaged run
            content = json.loads(read_file(path))
            for other in content if path in published else [content]:
                if (
                    other["status"] == COMPLETED
                    and other["data"]["hash"] == record["data"]["hash"]
                    and other["device"] == record["device"]
                    and run_parameters(other["parameters"], str(path)).same_as(parameters)
                    and agrees(other["probe"], record["probe"], parameters.precision)
                ):
                    name = f"runs/{other['variant']}-seed{other['seed']}"
                    run = load_run(path.parent / name if path in published else path.parent)
                    run.predictions, run.history  # noqa: B018 (checks that both are readable)
                    return run
    return None


def copy_run(run: Run, parameters: RunParameters, folder: Path) -> Run:
    """Copy a run to a folder: record, history, predictions, tables, and weights if it has them."""
    name = parameters.name
    results.write_frame(folder / "history.csv", run.history.assign(variant=name))
    results.write_tensors(folder / "predictions.safetensors", run.predictions)
    for path in run.folder.glob("*.safetensors"):  # a published report has none
        write_file(folder / path.name, path.read_bytes())
    for table, rows in run.tables().items():
        results.write_frame(folder / f"measures/{table}.parquet", rows.assign(variant=name))
    record = {**run.record, "variant": name, "parameters": parameters.flat()}
    record["copied_from"] = run.folder.relative_to(PROJECT).as_posix()
    record["hashes"] = results.digests(folder)
    write_json(folder / "run.json", record)
    return load_run(folder)


def train_run(parameters: RunParameters, folder: Path | str, report: Say = print) -> Run:
    """Train one model with one seed, evaluate it on the test set once, and write the run's folder.

    A run that is finished here or in another report of the project is not trained again.

    Args:
        parameters: Everything that the run depends on.
        folder: The run's folder; an interrupted run there continues from its last epoch.
        report: A function that takes a line of progress.

    Raises:
        UserError: The run cannot be trained, and run.json says why; or the folder has a run with
            other parameters, which stays unchanged.
    """
    folder = Path(folder)
    changes, note = task_of(parameters).resolve()
    if note:
        report(f"{note}.")
    parameters = parameters.replace(**changes) if changes else parameters
    checkpoint = read_checkpoint(folder, report)
    run = load_run(folder) if (folder / "run.json").exists() else None
    if run and run.record["status"] != COMPLETED:  # train a failed run again
        run = None
    old = run.record["parameters"] if run else checkpoint and checkpoint["stamp"]["parameters"]
    if old and not run_parameters(old, str(folder)).same_as(parameters):
        fault = "has a run with other parameters"
        raise UserError(f"{folder} {fault}; name another variant or output folder.")
    if run:
        report(f"{parameters.run} is finished already, so it is not trained again.")
        return run
    record = {"format": FORMAT, "variant": parameters.name, "model": parameters.model}
    record |= {"seed": parameters.seed, "status": FAILED, **environment()}
    record["parameters"] = parameters.flat()
    try:
        with arithmetic(parameters.precision):
            return _train(parameters, folder, report, record, checkpoint)
    except Exception as error:  # from a contributed cell, for instance
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_json(folder / "run.json", {**record, "reason": reason})
        raise


def _train(
    parameters: RunParameters, folder: Path, report: Say, record: Record, checkpoint: Record | None
) -> Run:
    """Train a run, complete its `record`, and write its folder."""
    task, device = task_of(parameters), device_of(parameters)
    data = load_data(parameters)
    model, initial = (new_model(parameters, task, data.train) for _ in range(2))
    record["parameter_count"], record["free_parameter_count"] = count(model)
    record |= {"metrics": task.metrics, "device": str(device), "threads": torch.get_num_threads()}
    record |= {"data": data_record(task, data), "probe": probe(parameters, task, data)}
    if run := find_finished_run(parameters, record):
        report(f"{parameters.run} is copied from {run.folder}, where it is finished.")
        return copy_run(run, parameters, folder)
    stamp = {name: record[name] for name in ("parameters", "probe")}
    old = checkpoint and checkpoint["stamp"]["probe"]
    if checkpoint and not agrees(old, record["probe"], parameters.precision):
        report(f"{folder / CHECKPOINT} is from other code, so training starts again.")
        checkpoint = None
    state = fit(model.to(device), data, task, parameters, folder, report, stamp, checkpoint)
    model.load_state_dict(state.best)
    loss, _, outputs = evaluate(model, data.test, task)
    label, predicted = data.test.targets.numpy(), task.answers(outputs).numpy()
    answers = {"label": narrow(label), "predicted": narrow(predicted)}
    results.write_tensors(folder / "predictions.safetensors", answers)
    weights = {name: tensor.cpu().numpy() for name, tensor in state.best.items()}
    results.write_tensors(folder / "best.safetensors", weights)
    keys = {name: record[name] for name in results.KEYS}
    columns = results.history_columns(task.score.name)
    results.write_frame(folder / "history.csv", pd.DataFrame(state.history).assign(**keys)[columns])
    initial.load_state_dict(state.initial)
    models = {"initial": initial, "trained": model}
    run_data = RunData(task, data, models, outputs, state.tracked)
    tables, failures = measure(parameters, run_data) if parameters.test else ({}, {})
    for name, table in tables.items():
        results.write_frame(folder / f"measures/{name}.parquet", table)
    record |= {
        "status": COMPLETED,
        **{name: state.progress[name] for name in ("path", "best_epoch", "seconds")},
        "epochs": state.progress["epoch"],
        "test": {**METRICS[task.metrics].values(label, predicted), "loss": loss},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "unmeasured": failures,
        "hashes": results.digests(folder),
    }
    write_json(folder / "run.json", record)
    return load_run(folder)


def narrow(array: np.ndarray) -> np.ndarray:
    """Convert integers of at least 0 to the smallest type that holds them; keep other arrays."""
    is_count = array.dtype.kind in "iu" and array.min() >= 0
    return array.astype(np.min_scalar_type(array.max())) if is_count else array


def stale_runs(report: Report) -> list[str]:
    """Return the names of completed runs for which today's code gives other numbers, or none.

    Runs without a probe, and runs whose data are not on this machine, are left out.
    """
    stale = []
    for variant, own in report.variants.items():
        runs = [run for run in report.of(variant) if run.record["probe"] is not None]
        parameters = run_parameters(own["parameters"], report.folder.name)
        task = task_of(parameters)
        try:
            today = probe(parameters, task, load_data(parameters)) if runs else {}
        except UserError:
            continue
        except Exception:  # from a cell that was edited
            today = {}
        stale += [
            run.folder.name
            for run in runs
            if not agrees(run.record["probe"], today, parameters.precision)
        ]
    return stale
