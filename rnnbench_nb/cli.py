"""The command line: thin; it validates, calls Snakemake, and says how it ended."""

import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import click
import psutil
from filelock import FileLock, Timeout

from rnnbench_nb.config import (
    PROJECT,
    Protocol,
    RunParameters,
    load_protocol,
    parse_yaml,
    to_yaml,
    validate,
)
from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import write_file

MARK = "RNNBENCH_OUTPUT"  # in the environment of everything that works on an output folder
FULL = 4_000_000  # bytes: a disk with less room than this is said to be full


class _OneSentence(click.Group):
    """Prints a `UserError` as the one sentence it is, and exits with 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"rnnbench: {error}", err=True)
            context.exit(1)


@click.group(cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """LSTM, GRU and A-GRU on Sequential MNIST: runs, reports and published results."""


@main.command()
@click.argument("params", default=str(PROJECT / "params/quick.yaml"))
@click.option("--seed", type=int, multiple=True, help="First seed.")
@click.option("--runs", type=int, help="Number of seeds: S, S+1, ...")
@click.option("--quick", is_flag=True, help="The protocol's five-epoch form.")
@click.option("--models", help="Which models take part, such as lstm,agru.")
@click.option("--output-dir", help="Where the report goes [reports/<name of PARAMS>].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any parameter.")
@click.option("--jobs", type=click.IntRange(1), help="Trainings side by side [all cores].")
@click.option("--profile", default="local", help="Where jobs run: a folder of profiles/.")
@click.option("--dry-run", is_flag=True, help="Only say what would run.")
def run(params, seed, runs, quick, models, output_dir, settings, jobs, profile, dry_run):
    """Run the notebooks of PARAMS and make the HTML report."""
    overrides = _overrides(seed, runs, models, settings)
    protocol = load_protocol(params, overrides)
    protocol = protocol.quick() if quick else protocol
    name = Path(params).stem + ("-quick" if quick else "")
    out = Path(output_dir).absolute() if output_dir else PROJECT / "reports" / name
    profile_folder = PROJECT / "profiles" / profile
    if not profile_folder.is_dir():
        known = ", ".join(sorted(folder.name for folder in profile_folder.parent.iterdir()))
        raise UserError(f"--profile: profiles/ has no {profile!r}; it must be one of {known}.")
    _require_executor(profile_folder)
    protocol = _check(protocol)
    lock = _claim(out)
    with lock:
        _write_parameters(out, protocol)
        for marker in [] if dry_run else out.glob("**/*.failed"):  # what failed is tried again
            marker.with_suffix("").unlink(missing_ok=True)
            marker.unlink()
        index = out / "index.html"
        before = index.stat().st_mtime_ns if index.exists() else None
        variants = len(protocol.parameterisations())
        click.echo(
            f"{variants * protocol.runs} trainings ({variants} variants, {protocol.runs} seeds) on "
            f"{protocol.dataset}; what each is doing stands in {out / 'logs'}."
        )
        on_gpu = profile == "local" and protocol.device != "cpu" and _has_gpu()
        code = _snakemake(out, profile_folder, jobs, dry_run, on_gpu)
        if dry_run:
            sys.exit(code)
        if code or not index.exists():
            full = shutil.disk_usage(out).free < FULL
            why = "for the disk is full; free some space" if full else f"{out / 'logs'} says why"
            raise UserError(
                f"{out}: the workflow stopped early, {why}, and the same command goes on from what "
                "is finished."
            )
        problems = _problems(out, protocol)
        for problem in problems:
            click.echo(f"rnnbench: {problem}", err=True)
        if index.stat().st_mtime_ns == before:
            click.echo("Nothing to do: every notebook and page is up to date.")
    click.echo(str(index))
    sys.exit(1 if problems else 0)


@main.command()
@click.argument("params")
def check(params):
    """Print the validated parameters of PARAMS."""
    protocol = load_protocol(params)
    _check_names(protocol)
    click.echo(to_yaml(protocol), nl=False)


@main.command()
@click.argument("params")
def data(params):
    """Fetch and verify the data set of PARAMS."""
    from rnnbench_nb.data import data_folder, fetch

    protocol = load_protocol(params)
    fetch(protocol.dataset)
    click.echo(f"{protocol.dataset} is complete and verified in {data_folder()}.")


@main.command()
@click.argument("report", type=click.Path(path_type=Path))
def collect(report):
    """Write the tables and figures of REPORT from the runs that are there."""
    from rnnbench_nb import figures, results

    protocol = load_protocol(report / "protocol.yaml")
    table, history, lost = results.collect(results.run_folders(report, protocol))
    results.write_csv(report / "results.csv", table)
    results.write_csv(report / "history.csv", history)
    labelled = table.assign(variant=table["variant"].map(figures.label))
    results.write_summary(report / "results_summary.md", labelled, lost)
    figures.save(figures.training_curves(history), report / "figures/training_curves")
    figures.save(figures.accuracy_curves(history), report / "figures/accuracy_curves")
    figures.save(figures.test_comparison(table), report / "figures/test_comparison")


@main.command()
@click.argument("report", type=click.Path(path_type=Path))
def render(report):
    """Render the executed notebooks of REPORT and its index page to HTML."""
    from rnnbench_nb import site

    click.echo(str(site.build(report)))


@main.command()
@click.argument("report", type=click.Path(path_type=Path))
def publish(report):
    """Copy the light part of a finished REPORT to reports/published/<its name>.

    Pages (one training a variant), figures, tables, records and predicted labels; no weights.
    """
    from rnnbench_nb import results, site

    protocol = load_protocol(report / "protocol.yaml")
    folders = results.run_folders(report, protocol)
    _, _, lost = results.collect(folders)
    if lost or not (report / "index.html").exists():
        raise UserError(f"{report}: the report is not finished; run it again before publishing.")
    shown = [path for path in folders if path.name.endswith(f"-seed{protocol.seed}")]
    light = ["protocol.yaml", "*.csv", "*.md", "figures/*.png", "figures/*.svg"]
    light += [f"runs/{path.name}/{name}" for path in folders
              for name in ("run.json", "predicted.safetensors")]  # fmt: skip
    notebooks = ["notebooks/*.ipynb", *(f"runs/{path.name}/*.ipynb" for path in shown)]
    published = PROJECT / "reports/published" / report.resolve().name
    shutil.rmtree(published, ignore_errors=True)  # nothing of an earlier publication stays
    for pattern in light + notebooks:
        for path in report.glob(pattern):
            write_file(published / path.relative_to(report), path.read_bytes())
    index = site.build(published)
    for path in published.glob("**/*.ipynb"):  # their pages say the same
        path.unlink()
    click.echo(str(index))


@main.command()
@click.argument("report", type=click.Path(path_type=Path))
def verify(report):
    """Recompute the table of REPORT from its saved predictions and compare."""
    from rnnbench_nb import results

    rows = results.verify(report)
    click.echo(results.formatted(results.summary(rows)).to_string(index=False))
    click.echo(f"{report / 'results.csv'} agrees with the predictions of {len(rows)} runs.")


@main.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write all rows to a file.")
@click.option("--full", is_flag=True, help="The whole grid of shapes, about half an hour.")
@click.option("--shape", "shapes", multiple=True, metavar="T,H,B,THREADS", help="Only this shape.")
def bench(path, full, shapes):
    """Time training steps and inference of the models, in turn in one process."""
    from rnnbench_nb import bench

    try:
        named = [bench.Shape(*map(int, shape.split(","))) for shape in shapes]
    except (TypeError, ValueError) as error:
        raise UserError("--shape: write four whole numbers, such as 28,128,128,1.") from error
    report = bench.run(named or (bench.GRID if full else bench.SHORT), click.echo)
    report |= {} if named else bench.run_parts(click.echo)
    if path:
        write_file(path, json.dumps(report, indent=1) + "\n")


def _overrides(seed, runs, models, settings) -> dict:
    """The values that the options lay over the parameter file; each key at most once."""
    pairs = [("seed", value) for value in seed]
    pairs += [("runs", runs)] if runs is not None else []
    pairs += [("models", models.split(","))] if models is not None else []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write KEY=VALUE, such as --set epochs=5.")
        pairs.append((key.strip(), parse_yaml(value, f"--set {setting}")))
    overrides = dict(pairs)
    for key in overrides:
        if sum(other == key for other, _ in pairs) > 1:
            raise UserError(f"{key!r} is given twice among the options; give it once.")
    return overrides


def _check(protocol: Protocol) -> Protocol:
    """The protocol with the data set that is there, every name in it known."""
    from rnnbench_nb.data import resolve

    _check_names(protocol)
    dataset = resolve(protocol.dataset, protocol.offline_fallback)
    if dataset != protocol.dataset:
        click.echo(
            f"NOTE: {protocol.dataset} is not there and could not be fetched: this report is "
            f"made on {dataset} (scikit-learn's 8 x 8 digits) instead.",
            err=True,
        )
    taken = dataset if dataset != protocol.dataset else None  # the report says so if it is set
    return protocol.model_copy(update={"dataset": dataset, "offline_fallback": taken})


def _check_names(protocol: Protocol) -> None:
    """Refuse a model, data set or reading that is in no table."""
    from rnnbench_nb.data import DATASETS, READINGS  # imports torch: slow, so not at the top
    from rnnbench_nb.models import MODELS

    for model in protocol.models:
        lookup(MODELS, "models", model)
    for variant in protocol.parameterisations().values():
        lookup(MODELS, "model", variant.model)
        lookup(DATASETS, "dataset", variant.dataset)
        lookup(READINGS, "reading", variant.reading)


def _require_executor(profile: Path) -> None:
    """Refuse a profile whose Snakemake executor is not installed."""
    settings = parse_yaml((profile / "config.yaml").read_text(encoding="utf-8"), str(profile))
    executor = settings.get("executor", "local")
    module = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor != "local" and find_spec(module) is None:
        plugin = module.replace("_", "-")
        raise UserError(
            f"--profile {profile.name} needs {plugin}; install it: pip install {plugin}."
        )


def _claim(out: Path) -> FileLock:
    """Take the output folder for this command alone, and end what a killed one left running."""
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
    orphans = [p for p in psutil.process_iter() if _environment(p).get(MARK) == str(out)]
    for orphan in orphans:
        orphan.kill()
    psutil.wait_procs(orphans, timeout=10)
    if (out / ".snakemake/slurm_logs").exists():
        _cancel_slurm_jobs(out)
    return lock


def _cancel_slurm_jobs(out: Path) -> None:
    """End the Slurm jobs that a killed command left at work on an output folder."""
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


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _write_parameters(out: Path, protocol: Protocol) -> None:
    """Write protocol.yaml and variants/, unless finished runs there had other parameters."""
    for name, parameters in protocol.parameterisations().items():
        path = out / "variants" / f"{name}.yaml"
        if path.exists():
            values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
            there = validate(RunParameters, values, str(path)).model_dump()
            here = parameters.model_dump()
            changed = [key for key in here if key != "seed" and there[key] != here[key]]
            if not changed:  # a key that has come since has its default: nothing to run again
                continue
            if any(out.glob(f"runs/{name}-seed*")):
                key = changed[0]
                raise UserError(
                    f"{out}: it holds runs of {name} with other parameters ({key}: "
                    f"{there[key]!r} there, {here[key]!r} asked for); name another "
                    "--output-dir, or delete that folder."
                )
        write_file(path, to_yaml(parameters))
    path, text = out / "protocol.yaml", to_yaml(protocol)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_file(path, text)


def _snakemake(out: Path, profile: Path, jobs: int | None, dry_run: bool, on_gpu: bool) -> int:
    """Run the workflow in `out`, one training at a time if it is `on_gpu`; its exit code."""
    from rnnbench_nb.data import data_folder

    environment = {**os.environ, MARK: str(out), "PYTHONUNBUFFERED": "1"}
    environment["RNNBENCH_DATA"] = str(data_folder().absolute())  # jobs work in another folder
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile")]
    command += ["--directory", str(out), "--profile", str(profile)]
    subprocess.run([*command, "--unlock"], env=environment, capture_output=True, check=False)
    command += ["--cores", str(jobs), "--jobs", str(jobs)] if jobs else []  # here; on a cluster
    if on_gpu:  # a training at a time: `gpu` is what the machine has, and what a training takes
        command += ["--resources", "gpu=1", "--set-resources", "train:gpu=1"]
    command += ["--dry-run", "--quiet", "host"] if dry_run else []
    with subprocess.Popen(command, env=environment) as snakemake:
        while True:
            try:
                return snakemake.wait()
            except KeyboardInterrupt:  # Snakemake has it too, and ends its jobs before itself
                continue


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _problems(out: Path, protocol: Protocol) -> list[str]:
    """One sentence for each notebook that failed and each run that did not complete."""
    from rnnbench_nb.results import collect, run_folders

    _, _, lost = collect(run_folders(out, protocol))
    problems = [f"{run['variant']}-seed{run['seed']} {run['status']}: {run['reason']}"
                for run in lost]  # fmt: skip
    for marker in sorted(out.glob("notebooks/*.failed")):
        notebook = marker.with_suffix("")
        log = out / "logs" / f"{notebook.stem}.txt"
        problems.append(f"{notebook} stopped with an error, which its page and {log} show.")
    return problems
