"""What a run leaves behind: its files, their schemas, and how they are read and collected."""

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from rnnbench_nb.config import PROJECT, Protocol, RunParameters, validate
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.models import SequenceClassifier, build_model
from rnnbench_nb.seeds import generator

RESULT_COLUMNS = [
    "variant", "model", "seed", "accuracy", "precision", "recall", "f1", "loss", "parameters",
    "free_parameters", "epochs", "best_epoch", "seconds", "status",
]  # fmt: skip
HISTORY_COLUMNS = [
    "variant", "model", "seed", "epoch", "split", "loss", "accuracy", "seconds", "learning_rate",
    "gradient_norm",
]  # fmt: skip
COMPLETED, FAILED, MISSING = "completed", "failed", "missing"


def metrics(label: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy and macro precision, recall and F1, as fractions, of labels (N,)."""
    precision, recall, f1, _ = precision_recall_fscore_support(
        label, predicted, average="macro", zero_division=0.0
    )
    values = {"accuracy": accuracy_score(label, predicted), "precision": precision}
    values |= {"recall": recall, "f1": f1}
    return {name: float(value) for name, value in values.items()}


def environment() -> dict:
    """The versions, commit, machine and time that a run's record states."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "pandas", "snakemake", "papermill")
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        commit = ""
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "commit": commit or "unknown",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True)
class Run:
    """One run's folder, read lazily: `record` is run.json, the rest its other files."""

    folder: Path
    record: dict

    @cached_property
    def parameters(self) -> RunParameters:
        """Everything the run depended on."""
        return validate(RunParameters, self.record["parameters"], str(self.folder / "run.json"))

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch and split (`HISTORY_COLUMNS`)."""
        return read_csv(self.folder / "history.csv", f"delete {self.folder} and run it again")

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """`label` (N,) and `predicted` (N,), both uint8, over the test images in order."""
        return self._tensors("predicted")

    @property  # not cached: a thousand runs of these would fill the memory
    def logits(self) -> np.ndarray:
        """Class scores (N, K), float32, over the test images in order."""
        return self._tensors("logits")["logits"]

    @cached_property
    def recurrent(self) -> dict[str, np.ndarray]:
        """The A-GRU's `weight_hh` (E + 1, H, H) and `epsilon` (E + 1,), initial and each epoch."""
        return self._tensors("recurrent")

    @cached_property
    def model(self) -> SequenceClassifier:
        """The model at its best epoch, in evaluation mode."""
        return self._model("best")

    @cached_property
    def initial_model(self) -> SequenceClassifier:
        """The model before its first step, in evaluation mode."""
        return self._model("initial")

    def _model(self, name: str) -> SequenceClassifier:
        data = self.record["data"]
        random = generator(self.parameters.seed, "initialisation")  # overwritten below
        model = build_model(self.parameters, data["input_size"], data["classes"], random)
        state = {key: torch.from_numpy(value) for key, value in self._tensors(name).items()}
        model.load_state_dict(state)
        return model.eval()

    def _tensors(self, name: str) -> dict[str, np.ndarray]:
        path = self.folder / f"{name}.safetensors"
        try:
            return safetensors.numpy.load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is missing or damaged; delete {self.folder} and run it again."
            ) from error


def load_run(folder: Path | str) -> Run:
    """The run in a folder such as reports/quick/runs/agru-seed42: its model and results.

    Raises:
        UserError: The folder holds no readable run.json.
    """
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Run(path.parent, record | {"status": record["status"]})
    except (OSError, ValueError, TypeError, KeyError) as error:  # or no record of a run
        raise UserError(
            f"{path} is missing or damaged; delete {path.parent} and run it again."
        ) from error


def write_record(folder: Path, record: dict) -> None:
    """Write run.json, which says how a run ended."""
    write_file(folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, safetensors.torch.save(tensors))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy frame, numbers in full precision."""
    write_file(path, frame.to_csv(index=False))


def read_csv(path: Path, remedy: str = "make the report again") -> pd.DataFrame:
    """Read a tidy frame.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("the last line is cut off")
        return pd.read_csv(StringIO(text))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; {remedy}.") from error


def result_row(record: dict) -> dict:
    """A run's row of results.csv; a run that did not complete has no numbers."""
    test = record.get("test", {})
    row = {name: record.get(name) for name in RESULT_COLUMNS} | test
    row["parameters"] = record.get("parameter_count")
    row["free_parameters"] = record.get("free_parameter_count")
    return {name: row[name] for name in RESULT_COLUMNS}


