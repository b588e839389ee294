"""How a report is made: its folder claimed and prepared, and Snakemake called in it."""

import getpass
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from rnnbench_nb.analyses import PAGES
from rnnbench_nb.errors import UserError
from rnnbench_nb.experiment import (
    PROJECT,
    Protocol,
    RunParameters,
    parse_yaml,
    recorded_parameters,
    to_yaml,
)
from rnnbench_nb.files import write_file
from rnnbench_nb.report import Report
from rnnbench_nb.tasks import TASKS

OUTPUT = "RNNBENCH_OUTPUT"  # in the environment of everything that works on an output folder
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
    options = TASKS[parameters.task](parameters).options.model_dump()
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
    settings = parse_yaml((profile / "config.yaml").read_text(encoding="utf-8"), str(profile))
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
        lock = FileLock(out / ".lock", timeout=0)
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
    orphans = [p for p in psutil.process_iter() if _environment(p).get(OUTPUT) == str(out)]
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


def write_parameters(out: Path, protocol: Protocol) -> None:
    """Write protocol.yaml and variants/; analyses of another protocol's runs go.

    Raises:
        UserError: The folder holds runs of a variant with other parameters.
    """
    for name, parameters in protocol.parameterisations.items():
        path = out / "variants" / f"{name}.yaml"
        if path.exists():
            values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
            there = recorded_parameters({**values, "seed": parameters.seed}, str(path))
            if there.same_as(parameters):  # a key that has come since has its default
                continue
            if any(out.glob(f"runs/{name}-seed*")):
                old, new = there.model_dump(), parameters.model_dump()
                key = next(key for key in new if old.get(key) != new[key])
                raise UserError(
                    f"{out}: it holds runs of {name} with other parameters ({key}: "
                    f"{old.get(key)!r} there, {new[key]!r} asked for); name another "
                    "--output-dir, or delete that folder."
                )
        write_file(path, to_yaml(parameters.model_dump()))
    path, text = out / "protocol.yaml", to_yaml(protocol.dump())
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        shutil.rmtree(out / "analyses", ignore_errors=True)
        write_file(path, text)


def tidy(out: Path, protocol: Protocol) -> None:
    """Remove the notebooks that failed, and those that the protocol no longer asks for."""
    for marker in out.glob("**/*.failed"):  # what failed is tried again
        marker.with_suffix("").unlink(missing_ok=True)
        marker.unlink()
    ours = {*PAGES, *(task.data_page for task in TASKS.values() if task.data_page)}
    for name in ours.difference(data_pages(protocol), analysis_pages(protocol)):
        for path in (f"notebooks/{name}.ipynb", f"logs/{name}.txt", f"pages/{name}.html"):
            (out / path).unlink(missing_ok=True)


def forget(out: Path, runs: list[str]) -> None:
    """Remove finished runs, so that they are trained again."""
    for run in runs:
        shutil.rmtree(out / "runs" / run, ignore_errors=True)


def snakemake(out: Path, profile: Path, jobs: int | None, dry_run: bool, on_gpu: bool) -> int:
    """Run the workflow in `out`, one training at a time if it is `on_gpu`; its exit code."""
    from rnnbench_nb.tasks.download import data_folder

    environment = {**os.environ, OUTPUT: str(out), "PYTHONUNBUFFERED": "1"}
    environment["RNNBENCH_DATA"] = str(data_folder().absolute())  # jobs work in another folder
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile")]
    command += ["--directory", str(out), "--profile", str(profile)]
    subprocess.run([*command, "--unlock"], env=environment, capture_output=True, check=False)
    command += ["--cores", str(jobs), "--jobs", str(jobs)] if jobs else []  # here; on a cluster
    if on_gpu:  # a training at a time: `gpu` is what the machine has, and what a training takes
        command += ["--resources", "gpu=1", "--set-resources", "train:gpu=1"]
    command += ["--dry-run", "--quiet", "host"] if dry_run else []
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # Snakemake has it too, and ends its jobs before itself
                continue


def has_gpu() -> bool:
    """Whether there is a GPU that a training would take."""
    import torch

    return torch.cuda.is_available()


def stopped_early(out: Path) -> UserError:
    """Why the workflow ended before the report was made."""
    full = shutil.disk_usage(out).free < FULL
    why = "for the disk is full; free some space" if full else f"{out / 'logs'} says why"
    return UserError(
        f"{out}: the workflow stopped early, {why}, and the same command goes on from what is "
        "finished."
    )


def problems(report: Report) -> list[str]:
    """One sentence for each run that did not complete and each notebook that failed."""
    found = report.lost_sentences()
    for marker in sorted(report.folder.glob("notebooks/*.failed")):
        notebook = marker.with_suffix("")
        log = report.folder / "logs" / f"{notebook.stem}.txt"
        found.append(f"{notebook} stopped with an error, which its page and {log} show.")
    return found


def provenance_notes(report: Report) -> list[str]:
    """What is to be said of the code that made the runs: one sentence a kind, or none."""
    kinds = {
        "made by other code than stands here; --again trains them again": report.differing(),
        "of before fingerprints were kept: which code made them is unknown": report.unknown(),
    }
    count = len(report.runs)
    return [f"{len(runs)} of {count} finished run{'s' * (count > 1)} "
            f"{'are' if len(runs) > 1 else 'is'} {what} ({_few(runs)})."
            for what, runs in kinds.items() if runs]  # fmt: skip


def _few(names: list[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
