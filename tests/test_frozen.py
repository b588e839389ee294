"""The tables of three published reports, recomputed from their runs, have not moved by a digit."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from rnnbench_nb import results, statistics

FROZEN = Path(__file__).with_name("data") / "frozen"
PUBLISHED = Path(__file__).parents[1] / "reports/published"
TABLES = sorted(path.relative_to(FROZEN) for path in FROZEN.glob("*/*.csv"))
WORDS = ["verdict", "scope", "change"]  # of version 0.1


@cache
def tables(name: str) -> dict[str, pd.DataFrame]:
    """The tables that the package computes today from the records and predictions of a report."""
    report = results.Report(PUBLISHED / name)
    scores = pd.DataFrame(
        [(*run.key, run.scores.mean()) for run in report.runs],
        columns=["variant", "seed", report.score.name],
    )
    groups = scores.groupby("variant", sort=False)[report.score.name]
    summary = groups.agg(n="size", mean="mean", sd="std", min="min", max="max").reset_index()
    summary[["low", "high"]] = [statistics.t_interval(values) for _, values in groups]
    comparison = statistics.comparison(report)
    right = {run.key: run.scores == 1 for run in report.runs}
    rows = []
    for a, b in zip(comparison["a"], comparison["b"], strict=True):
        for seed in report.seeds[a]:
            table = pd.crosstab(right[a, seed], right[b, seed]).to_numpy()[::-1, ::-1]
            rows.append([a, b, seed, *table.ravel(), mcnemar(table, exact=True).pvalue])
    columns = ["a", "b", "seed", "both_right", "only_a", "only_b", "both_wrong", "p"]
    return {
        "comparison": comparison,
        "summary": summary.assign(level=statistics.LEVEL),
        "table": results.summary(report.results),
        "mcnemar": pd.DataFrame(rows, columns=columns),
        "effects": statistics.effects(report) if name == "noise_controls" else pd.DataFrame(),
    }


@pytest.mark.parametrize("path", TABLES, ids=str)
def test_a_published_table_comes_out_as_it_was(path: Path) -> None:
    frozen = pd.read_csv(FROZEN / path)
    frozen = frozen.drop(columns=frozen.columns.intersection(WORDS))
    today = tables(path.parent.name)[path.stem][frozen.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(today, frozen, check_dtype=False, rtol=1e-9, atol=1e-12)


def test_the_verdicts_of_row_mnist_are_those_of_its_intervals() -> None:
    table = tables("row_mnist")["comparison"]
    assert table["verdict"].tolist() == ["equivalent", "better", "better"]
    assert table["small"].tolist() == [False, True, True]  # 0.14 points, the margin being 0.2
    assert np.isfinite(table["family_low"]).all() and not table["reason"].any()
