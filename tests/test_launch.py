"""What `rnnbench run` does around Snakemake, whose place a function takes here."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import papermill
import psutil
import pytest
import yaml
from conftest import one_sentence, rnnbench_here, write_tiny
from filelock import FileLock

from rnnbench_nb import cli, launch, site
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.protocol import load_protocol, recorded_protocol
from rnnbench_nb.report import Report, write_tables
from rnnbench_nb.runs import train_run
from rnnbench_nb.tasks import TASKS


def in_process(out, profile, jobs, on_gpu, look):
    """The graph of notebooks, each an empty one, and the trainings without a notebook."""
    protocol = recorded_protocol(out / "protocol.yaml")
    pages = [*launch.data_pages(protocol), *launch.analysis_pages(protocol)]
    notebooks = [out / f"notebooks/{page}.ipynb" for page in pages]
    for seed in protocol.seeds:
        for parameters in protocol.at(seed):
            folder = out / "runs" / parameters.run
            if not (folder / "02_train.ipynb").exists():
                train_run(parameters, folder, report=lambda line: None)
                notebooks.append(folder / "02_train.ipynb")
    for path in notebooks:
        path.parent.mkdir(parents=True, exist_ok=True)
        cell = nbformat.v4.new_markdown_cell(f"# {path.stem} of {', '.join(protocol.models)}")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    write_tables(Report(out))
    (out / "logs").mkdir(exist_ok=True)
    for page in pages:
        (out / f"logs/{page}.txt").touch()
    site.build(out)
    return 0


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A function that runs the command on a tiny protocol, with the function above."""
    monkeypatch.setattr(launch, "snakemake", in_process)
    parameters = write_tiny(tmp_path / "p.yaml", models="[gru, agru]")
    out = tmp_path / "out"
    return out, lambda *options: rnnbench_here("run", parameters, "--output-dir", out, *options)


def records(out):
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("runs/*/run.json")}


def written(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}


def change(folder, **values):
    """Another value in a run.json; None takes the key out."""
    record = json.loads((folder / "run.json").read_text()) | values
    record = {key: value for key, value in record.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(record))


def test_a_narrower_report_shows_what_was_asked_for_and_keeps_the_runs(here):
    out, run = here
    assert run().returncode == 0
    (out / "analyses/eigenvalues").mkdir(parents=True)
    (out / "notebooks/09_my_own.ipynb").write_bytes(
        (out / "notebooks/03_compare.ipynb").read_bytes()
    )
    assert (out / "pages/04_eigenvalues.html").exists()
    before = written(out)
    assert run("--models", "gru").returncode == 0
    assert {path.stem for path in (out / "pages").iterdir()} == {
        "01_data", "03_compare", "07_gradients", "09_my_own", "02_train-gru-seed42",
    }  # fmt: skip
    assert "04_eigenvalues" not in (out / "index.html").read_text()
    assert not (out / "notebooks/04_eigenvalues.ipynb").exists()
    assert not (out / "logs/04_eigenvalues.txt").exists()
    assert not (out / "analyses").exists()  # of both models
    assert before == written(out)
    assert run().returncode == 0  # and back
    assert (out / "pages/04_eigenvalues.html").exists()
    assert before == written(out)


def test_a_report_says_how_far_it_is_and_ends_with_its_table_and_then_its_place(here):
    out, run = here
    lines = run().stdout.splitlines()
    assert re.match(r"[12] of 2 trainings: gru-seed42, accuracy [\d.]+%, 2 epochs", lines[1])
    assert lines[-4].split() == ["variant", "seeds", "accuracy", "%", "parameters", "epochs"]
    assert [line.split()[0] for line in lines[-3:-1]] == ["GRU", "A-GRU"]
    assert lines[-1] == str(out / "index.html")


