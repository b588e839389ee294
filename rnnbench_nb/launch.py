"""How a report is made: its folder is prepared, and Snakemake runs the notebooks in it."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rnnbench_nb import folders, supervisor
from rnnbench_nb.cells import CELLS
from rnnbench_nb.cells.base import Cell
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, unexecuted, write_file, write_json
from rnnbench_nb.parameters import read_yaml, to_yaml
from rnnbench_nb.protocol import NO_GPU, Protocol, RunParameters, run_parameters
from rnnbench_nb.results import Report
from rnnbench_nb.runs import marker
from rnnbench_nb.tasks import DEFAULT, TASKS

FEW = 8  # variants, of which 07_gradients can show each
FULL = 4_000_000  # bytes: a disk with less room than this is said to be full
WAIT = 12.0  # seconds in which the work of a command that was ended has ended, too
FIGURES = ("training_curves", "error_curves", "test_comparison")
# What is set for terminals and sessions of the user and breaks a kernel or a job of the workflow.
BREAKING = ("MPLBACKEND", "PYTHONSTARTUP", "PYTHONINSPECT", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH",
            "JPY_SESSION_NAME")  # fmt: skip

# The notebooks of analysis, and of which protocols each makes a page.
PAGES: dict[str, Callable[[Protocol], bool]] = {
    "03_compare": lambda protocol: True,
    "04_eigenvalues": lambda protocol: any(
        CELLS[parameters.model].recurrent_matrix is not Cell.recurrent_matrix
        for parameters in protocol.parameterisations.values()
    ),
    "06_ablation": lambda protocol: (  # most variants share their cell and task with another
        2 * len({(own.model, own.group) for own in protocol.parameterisations.values()})
        <= len(protocol.parameterisations)
    ),
    "07_gradients": lambda protocol: len(protocol.parameterisations) <= FEW,
    "08_memory": lambda protocol: any(
        own.task != DEFAULT or getattr(own.task_options, "reading", "row") == "pixel"
        for own in protocol.parameterisations.values()
    ),
}


def analysis_pages(protocol: Protocol) -> list[str]:
    """The notebooks that analyse the runs of a protocol."""
    return [name for name, applies in PAGES.items() if applies(protocol)]


def data_pages(protocol: Protocol) -> dict[str, RunParameters]:
    """The notebooks that show the data of a protocol, each with the parameters it is run with."""
    pages: dict[str, RunParameters] = {}
    for parameters in protocol.parameterisations.values():
        page = TASKS[parameters.task].data_page
        if page:
            pages.setdefault(page, parameters)
    return pages


def data_options(parameters: RunParameters) -> str:
    """The parameters of a notebook that shows the data, as YAML: the task's options, the seed."""
    return to_yaml({**parameters.task_options.model_dump(), "seed": parameters.seed})


def runs_of(protocol: Protocol) -> list[RunParameters]:
    """The parameters of every run of a protocol."""
    return [parameters for seed in protocol.seeds for parameters in protocol.at(seed)]


def profile_folder(name: str) -> Path:
    """The folder of a Snakemake profile.

    Raises:
        UserError: There is no profile of this name, or its executor is not installed.
    """
    profile = PROJECT / "profiles" / name
    if not profile.is_dir():
        known = ", ".join(sorted(folder.name for folder in profile.parent.iterdir()))
        raise UserError(f"--profile: profiles/ has no {name!r}; it must be one of {known}.")
    settings = read_yaml(profile / "config.yaml", "restore it from the project's repository")
    executor = settings.get("executor", "local")
    plugin = f"snakemake-executor-plugin-{executor}"
    if executor != "local" and find_spec(plugin.replace("-", "_")) is None:
        raise UserError(f"--profile {name} needs {plugin}; install it: pip install {plugin}.")
    return profile


