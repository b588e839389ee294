"""The command line. Each command imports only what it needs, so that it starts quickly."""

import getpass
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    import click
except ModuleNotFoundError as error:  # an installation of the modules alone
    raise SystemExit("rnnbench: needs more: pip install 'rnnbench_nb[report]'.") from error

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import IS_CHECKOUT, PROJECT, SOURCES


class _Path(click.Path):
    """A path whose `~`, as in --json=~/x, is the home folder: shells leave that to a command."""

    def convert(self, *arguments: Any) -> Path:
        return Path(os.path.expanduser(os.fsdecode(super().convert(*arguments))))


PATH = _Path()


class _Commands(click.Group):
    """A group that prints an error of the user or the system as one line, and exits with 1."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            sys.stdout = open(os.devnull, "w")  # no further line to what may be a full disk
            where = error.filename or "A file, or what this command prints,"
            text = f"{where} cannot be read or written ({error.strerror or error}); fix this and "
            click.echo(f"rnnbench: {text}run the command again; finished work is kept.", err=True)
            sys.exit(1)

    def invoke(self, context: click.Context) -> Any:
        try:
            _require_own_environment()
            _name_account()
            return super().invoke(context)
        except UserError as error:
            click.echo(f"rnnbench: {error}", err=True)
            context.exit(1)


def _require_own_environment() -> None:
    """Refuse to run in a copied environment, whose program starts the Python of the original."""
    program = Path(sys.argv[0]).absolute()
    beside, ours = program.parent.parent / "pyvenv.cfg", Path(sys.prefix) / "pyvenv.cfg"
    if beside.exists() and not (ours.exists() and beside.samefile(ours)):
        raise UserError(f"{program} is a copy that starts {sys.prefix}; run make env here.")


def _name_account() -> None:
    """Give an account that has no name or no home, as in a container, what libraries ask for."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/nonexistent"
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rnnbench_nb", prog_name="rnnbench")
def main() -> None:
    """Compare recurrent cells on sequences: run protocols, read reports, publish results."""


@main.command()
@click.argument("params", default=str(SOURCES / "params/quick.yaml"))
@click.option("--runs", type=int, help="Number of seeds of each variant.")
@click.option("--quick", is_flag=True, help="Run the short form of the protocol.")
@click.option("--models", help="Cells or variants to run, separated by commas.")
@click.option("--output-dir", help="Folder of the report [reports/<name of PARAMS>].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a parameter.")
@click.option("--jobs", type=click.IntRange(1), help="Trainings at the same time [all cores].")
@click.option("--profile", default="local", help="Where jobs run: a folder of profiles/ [local].")
def run(
    params: str,
    runs: int | None,
    quick: bool,
    models: str | None,
    output_dir: str | None,
    settings: tuple[str, ...],
    jobs: int | None,
    profile: str,
) -> None:
    """Train the models of PARAMS, run the notebooks, and make the HTML report."""
    from rnnbench_nb import folders

    name = Path(params).stem + ("-quick" if quick else "")
    out = folders.output_folder(PROJECT / "reports" / name if output_dir is None else output_dir)
    click.echo(f"Starting PyTorch and reading {params} ...")

    from rnnbench_nb import launch, statistics
    from rnnbench_nb.progress import Progress
    from rnnbench_nb.protocol import load_protocol
    from rnnbench_nb.results import Report, format_summary, summary
    from rnnbench_nb.runs import device_of, stale_runs

    protocol = load_protocol(params, _overrides(runs, models, settings))
    folder = launch.profile_folder(profile)
    protocol = (protocol.quick() if quick else protocol).resolve()
    variants = protocol.parameterisations.values()
    on_gpu = profile == "local" and "cuda" in {device_of(own).type for own in variants}
    if protocol.note:
        click.echo(f"NOTE: {protocol.note}.", err=True)
    with launch.claim(out) as lock:
        launch.prepare(out, protocol, name)
        stale = stale_runs(Report(out))
        epochs = {parameters.run: parameters.epochs for parameters in launch.runs_of(protocol)}
        click.echo(f"The report has {len(epochs)} trainings; their logs are in {out / 'logs'}.")
        progress = Progress(out, epochs, click.echo)
        code = launch.snakemake(out, folder, jobs, on_gpu, progress.look, lock)
        progress.look()
        if code or not (out / "index.html").exists():
            raise launch.stop_error(out)
    report = Report(out)
    problems = launch.problems(report)
    for problem in problems:
        click.echo(f"rnnbench: {problem}", err=True)
    if stale:
        names = ", ".join(stale)
        text = f"the code has changed since {names}; to train again, name another --output-dir"
        click.echo(f"NOTE: {text}.", err=True)
    tested = report.tested
    table = format_summary(summary(tested.results), report.metrics).iloc[:, :3]
    click.echo("No run has a test score." if table.empty else table.to_string(index=False))
    if sentence := statistics.finding(tested):
        click.echo(f"Result: {sentence}")
    if report.note:
        click.echo(f"Note: {report.note}.")
    if report.stand_in:
        click.echo("Next: go online, or set RNNBENCH_DATA to a folder with the data; run again.")
    elif not statistics.has_enough_seeds(tested):
        click.echo("Next: a verdict needs five seeds and long runs, as in params/row_mnist.yaml.")
    click.echo(out / "index.html")
    sys.exit(1 if problems else 0)


