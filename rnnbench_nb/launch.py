"""How a report is made: its folder claimed and prepared, and Snakemake called in it."""

import getpass
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import platformdirs
import psutil
from filelock import FileLock, Timeout

from rnnbench_nb import folders, surroundings
from rnnbench_nb.analyses import PAGES
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, unexecuted, write_file
from rnnbench_nb.parameters import read_yaml, to_yaml
from rnnbench_nb.protocol import Protocol, RunParameters, recorded_parameters
from rnnbench_nb.report import Report, completed
from rnnbench_nb.runs import CHECKPOINT, marker
from rnnbench_nb.tasks import TASKS

OUTPUT = "RNNBENCH_AT_WORK_ON"  # in the environment of what works on an output folder
FULL = 4_000_000  # bytes: a disk with less room than this is said to be full


def data_pages(protocol: Protocol) -> dict[str, RunParameters]:
    """The notebooks that show the data of a protocol, each with the parameters it is run with."""
    found: dict[str, RunParameters] = {}
    for parameters in protocol.parameterisations.values():
        page = TASKS[parameters.task].data_page
        if page:
            found.setdefault(page, parameters)
    return found


def data_options(parameters: RunParameters) -> str:
    """What a notebook that shows the data takes: the options of the task and the seed, as YAML."""
    options = parameters.task_options.model_dump()
    return to_yaml({**options, "seed": parameters.seed})


def analysis_pages(protocol: Protocol) -> list[str]:
    """The notebooks that read the runs of a protocol."""
    return [name for name, applies in PAGES.items() if applies(protocol)]


def profile_folder(name: str) -> Path:
    """The folder of a profile of Snakemake.

    Raises:
        UserError: There is none of this name, or its executor is not installed.
    """
    profile = PROJECT / "profiles" / name
    if not profile.is_dir():
        known = ", ".join(sorted(folder.name for folder in profile.parent.iterdir()))
        raise UserError(f"--profile: profiles/ has no {name!r}; it must be one of {known}.")
    settings = read_yaml(profile / "config.yaml", "take the one that the project has")
    executor = settings.get("executor", "local")
    module = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor != "local" and find_spec(module) is None:
        plugin = module.replace("_", "-")
        raise UserError(f"--profile {name} needs {plugin}; install it: pip install {plugin}.")
    return profile


