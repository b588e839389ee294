"""The command line: it checks what it is given, calls what does the work, and prints the end.

Each command imports what it needs when it runs, so that none waits for what others need.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT

if TYPE_CHECKING:
    from rnnbench_nb.results import Report

FOLDER = click.Path(path_type=Path)


class _ReportFolder(click.Path):
    """A report or run, by its path from here or from the project, by its name, or by its page."""

    def convert(self, value: Any, param: Any, context: Any) -> Path:
        path = Path(value).expanduser()
        path = path.parent if path.name == "index.html" else path
        reports = PROJECT / "reports"
        places = [path, PROJECT / path, reports / path, reports / "published" / path]
        return next((place for place in places if _exists(place)), path)


def _exists(place: Path) -> bool:
    """Whether there is a folder; the runs of a published report are in one file."""
    parents = place.resolve().parents
    return place.exists() or len(parents) > 1 and (parents[1] / "runs.json").exists()


REPORT = _ReportFolder()


class _Commands(click.Group):
    """Prints a `UserError` as one line without a traceback, and exits with 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            _require_own_environment()
            return super().invoke(context)
        except UserError as error:
            click.echo(f"rnnbench: {error}", err=True)
            context.exit(1)


def _require_own_environment() -> None:
    """Refuse to run from an environment that was moved or copied, which has other code.

    Raises:
        UserError: The program's environment is not that of the Python that it started.
    """
    program = Path(sys.argv[0]).absolute()
    beside, ours = program.parents[1] / "pyvenv.cfg", Path(sys.prefix) / "pyvenv.cfg"
    if beside.exists() and not (ours.exists() and beside.samefile(ours)):
        raise UserError(
            f"{program} starts the Python of another folder, {sys.prefix}, because the environment "
            "was moved or copied; make it again: make env."
        )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rnnbench_nb", prog_name="rnnbench")
def main() -> None:
    """Compare recurrent cells on sequences: run protocols, read reports, publish results."""


