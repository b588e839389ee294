"""One run from its parameters to its folder: what is written, resumed, copied and refused."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from pandas.testing import assert_frame_equal

from rnnbench_nb import results, runs, training
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import read_file, write_json
from rnnbench_nb.folders import RECORDS
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import Report, load_run
from rnnbench_nb.runs import load_model, new_marker, stale_runs, task_of, train_run
from rnnbench_nb.training import evaluate


def change(**values):
    return run_parameters({"model": "gru", **TINY, **values}, "the test")


def quiet(line):
    """No progress."""


@pytest.fixture(autouse=True)
def project(monkeypatch, tmp_path):
    """A project of its own, whose runs are measured by one row."""
    table = pd.DataFrame({"variant": ["gru"], "seed": [42], "moment": ["trained"], "x": [0.5]})
    measured = {"stability": table}, {"growth": "ValueError: no Jacobian"}
    monkeypatch.setattr(runs, "measure", lambda *args: measured)
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    return tmp_path / "reports"


@pytest.fixture
def run(project):
    return train_run(change(), project / "first/runs/gru-seed42", quiet)


def test_a_finished_run_is_whole(run):
    record, task = run.record, task_of(change())
    test = task.load(42).test
    loss, score, outputs = evaluate(load_model(run), test, task)
    assert record["test"]["loss"] == pytest.approx(loss) and record["test"]["accuracy"] == score
    assert run.scores.mean() == score
    assert (run.predictions["predicted"] == outputs.argmax(1).numpy()).all()
    assert (run.predictions["label"] == test.targets.numpy()).all()
    assert run.predictions["label"].dtype == np.uint8
    assert list(run.history) == results.history_columns("accuracy")
    assert list(run.history["epoch"]) == [1, 1, 2, 2] and set(run.history["seed"]) == {42}
    known = {"versions", "commit", "device", "processor", "started", "finished", "threads"}
    assert known < record.keys() and record["path"] == "torch.nn.GRU"
    assert record["unmeasured"] == {"growth": "ValueError: no Jacobian"}
    assert run.tables()["stability"]["x"].tolist() == [0.5]
    names = ["history.csv", "measures/stability.parquet", "predictions.safetensors"]
    assert sorted(record["hashes"]) == names and record["hashes"] == results.digests(run.folder)
    assert json.loads((run.folder / "progress.json").read_text())["epoch"] == 2


def test_a_finished_run_is_read_and_other_parameters_are_refused(run, monkeypatch):
    monkeypatch.setattr(runs, "fit", None)
    assert train_run(change(), run.folder, quiet).record == run.record
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="has a run with other parameters"):
        train_run(change(epochs=3), run.folder, quiet)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_test_examples_are_looked_at_once_and_last(project, monkeypatch):
    reads = []

    def spy(model, part, task):
        reads.append(len(part.targets))
        return evaluate(model, part, task)

    for module in (training, runs):
        monkeypatch.setattr(module, "evaluate", spy)
    data = train_run(change(), project / "a/runs/gru-seed42", quiet).record["data"]
    counts = Counter(reads)
    assert counts[data["validation"]] == 2 and counts[data["test"]] == 1
    assert reads[-1] == data["test"]


def as_published(run, project):
    """The same run as a published report has it, the report itself being gone."""
    protocol = SimpleNamespace(
        parameterisations={"gru": change()}, seeds_of=lambda name: [42], note="", stand_in=False
    )
    results.write_json(project / "first/report.json", new_marker("first", protocol))
    results.write_published(Report(project / "first"), project / "published/first")
    shutil.rmtree(project / "first")


@pytest.mark.parametrize("published", [False, True])
def test_a_run_of_another_report_is_copied_under_its_own_variant(
    run, project, monkeypatch, published
):
    history, tables, predictions = run.history, run.tables(), run.predictions
    weights = (run.folder / "best.safetensors").read_bytes()
    if published:
        as_published(run, project)
    monkeypatch.setattr(runs, "fit", None)
    lines = []
    copy = train_run(change(variant="plain"), project / "second/runs/plain-seed42", lines.append)
    place = "published/first" if published else "first"
    assert "is copied from" in lines[-1]
    assert copy.record["hashes"] == results.digests(copy.folder)
    assert copy.record["copied_from"] == f"reports/{place}/runs/gru-seed42"
    assert copy.record["test"] == run.record["test"] and copy.key == ("plain", 42)
    assert copy.history.equals(history.assign(variant="plain"))
    expected = tables["stability"].assign(variant="plain")  # published in single precision
    assert_frame_equal(copy.tables()["stability"], expected, check_dtype=False, rtol=1e-6)
    assert (copy.predictions["predicted"] == predictions["predicted"]).all()
    if not published:
        assert (copy.folder / "best.safetensors").read_bytes() == weights


@pytest.mark.parametrize("changed", ["epochs", "data", "device", "probe"])
def test_a_run_with_another_parameter_data_device_or_probe_is_not_copied(run, project, changed):
    as_published(run, project)
    path = project / "published/first" / RECORDS
    (record,) = json.loads(read_file(path))
    if changed == "data":
        record["data"]["hash"] = "another"
    elif changed == "device":
        record["device"] = "cuda"
    elif changed == "probe":
        record["probe"]["loss"][0] += 0.01
    write_json(path, [record])
    values = {"epochs": 1} if changed == "epochs" else {}
    again = train_run(change(**values), project / "second/runs/gru-seed42", quiet)
    assert "copied_from" not in again.record


def test_a_run_is_stale_if_todays_code_gives_other_numbers(run, project, monkeypatch):
    as_published(run, project)
    report = Report(project / "published/first")
    assert stale_runs(report) == []
    report.runs[0].record["probe"]["gradient_norm"][1] *= 1.001
    assert stale_runs(report) == ["gru-seed42"]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "probe", lambda *a: 1 / 0)
        assert stale_runs(report) == ["gru-seed42"]  # code that was edited and fails
    report.runs[0].record["probe"] = None  # as in reports of version 0.1
    assert stale_runs(report) == []


def killed(line):
    if "epoch   1" in line:
        raise KeyboardInterrupt


def test_a_checkpoint_is_gone_on_from_unless_damaged_or_of_other_code(project):
    whole = train_run(change(), project / "a/runs/gru-seed42", quiet)
    weights = (whole.folder / "best.safetensors").read_bytes()
    shutil.move(whole.folder, project.parent / "elsewhere")
    for damage, epochs in (("none", [2]), ("truncated", [1, 2]), ("of other code", [1, 2])):
        folder, lines = project / f"{damage}/runs/gru-seed42", []
        with pytest.raises(KeyboardInterrupt):
            train_run(change(), folder, killed)
        assert not (folder / "run.json").exists()
        path = folder / "checkpoint.pt"
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:1000])
        elif damage == "of other code":
            content = torch.load(path, weights_only=True)
            content["stamp"]["probe"]["loss"][0] += 0.01
            torch.save(content, path)
        train_run(change(), folder, lines.append)
        assert [int(line.split("epoch")[1][:4]) for line in lines if "  epoch" in line] == epochs
        told = [line for line in lines if "checkpoint.pt" in line]
        assert ["training starts again" in line for line in told] == [True] * (damage != "none")
        assert (folder / "best.safetensors").read_bytes() == weights
        shutil.rmtree(folder)


def test_a_run_that_fails_says_why_and_is_tried_again(project, monkeypatch):
    folder = project / "a/runs/gru-seed42"
    diverging = {"optimiser": "sgd", "learning_rate": 1e30, "clip_norm": None}
    with pytest.raises(UserError):
        train_run(change(**diverging), folder, quiet)
    assert load_run(folder).record["reason"].startswith("gru-seed42: the loss is ")

    def fault(*args):
        raise RuntimeError("a contributed cell's own fault")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device: cuda needs a GPU, and there is none here"):
        train_run(change(device="cuda"), folder, quiet)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(runs, "fit", fault)
        train_run(change(), folder, quiet)
    record = load_run(folder).record
    assert record["reason"] == "RuntimeError: a contributed cell's own fault"
    assert train_run(change(), folder, quiet).record["status"] == "completed"


@pytest.mark.parametrize(
    ("values", "kind"), [([0, 300], "u2"), ([0, 9], "u1"), ([-1, 9], "i8"), ([0.25], "f8")]
)
def test_answers_are_kept_in_a_type_that_holds_them(values, kind):
    array = runs.narrow(np.array(values))
    assert array.tolist() == values and array.dtype == kind
