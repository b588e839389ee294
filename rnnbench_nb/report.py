"""A report: its protocol, its runs and the lost ones, its labels and looks, and their files.

Nothing here needs torch, except the weights of a run (`Run.model`).
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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import safetensors.numpy
from safetensors import SafetensorError

from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.protocol import Protocol, RunParameters, recorded_protocol, run_parameters
from rnnbench_nb.tasks import TASKS, Task

if TYPE_CHECKING:
    from rnnbench_nb.model import SequenceModel

COMPLETED, FAILED, MISSING = "completed", "failed", "missing"
PARTIAL = "partial"  # of a published run that can be gone on with
PREDICTED = "predicted.safetensors.xz"  # of all runs of a published report, by run and name
HISTORY_KEYS = ("variant", "seed", "epoch", "split")
DASHES = [(3, 1, 1, 1), (6, 2), (2, 2), (5, 1, 1, 1, 1, 1), (8, 1), (1, 2)]
MARKERS = ["D", "v", "P", "X", "<", ">", "h"]


class Look(NamedTuple):
    """How a variant is drawn: colour as #rrggbb, dashes on and off in points, marker."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


def labels(variants: Mapping[str, RunParameters]) -> dict[str, str]:
    """The name of each variant for people, by its parameters.

    A variant that is named after its cell has the cell's label (`x_128` of the cell `x` has
    `LABEL-128`); any other keeps its own name. What follows a comma in a label stands in brackets,
    as sentences list labels with commas.
    """
    found = {}
    for name, parameters in variants.items():
        cell = CELLS[parameters.model]
        label = re.sub(r", (.*)", r" (\1)", cell.label)
        rest = name.removeprefix(f"{cell.name}_")
        found[name] = label if name == cell.name else f"{label}-{rest}" if rest != name else name
    return found


def said(name: str) -> str:
    """The name of a score as people read it: `negative_mse` is `negative MSE`."""
    return name.replace("_", " ").replace("mse", "MSE").replace("f1", "F1")


def looks(variants: Mapping[str, RunParameters]) -> dict[str, Look]:
    """The look of each variant, all different.

    The variant that is named after its cell, or the only one of its cell, has the cell's look; the
    others, and cells without a look, have the next spare one.
    """
    models = [parameters.model for parameters in variants.values()]
    found, spare = {}, 0
    for name, parameters in variants.items():
        cell = CELLS[parameters.model]
        if cell.colour and (name == cell.name or models.count(cell.name) == 1):
            found[name] = Look(cell.colour, cell.dashes, cell.marker)
            continue
        hue, lightness = (0.36 + 0.381966 * spare) % 1, (0.33, 0.45, 0.57)[spare % 3]
        rgb = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.6))
        colour = "#{:02x}{:02x}{:02x}".format(*rgb)
        marker = MARKERS[spare % len(MARKERS)]
        found[name] = Look(colour, DASHES[spare % len(DASHES)], marker)
        spare += 1
    return found


