import json
import math
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import rnnbench_here
from in_process import execute
from numbers_on_pages import shown, unexplained

from rnnbench_nb import bench
from rnnbench_nb.bench import REFERENCE, Shape
from rnnbench_nb.cells.kernels import agru as kernel
from rnnbench_nb.errors import UserError
from rnnbench_nb.protocol import NO_GPU


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
    table = bench.summarise(pd.DataFrame(rows), {"highest": bench.operations(REFERENCE) * 4.0})
    ours = table.set_index("model").loc["agru"]
    assert ours["milliseconds"] == 1000
    assert (ours["gru_ratio"], ours["lstm_ratio"]) == (3, 6)
    assert ours["spread"] == 0.5
    assert ours["limit_share"] == 0.25
    assert table.set_index("model")["limit_share"][["gru", "lstm"]].isna().all()


def test_the_sentences_say_what_was_measured():
    times = {"gru": 0.3, "lstm": 0.6, "agru": 0.1, "agru loop": 0.2}
    rows = [
        REFERENCE._asdict() | {"task": "train", "model": model, "round": i, "seconds": seconds}
        for model, seconds in times.items()
        for i in range(3)
    ]
    parts = dict.fromkeys(("forward", "backward", "optimiser"), 1.0)
    parts = {name: {"data": data, **parts, "evaluation": 1.0}
             for name, data in (("gru", 6.0), ("lstm", 1.0), ("agru", 0.0))}  # fmt: skip
    machine = {"processor": "P", "torch": "2", "paths": {"agru": "kernel (AVX2)"}}
    limit = bench.operations(REFERENCE) / 0.1 / 0.5  # half of it is reached
    report = {"rows": rows, "limits": {"highest": limit}, "parts": parts, "memory": {"agru": 10.0}}
    report["machine"] = machine
    table, seconds, memory = bench.tables(report)
    assert memory.iloc[0, 0] == 10.0 and seconds["total"].tolist() == [10.0, 5.0, 4.0]
    first, step, epoch = bench.sentences(report, table, seconds)
    under = bench.caption(report, table)
    assert "of up to 3 rounds" in under
    assert under.endswith("Highest: 6.00 (LSTM, T = 28); lowest: 3.00 (GRU, T = 28).")
    assert table.set_index("model")["path"][["agru", "agru loop"]].tolist() == [
        "kernel (AVX2)", "loop",
    ]  # fmt: skip
    assert first.startswith("P, torch 2; A-GRU: kernel (AVX2). One core reaches")
    assert "100.0 ms, 3.00 times as fast as torch's GRU and 6.00 times as fast as" in step
    assert "at 50% of the arithmetic limit" in step
    assert "takes 0.40 of the GRU's time and 0.80 of the LSTM's time, and 25% of it" in epoch


def test_medium_stands_beside_highest_with_its_own_path():
    rows = [
        REFERENCE._replace(precision=precision)._asdict()
        | {"task": "train", "model": model, "round": i, "seconds": seconds[precision]}
        for model, seconds in {"gru": {"highest": 0.3, "medium": 0.2},
                               "lstm": {"highest": 0.6, "medium": 0.5},
                               "agru": {"highest": 0.2, "medium": 0.1}}.items()
        for precision in seconds
        for i in range(3)
    ]  # fmt: skip
    parts = dict.fromkeys(("data", "forward", "backward", "optimiser", "evaluation"), 1.0)
    machine = {"processor": "P", "torch": "2", "paths": {"agru": "kernel (AVX-512)"}}
    machine["medium_paths"] = {"agru": "kernel (AVX-512, bfloat16 products by AMX)"}
    limits = {"highest": 1e12, "medium": 4e12}
    report = {"rows": rows, "limits": limits, "machine": machine, "memory": {"agru": 10.0}}
    report["parts"] = {name: parts for name in ("gru", "lstm", "agru")}
    table, seconds, _ = bench.tables(report)
    ours = table[table["model"] == "agru"].set_index("precision")["path"]
    assert ours.to_dict() == {
        "highest": "kernel (AVX-512)", "medium": "kernel (AVX-512, bfloat16 products by AMX)",
    }  # fmt: skip
    _, highest, medium, _ = bench.sentences(report, table, seconds)
    assert "precision highest: a training step takes 200.0 ms, 1.50 times" in highest
    assert "as at highest" not in highest
    assert (
        "2.00 times as fast as torch's GRU and 5.00 times as fast as torch's LSTM, 2.00" in medium
    )
    assert "2.00 times as fast as at highest" in medium


def measured(**seconds):
    """Rows of measurements: for each model, the seconds of its rounds."""
    return [
        REFERENCE._asdict() | {"task": "train", "model": model, "round": i, "seconds": value}
        for model, values in seconds.items()
        for i, value in enumerate(values)
    ]


def test_a_noisy_machine_is_not_believed():
    steady = measured(gru=[1.0] * 9, lstm=[1.0] * 9, agru=[1.0, 1.05] * 5)
    assert bench.noise(bench.summarise(pd.DataFrame(steady), {"highest": 1.0})) == ""
    noisy = steady[:-10] + measured(agru=[1.0, 1.3] * 5)
    told = bench.noise(bench.summarise(pd.DataFrame(noisy), {"highest": 1.0}))
    assert "too noisy" in told and "those of agru at T = 28 (train)" in told and "26%" in told


