"""Answers that are right or wrong: confidence and accuracy, and models example by example."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import softmax
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar


def reliability_table(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Confidence (the largest probability) against accuracy in bins of equal width.

    Args:
        logits: Class scores or log-probabilities (N, K).
        label: True classes (N,).
        bins: Number of bins on [0, 1].

    Returns:
        One row a bin: `low, high, count`, and mean `confidence` and `accuracy` (NaN if empty).
    """
    parts = np.array_split(logits, len(logits) // 10_000 + 1)  # for the memory of a large sweep
    confidence = np.concatenate([softmax(part.astype(float), axis=1).max(1) for part in parts])
    confidence = confidence.clip(0, 1)
    right = (np.argmax(logits, axis=1) == label).astype(float)
    means, edges, bin_of = stats.binned_statistic(
        confidence, [confidence, right], "mean", bins=bins, range=(0, 1)
    )
    return pd.DataFrame({
        "low": edges[:-1], "high": edges[1:],
        "count": np.bincount(bin_of - 1, minlength=bins),
        "confidence": means[0], "accuracy": means[1],
    })  # fmt: skip


def expected_calibration_error(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    """Mean gap of confidence and accuracy over the bins, weighted by count (Guo et al. 2017)."""
    table = reliability_table(logits, label, bins).query("count > 0")
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gap, weights=table["count"]))


def mcnemar_per_seed(
    right_a: np.ndarray, right_b: np.ndarray, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """McNemar's exact test for each seed: about two fitted models, never about two architectures.

    Args:
        right_a: Whether each example was right, (S, N), one row a seed.
        right_b: Likewise (S, N), the same seeds.
        seeds: The seeds of the rows; 0 to S - 1 if None.

    Returns:
        `seed, both_right, only_a, only_b, both_wrong` (examples) and `p`.
    """
    rows = []
    for pair in zip(right_a.astype(bool), right_b.astype(bool), strict=True):
        table = confusion_matrix(*pair, labels=[True, False])
        rows.append([*table.ravel(), mcnemar(table, exact=True).pvalue])
    columns = ["both_right", "only_a", "only_b", "both_wrong", "p"]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[:-1], int))
    frame.insert(0, "seed", range(len(rows)) if seeds is None else seeds)
    return frame


def mcnemar_sentence(table: pd.DataFrame, a: str, b: str, level: float = 0.95) -> str:
    """What `mcnemar_per_seed` says: how many pairs of fitted models differ, and no more."""
    return (
        f"McNemar's exact test tells the fitted {a} from the fitted {b} of the same seed in "
        f"{(table['p'] <= 1 - level).sum()} of {len(table)} pairs at the {100 * (1 - level):.3g}% "
        f"level, uncorrected (on average {table['only_a'].mean():.1f} examples only {a} gets, "
        f"{table['only_b'].mean():.1f} only {b}): about these fitted models, not the architectures."
    )


def disagreements(correct: Mapping[str, np.ndarray], missed: float = 0.5) -> pd.DataFrame:
    """Examples that one variant gets with every seed and the others mostly miss.

    Args:
        correct: For each variant, whether each example was right (S, N).
        missed: Least share of the others' runs (each variant weighing the same) that miss it.

    Returns:
        `variant` (the one that is right), `example` (index), `missed` (share), worst first.
    """
    right = pd.DataFrame({name: np.mean(runs, axis=0) for name, runs in correct.items()})  # (N, V)
    rows = []
    for variant in right:
        share = 1 - right.drop(columns=variant).mean(axis=1)
        share = share[(right[variant] == 1) & (share >= missed)].sort_values(
            ascending=False, kind="stable"
        )
        rows += [(variant, example, value) for example, value in share.items()]
    return pd.DataFrame(rows, columns=["variant", "example", "missed"])
