"""What `rnnbench run` does around Snakemake, whose place a function takes here."""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import one_sentence, rnnbench_here, write_tiny

from rnnbench_nb import folders, launch, runs
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.results import Report, write_tables
from rnnbench_nb.runs import train_run


def workflow(out, profile, jobs, on_gpu, look, lock):
    """The trainings of a report and its tables, without notebooks and pages."""
    for parameters in launch.runs_of(load_protocol(out / "protocol.yaml")):
        try:
            train_run(parameters, out / "runs" / parameters.run, report=lambda line: None)
        except UserError:
            continue
    write_tables(Report(out))
    (out / "index.html").touch()
    return 0


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A function that runs the command on a tiny protocol, with the function above."""
    monkeypatch.setattr(launch, "snakemake", workflow)
    monkeypatch.setattr(runs, "measure", lambda *a: ({}, {}))
    parameters = write_tiny(tmp_path / "p.yaml", models="[gru, agru]")
    out = tmp_path / "out"
    return out, lambda *options: rnnbench_here("run", parameters, "--output-dir", out, *options)


def written(out):
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}


def test_a_report_ends_with_its_table_and_its_place_and_runs_are_trained_once(here):
    out, run = here
    lines = run().stdout.splitlines()
    assert lines[1] == f"The report has 2 trainings; their logs are in {out}/logs."
    assert lines[3].startswith("2 of 2 trainings have ended; agru-seed42 has accuracy ")
    assert [line.split()[0] for line in lines[-6:-3]] == ["variant", "gru", "agru"]
    assert lines[-3].startswith("Result: ") and lines[-3].endswith("one seed: no verdict.")
    assert lines[-2].startswith("Next: a verdict needs five seeds")
    assert lines[-1] == str(out / "index.html")
    before = written(out)
    assert run("--models", "gru").returncode == 0  # a narrower protocol, and back
    assert (
        run("--runs", "2")
        .stdout.splitlines()[2]
        .startswith("3 of 4 trainings have ended; gru-seed43")
    )
    assert before.items() <= written(out).items()


def test_stale_runs_are_told_and_stay(here, monkeypatch):
    out, run = here
    monkeypatch.setattr(runs, "stale_runs", lambda report: ["gru-seed42"] if report.runs else [])
    run()
    before = written(out)
    assert "the code has changed since gru-seed42; to train again, name another" in run().stderr
    assert before == written(out)


def test_runs_with_other_parameters_are_not_mixed(here):
    _, run = here
    run("--set", "gamma=0.5")
    refused = one_sentence(run("--set", "gamma=0.1"))
    assert "has runs of agru with other parameters (gamma is 0.5 there, but 0.1 now)" in refused


def test_leaving_a_model_out_changes_nothing_for_the_others(here, tmp_path):
    out, run = here
    run()
    alone = rnnbench_here(
        "run", tmp_path / "p.yaml", "--output-dir", tmp_path / "alone", "--models", "agru"
    )
    assert alone.returncode == 0
    weights = [folder / "runs/agru-seed42/best.safetensors" for folder in (out, tmp_path / "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_reason_that_is_told_is_the_runs_own(here, monkeypatch):
    out, run = here
    diverge = ["--set", "learning_rate=1e30", "--set", "optimiser=sgd", "--set", "clip_norm=null"]
    result = run(*diverge)  # the report is made, and says which runs it lacks
    lines = [line for line in result.stderr.splitlines() if line.startswith("rnnbench: ")]
    assert len(lines) == 2 and all("loss" in line and "is failed" in line for line in lines)
    assert "No run has a test score." in result.stdout
    monkeypatch.setattr(launch, "snakemake", lambda *a: 1)  # no report: the reason is the same
    assert "the workflow stopped early (gru-seed42: the loss" in one_sentence(run(*diverge))


@pytest.mark.parametrize("kind", ["temporary", "shared", "of the report"])
def test_a_full_disk_is_named(here, monkeypatch, tmp_path, kind):
    out, run = here
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    full = {"temporary": tmp_path / "t", "shared": Path("/dev/shm"), "of the report": out}[kind]
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda place: usage(place)._replace(free=1 if place == full else 1e9)
    )
    monkeypatch.setattr(launch, "snakemake", lambda *a: 1)
    assert f"(the disk of {full} is full; free some space)" in one_sentence(run())


def test_an_account_without_a_name_or_home_makes_a_report(here, monkeypatch):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    out, run = here
    result = run()
    assert result.returncode == 0, result.stderr
    values = launch.environment(out)
    assert values["LOGNAME"] == f"uid{os.getuid()}" and values["HOME"] == "/nonexistent"
    assert values["XDG_CACHE_HOME"].startswith(str(out))


def test_of_a_run_that_diverges_no_setting_is_a_score_and_the_table_is_sound(here, tmp_path):
    out, run = here
    wild = (
        "{model: gru, learning_rate: 1.0e+30, optimiser: sgd, clip_norm: null, precision: medium}"
    )
    settings = {"models": "[gru]", "variants": f"{{recall: {wild}, f1: {{model: gru}}}}"}
    write_tiny(tmp_path / "p.yaml", **settings, seed=7, batch_size=64)
    assert "recall-seed7 is failed" in run().stderr
    table = pd.read_csv(out / "results.csv").set_index("variant")
    scores = ["accuracy", "precision", "recall", "f1", "loss", "epochs", "best_epoch", "seconds"]
    assert table.loc["recall", scores].isna().all() and table.loc["f1", scores].notna().all()
    assert rnnbench_here("verify", out).returncode == 0
    summary = (out / "results_summary.md").read_text()
    assert "recall-seed7 is failed: " in summary and summary.count("\n| ") == 2


def test_a_second_command_waits_until_all_work_of_the_first_has_ended(tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with launch.claim(tmp_path / "out") as lock:
        work = subprocess.Popen(["sleep", "0.5"], pass_fds=[lock])
    with launch.claim(tmp_path / "link"):
        assert work.wait(timeout=5) == 0
    assert "another rnnbench, which uses" in capsys.readouterr().err


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
    with pytest.raises(UserError, match="the controller is away"):
        launch.cancel_slurm_jobs(out)


def test_what_breaks_a_kernel_is_taken_from_it_and_nothing_else(tmp_path, monkeypatch):
    for name in (*launch.BREAKING, "IPYTHONDIR", "JUPYTER_DATA_DIR", "KMP_AFFINITY"):
        monkeypatch.setenv(name, "/of/other/work")
    monkeypatch.setenv("HOME", "/that/cannot/be/written")
    values = launch.environment(tmp_path)
    assert values["KMP_AFFINITY"] == "/of/other/work" and not {*launch.BREAKING} & {*values}
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "XDG_CACHE_HOME"):
        assert values[name].startswith(str(tmp_path)), name


def test_a_notebook_that_was_opened_and_saved_has_not_changed(tmp_path, monkeypatch):
    protocol = load_protocol(write_tiny(tmp_path / "p.yaml"))
    path, out = tmp_path / "notebooks/03_compare.ipynb", tmp_path / "out"
    path.parent.mkdir()
    shutil.copy(PROJECT / "notebooks/03_compare.ipynb", path)
    monkeypatch.setattr(launch, "SOURCES", tmp_path)
    saved, source, times = nbformat.read(path, as_version=4), out / ".sources/03_compare.ipynb", []
    *_, code = (cell for cell in saved.cells if cell.cell_type == "code")
    for change in ({}, {"execution_count": 3, "metadata": {"collapsed": True}}, {"source": "1"}):
        code.update(change)
        nbformat.write(saved, path)
        launch.prepare(out, protocol, "p")
        times.append(source.stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]


def test_times_in_the_future_become_present(tmp_path):
    protocol, out = load_protocol(write_tiny(tmp_path / "p.yaml")), tmp_path / "out"
    launch.prepare(out, protocol, "p")
    names = ".sources/03_compare.ipynb", "protocol.yaml", "runs/agru-seed42/02_train.ipynb"
    (out / "runs/agru-seed42").mkdir(parents=True)
    for path in map(out.joinpath, names):
        path.touch()
        os.utime(path, (time.time() + 9e4,) * 2)
    launch.prepare(out, protocol, "p")
    assert all((out / name).stat().st_mtime <= time.time() for name in names)


@pytest.mark.parametrize(("cells_run", "tries"), [(0, 2), (1, 1)], ids=["none ran", "one failed"])
def test_a_notebook_whose_kernel_never_began_is_tried_once_more(
    tmp_path, monkeypatch, cells_run, tries
):
    program = f"""echo >> tries
