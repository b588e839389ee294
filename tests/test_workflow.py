"""The whole workflow, for real: one finished report, and what ends a command."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pandas as pd
import psutil
import pytest
from conftest import RNNBENCH, one_sentence, rnnbench, rnnbench_here, write_tiny

from rnnbench_nb.files import PROJECT
from rnnbench_nb.results import Report

RUN = "runs/gru-seed42"


def test_a_report_has_what_was_promised(report):
    wanted = ["index.html", "results.csv", "history.csv", "results_summary.md", "protocol.yaml"]
    wanted += [f"figures/{name}.{kind}" for kind in ("png", "svg")
               for name in ("training_curves", "error_curves", "test_comparison")]  # fmt: skip
    pages = ["01_data", "03_compare", "04_eigenvalues", "07_gradients"]
    wanted += [f"pages/{page}.html" for page in pages]
    for run in ("lstm-seed42", "agru-seed42"):
        files = ("02_train.ipynb", "run.json", "history.csv", "best.safetensors")
        wanted += [f"pages/02_train-{run}.html", *(f"runs/{run}/{file}" for file in files)]
    assert [file for file in wanted if not (report / file).exists()] == []
    assert not list(report.glob("**/*.failed"))


def test_a_second_command_does_nothing_and_says_so(report):
    before = {path: path.stat().st_mtime_ns for path in report.glob("**/*.ipynb")}
    again = rnnbench_here("run", report.parent / "tiny.yaml", "--output-dir", report)
    assert again.returncode == 0 and "Nothing to do" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in report.glob("**/*.ipynb")}


def test_the_tables_agree_with_the_predictions(report):
    assert "agrees with the predictions of 2 runs" in rnnbench_here("verify", report).stdout


def processes_of(out) -> list[psutil.Process]:
    """The processes of a report's workflow, by the environment that it gives them."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("IPYTHONDIR", "").startswith(f"{out}/"):
                processes.append(process)
    return processes


