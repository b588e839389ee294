import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import rnnbench_nb
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.report import (
    Report,
    formatted,
    history_columns,
    labels,
    load_run,
    looks,
    read_csv,
    result_columns,
    said,
    summary,
    verify,
    write_csv,
    write_record,
    write_tables,
)
from rnnbench_nb.tasks import TASKS

IMAGES = TASKS["image_sequence"]
METRICS = ("accuracy", "precision", "recall", "f1")


def variants(**models):
    return {
        name: run_parameters({"model": model, "variant": name}, "the test")
        for name, model in models.items()
    }


def test_importing_it_loads_no_torch():
    code = "import sys, rnnbench_nb.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_labels_follow_the_cell_not_the_name():
    found = labels(variants(gru="gru", gru_like="lstm", agru_139="agru", free="agru"))
    assert found == {"gru": "GRU", "gru_like": "gru_like", "agru_139": "A-GRU-139", "free": "free"}


def test_labels_and_scores_read_well_in_a_sentence():
    assert (
        labels(variants(gru_reset_before="gru_reset_before"))["gru_reset_before"]
        == "GRU (reset before)"
    )
    assert [said(name) for name in ("negative_mse", "f1", "accuracy")] == [
        "negative MSE", "F1", "accuracy"]  # fmt: skip


def test_an_lstm_that_is_named_after_another_cell_does_not_look_like_it():
    found = looks(variants(gru_like="lstm", gru="gru"))
    assert found["gru"].colour == CELLS["gru"].colour
    assert found["gru_like"].colour == CELLS["lstm"].colour  # the only one of its cell


def test_controls_have_looks_of_their_own():
    found = looks(variants(agru="agru", frozen="agru", free="agru"))
    assert found["agru"].colour == CELLS["agru"].colour
    taken = {cell.colour for cell in CELLS.values()}
    assert not {found["frozen"].colour, found["free"].colour} & taken


def test_twenty_variants_look_different():
    found = looks(variants(**{f"v{i}": "agru" for i in range(20)}))
    assert len({look.colour for look in found.values()}) == 20
    assert len({(look.dashes, look.marker) for look in found.values()}) == 20


def test_a_finished_run_comes_back_in_one_line(report):
    run = rnnbench_nb.load_run(report / "runs/agru-seed42")
    test = run.task.load(42).test
    with torch.no_grad():
        outputs = run.model(run.task.inputs(test.inputs))
    np.testing.assert_allclose(outputs, run.outputs, rtol=1e-4, atol=1e-5)
    assert (run.predictions["predicted"] == run.outputs.argmax(1)).all()
    assert (run.predictions["label"] == test.targets.numpy()).all()
    assert run.scores.mean() == run.record["test"]["accuracy"]
    assert run.predictions["label"].dtype == np.uint8
    again = run.task.metrics(**run.predictions)
    assert run.record["test"] == {**again, "loss": run.record["test"]["loss"]}
    matrix = run.initial_model.cell.recurrent_matrix().detach().numpy()
    assert (matrix == run.recurrent["matrix"][0]).all()
    assert not torch.equal(run.initial_model.head.weight, run.model.head.weight)
    recorded = {"versions", "commit", "device", "processor", "path", "precision", "fingerprint"}
    assert {*recorded, "started", "finished"} < run.record.keys()
    assert run.record["path"] == run.model.cell.path() and run.record["precision"] == "highest"


def test_a_loaded_run_is_the_trained_one_to_the_last_bit(report):
    run = load_run(report / "runs/agru-seed42")
    fresh = load_run(report / "runs/agru-seed42")
    inputs = torch.rand(4, 8, 8)
    assert torch.equal(run.model(inputs), fresh.model(inputs))
    assert run.model.cell.options.gamma == run.parameters.cell_options.gamma


def test_the_tables_have_the_columns_and_one_row_each(report):
    results, history = read_csv(report / "results.csv"), read_csv(report / "history.csv")
    assert list(results) == result_columns(METRICS)
    assert list(history) == history_columns("accuracy")
    assert list(zip(results["variant"], results["seed"], strict=True)) == [
        ("lstm", 42), ("agru", 42),
    ]  # fmt: skip
    assert history.groupby(["variant", "seed", "split"]).size().tolist() == [2, 2, 2, 2]
    assert results["accuracy"].between(0, 1).all()
    recorded = [load_run(report / f"runs/{v}-seed42").record["test"] for v in ("lstm", "agru")]
    assert results["accuracy"].tolist() == [test["accuracy"] for test in recorded]


