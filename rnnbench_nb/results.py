"""Reports and their runs as files and as tidy tables, without torch.

A report's folder holds report.json, which says what its runs have in common, and for each run
runs/<run>/ with run.json, history.csv, predictions.safetensors, measures/<table>.parquet and
weights. A published report holds the same for all of its runs together, without weights: runs.json,
history.parquet, predictions.safetensors.xz and measures/<table>.parquet.
"""

import colorsys
import json
import lzma
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import safetensors.numpy
from safetensors import SafetensorError

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.metrics import METRICS, Metrics, Score

FORMAT = 2  # of report.json and run.json; version 0.1 wrote no number
MARKER = "report.json"
PUBLISHED = (MARKER, "runs.json", "results.csv", "results_summary.md", "history.parquet",
             "predictions.safetensors.xz")  # fmt: skip
COMPLETED, FAILED, MISSING = "completed", "failed", "missing"
KEYS = ["variant", "model", "seed"]
SIZES = ["parameters", "free_parameters", "epochs", "best_epoch"]
DASHES = [(3, 1, 1, 1), (6, 2), (2, 2), (5, 1, 1, 1, 1, 1), (8, 1), (1, 2)]
MARKERS = ["D", "v", "P", "X", "<", ">", "h"]


class Look(NamedTuple):
    """How a variant is drawn: colour as #rrggbb, dashes (on and off, in points), marker."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


class Drawn(Protocol):
    """A cell class, as far as labels and looks need it."""

    name: str
    label: str
    colour: str | None
    dashes: tuple[float, ...] | None
    marker: str | None


def labels(cells: Mapping[str, Any]) -> dict[str, str]:
    """The label of each variant, from the cell of each.

    A variant named after its cell has the cell's label (`gru_128` of the cell `gru` has
    `GRU-128`); any other keeps its own name. A part of a cell's label after a comma is put in
    brackets, because sentences separate labels by commas.
    """
    result = {}
    for name, cell in cells.items():
        label = re.sub(r", (.*)", r" (\1)", cell.label)
        rest = name.removeprefix(f"{cell.name}_")
        result[name] = label if name == cell.name else f"{label}-{rest}" if rest != name else name
    return result


def looks(cells: Mapping[str, Any]) -> dict[str, Look]:
    """A different look for each variant, from the cell of each.

    The variant named after its cell, or the only one of its cell, has the cell's look; other
    variants, and cells without a look, have the next spare one.
    """
    names = [cell.name for cell in cells.values()]
    result, spare = {}, 0
    for name, cell in cells.items():
        if cell.colour and (name == cell.name or names.count(cell.name) == 1):
            result[name] = Look(cell.colour, cell.dashes, cell.marker)
            continue
        hue, lightness = (0.36 + 0.381966 * spare) % 1, (0.33, 0.45, 0.57)[spare % 3]
        rgb = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.6))
        marker = MARKERS[spare % len(MARKERS)]
        result[name] = Look("#{:02x}{:02x}{:02x}".format(*rgb), DASHES[spare % len(DASHES)], marker)
        spare += 1
    return result


@dataclass(frozen=True)
class Run:
    """One run: `record` is its run.json; its other files are read when they are asked for."""

    folder: Path
    record: dict[str, Any]

    @property
    def key(self) -> tuple[str, int]:
        """The variant and the seed."""
        return self.record["variant"], self.record["seed"]

    @property
    def published(self) -> bool:
        """Whether the run is part of a published report, which keeps all runs in common files."""
        return not (self.folder / "run.json").exists()

    @property
    def metrics(self) -> Metrics:
        """The score and the metrics that judge the run."""
        return METRICS[self.record["metrics"]]

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row for each epoch and split, with the columns `history_columns`."""
        if self.published:
            return self._common(_histories, "history.parquet")[self.key]
        path = self.folder / "history.csv"
        return read_csv(path, self.remedy, history_columns(self.metrics.score.name))

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """The arrays `label` and `predicted` over the N test examples."""
        if self.published:
            return self._common(_predictions, "predictions.safetensors.xz")[self.folder.name]
        return self.tensors("predictions")

    @cached_property
    def scores(self) -> np.ndarray:
        """The score of each test example, (N,); more is better."""
        return self.metrics.scores(**self.predictions)

    @property
    def remedy(self) -> str:
        """What a user can do about a damaged file of the run."""
        return f"move {self.folder} elsewhere and run it again"

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """The arrays in the run's file NAME.safetensors.

        Raises:
            UserError: The file is missing or damaged.
        """
        path = self.folder / f"{name}.safetensors"
        if self.published:
            raise UserError(f"{path} does not exist: a published report has no weights.")
        try:
            return safetensors.numpy.load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is missing or damaged; {self.remedy}.") from error

    def _common(self, read: Any, name: str) -> dict:
        path = self.folder.parents[1] / name
        try:
            content = read(path, path.stat().st_mtime_ns)
        except (OSError, EOFError, ValueError, lzma.LZMAError, SafetensorError) as error:
            raise UserError(
                f"{path} is missing or damaged; restore it or publish again."
            ) from error
        if not {self.key, self.folder.name} & set(content):
            raise UserError(f"{path} lacks {self.folder.name}; restore it or publish again.")
        return content


