"""What breaks in practice, done for real: kills, a full disk, damaged files, folders not ours."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pandas as pd
import psutil
import pytest
from conftest import RNNBENCH, once, one_sentence, write_tiny

from rnnbench_nb.files import PROJECT
from rnnbench_nb.launch import OUTPUT
from rnnbench_nb.report import Report, read_csv

RUN = "runs/gru-seed42"
AFTER = {  # what a phase makes, and all that follows from it
    "pages": ["index.html", "pages", "logs/render.txt"],
    "comparison": ["results.csv", "history.csv", "results_summary.md", "figures",
                   "notebooks/03_compare.ipynb", "notebooks/07_gradients.ipynb", "analyses",
                   "logs/collect.txt"],
    "training": ["runs", f"logs/{RUN[5:]}.txt"],
    "data": ["notebooks/01_data.ipynb", "logs/01_data.txt"],
}  # fmt: skip
AFTER["comparison"] += AFTER["pages"]
AFTER["training"] += AFTER["comparison"]
AFTER["data"] += AFTER["training"]
AFTER["checkpoint"] = AFTER["training"]
BEGUN = {  # the file that a phase begins with, and the seconds after it in which the kill falls
    "data": ("logs/01_data.txt", 3.0),
    "training": (f"logs/{RUN[5:]}.txt", 3.0),
    "checkpoint": (f"{RUN}/.checkpoint.pt.*", 0.0),
    "comparison": ("logs/collect.txt", 3.0),
    "pages": ("logs/render.txt", 1.0),
}
VICTIMS = {  # a word of its command line
    "kernel": "ipykernel_launcher",
    "papermill": "papermill",
    "snakemake": "snakemake",
    "renderer": "render",
}


@pytest.fixture
def unbroken(tmp_path_factory, quick_rnnbench):
    """A parameter file whose training writes many checkpoints, and its report."""

    def make(folder: Path) -> None:
        settings = {"models": "[gru]", "hidden_size": 16, "epochs": 80, "patience": 80}
        settings["batch_size"] = 611  # two steps an epoch: it is checkpoints that are wanted
        parameters = write_tiny(folder / "p.yaml", **settings)
        whole = quick_rnnbench("run", parameters, "--output-dir", folder / "out")
        assert whole.returncode == 0, whole.stderr

    folder = once(tmp_path_factory, "unbroken", make)
    return folder / "p.yaml", folder / "out"


def back_to(phase: str, whole: Path, out: Path) -> None:
    """A copy of a finished report without what the phase and all after it made."""
    shutil.copytree(whole, out)
    for name in AFTER[phase]:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def working_on(out: Path) -> list[psutil.Process]:
    """The processes that work on an output folder, the command itself excepted."""

    def mark(process):
        try:
            return process.environ().get(OUTPUT)
        except psutil.Error:
            return None

    return [process for process in psutil.process_iter() if mark(process) == str(out)]


def kill(victim: str, command: subprocess.Popen, out: Path) -> bool:
    """Kill -9; whether there was anything to kill."""
    if victim == "everything":
        command.kill()
        return bool([process.kill() for process in working_on(out)])
    if victim == "only the command":
        running = command.poll() is None
        command.kill()
        return running
    found = [p for p in working_on(out) if VICTIMS[victim] in " ".join(_command_line(p))]
    return bool([process.kill() for process in found])


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def same_results(whole: Path, out: Path) -> None:
    for table in ("results.csv", "history.csv"):
        frames = [read_csv(folder / table).drop(columns="seconds") for folder in (whole, out)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    weights = f"{RUN}/best.safetensors"
    assert (whole / weights).read_bytes() == (out / weights).read_bytes()
    names = [{str(path.relative_to(folder)) for path in folder.glob("[!.]*/**/[!.]*")}
             for folder in (whole, out)]  # fmt: skip
    assert names[0] == names[1]


KILLS = [
    ("training", "only the command"),
    *((phase, "everything") for phase in ("training", "checkpoint", "comparison")),
]
SLOW_KILLS = [
    *((phase, "everything") for phase in ("data", "pages")),
    *((phase, victim) for phase in BEGUN if phase != "pages"
      for victim in ("kernel", "papermill", "snakemake")),
    *(("pages", victim) for victim in ("renderer", "snakemake", "only the command")),
]  # fmt: skip
# Where a few seconds must do, the training that is killed has a kernel and the rest stand-ins.
KILLS = [(*kill, RUN, "") for kill in KILLS]
KILLS += [pytest.param(*kill, ".", ".", marks=pytest.mark.slow) for kill in SLOW_KILLS]


@pytest.mark.parametrize(("phase", "victim", "real", "real_again"), KILLS)
def test_killed_anywhere_the_same_command_gives_the_same_results(
    unbroken, tmp_path, stand_ins, quick_rnnbench, phase, victim, real, real_again
):
    parameters, whole = unbroken
    out = tmp_path / "broken"
    back_to(phase, whole, out)
    arguments = ["run", str(parameters), "--output-dir", str(out)]
    environment = {**os.environ, "RNNBENCH_REAL_NOTEBOOKS": real}
    del environment["RNNBENCH_WARM_SERVER"]  # its processes do not show what they work on
    command = subprocess.Popen(
        [stand_ins / "rnnbench", *arguments], cwd=PROJECT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    sign, seconds = BEGUN[phase]
    while command.poll() is None and not list(out.glob(sign)):
        time.sleep(0.001)
    time.sleep(Random(f"{phase} {victim}").uniform(0, seconds))
    killed = False
    while command.poll() is None and not killed:
        killed = kill(victim, command, out)
    assert killed
    _, errors = command.communicate()
    if victim not in ("everything", "only the command"):
        assert command.returncode == 1
        assert "Traceback" not in errors
        assert [line for line in errors.splitlines() if line.startswith("rnnbench: ")], errors
    again = quick_rnnbench(*arguments, RNNBENCH_REAL_NOTEBOOKS=real_again)
    assert again.returncode == 0, again.stderr
    same_results(whole, out)
    assert working_on(out) == []


def as_root_of_its_own(script: str, *arguments, under=()) -> subprocess.CompletedProcess:
    """A shell script that may mount file systems that nobody else sees; `under` starts it."""
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        probe = [*apart, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        subprocess.run(probe, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets no user mount a file system of their own")
    command = [*apart, *under, "sh", "-ec", script, "sh", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, text=True, capture_output=True)


def test_a_full_disk_loses_nothing_finished_and_the_same_command_goes_on(
    unbroken, tmp_path, stand_ins
):
    parameters, whole = unbroken
    (tmp_path / "disk").mkdir()
    result = as_root_of_its_own(
        """
        mount -t tmpfs -o size=16m tmpfs "$1"
        cp -a "$2" "$1/out"
        head -c 1G /dev/zero > "$1/filler" 2> /dev/null || truncate -s -150k "$1/filler"
        "$3" run "$4" --output-dir "$1/out" && exit 9
        rm "$1/filler"
        "$3" run "$4" --output-dir "$1/out" > /dev/null
        cp -a "$1/out" "$5"
        """,
        tmp_path / "disk", _started(unbroken, tmp_path), stand_ins / "rnnbench", parameters,
        tmp_path / "kept", under=[stand_ins / "with_server"],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    sentences = [line for line in result.stderr.splitlines() if line.startswith("rnnbench: ")]
    assert len(sentences) == 1
    assert "stopped early, for the disk is full; free some space, and the same" in sentences[0]
    same_results(whole, tmp_path / "kept")


def test_a_disk_that_fills_during_a_checkpoint_keeps_the_one_before(unbroken, tmp_path):
    _, whole = unbroken
    code = """
