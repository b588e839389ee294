"""The command line: thin; it validates, calls what does the work, and says how it ended."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import click

from rnnbench_nb import surroundings
from rnnbench_nb.errors import UserError
from rnnbench_nb.metrics import METRICS

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = click.Path(path_type=Path)


class _Made(click.Path):
    """A report, from here, the project or its name alone; its index.html names it too."""

    def convert(self, value, param, context) -> Path:
        path = Path(value)
        if path.name == "index.html":
            path = path.parent
        reports = PROJECT / "reports"
        places = [path, PROJECT / path, reports / path, reports / "published" / path]
        return next((place for place in places if place.exists()), path)


MADE = _Made()


class _OneSentence(click.Group):
    """Prints a `UserError` as the one sentence it is, and exits with 1."""

    def main(self, args: list[str] | None = None, *rest, **settings) -> object:
        if args is None:  # called as a program
            try:
                surroundings.enter()
            except UserError as error:
                sys.exit(f"rnnbench: {error}")
        return super().main(args, *rest, **settings)

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"rnnbench: {error}", err=True)
            context.exit(1)


# What a command needs is imported in it: no answer waits for what only others need.
@click.group(cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rnnbench_nb", prog_name="rnnbench")
def main() -> None:
    """Recurrent cells compared on sequences: runs, reports and published results."""


@main.command()
@click.argument("params", default=str(PROJECT / "params/quick.yaml"))
@click.option("--seed", type=int, multiple=True, help="First seed.")
@click.option("--runs", type=int, help="Number of seeds: S, S+1, ...")
@click.option("--quick", is_flag=True, help="The protocol's five-epoch form.")
@click.option("--models", help="Which models take part, separated by commas.")
@click.option("--output-dir", help="Where the report goes [reports/<name of PARAMS>].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any parameter.")
@click.option("--jobs", type=click.IntRange(1), help="Trainings side by side [all cores].")
@click.option("--profile", default="local", help="Where jobs run: a folder of profiles/.")
@click.option("--again", is_flag=True, help="Train again the runs that other code made.")
@click.option("--dry-run", is_flag=True, help="Only say what would run.")
def run(params, seed, runs, quick, models, output_dir, settings, jobs, profile, again, dry_run):
    """Run the notebooks of PARAMS and make the HTML report."""
    from rnnbench_nb.protocol import NO_GPU, load_protocol

    protocol = load_protocol(params, _overrides(seed, runs, models, settings))
    protocol = protocol.quick() if quick else protocol

    from rnnbench_nb import folders, launch  # what is refused need not wait for these
    from rnnbench_nb.progress import Progress
    from rnnbench_nb.report import Report

    name = Path(params).stem + ("-quick" if quick else "")
    place = PROJECT / "reports" / name if output_dir is None else output_dir
    out = folders.output_folder(place)
    folder = launch.profile_folder(profile)
    protocol = protocol.resolved()
    if protocol.note:
        click.echo(f"NOTE: {protocol.note}.", err=True)
    devices = {own.device for own in protocol.parameterisations.values()}
    on_gpu = profile == "local" and devices != {"cpu"} and not dry_run and launch.has_gpu()
    if profile == "local" and "cuda" in devices and not on_gpu and not dry_run:
        raise UserError(NO_GPU)
    if dry_run:
        asked = {own.run for seed in protocol.seeds for own in protocol.at(seed)}
        there = again and (out / "protocol.yaml").exists()
        differing = asked.intersection(Report(out).differing()) if there else []
        click.echo(launch.outline(out, protocol, differing))
        return
    with launch.claim(out):
        launch.prepare(out, protocol, name)
        differing = Report(out).differing() if again else []
        _say(launch.outline(out, protocol, differing))
        launch.forget(out, differing)
        index = out / "index.html"
        before = index.stat().st_mtime_ns if index.exists() else None
        progress = Progress(Report(out), _say)
        code = launch.snakemake(out, folder, jobs, on_gpu, progress.look)
        progress.look()
        if code or not index.exists():
            raise launch.stopped_early(out)
        report = Report(out)
        problems = launch.problems(report)
        for problem in problems:
            click.echo(f"rnnbench: {problem}", err=True)
        for note in launch.provenance_notes(report):
            click.echo(f"NOTE: {note}", err=True)
        if index.stat().st_mtime_ns == before:
            _say("Nothing to do: every notebook and page is up to date.")
    _say(_short_table(report))
    _say(str(index))
    sys.exit(1 if problems else 0)


def _say(line: str) -> None:
    """Print a line; a reader that has gone away (`| head -1`) stops nothing."""
    try:
        click.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _short_table(report) -> str:
    """The table of a report without what does not fit a terminal."""
    from rnnbench_nb.report import formatted, summary

    shown = report.results.assign(variant=report.results["variant"].map(report.labels))
    table = formatted(summary(shown), report.task)
    names = ["variant", "seeds", table.columns[2], "parameters", "epochs"]
    return table[names].to_string(index=False) if len(table) else "No training was completed."


@main.command()
@click.argument("params")
@click.option("--hours", is_flag=True, help="The plan instead: what each variant takes here.")
def check(params, hours):
    """Print the validated parameters of PARAMS, or how long it will take on this machine."""
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
def data(params):
    """Fetch and verify the data of PARAMS."""
    from rnnbench_nb.protocol import load_protocol
    from rnnbench_nb.tasks import TASKS

    variants = load_protocol(params).parameterisations.values()
    tasks = [TASKS[variant.task](variant.task_options) for variant in variants]
    for sentence in dict.fromkeys(task.fetch() for task in tasks):
        click.echo(sentence)


@main.command("list")
def list_reports():
    """List the reports in reports/ and reports/published/, the cells and the tasks."""
    from rnnbench_nb.cells import CELLS
    from rnnbench_nb.report import Report
    from rnnbench_nb.tasks import TASKS

    rows = [("REPORT", "RUNS", "BEST", "FOLDER")]
    for pattern in ("reports/*/protocol.yaml", "reports/published/*/protocol.yaml"):
        for path in sorted(PROJECT.glob(pattern)):
            folder = path.parent
            if folder.is_relative_to(Path.cwd()):  # as it is named in the next command
                folder = folder.relative_to(Path.cwd())
            try:
                rows.append((folder.name, *_finished(Report(path.parent)), str(folder)))
            except UserError as error:
                rows.append((folder.name, "", str(error), str(folder)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())
    click.echo(f"\nCells: {', '.join(CELLS)}.\nTasks: {', '.join(TASKS)}.")


def _finished(report) -> tuple[str, str]:
    """How many runs of a report are finished, as in `29/30`, and the best variant's mean score."""
    from rnnbench_nb.report import COMPLETED, load_run, said

    score, scores = report.task.score, {}
    written = [folder for folder in report.run_folders if (folder / "run.json").exists()]
    for record in (load_run(folder).record for folder in written):
        if record["status"] == COMPLETED:
            value = score.scale * record["test"][score.name]
            scores.setdefault(record["variant"], []).append(value)
    runs = f"{sum(map(len, scores.values()))}/{len(report.run_folders)}"
    if not scores:
        return runs, "no results yet"
    name = max(scores, key=lambda variant: fmean(scores[variant]))
    digits = 2 if score.scale > 1 else 4
    sd = f" ± {stdev(scores[name]):.{digits}f}" if scores[name][1:] else ""
    mean = f"{fmean(scores[name]):.{digits}f}"
    return runs, f"{report.labels[name]}: {said(score.name)} {mean}{sd}{score.unit}"


