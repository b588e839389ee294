"""The front door and the workflow behind it.

The report that was made for real is read here, and the command line mostly called in this
process; what runs notebooks has stand-ins for those whose content it does not look at.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import one_sentence, rnnbench, rnnbench_here, write_tiny

from rnnbench_nb import launch
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.report import load_run, read_csv, write_csv
from rnnbench_nb.runs import train_run


def test_a_report_has_all_that_was_promised(report):
    wanted = ["index.html", "results.csv", "history.csv", "results_summary.md", "protocol.yaml"]
    wanted += [f"figures/{name}.{kind}" for kind in ("png", "svg")
               for name in ("training_curves", "error_curves", "test_comparison")]  # fmt: skip
    pages = ["01_data", "03_compare", "04_eigenvalues", "07_gradients"]
    wanted += [f"pages/{page}.html" for page in pages]
    for run in ("lstm-seed42", "agru-seed42"):
        wanted.append(f"pages/02_train-{run}.html")
        files = ["02_train.ipynb", "run.json", "history.csv", "best.safetensors"]
        files += ["initial.safetensors", "predicted.safetensors", "outputs.safetensors"]
        wanted += [f"runs/{run}/{file}" for file in files]
    wanted.append("runs/agru-seed42/recurrent.safetensors")
    assert [file for file in wanted if not (report / file).exists()] == []
    assert not list(report.glob("**/*.failed"))
    assert max(page.stat().st_size for page in report.glob("**/*.html")) < 3e6


def test_a_second_command_does_nothing_and_says_so(report):
    parameters = report.parent / "tiny.yaml"
    before = {path: path.stat().st_mtime_ns for path in report.glob("**/*.ipynb")}
    again = rnnbench_here("run", parameters, "--output-dir", report)
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in report.glob("**/*.ipynb")}


def test_more_seeds_rerun_nothing_and_other_parameters_are_refused(
    report, tmp_path, quick_rnnbench
):
    out = tmp_path / "report"
    shutil.copytree(report, out)
    parameters = report.parent / "tiny.yaml"
    refused = quick_rnnbench("run", parameters, "--output-dir", out, "--set", "gamma=0.5")
    assert "it holds runs of agru with other parameters (gamma: 0.01 there" in one_sentence(refused)
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}
    asked = ["--runs", "2", "--models", "agru"]
    more = quick_rnnbench("run", parameters, "--output-dir", out, *asked)
    assert more.returncode == 0, more.stderr
    results = read_csv(out / "results.csv")
    assert results[["variant", "seed"]].values.tolist() == [["agru", 42], ["agru", 43]]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert not (out / "pages/02_train-lstm-seed42.html").exists()  # no stale page


def test_leaving_a_model_out_changes_nothing_for_the_others(report, tmp_path):
    protocol = load_protocol(report.parent / "tiny.yaml", {"models": ["agru"]})
    launch.write_parameters(tmp_path, protocol)
    parameters = tmp_path / "variants/agru.yaml"  # all that a training is given
    assert [path.name for path in parameters.parent.iterdir()] == ["agru.yaml"]
    parameters = run_parameters(yaml.safe_load(parameters.read_text()), "variants/agru.yaml")
    run = train_run(parameters, tmp_path / "run", report=lambda line: None)
    weights = "best.safetensors"
    theirs = report / "runs/agru-seed42" / weights
    assert (run.folder / weights).read_bytes() == theirs.read_bytes()


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path, quick_rnnbench):
    bad = "bad: {model: lstm, learning_rate: 1.0e+30, optimiser: sgd, clip_norm: null}"
    variants = f"{{größe: {{model: gru}}, '007': {{model: gru}}, 'None': {{model: gru}}, {bad}}}"
    parameters = write_tiny(tmp_path / "p.yaml", variants=variants, models="[gru, lstm]")
    out = tmp_path / "out"
    real = "bad-seed42|03_compare"  # the notebook that fails, and the one that reads of it
    result = quick_rnnbench("run", parameters, "--output-dir", out, RNNBENCH_REAL_NOTEBOOKS=real)
    message = one_sentence(result)
    assert "bad-seed42 is failed: bad-seed42: the loss is" in message
    assert re.search(r"in epoch 1 at step \d \(the last finite loss was", message)
    results = read_csv(out / "results.csv")
    assert results["variant"].tolist() == ["größe", "007", "None", "bad"]  # names are text
    assert results["status"].tolist() == [*["completed"] * 3, "failed"]
    assert "bad-seed42 is failed: " in (out / "results_summary.md").read_text()
    assert "the loss is" in (out / "index.html").read_text()
    page = (out / "pages/02_train-bad-seed42.html").read_text()
    assert "This notebook stopped with an error" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--set", "epoch=3"],
            "the options: unknown key 'epoch'; the nearest known key is 'epochs'",
        ),
        (["--set", "epochs"], "--set epochs: write KEY=VALUE"),
        (["--seed", "1", "--seed", "2"], "'seed' is given twice among the options"),
        (["--seed", "1", "--set", "seed=2"], "'seed' is given twice among the options"),
        (["--runs", "0"], "the options: runs: input should be greater than or equal to 1"),
        (["--models", "lstm,gur"], "models: 'gur' is unknown; it must be one of agru, antisym"),
        (["--set", "dataset=minst"], "dataset: input should be 'mnist', 'fashion_mnist' or"),
        (["--set", "reading=column"], "reading: input should be 'row' or 'pixel', but 'column'"),
        (["--models", "lstm", "--set", "gamma=0.5"], "gamma is an option of agru, antisym"),
        (["--profile", "nowhere"], "--profile: profiles/ has no 'nowhere'; it must be one of"),
        (["--output-dir", "/proc/nowhere"], "/proc/nowhere: the output folder cannot be written"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_options_get_one_sentence(tmp_path, arguments, sentence):
    parameters = write_tiny(tmp_path / "p.yaml")
    place = [] if "--output-dir" in arguments else ["--output-dir", tmp_path / "out"]
    assert sentence in one_sentence(rnnbench_here("run", parameters, *place, *arguments))
    assert not (tmp_path / "out/runs").exists()


def test_bad_parameter_files_get_one_sentence_through_make(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["make", "-s", "report", f"PARAMS={tmp_path}/empty.yaml", "READY=", "BIN="
         + os.path.relpath(os.path.dirname(sys.executable), PROJECT)],
        capture_output=True, text=True, cwd=PROJECT, env=environment,
    )  # fmt: skip
    assert "the parameter file is empty" in one_sentence(result)


def test_two_commands_on_one_folder_are_refused(tmp_path):
    from filelock import FileLock

    parameters = write_tiny(tmp_path / "p.yaml")
    with FileLock(tmp_path / ".lock"):
        result = rnnbench_here("run", parameters, "--output-dir", tmp_path)
    assert "another rnnbench is at work there" in one_sentence(result)


def test_a_dry_run_leaves_what_failed_in_its_place(report, tmp_path):
    shutil.copytree(report, tmp_path / "out")
    marker = tmp_path / "out/notebooks/03_compare.ipynb.failed"
    marker.touch()
    parameters = report.parent / "tiny.yaml"
    rnnbench_here("run", parameters, "--output-dir", tmp_path / "out", "--dry-run")
    assert marker.exists() and marker.with_suffix("").exists()


def test_a_dry_run_says_what_would_run_and_leaves_nothing(report, tmp_path):
    parameters = write_tiny(tmp_path / "p.yaml", runs=3)
    result = rnnbench_here("run", parameters, "--output-dir", tmp_path / "out", "--dry-run")
    (line,) = result.stdout.splitlines()
    assert line.startswith("6 trainings (2 variants, 3 seeds); to train: lstm-seed42, agru-seed42")
    assert "and 3 more. What each" in line and not (tmp_path / "out").exists()
    again = rnnbench_here("run", parameters, "--output-dir", report, "--dry-run").stdout
    assert ", 2 of them finished; to train: lstm-seed43, agru-seed43, lstm-seed44" in again


def test_a_named_folder_without_data_or_with_a_truncated_file_stops_the_quick_report(tmp_path):
    arguments = ["run", "quick", "--output-dir", tmp_path / "out"]
    result = rnnbench_here(*arguments, RNNBENCH_DATA=str(tmp_path / "absent"))
    assert str(tmp_path / "absent") in one_sentence(result)
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 too short")
    result = rnnbench_here(*arguments, RNNBENCH_DATA=str(tmp_path))
    assert "train-images-idx3-ubyte" in one_sentence(result)
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_check_prints_what_it_read():
    result = rnnbench("check", "params/row_mnist.yaml")  # in a process, as a user does
    assert result.returncode == 0
    assert yaml.safe_load(result.stdout) == load_protocol(PROJECT / "params/row_mnist.yaml").dump()
    assert "nowhere.yaml" in one_sentence(rnnbench_here("check", "nowhere.yaml"))


def test_data_verifies_what_is_there(tmp_path):
    result = rnnbench_here("data", write_tiny(tmp_path / "p.yaml"))
    assert "digits is complete and verified" in result.stdout


def test_verifying_recomputes_the_table_from_the_predictions(report, tmp_path):
    result = rnnbench_here("verify", report)
    assert result.returncode == 0, result.stderr
    assert "agrees with the predictions of 2 runs" in result.stdout
    shutil.copytree(report, tmp_path / "changed")
    table = read_csv(report / "results.csv")
    table.loc[1, "f1"] += 1e-15
    write_csv(tmp_path / "changed/results.csv", table)
    assert "agru-seed42 has f1" in one_sentence(rnnbench_here("verify", tmp_path / "changed"))


def test_publishing_copies_the_light_part(report, tmp_path):
    published = tmp_path / "published"
    (published / "runs/lstm-seed7").mkdir(parents=True)  # of an earlier publication
    (published / "protocol.yaml").touch()
    result = rnnbench_here("publish", report, "--to", published)
    assert result.returncode == 0, result.stderr
    assert (published / "index.html").exists()
    assert not (published / "runs/lstm-seed7").exists()
    assert len(list(published.glob("pages/02_train-*.html"))) == 1
    assert (published / "predicted.safetensors.xz").exists()
    assert (published / "analyses/eigenvalues/findings.json").exists()
    endings = {path.suffix for path in published.glob("**/*") if path.is_file()}
    assert endings == {".html", ".ipynb", ".csv", ".md", ".yaml", ".svg", ".json", ".xz"}
    assert not list(published.glob("**/best.safetensors"))
    assert "published already" in one_sentence(rnnbench_here("publish", published))
    assert (published / "index.html").exists()


def stand_in(folder, name, script):
    """A program of this name, found before any other."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_slurm_jobs_of_a_killed_command_are_ended_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    out, queue = tmp_path / "a report", tmp_path / "queue"
    queue.write_text(f"7 rule_train {out}\n8 rule_train /elsewhere\n9 my_own {out}\n")
    stand_in(tmp_path, "squeue", f"cat {queue}")
    stand_in(tmp_path, "scancel", f'sed -i "/^$1 /d" {queue}')
    launch.cancel_slurm_jobs(out)
    assert queue.read_text() == f"8 rule_train /elsewhere\n9 my_own {out}\n"
    stand_in(tmp_path, "squeue", "echo the controller is away >&2; exit 1")
    with pytest.raises(UserError, match=r"Slurm does not say .* \(the controller is away\); try"):
        launch.cancel_slurm_jobs(out)


def test_a_profile_whose_executor_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda module: None)
    arguments = ["run", write_tiny(tmp_path / "p.yaml"), "--output-dir", tmp_path / "out"]
    result = rnnbench_here(*arguments, "--profile", "slurm")
    assert result.stderr == (
        "rnnbench: --profile slurm needs snakemake-executor-plugin-slurm; install it: "
        "pip install snakemake-executor-plugin-slurm.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_trainings_on_a_gpu_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "has_gpu", lambda: True)
    parameters = write_tiny(tmp_path / "p.yaml", models="[gru]", runs=3, epochs=30)
    result = rnnbench_here("run", parameters, "--output-dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    records = [load_run(folder).record for folder in tmp_path.glob("out/runs/*")]
    times = sorted((record["started"], record["finished"]) for record in records)
    assert all(times[i][1] <= times[i + 1][0] for i in range(2))
