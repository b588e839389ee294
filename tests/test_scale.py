"""A thousand runs: what planning and reading them cost."""

import resource
import time
from itertools import pairwise

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
def test_a_thousand_runs_are_planned_and_read_without_pain(tmp_path, capsys):
    marks = [time.monotonic()]
    models = f"[{', '.join(NAMES)}]"
    parameters = write_tiny(tmp_path / "p.yaml", models=models, runs=SEEDS)
    protocol = load_protocol(parameters)
    launch.prepare(tmp_path / "planned", protocol, "p")
    assert "Trainings: 1000 " in launch.outline(tmp_path / "planned", protocol)
    marks.append(time.monotonic())
    accuracies = {name: [0.9 + i / 2000 for i in range(SEEDS)] for name in NAMES}
    folder = write_small(tmp_path / "report", accuracies)
    marks.append(time.monotonic())
    report = Report(folder)
    assert len(report.results.query("status == 'completed'")) == len(NAMES) * SEEDS
    assert len(summary(report.results)) == len(NAMES) and len(report.history)
    write_tables(report)
    marks.append(time.monotonic())
    checked = verify(report)
    marks.append(time.monotonic())
    seconds = [after - before for before, after in pairwise(marks)]
    with capsys.disabled():
        print("\n1000 runs, seconds to plan, write, read and verify:", seconds, checked)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2e6  # kB
    assert max(seconds) < 120
