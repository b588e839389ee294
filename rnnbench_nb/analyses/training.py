"""One run: its size, its worst mistakes, and what it says. The page 02_train."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from rnnbench_nb import statistics
from rnnbench_nb.analyses import Analysis
from rnnbench_nb.report import Run, labels, looks

LEVEL = 0.95
SHOWN = 16  # mistakes


def analyse(run: Run) -> Analysis:
    """What the page of one run shows: the frames `facts` and `worst`, and a sentence or two."""
    found = Analysis({"facts": facts(run), "worst": worst(run)})
    score, label = run.task.score, labels({run.key[0]: run.parameters})[run.key[0]]
    examples, mean = len(run.scores), float(run.scores.mean())
    low, high = statistics.example_interval(run.scores, LEVEL)
    head = statistics.with_unit(statistics.shown(mean, score), score)
    ends = statistics.shown_range(low, high, score, "")
    found.say(
        f"{label} with seed {run.key[1]} has a mean {score.name} of {head} on {examples:,} test "
        f"examples ({100 * LEVEL:g}% interval {ends}, for new examples and this one fitted model).",
        examples=examples, mean=mean, low=low, high=high, level=LEVEL, seed=run.key[1],
    )  # fmt: skip
    names = run.record["data"].get("class_names", [])
    if names:
        wrong = pd.Series(1 - run.scores).groupby(run.predictions["label"]).mean()
        most, least = wrong.idxmax(), wrong.idxmin()
        found.say(
            f"Class {names[most]} is the hardest, with {100 * wrong[most]:.1f}% errors; "
            f"{names[least]} is the easiest, with {100 * wrong[least]:.1f}%.",
            most=wrong[most], least=wrong[least],
        )  # fmt: skip
    found.say(
        "One run says nothing about the architecture: another seed moves the score by about as "
        "much as that interval is wide. Compare seeds before models."
    )
    return found


def facts(run: Run) -> pd.DataFrame:
    """The size and the cost of a run, as text: columns `what, value`."""
    record = run.record
    return pd.DataFrame({
        "trained parameters": f"{record['parameter_count']:,}",
        "of them free": f"{record['free_parameter_count']:,}",
        "epochs": str(record["epochs"]),
        f"best epoch (validation {run.task.score.name})": str(record["best_epoch"]),
        "seconds of training and validation": f"{record['seconds']:.1f}",
        "device": f"{record['device']}, {record['threads']} thread(s)",
    }.items(), columns=["what", "value"])  # fmt: skip


def worst(run: Run, count: int = SHOWN) -> pd.DataFrame:
    """The test examples of the highest loss, of a task with classes among the wrong answers.

    Returns:
        Columns `example` (index), `loss`, `score` and `text`: the true class, the answer, and the
        probability of the answer; or the score, where there are no classes.
    """
    outputs = torch.from_numpy(run.outputs)
    truth, predicted = run.predictions["label"], run.predictions["predicted"]
    targets = truth.astype(np.int64) if truth.dtype.kind in "iu" else truth
    losses = run.task.losses(outputs, torch.from_numpy(targets)).numpy()
    names = run.record["data"].get("class_names", [])
    order = np.argsort(-losses, kind="stable")
    if names:
        order = order[run.scores[order] < 1]
        sure = outputs.softmax(1).max(1).values
    order = order[:count]
    texts = [
        f"{names[truth[i]]} → {names[predicted[i]]} ({sure[i]:.2f})"
        if names
        else statistics.with_unit(statistics.shown(run.scores[i], run.task.score), run.task.score)
        for i in order
    ]
    return pd.DataFrame(
        {"example": order, "loss": losses[order], "score": run.scores[order], "text": texts}
    )


def report_of(run: Run) -> SimpleNamespace:
    """What figures ask a report for, of one run alone."""
    variants = {run.key[0]: run.parameters}
    return SimpleNamespace(
        variants=variants, labels=labels(variants), looks=looks(variants), task=run.task
    )
