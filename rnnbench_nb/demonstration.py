"""Small reports, trained while one looks: for the first notebook, and before there is a report."""

import atexit
import shutil
import time
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
import torch
from IPython.display import DisplayHandle, Markdown

from rnnbench_nb import figures
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.metrics import Score
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.progress import in_words
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report, history_columns, said
from rnnbench_nb.runs import CHECKPOINT, train_run

SETTINGS = {"dataset": "digits", "epochs": 5, "learning_rate": 0.003, "hidden_size": 32}


def begin(settings: dict) -> Report:
    """A report of params/quick.yaml with these values, without runs, that goes with the kernel."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    protocol = load_protocol(PROJECT / "params/quick.yaml", settings).resolved()
    figures.say(*([f"**{protocol.note}.**"] if protocol.note else []))
    write_file(folder / "protocol.yaml", to_yaml(protocol.dump()))
    return Report(folder)


def watched(report: Report, variant: str) -> Report:
    """Train one variant of a report with its first seed; what it has learned is drawn every epoch.

    Args:
        report: Its finished runs are drawn too.
        variant: Its name.

    Returns:
        The report with that run.
    """
    parameters, score = report.variants[variant], report.task.score
    folder, start = report.folder / "runs" / parameters.run, time.monotonic()
    words, picture = DisplayHandle(), DisplayHandle()
    words.display(Markdown("The data are read ..."))
    picture.display(Markdown(""))

    def look(line: str) -> None:
        if not (folder / CHECKPOINT).exists():  # nothing is learned yet
            words.update(Markdown(line))
            return
        rows = torch.load(folder / CHECKPOINT, weights_only=True)["history"]
        history = pd.DataFrame(rows, columns=history_columns(score.name))
        text = standing(history, parameters.epochs, time.monotonic() - start, score)
        words.update(Markdown(f"{report.labels[variant]}: {text}"))
        figures.show(
            figures.error_curves(pd.concat([report.history, history]), report),
            "Error or score of the training and the validation examples, by epoch.",
            display_id=picture.display_id, update=True,
        )  # fmt: skip

    train_run(parameters, folder, look)
    return Report(report.folder)


def standing(history: pd.DataFrame, epochs: int, seconds: float, score: Score) -> str:
    """How far a training is, how well it does, and the time that the rest takes at most.

    Args:
        history: Of its epochs so far.
        epochs: Of the budget.
        seconds: Since it began.
        score: Of the task.
    """
    last = history[history["split"] == "validation"].iloc[-1]
    rest = seconds / last["epoch"] * (epochs - last["epoch"])
    left = f"; about {in_words(rest)} left at most" if rest else f"; it took {in_words(seconds)}"
    value = f"{score.scale * last[score.name]:.4g}{score.unit}"
    return f"epoch {last['epoch']} of {epochs}, validation {said(score.name)} {value}{left}."


def demonstration(settings: dict = SETTINGS) -> Report:
    """Train the models of params/quick.yaml on digits, some seconds, in a temporary folder."""
    figures.say(
        "**This is a demonstration:** there is no report yet (`make report` makes one), so a "
        "small one on digits stands in. What it says holds for nothing else."
    )
    report = begin(settings)
    for seed in report.protocol.seeds:
        for parameters in report.protocol.at(seed):
            train_run(parameters, report.folder / "runs" / parameters.run, lambda line: None)
    return Report(report.folder)