def run_folders(report: Path, protocol: Protocol) -> list[Path]:
    """The folders of all runs that the protocol asks for, finished or not, in order."""
    variants = protocol.parameterisations()
    return [report / f"runs/{name}-seed{seed}" for name in variants for seed in protocol.seeds]


def collect(runs: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame, list[dict]]:
    """Results and history of these run folders, and the records of those that did not complete.

    Args:
        runs: The folders that should hold runs (`run_folders`).

    Returns:
        results (`RESULT_COLUMNS`, one row a run, failed and missing ones too),
        history (`HISTORY_COLUMNS`, of completed runs), and the records of the other runs, each
        with `variant, seed, status, reason`.
    """
    records, histories = [], []
    for folder in runs:
        try:
            run = load_run(folder)
            if run.record["status"] == COMPLETED:
                run.predictions  # noqa: B018 (it must be readable, as the history must)
                histories.append(run.history)
            records.append(run.record)
        except UserError as error:
            variant, _, seed = folder.name.rpartition("-seed")
            reason = f"it did not finish; logs/{folder.name}.txt says how far it got"
            if (folder / "run.json").exists():  # it did, and was damaged afterwards
                reason = str(error)
            records.append(
                {"variant": variant, "seed": int(seed), "status": MISSING, "reason": reason}
            )
    results = pd.DataFrame([result_row(record) for record in records], columns=RESULT_COLUMNS)
    history = pd.concat(histories) if histories else pd.DataFrame(columns=HISTORY_COLUMNS)
    lost = [record for record in records if record["status"] != COMPLETED]
    return results, history.reset_index(drop=True), lost


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """The table of a report: one row a variant, over its completed runs.

    Returns:
        Columns `variant, seeds`, then mean and `_sd` (ddof 1) of the test metrics as fractions,
        `parameters, free_parameters`, and the mean `epochs` and `best_epoch`.
    """
    completed = results[results["status"] == COMPLETED]
    groups = completed.groupby("variant", sort=False)
    columns = {"seeds": groups["seed"].nunique()}
    for name in ("accuracy", "precision", "recall", "f1"):
        columns |= {name: groups[name].mean(), f"{name}_sd": groups[name].std(ddof=1)}
    columns |= {name: groups[name].first() for name in ("parameters", "free_parameters")}
    columns |= {name: groups[name].mean() for name in ("epochs", "best_epoch")}
    return pd.DataFrame(columns).reset_index()


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The summary as text for people: percent with sd, thousands separated."""

    def percent(name: str) -> pd.Series:
        return table.apply(
            lambda row: f"{100 * row[name]:.2f}"
            + ("" if pd.isna(row[f"{name}_sd"]) else f" ± {100 * row[f'{name}_sd']:.2f}"),
            axis=1, result_type="reduce",
        )  # fmt: skip

    return pd.DataFrame(
        {
            "variant": table["variant"],
            "seeds": table["seeds"],
            "accuracy %": percent("accuracy"),
            "precision %": percent("precision"),
            "recall %": percent("recall"),
            "F1 %": percent("f1"),
            "parameters": table["parameters"].map("{:,.0f}".format),
            "free": table["free_parameters"].map("{:,.0f}".format),
            "epochs": table["epochs"].map("{:.1f}".format),
            "best epoch": table["best_epoch"].map("{:.1f}".format),
        }
    )


def verify(report: Path) -> pd.DataFrame:
    """Recompute the metrics of every completed run in results.csv from its saved predictions.

    Returns:
        The rows of results.csv that were recomputed.

    Raises:
        UserError: A number in results.csv is not what the predictions give, to the last digit.
    """
    results = read_csv(report / "results.csv")
    results = results[results["status"] == COMPLETED]
    for row in results.to_dict("records"):
        run = load_run(report / f"runs/{row['variant']}-seed{row['seed']}")
        for name, value in metrics(**run.predictions).items():
            if row[name] != value:
                raise UserError(
                    f"{report / 'results.csv'}: {run.folder.name} has {name} {row[name]!r}, but "
                    f"its saved predictions give {value!r}; make the report again."
                )
    return results


def write_summary(path: Path, results: pd.DataFrame, lost: list[dict]) -> None:
    """Write the table of a report as Markdown, and each run that did not complete under it."""
    table = formatted(summary(results)).to_markdown(index=False, disable_numparse=True)
    text = f"# Test results\n\nMean ± standard deviation over seeds.\n\n{table}\n"
    for run in lost:
        text += f"\n{run['variant']}, seed {run['seed']}, is {run['status']}: {run['reason']}\n"
    write_file(path, text)
