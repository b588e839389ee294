"""Verify names what was edited in a report."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from small_reports import write_report

from rnnbench_nb import results
from rnnbench_nb.files import PROJECT, write_json
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import Report, write_tables
from rnnbench_nb.runs import described, started, task_of
from rnnbench_nb.training import fit
from rnnbench_nb.verify import TOLERANCE, retrain, verify

BUDGET = {"epochs": 3, "steps": None, "batch_size": 2, "drop_last": False, "patience": None}
BUDGET |= {"min_delta": 0.0, "best_by": "score", "hidden_size": 8}
LABELS = [0, 1, 2, 1]


@pytest.fixture
def folder(tmp_path):
    """A sound report of two variants with two seeds."""
    variants = {name: {"model": name, **BUDGET} for name in ("gru", "lstm")}
    runs = [(name, seed) for name in variants for seed in (1, 2)]
    answers = {key: (LABELS, np.roll(LABELS, number)) for number, key in enumerate(runs)}
    curves = {key: [0.1, 0.1 * number, 0.15] for number, key in enumerate(runs)}
    write_tables(write_report(tmp_path, variants, answers, curves))
    return tmp_path


def problems(folder):
    return verify(Report(folder))


def test_a_sound_report_agrees(folder, tmp_path_factory):
    results.write_published(Report(folder), place := tmp_path_factory.mktemp("published"))
    assert problems(folder) == problems(place) == []
    assert problems(PROJECT / "reports/published/permuted_mnist") == []


def edit_table(change, name="results.csv"):
    def edit(folder):
        table = pd.read_csv(folder / name, keep_default_na=False)
        change(table).to_csv(folder / name, index=False)

    return edit


def cell(row, **values):
    return edit_table(lambda table: table.assign(
        **{name: [value if i == row else old for i, old in enumerate(table[name])]
           for name, value in values.items()}))  # fmt: skip


def edit_record(run="gru-seed1", **values):
    def edit(folder):
        path = folder / f"runs/{run}/run.json"
        record = json.loads(path.read_text())
        for name, value in values.items():
            record[name] = record[name] | value if isinstance(value, dict) else value
        write_json(path, record)

    return edit


def edit_history(change, run="gru-seed1"):
    return edit_table(change, f"runs/{run}/history.csv")


def edit_answers(folder):
    path = folder / "runs/gru-seed1/predictions.safetensors"
    results.write_tensors(path, {"label": np.array(LABELS), "predicted": np.zeros(4, int)})


EDITS = {
    "a row missing": (edit_table(lambda t: t.drop(index=1)), "0 rows of gru, seed 2"),
    "all rows missing": (edit_table(lambda t: t[:0]), "0 rows of lstm, seed 1"),
    "a row twice": (edit_table(lambda t: pd.concat([t, t[:1]])), "2 rows of gru, seed 1"),
    "a row of no run": (cell(0, seed=9), "1 rows of gru, seed 9"),
    "another variant": (cell(0, variant="agru"), "1 rows of agru, seed 1"),
    "another model": (cell(0, model="agru"), "has model agru for gru, seed 1"),
    "every status failed": (edit_table(lambda t: t.assign(status="failed")), "status failed"),
    "no accuracy": (cell(1, accuracy=""), "has accuracy"),
    **{
        name: (cell(2, **{name: 0.4}), f"has {name} 0.4 for lstm, seed 1; its record has")
        for name in results.result_columns(METRICS["classification"].names)[3:-1]
    },
    "a record's score": (edit_record(test={"accuracy": 0.9}), "its predictions give 1.0"),
    "a record's best epoch": (edit_record(best_epoch=1), "its history gives 3"),
    "a record's epochs": (edit_record(epochs=2), "each of its 2 epochs once"),
    "a record's parameters": (edit_record(parameters={"epochs": 4}), "protocol asks for 3"),
    "a record's model": (edit_record(model="lstm"), "names another run"),
    "answers": (edit_answers, "its predictions give 0.25"),
    "a curve": (edit_history(lambda h: h.assign(accuracy=0.5)), "its history gives 1"),
    "an epoch missing": (edit_history(lambda h: h[:-2]), "each of its 3 epochs once"),
    "an epoch twice": (edit_history(lambda h: pd.concat([h, h[:1]])), "epochs once"),
    "the history": (edit_table(lambda h: h.assign(loss=2.0), "history.csv"), "history.csv is"),
    "the summary": (lambda f: (f / "results_summary.md").write_text("better\n"), "summary"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_named(folder, edit):
    change, sentence = EDITS[edit]
    change(folder)
    assert any(sentence in problem for problem in problems(folder)), problems(folder)


def test_an_early_stop_is_where_patience_says(tmp_path):
    answers, curve = {("gru", 1): (LABELS, LABELS)}, {("gru", 1): [0.1, 0.2, 0.3]}
    # The loss is 1 in each epoch: the second and third are no fall.
    for patience, found in ((2, []), (5, ["it has 3 epochs; budget and history give 9"])):
        variants = {"gru": {"model": "gru", **BUDGET, "epochs": 9, "patience": patience}}
        write_tables(write_report(tmp_path, variants, answers, curve))
        assert problems(tmp_path) == [f"gru-seed1: {problem}" for problem in found]


def test_unfinished_runs_are_not_blamed_published_or_not(folder, tmp_path_factory):
    (folder / "runs/gru-seed1/run.json").unlink()
    edit_record("gru-seed2", status="failed", reason="the loss is nan", test={})(folder)
    write_tables(Report(folder))
    results.write_published(Report(folder), place := tmp_path_factory.mktemp("published"))
    assert problems(folder) == problems(place) == []
    text = (place / "results_summary.md").read_text()
    assert "gru-seed1 is missing: it did not finish; see logs/gru-seed1.txt\n" in text
    assert "gru-seed2 is failed: the loss is nan\n" in text


def test_a_run_is_trained_again_and_agrees_differs_or_cannot_be_checked(tmp_path):
    parameters = run_parameters({"model": "gru", **TINY}, "the test")
    task = task_of(parameters)
    data = task.load(42)
    model = started(parameters, task, data.train)
    history = fit(model, data, task, parameters, report=lambda line: None).history
    variants = {"gru": {"model": "gru", **parameters.flat()}}
    write_report(tmp_path, variants, {("gru", 42): (LABELS, LABELS)}, {("gru", 42): [0.1, 0.2]})
    rows = pd.DataFrame(history).assign(variant="gru", model="gru", seed=42)
    edit_history(lambda _: rows, "gru-seed42")(tmp_path)
    edit_record("gru-seed42", data=described(task, data))(tmp_path)
    lines = []

    def outcome():
        return retrain(Report(tmp_path), 1, lines.append)

    assert outcome() == ["agrees"] and lines == ["gru-seed42: agrees (0)"]
    edit_history(lambda h: h.assign(loss=h["loss"] * (1 + 2 * TOLERANCE)), "gru-seed42")(tmp_path)
    assert outcome() == ["differs"]
    for change, reason in (({"data": {"hash": "x"}}, "data"), ({"device": "cuda"}, "GPU")):
        edit_record("gru-seed42", **change)(tmp_path)
        assert outcome() == ["cannot be checked"] and reason in lines[-1]
