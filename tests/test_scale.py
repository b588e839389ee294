"""A thousand runs: what planning and reading them cost."""

import resource
import time

import pytest
from conftest import write_tiny
from small_reports import write_small

from rnnbench_nb import launch
from rnnbench_nb.cells import CELLS
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.results import Report, summary, write_tables
from rnnbench_nb.verify import verify

SEEDS = 100
NAMES = [name for name in CELLS if name != "module"]


@pytest.mark.slow
def test_a_thousand_runs_are_planned_and_read_without_pain(tmp_path):
    parameters = write_tiny(tmp_path / "p.yaml", models=f"[{', '.join(NAMES)}]", runs=SEEDS)
    accuracies = {name: [0.9 + i / 2000 for i in range(SEEDS)] for name in NAMES}
    start = time.monotonic()
    protocol = load_protocol(parameters)
    launch.prepare(tmp_path / "planned", protocol, "p")
    assert len(launch.runs_of(protocol)) == len(NAMES) * SEEDS == 1000
    report = Report(write_small(tmp_path / "report", accuracies))
    assert len(report.results.query("status == 'completed'")) == 1000
    assert len(summary(report.results)) == len(NAMES) and len(report.history)
    write_tables(report)
    verify(report)
    assert time.monotonic() - start < 240
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2e6  # kB
