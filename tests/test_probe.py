"""The probe tells code that computes something else from rounding; where a run was made."""

import json
import math
import os
import subprocess

import pytest
import torch
from conftest import TINY

from rnnbench_nb import probe as module
from rnnbench_nb import runs
from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT, read_file
from rnnbench_nb.folders import RECORDS
from rnnbench_nb.probe import agrees, probe, short_parameters
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.runs import commit, environment, task_of

VALUES = {**TINY, "hidden_size": 32, "learning_rate": 1e-3, "epochs": 50}


def probed(**values) -> module.Probe:
    values = {"model": "agru", **VALUES, **values}
    if values.get("task") in ("adding_problem", "copying_memory"):
        del values["dataset"]
    parameters = run_parameters(values, "the test")
    task = task_of(parameters)
    return probe(parameters, task, task.load(parameters.seed))


def test_it_is_one_for_all_seeds_and_leaves_the_random_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = probed(dropout=0.2)
    assert torch.equal(torch.get_rng_state(), before)
    assert probed(dropout=0.2, seed=7) == first == json.loads(json.dumps(first))


@pytest.mark.parametrize(
    "values",
    [
        {"task": "noise_padded", "padded_length": 40},
        {"task": "adding_problem", "length": 40},
        {"task": "copying_memory", "delay": 20},
        {"reading": "pixel"},
    ],
    ids=str,
)
def test_every_task_has_one_in_which_patience_acts(values):
    numbers = probed(model="gru", **values)
    assert len(numbers["loss"]) == 3  # of four epochs
    assert all(math.isfinite(each) for kind in numbers.values() for each in kind)


def test_schedule_and_steps_act():
    assert len(set(probed(model="lstm")["learning_rate"])) == 2
    free = {"steps": None, "patience": None}
    parameters = run_parameters({"model": "agru", **VALUES, **free, "steps": 100}, "the test")
    assert short_parameters(parameters).steps == 7  # of the nine in three epochs
    assert not agrees(probed(**free), probed(**free | {"steps": 100}), "highest")


def test_changes_of_what_the_code_computes_are_seen_and_rounding_is_not(monkeypatch):
    before = probed()
    monkeypatch.setattr(CELLS["agru"], "kernels", ())
    loop = probed()
    assert before != loop and agrees(before, loop, "highest")
    assert not agrees(before, probed(gamma=0.0101), "highest")  # 1% higher
    assert not agrees(before, probed(weight_decay=0.01), "highest")
    step, fit = CELLS["agru"].step, module.fit
    with monkeypatch.context() as patch:
        wrong = staticmethod(lambda u, h, *rest: step(u, 1.001 * h, *rest))
        patch.setattr(CELLS["agru"], "step", wrong)
        assert not agrees(before, probed(), "highest")

    def patient(model, data, task, parameters, **options):
        longer = parameters.model_copy(update={"patience": parameters.patience + 1})
        return fit(model, data, task, longer, **options)

    monkeypatch.setattr(module, "fit", patient)
    assert not agrees(before, probed(), "highest")


def test_a_probe_that_is_missing_agrees_with_nothing_and_one_that_diverges_with_its_like():
    diverged = probed(optimiser="sgd", learning_rate=1e30, clip_norm=None)
    assert diverged == {} and agrees(diverged, {}, "highest")
    assert not any(agrees(other, probed(), "highest") for other in (None, diverged))


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", folder, *who, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_the_commit_is_the_projects_own_and_dirty_if_its_code_changed(monkeypatch, tmp_path):
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "around")
    git(tmp_path, "tag", "v1")
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(runs, "SOURCES", tmp_path / "inside")
    assert commit() == "unknown"
    monkeypatch.setattr(runs, "SOURCES", tmp_path)
    ours = commit()
    assert len(ours) == 40  # although a tag names it
    monkeypatch.setenv("GIT_DIR", os.devnull)
    assert commit() == ours
    (tmp_path / "notes.txt").write_text("no code")
    assert commit() == ours
    (tmp_path / "rnnbench_nb").mkdir()
    (tmp_path / "rnnbench_nb/new_cell.py").write_text("")
    assert commit() == f"{ours}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] == "unknown"


def test_the_commits_of_published_runs_are_in_the_history():
    asked = ["git", "-C", PROJECT, "rev-parse", "--is-shallow-repository"]
    if subprocess.run(asked, capture_output=True, text=True).stdout.strip() != "false":
        pytest.skip("this copy of the project has no whole history")
    files = (PROJECT / "reports/published").glob(f"*/{RECORDS}")
    records = [record for path in files for record in json.loads(read_file(path))]
    named = {record["commit"].removesuffix("-dirty") for record in records}
    command = ["git", "-C", PROJECT, "rev-list", "HEAD"]
    history = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert len(named) > 10 and named <= set(history)