def claim(out: Path) -> FileLock:
    """Take the output folder for this command alone, and end what a killed one left running.

    Raises:
        UserError: Another command is at work there, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / folders.LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{out}: another rnnbench is at work there; wait for it or name another --output-dir."
        ) from error
    except OSError as error:
        raise UserError(
            f"{out}: the output folder cannot be written ({error.strerror}); name another with "
            "--output-dir."
        ) from error
    ours = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    orphans = [
        process
        for process in psutil.process_iter()
        if process.pid not in ours and _environment(process).get(OUTPUT) == str(out)
    ]
    for orphan in orphans:
        orphan.kill()
    psutil.wait_procs(orphans, timeout=10)
    if (out / ".snakemake/slurm_logs").exists():
        cancel_slurm_jobs(out)
    return lock


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def cancel_slurm_jobs(out: Path) -> None:
    """End the Slurm jobs that a killed command left at work on an output folder.

    Raises:
        UserError: Slurm does not answer, or does not end them.
    """
    if not shutil.which("squeue"):
        return
    query = ["squeue", "--user", getpass.getuser(), "--noheader", "--format=%i %k %Z"]
    for _ in range(90):  # Slurm gives a job 30 seconds to end itself
        listed = subprocess.run(query, capture_output=True, text=True, check=False)
        if listed.returncode:
            raise UserError(
                f"{out}: Slurm does not say whether a killed command's jobs are at work there "
                f"({listed.stderr.strip()}); try again when squeue works."
            )
        lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        jobs = [job for job, comment, folder in lines
                if comment.startswith("rule_") and folder == str(out.resolve())]  # fmt: skip
        if not jobs:
            return
        subprocess.run(["scancel", *jobs], check=False)
        time.sleep(1)
    raise UserError(
        f"{out}: the Slurm jobs {', '.join(jobs)} of a killed command are still at work there; "
        "end them with scancel and try again."
    )


def outline(out: Path, protocol: Protocol, again: Iterable[str] = ()) -> str:
    """The trainings that a report needs, how many of them are there, and which are made `again`.

    Raises:
        UserError: The folder holds runs of a variant with other parameters.
    """
    parameter_files(out, protocol)
    variants, runs = len(protocol.parameterisations), protocol.runs
    asked = [parameters.run for seed in protocol.seeds for parameters in protocol.at(seed)]
    to_do = [run for run in asked if not completed(out / "runs" / run)]
    there = f", {len(asked) - len(to_do)} of them finished" if len(to_do) < len(asked) else ""
    then = f"; to train: {_few(to_do)}" if to_do else ""
    once_more = f" To be trained again: {', '.join(again)}." if again else ""
    return (
        f"{len(asked)} training{'s' * (len(asked) > 1)} ({variants} variant{'s' * (variants > 1)}, "
        f"{runs} seed{'s' * (runs > 1)}){there}{then}.{once_more} "
        f"What each is doing stands in {out / 'logs'}."
    )


def parameter_files(out: Path, protocol: Protocol) -> dict[Path, str]:
    """The variants' parameters that are not in the output folder yet, by the file to be written.

    Raises:
        UserError: The folder holds runs of a variant with other parameters.
    """
    found = {}
    for name, parameters in protocol.parameterisations.items():
        path = out / "variants" / f"{name}.yaml"
        if path.exists():
            values = read_yaml(path, "move it away and give the command again")
            there = recorded_parameters({**values, "seed": parameters.seed}, str(path))
            if there.same_as(parameters):  # a key that has come since has its default
                continue
            if any(out.glob(f"runs/{name}-seed*")):
                old, new = there.flat(), parameters.flat()
                key = next(key for key in new if old.get(key) != new[key])
                raise UserError(
                    f"{out}: it holds runs of {name} with other parameters ({key}: "
                    f"{old.get(key)!r} there, {new[key]!r} asked for); name another "
                    "--output-dir."
                )
        found[path] = to_yaml(parameters.grouped())
    return found


def write_parameters(out: Path, protocol: Protocol) -> None:
    """Write protocol.yaml and variants/.

    Raises:
        UserError: The folder holds runs of a variant with other parameters.
    """
    for path, text in parameter_files(out, protocol).items():
        write_file(path, text)
    path, text = out / "protocol.yaml", to_yaml(protocol.dump())
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_file(path, text)


def write_sources(out: Path) -> None:
    """Write what the project's notebooks say, without outputs, to `.sources` where it is new.

    The workflow executes these: a notebook that was opened, executed or saved is none that changed.
    """
    for notebook in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        path, content = out / ".sources" / notebook.name, unexecuted(notebook.read_bytes())
        is_new = not path.exists()
        if is_new or path.read_bytes() != content:
            write_file(path, content)
        if is_new:  # what this notebook made before may be newer
            when = min(notebook.stat().st_mtime, time.time())
            os.utime(path, (when, when))


def written(out: Path, protocol: Protocol) -> set[str]:
    """The names of all files and folders that a report of this protocol writes in its folder."""
    asked = [parameters.run for seed in protocol.seeds for parameters in protocol.at(seed)]
    pages = {*data_pages(protocol), *analysis_pages(protocol)}
    shown = pages | {path.stem for path in out.glob("notebooks/*.ipynb")}  # the user's own, too
    drawn = ("training_curves", "error_curves", "test_comparison")
    return {
        *("protocol.yaml", "index.html", "results.csv", "history.csv", "results_summary.md"),
        *(".snakemake/", ".sources/", "analyses/"),
        *(f"variants/{name}.yaml" for name in protocol.parameterisations),
        *(f"figures/{name}.{kind}" for name in drawn for kind in ("png", "svg")),
        *(f"notebooks/{page}.ipynb{ending}" for page in pages for ending in ("", ".failed")),
        *(f"pages/{page}.html" for page in shown),
        *(f"pages/02_train-{run}.html" for run in asked),
        *(f"logs/{job}.txt" for job in (*pages, *asked, "collect", "render", "snakemake")),
        *(f"runs/{run}/" for run in asked),
    }


def prepare(out: Path, protocol: Protocol, name: str) -> None:
    """Mark an output folder as the report of a protocol, and write what the workflow reads.

    Files of an earlier protocol that this one does not write are removed, if the list of the
    folder names them; runs stay.

    Raises:
        UserError: The folder holds runs of a variant with other parameters, or a file of the
            user's where the report writes one.
    """
    parameter_files(out, protocol)
    folders.mark(out, marker(name, protocol))
    names = written(out, protocol)
    folders.own(out, names)
    retry(out)
    stays = {name for name in folders.listed(out) if name.startswith(("runs/", "variants/"))}
    folders.remove(out, folders.listed(out) - names - stays - {folders.LIST})
    write_parameters(out, protocol)
    write_sources(out)


def retry(out: Path) -> None:
    """Remove the notebooks that stopped with an error, so that they are executed again."""
    pages = [out / name for name in folders.listed(out) if name.endswith(".failed")]
    runs = [out / name / "02_train.ipynb.failed" for name in _run_folders(out)]
    for path in filter(Path.exists, (*pages, *runs)):
        path.with_suffix("").unlink(missing_ok=True)
        path.unlink()


def _run_folders(out: Path) -> list[str]:
    return [name for name in folders.listed(out) if name.startswith("runs/")]


def forget(out: Path, runs: list[str]) -> None:
    """Remove the records of finished runs, so that they are trained again."""
    for run in (name for name in _run_folders(out) if name.split("/")[1] in runs):
        for file in ("run.json", "02_train.ipynb", CHECKPOINT):
            (out / run / file).unlink(missing_ok=True)


def _environment_in(out: Path) -> dict[str, str]:
    """The environment of the workflow: what Jupyter and IPython read and write is in `out`."""
    from rnnbench_nb.tasks.data import data_folder

    hidden = out / ".snakemake/rnnbench"
    profile = hidden / "ipython/profile_default/ipython_kernel_config.py"
    write_file(profile, "c = get_config()\nc.HistoryManager.enabled = False\n")
    environment = surroundings.environment() | {
        OUTPUT: str(out),
        "RNNBENCH_DATA": str(data_folder().absolute()),  # jobs work in another folder
        "IPYTHONDIR": str(hidden / "ipython"),
        **{f"JUPYTER_{kind}_DIR": str(hidden / kind.lower())
           for kind in ("CONFIG", "DATA", "RUNTIME")},
    }  # fmt: skip
    try:
        Path(platformdirs.user_cache_dir("rnnbench_nb")).mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        environment["XDG_CACHE_HOME"] = environment["MPLCONFIGDIR"] = str(hidden / "cache")
    return environment


def snakemake(
    out: Path, profile: Path, jobs: int | None, on_gpu: bool, look: Callable[[], None]
) -> int:
    """Run the workflow in `out`, one training at a time if it is `on_gpu`; its exit code.

    What Snakemake prints goes to logs/snakemake.txt; `look` is called twice a second.
    """
    environment = _environment_in(out)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile")]
    command += ["--directory", str(out), "--profile", str(profile)]
    log = out / "logs/snakemake.txt"
    write_file(log, "")
    silent = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": out}
    subprocess.run(
        [*command, "--unlock"], env=environment, stdout=subprocess.DEVNULL, **silent, check=False
    )
    command += ["--cores", str(jobs), "--jobs", str(jobs)] if jobs else []  # here; on a cluster
    if on_gpu:  # a training at a time: `gpu` is what the machine has, and what a training takes
        command += ["--resources", "gpu=1", "--set-resources", "train:gpu=1"]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env=environment, stdout=file, **silent) as process,
    ):
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                look()
            except KeyboardInterrupt:  # Snakemake has it too, and ends its jobs before itself
                continue


def has_gpu() -> bool:
    """Whether there is a GPU that a training would take."""
    import torch

    return torch.cuda.is_available()


def stopped_early(out: Path) -> UserError:
    """Why the workflow ended before the report was made."""
    log = out / "logs/snakemake.txt"
    if shutil.disk_usage(out).free < FULL:
        why = ", for the disk is full; free some space, and"
    else:
        why = f" ({reason(log.read_text(encoding='utf-8', errors='replace'))}); {log} has more, and"
    return UserError(
        f"{out}: the workflow stopped early{why} the same command goes on from what is finished."
    )


def reason(log: str) -> str:
    """The line of Snakemake's log that says why it stopped."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    lines = [f"{line} {after}" if line.endswith(":") else line  # which goes on in the next
             for line, after in zip(lines, [*lines, ""][1:], strict=True)]  # fmt: skip
    named = [line for line in lines if re.match(r"([\w.]+(Error|Exception)|Error)\b.*:? \w", line)]
    return [*(lines[-1:] or ["Snakemake was killed"]), *named][-1].rstrip(" .")[:300]


def problems(report: Report) -> list[str]:
    """One sentence for each run that did not complete and each notebook that failed."""
    found = report.lost_sentences()
    for path in sorted(report.folder.glob("notebooks/*.failed")):
        notebook = path.with_suffix("")
        log = report.folder / "logs" / f"{notebook.stem}.txt"
        found.append(f"{notebook} stopped with an error, which its page and {log} show.")
    return found


def provenance_notes(report: Report) -> list[str]:
    """What is to be said of what made the runs, code and device: one sentence a kind, or none."""
    kinds = {
        "made by other code than stands here; --again trains them again": report.differing(),
        "of before fingerprints were kept: which code made them is unknown": report.unknown(),
    }
    count = len(report.runs)
    told = [f"{len(runs)} of {count} finished run{'s' * (count > 1)} "
            f"{'are' if len(runs) > 1 else 'is'} {what} ({_few(runs)})."
            for what, runs in kinds.items() if runs]  # fmt: skip
    return [*told, *report.devices_sentences()]


def _few(names: list[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
