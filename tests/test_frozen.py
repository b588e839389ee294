"""The tables of three published reports, recomputed from their runs, have not moved by a digit."""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from rnnbench_nb.analyses import ablation, comparison
from rnnbench_nb.experiment import PROJECT
from rnnbench_nb.report import Report, read_csv

FROZEN = Path(__file__).with_name("data") / "frozen"
TABLES = sorted(path.relative_to(FROZEN) for path in FROZEN.glob("*/*.csv"))


@cache
def tables(name: str) -> dict[str, pd.DataFrame]:
    """The tables that the package computes today from the records and predictions of a report."""
    report = Report(PROJECT / "reports/published" / name)
    found = comparison.analyse(report).frames
    return found | ({"effects": ablation.analyse(report)["effects"]} if "noise" in name else {})


@pytest.mark.parametrize("path", TABLES, ids=str)
def test_a_published_table_comes_out_as_it_was(path: Path) -> None:
    frozen = read_csv(FROZEN / path)
    today = tables(path.parent.name)[path.stem].reset_index(drop=True)
    words = frozen.columns.intersection(["verdict", "scope"])
    pd.testing.assert_frame_equal(
        today[frozen.columns].drop(columns=words),
        frozen.drop(columns=words),
        check_dtype=False,
        rtol=1e-9,
        atol=1e-12,
    )
