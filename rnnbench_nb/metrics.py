"""How answers are judged: one kind of metrics for each kind of answer."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """The score of one test example, where more is better; the score of a run is their mean.

    Attributes:
        name: The column of results.csv that holds it.
        scale: The factor by which it is multiplied where people read it (100 for percent).
        unit: What follows the number there, such as "%".
        difference: What follows a difference of two scores, such as "points".
    """

    name: str = "accuracy"
    scale: float = 100.0
    unit: str = "%"
    difference: str = "points"


class Metrics(NamedTuple):
    """One kind of metrics.

    Attributes:
        score: What a test example is judged by.
        names: The columns of results.csv that judge a run, the mean score first.
        loss_label: The training loss with its unit, for the axis of a figure.
        note: A sentence on what the names mean, if they are not plain.
        scores: The function from targets and answers, N rows each, to the scores (N,).
        values: The function from targets and answers to the values of `names`.
    """

    score: Score
    names: tuple[str, ...]
    loss_label: str
    note: str
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray]
    values: Callable[[np.ndarray, np.ndarray], dict[str, float]]


def correct(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 for each class (N,) that is right, else 0."""
    return (predicted == label).astype(float)


def recalled(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The fraction of the symbols of each example (N, symbols) that are right."""
    return (predicted == label).mean(1)


def negative_square(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The negative squared error of each number (N,)."""
    return -np.square(predicted - label, dtype=float)


def classification(label: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-averaged precision, recall and F1 of classes (N,), as fractions.

    The classes are those that occur in `label` or `predicted`. A class that is never predicted
    has precision 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    macro = precision_recall_fscore_support(label, predicted, average="macro", zero_division=0.0)
    names = ("accuracy", "precision", "recall", "f1")
    values = (correct(label, predicted).mean(), *macro[:3])
    return dict(zip(names, map(float, values), strict=True))


METRICS = {
    "classification": Metrics(
        Score(),
        ("accuracy", "precision", "recall", "f1"),
        "Cross entropy (nats)",
        "Precision, recall and F1 are means over the classes.",
        correct,
        classification,
    ),
    "regression": Metrics(
        Score("negative_mse", 1.0, "", ""),
        ("negative_mse",),
        "Squared error",
        "The score is the mean squared error with a minus sign, so that more is better.",
        negative_square,
        lambda label, predicted: {"negative_mse": float(negative_square(label, predicted).mean())},
    ),
    "symbols": Metrics(
        Score("recalled"),
        ("recalled",),
        "Cross entropy (nats a step)",
        "Recalled is the fraction of the ten symbols that are right.",
        recalled,
        lambda label, predicted: {"recalled": float(recalled(label, predicted).mean())},
    ),
}