import sys
from pathlib import Path
from rnnbench_nb.errors import UserError
from rnnbench_nb.report import load_run
from rnnbench_nb.runs import train_run

disk, parameters = Path(sys.argv[1]), load_run(sys.argv[2]).parameters
filler = disk / "filler"
filler.write_bytes(bytes(935 * 1024))  # room for one checkpoint, not for two
try:
    train_run(parameters, disk / "run")
except UserError as error:
    print(error)
print((disk / "run/checkpoint.pt").exists())
filler.unlink()
train_run(parameters, disk / "run")
ours, theirs = (Path(place, "best.safetensors") for place in (disk / "run", sys.argv[2]))
print(ours.read_bytes() == theirs.read_bytes())
"""
    (tmp_path / "disk").mkdir()
    result = as_root_of_its_own(
        'mount -t tmpfs -o size=1m tmpfs "$2"; "$1" -c "$4" "$2" "$3"',
        sys.executable, tmp_path / "disk", whole / RUN, code,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if "epoch" not in line)
    assert first == 1  # the second checkpoint found no room
    assert "checkpoint.pt cannot be written (No space left on device)" in lines[first]
    assert lines[first + 1] == "True"
    assert "epoch   2 " in lines[first + 2]  # it goes on from the first
    assert lines[-1] == "True"


def _started(unbroken, tmp_path) -> Path:
    _, whole = unbroken
    back_to("training", whole, tmp_path / "started")
    return tmp_path / "started"


def test_a_read_only_folder_is_named(unbroken):
    parameters, whole = unbroken
    result = as_root_of_its_own(
        'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; "$2" run "$3" --output-dir "$1"',
        whole, RNNBENCH, parameters,
    )  # fmt: skip
    expected = f"{whole}: the output folder cannot be written (Read-only file system)"
    assert expected in one_sentence(result)


@pytest.mark.parametrize("name", ["run.json", "history.csv", "predicted.safetensors"])
def test_a_truncated_file_of_a_finished_run_is_named(unbroken, tmp_path, name):
    _, whole = unbroken
    shutil.copytree(whole / RUN, tmp_path / RUN)
    shutil.copy(whole / "protocol.yaml", tmp_path)
    path = tmp_path / RUN / name
    path.write_bytes(path.read_bytes()[:100])
    (lost,) = Report(tmp_path).lost
    remedy = f"move {tmp_path / RUN} elsewhere and run it again."
    missing = "missing or " * (path.suffix == ".csv")
    assert lost["reason"] == f"{path} is {missing}damaged; {remedy}"


def test_a_run_that_was_damaged_and_deleted_is_made_again(unbroken, tmp_path, quick_rnnbench):
    parameters, whole = unbroken
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / RUN / "run.json").write_text("{")
    arguments = ["run", parameters, "--output-dir", out]
    assert "run.json is damaged; move" in one_sentence(quick_rnnbench(*arguments))
    (out / RUN).rename(tmp_path / "elsewhere")  # as the sentence says
    again = quick_rnnbench(*arguments)
    assert again.returncode == 0, again.stderr
    same_results(whole, out)


def test_a_corrupt_notebook_stops_itself_alone(unbroken, tmp_path, stand_ins):
    parameters, whole = unbroken
    ours = tmp_path / "project"
    skipped = shutil.ignore_patterns(".*", "reports", "tests", "__pycache__")
    shutil.copytree(PROJECT, ours, ignore=skipped)
    shutil.copytree(whole, tmp_path / "out")
    notebook = ours / "notebooks/03_compare.ipynb"
    notebook.write_bytes(notebook.read_bytes()[:2000])
    path = str(ours)
    result = subprocess.run(
        [stand_ins / "with_server", stand_ins / "rnnbench", "run", parameters,
         "--output-dir", tmp_path / "out"],
        cwd=ours, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": path, "RNNBENCH_REAL_NOTEBOOKS": "03_compare"},
    )  # fmt: skip
    sentence = one_sentence(result)
    assert "03_compare.ipynb stopped with an error, which its page and" in sentence
    assert "NotJSONError" in (tmp_path / "out/logs/03_compare.txt").read_text()
    assert "stopped" in (tmp_path / "out/pages/03_compare.html").read_text()
    assert (tmp_path / "out/pages/01_data.html").exists()
