"""Reports and their runs as files and as tidy tables, without torch.

A report's folder has report.json, which describes what its runs have in common, and for each run
runs/<run>/ with run.json, history.csv, predictions.safetensors, measures/<table>.parquet and
weights. A published report has no weights, and each file is one for all runs: runs.json.xz,
history.parquet, predictions.safetensors.xz and measures/<table>.parquet in single precision.
"""

import copy
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
from safetensors import SafetensorError

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import read_file, write_file, write_json
from rnnbench_nb.folders import MARKER, RECORDS, digest
from rnnbench_nb.looks import Look
from rnnbench_nb.metrics import METRICS, Metrics, Score

COMPLETED, FAILED, MISSING = "completed", "failed", "missing"
OLD = "was written by version 0.1, whose code reads it: git checkout v0.1."
KEYS = ["variant", "model", "seed"]
SIZES = ["parameters", "free_parameters", "epochs", "best_epoch"]


@contextmanager
def reading(path: Path, part_of: Path | None = None) -> Iterator[None]:
    """Turn any error while a file is read into a UserError with its name and a remedy."""
    errors = OSError, EOFError, ValueError, TypeError, AttributeError, LookupError
    try:
        yield
    except (*errors, lzma.LZMAError, SafetensorError) as error:
        remedy = f"restore it, or move {part_of or path.parent} elsewhere and run again"
        raise UserError(f"{path} is missing or damaged; {remedy}.") from error