def test_a_dry_run_removes_nothing(here):
    out, run = here
    assert run().returncode == 0
    change(out / "runs/gru-seed42", fingerprint="0" * 16)
    result = run("--models", "gru", "--again", "--dry-run")
    assert "To be trained again: gru-seed42." in result.stdout
    assert (out / "pages/04_eigenvalues.html").exists()
    assert (out / "runs/gru-seed42/run.json").exists()


def test_runs_of_other_code_are_told_and_trained_again_only_when_asked(here):
    out, run = here
    quiet = run()
    assert "NOTE" not in quiet.stderr
    made = records(out)["gru-seed42"]["fingerprint"]
    change(out / "runs/gru-seed42", fingerprint="0" * 16)
    before = written(out)
    told = run()
    assert told.returncode == 0
    assert told.stderr.splitlines() == [
        "NOTE: 1 of 2 finished runs is made by other code than stands here; --again trains them "
        "again (gru-seed42)."
    ]
    assert "made by other code" in (out / "index.html").read_text()
    assert before == written(out)
    again = run("--again")
    assert again.returncode == 0 and "NOTE" not in again.stderr
    assert "To be trained again: gru-seed42." in again.stdout
    assert records(out)["gru-seed42"]["fingerprint"] == made
    after = written(out)
    changed = [path.parent.name for path in before if before[path] != after[path]]
    assert changed == ["gru-seed42"]


def test_runs_of_before_fingerprints_are_told_once_and_never_trained_again(here):
    out, run = here
    run()
    for name in ("gru-seed42", "agru-seed42"):
        change(out / "runs" / name, fingerprint=None)
    before = written(out)
    result = run("--again")
    assert result.stderr.splitlines() == [
        "NOTE: 2 of 2 finished runs are of before fingerprints were kept: which code made them is "
        "unknown (gru-seed42, agru-seed42)."
    ]
    assert before == written(out)


def test_an_option_goes_to_those_that_read_it_and_is_recorded_with_them_only(here):
    out, run = here
    refused = run("--models", "gru", "--set", "gamma=0.5")
    sentence = one_sentence(refused)
    assert sentence.startswith("rnnbench: the options: gamma is an option of agru, ")
    assert sentence.endswith(", and nothing here reads it; leave it out.")
    assert not out.exists()
    assert run("--models", "gru,agru", "--set", "gamma=0.5").returncode == 0
    found = {name: record["parameters"].get("gamma") for name, record in records(out).items()}
    assert found == {"gru-seed42": None, "agru-seed42": 0.5}
    assert "gamma" not in (out / "runs/gru-seed42/run.json").read_text()
    assert "gamma: 0.5\n" in (out / "variants/agru.yaml").read_text()
    assert "gamma" not in (out / "variants/gru.yaml").read_text()


def test_other_parameters_are_refused_and_a_key_that_has_come_since_is_none(tmp_path):
    protocol = load_protocol(write_tiny(tmp_path / "p.yaml", models="[gru]"))
    launch.write_parameters(tmp_path / "out", protocol)
    (tmp_path / "out/runs/gru-seed42").mkdir(parents=True)
    path = tmp_path / "out/variants/gru.yaml"
    text = path.read_text().replace("min_delta: 0.0\n", "num_layers: 1\ngamma: 0.5\n")
    path.write_text(text)  # as an earlier version wrote it: all cells' keys, not yet all of ours
    launch.write_parameters(tmp_path / "out", protocol)
    assert path.read_text() == text
    other = load_protocol(tmp_path / "p.yaml", {"epochs": 7})
    with pytest.raises(UserError, match=r"runs of gru with other parameters \(epochs: 2 there, 7 "):
        launch.write_parameters(tmp_path / "out", other)
    seeds = load_protocol(tmp_path / "p.yaml", {"seed": 7})
    launch.write_parameters(tmp_path / "out", seeds)  # a seed is another run, not another variant