def wait(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A parameter file whose training writes many checkpoints, and its report."""
    folder = tmp_path_factory.mktemp("unbroken")
    settings = {"models": "[gru]", "hidden_size": 16, "epochs": 80, "patience": 80}
    parameters = write_tiny(folder / "p.yaml", **settings, batch_size=611)
    whole = rnnbench("run", parameters, "--output-dir", folder / "out")
    assert whole.returncode == 0, whole.stderr
    return parameters, folder / "out"


def same_results(whole, out) -> None:
    for table in ("results.csv", "history.csv"):
        frames = [pd.read_csv(folder / table).drop(columns="seconds") for folder in (whole, out)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    weights = f"{RUN}/best.safetensors"
    assert (whole / weights).read_bytes() == (out / weights).read_bytes()


BEGUN = {  # what is there when a phase has begun
    "data": "logs/01_data.txt", "training": f"{RUN}/checkpoint.pt",
    "analysis": "logs/03_compare.txt", "pages": "logs/render.txt",
}  # fmt: skip
KILLS = [("training", "SIGTERM", "command"), ("training", "SIGKILL", "command"),
         ("training", "SIGHUP", "command"), ("training", "SIGINT", "command"),
         ("training", "SIGKILL", "supervisor.py"), ("training", "SIGKILL", "snakemake"),
         ("training", "SIGKILL", "papermill"), ("training", "SIGKILL", "ipykernel_launcher"),
         *((phase, "SIGKILL", "everything") for phase in BEGUN)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "name", "victim"), KILLS)
def test_killed_anywhere_all_ends_and_the_same_command_gives_the_same_results(
    unbroken, tmp_path, phase, name, victim
):
    parameters, whole = unbroken
    out, theirs = tmp_path / "out", {"runs/gru-seed42/notes.txt": b"mine", "mine.R": b"x <- 1"}
    arguments = ["run", str(parameters), "--output-dir", str(out)]
    command = subprocess.Popen(
        [RNNBENCH, *arguments], cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    wait(lambda: (out / BEGUN[phase]).exists(), 300)
    for file, data in theirs.items():
        (out / file).parent.mkdir(exist_ok=True, parents=True)
        (out / file).write_bytes(data)
    if victim == "command":
        command.send_signal(getattr(signal, name))
    else:
        for again in range(5 if victim == "everything" else 1):
            # A process that is just starting has no environment yet by which it can be found.
            time.sleep(0.2 * again)
            for process in processes_of(out):
                with suppress(psutil.Error):
                    if victim == "everything" or victim in " ".join(process.cmdline()):
                        process.send_signal(getattr(signal, name))
            if victim == "everything":
                command.kill()
    start = time.monotonic()
    _, errors = command.communicate(timeout=300)
    assert "Traceback" not in errors or name == "SIGINT"
    if victim in ("command", "everything", "supervisor.py"):
        wait(lambda: not processes_of(out), 10 - (time.monotonic() - start))
    second = rnnbench(*arguments)
    assert second.returncode == 0, second.stderr
    same_results(whole, out)
    assert {file: (out / file).read_bytes() for file in theirs} == theirs
    assert processes_of(out) == []


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path):
    bad = "bad: {model: lstm, learning_rate: 1.0e+30, optimiser: sgd, clip_norm: null}"
    variants = f"{{größe: {{model: gru}}, '007': {{model: gru}}, {bad}}}"
    parameters = write_tiny(tmp_path / "p.yaml", variants=variants, models="[gru, lstm]")
    result = rnnbench("run", parameters, "--output-dir", tmp_path / "out")
    assert "bad-seed42 is failed: bad-seed42: the loss is" in one_sentence(result)
    table = Report(tmp_path / "out").results
    assert table["variant"].tolist() == ["größe", "007", "bad"]  # names are text
    assert table["status"].tolist() == ["completed", "completed", "failed"]
    assert "the loss is" in (tmp_path / "out/index.html").read_text()


@pytest.mark.slow
def test_a_full_disk_loses_nothing_finished_and_the_same_command_goes_on(unbroken, tmp_path):
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    with suppress(OSError):
        probe = [*apart, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if subprocess.run(probe, capture_output=True).returncode:
            pytest.skip("this system lets no user mount a file system of their own")
    parameters, whole = unbroken
    (tmp_path / "disk").mkdir()
    script = """
        mount -t tmpfs -o size=64m tmpfs "$1"
        cp -a "$2" "$1/out"; rm -r "$1/out/runs/gru-seed42" "$1/out/index.html"
        head -c 1G /dev/zero > "$1/filler" 2> /dev/null || truncate -s -150k "$1/filler"
        "$3" run "$4" --output-dir "$1/out" && exit 9
        rm "$1/filler"
        "$3" run "$4" --output-dir "$1/out" > /dev/null
        cp -a "$1/out" "$5"
    """
    names = [tmp_path / "disk", whole, RNNBENCH, parameters, tmp_path / "kept"]
    command = [*apart, "sh", "-ec", script, "sh", *map(str, names)]
    result = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    # It is the run or, where its page has no room either, the command that tells of the disk.
    assert "free some space" in result.stderr and "Traceback" not in result.stderr
    assert f"{tmp_path / 'disk/out'}" in result.stderr
    same_results(whole, tmp_path / "kept")


@pytest.mark.slow
def test_a_notebook_that_is_damaged_stops_itself_alone(unbroken, tmp_path):
    parameters, whole = unbroken
    skipped = shutil.ignore_patterns(".*", "reports", "tests", "__pycache__")
    shutil.copytree(PROJECT, tmp_path / "project", ignore=skipped)
    shutil.copytree(whole, tmp_path / "out")
    notebook = tmp_path / "project/notebooks/03_compare.ipynb"
    notebook.write_bytes(notebook.read_bytes()[:2000])
    result = subprocess.run(
        [RNNBENCH, "run", parameters, "--output-dir", tmp_path / "out"], cwd=tmp_path, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "project")},
    )  # fmt: skip
    assert "03_compare.ipynb stopped with an error, which its page and" in one_sentence(result)
    assert (tmp_path / "out/pages/01_data.html").exists()