@dataclass
class Run:
    """One run; `record` is the content of its run.json, and its other files are read on access."""

    folder: Path
    record: dict[str, Any]
    published: bool = False  # whether its report has one file for all runs

    @property
    def key(self) -> tuple[str, int]:
        """The variant and the seed."""
        return self.record["variant"], self.record["seed"]

    @property
    def metrics(self) -> Metrics:
        """The score and the metrics that judge the run."""
        return METRICS[self.record["metrics"]]

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row for each epoch and split, with the columns `history_columns`."""
        return read_csv(self.folder / "history.csv", history_columns(self.metrics.score.name))

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """The arrays `label` and `predicted`, with a row for each of the N test examples."""
        return self.tensors("predictions")

    @cached_property
    def scores(self) -> np.ndarray:
        """The score of each test example (N,); higher is better."""
        return self.metrics.scores(self.predictions["label"], self.predictions["predicted"])

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Read the arrays in NAME.safetensors, or raise a UserError if it is missing or damaged."""
        path = self.folder / f"{name}.safetensors"
        if self.published:
            raise UserError(f"{path} does not exist: a published report has no weights.")
        with reading(path):
            return safetensors.numpy.load_file(path)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Read the tables that were measured on the run, by name, without those that pool seeds."""
        tables, place = {}, self.folder.parents[1] if self.published else self.folder
        for path in place.glob("measures/*.parquet"):
            with reading(path, place):
                rows = pd.read_parquet(path)
            if "seed" in rows:
                mine = (rows["variant"] == self.key[0]) & (rows["seed"] == self.key[1])
                if mine.any():
                    tables[path.stem] = rows[mine].reset_index(drop=True)
        return tables


def load_run(folder: Path | str) -> Run:
    """Load the run in a folder such as reports/quick/runs/gru-seed42, published or not.

    Raises:
        UserError: The folder holds no readable run.
    """
    folder = Path(folder)
    path, report = folder / "run.json", folder.absolute().parent.parent
    if path.exists():
        with reading(path):
            record = json.loads(path.read_text(encoding="utf-8"))
            run = Run(folder, record | {key: record[key] for key in (*KEYS, "status")})
            if record.get("metrics", "classification") not in METRICS:
                raise ValueError("its metrics are unknown")
        if "format" not in record:
            raise UserError(f"{path} {OLD}")
        return run
    runs = _published_runs(report) if (report / RECORDS).is_file() else {}
    if folder.name not in runs:
        raise UserError(f"{folder} has no run (there is no run.json); name the folder of a run.")
    return runs[folder.name]


def _published_runs(report: Path) -> dict[str, Run]:
    """Read the runs of a published report, finished or not, by name."""
    with reading(path := report / RECORDS):
        records = json.loads(read_file(path))
        paths = [report / "runs" / f"{one['variant']}-seed{one['seed']}" for one in records]
        every = [Run(path, record, True) for path, record in zip(paths, records, strict=True)]
        runs = [run for run in every if run.record["status"] == COMPLETED]
    with reading(path := report / "history.parquet"):
        histories = dict(list(pd.read_parquet(path).groupby(["variant", "seed"])))
        for run in runs:
            run.history = histories[run.key].reset_index(drop=True)
    with reading(path := report / "predictions.safetensors.xz"):
        arrays = safetensors.numpy.load(read_file(path))
        for run in runs:
            names = "label", "predicted"
            run.predictions = {name: arrays[f"{run.folder.name}/{name}"] for name in names}
    return {run.folder.name: run for run in every}


class Report:
    """A report's folder, published or not. Its runs are read once.

    Attributes:
        marker: The content of report.json; the following attributes are parts of it.
        stand_in: Whether other data replace those of the protocol, so that there is no verdict.
        variants: For each variant its `label`, style, `model`, `task`, `parameters` at the first
            seed, and `group` (task and its options); only variants of one group are compared.
        metrics, score: The metrics and the kind of score that judge its runs.
        published: Whether this is a published report.

    Raises:
        UserError: The folder has no readable report.json.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / MARKER
        if not path.exists():
            old = (self.folder / "protocol.yaml").exists()
            why = OLD if old else f"has no report (there is no {MARKER}); name a report's folder."
            raise UserError(f"{self.folder} {why}")
        with reading(path):
            self.marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.name: str = self.marker["protocol"]
            self.note: str = self.marker["note"]
            self.stand_in: bool = self.marker.get("stand_in", False)
            self.variants: dict[str, dict[str, Any]] = self.marker["variants"]
            self.seeds: dict[str, list[int]] = self.marker["seeds"]
            self.metrics: Metrics = METRICS[self.marker["metrics"]]
            variants = self.variants.items()
            self.labels = {name: own["label"] for name, own in variants}
            self.looks = {name: Look(*(own[key] for key in Look._fields)) for name, own in variants}
        self.score: Score = self.metrics.score
        self.published = (self.folder / RECORDS).exists()

    def _part(self, keep: Callable[[bool], bool]) -> "Report":
        """Return the report of the variants whose parameter `test` is to be kept."""
        names = [n for n, own in self.variants.items() if keep(own["parameters"].get("test", True))]
        part = copy.copy(self)
        for cached in ("results", "history"):
            part.__dict__.pop(cached, None)
        part.variants = {name: self.variants[name] for name in names}
        part.seeds = {name: self.seeds[name] for name in names}
        part.every_run = [run for run in self.every_run if run.key[0] in names]
        return part

    @property
    def tested(self) -> "Report":
        """The report of the variants that are scored on the test set, without those of a search."""
        return self._part(lambda test: test)

    @property
    def searched(self) -> "Report":
        """The report of the variants of a search (`test: false`); of all variants without one."""
        part = self._part(lambda test: not test)
        return part if part.variants else self

    @property
    def groups(self) -> list[list[str]]:
        """The variants that can be compared with each other, in order."""
        groups: dict[str, list[str]] = {}
        for name, variant in self.variants.items():
            groups.setdefault(variant["group"], []).append(name)
        return list(groups.values())

    @property
    def full_labels(self) -> dict[str, str]:
        """The label of each variant, with the devices of its runs if the report has several."""
        used = {name: {run.record["device"] for run in self.of(name)} for name in self.labels}
        if len(set().union(*used.values())) < 2:
            return self.labels
        notes = {name: f" ({' and '.join(sorted(each))})" for name, each in used.items() if each}
        return {name: label + notes.get(name, "") for name, label in self.labels.items()}

    @property
    def run_folders(self) -> list[Path]:
        """The folders of all runs of the protocol, in order."""
        names = [f"{name}-seed{seed}" for name in self.variants for seed in self.seeds[name]]
        return [self.folder / "runs" / name for name in names]

    def statuses(self) -> list[str]:
        """Read the status of every run from its record alone, which is faster than `every_run`."""
        paths = [folder / "run.json" for folder in self.run_folders]
        there = [self.folder / RECORDS] if self.published else list(filter(Path.exists, paths))
        statuses: list[str] = []
        for path in there:
            with reading(path):
                content = json.loads(read_file(path))
                statuses += [one["status"] for one in (content if self.published else [content])]
        return statuses + [MISSING] * (len(paths) - len(statuses))

    @cached_property
    def every_run(self) -> list[Run]:
        """All runs of the protocol, in order; `record["reason"]` says why one has no results."""
        published = _published_runs(self.folder) if self.published else {}
        return [published.get(folder.name) or self._run(folder) for folder in self.run_folders]

    def _run(self, folder: Path) -> Run:
        variant, _, seed = folder.name.rpartition("-seed")
        reason = f"it did not finish; see logs/{folder.name}.txt"
        if (folder / "run.json").exists():
            try:
                run = load_run(folder)
                if run.key != (variant, int(seed)):
                    raise UserError(
                        f"{folder / 'run.json'} belongs to another run; move it elsewhere."
                    )
                if run.record["status"] == COMPLETED:
                    run.predictions, run.history  # noqa: B018 (finds damage now)
                return run
            except UserError as error:
                reason = str(error)
        record = {"variant": variant, "model": self.variants[variant]["model"], "seed": int(seed)}
        return Run(folder, {**record, "status": MISSING, "reason": reason})

    @property
    def runs(self) -> list[Run]:
        """The completed runs, in order."""
        return [run for run in self.every_run if run.record["status"] == COMPLETED]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of all runs of the protocol, in order."""
        return [run.record for run in self.every_run]

    @property
    def missing(self) -> list[dict[str, Any]]:
        """The records of the runs without results: `variant, seed, status, reason`."""
        unknown = {"reason": "its record does not say why"}
        return [unknown | record for record in self.records if record["status"] != COMPLETED]

    def of(self, variant: str) -> list[Run]:
        """Return the completed runs of a variant, in the order of their seeds."""
        return [run for run in self.runs if run.key[0] == variant]

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row for each run, also failed and missing ones, with the columns of results.csv."""
        rows = [result_row(record, self.metrics.names) for record in self.records]
        return pd.DataFrame(rows, columns=result_columns(self.metrics.names))

    @cached_property
    def history(self) -> pd.DataFrame:
        """The histories of the completed runs, with the columns `history_columns`."""
        histories = [run.history for run in self.runs]
        empty = pd.DataFrame(columns=history_columns(self.score.name))
        return pd.concat(histories, ignore_index=True) if histories else empty

    def table(self, name: str) -> pd.DataFrame:
        """Read a table of `measures`, such as "stability"; empty if no completed run has it."""
        folders = [self.folder] if self.published else [run.folder for run in self.runs]
        tables = []
        for folder in folders:
            if (path := folder / f"measures/{name}.parquet").exists():
                with reading(path, folder):
                    tables.append(pd.read_parquet(path))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def digests(run: Path) -> dict[str, str | None]:
    """Return the hashes of the history, the predictions and the tables in a run's folder."""
    paths = [run / "history.csv", run / "predictions.safetensors", *run.glob("measures/*.parquet")]
    return {path.relative_to(run).as_posix(): digest(path) for path in sorted(paths)}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as safetensors."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_file(path, safetensors.numpy.save(arrays))


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy frame as CSV in full precision or as Parquet, by the ending of the path."""
    if path.suffix == ".csv":
        write_file(path, frame.to_csv(index=False))
    else:
        floats = list(frame.select_dtypes("float"))  # their bytes apart take a sixth less
        how = {"compression": "zstd", "compression_level": 19, "use_byte_stream_split": floats}
        write_file(path, frame.to_parquet(index=False, use_dictionary=False, **how))


def read_csv(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read columns of a CSV file; names stay text, and errors are those of `reading`."""
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
        if not text.endswith("\n"):
            raise ValueError("the last line is cut off")
        names = dict.fromkeys(("variant", "model", "status", "split"), str)
        frame = pd.read_csv(StringIO(text), dtype=names, keep_default_na=False, na_values=[""])
        return frame[[*columns]]