def test_the_data_page_takes_the_options_of_its_task():
    ((page, parameters),) = launch.data_pages(load_protocol(PROJECT / "params/quick.yaml")).items()
    assert page == "01_data"
    given = yaml.safe_load(launch.data_options(parameters))
    assert given.pop("seed") == 42 and given["offline_fallback"]["dataset"] == "mnist_5k"
    assert given.keys() == TASKS[parameters.task].Options.model_fields.keys()
    declared = papermill.inspect_notebook(PROJECT / f"notebooks/{page}.ipynb")
    assert given.keys() <= declared.keys()


def test_a_claim_ends_what_a_killed_command_left_and_neither_itself_nor_a_shell(
    tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setenv(launch.OUTPUT, str(out))  # exported by whoever calls: this process has it
    ended = []

    class Process:
        def __init__(self, pid, marker, name=launch.OUTPUT):
            self.pid, self.marks = pid, {name: marker}

        def environ(self):
            return self.marks

        def kill(self):
            ended.append(self.pid)

    us = [psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())]
    running = [Process(pid, str(out)) for pid in (*us, -5)] + [Process(-6, "/elsewhere")]
    running += [Process(-7, str(out), "RNNBENCH_OUTPUT")]  # as RNNBENCH_DATA is: by its user
    monkeypatch.setattr(psutil, "process_iter", lambda: running)
    monkeypatch.setattr(psutil, "wait_procs", lambda processes, timeout: None)
    launch.claim(out).release()
    assert ended == [-5]


def test_one_folder_under_two_names_is_one(tmp_path, here):
    out, _ = here
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    with FileLock(out / ".lock"):
        done = rnnbench_here("run", tmp_path / "p.yaml", "--output-dir", tmp_path / "link")
    assert f"{out}: another rnnbench is at work there" in one_sentence(done)


def test_a_gpu_that_is_not_there_is_told_at_once(here, monkeypatch):
    out, run = here
    monkeypatch.setattr(launch, "has_gpu", lambda: False)
    assert "'cuda' is asked for but no GPU is found" in one_sentence(run("--set", "device=cuda"))
    assert not out.exists()


def test_what_snakemake_says_of_a_fault_is_kept_for_the_sentence_and_shown_to_no_reader(
    tmp_path, capfd
):
    (tmp_path / "protocol.yaml").write_text("models: [nothing]\n")
    assert launch.snakemake(tmp_path, PROJECT / "profiles/local", None, False, lambda: None)
    assert capfd.readouterr() == ("", "")  # one that goes away would end it
    assert "models: 'nothing' is unknown" in str(launch.stopped_early(tmp_path))


@pytest.mark.parametrize("profile", sorted(path.name for path in PROJECT.glob("profiles/*")))
def test_every_profile_tries_again_what_the_system_ended(profile):
    settings = yaml.safe_load((PROJECT / f"profiles/{profile}/config.yaml").read_text())
    assert settings["retries"] > 0


SNAKEMAKE_SAYS = {
    "PermissionError: [Errno 13] Permission denied: '/root/.cache/snakemake'": """Traceback:
  File "x.py", line 3, in y
PermissionError: [Errno 13] Permission denied: '/root/.cache/snakemake'
""",
    "UserError in file Snakefile, line 6: protocol.yaml: models": """Using profile local
UserError in file Snakefile, line 6:
protocol.yaml: models: 'x' is unknown; it must be one of gru, lstm.
  File "Snakefile", line 6, in <module>
""",
    "WorkflowError: Failed to open source file x.smk": """Building DAG of jobs...
WorkflowError:
Failed to open source file x.smk
  File "y.py", line 3, in z
""",
    "Error: Directory cannot be locked. Please make sure": """Assuming a shared file system
LockException:
Error: Directory cannot be locked. Please make sure
that no other process is trying to create the same files
""",
    "MissingOutputException in rule train in file Snakefile, line 56": """host: here
MissingOutputException in rule train in file Snakefile, line 56:
Job 3 completed, but the files are missing.
Shutting down, this might take some time.
""",
    "Killed": "Building DAG of jobs...\nKilled\n",
    "Snakemake was killed": "",
}


