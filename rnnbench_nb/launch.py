"""Make a report: prepare its folder, and let Snakemake run the notebooks in it."""

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
from rnnbench_nb.files import IS_CHECKOUT, SOURCES, strip_outputs, write_file
from rnnbench_nb.parameters import read_yaml, to_yaml
from rnnbench_nb.protocol import Protocol, RunParameters, run_parameters
from rnnbench_nb.results import FAILED, Report
from rnnbench_nb.runs import new_marker
from rnnbench_nb.tasks import DEFAULT, TASKS
from rnnbench_nb.tasks.data import data_folder

SEARCH = "06_ablation"  # the page of a search
FEW = 8  # most variants that 07_gradients can show
FULL = 4_000_000  # bytes; a disk with less free space counts as full
FIGURES = ("training_curves", "error_curves", "test_comparison")
# Variables that are meant for the user's terminal and break kernels or jobs of the workflow.
BREAKING = {"MPLBACKEND", "PYTHONSTARTUP", "PYTHONINSPECT"}
BREAKING |= {"JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "JPY_SESSION_NAME"}

# The notebooks of analysis, each with the condition on the variants under which it makes a page.
PAGES: dict[str, Callable[[Collection[RunParameters]], bool]] = {
    "03_compare": lambda variants: True,
    "04_eigenvalues": lambda variants: any(
        CELLS[own.model].recurrent_matrix is not Cell.recurrent_matrix for own in variants
    ),
    SEARCH: lambda variants: (  # most variants share their cell and task with another
        2 * len({(own.model, own.group) for own in variants}) <= len(variants)
    ),
    "07_gradients": lambda variants: len(variants) <= FEW,
    "08_memory": lambda variants: any(
        own.task != DEFAULT or getattr(own.task_options, "reading", "row") == "pixel"
        for own in variants
    ),
}


def analysis_pages(protocol: Protocol) -> list[str]:
    """Return the notebooks that analyse the runs of a protocol."""
    every = protocol.parameterisations.values()
    final = [own for own in every if own.test]  # not the runs of a search
    groups = {name: every if name == SEARCH else final for name in PAGES}
    return [name for name, applies in PAGES.items() if groups[name] and applies(groups[name])]


def data_pages(protocol: Protocol) -> dict[str, str]:
    """Return the notebooks that show a protocol's data, each with its parameters as YAML."""
    pages: dict[str, str] = {}
    for own in protocol.parameterisations.values():
        if page := TASKS[own.task].data_page:
            options = {**own.task_options.model_dump(), "seed": own.seed}
            pages.setdefault(page, to_yaml(options))
    return pages


def runs_of(protocol: Protocol) -> list[RunParameters]:
    """Return the parameters of every run of a protocol."""
    return [parameters for seed in protocol.seeds for parameters in protocol.at(seed)]


def profile_folder(name: str) -> Path:
    """Return the folder of a Snakemake profile.

    Raises:
        UserError: There is no profile of this name, or its executor is not installed.
    """
    folder = SOURCES / "profiles" / name
    settings = read_yaml(folder / "config.yaml", "name a folder of profiles/, such as local")
    plugin = f"snakemake-executor-plugin-{settings.get('executor', 'local')}"
    if "executor" in settings and find_spec(plugin.replace("-", "_")) is None:
        raise UserError(f"--profile {name} needs {plugin}; run pip install {plugin}.")
    return folder


@contextmanager
def claim(out: Path) -> Iterator[int]:
    """Hold the lock of an output folder, and make the folder if it is new.

    If another command or its remaining processes have the lock, wait for them and say so.

    Yields:
        The file descriptor of the lock, which lasts as long as a process has it open.

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
            click.echo(f"Waiting for another rnnbench, which uses {out} ...", err=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (out / ".snakemake/slurm_logs").exists():
            cancel_slurm_jobs(out)
        yield lock.fileno()


def cancel_slurm_jobs(out: Path) -> None:
    """Cancel the Slurm jobs of an output folder that a killed command left.

    Raises:
        UserError: Slurm does not list the jobs.
    """
    query = ["squeue", "--user", str(os.getuid()), "--noheader", "--format=%i %k %Z"]
    while shutil.which("squeue"):
        answer = subprocess.run(query, capture_output=True, text=True)
        if answer.returncode:
            why = answer.stderr.strip()
            raise UserError(f"{out}: squeue does not list jobs at work there ({why}); try again.")
        lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines()]
        ours = [line for line in lines if line[1].startswith("rule_") and line[2] == str(out)]
        jobs = [job for job, _, _ in ours]
        if not jobs:
            return
        click.echo(f"Cancelling Slurm jobs of an earlier command: {', '.join(jobs)}", err=True)
        subprocess.run(["scancel", *jobs])
        time.sleep(2)  # Slurm gives a job 30 seconds to end


def parameter_files(out: Path, protocol: Protocol) -> dict[str, str]:
    """Return the variants' parameter files that are not in the output folder yet, with content.

    Raises:
        UserError: The folder has runs of a variant with other parameters.
    """
    files = {}
    for name, parameters in protocol.parameterisations.items():
        path = out / f"variants/{name}.yaml"
        if path.exists():
            values = read_yaml(path, "move it away and run the command again")
            old_run = run_parameters({**values, "seed": parameters.seed}, str(path))
            if old_run.same_as(parameters):  # even if the file lacks newer keys
                continue
            if any(out.glob(f"runs/{name}-seed*")):
                old, new = old_run.flat(), parameters.flat()
                key = next(key for key in new if old.get(key) != new[key])
                raise UserError(
                    f"{out} has runs of {name} with other parameters ({key} is {old.get(key)!r} "
                    f"there, but {new[key]!r} now); name another --output-dir."
                )
        files[f"variants/{name}.yaml"] = to_yaml(parameters.for_notebook())
    return files


def output_names(out: Path, protocol: Protocol) -> set[str]:
    """Return the names of all files and folders that a report of this protocol writes."""
    runs = [parameters.run for parameters in runs_of(protocol)]
    pages = {*data_pages(protocol), *analysis_pages(protocol)}
    every_page = pages | {path.stem for path in out.glob("notebooks/*.ipynb")}  # the user's as well
    return {
        *("protocol.yaml", "index.html", "results.csv", "history.csv", "results_summary.md"),
        *(".snakemake/", ".sources/"),
        *(f"variants/{name}.yaml" for name in protocol.parameterisations),
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
        *(f"notebooks/{page}.ipynb{ending}" for page in pages for ending in ("", ".failed")),
        *(f"pages/{page}.html" for page in every_page),
        *(f"pages/02_train-{run}.html" for run in runs),
        *(f"logs/{job}.txt" for job in (*pages, *runs, "render", "snakemake")),
        *(f"runs/{run}/" for run in runs),
    }


def prepare(out: Path, protocol: Protocol, name: str) -> None:
    """Mark an output folder as the report of a protocol, and write what the workflow reads.

    It removes pages that this protocol lacks, if the folder's list names them, but never runs.

    Raises:
        UserError: The folder has runs of a variant with other parameters, or a file of the user
            where the report writes one.
    """
    files = parameter_files(out, protocol) | {"protocol.yaml": to_yaml(protocol.dump())}
    names = output_names(out, protocol)
    folders.mark(out, new_marker(name, protocol), names)
    ours = folders.file_list(out)
    failed = [out / name for name in ours if name.endswith(".failed")]
    failed += [out / name / "02_train.ipynb.failed" for name in ours if name.startswith("runs/")]
    for path in filter(Path.exists, failed):  # so that the workflow executes them again
        path.with_suffix("").unlink(missing_ok=True)
        path.unlink()
    remaining = {name for name in ours if name.startswith("variants/") or name == folders.LIST}
    folders.remove(out, ours - names - remaining)
    # Snakemake uses copies without outputs, so opening a notebook does not make its page stale.
    sources = (SOURCES / "notebooks").glob("*.ipynb")
    contents = {place: text.encode() for place, text in files.items()}
    contents |= {f".sources/{path.name}": strip_outputs(path.read_bytes()) for path in sources}
    for place, content in contents.items():
        path = out / place
        if not path.exists() or path.read_bytes() != content:
            write_file(path, content)
    files_there = [*map(out.joinpath, {*contents, *names}), *out.glob("runs/*/02_train.ipynb")]
    for path in filter(Path.is_file, files_there):
        if path.stat().st_mtime > time.time():  # a clock was ahead; Snakemake fails on such times
            os.utime(path)


def environment(out: Path) -> dict[str, str]:
    """Return the user's environment variables for the workflow, without those that break it."""
    hidden = out / ".snakemake/rnnbench"
    profile = hidden / "ipython/profile_default/ipython_kernel_config.py"
    write_file(profile, "c = get_config()\nc.HistoryManager.enabled = False\n")
    values = {name: value for name, value in os.environ.items() if name not in BREAKING}
    values |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUTF8": "1",
        "RNNBENCH_DATA": str(data_folder().absolute()),  # jobs run in another folder
        "IPYTHONDIR": str(hidden / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # prefer this Python's kernel to the user's
        "JUPYTER_CONFIG_DIR": str(hidden / "config"),
        "JUPYTER_DATA_DIR": str(hidden / "data"),
        "JUPYTER_RUNTIME_DIR": str(hidden / "runtime"),
    }
    if IS_CHECKOUT:  # which need not be installed
        values["PYTHONPATH"] = f"{SOURCES}{os.pathsep}{values.get('PYTHONPATH', '')}".rstrip(":")
    if not os.access(os.path.expanduser("~"), os.W_OK):
        values["XDG_CACHE_HOME"] = values["MPLCONFIGDIR"] = str(hidden / "cache")
    return values


def snakemake(
    out: Path, profile: Path, jobs: int | None, on_gpu: bool, look: Callable[[], None], lock: int
) -> int:
    """Run the workflow in a folder under a supervisor, and return Snakemake's exit code.

    The supervisor ends the workflow if this process ends, and holds `lock` until then. The output
    goes to logs/snakemake.txt. At most `jobs` trainings run at the same time, and only one
    `on_gpu`. `look` is called twice a second.
    """
    values, others = environment(out), {process.pid for process in supervisor.descendants()}
    command = [sys.executable, "-P", supervisor.__file__, sys.executable, "-m", "snakemake"]
    command += ["--snakefile", str(SOURCES / "Snakefile"), "--profile", str(profile)]
    command += ["--nolock", "--show-failed-logs"]
    command += ["--cores", str(jobs), "--jobs", str(jobs)] if jobs else []  # here; on a cluster
    if on_gpu:  # the machine has one unit of the resource `gpu`, which each training takes
        command += ["--resources", "gpu=1", "--set-resources", "train:gpu=1"]
    log = out / "logs/snakemake.txt"
    write_file(log, "")
    supervisor.adopt_orphans()
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command,
            env=values,
            cwd=out,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,
        ) as process,
    ):
        while True:
            try:
                code = process.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                look()
    supervisor.end_descendants(others)  # if the supervisor was killed
    return code


