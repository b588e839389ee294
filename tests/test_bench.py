"""The bench: the cells take turns, and ratios are of medians over the rounds."""

import json

import pandas as pd
import pytest
import torch
from conftest import one_sentence, rnnbench_here

from rnnbench_nb import bench
from rnnbench_nb.bench import BASELINES, FAST, LOOP, Shape
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT

TINY = Shape(steps=3, hidden=4, batch=2, threads=1)


def test_every_round_measures_each_cell_once_in_turn():
    names = [*BASELINES, FAST[0]]
    rows = pd.DataFrame(bench.measure(TINY, names, rounds=3))
    assert rows["task"].unique().tolist() == ["train", "infer"]
    for _, part in rows.groupby("task"):
        assert part["model"].tolist() == names * 3
        assert part["round"].tolist() == [number for number in range(3) for _ in names]
    assert (rows["seconds"] > 0).all()
    assert (rows[[*Shape._fields]] == list(TINY)).all(axis=None)


def test_the_threads_and_the_precision_are_as_before_afterwards():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    list(bench.measure(TINY._replace(threads=2, precision="medium"), ["gru"], rounds=1))
    assert before == (torch.get_num_threads(), torch.get_float32_matmul_precision())


def test_denormal_numbers_are_zero_in_a_measurement_as_in_a_training(monkeypatch):
    tiny, seen = torch.tensor(1e-39), []
    monkeypatch.setattr(bench, "step_of", lambda *_: lambda: seen.append((tiny * 1).item()))
    list(bench.measure(TINY, ["gru"], rounds=1))
    assert set(seen) == {0.0}


@pytest.mark.parametrize("name", [*BASELINES, *FAST, FAST[0] + LOOP])
def test_a_training_step_changes_the_weights_and_an_inference_does_not(name, monkeypatch):
    models, build = [], bench.build_model
    monkeypatch.setattr(bench, "build_model", lambda *a: models.append(build(*a)) or models[-1])
    for work in ("train", "infer"):
        step = bench.step_of(name, work, TINY)
        before = [weight.clone() for weight in models[-1].parameters()]
        step()
        pairs = zip(before, models[-1].parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (work == "infer")


def test_ratios_are_those_of_medians_by_hand():
    times = {"gru": [2.0, 4.0, 9.0], "lstm": [8.0, 8.0, 8.0], "agru": [1.0, 2.0, 3.0]}
    rows = [TINY._asdict() | {"task": "train", "model": name, "round": number, "seconds": seconds}
            for name, each in times.items() for number, seconds in enumerate(each)]  # fmt: skip
    table = bench.summarise(pd.DataFrame(rows)).set_index("model")
    assert table.loc["agru", ["milliseconds", "spread", "gru_ratio", "lstm_ratio"]].tolist() == [
        2000.0, 0.5, 2.0, 4.0,
    ]  # fmt: skip
    assert table.loc["gru", "gru_ratio"] == 1.0


def test_the_command_prints_ratios_and_writes_what_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TIMED", [*BASELINES, FAST[0]])
    monkeypatch.setattr(bench.measure, "__defaults__", (bench.TIMED, 2, "cpu"))
    result = rnnbench_here("bench", "--shape", "3,4,2,1", "--json", tmp_path / "speed.json")
    assert "gru_ratio" in result.stdout and result.returncode == 0
    report = bench.read(tmp_path / "speed.json")
    assert len(report["rows"]) == 2 * 2 * 3 and report["machine"]["torch"] == torch.__version__
    again = rnnbench_here("bench", "--shape", "3,4,2,1", "--json", tmp_path / "speed.json")
    assert again.returncode == 0  # its own file may be written again


@pytest.mark.parametrize("shape", ["0,4,2,1", "3,4,2", "3,4,2,1,1,1", "a,b,c,d", ""])
def test_a_wrong_shape_is_a_sentence(shape):
    assert "--shape: write four numbers" in one_sentence(rnnbench_here("bench", "--shape", shape))


def test_a_gpu_that_is_missing_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU is found" in one_sentence(rnnbench_here("bench", "--device", "cuda"))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"rows": []}', '{"rows": [{"steps": 1}]}'])
def test_a_file_that_holds_something_else_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no measurements"):
        bench.read(path)
    one_sentence(rnnbench_here("bench", "--shape", "3,4,2,1", "--json", path))
    assert path.read_text() == content


def test_the_published_measurements_are_read():
    report = bench.read(PROJECT / "reports/published/precision/speed.json")
    table = bench.summarise(pd.DataFrame(report["rows"]))
    assert table["model"].isin(FAST).any()
    assert json.dumps(report["machine"])
