"""The tables of three published reports, recomputed from their runs, have not moved by a digit."""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from rnnbench_nb import results, statistics

FROZEN = Path(__file__).with_name("data") / "frozen"
PUBLISHED = Path(__file__).parents[1] / "reports/published"
TABLES = {
    "comparison": statistics.comparison,
    "effects": statistics.effects,
    "table": lambda report: results.summary(report.results),
}
report = cache(lambda name: results.Report(PUBLISHED / name))


@pytest.mark.parametrize("path", sorted(FROZEN.glob("*/*.csv")), ids=lambda p: f"{p.parent.name}")
def test_a_published_table_comes_out_as_it_was(path):
    frozen = pd.read_csv(path)
    today = TABLES[path.stem](report(path.parent.name))[frozen.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(today, frozen, check_dtype=False, rtol=1e-9, atol=1e-12)