@lru_cache(maxsize=4)
def _histories(path: Path, changed: int) -> dict[tuple[str, int], pd.DataFrame]:
    """The histories in a published report by variant and seed; `changed` is the file's time."""
    rows = pd.read_parquet(path)
    return {key: part.reset_index(drop=True) for key, part in rows.groupby(["variant", "seed"])}


@lru_cache(maxsize=4)
def _predictions(path: Path, changed: int) -> dict[str, dict[str, np.ndarray]]:
    """The predictions in a published report by run; `changed` is the file's time."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for place, array in safetensors.numpy.load(lzma.decompress(path.read_bytes())).items():
        run, _, name = place.rpartition("/")
        result.setdefault(run, {})[name] = array
    return result


def load_run(folder: Path | str) -> Run:
    """The run in a folder such as reports/quick/runs/gru-seed42.

    Raises:
        UserError: The folder holds no readable run.
    """
    folder = Path(folder)
    common = folder.parents[1] / "runs.json" if len(folder.parents) > 1 else folder
    path = folder / "run.json"
    if not path.exists() and common.is_file():
        run = _published_runs(common).get(folder.name)
        if run is None:
            raise UserError(f"{folder.parents[1]} holds no run {folder.name}; name another.")
        return run
    if not path.exists():
        raise UserError(f"{folder} holds no run (no run.json); name another.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["status"], record["variant"], record["seed"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged; move {folder} elsewhere and run it again.") from error
    if record.get("format") != FORMAT:
        raise UserError(_of_version_0_1(path))
    return Run(folder, record)


def _published_runs(path: Path) -> dict[str, Run]:
    """The runs in a published report's runs.json, by name."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        names = [f"{record['variant']}-seed{record['seed']}" for record in records]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged; restore it or publish the report again.") from error
    folders = [path.parent / "runs" / name for name in names]
    return {f.name: Run(f, record) for f, record in zip(folders, records, strict=True)}


def _of_version_0_1(path: Path) -> str:
    return f"{path} was written by version 0.1, which reads it: git checkout v0.1."