def listed(names: list[str]) -> str:
    """`LSTM, GRU and A-GRU`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


@dataclass(frozen=True)
class Run:
    """One run's folder, read lazily: `record` is run.json, the rest its other files."""

    folder: Path
    record: dict

    @cached_property
    def parameters(self) -> RunParameters:
        """Everything the run depended on."""
        return run_parameters(self.record["parameters"], str(self.folder / "run.json"))

    @property
    def key(self) -> tuple[str, int]:
        """The variant and the seed."""
        return self.record["variant"], self.record["seed"]

    @property
    def remedy(self) -> str:
        """What to do about a damaged file."""
        return f"move {self.folder} elsewhere and run it again"

    @cached_property
    def task(self) -> Task:
        """The task that was learned."""
        return TASKS[self.parameters.task](self.parameters.task_options)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch and split (`history_columns`); of a published run, the report's."""
        whole = stored(self.folder.parents[1] / "history.csv")
        if not (self.folder / "history.csv").exists() and whole.exists():
            found = _histories(whole, whole.stat().st_mtime_ns)
            if self.key not in found:
                raise UserError(f"{whole} has no rows of {self.folder.name}; publish it again.")
            return found[self.key]
        return read_csv(self.folder / "history.csv", self.remedy, HISTORY_KEYS)

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """`label` and `predicted`, over the test examples; of a published run, the report's."""
        whole = self.folder.parents[1] / PREDICTED
        if self.has("predicted") or not whole.exists():
            return self.tensors("predicted")
        start = f"{self.folder.name}/"
        every = _predictions(whole, whole.stat().st_mtime_ns)
        found = {name.removeprefix(start): each for name, each in every.items()
                 if name.startswith(start)}  # fmt: skip
        if not found:
            raise UserError(f"{whole} has nothing of {self.folder.name}; publish it again.")
        return found

    @cached_property
    def scores(self) -> np.ndarray:
        """The score of each test example (N,), more being better."""
        return self.task.scores(**self.predictions)

    @property  # not cached: a thousand runs of these would fill the memory
    def outputs(self) -> np.ndarray:
        """What the head gave, such as class scores (N, K), float32, over the test examples."""
        return self.tensors("outputs")["outputs"]

    @cached_property
    def recurrent(self) -> dict[str, np.ndarray]:
        """`matrix` (E + 1, H, H) and `step_size` (E + 1,) of the cell, initial and each epoch."""
        return self.tensors("recurrent")

    @cached_property
    def model(self) -> "SequenceModel":
        """The model at its best epoch, in evaluation mode."""
        return self._model("best")

    @cached_property
    def initial_model(self) -> "SequenceModel":
        """The model before its first step, in evaluation mode."""
        return self._model("initial")

    def has(self, name: str) -> bool:
        """Whether there is a file of these tensors: a published run has no weights."""
        return (self.folder / f"{name}.safetensors").exists()

    def _model(self, name: str) -> "SequenceModel":
        import torch

        from rnnbench_nb.model import build_model
        from rnnbench_nb.seeds import generator

        data, random = self.record["data"], generator(self.parameters.seed, "initialisation")
        outputs = data.get("outputs", data.get("classes"))
        model = build_model(self.parameters, data["input_size"], outputs, random, self.task.read)
        state = {key: torch.from_numpy(value) for key, value in self.tensors(name).items()}
        model.load_state_dict(state)
        return model.eval()

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """The arrays in a file of the run, by name.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            raise UserError(
                f"{path} is not there (a published report has no weights); name a report that has "
                f"it, or {self.remedy}."
            )
        try:
            return safetensors.numpy.load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged; {self.remedy}.") from error


@lru_cache(maxsize=4)
def _histories(path: Path, changed: int) -> dict[tuple[str, int], pd.DataFrame]:
    """The rows of a published history.csv by variant and seed; `changed` is when it was written."""
    rows = read_csv(path, needs=HISTORY_KEYS)
    return dict(iter(rows.groupby(["variant", "seed"], sort=False)))


@lru_cache(maxsize=4)
def _predictions(path: Path, changed: int) -> dict[str, np.ndarray]:
    """The arrays of `write_predictions`; `changed` is when they were written."""
    try:
        return safetensors.numpy.load(lzma.decompress(path.read_bytes()))
    except (OSError, EOFError, lzma.LZMAError, SafetensorError) as error:
        raise UserError(f"{path} is damaged; publish it again.") from error


def load_run(folder: Path | str) -> Run:
    """The run in a folder such as reports/quick/runs/NAME-seed42: its model and results.

    Raises:
        UserError: The folder holds no readable run.json.
    """
    path = Path(folder) / "run.json"
    if not path.exists():
        raise UserError(f"{path.parent} holds no run (no run.json); name another.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Run(path.parent, record | {"status": record["status"]})
    except (OSError, ValueError, TypeError, KeyError) as error:  # or no record of a run
        raise UserError(
            f"{path} is damaged; move {path.parent} elsewhere and run it again."
        ) from error


def completed(folder: Path) -> dict | None:
    """The record of a completed run; None of any other."""
    try:
        record = load_run(folder).record
    except UserError:  # there is none, or it is damaged: told by the report
        return None
    return record if record["status"] == COMPLETED else None


class Report:
    """A report's folder. Its runs are read once; those that did not complete are `lost`.

    Args:
        folder: Holds protocol.yaml and runs/, or is a published report.

    Attributes:
        folder: The same.
        protocol: What was asked for.
        variants: The parameters of each variant, by name, in order.
        labels, looks: Name for people and look of each variant, by name.

    Raises:
        UserError: The folder holds no readable protocol.yaml.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not (self.folder / "protocol.yaml").exists():
            raise UserError(f"{self.folder} holds no report (no protocol.yaml); name another.")
        self.protocol: Protocol = recorded_protocol(self.folder / "protocol.yaml")
        self.variants = self.protocol.parameterisations
        self.labels, self.looks = labels(self.variants), looks(self.variants)

    @cached_property
    def task(self) -> Task:
        """The task of the protocol, with the options of its first variant."""
        first = next(iter(self.variants.values()))
        return TASKS[first.task](first.task_options)

    @property
    def score(self):
        """The task's score."""
        return self.task.score

    @property
    def metrics(self):
        """The metrics of the task."""
        return METRICS[self.task.metrics]

    @property
    def run_folders(self) -> list[Path]:
        """The folders of all runs that the protocol asks for, finished or not, in order."""
        return [self.folder / f"runs/{name}-seed{seed}" for name in self.variants
                for seed in self.protocol.seeds_of(name)]  # fmt: skip

    @cached_property
    def _read(self) -> tuple[list[Run], list[dict], list[dict]]:
        runs, records, lost = [], [], []
        for folder in self.run_folders:
            try:
                run = load_run(folder)
                if run.record["status"] == COMPLETED:
                    run.predictions, run.history  # noqa: B018 (both must be readable)
                    runs.append(run)
                else:
                    lost.append(run.record)
                records.append(run.record)
            except UserError as error:
                variant, _, seed = folder.name.rpartition("-seed")
                reason = f"it did not finish; logs/{folder.name}.txt says how far it got"
                if (folder / "run.json").exists():  # it did, and was damaged afterwards
                    reason = str(error)
                record = {"variant": variant, "seed": int(seed)}
                records.append(record | {"status": MISSING, "reason": reason})
                lost.append(records[-1])
        return runs, records, lost

    @property
    def runs(self) -> list[Run]:
        """The completed runs, in order."""
        return self._read[0]

    @property
    def records(self) -> list[dict]:
        """The records of all runs that the protocol asks for, in order; see `lost`."""
        return self._read[1]

    @property
    def lost(self) -> list[dict]:
        """The records of the other runs, each with `variant, seed, status, reason`."""
        return self._read[2]

    def of(self, variant: str) -> list[Run]:
        """The completed runs of a variant, in order of their seeds."""
        return [run for run in self.runs if run.key[0] == variant]

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row a run, failed and missing ones too, with the columns of results.csv."""
        rows = [result_row(record, METRICS[self.task.metrics].names) for record in self._read[1]]
        return pd.DataFrame(rows, columns=result_columns(METRICS[self.task.metrics].names))

    @cached_property
    def history(self) -> pd.DataFrame:
        """The histories of the completed runs (`history_columns`)."""
        found = [run.history for run in self.runs]
        empty = pd.DataFrame(columns=history_columns(self.task.score.name))
        return pd.concat(found).reset_index(drop=True) if found else empty

    @property
    def damaged(self) -> list[str]:
        """What is wrong with each run that has a record and cannot be read."""
        return [
            run["reason"]
            for run in self.lost
            if run["status"] == MISSING
            and (self.folder / f"runs/{run['variant']}-seed{run['seed']}/run.json").exists()
        ]

    def lost_sentences(self) -> list[str]:
        """One sentence for each run that is not in the report."""
        return [
            f"{run['variant']}-seed{run['seed']} is {run['status']}: "
            f"{run.get('reason', 'no reason was recorded')}"
            for run in self.lost
        ]

    def differing(self) -> list[str]:
        """The completed runs that other code made than stands here now, by their fingerprints."""
        from rnnbench_nb.provenance import fingerprint

        return [
            run.folder.name
            for run in self.runs
            if run.record.get("fingerprint")
            not in (None, fingerprint(run.parameters.model, run.parameters.task))
        ]

    def unknown(self) -> list[str]:
        """The completed runs of before fingerprints were kept."""
        return [run.folder.name for run in self.runs if "fingerprint" not in run.record]

    def devices_sentences(self) -> list[str]:
        """One sentence where no device ran every variant, so that devices differ as models do."""
        ran: dict[str, dict[str, None]] = {}  # labels in order
        for run in self.runs:
            device = run.record.get("device", "unknown").upper()
            ran.setdefault(device, {})[self.labels[run.key[0]]] = None
        every = {label for labels in ran.values() for label in labels}
        if any(every == set(labels) for labels in ran.values()) or not ran:
            return []
        parts = [f"{listed(list(labels))} on {device}" for device, labels in ran.items()]
        return [
            f"Not every model ran on one device ({'; '.join(parts)}): a difference between them "
            "holds what the arithmetic of the device makes of a run."
        ]


def write_record(folder: Path, record: dict) -> None:
    """Write run.json, which says how a run ended."""
    write_file(folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as safetensors."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_file(path, safetensors.numpy.save(arrays))


def write_predictions(folder: Path, report: "Report") -> None:
    """Write the predictions of all finished runs to one file.

    Runs on the same data say much alike, so it weighs a twentieth of what their files do, or less.
    """
    found = {f"{run.folder.name}/{name}": np.ascontiguousarray(array)
             for run in report.runs for name, array in run.predictions.items()}  # fmt: skip
    write_file(folder / PREDICTED, lzma.compress(safetensors.numpy.save(found)))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy frame, numbers in full precision."""
    write_file(path, frame.to_csv(index=False))


