"""Reports and runs as files and tables."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small_reports import write_report

from rnnbench_nb import results
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.folders import RECORDS
from rnnbench_nb.looks import labels, looks
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.results import Report, load_run, read_csv, summary, write_frame

PUBLISHED = sorted(path.parent for path in (PROJECT / "reports/published").glob("*/report.json"))
RIGHT, WRONG = ([0, 1, 2, 1], [0, 1, 2, 1]), ([0, 1, 2, 1], [0, 1, 1, 0])


@pytest.fixture
def report(tmp_path):
    """Two variants with two seeds; a run failed, whose parameter has the name of a metric."""
    variants = {"gru": {"model": "gru"}, "lstm": {"model": "lstm", "precision": "highest"}}
    runs = {("gru", 1): RIGHT, ("gru", 2): WRONG, ("lstm", 1): RIGHT, ("lstm", 2): "not finite"}
    found = write_report(tmp_path, variants, runs)
    table = pd.DataFrame({"variant": ["gru"], "seed": [2], "moment": ["initial"], "x": [0.1]})
    write_frame(tmp_path / "runs/gru-seed2/measures/stability.parquet", table)
    return found


@pytest.fixture
def published(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    results.write_published(report, folder)
    return folder


def test_reading_a_report_loads_no_torch():
    code = (
        "import sys, rnnbench_nb.verify\nfrom rnnbench_nb.results import Report\n"
        f"Report({str(PUBLISHED[0])!r}).runs\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_labels_and_looks_follow_the_cell_where_they_are_not_ambiguous():
    def cells(**names):
        return {name: CELLS[cell] for name, cell in names.items()}

    reset = "gru_reset_before"
    names = labels(cells(gru="gru", gru_like="lstm", agru_139="agru", **{reset: reset}))
    assert [*names.values()] == ["GRU", "gru_like", "A-GRU-139", "GRU (reset before)"]
    found = looks(cells(gru_like="lstm", gru="gru", frozen="gru", free="gru"))
    assert [found[name].colour for name in ("gru", "gru_like")] == ["#E69F00", "#0072B2"]
    assert len({look.colour for look in found.values()}) == 4


def test_results_have_a_row_for_each_run_and_settings_are_no_scores(report):
    rows = report.results.set_index(["variant", "seed"])
    columns = results.result_columns(METRICS["classification"].names)
    assert list(report.results) == columns and len(set(columns)) == len(columns)
    assert rows["status"].tolist() == ["completed"] * 3 + ["failed"]
    assert rows["accuracy"].tolist()[:3] == [1.0, 0.5, 1.0]
    assert rows.loc[("lstm", 2), ["accuracy", "precision", "loss"]].isna().all()
    assert [run["reason"] for run in report.missing] == ["not finite"]
    assert [run.key for run in report.of("gru")] == [("gru", 1), ("gru", 2)]
    assert report.history.groupby(["variant", "seed"]).size().tolist() == [2, 2, 2]


def test_published_and_read_again_a_report_is_the_same(report, published):
    again = Report(published)
    assert again.published and again.records == report.records
    pd.testing.assert_frame_equal(again.results, report.results)
    pd.testing.assert_frame_equal(again.history, report.history)
    single, double = again.table("stability"), report.table("stability")
    assert single["x"].dtype == "float32" and double["x"].dtype == "float64"
    pd.testing.assert_frame_equal(single, double, check_dtype=False)
    assert again.table("growth").empty
    run = load_run(published / "runs/gru-seed2")
    assert run.scores.tolist() == [1, 1, 0, 0]
    assert run.tables()["stability"]["x"].tolist() == [np.float32(0.1)]
    with pytest.raises(UserError, match="a published report has no weights"):
        run.tensors("best")
    with pytest.raises(UserError, match="has no run"):
        load_run(published / "runs/gru-seed3")
    with pytest.raises(UserError, match="has no report"):
        Report(published / "measures")


def test_what_version_0_1_wrote_is_refused_with_the_tag_that_reads_it(tmp_path):
    write_file(tmp_path / "protocol.yaml", "models: [lstm]")
    write_file(
        tmp_path / "runs/gru-seed1/run.json",
        '{"variant": "gru", "model": "gru", "seed": 1, "status": "completed"}',
    )
    for read, folder in ((Report, tmp_path), (load_run, tmp_path / "runs/gru-seed1")):
        with pytest.raises(UserError, match=r"git checkout v0\.1"):
            read(folder)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_reports_open_with_all_their_runs(folder):
    found = Report(folder)
    assert len(found.runs) + len(found.missing) == len(found.run_folders) > 0
    for run in found.missing:  # a configuration of a search may diverge
        assert run["status"] == "failed" and not run["parameters"]["test"]
    assert len(found.history) == found.results["epochs"].sum() * 2
    first = found.runs[0]
    assert all(set(table["seed"]) == {first.key[1]} for table in first.tables().values())
    assert bool(first.tables()) == (folder / "measures").is_dir()
    keys = {"format", "metrics", "status", "parameters", "data", "test", "probe", "path", "device"}
    assert all(keys < run.record.keys() for run in found.runs)


def test_the_summary_by_hand(report):
    table = summary(report.results)
    assert table["seeds"].tolist() == [2, 1] and table["epochs"].tolist() == [1.0, 1.0]
    assert table.loc[0, "accuracy"] == pytest.approx(0.75)
    assert table.loc[0, "accuracy_sd"] == pytest.approx(0.5 / np.sqrt(2))
    text = results.format_summary(table, report.metrics)
    assert text["accuracy %"].tolist() == ["75.00 ± 35.36", "100.00"]  # one seed has no sd
    assert text["free parameters"].tolist() == ["1,152", "1,152"]
    assert results.readable("negative_mse") == "negative MSE"


def test_numbers_and_names_survive_a_table_exactly(tmp_path):
    names = ["0.5", "None", "NA", "128", "True", "007", "inf", "1e-3", "nan", "x"]
    numbers = [*np.random.default_rng(0).random(9) * 1e-7, None]
    frame = pd.DataFrame({"variant": names, "loss": numbers})
    write_frame(tmp_path / "x.csv", frame)
    again = read_csv(tmp_path / "x.csv", frame.columns)
    assert again["variant"].tolist() == names and again["loss"].equals(frame["loss"])


RUN = ["run.json", "history.csv", "predictions.safetensors"]
COMMON = ["report.json", RECORDS, "history.parquet", "predictions.safetensors.xz"]


@pytest.mark.parametrize("damage", ["truncated", "another"])
@pytest.mark.parametrize("name", [*RUN, *COMMON])
def test_a_damaged_file_is_named_and_other_runs_are_read(report, published, damage, name):
    path = (report.folder / "runs/gru-seed1" if name in RUN else published) / name
    path.write_bytes(path.read_bytes()[:20] if damage == "truncated" else b"[1]\n")
    sentence = f"{path} is missing or damaged; restore it, or move {path.parent} elsewhere"
    if name in RUN:
        again = Report(report.folder)
        assert [run.key for run in again.runs] == [("gru", 2), ("lstm", 1)]
        assert again.missing[0]["reason"].startswith(sentence)
    else:
        with pytest.raises(UserError, match=sentence):
            Report(published).runs  # noqa: B018