class Report:
    """A report's folder. Its runs are read once.

    Args:
        folder: Holds report.json, and runs/ or the files of a published report.

    Attributes:
        folder: The same.
        marker: The content of report.json.
        variants: For each variant its `label`, look, `model`, `task`, `parameters` at the first
            seed, and `group`: only variants of equal group (task and its options) are compared.
        labels, looks: The label and the look of each variant.
        metrics, score: What judges its runs.

    Raises:
        UserError: The folder holds no readable report.json.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        path = self.folder / MARKER
        if not path.exists() and (self.folder / "protocol.yaml").exists():
            raise UserError(_of_version_0_1(self.folder))
        if not path.exists():
            raise UserError(f"{self.folder} holds no report (no {MARKER}); name another.")
        try:
            self.marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.variants: dict[str, dict[str, Any]] = self.marker["variants"]
            self.seeds: dict[str, list[int]] = self.marker["seeds"]
            self.metrics: Metrics = METRICS[self.marker["metrics"]]
            self.labels = {name: look["label"] for name, look in self.variants.items()}
            self.looks = {
                name: Look(look["colour"], tuple(look["dashes"]), look["marker"])
                for name, look in self.variants.items()
            }
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged; restore it or make the report again.") from error

    @property
    def name(self) -> str:
        """The protocol's name."""
        return self.marker["protocol"]

    @property
    def note(self) -> str:
        """What readers must know of the data, such as that other data stand in; often empty."""
        return self.marker["note"]

    @property
    def score(self) -> Score:
        """The score of a test example."""
        return self.metrics.score

    @property
    def published(self) -> bool:
        """Whether this is the light, committed form of a report."""
        return (self.folder / "runs.json").exists()

    @property
    def groups(self) -> list[list[str]]:
        """The variants that can be compared with each other, in order."""
        groups: dict[str, list[str]] = {}
        for name, variant in self.variants.items():
            groups.setdefault(variant["group"], []).append(name)
        return list(groups.values())

    @property
    def run_folders(self) -> list[Path]:
        """The folders of all runs that the protocol asks for, in order."""
        return [
            self.folder / f"runs/{name}-seed{seed}"
            for name in self.variants
            for seed in self.seeds[name]
        ]

    @cached_property
    def _read(self) -> tuple[list[Run], list[dict[str, Any]]]:
        """The completed runs, and the records of all runs."""
        runs, records = [], []
        for folder in self.run_folders:
            variant, _, seed = folder.name.rpartition("-seed")
            record = {"variant": variant, "model": self.variants[variant]["model"]}
            record |= {"seed": int(seed), "status": MISSING}
            try:
                run = load_run(folder)
                if run.record["status"] == COMPLETED:
                    run.predictions, run.history  # noqa: B018 (a damaged file is found now)
                    runs.append(run)
                record = run.record
            except UserError as error:
                there = (folder / "run.json").exists() or self.published
                reason = f"it did not finish; logs/{folder.name}.txt shows how far it got"
                record["reason"] = str(error) if there else reason
            records.append(record)
        return runs, records

    @property
    def runs(self) -> list[Run]:
        """The completed runs, in order."""
        return self._read[0]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of all runs that the protocol asks for, in order."""
        return self._read[1]

    @property
    def missing(self) -> list[dict[str, Any]]:
        """The records of the runs without results: `variant, seed, status, reason`."""
        return [record for record in self.records if record["status"] != COMPLETED]

    def of(self, variant: str) -> list[Run]:
        """The completed runs of a variant, in order of their seeds."""
        return [run for run in self.runs if run.key[0] == variant]

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row for each run, failed and missing ones too, with the columns of results.csv."""
        rows = [result_row(record, self.metrics.names) for record in self.records]
        return pd.DataFrame(rows, columns=result_columns(self.metrics.names))

    @cached_property
    def history(self) -> pd.DataFrame:
        """The histories of the completed runs, with the columns `history_columns`."""
        columns = history_columns(self.score.name)
        histories = [run.history for run in self.runs]
        return (
            pd.concat(histories, ignore_index=True)
            if histories
            else pd.DataFrame([], columns=columns)
        )

    def table(self, name: str) -> pd.DataFrame:
        """A table that was measured on the runs' weights, with `variant` and `seed` first.

        Args:
            name: A table of `measures`, such as "stability".

        Returns:
            The rows of all completed runs, in order; an empty frame if no run has the table.
        """
        if self.published:
            paths = [self.folder / f"measures/{name}.parquet"]
        else:
            paths = [run.folder / f"measures/{name}.parquet" for run in self.runs]
        paths = [path for path in paths if path.exists()]
        try:
            tables = [pd.read_parquet(path) for path in paths]
        except (OSError, ValueError) as error:
            raise UserError(
                f"A table {name} of {self.folder} is damaged; make it again."
            ) from error
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def write_json(path: Path, content: Any) -> None:
    """Write a report.json, run.json or runs.json."""
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as safetensors."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_file(path, safetensors.numpy.save(arrays))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy frame, numbers in full precision."""
    write_file(path, frame.to_csv(index=False))


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy frame as compressed Parquet."""
    write_file(path, frame.to_parquet(index=False, compression="zstd"))


def read_csv(path: Path, remedy: str, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Read a tidy frame; names stay text, whatever they look like.

    Raises:
        UserError: The file is missing or damaged, or lacks one of `columns`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if not text.endswith("\n"):
            raise ValueError("the last line is cut off")
        names = dict.fromkeys(("variant", "model", "status", "split"), str)
        frame = pd.read_csv(StringIO(text), dtype=names, keep_default_na=False, na_values=[""])
        if not set(columns) <= set(frame.columns):
            raise ValueError("a column is missing")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; {remedy}.") from error
    return frame


def history_columns(score: str) -> list[str]:
    """The columns of a history; `score` is the name of the task's."""
    rates = ["learning_rate", "gradient_norm"]  # of the split "train" alone
    return [*KEYS, "epoch", "split", "loss", score, "seconds", *rates]


def result_columns(metrics: Iterable[str]) -> list[str]:
    """The columns of results.csv."""
    return [*KEYS, *metrics, "loss", *SIZES, "seconds", "status"]