def stored(path: Path) -> Path:
    """Where a table lies: of a published report, a large one is compressed and ends in .csv.xz."""
    packed = path.with_name(f"{path.name}.xz")
    return packed if packed.exists() and not path.exists() else path


def read_csv(
    path: Path, remedy: str = "make the report again", needs: Iterable[str] = ()
) -> pd.DataFrame:
    """Read a tidy frame, compressed or not; names stay text, whatever they look like.

    Raises:
        UserError: The file is missing or damaged, or has not the columns that it `needs`.
    """
    path = stored(path)
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8-sig")
        if not text.endswith("\n"):
            raise ValueError("the last line is cut off")
        names = dict.fromkeys(("variant", "model", "status", "a", "b"), str)  # names stay text
        missing = {"keep_default_na": False, "na_values": {}}
        frame = pd.read_csv(StringIO(text), dtype=names, **missing)
        if not set(needs) <= set(frame.columns) or ";" in frame.columns[0]:
            raise ValueError("it is no table of this project, separated by commas")
        numbers = frame.columns.difference(list(names))
        return frame.assign(**{c: _numbers(frame[c]) for c in numbers})
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; {remedy}.") from error


def _numbers(column: pd.Series) -> pd.Series:
    """Text as numbers, empty as NaN, where all of it is one or the other."""
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column
    try:
        return pd.to_numeric(column.replace("", np.nan))
    except (ValueError, TypeError):
        return column