def stop_error(out: Path) -> UserError:
    """Return the error for a workflow that ended before the report was made."""
    reasons = [run["reason"].rstrip(".") for run in Report(out).missing if run["status"] == FAILED]
    for place in (Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp")), out):
        if place.exists() and shutil.disk_usage(place).free < FULL:
            reasons.insert(0, f"the disk of {place} is full; free some space")
    why = f" ({reasons[0]})" if reasons else ""
    return UserError(
        f"{out}: the workflow stopped early{why}; see {out / 'logs/snakemake.txt'}, and give the "
        "same command again to continue."
    )


def problems(report: Report) -> list[str]:
    """Return a sentence for each run that did not complete and each notebook that failed."""
    missing = {f"{run['variant']}-seed{run['seed']}": run for run in report.missing}
    sentences = [f"{name} is {run['status']}: {run['reason']}" for name, run in missing.items()]
    failed = [*report.folder.glob("notebooks/*.failed"), *report.folder.glob("runs/*/*.failed")]
    for path in sorted(path for path in failed if path.parent.name not in missing):
        notebook, run = path.with_suffix(""), path.parent.name
        log = report.folder / f"logs/{notebook.stem if run == 'notebooks' else run}.txt"
        sentences.append(f"{notebook} stopped with an error, which its page and {log} show.")
    return sentences