@pytest.mark.parametrize("said", SNAKEMAKE_SAYS)
def test_what_stopped_the_workflow_is_in_the_sentence(tmp_path, said):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/snakemake.txt").write_text(SNAKEMAKE_SAYS[said])
    sentence = str(launch.stopped_early(tmp_path))
    assert f"the workflow stopped early ({said}" in sentence
    assert f"{tmp_path}/logs/snakemake.txt has more, and the same command goes on" in sentence


def test_a_notebook_that_was_opened_and_saved_is_none_that_changed(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    path, out = tmp_path / "notebooks/03_compare.ipynb", tmp_path / "out"
    shutil.copy(PROJECT / "notebooks/03_compare.ipynb", path)
    os.utime(path, (time.time() + 9000,) * 2)  # a clock that was wrong
    monkeypatch.setattr(launch, "PROJECT", tmp_path)
    launch.write_sources(out)
    source = out / ".sources/03_compare.ipynb"
    before = source.stat().st_mtime_ns
    assert before <= time.time_ns()
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(nbformat.read(source, as_version=4))
    saved.metadata.kernelspec.display_name = "another"
    for cell in saved.cells:
        cell.metadata["collapsed"] = True
        if cell.cell_type == "code":
            cell.update(execution_count=3, outputs=[nbformat.v4.new_output("stream", text="x")])
    nbformat.write(saved, path)
    launch.write_sources(out)
    assert source.stat().st_mtime_ns == before
    assert papermill.inspect_notebook(source) == papermill.inspect_notebook(path)
    saved.cells[2].source += "\n"
    nbformat.write(saved, path)
    launch.write_sources(out)
    assert source.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("cells_run", "tries", "code"), [(0, 2, 0), (1, 1, 1)], ids=["no cell ran", "a cell failed"]
)
def test_a_notebook_whose_kernel_never_began_is_tried_once_more(
    tmp_path, monkeypatch, cells_run, tries, code
):
    program = f"""#!/bin/sh
echo >> tries
[ {cells_run} = 0 ] || echo '"execution_count": 1,' > "$2"
[ $(wc -l < tries) = 2 ]
"""
    (tmp_path / "papermill").write_text(program)
    (tmp_path / "papermill").chmod(0o755)
    text = (PROJECT / "Snakefile").read_text()
    shell = eval(text[text.index("execute = (") + 10 : text.index("into_report")])
    for old, new in {"%s": "", "{{": "{", "}}": "}", "{input.notebook:q}": "in.ipynb",
                     "{output:q}": "out.ipynb", "{log:q}": "log.txt"}.items():  # fmt: skip
        shell = shell.replace(old, new)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["bash", "-ec", shell], cwd=tmp_path, check=True, capture_output=True)
    assert len((tmp_path / "tries").read_text().splitlines()) == tries
    assert (tmp_path / "out.ipynb.failed").exists() == bool(code)


def test_what_jupyter_and_ipython_read_lies_in_the_report(tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, "/home/of/other/work")
        assert launch._environment_in(tmp_path)[name].startswith(str(tmp_path)), name


def test_a_home_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch):
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    environment = launch._environment_in(tmp_path / "out")
    code = "import matplotlib, platformdirs as found; print(found.user_cache_dir()); " \
           "matplotlib.get_cachedir()"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True
    )
    assert done.stdout.startswith(str(tmp_path / "out")) and done.stderr == ""


def test_a_reader_that_goes_away_stops_nothing(monkeypatch):
    closed = []
    monkeypatch.setattr(cli.click, "echo", lambda line: (_ for _ in ()).throw(BrokenPipeError))
    monkeypatch.setattr(cli.os, "dup2", lambda *files: closed.append(files))
    monkeypatch.setattr(cli.sys, "stdout", SimpleNamespace(fileno=lambda: 1))
    cli._say("1 of 6 trainings")
    assert len(closed) == 1 and closed[0][1] == 1
