"""Metrics that judge answers, one kind for each kind of answer."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """The score of one test example, higher is better; the score of a run is the mean over them.

    `name` is its column in results.csv. Texts show it multiplied by `scale` (100 for percent) with
    the unit `unit`; a difference of two scores has the unit `difference`.
    """

    name: str = "accuracy"
    scale: float = 100.0
    unit: str = "%"
    difference: str = "points"


class Metrics(NamedTuple):
    """One kind of metrics.

    Attributes:
        score: The kind of score of a test example.
        names: The columns of results.csv that judge a run; the first is the mean score.
        loss_label: The name of the loss with its unit, for the axis of a figure.
        note: A sentence that explains the names.
        scores: A function that computes the scores (N,) from N targets and N answers.
    """

    score: Score
    names: tuple[str, ...]
    loss_label: str
    note: str
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def values(self, label: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Compute the values of `names` from targets and answers, N rows each.

        Precision, recall and F1 (0 to 1) are means over all classes among targets or answers. A
        class that is never predicted has precision 0.
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
