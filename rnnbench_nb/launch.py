"""How a report is made: its folder is prepared, and Snakemake runs the notebooks in it."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import click

from rnnbench_nb import folders, supervisor
from rnnbench_nb.cells import CELLS
from rnnbench_nb.cells.base import Cell
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import IS_CHECKOUT, SOURCES, unexecuted, write_file, write_json
from rnnbench_nb.parameters import read_yaml, to_yaml
from rnnbench_nb.protocol import Protocol, RunParameters, run_parameters
from rnnbench_nb.results import FAILED, Report
from rnnbench_nb.runs import marker
from rnnbench_nb.tasks import DEFAULT, TASKS
from rnnbench_nb.tasks.data import data_folder

FEW = 8  # variants, of which 07_gradients can show each
FULL = 4_000_000  # bytes: a disk with less room than this is said to be full
FIGURES = ("training_curves", "error_curves", "test_comparison")
# What is set for terminals and sessions of the user and breaks a kernel or a job of the workflow.
BREAKING = ("MPLBACKEND", "PYTHONSTARTUP", "PYTHONINSPECT", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH",
            "JPY_SESSION_NAME")  # fmt: skip

# The notebooks of analysis, and of which parameterisations each makes a page.
PAGES: dict[str, Callable[[Collection[RunParameters]], bool]] = {
    "03_compare": lambda variants: True,
    "04_eigenvalues": lambda variants: any(
        CELLS[own.model].recurrent_matrix is not Cell.recurrent_matrix for own in variants
    ),
    "06_ablation": lambda variants: (  # most variants share their cell and task with another
        2 * len({(own.model, own.group) for own in variants}) <= len(variants)
    ),
    "07_gradients": lambda variants: len(variants) <= FEW,
    "08_memory": lambda variants: any(
        own.task != DEFAULT or getattr(own.task_options, "reading", "row") == "pixel"
        for own in variants
    ),
}


def analysis_pages(protocol: Protocol) -> list[str]:
    """The notebooks that analyse the runs of a protocol."""
    variants = protocol.parameterisations.values()
    return [name for name, applies in PAGES.items() if applies(variants)]


def data_pages(protocol: Protocol) -> dict[str, str]:
    """The notebooks that show the data of a protocol, each with its parameters as YAML."""
    pages: dict[str, str] = {}
    for own in protocol.parameterisations.values():
        if page := TASKS[own.task].data_page:
            options = {**own.task_options.model_dump(), "seed": own.seed}
            pages.setdefault(page, to_yaml(options))
    return pages


def runs_of(protocol: Protocol) -> list[RunParameters]:
    """The parameters of every run of a protocol."""
    return [parameters for seed in protocol.seeds for parameters in protocol.at(seed)]


def profile_folder(name: str) -> Path:
    """The folder of a Snakemake profile.

    Raises:
        UserError: There is no profile of this name, or its executor is not installed.
    """
    folder = SOURCES / "profiles" / name
    settings = read_yaml(folder / "config.yaml", "name a folder of profiles/, such as local")
    plugin = f"snakemake-executor-plugin-{settings.get('executor', 'local')}"
    if "executor" in settings and find_spec(plugin.replace("-", "_")) is None:
        raise UserError(f"--profile {name} needs {plugin}; install it: pip install {plugin}.")
    return folder


@contextmanager
def claim(out: Path) -> Iterator[int]:
    """Hold the lock of an output folder, which is made if it is new.

    While another command, or work that one left behind, has the lock, this waits and says so.

    Yields:
        The lock's file descriptor. The lock lasts as long as any process has it.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / folders.LOCK).open("a")
    except OSError as error:
        raise UserError(
            f"{out}: the output folder cannot be written ({error.strerror}); name another with "
            "--output-dir."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo(f"Waiting for another rnnbench, which is at work in {out} ...", err=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (out / ".snakemake/slurm_logs").exists():
            cancel_slurm_jobs(out)
        yield lock.fileno()


def cancel_slurm_jobs(out: Path) -> None:
    """End the Slurm jobs that a killed command left at work in an output folder.

    Raises:
        UserError: Slurm does not list the jobs.
    """
    query = ["squeue", "--user", str(os.getuid()), "--noheader", "--format=%i %k %Z"]
    while shutil.which("squeue"):
        answer = subprocess.run(query, capture_output=True, text=True)
        if answer.returncode:
            raise UserError(f"{out}: squeue does not list jobs ({answer.stderr.strip()}), which a "
                            "killed command may have left at work there; try again.")  # fmt: skip
        lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines()]
        jobs = [job for job, comment, folder in lines
                if comment.startswith("rule_") and folder == str(out)]  # fmt: skip
        if not jobs:
            return
        click.echo(f"Ending Slurm jobs of an earlier command: {', '.join(jobs)} ...", err=True)
        subprocess.run(["scancel", *jobs])
        time.sleep(2)  # a job has 30 seconds to end itself


def parameter_files(out: Path, protocol: Protocol) -> dict[str, str]:
    """The content of each variant's parameter file that is not in the output folder yet.

    Raises:
        UserError: The folder holds runs of a variant with other parameters.
    """
    files = {}
    for name, parameters in protocol.parameterisations.items():
        path = out / f"variants/{name}.yaml"
        if path.exists():
            values = read_yaml(path, "move it away and give the command again")
            there = run_parameters({**values, "seed": parameters.seed}, str(path))
            if there.same_as(parameters):  # also if the file lacks keys that are new since
                continue
            if any(out.glob(f"runs/{name}-seed*")):
                old, new = there.flat(), parameters.flat()
                key = next(key for key in new if old.get(key) != new[key])
                raise UserError(
                    f"{out}: it holds runs of {name} with other parameters ({key}: {old.get(key)!r}"
                    f" there, {new[key]!r} asked for); name another --output-dir."
                )
        files[f"variants/{name}.yaml"] = to_yaml(parameters.grouped())
    return files


def written(out: Path, protocol: Protocol) -> set[str]:
    """The names of all files and folders that a report of this protocol writes in its folder."""
    asked = [parameters.run for parameters in runs_of(protocol)]
    pages = {*data_pages(protocol), *analysis_pages(protocol)}
    shown = pages | {path.stem for path in out.glob("notebooks/*.ipynb")}  # the user's own, too
    return {
        *("protocol.yaml", "index.html", "results.csv", "history.csv", "results_summary.md"),
        *(".snakemake/", ".sources/"),
        *(f"variants/{name}.yaml" for name in protocol.parameterisations),
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
        *(f"notebooks/{page}.ipynb{ending}" for page in pages for ending in ("", ".failed")),
        *(f"pages/{page}.html" for page in shown),
        *(f"pages/02_train-{run}.html" for run in asked),
        *(f"logs/{job}.txt" for job in (*pages, *asked, "render", "snakemake")),
        *(f"runs/{run}/" for run in asked),
    }


def prepare(out: Path, protocol: Protocol, name: str) -> None:
    """Mark an output folder as the report of a protocol, and write what the workflow reads.

    Pages of an earlier protocol that this one lacks are removed, if the folder's list names them.
    Runs stay.

    Raises:
        UserError: The folder holds runs of a variant with other parameters, or a file of the
            user's where the report writes one.
    """
    files = parameter_files(out, protocol) | {"protocol.yaml": to_yaml(protocol.dump())}
    write_json(out / folders.MARKER, marker(name, protocol))
    names = written(out, protocol)
    folders.own(out, names)
    ours = folders.listed(out)
    failed = [out / name for name in ours if name.endswith(".failed")]
    failed += [out / name / "02_train.ipynb.failed" for name in ours if name.startswith("runs/")]
    for path in filter(Path.exists, failed):  # the workflow executes them again
        path.with_suffix("").unlink(missing_ok=True)
        path.unlink()
    stays = {name for name in ours if name.startswith("variants/") or name == folders.LIST}
    folders.remove(out, ours - names - stays)
    # Snakemake executes notebooks without outputs: to open or execute one changes no report.
    sources = (SOURCES / "notebooks").glob("*.ipynb")
    contents = {place: text.encode() for place, text in files.items()}
    contents |= {f".sources/{path.name}": unexecuted(path.read_bytes()) for path in sources}
    for place, content in contents.items():
        path = out / place
        if not path.exists() or path.read_bytes() != content:
            write_file(path, content)


def environment(out: Path) -> dict[str, str]:
    """The user's environment for the workflow, without what is known to break a kernel."""
    hidden = out / ".snakemake/rnnbench"
    profile = hidden / "ipython/profile_default/ipython_kernel_config.py"
    write_file(profile, "c = get_config()\nc.HistoryManager.enabled = False\n")
    values = {name: value for name, value in os.environ.items() if name not in BREAKING}
    values |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUTF8": "1",
        "RNNBENCH_DATA": str(data_folder().absolute()),  # jobs work in another folder
        "IPYTHONDIR": str(hidden / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this Python's kernel before the user's
        **{f"JUPYTER_{kind}_DIR": str(hidden / kind.lower())
           for kind in ("CONFIG", "DATA", "RUNTIME")},
    }  # fmt: skip
    if IS_CHECKOUT:  # it need not be installed
        values["PYTHONPATH"] = f"{SOURCES}{os.pathsep}{values.get('PYTHONPATH', '')}".rstrip(":")
    if not os.access(Path.home(), os.W_OK):
        values["XDG_CACHE_HOME"] = values["MPLCONFIGDIR"] = str(hidden / "cache")
    return values


def snakemake(
    out: Path, profile: Path, jobs: int | None, on_gpu: bool, look: Callable[[], None], lock: int
) -> int:
    """Run the workflow in a folder under a supervisor, which ends it when this process ends.

    Snakemake's lines go to logs/snakemake.txt. At most `jobs` trainings run side by side, and one
    `on_gpu`. `look` is called twice a second. The supervisor keeps `lock` until all has ended.
    """
    values, others = environment(out), {process.pid for process in supervisor.descendants()}
    command = [sys.executable, "-P", supervisor.__file__, sys.executable, "-m", "snakemake"]
    command += ["--snakefile", str(SOURCES / "Snakefile"), "--profile", str(profile)]
    command += ["--nolock", "--show-failed-logs"]
    command += ["--cores", str(jobs), "--jobs", str(jobs)] if jobs else []  # here; on a cluster
    if on_gpu:  # `gpu` is a resource that the machine has, and that each training takes
        command += ["--resources", "gpu=1", "--set-resources", "train:gpu=1"]
    log = out / "logs/snakemake.txt"
    write_file(log, "")
    supervisor.adopt_orphans()
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, env=values, cwd=out, stdin=subprocess.PIPE, stdout=file,
            stderr=subprocess.STDOUT, pass_fds=[lock], start_new_session=True,
        ) as process,
    ):  # fmt: skip
        while True:
            try:
                code = process.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                look()
    supervisor.end_descendants(others)  # if the supervisor was killed
    return code


def why_it_stopped(out: Path) -> UserError:
    """The error of a workflow that ended before the report was made."""
    reasons = [run["reason"].rstrip(".") for run in Report(out).missing if run["status"] == FAILED]
    if shutil.disk_usage(out).free < FULL:
        reasons.insert(0, "the disk is full; free some space")
    why = f" ({reasons[0]})" if reasons else ""
    return UserError(
        f"{out}: the workflow stopped early{why}; {out / 'logs/snakemake.txt'} says more. The same "
        "command goes on from what is finished."
    )


def problems(report: Report) -> list[str]:
    """One sentence for each run that did not complete and each notebook that failed."""
    missing = {f"{run['variant']}-seed{run['seed']}": run for run in report.missing}
    sentences = [f"{name} is {run['status']}: {run['reason']}" for name, run in missing.items()]
    failed = [*report.folder.glob("notebooks/*.failed"), *report.folder.glob("runs/*/*.failed")]
    for path in sorted(path for path in failed if path.parent.name not in missing):
        notebook, run = path.with_suffix(""), path.parent.name
        log = report.folder / f"logs/{notebook.stem if run == 'notebooks' else run}.txt"
        sentences.append(f"{notebook} stopped with an error, which its page and {log} show.")
    return sentences
