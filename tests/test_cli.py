"""The commands that answer at once: what they print, and what they need not import."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import RNNBENCH, one_sentence, rnnbench_here, write_tiny

from rnnbench_nb import cli, folders, launch
from rnnbench_nb.files import PROJECT

PUBLISHED = PROJECT / "reports/published"


def test_commands_that_compute_nothing_import_no_torch():
    commands = [
        ["--help"],
        ["--version"],
        ["list"],
        ["show", str(PUBLISHED / "agru_authors/runs/gru-seed42")],
        ["verify", str(PUBLISHED / "agru_authors")],
        ["run", "--output-dir", "/"],
        ["show", "nothing"],
    ]
    code = """
import json, sys
from click.testing import CliRunner
from rnnbench_nb.cli import main
codes = [CliRunner().invoke(main, command).exit_code for command in json.loads(sys.argv[1])]
heavy = {"torch", "torchvision", "matplotlib", "seaborn", "snakemake", "papermill"}
print(json.dumps([codes, sorted(heavy & set(sys.modules))]))
"""
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    codes, heavy = json.loads(done.stdout)
    assert heavy == []
    assert codes == [0, 0, 0, 0, 0, 1, 1]


def test_list_names_reports_cells_and_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PUBLISHED / "agru_authors", tmp_path / "reports/published/agru_authors")
    for name in ("begun", "damaged"):
        (tmp_path / "reports" / name).mkdir()
    shutil.copy(PUBLISHED / "agru_authors/report.json", tmp_path / "reports/begun")
    (tmp_path / "reports/damaged/report.json").write_text("{")
    begun, damaged, published, protocols, cells, tasks = rnnbench_here("list").stdout.splitlines()
    assert begun == "reports/begun: 0 of 15 runs"
    assert "report.json is missing or damaged" in damaged
    assert published == "reports/published/agru_authors: 15 of 15 runs"
    assert "row_mnist, " in protocols and "agru, " in cells and "adding_problem, " in tasks


def test_show_prints_the_score_and_the_parameters_of_a_run(tmp_path):
    text = rnnbench_here("show", PUBLISHED / "agru_authors/runs/gru-seed42").stdout
    assert text.startswith("gru, seed 42, is completed.\ntest accuracy: 98.") and "epochs: " in text
    record = {"format": 2, "status": "failed", "reason": "the loss is nan", "variant": "gru"}
    (tmp_path / "run.json").write_text(json.dumps({**record, "model": "gru", "seed": 3}))
    text = rnnbench_here("show", tmp_path).stdout
    assert text.startswith("gru, seed 3, is failed.\n") and "reason: the loss is nan\n" in text
    for folder in (tmp_path / "none", "/", "/nowhere"):
        assert "has no run" in one_sentence(rnnbench_here("show", folder))


def test_check_prints_the_parameters_or_names_the_file():
    assert "hidden_size: 128\n" in rnnbench_here("check", "quick").stdout
    assert "nowhere.yaml" in one_sentence(rnnbench_here("check", "nowhere.yaml"))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["show", PUBLISHED / "agru_authors/runs/gru-seed42"]]
)
def test_what_is_printed_to_a_full_disk_ends_with_a_sentence(arguments):
    with open("/dev/full", "w") as full:
        command = [RNNBENCH, *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.startswith("rnnbench: A file, or what this")
    assert "No space left on device" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_tilde_is_the_home_folder_wherever_a_path_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.output_folder("~/mine") == tmp_path / "mine"
    assert cli.PATH.convert("~/times.json", None, None) == tmp_path / "times.json"
    assert "no-such" in str(cli.PATH.convert("~no-such/x", None, None))


def test_verify_prints_each_problem_and_fails(tmp_path):
    shutil.copytree(PUBLISHED / "agru_authors", tmp_path / "agru_authors")
    path = tmp_path / "agru_authors/results.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]))
    result = rnnbench_here("verify", tmp_path / "agru_authors")
    assert "gru" in result.stdout and "checks that failed" in one_sentence(result)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "epoch=3"], "unknown key 'epoch'"),
        (["--set", "epochs"], "--set epochs: write KEY=VALUE"),
        (["--runs", "0"], "runs: input should be greater than or equal to 1"),
        (["--models", "lstm,gur"], "models: 'gur' is unknown"),
        (["--models", "lstm", "--set", "gamma=0.5"], "gamma is an option of agru"),
        (["--profile", "nowhere"], "name a folder of profiles/, such as local"),
        (["--profile", "slurm"], "run pip install snakemake-executor-plugin-slurm"),
        (["--output-dir", "/proc/nowhere"], "/proc/nowhere: the output folder cannot be written"),
        (["--output-dir", ""], "--output-dir is empty"),
    ],
)
def test_wrong_options_are_a_sentence_and_make_no_folder(
    tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.setattr(launch, "find_spec", lambda module: None)
    parameters = write_tiny(tmp_path / "p.yaml")
    place = [] if "--output-dir" in arguments else ["--output-dir", tmp_path / "out"]
    assert sentence in one_sentence(rnnbench_here("run", parameters, *place, *arguments))
    assert not (tmp_path / "out").exists()