def history_columns(score: str) -> list[str]:
    """The columns of history.csv, `score` being the name of the task's."""
    keys = ["variant", "model", "seed", "epoch", "split"]
    return [*keys, "loss", score, "seconds", "learning_rate", "gradient_norm"]


def result_columns(metrics: Iterable[str]) -> list[str]:
    """The columns of results.csv."""
    keys, sizes = ["variant", "model", "seed"], ["parameters", "free_parameters"]
    return [*keys, *metrics, "loss", *sizes, "epochs", "best_epoch", "seconds", "status"]


def result_row(record: dict, metrics: Iterable[str]) -> dict:
    """A run's row of results.csv; a run that did not complete has no numbers."""
    columns = result_columns(metrics)
    row = {name: record.get(name) for name in columns} | record.get("test", {})
    row["parameters"] = record.get("parameter_count")
    row["free_parameters"] = record.get("free_parameter_count")
    return {name: row[name] for name in columns}


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """The table of a report: one row a variant, over its completed runs.

    Returns:
        Columns `variant, seeds`, then mean and `_sd` (ddof 1) of the test metrics as they are in
        results.csv, `parameters, free_parameters`, and the mean `epochs` and `best_epoch`.
    """
    completed = results[results["status"] == COMPLETED]
    groups = completed.groupby("variant", sort=False)
    columns = {"seeds": groups["seed"].nunique()}
    for name in results.columns[3 : results.columns.get_loc("loss")]:
        columns |= {name: groups[name].mean(), f"{name}_sd": groups[name].std(ddof=1)}
    columns |= {name: groups[name].first() for name in ("parameters", "free_parameters")}
    columns |= {name: groups[name].mean() for name in ("epochs", "best_epoch")}
    return pd.DataFrame(columns).reset_index()