def test_two_measurements_are_compared(tmp_path):
    wave = [0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03]
    before = {"rows": measured(agru=[2 * x for x in wave], gru=wave, gone=wave)}
    after = {"rows": measured(agru=wave, gru=[x + 0.001 for x in wave], new=wave)}
    paths = []
    for name, report in (("before", before), ("after", after)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(report))
    assert all(math.isnan(limit) for limit in bench.read(paths[0])["limits"].values())
    table = bench.compare(*map(bench.read, paths)).set_index("model")
    assert list(table.index) == ["agru", "gru"]
    assert table.loc["agru", "ratio"] == 2 and table.loc["agru", "verdict"] == "faster"
    assert table.loc["gru", "verdict"] == "the same"
    swapped = bench.compare(after, before).set_index("model")
    assert swapped.loc["agru", "verdict"] == "slower"
    told = rnnbench_here("bench", "--compare", *paths)
    assert "faster" in told.stdout and told.returncode == 0
    paths[0].write_text("{}")
    refused = rnnbench_here("bench", "--compare", *paths)
    assert refused.returncode == 1 and "before.json holds no measurements" in refused.stderr


def test_every_number_on_the_page_is_measured_or_in_a_table(tmp_path):
    wave = [0.97, 1.0, 1.01]
    rows = measured(**{name: [i * x for x in wave] for i, name in enumerate(bench.TIMED, 1)})
    rows += [row | {"task": "infer"} for row in rows]
    parts = ("data", "forward", "backward", "optimiser", "evaluation")
    names = bench.BASELINES + bench.FAST
    report = {
        "machine": bench.machine(), "limits": {"highest": 1.23e11}, "rows": rows,
        "parts": {n: {p: 1.1 * i + j for j, p in enumerate(parts)} for i, n in enumerate(names)},
        "memory": {name: 100.0 + i for i, name in enumerate(names)},
    }  # fmt: skip
    (tmp_path / "speed.json").write_text(json.dumps(report))
    measurement = str(tmp_path / "speed.json")
    executed = execute("05_speed", tmp_path / "out.ipynb", measured=measurement)
    frames = dict(zip("abc", bench.tables(report), strict=True))
    frames["limit"] = pd.DataFrame({"GFLOP/s": [report["limits"]["highest"] / 1e9]})
    found = [*shown(executed)]
    assert sum(map(len, found)) > 500 and "times as fast as torch's" in " ".join(found)
    given = SimpleNamespace(frames=frames, findings=[])
    machine = report["machine"]
    names = [machine["processor"], machine["torch"], *machine["paths"].values(), "T = 784"]
    assert unexplained(executed, [given], names) == []


def test_every_model_is_timed_in_turn_and_the_settings_come_back():
    threads = bench.torch.get_num_threads()
    shape = Shape(28, 8, 4, 2, "medium")
    rows = list(bench.measure(shape, rounds=3, seconds=60))
    assert bench.torch.get_num_threads() == threads
    assert bench.torch.get_float32_matmul_precision() == "highest"
    order = [row["model"] for row in rows if row["task"] == "train"]
    assert order == ["gru", "lstm", "agru", "agru loop"] * 3
    assert all(row["seconds"] > 0 for row in rows)


def test_the_loop_row_does_without_the_kernel(monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "refusal", lambda tensors: calls.append(1) or "not now")
    bench.step_of("agru loop", "infer", Shape(28, 8, 4, 1))()
    assert not calls
    bench.step_of("agru", "infer", Shape(28, 8, 4, 1))()
    assert calls


def test_the_limit_is_that_of_a_processor():
    limits = bench.arithmetic_limits(rounds=2)
    if not math.isnan(limits["highest"]):
        assert 1e9 < limits["highest"] < 1e12 and 0.5 * limits["highest"] < limits["medium"] < 1e13


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_at_once():
    done = rnnbench_here("bench", "--device", "cuda")
    assert (done.returncode, done.stderr) == (1, f"rnnbench: {NO_GPU}\n")


def test_measurements_without_parts_are_no_page_of_speed_and_say_so():
    with pytest.raises(UserError, match="lack the parts of an epoch"):
        bench.tables({"machine": {}, "limits": bench.NO_LIMITS, "rows": []})


def test_without_a_limit_nothing_is_said_of_one():
    found = {"processor": "P", "torch": "2", "paths": {"agru": "loop as a CUDA graph"}}
    report = {"machine": found, "limits": bench.NO_LIMITS}
    assert bench._machine_sentence(report) == "P, torch 2; A-GRU: loop as a CUDA graph."


def test_an_epoch_by_part_on_one_thread(monkeypatch):
    threads = []

    monkeypatch.setattr(bench, "evaluate", lambda *_: threads.append(torch.get_num_threads()))
    with bench.on_threads(2):
        parts = bench.epoch_parts("agru", examples=300, evaluated=50)
        assert torch.get_num_threads() == 2
    assert threads == [1]
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
    assert {row["model"] for row in written["rows"]} == {"lstm", "gru", "agru", "agru loop"}
    assert written["machine"]["paths"]["agru"].startswith(("kernel", "loop"))
    assert "x GRU" in result.stdout


def test_a_wrong_shape_gets_one_sentence():
    result = rnnbench_here("bench", "--shape", "28,128")
    assert result.returncode == 1
    assert result.stderr.startswith("rnnbench: --shape: write four whole numbers")