@main.command()
@click.argument("params", default=str(PROJECT / "params/quick.yaml"))
@click.option("--seed", type=int, help="First seed.")
@click.option("--runs", type=int, help="Number of seeds.")
@click.option("--quick", is_flag=True, help="The protocol's short form.")
@click.option("--models", help="The models that take part, separated by commas.")
@click.option("--output-dir", help="Folder of the report [reports/<name of PARAMS>].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any parameter.")
@click.option("--jobs", type=click.IntRange(1), help="Trainings side by side [all cores].")
@click.option("--profile", default="local", help="Where jobs run: a folder of profiles/.")
@click.option("--again", is_flag=True, help="Train runs again for which the code has changed.")
@click.option("--dry-run", is_flag=True, help="Print what would run, and write nothing.")
def run(
    params: str, seed: int | None, runs: int | None, quick: bool, models: str | None,
    output_dir: str | None, settings: tuple[str, ...], jobs: int | None, profile: str,
    again: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Train the models of PARAMS, run the notebooks, and make the HTML report."""
    from rnnbench_nb import folders

    name = Path(params).stem + ("-quick" if quick else "")
    out = folders.output_folder(PROJECT / "reports" / name if output_dir is None else output_dir)
    _say(f"Reading {params}, once PyTorch has started ...")

    from rnnbench_nb.launch import profile_folder
    from rnnbench_nb.protocol import load_protocol

    protocol = load_protocol(params, _overrides(seed, runs, models, settings))
    protocol = protocol.quick() if quick else protocol
    folder = profile_folder(profile)

    from rnnbench_nb import launch
    from rnnbench_nb.progress import Progress
    from rnnbench_nb.results import Report

    protocol = protocol.resolved(download=not dry_run)
    if protocol.note:
        click.echo(f"NOTE: {protocol.note}.", err=True)
    if dry_run:
        _say(launch.outline(out, protocol, _stale_runs(out) if again else []))
        return
    on_gpu = profile == "local" and launch.trains_on_gpu(protocol)
    with launch.claim(out) as lock:
        launch.prepare(out, protocol, name)
        stale = _stale_runs(out)
        if again:
            launch.forget(out, stale)
        _say(launch.outline(out, protocol))
        index = out / "index.html"
        before = index.stat().st_mtime_ns if index.exists() else None
        epochs = {parameters.run: parameters.epochs for parameters in launch.runs_of(protocol)}
        progress = Progress(out, epochs, _say)
        code = launch.snakemake(out, folder, jobs, on_gpu, progress.look, lock)
        progress.look()
        if code or not index.exists():
            raise launch.why_it_stopped(out)
    report = Report(out)
    problems = launch.problems(report)
    for problem in problems:
        click.echo(f"rnnbench: {problem}", err=True)
    if stale and not again:
        changed = f"the code has changed since {launch.few(stale)}; --again trains again"
        click.echo(f"NOTE: {changed}.", err=True)
    if index.stat().st_mtime_ns == before:
        _say("Nothing to do: every notebook and page is up to date.")
    _say(_short_table(report))
    _say(str(index))
    sys.exit(1 if problems else 0)


def _stale_runs(out: Path) -> list[str]:
    """The finished runs of a report for which today's code gives other numbers."""
    from rnnbench_nb.results import MARKER, Report
    from rnnbench_nb.runs import stale_runs

    return stale_runs(Report(out)) if (out / MARKER).exists() else []


def _say(line: str) -> None:
    """Print a line. A reader that goes away (`| head -1`) stops nothing."""
    try:
        click.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _short_table(report: "Report") -> str:
    """The columns of a report's summary that fit a terminal."""
    from rnnbench_nb.results import formatted, summary

    table = formatted(summary(report.results), report.metrics)
    table["variant"] = table["variant"].map(report.labels)
    columns = ["variant", "seeds", table.columns[2], "parameters", "epochs"]
    return table[columns].to_string(index=False) if len(table) else "No training was completed."


@main.command()
@click.argument("params")
@click.option("--hours", is_flag=True, help="Print how long each variant takes here instead.")
def check(params: str, hours: bool) -> None:
    """Print the checked parameters of PARAMS, or how long they will take on this machine."""
    from rnnbench_nb.parameters import to_yaml
    from rnnbench_nb.protocol import load_protocol

    protocol = load_protocol(params)
    if not hours:
        click.echo(to_yaml(protocol.dump()), nl=False)
        return
    from rnnbench_nb import plan

    table = plan.hours(protocol.resolved())
    click.echo(table.to_string(index=False, float_format="{:.3g}".format))
    click.echo(f"{table['hours'].sum():.3g} hours of one training at a time, for the whole budget.")


@main.command()
@click.argument("params")
def data(params: str) -> None:
    """Fetch and verify the data of PARAMS."""
    from rnnbench_nb.protocol import load_protocol
    from rnnbench_nb.tasks.data import data_folder

    protocol = load_protocol(params).resolved()
    if protocol.stand_in:
        raise UserError(f"{params}: {protocol.note}.")
    click.echo(f"The data of {params} are complete and verified; files lie in {data_folder()}.")


@main.command("list")
def list_reports() -> None:
    """List the reports in reports/ and reports/published/, the cells and the tasks."""
    from rnnbench_nb.results import MARKER, Report

    rows = [("REPORT", "RUNS", "BEST", "FOLDER")]
    for pattern in (f"reports/*/{MARKER}", f"reports/published/*/{MARKER}"):
        for folder in sorted(path.parent for path in PROJECT.glob(pattern)):
            try:
                runs, best = _finished(Report(folder))
            except UserError as error:
                runs, best = "", str(error)
            here = folder.is_relative_to(Path.cwd())
            place = folder.relative_to(Path.cwd()) if here else folder
            rows.append((folder.name, runs, best, str(place)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for line in rows:
        click.echo("  ".join(map(str.ljust, line, widths)).rstrip())
    for kind in ("cells", "tasks"):  # without importing them
        files = sorted((PROJECT / "rnnbench_nb" / kind).glob("*.py"))
        texts = [file.read_text(encoding="utf-8") for file in files]
        names = [re.search(r'^    name\b.*?= "(\w+)"', text, re.M) for text in texts]
        click.echo(f"{kind.capitalize()}: {', '.join(name[1] for name in names if name)}.")


def _finished(report: "Report") -> tuple[str, str]:
    """The number of finished runs, as in `29/30`, and the score of the best variant."""
    from rnnbench_nb import results

    count, path = len(report.run_folders), report.folder / "results.csv"
    if not path.exists():
        return f"{len([*report.folder.glob('runs/*/run.json')])}/{count}", "not all runs have ended"
    columns = results.result_columns(report.metrics.names)
    table = results.summary(results.read_csv(path, columns))
    if table.empty:
        return f"0/{count}", "no results"
    best = table[report.score.name].idxmax()
    score = results.formatted(table, report.metrics).iloc[best, 2]
    label, name = report.labels[table["variant"][best]], results.readable(report.score.name)
    return f"{table['seeds'].sum()}/{count}", f"{label}: {name} {score}{report.score.unit}"


@main.command()
@click.argument("run_folder", type=REPORT)
def show(run_folder: Path) -> None:
    """Print what the run in RUN_FOLDER is, and how it scored."""
    from rnnbench_nb.results import COMPLETED, load_run, readable

    run = load_run(run_folder)
    record = run.record
    click.echo(f"{record['variant']}, seed {record['seed']}, is {record['status']}.")
    if record["status"] == COMPLETED:
        for name in run.metrics.names:
            value = run.metrics.score.scale * record["test"][name]
            click.echo(f"test {readable(name)}: {value:.4g}{run.metrics.score.unit}")
    values = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    for name, value in (values | record.get("parameters", {})).items():
        click.echo(f"{name}: {value}")


@main.command()
@click.argument("report", type=REPORT)
def render(report: Path) -> None:
    """Write the tables, figures and pages of REPORT from its runs and executed notebooks."""
    from rnnbench_nb import figures, folders
    from rnnbench_nb.results import Report, write_tables
    from rnnbench_nb.site import index

    found = Report(folders.own_report(report))
    write_tables(found)
    if found.runs:
        drawn = {
            "training_curves": figures.training_curves(found.history, found),
            "error_curves": figures.error_curves(found.history, found),
            "test_comparison": figures.test_errors(found.results, found),
        }
        for name, figure in drawn.items():
            figures.save(figure, found.folder / "figures" / name)
    click.echo(str(index.build(found.folder)))


@main.command("publish")
@click.argument("report", type=REPORT)
@click.option("--to", help="Where to [reports/published/<name of REPORT>].")
@click.option("--replace", is_flag=True, help="Even if published runs are lost or changed.")
def publish_report(report: Path, to: str | None, replace: bool) -> None:
    """Copy the light part of REPORT to reports/published/<its name>.

    Pages, tables, records and predictions of its finished runs; no weights. If front.html.j2 lies
    beside the folder, the front page over all reports there is made again.
    """
    from rnnbench_nb.site.publish import publish

    default = PROJECT / "reports/published" / report.resolve().name
    click.echo(str(publish(report, default if to is None else Path(to), replace)))


@main.command("site")
@click.argument("folder", type=FOLDER, default=PROJECT / "reports/published")
@click.option("--draw", type=REPORT, multiple=True, metavar="RUN", help="Reads drawn digits.")
@click.option("--remake", type=REPORT, multiple=True, metavar="REPORT", help="Its pages first.")
def front_page(folder: Path, draw: tuple[Path, ...], remake: tuple[Path, ...]) -> None:
    """Write the front page over the published reports in FOLDER, from its front.html.j2.

    With --remake REPORT, once for each published report, its pages are made again first, by the
    notebooks as they are now. With --draw RUN, once for each model, these runs with their weights
    read what is drawn on the page for drawing; without, that page keeps its models.
    """
    from rnnbench_nb.results import load_run
    from rnnbench_nb.site import drawing, front, publish

    for report in remake:
        click.echo(str(publish.remake(report)))
    if draw:
        drawing.write(folder, [load_run(run) for run in draw])
    click.echo(str(front.build(folder)))


@main.command()
@click.argument("reports", type=REPORT, nargs=-1)
@click.option("--retrain", type=click.IntRange(1), metavar="EPOCHS",
              help="Train the first epochs of each run again and compare.")  # fmt: skip
def verify(reports: tuple[Path, ...], retrain: int | None) -> None:
    """Check the tables of REPORTS against their records, histories and predictions.

    Without REPORTS, all published reports are checked.
    """
    from rnnbench_nb import verify as checks
    from rnnbench_nb.results import MARKER, Report

    published = sorted(PROJECT.glob(f"reports/published/*/{MARKER}"))
    problems = 0
    for folder in reports or [path.parent for path in published]:
        report = Report(folder)
        found = checks.verify(report)
        problems += len(found)
        for problem in found:
            click.echo(f"{folder}: {problem}.")
        if not found:
            click.echo(f"{folder} agrees with the predictions of {len(report.runs)} runs.")
        if retrain:
            problems += checks.retrain(report, retrain, click.echo).count("differs")
    click.echo(f"Not checked: {'; '.join(checks.UNCHECKED)}.")
    if problems:
        raise UserError(f"{problems} things do not agree.")


@main.command("test-cell")
@click.argument("name")
def test_cell(name: str) -> None:
    """Hold the cell NAME to the contract of every cell."""
    from rnnbench_nb.cells import CELLS
    from rnnbench_nb.errors import lookup

    lookup(CELLS, "NAME", name)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "tests/test_battery.py"]
    environment = {**os.environ, "RNNBENCH_CELL": name, "PYTEST_ADDOPTS": ""}
    sys.exit(subprocess.run(command, cwd=PROJECT, env=environment).returncode)


@main.command()
@click.option("--json", "path", type=FOLDER, help="Write the measurements to this new file.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def bench(path: Path | None, device: str) -> None:
    """Time training steps and inference of the models, in turn in one process."""
    from rnnbench_nb import bench

    bench.command(path, device, click.echo)


def _overrides(
    seed: int | None, runs: int | None, models: str | None, settings: tuple[str, ...]
) -> dict[str, Any]:
    """The values that the options lay over the parameter file.

    Raises:
        UserError: A key is given twice, or a setting is not KEY=VALUE.
    """
    from rnnbench_nb.cells import CELLS
    from rnnbench_nb.parameters import parse_yaml

    pairs: list[tuple[str, Any]] = [("seed", seed), ("runs", runs)]
    if models is not None:
        known = {text.casefold(): name for name, cell in CELLS.items()
                 for text in (cell.label, name)}  # fmt: skip
        names = [name.strip() for name in models.split(",") if name.strip()]
        pairs.append(("models", [known.get(name.casefold(), name) for name in names]))
    pairs = [(key, value) for key, value in pairs if value is not None]
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write KEY=VALUE, such as --set epochs=5.")
        pairs.append((key.strip(), parse_yaml(value, f"--set {setting}")))
    overrides: dict[str, Any] = {}
    for key, value in pairs:
        if key in overrides:
            raise UserError(f"{key!r} is given twice among the options; give it once.")
        overrides[key] = value
    return overrides