def formatted(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The summary as text for people: scaled, with sd, thousands separated."""
    scale, unit = task.score.scale, f" {task.score.unit}".rstrip()
    digits = 2 if scale > 1 else 4

    def both(name: str) -> pd.Series:
        return table.apply(
            lambda row: f"{scale * row[name]:.{digits}f}"
            + ("" if pd.isna(row[f"{name}_sd"]) else f" ± {scale * row[f'{name}_sd']:.{digits}f}"),
            axis=1, result_type="reduce",
        )  # fmt: skip

    return pd.DataFrame(
        {
            "variant": table["variant"],
            "seeds": table["seeds"],
            **{f"{said(name)}{unit}": both(name) for name in METRICS[task.metrics].names},
            "parameters": table["parameters"].map("{:,.0f}".format),
            "free parameters": table["free_parameters"].map("{:,.0f}".format),
            "epochs": table["epochs"].map("{:.1f}".format),
            "best epoch": table["best_epoch"].map("{:.1f}".format),
        }
    )


def verify(report: Report) -> pd.DataFrame:
    """Recompute the metrics of every completed run in results.csv from its saved predictions.

    Returns:
        The rows of results.csv that were recomputed.

    Raises:
        UserError: A number in results.csv is not what the predictions give, to the last digit.
    """
    path = report.folder / "results.csv"
    results = read_csv(path, needs=result_columns(METRICS[report.task.metrics].names))
    results = results[results["status"] == COMPLETED]
    for row in results.to_dict("records"):
        run = load_run(report.folder / f"runs/{row['variant']}-seed{row['seed']}")
        for name, value in METRICS[run.task.metrics].values(**run.predictions).items():
            if row[name] != value:
                raise UserError(
                    f"{path}: {run.folder.name} has {name} {row[name]!r}, but its saved "
                    f"predictions give {value!r}; make the report again."
                )
    return results


def write_tables(report: Report) -> None:
    """Write results.csv, history.csv and results_summary.md of a report from its runs."""
    write_csv(report.folder / "results.csv", report.results)
    write_csv(report.folder / "history.csv", report.history)
    shown = report.results.assign(variant=report.results["variant"].map(report.labels))
    table = formatted(summary(shown), report.task).to_markdown(index=False, disable_numparse=True)
    text = f"# Test results\n\nMean ± standard deviation over seeds.\n\n{table}\n"
    lost = "".join(f"\n{sentence}\n" for sentence in report.lost_sentences())
    write_file(report.folder / "results_summary.md", text + lost)