@main.command()
@click.argument("run_folder", type=MADE)
def show(run_folder):
    """Say what the run in RUN_FOLDER is, and how it scored."""
    from rnnbench_nb.parameters import to_yaml
    from rnnbench_nb.provenance import fingerprint
    from rnnbench_nb.report import COMPLETED, labels, load_run

    run = load_run(run_folder)
    record, score, parameters = run.record, run.task.score, run.parameters
    label = labels({parameters.name: parameters})[parameters.name]
    click.echo(f"{label}, seed {parameters.seed}, is {record['status']}.")
    if record["status"] == COMPLETED:
        scores = [f"{name} {score.scale * record['test'][name]:.4g}{score.unit}"
                  for name in METRICS[run.task.metrics].names]  # fmt: skip
        click.echo(f"On {run.task.sentence(record['data'])}: {', '.join(scores)}.")
        click.echo(
            f"Epoch {record['best_epoch']} of {record['epochs']}, in {record['seconds']:.0f} s on "
            f"{record['device']}; {record['parameter_count']:,} parameters, "
            f"{record['free_parameter_count']:,} of them free."
        )
    else:
        click.echo(record.get("reason", "no reason was recorded"))
    same = record.get("fingerprint") == fingerprint(parameters.model, parameters.task)
    code = "the code that stands here" if same else "other code than stands here"
    code = code if "fingerprint" in record else "code of before fingerprints were kept"
    click.echo(f"Made by {code}, at commit {record.get('commit', 'unknown')}.")
    if "taken_from" in record:
        click.echo(f"Taken from {record['taken_from']}.")
    click.echo("\n" + to_yaml(parameters.flat()), nl=False)


