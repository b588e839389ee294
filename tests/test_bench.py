import json
import math
import sys

import pandas as pd
import pytest
from conftest import rnnbench_here

from rnnbench_nb import bench
from rnnbench_nb.bench import REFERENCE, Shape


def test_operations_by_hand():
    # forward: 3 * 128 * (28 + 128 + 1) multiply-adds; twice that, and 3 * 128^2, backward
    assert bench.operations(REFERENCE) == 2 * 28 * 128 * (2 * 384 * 157 + 3 * 128**2)
    assert bench.operations(REFERENCE) == pytest.approx(1.21e9, rel=0.01)
    assert REFERENCE.features == 28
    assert Shape(784, 64, 32, 1).features == 1


def test_summary_by_hand():
    times = {"gru": [2.0, 4.0, 3.0], "lstm": [6.0, 6.0, 6.0], "agru": [1.0, 1.0, 2.0]}
    rows = [
        REFERENCE._asdict() | {"task": "train", "model": model, "round": i, "seconds": seconds}
        for model, values in times.items()
        for i, seconds in enumerate(values)
    ]
    table = bench.summarise(pd.DataFrame(rows), limit=bench.operations(REFERENCE) * 4.0)
    ours = table.set_index("model").loc["agru"]
    assert ours["milliseconds"] == 1000
    assert (ours["gru_ratio"], ours["lstm_ratio"]) == (3, 6)
    assert ours["spread"] == 0.5
    assert ours["limit_share"] == 0.25
    assert table.set_index("model")["limit_share"][["gru", "lstm"]].isna().all()


def test_every_model_is_timed_in_turn_and_the_settings_come_back():
    threads = bench.torch.get_num_threads()
    shape = Shape(28, 8, 4, 2, "medium")
    rows = list(bench.measure(shape, rounds=3, seconds=60))
    assert bench.torch.get_num_threads() == threads
    assert bench.torch.get_float32_matmul_precision() == "highest"
    order = [row["model"] for row in rows if row["task"] == "train"]
    assert order == ["lstm", "gru", "agru", "loop"] * 3
    assert all(row["seconds"] > 0 for row in rows)


def test_the_loop_row_does_without_the_kernel(monkeypatch):
    calls = []
    monkeypatch.setattr(bench.kernel, "serves", lambda tensors: calls.append(1) or False)
    bench.step_of("loop", "infer", Shape(28, 8, 4, 1))()
    assert not calls
    bench.step_of("agru", "infer", Shape(28, 8, 4, 1))()
    assert calls


def test_the_limit_is_that_of_a_processor():
    limit = bench.arithmetic_limit(rounds=2)
    assert math.isnan(limit) or 1e9 < limit < 1e12


def test_an_epoch_by_part():
    parts = bench.epoch_parts("agru", images=300, evaluated=50)
    assert list(parts) == ["data", "forward", "backward", "optimiser", "evaluation"]
    assert all(seconds > 0 for seconds in parts.values())


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_holds_at_least_the_saved_states():
    shape = Shape(200, 64, 128, 1)
    assert bench.memory("agru", shape) > 4 * 200 * 128 * 64 / 2**20


def test_the_command_writes_what_it_measured(tmp_path):
    path = tmp_path / "bench.json"
    result = rnnbench_here("bench", "--json", path, "--shape", "28,8,4,1")
    assert result.returncode == 0, result.stderr
    written = json.loads(path.read_text())
    assert {row["model"] for row in written["rows"]} == {"lstm", "gru", "agru", "loop"}
    assert written["machine"]["path"].startswith(("kernel", "loop"))
    assert "x GRU" in result.stdout


def test_a_wrong_shape_gets_one_sentence():
    result = rnnbench_here("bench", "--shape", "28,128")
    assert result.returncode == 1
    assert result.stderr.startswith("rnnbench: --shape: write four whole numbers")