def _overrides(runs: int | None, models: str | None, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return the values with which the options replace those of the parameter file.

    Raises:
        UserError: A setting is not KEY=VALUE.
    """
    from rnnbench_nb.parameters import parse_yaml

    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write KEY=VALUE, such as --set epochs=5.")
        overrides[key.strip()] = parse_yaml(value, f"--set {setting}")
    if runs is not None:
        overrides["runs"] = runs
    if models is not None:
        overrides["models"] = [name.strip() for name in models.split(",")]
    return overrides


@main.command()
@click.argument("params")
@click.option("--hours", is_flag=True, help="Print how long each variant takes on this machine.")
def check(params: str, hours: bool) -> None:
    """Print the checked parameters of PARAMS, or how long they will take on this machine."""
    from rnnbench_nb.parameters import to_yaml
    from rnnbench_nb.protocol import load_protocol

    protocol = load_protocol(params)
    if not hours:
        click.echo(to_yaml(protocol.dump()), nl=False)
        return
    from rnnbench_nb import plan

    table = plan.hours(protocol.resolve())
    click.echo(table.to_string(index=False, float_format="{:.3g}".format))
    click.echo(f"In total {table['hours'].sum():.3g} hours with one training at a time.")


@main.command()
@click.argument("params")
def data(params: str) -> None:
    """Fetch and verify the data of PARAMS."""
    from rnnbench_nb.protocol import load_protocol
    from rnnbench_nb.tasks.data import data_folder

    protocol = load_protocol(params).resolve()
    if protocol.stand_in:
        raise UserError(f"{params}: {protocol.note}.")
    click.echo(f"The data of {params} are complete and verified; files lie in {data_folder()}.")


@main.command("list")
def list_reports() -> None:
    """List the reports in reports/ and reports/published/, protocols, cells and tasks."""
    from rnnbench_nb.results import COMPLETED, MARKER, Report

    for pattern in (f"reports/*/{MARKER}", f"reports/published/*/{MARKER}"):
        for folder in sorted(path.parent for path in PROJECT.glob(pattern)):
            try:
                statuses = Report(folder).statuses()
                state = f"{statuses.count(COMPLETED)} of {len(statuses)} runs"
            except UserError as error:
                state = str(error)
            click.echo(f"{os.path.relpath(folder)}: {state}")
    protocols = sorted(path.stem for path in SOURCES.glob("params/*.yaml"))
    click.echo(f"Protocols: {', '.join(protocols)}.")
    for kind in ("cells", "tasks"):  # importing them would import torch
        files = sorted(Path(__file__).parent.glob(f"{kind}/*.py"))
        texts = [file.read_text(encoding="utf-8") for file in files]
        names = [re.search(r'^    name\b.*?= "(\w+)"', text, re.MULTILINE) for text in texts]
        click.echo(f"{kind.capitalize()}: {', '.join(name[1] for name in names if name)}.")


@main.command()
@click.argument("run_folder", type=PATH)
def show(run_folder: Path) -> None:
    """Print the status, the test scores and the record of the run in RUN_FOLDER."""
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
@click.argument("report", type=PATH)
def render(report: Path) -> None:
    """Write the tables, figures and pages of REPORT from its runs and executed notebooks."""
    from rnnbench_nb import figures, folders
    from rnnbench_nb.results import Report, write_tables
    from rnnbench_nb.site import index

    content = Report(folders.working_report(report))
    write_tables(content)
    if (tested := content.tested).runs:
        folder = content.folder / "figures"
        figures.save(figures.training_curves(tested.history, tested), folder / "training_curves")
        figures.save(figures.error_curves(tested.history, tested), folder / "error_curves")
        figures.save(figures.test_errors(tested.results, tested), folder / "test_comparison")
    click.echo(str(index.build(content)))


@main.command("publish")
@click.argument("report", type=PATH)
@click.option("--to", help="Folder of the copy [reports/published/<name of REPORT>].")
@click.option("--replace", is_flag=True, help="Publish even if published runs are lost or changed.")
def publish_report(report: Path, to: str | None, replace: bool) -> None:
    """Copy pages, tables, records and predictions of REPORT, without weights.

    If front.html.j2 lies beside the copy, the front page over all reports is made again.
    """
    from rnnbench_nb.site.publish import publish

    default = PROJECT / "reports/published" / report.resolve().name
    click.echo(str(publish(report, default if to is None else Path(to), replace)))


@main.command("site")
@click.argument("folder", type=PATH, default=PROJECT / "reports/published")
@click.option("--draw", type=PATH, multiple=True, metavar="RUN", help="Run for the drawing page.")
@click.option("--remake", type=PATH, multiple=True, metavar="REPORT", help="Report to remake.")
def front_page(folder: Path, draw: tuple[Path, ...], remake: tuple[Path, ...]) -> None:
    """Write the front page over the published reports in FOLDER, from its front.html.j2.

    --remake REPORT first makes the pages of a report again, with today's notebooks. --draw RUN adds
    the model of a run, which needs its weights, to the page on which visitors draw a digit.
    """
    from rnnbench_nb.results import load_run
    from rnnbench_nb.site import drawing, front, publish

    for report in remake:
        click.echo(str(publish.remake(report)))
    if draw:
        drawing.write(folder, [load_run(run) for run in draw])
    click.echo(str(front.build(folder)))


@main.command()
@click.argument("reports", type=PATH, nargs=-1)
@click.option("--retrain", type=click.IntRange(1), help="Train so many epochs again and compare.")
def verify(reports: tuple[Path, ...], retrain: int | None) -> None:
    """Check the tables of REPORTS, or of all published ones, against records and predictions."""
    from rnnbench_nb import verify as checks
    from rnnbench_nb.results import MARKER, Report

    published = sorted(path.parent for path in PROJECT.glob(f"reports/published/*/{MARKER}"))
    if not reports and not published:
        raise UserError(f"{PROJECT} has no reports/published/; name a report.")
    problems = 0
    for folder in reports or published:
        try:
            report = Report(folder)
            faults = checks.verify(report)
        except UserError as error:  # a damaged file is a problem of its own report alone
            click.echo(error)
            problems += 1
            continue
        problems += len(faults)
        for fault in faults:
            click.echo(f"{folder}: {fault}.")
        if not faults:
            click.echo(f"{folder} agrees with the predictions of {len(report.runs)} runs.")
        if retrain:
            problems += checks.retrain(report, retrain, click.echo).count("differs")
    click.echo(f"This command does not check: {'; '.join(checks.UNCHECKED)}.")
    if problems:
        raise UserError(f"checks that failed: {problems}; the lines above name them.")


@main.command("test-cell")
@click.argument("name")
def test_cell(name: str) -> None:
    """Test the cell NAME against the contract of all cells."""
    from rnnbench_nb.cells import CELLS
    from rnnbench_nb.errors import lookup

    lookup(CELLS, "NAME", name)
    if not IS_CHECKOUT:
        raise UserError("test-cell needs the tests, which are not installed; use a checkout.")
    if find_spec("pytest") is None:
        raise UserError("test-cell needs pytest, which is not installed: pip install pytest.")
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "tests/test_battery.py"]
    environment = {**os.environ, "RNNBENCH_CELL": name, "PYTEST_ADDOPTS": ""}
    sys.exit(subprocess.run(command, cwd=PROJECT, env=environment).returncode)


@main.command()
@click.option("--models", help="Cells beside torch's; 'NAME loop' runs without a kernel.")
@click.option("--json", "path", type=PATH, help="Write the measurements to this new file.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def bench(path: Path | None, device: str, models: str | None) -> None:
    """Time training steps and inference of the models in turn, in one process."""
    from rnnbench_nb import bench

    bench.command(path, device, models, click.echo)