[ {cells_run} = 0 ] || echo '"execution_count": 1,' > "$2"
[ $(wc -l < tries) = 2 ]"""
    stand_in(tmp_path, "papermill", program)
    text = (PROJECT / "Snakefile").read_text()
    shell = eval(text[text.index("execute = (") + 10 : text.index("into_report")])
    for old, new in {
        "%s": "",
        "{{": "{",
        "}}": "}",
        "{input.notebook:q}": "in.ipynb",
        "{output:q}": "out.ipynb",
        "{log:q}": "log.txt",
    }.items():
        shell = shell.replace(old, new)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["bash", "-ec", shell], cwd=tmp_path, check=True, capture_output=True)
    assert len((tmp_path / "tries").read_text().splitlines()) == tries
    assert (tmp_path / "out.ipynb.failed").exists() == (tries == 1)


def test_a_notebook_that_failed_is_executed_again(tmp_path):
    protocol = load_protocol(write_tiny(tmp_path / "p.yaml"))
    launch.prepare(tmp_path / "out", protocol, "p")
    for name in ("notebooks/03_compare.ipynb", "runs/agru-seed42/02_train.ipynb"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True)
        for file in (path, path.with_name(f"{path.name}.failed")):
            file.touch()
    launch.prepare(tmp_path / "out", protocol, "p")
    assert not list((tmp_path / "out").glob("[!.]*/**/*.ipynb*"))
    assert folders.file_list(tmp_path / "out") >= {
        "runs/agru-seed42/",
        "notebooks/03_compare.ipynb",
    }
