import json

import numpy as np
import pandas as pd
import pytest
import torch

import rnnbench_nb
from rnnbench_nb.config import load_protocol
from rnnbench_nb.data import as_sequence, load
from rnnbench_nb.errors import UserError
from rnnbench_nb.results import (
    HISTORY_COLUMNS,
    RESULT_COLUMNS,
    collect,
    environment,
    formatted,
    load_run,
    metrics,
    read_csv,
    run_folders,
    summary,
    write_csv,
    write_record,
    write_summary,
)


def test_metrics_by_hand():
    # class 0: 2 of 3 found, 2 of 2 right; class 1: 1 of 1 found, 1 of 2 right
    found = metrics(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    expected = {
        "accuracy": 3 / 4, "precision": (1 + 1 / 2) / 2, "recall": (2 / 3 + 1) / 2,
        "f1": (4 / 5 + 2 / 3) / 2,
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_a_finished_run_comes_back_in_one_line(report):
    run = rnnbench_nb.load_run(report / "runs/agru-seed42")
    images = load("digits")
    with torch.no_grad():
        logits = run.model(as_sequence(images.test_images, "row"))
    np.testing.assert_allclose(logits, run.logits, rtol=1e-4, atol=1e-5)
    assert (run.predictions["predicted"] == run.logits.argmax(1)).all()
    assert (run.predictions["label"] == images.test_labels.numpy()).all()
    assert run.predictions["label"].dtype == np.uint8
    again = metrics(run.predictions["label"], run.predictions["predicted"])
    assert run.record["test"] == {**again, "loss": run.record["test"]["loss"]}
    w = run.initial_model.cell.weight_hh_l0[16:].detach().numpy()
    assert (w == run.recurrent["weight_hh"][0]).all()
    assert not torch.equal(run.initial_model.head.weight, run.model.head.weight)
    assert {"versions", "commit", "device", "started", "finished"} < run.record.keys()


def test_a_machine_without_git_has_an_unknown_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] == "unknown"


def test_a_loaded_run_is_the_trained_one_to_the_last_bit(report):
    run = load_run(report / "runs/agru-seed42")
    fresh = load_run(report / "runs/agru-seed42")
    inputs = torch.rand(4, 8, 8)
    assert torch.equal(run.model(inputs), fresh.model(inputs))
    assert run.model.cell.gamma == run.parameters.gamma


def test_the_tables_have_the_columns_and_one_row_each(report):
    results, history = read_csv(report / "results.csv"), read_csv(report / "history.csv")
    assert list(results) == RESULT_COLUMNS
    assert list(history) == HISTORY_COLUMNS
    assert list(zip(results["variant"], results["seed"], strict=True)) == [
        ("lstm", 42), ("agru", 42),
    ]  # fmt: skip
    assert history.groupby(["variant", "seed", "split"]).size().tolist() == [2, 2, 2, 2]
    assert results["accuracy"].between(0, 1).all()
    recorded = [load_run(report / f"runs/{v}-seed42").record["test"] for v in ("lstm", "agru")]
    assert results["accuracy"].tolist() == [test["accuracy"] for test in recorded]


def test_failed_and_missing_runs_have_rows_and_reasons(tmp_path):
    protocol = load_protocol("params/quick.yaml", {"models": ["gru"], "runs": 2})
    folders = run_folders(tmp_path, protocol)
    assert [folder.name for folder in folders] == ["gru-seed42", "gru-seed43"]
    failed = {"variant": "gru", "model": "gru", "seed": 42, "status": "failed", "reason": "NaN"}
    write_record(folders[0], failed)
    results, history, lost = collect(folders)
    assert results["status"].tolist() == ["failed", "missing"]
    assert results["accuracy"].isna().all()
    assert history.empty
    assert [run["reason"] for run in lost] == [
        "NaN", "it did not finish; logs/gru-seed43.txt says how far it got",
    ]  # fmt: skip
    write_summary(tmp_path / "s.md", results, lost)
    text = (tmp_path / "s.md").read_text()
    assert "gru, seed 42, is failed: NaN" in text
    assert "gru, seed 43, is missing" in text


def test_the_summary_by_hand():
    rows = [
        {"variant": "gru", "seed": seed, "accuracy": value, "precision": 0.5, "recall": 0.5,
         "f1": 0.5, "parameters": 61_962, "free_parameters": 61_706, "epochs": epochs,
         "best_epoch": 1, "status": status}
        for seed, value, epochs, status in [
            (1, 0.98, 4, "completed"), (2, 0.99, 5, "completed"), (3, 0.1, 9, "failed"),
        ]
    ]  # fmt: skip
    table = summary(pd.DataFrame(rows))
    assert table.loc[0, ["seeds", "epochs"]].tolist() == [2, 4.5]
    assert table.loc[0, "accuracy"] == pytest.approx(0.985)
    assert table.loc[0, "accuracy_sd"] == pytest.approx(0.01 / np.sqrt(2))
    text = formatted(table).iloc[0]
    assert text["accuracy %"] == "98.50 ± 0.71"
    assert text["parameters"] == "61,962"
    one = formatted(summary(pd.DataFrame(rows[:1]))).iloc[0]
    assert one["accuracy %"] == "98.00"  # one seed has no standard deviation


def test_numbers_survive_the_file_exactly(tmp_path):
    frame = pd.DataFrame({"x": np.random.default_rng(0).random(1000) * 1e-7})
    write_csv(tmp_path / "x.csv", frame)
    assert read_csv(tmp_path / "x.csv").equals(frame)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_run_is_named(tmp_path, damage):
    if damage == "truncated":
        (tmp_path / "run.json").write_text(json.dumps({"status": "completed"})[:9])
    with pytest.raises(UserError, match=r"run\.json is missing or damaged; delete"):
        load_run(tmp_path)
    with pytest.raises(UserError, match=r"results\.csv is missing or damaged"):
        read_csv(tmp_path / "results.csv")


def test_damaged_weights_are_named(report, tmp_path):
    run = load_run(report / "runs/agru-seed42")
    content = (run.folder / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").write_bytes(content[:500])
    damaged = type(run)(tmp_path, run.record)
    with pytest.raises(UserError, match=r"best\.safetensors is missing or damaged"):
        _ = damaged.model