@main.command()
@click.argument("report", type=MADE)
def collect(report):
    """Write the tables and figures of REPORT from the runs that are there."""
    from rnnbench_nb import figures, folders
    from rnnbench_nb.report import Report, write_tables

    found = Report(folders.own_report(report))
    write_tables(found)
    drawn = {
        "training_curves": figures.training_curves(found.history, found),
        "error_curves": figures.error_curves(found.history, found),
        "test_comparison": figures.test_errors(found.results, found),
    }
    for name, figure in drawn.items():
        figures.save(figure, report / "figures" / name)


@main.command()
@click.argument("report", type=MADE)
def render(report):
    """Render the executed notebooks of REPORT and its index page to HTML."""
    from rnnbench_nb import folders, site

    click.echo(str(site.build(folders.own_report(report))))


@main.command("publish")
@click.argument("report", type=MADE)
@click.option("--to", type=FOLDER, help="Where to [reports/published/<name of REPORT>].")
@click.option("--replace", is_flag=True, help="Even if published runs are lost or changed.")
def publish_report(report, to, replace):
    """Copy the light part of REPORT to reports/published/<its name>.

    Pages, tables, records and predictions of its finished runs; no weights. Where front.html.j2
    lies beside the folder, the front page over all reports there is made again.
    """
    from rnnbench_nb.site.publish import publish

    to = to or PROJECT / "reports/published" / report.resolve().name
    click.echo(str(publish(report, to, replace)))


@main.command("site")
@click.argument("folder", type=FOLDER, default=PROJECT / "reports/published")
@click.option("--draw", type=MADE, multiple=True, metavar="RUN", help="Reads drawn digits.")
@click.option("--remake", type=MADE, multiple=True, metavar="REPORT", help="Its pages first.")
def front_page(folder, draw, remake):
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
@click.argument("report", type=MADE)
def verify(report):
    """Recompute the table of REPORT from its saved predictions and compare."""
    from rnnbench_nb import report as results

    found = results.Report(report)
    rows = results.verify(found)
    table = results.formatted(results.summary(rows), found.task)
    click.echo(table.to_string(index=False))
    click.echo(f"{report / 'results.csv'} agrees with the predictions of {len(rows)} runs.")


@main.command("test-cell")
@click.argument("name")
def test_cell(name):
    """Hold the cell NAME to the contract of every cell."""
    from rnnbench_nb.cells import CELLS
    from rnnbench_nb.errors import lookup

    lookup(CELLS, "NAME", name)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "tests/test_battery.py"]
    environment = {**os.environ, "RNNBENCH_CELL": name, "PYTEST_ADDOPTS": ""}
    sys.exit(subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode)


@main.command()
@click.option("--json", "path", type=FOLDER, help="Write all rows to a file.")
@click.option("--full", is_flag=True, help="The whole grid of shapes, about half an hour.")
@click.option("--shape", "shapes", multiple=True, metavar="T,H,B,THREADS", help="Only this shape.")
@click.option("--compare", nargs=2, type=FOLDER, metavar="BEFORE AFTER", help="Two such files.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="cuda: two shapes, on a GPU.")  # fmt: skip
def bench(path, full, shapes, compare, device):
    """Time training steps and inference of the models, in turn in one process."""
    from rnnbench_nb import bench, launch
    from rnnbench_nb.files import write_file
    from rnnbench_nb.protocol import NO_GPU

    if compare:
        click.echo(bench.compare(*map(bench.read, compare)).to_string(index=False))
        return
    try:
        named = [bench.Shape(*map(int, shape.split(","))) for shape in shapes]
    except (TypeError, ValueError) as error:
        raise UserError("--shape: write four whole numbers, such as 28,128,128,1.") from error
    if path and path.exists():
        bench.read(path)  # a file of the user's is not overwritten
    if device == "cuda" and not launch.has_gpu():
        raise UserError(NO_GPU)
    every = (bench.REFERENCE, bench.LONG) if full else ()
    shapes = {"cuda": [bench.REFERENCE, bench.LONG], "cpu": bench.GRID if full else bench.SHORT}
    report = bench.run(named or shapes[device], click.echo, every, device)
    report |= {} if named or device == "cuda" else bench.run_parts(click.echo)
    if path:
        write_file(path, json.dumps(report, indent=1) + "\n")


def _models(text: str) -> list[str]:
    """The cells of a list such as `lstm, GRU`, by name or label."""
    from rnnbench_nb.cells import CELLS

    known = {written.casefold(): name for name, cell in CELLS.items()
             for written in (cell.label, name)}  # fmt: skip
    names = [name.strip() for name in text.split(",")]
    return [known.get(name.casefold(), name) for name in names if name]


def _overrides(seed, runs, models, settings) -> dict:
    """The values that the options lay over the parameter file; each key at most once."""
    from rnnbench_nb.parameters import parse_yaml

    pairs = [("seed", value) for value in seed]
    pairs += [("runs", runs)] if runs is not None else []
    pairs += [("models", _models(models))] if models is not None else []
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