def test_failed_and_missing_runs_have_rows_and_reasons(tmp_path):
    protocol = load_protocol(PROJECT / "params/quick.yaml", {"models": ["gru"], "runs": 2})
    (tmp_path / "protocol.yaml").write_text(to_yaml(protocol.dump()))
    failed = {"variant": "gru", "model": "gru", "seed": 42, "status": "failed", "reason": "NaN"}
    write_record(tmp_path / "runs/gru-seed42", failed)
    found = Report(tmp_path)
    assert [folder.name for folder in found.run_folders] == ["gru-seed42", "gru-seed43"]
    assert found.results["status"].tolist() == ["failed", "missing"]
    assert found.results["accuracy"].isna().all()
    assert found.history.empty and found.runs == []
    sentences = found.lost_sentences()
    assert sentences == [
        "gru-seed42 is failed: NaN",
        "gru-seed43 is missing: it did not finish; logs/gru-seed43.txt says how far it got",
    ]
    write_tables(found)
    text = (tmp_path / "results_summary.md").read_text()
    assert all(sentence in text for sentence in sentences)


WITH_FINGERPRINTS = {  # published since they are kept
    "adding", "agru_authors", "copying", "gradient_growth", "noise_controls",
    "noise_controls_search", "noise_padded", "noise_search", "noise_tuned", "permuted_mnist",
    "pixel_mnist", "precision", "reset", "row_cells", "tuned_matched", "tuned_matched_search",
}  # fmt: skip


@pytest.mark.parametrize("folder", sorted((PROJECT / "reports/published").glob("*/protocol.yaml")))
def test_published_reports_open_with_all_their_runs_and_agree(folder):
    found = Report(folder.parent)
    assert len(found.runs) == len(found.run_folders) > 0 and found.lost == []
    assert len(verify(found)) == len(found.runs)
    assert len(found.history) == found.results["epochs"].sum() * 2
    if folder.parent.name in WITH_FINGERPRINTS:  # other code than theirs may stand here later
        assert found.unknown() == []
    else:
        assert found.unknown() == [run.folder.name for run in found.runs]
        assert not found.differing()


def test_which_device_ran_which_model_is_said_where_none_ran_them_all():
    folder = PROJECT / "reports/published"
    (text,) = Report(folder / "pixel_mnist").devices_sentences()
    assert text.startswith("Not every model ran on one device (A-GRU and coRNN on CPU; LSTM and ")
    for name in ("row_mnist", "row_cells"):  # on one; on both, but each model on either
        assert Report(folder / name).devices_sentences() == []


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no report \(no protocol.yaml\); name another\."):
        Report(tmp_path)


def test_the_summary_by_hand():
    rows = [
        {"variant": "gru", "model": "gru", "seed": seed, "accuracy": value, "precision": 0.5,
         "recall": 0.5, "f1": 0.5, "loss": 1.0, "parameters": 61_962,
         "free_parameters": 61_706, "epochs": epochs, "best_epoch": 1, "status": status}
        for seed, value, epochs, status in [
            (1, 0.98, 4, "completed"), (2, 0.99, 5, "completed"), (3, 0.1, 9, "failed"),
        ]
    ]  # fmt: skip
    table = summary(frame := pd.DataFrame(rows))
    assert table.loc[0, ["seeds", "epochs"]].tolist() == [2, 4.5]
    assert table.loc[0, "accuracy"] == pytest.approx(0.985)
    assert table.loc[0, "accuracy_sd"] == pytest.approx(0.01 / np.sqrt(2))
    text = formatted(table, IMAGES(variants(a="gru")["a"].task_options)).iloc[0]
    assert text["accuracy %"] == "98.50 ± 0.71"
    assert text["parameters"] == "61,962"
    one = formatted(summary(frame[:1]), IMAGES(variants(a="gru")["a"].task_options)).iloc[0]
    assert one["accuracy %"] == "98.00"  # one seed has no standard deviation


def test_numbers_survive_the_file_exactly(tmp_path):
    frame = pd.DataFrame({"x": np.random.default_rng(0).random(1000) * 1e-7})
    write_csv(tmp_path / "x.csv", frame)
    assert read_csv(tmp_path / "x.csv").equals(frame)


def test_names_stay_text_whatever_they_look_like(tmp_path):
    names = ["0.5", "None", "NA", "128", "True", "007", "inf", "1e-3", "nan", ""]
    frame = pd.DataFrame({"variant": names, "loss": [0.5] * 9 + [None]})
    write_csv(tmp_path / "x.csv", frame)
    again = read_csv(tmp_path / "x.csv")
    assert again["variant"].tolist() == names
    assert again["loss"].isna().tolist() == [False] * 9 + [True]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_run_is_named(tmp_path, damage):
    if damage == "truncated":
        (tmp_path / "run.json").write_text(json.dumps({"status": "completed"})[:9])
    said = "holds no run" if damage == "missing" else r"run\.json is damaged; move .* elsewhere"
    with pytest.raises(UserError, match=said):
        load_run(tmp_path)
    with pytest.raises(UserError, match=r"results\.csv is missing or damaged"):
        read_csv(tmp_path / "results.csv")


def test_damaged_weights_are_named(report, tmp_path):
    run = load_run(report / "runs/agru-seed42")
    content = (run.folder / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").write_bytes(content[:500])
    damaged = type(run)(tmp_path, run.record)
    with pytest.raises(UserError, match=r"best\.safetensors is damaged"):
        _ = damaged.model
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(UserError, match="is not there .a published report has no weights.; name"):
        _ = type(run)(tmp_path, run.record).model