def result_row(record: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, Any]:
    """A run's row of results.csv; a run that did not complete has no numbers."""
    test = record.get("test", {})
    return {
        **{name: record[name] for name in KEYS},
        **{name: test.get(name) for name in (*metrics, "loss")},
        "parameters": record.get("parameter_count"),
        "free_parameters": record.get("free_parameter_count"),
        **{name: record.get(name) for name in ("epochs", "best_epoch", "seconds")},
        "status": record["status"],
    }


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant, over its completed runs.

    Returns:
        Columns `variant, seeds`; mean and `_sd` (ddof 1) of each metric of results.csv;
        `parameters, free_parameters`; and the means of `epochs` and `best_epoch`.
    """
    groups = results[results["status"] == COMPLETED].groupby("variant", sort=False)
    columns = {"seeds": groups["seed"].nunique()}
    for name in results.columns[len(KEYS) : results.columns.get_loc("loss")]:
        columns |= {name: groups[name].mean(), f"{name}_sd": groups[name].std(ddof=1)}
    columns |= {name: groups[name].first() for name in SIZES[:2]}
    columns |= {name: groups[name].mean() for name in SIZES[2:]}
    return pd.DataFrame(columns).reset_index()


def formatted(table: pd.DataFrame, metrics: Metrics) -> pd.DataFrame:
    """The summary as text for people: metrics scaled, as mean ± sd; thousands separated."""
    scale, unit = metrics.score.scale, f" {metrics.score.unit}".rstrip()
    digits = 2 if scale > 1 else 4

    def mean_sd(row: pd.Series, name: str) -> str:
        sd = row[f"{name}_sd"]
        tail = "" if pd.isna(sd) else f" ± {scale * sd:.{digits}f}"
        return f"{scale * row[name]:.{digits}f}{tail}"

    columns = {"variant": table["variant"], "seeds": table["seeds"]}
    for name in metrics.names:
        rows = [mean_sd(row, name) for _, row in table.iterrows()]
        columns[f"{readable(name)}{unit}"] = pd.Series(rows, dtype=str)
    formats = dict.fromkeys(SIZES[:2], "{:,.0f}") | dict.fromkeys(SIZES[2:], "{:.1f}")
    for name, form in formats.items():
        columns[readable(name)] = table[name].map(form.format)
    return pd.DataFrame(columns)


def readable(name: str) -> str:
    """A column's name as people read it: `negative_mse` is `negative MSE`."""
    return name.replace("_", " ").replace("mse", "MSE").replace("f1", "F1")


def write_tables(report: Report) -> None:
    """Write results.csv, history.csv and results_summary.md of a report from its runs."""
    write_csv(report.folder / "results.csv", report.results)
    write_csv(report.folder / "history.csv", report.history)
    write_file(report.folder / "results_summary.md", summary_text(report))


def summary_text(report: Report) -> str:
    """The content of results_summary.md."""
    shown = report.results.assign(variant=report.results["variant"].map(report.labels))
    table = formatted(summary(shown), report.metrics)
    text = table.to_markdown(index=False, disable_numparse=True)
    lines = ["# Test results", "", *([f"**{report.note}.**", ""] if report.note else [])]
    lines += ["Mean ± standard deviation over seeds.", "", text]
    for run in report.missing:
        reason = run.get("reason", "no reason was recorded")
        lines += ["", f"{run['variant']}-seed{run['seed']} is {run['status']}: {reason}"]
    return "\n".join(lines) + "\n"


def write_published(report: Report, folder: Path) -> list[Path]:
    """Write the records, tables, histories and predictions of a report's finished runs.

    Args:
        report: A report with the runs' own files.
        folder: The published report.

    Returns:
        The files, which together with protocol.yaml, figures and pages are a published report.
    """
    predictions = {
        f"{run.folder.name}/{name}": np.ascontiguousarray(array)
        for run in report.runs
        for name, array in run.predictions.items()
    }
    names = {path.stem for run in report.runs for path in run.folder.glob("measures/*.parquet")}
    write_json(folder / MARKER, report.marker)
    write_json(folder / "runs.json", [run.record for run in report.runs])
    write_csv(folder / "results.csv", report.results)
    write_file(folder / "results_summary.md", summary_text(report))
    write_parquet(folder / "history.parquet", report.history)
    packed = lzma.compress(safetensors.numpy.save(predictions))
    write_file(folder / "predictions.safetensors.xz", packed)
    measures = [folder / f"measures/{name}.parquet" for name in sorted(names)]
    for path in measures:
        write_parquet(path, report.table(path.stem))
    return [*(folder / name for name in PUBLISHED), *measures]
