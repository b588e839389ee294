"""How answers are judged: one kind of metrics for each kind of answer."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """The score of one test example, where more is better; the score of a run is their mean.

    `name` is its column in results.csv. People read it multiplied by `scale` (100 for percent)
    and followed by `unit`, and a difference of two followed by `difference`.
    """

    name: str = "accuracy"
    scale: float = 100.0
    unit: str = "%"
    difference: str = "points"


class Metrics(NamedTuple):
    """One kind of metrics.

    Attributes:
        score: The score of a test example.
        names: The columns of results.csv that judge a run, the mean score first.
        loss_label: The training loss with its unit, for the axis of a figure.
        note: A sentence that explains the names.
        scores: Computes the score of each of N examples (N,) from targets and answers.
    """

    score: Score
    names: tuple[str, ...]
    loss_label: str
    note: str
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def values(self, label: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Compute the values of `names` from targets and answers, N rows each.

        Precision, recall and F1 (0 to 1) are means over the classes in either; a class that is
        never predicted has precision 0.
        """
        values = [float(self.scores(label, predicted).mean())]
        if len(self.names) > 1:
            from sklearn.metrics import precision_recall_fscore_support as by_class

            macro = by_class(label, predicted, average="macro", zero_division=0.0)
            values += map(float, macro[:3])
        return dict(zip(self.names, values, strict=True))


METRICS = {
    "classification": Metrics(
        Score(),
        ("accuracy", "precision", "recall", "f1"),
        "Cross entropy (nats)",
        "Precision, recall and F1 are means over the classes.",
        lambda label, predicted: (predicted == label).astype(float),
    ),
    "regression": Metrics(
        Score("negative_mse", 1.0, "", ""),
        ("negative_mse",),
        "Squared error",
        "The score is the mean squared error with a minus sign, so that more is better.",
        lambda label, predicted: -np.square(predicted - label, dtype=float),
    ),
    "symbols": Metrics(
        Score("recalled"),
        ("recalled",),
        "Cross entropy (nats a step)",
        "Recalled is the fraction of the ten symbols that are right.",
        lambda label, predicted: (predicted == label).mean(1),
    ),
}