def history_columns(score: str) -> list[str]:
    """Return the columns of a history; `score` is the name of the task's score."""
    rates = ["learning_rate", "gradient_norm"]  # only of the split "train"
    return [*KEYS, "epoch", "split", "loss", score, "seconds", *rates]


def result_columns(metrics: Iterable[str]) -> list[str]:
    """Return the columns of results.csv."""
    return [*KEYS, *metrics, "loss", *SIZES, "seconds", "status"]


def result_row(record: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, Any]:
    """Return a run's row of results.csv; a run that did not complete has no scores."""
    test = record.get("test", {})
    values = {name: record.get(name) for name in (*KEYS, *SIZES, "seconds", "status")}
    values |= {name: test.get(name) for name in (*metrics, "loss")}
    values["parameters"] = record.get("parameter_count")
    return values | {"free_parameters": record.get("free_parameter_count")}


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Summarise the completed runs of each variant in one row.

    Returns:
        Columns `variant, seeds`; mean and `_sd` (ddof 1) of each metric of results.csv;
        `parameters, free_parameters`; and the means of `epochs` and `best_epoch`.
    """
    groups = results[results["status"] == COMPLETED].groupby("variant", sort=False)
    columns: dict[str, pd.Series] = {"seeds": groups["seed"].nunique()}
    for name in results.columns[len(KEYS) : results.columns.get_loc("loss")]:
        columns |= {name: groups[name].mean(), f"{name}_sd": groups[name].std(ddof=1)}
    columns |= {name: groups[name].mean() for name in SIZES}
    return pd.DataFrame(columns).reset_index()


def format_summary(table: pd.DataFrame, metrics: Metrics) -> pd.DataFrame:
    """Format a `summary` for people: scaled metrics as mean ± sd, and thousands separators."""
    scale, unit = metrics.score.scale, f" {metrics.score.unit}".rstrip()
    digits = 2 if scale > 1 else 4
    columns: dict[str, Any] = {name: table[name] for name in ("variant", "seeds")}
    for name in metrics.names:
        columns[f"{readable(name)}{unit}"] = [
            f"{scale * mean:z.{digits}f}" + ("" if sd != sd else f" ± {scale * sd:.{digits}f}")
            for mean, sd in zip(table[name], table[f"{name}_sd"], strict=True)
        ]
    for name in SIZES:
        form = "{:,.0f}" if "parameters" in name else "{:.1f}"
        columns[readable(name)] = table[name].map(form.format)
    return pd.DataFrame(columns)


def readable(name: str) -> str:
    """Return the name of a column for people: `negative_mse` becomes `negative MSE`."""
    return name.replace("_", " ").replace("mse", "MSE").replace("f1", "F1")


def summary_text(report: Report) -> str:
    """Return the content of results_summary.md, which leaves out the runs of a search."""
    report = report.tested
    rows = report.results.assign(variant=report.results["variant"].map(report.labels))
    table = format_summary(summary(rows), report.metrics)
    note = f"**{report.note}.**\n\n" if report.note else ""
    text = f"# Test results\n\n{note}Mean ± standard deviation over seeds.\n\n"
    text += table.to_markdown(index=False, disable_numparse=True) + "\n"
    for run in report.missing:
        text += f"\n{run['variant']}-seed{run['seed']} is {run['status']}: {run['reason']}\n"
    return text


def write_tables(report: Report) -> None:
    """Write results.csv, history.csv and results_summary.md of a report from its runs."""
    write_frame(report.folder / "results.csv", report.results)
    write_frame(report.folder / "history.csv", report.history)
    write_file(report.folder / "results_summary.md", summary_text(report))


def write_published(report: Report, folder: Path) -> None:
    """Write the records, tables, histories and predictions of a report's runs."""
    predictions: dict[str, np.ndarray] = {}
    for run in report.runs:
        arrays = run.predictions.items()
        predictions |= {f"{run.folder.name}/{name}": array for name, array in arrays}
    write_json(folder / MARKER, report.marker)
    write_json(folder / RECORDS, report.records)
    write_frame(folder / "results.csv", report.results)
    write_file(folder / "results_summary.md", summary_text(report))
    write_frame(folder / "history.parquet", report.history)
    write_tensors(folder / "predictions.safetensors.xz", predictions)
    for name in {path.stem for run in report.runs for path in run.folder.glob("measures/*")}:
        table = report.table(name)
        single = dict.fromkeys(table.select_dtypes("float"), "float32")  # enough for every figure
        write_frame(folder / f"measures/{name}.parquet", table.astype(single))