@contextmanager
def claim(out: Path) -> Iterator[int]:
    """Hold the lock of an output folder, which is made if it is new.

    The work of a command that was ended ends some seconds later; that is waited for.

    Yields:
        The lock's file descriptor. The lock lasts as long as any process has it.

    Raises:
        UserError: Another command is at work in the folder, or it cannot be written.
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
        deadline = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{out}: another rnnbench is at work there; wait for it, or name another "
                        "--output-dir."
                    ) from error
                time.sleep(0.2)
        if (out / ".snakemake/slurm_logs").exists():
            cancel_slurm_jobs(out)
        yield lock.fileno()


def cancel_slurm_jobs(out: Path) -> None:
    """End the Slurm jobs that a killed command left at work in an output folder.

    Raises:
        UserError: Slurm does not answer, or does not end them within 90 seconds.
    """
    query = ["squeue", "--user", str(os.getuid()), "--noheader", "--format=%i %k %Z"]
    for _ in range(90 if shutil.which("squeue") else 0):  # a job has 30 seconds to end itself
        answer = subprocess.run(query, capture_output=True, text=True)
        if answer.returncode:
            raise UserError(f"{out}: squeue does not list jobs ({answer.stderr.strip()}), which a "
                            "killed command may have left at work there; try again.")  # fmt: skip
        lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines()]
        jobs = [job for job, comment, folder in lines
                if comment.startswith("rule_") and folder == str(out)]  # fmt: skip
        if not jobs:
            return
        subprocess.run(["scancel", *jobs])
        time.sleep(1)
    if shutil.which("squeue"):
        raise UserError(f"{out}: end the Slurm jobs {', '.join(jobs)} with scancel and try again.")


def outline(out: Path, protocol: Protocol, again: Collection[str] = ()) -> str:
    """A sentence on the runs that a report needs, those that are finished, those made `again`.

    Raises:
        UserError: The folder holds runs of a variant with other parameters.
    """
    parameter_files(out, protocol)
    asked = [parameters.run for parameters in runs_of(protocol)]
    to_do = [run for run in asked if not (out / f"runs/{run}/run.json").exists() or run in again]
    counts = {"training": len(asked), "variant": len(protocol.parameterisations),
              "seed": len(protocol.seeds)}  # fmt: skip
    trainings, *others = (f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items())
    done = f", {len(asked) - len(to_do)} of them finished" if len(to_do) < len(asked) else ""
    rest = f"; to train: {few(to_do)}" if to_do else ""
    return f"{trainings} ({', '.join(others)}){done}{rest}. Their logs are in {out / 'logs'}."


def parameter_files(out: Path, protocol: Protocol) -> dict[str, str]:
    """The content of each variant's parameter file that is not in the output folder yet.

    Raises:
        UserError: The folder holds runs of a variant with other parameters.
    """
    files = {}
    for name, parameters in protocol.parameterisations.items():
        path = out / "variants" / f"{name}.yaml"
        if path.exists():
            values = read_yaml(path, "move it away and give the command again")
            there = run_parameters({**values, "seed": parameters.seed}, str(path))
            if there.same_as(parameters):  # also if the file lacks keys that are new since
                continue
            if any(out.glob(f"runs/{name}-seed*")):
                old, new = there.flat(), parameters.flat()
                key = next(key for key in new if old.get(key) != new[key])
                raise UserError(
                    f"{out}: it holds runs of {name} with other parameters ({key}: "
                    f"{old.get(key)!r} there, {new[key]!r} asked for); name another "
                    "--output-dir."
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
    for place, text in files.items():
        path = out / place
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_file(path, text)
    _write_sources(out)


def _write_sources(out: Path) -> None:
    """Write the project's notebooks, without outputs, to `.sources` where they have changed.

    The workflow executes these, so that opening or executing a notebook does not change a report.
    """
    for notebook in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        path, content = out / ".sources" / notebook.name, unexecuted(notebook.read_bytes())
        is_new = not path.exists()
        if is_new or path.read_bytes() != content:
            write_file(path, content)
        if is_new:  # pages that were made before this file may be newer than the notebook
            when = min(notebook.stat().st_mtime, time.time())
            os.utime(path, (when, when))


def forget(out: Path, runs: Collection[str]) -> None:
    """Remove the records of some runs, so that they are trained again."""
    for name in folders.listed(out):
        if name.startswith("runs/") and name.split("/")[1] in runs:
            for file in ("run.json", "02_train.ipynb", "checkpoint.pt", "progress.json"):
                (out / name / file).unlink(missing_ok=True)


def environment(out: Path) -> dict[str, str]:
    """The user's environment for the workflow, without what is known to break a kernel."""
    from rnnbench_nb.tasks.data import data_folder

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
    if (PROJECT / "pyproject.toml").exists():  # a checkout, which need not be installed
        values["PYTHONPATH"] = f"{PROJECT}{os.pathsep}{values.get('PYTHONPATH', '')}".rstrip(":")
    home = Path(values.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
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
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile")]
    command += ["--directory", str(out), "--profile", str(profile)]
    log = out / "logs/snakemake.txt"
    write_file(log, "")
    subprocess.run([*command, "--unlock"], env=values, cwd=out, capture_output=True)
    command += ["--cores", str(jobs), "--jobs", str(jobs)] if jobs else []  # here; on a cluster
    if on_gpu:  # `gpu` is a resource that the machine has, and that each training takes
        command += ["--resources", "gpu=1", "--set-resources", "train:gpu=1"]
    supervisor.adopt_orphans()
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-P", supervisor.__file__, *command], env=values, cwd=out,
            stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
            pass_fds=[lock], start_new_session=True,
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


def trains_on_gpu(protocol: Protocol) -> bool:
    """Whether a training of the protocol takes a GPU of this machine.

    Raises:
        UserError: One asks for a GPU, and there is none.
    """
    import torch

    devices = {parameters.device for parameters in protocol.parameterisations.values()}
    if "cuda" in devices and not torch.cuda.is_available():
        raise UserError(NO_GPU)
    return devices != {"cpu"} and torch.cuda.is_available()


def why_it_stopped(out: Path) -> UserError:
    """The error of a workflow that ended before the report was made."""
    log = out / "logs/snakemake.txt"
    names = {f"{run['variant']}-seed{run['seed']}": run for run in Report(out).missing}
    reasons = [run["reason"] for name, run in names.items()
               if (out / f"runs/{name}/run.json").exists()]  # fmt: skip
    if shutil.disk_usage(out).free < FULL:
        reasons.insert(0, "the disk is full; free some space")
    why = [*reasons, snakemake_reason(log.read_text(encoding="utf-8", errors="replace"))][0]
    return UserError(
        f"{out}: the workflow stopped early ({why.rstrip('.')}). {log} has more; the same command "
        "goes on from what is finished."
    )


def snakemake_reason(log: str) -> str:
    """The last line of Snakemake's log that names an error, with the line that it announces."""
    text = re.sub(r":\n *", ": ", log.strip())
    errors = re.findall(r"^ *((?:[\w.]+(?:Error|Exception)|Error)\b.*: \S.*)", text, re.M)
    return [*(text.splitlines()[-1:] or ["Snakemake was killed"]), *errors][-1].strip()[:300]


def problems(report: Report) -> list[str]:
    """One sentence for each run that did not complete and each notebook that failed."""
    missing = {f"{run['variant']}-seed{run['seed']}": run for run in report.missing}
    sentences = [
        f"{name} is {run['status']}: {run.get('reason', 'no reason was recorded')}"
        for name, run in missing.items()
    ]
    failed = [*report.folder.glob("notebooks/*.failed"), *report.folder.glob("runs/*/*.failed")]
    for path in sorted(path for path in failed if path.parent.name not in missing):
        notebook, run = path.with_suffix(""), path.parent.name
        log = report.folder / f"logs/{notebook.stem if run == 'notebooks' else run}.txt"
        sentences.append(f"{notebook} stopped with an error, which its page and {log} show.")
    return sentences


def few(names: Collection[str]) -> str:
    """The first three names of a list."""
    first = ", ".join([*names][:3])
    return f"{first} and {len(names) - 3} more" if len(names) > 3 else first
