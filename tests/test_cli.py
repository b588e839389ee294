"""The commands that answer at once: what they say, and what they need not import."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import one_sentence, rnnbench_here, write_tiny

from rnnbench_nb import cli
from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.report import Report, formatted, read_csv, summary, write_csv
from rnnbench_nb.runs import train_run
from rnnbench_nb.tasks import TASKS

PUBLISHED = sorted(path.parent for path in PROJECT.glob("reports/published/*/protocol.yaml"))


@pytest.fixture
def run(tmp_path, tiny):
    return train_run(tiny, tmp_path / "runs" / tiny.run, report=lambda line: None)


def test_commands_that_compute_nothing_import_nothing_heavy(tmp_path):
    run = next(PUBLISHED[0].glob("runs/*"))
    bad = write_tiny(tmp_path / "p.yaml", epoch=3)
    commands = [["--help"], ["--version"], ["list"], ["show", str(run)], ["check", str(bad)],
                ["check", "params/tuning.yaml"], ["verify", str(PUBLISHED[0])],
                ["run", str(bad)], ["run", "--set", "x=1"], ["run", "--profile", "no"]]  # fmt: skip
    code = """
import json, sys
from click.testing import CliRunner
from rnnbench_nb.cli import main
codes = [CliRunner().invoke(main, command).exit_code for command in json.loads(sys.argv[1])]
heavy = {"torch", "torchvision", "sklearn", "scipy", "statsmodels", "seaborn", "matplotlib"}
print(json.dumps([codes, sorted(heavy & set(sys.modules))]))
"""
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    codes, heavy = json.loads(done.stdout)
    assert codes == [0, 0, 0, 0, 1, 0, 0, 1, 1, 1]
    assert heavy == []


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "rnnbench_nb", "--version"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "rnnbench, version 0.1.0\n"


def test_list_shows_each_report_with_its_best_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PROJECT / "reports/published/vogt", tmp_path / "reports/published/vogt")
    mine, damaged = tmp_path / "reports/mine", tmp_path / "reports/damaged"
    for folder in (mine, damaged):
        folder.mkdir()
    (damaged / "protocol.yaml").write_text("models: [nothing]\n")
    protocol = {"models": ["gru", "lstm"], "runs": 2, "seed": 42}
    (mine / "protocol.yaml").write_text(to_yaml(protocol))
    scores = {"gru-seed42": 0.5, "gru-seed43": 0.7, "lstm-seed42": 0.55}
    for name, accuracy in scores.items():
        variant, _, seed = name.partition("-seed")
        record = {"variant": variant, "seed": int(seed), "status": "completed"}
        (mine / "runs" / name).mkdir(parents=True)
        record["test"] = {"accuracy": accuracy}
        (mine / "runs" / name / "run.json").write_text(json.dumps(record))
    failed = {"variant": "lstm", "seed": 43, "status": "failed"}
    (mine / "runs/lstm-seed43").mkdir()
    (mine / "runs/lstm-seed43/run.json").write_text(json.dumps(failed))
    result = rnnbench_here("list")
    assert result.returncode == 0
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["REPORT", "RUNS", "BEST", "FOLDER"]
    assert "protocol.yaml: models: 'nothing' is unknown" in result.stdout
    # 60 is the mean of 50 and 70, whose sd is 20 / sqrt(2)
    assert cells[2] == ["mine", "3/4", "GRU: accuracy 60.00 ± 14.14%", "reports/mine"]
    assert f"Cells: {', '.join(CELLS)}." in result.stdout
    assert f"Tasks: {', '.join(TASKS)}." in result.stdout
    assert cells[3] == ["vogt", "1/1", "GRU: accuracy 97.94%", "reports/published/vogt"]


def test_show_says_what_a_run_is_and_how_it_scored(run):
    text = rnnbench_here("show", run.folder).stdout
    test = run.record["test"]
    assert text.startswith("A-GRU, seed 42, is completed.\nOn the 8 × 8 digits of scikit-learn, ")
    assert f"8 steps of 8: accuracy {100 * test['accuracy']:.4g}%, precision" in text
    assert "Made by the code that stands here, at commit " in text
    values = yaml.safe_load(text.partition("\n\n")[2])
    assert run_parameters(values, "shown") == run.parameters
    record = run.record | {"fingerprint": "0", "taken_from": "reports/x/runs/y"}
    (run.folder / "run.json").write_text(json.dumps(record))
    text = rnnbench_here("show", run.folder).stdout
    assert "Made by other code than stands here" in text
    assert "Taken from reports/x/runs/y." in text
    assert "holds no run (no run.json)" in one_sentence(rnnbench_here("show", run.folder / "none"))


def test_show_says_why_a_run_failed_and_that_its_code_is_unknown(tmp_path):
    record = {"status": "failed", "reason": "the loss is nan", "variant": "gru", "seed": 3}
    record["parameters"] = {"model": "gru", "seed": 3}
    (tmp_path / "run.json").write_text(json.dumps(record))
    text = rnnbench_here("show", tmp_path).stdout
    assert text.startswith("GRU, seed 3, is failed.\nthe loss is nan\n")
    assert "Made by code of before fingerprints were kept" in text


def test_check_prints_what_is_read_back_unchanged(tmp_path):
    for name in ("row_mnist", "tuning", "vogt"):
        result = rnnbench_here("check", PROJECT / f"params/{name}.yaml")
        assert result.returncode == 0
        (tmp_path / "again.yaml").write_text(result.stdout)
        there = load_protocol(PROJECT / f"params/{name}.yaml")
        again = load_protocol(tmp_path / "again.yaml")
        assert again.parameterisations == there.parameterisations
        assert again.seeds == there.seeds
    assert "nowhere.yaml" in one_sentence(rnnbench_here("check", "nowhere.yaml"))


def test_check_refuses_a_key_that_nobody_reads(tmp_path):
    path = write_tiny(tmp_path / "p.yaml", models="[gru]", gamma=0.5)
    sentence = one_sentence(rnnbench_here("check", path))
    assert "gamma is an option of agru" in sentence and "and nothing here reads it" in sentence


def test_there_are_twenty_three_published_reports():
    assert len(PUBLISHED) == 23


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_every_published_report_agrees_with_its_predictions(folder, tmp_path):
    result = rnnbench_here("verify", folder)
    assert result.returncode == 0, result.stderr
    runs = len(list(folder.glob("runs/*/run.json")))
    assert f"agrees with the predictions of {runs} runs." in result.stdout
    assert str(len(read_csv(folder / "results.csv"))) == str(runs)


def test_a_control_is_not_called_like_a_column_of_its_table():
    report = Report(PROJECT / "reports/published/controls")
    table = formatted(summary(report.results), report.task)
    assert table.set_index("variant")["free parameters"].to_dict() == {
        "agru": "53,323", "frozen": "45,195", "free": "61,579",
    }  # fmt: skip
    assert not {*report.variants, *report.labels.values()} & set(table)


def test_a_number_that_the_predictions_do_not_give_is_named(tmp_path):
    shutil.copytree(PROJECT / "reports/published/vogt", tmp_path / "vogt")
    table = read_csv(tmp_path / "vogt/results.csv")
    table.loc[0, "f1"] += 1e-15
    write_csv(tmp_path / "vogt/results.csv", table)
    assert "gru-seed42 has f1" in one_sentence(rnnbench_here("verify", tmp_path / "vogt"))


def test_data_are_fetched_for_every_variant(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path / "none"))
    result = rnnbench_here("data", write_tiny(tmp_path / "p.yaml"))
    assert result.stdout == f"digits is complete and verified in {tmp_path / 'none'}.\n"


@pytest.mark.parametrize("typed", ["LSTM, gru", "lstm,GRU", "Lstm , Gru,"])
def test_models_are_named_as_people_write_them(typed):
    assert cli._overrides((), None, typed, ())["models"] == ["lstm", "gru"]
    assert cli._overrides((), None, "A-GRU", ())["models"] == ["agru"]


def test_what_is_named_is_relative_to_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "p.yaml")
    said = rnnbench_here("run", "p.yaml", "--output-dir", "my/own", "--dry-run").stdout
    assert f"What each is doing stands in {tmp_path / 'my/own/logs'}." in said
    assert list(tmp_path.iterdir()) == [tmp_path / "p.yaml"]


@pytest.mark.parametrize("named", ["vogt", "published/vogt", "reports/published/vogt/index.html"])
def test_a_report_is_found_from_another_folder_and_by_what_was_printed(
    named, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if named == "vogt":  # what stands where the user does goes first
        shutil.copytree(PROJECT / "reports/published/vogt", tmp_path / "vogt")
    assert "agrees with the predictions of 1 runs" in rnnbench_here("verify", named).stdout
    listed = rnnbench_here("list").stdout
    folder = re.search(r" {2}(\S.*/published/vogt)$", listed, re.MULTILINE)[1].rpartition("  ")[2]
    assert rnnbench_here("verify", folder).returncode == 0  # as it is printed
    assert rnnbench_here("verify", "vogt").returncode == 0  # by its name alone
