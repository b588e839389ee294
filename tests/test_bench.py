"""The bench: the cells take turns, and ratios are of medians over the rounds."""

import json

import pandas as pd
import pytest
import torch
from conftest import one_sentence, rnnbench_here

from rnnbench_nb import bench
from rnnbench_nb.bench import BASELINES, FAST, LOOP, Shape
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


def test_arithmetic_is_that_of_a_training_and_as_before_afterwards(monkeypatch):
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tiny, seen = torch.tensor(1e-39), set()
    monkeypatch.setattr(bench, "step_of", lambda *_: lambda: seen.add((tiny * 1).item()))
    list(bench.measure(TINY._replace(threads=2, precision="medium"), ["gru"], rounds=1))
    assert seen == {0.0}  # no denormal numbers
    assert before == (torch.get_num_threads(), torch.get_float32_matmul_precision())


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
    rows = [
        TINY._asdict() | {"task": "train", "model": name, "round": number, "seconds": seconds}
        for name, each in times.items()
        for number, seconds in enumerate(each)
    ]
    table = bench.summarise(pd.DataFrame(rows)).set_index("model")
    assert table.loc["agru", ["milliseconds", "spread", "gru_ratio", "lstm_ratio"]].tolist() == [
        2000.0,
        0.5,
        2.0,
        4.0,
    ]
    assert table.loc["gru", "gru_ratio"] == 1.0


def test_the_command_prints_ratios_and_writes_a_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", [TINY, TINY._replace(precision="medium")])
    path = tmp_path / "speed.json"
    command = ["bench", "--models", "agru_heun loop", "--json", path]
    result = rnnbench_here(*command)
    assert "gru_ratio" in result.stdout and "agru_heun loop" in result.stdout
    report = json.loads(path.read_text())
    assert len(report["rows"]) == 2 * 2 * 3 * bench.ROUNDS
    assert report["machine"]["torch"] == torch.__version__
    before = path.read_bytes()
    assert "name a new one" in one_sentence(rnnbench_here(*command))
    assert "--models" in one_sentence(rnnbench_here("bench", "--models", "agru_hun"))
    assert path.read_bytes() == before


def test_a_gpu_that_is_missing_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device: cuda needs a GPU" in one_sentence(rnnbench_here("bench", "--device", "cuda"))


def test_the_published_measurements_are_summarised():
    rows = json.loads((PROJECT / "reports/published/precision/speed.json").read_text())["rows"]
    assert set(bench.MODELS) <= set(bench.summarise(pd.DataFrame(rows))["model"])
