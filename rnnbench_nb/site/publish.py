"""Published reports: the light part of a report, without weights, which can be committed."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import papermill

from rnnbench_nb import figures, folders
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, SOURCES, read_file, write_file
from rnnbench_nb.results import MARKER, MISSING, Report, write_published
from rnnbench_nb.site import front
from rnnbench_nb.site.index import FIGURE, FRONT, write
from rnnbench_nb.site.render import Page, render

COPIES = ("protocol.yaml", "speed.json")  # files that are copied unchanged


def publish(report: Path, folder: Path, replace: bool = False) -> Path:
    """Copy the light part of a report's finished runs, without weights and executed notebooks.

    It replaces the files of an earlier publication in the folder; with `replace`, published
    runs may be lost or changed. It makes the pages from the published folder alone, and then the
    front page over all reports if there is one. Returns the path of the published index.html.

    Raises:
        UserError: The report is a published one, has no finished run or has a damaged file, or the
            folder may not be written. Then the folder is unchanged.
    """
    source = Report(report)
    if source.published:
        raise UserError(f"{report} is a published report; name the report from which it was made.")
    if not source.runs:
        reason = source.missing[0]["reason"]
        raise UserError(f"{report} has no finished run to publish: {reason}.")
    for run in source.every_run:
        if run.record["status"] == MISSING and (run.folder / "run.json").exists():  # damaged
            raise UserError(run.record["reason"])
    folder = folders.output_folder(folder, "--to", publishing=True)
    ours = {run.key: run.record for run in source.runs}
    old_runs = [] if replace or not (folder / MARKER).exists() else Report(folder).runs
    if lost := [run.folder.name for run in old_runs if ours.get(run.key) != run.record]:
        raise UserError(
            f"{folder}: publishing would lose or change {len(lost)} published runs, such as "
            f"{lost[0]}; name another folder with --to, or give --replace."
        )
    with TemporaryDirectory() as work:
        write_published(source, Path(work))
        paths = [path for path in Path(work).rglob("*") if path.is_file() and path.name != MARKER]
        content = {path.relative_to(work).as_posix(): read_file(path) for path in paths}
    content |= {name: (report / name).read_bytes() for name in COPIES if (report / name).is_file()}
    before, names = folders.file_list(folder), folders.file_list(report)
    folders.mark(folder, {**source.marker, "published": True}, {*content, "index.html", "pages/"})
    for name, data in content.items():
        write_file(folder / name, data)
    folders.remove(folder, before - content.keys())
    index = remake(folder, [Path(name).stem for name in names if name.endswith(".ipynb")])
    if (folder.parent / FRONT).exists():
        front.build(folder.parent)
    return index


def remake(folder: Path, names: Iterable[str] | None = None) -> Path:
    """Make the pages of a published report by executing today's notebooks.

    The default for `names` is the notebooks of its present pages. Returns the index's path.

    Raises:
        UserError: The folder is not a published report, or a notebook stops with an error.
    """
    folder = folder.resolve()
    published = Report(folder)
    if not published.published:
        raise UserError(f"{folder} is not a published report; `rnnbench run` makes its pages.")
    names = [path.stem for path in folder.glob("pages/*.html")] if names is None else names
    notebooks = [SOURCES / f"notebooks/{name}.ipynb" for name in sorted(names)]
    pages = [_execute(path, published) for path in notebooks if path.exists()]
    tested = published.tested
    if tested.runs:
        folders.register(folder, [FIGURE])
        write_file(folder / FIGURE, figures.as_svg(figures.test_errors(tested.results, tested)))
    index = write(published, pages)
    folders.seal(folder)
    return index


def _execute(notebook: Path, report: Report) -> Page:
    """Execute a notebook on a published report, and return its page."""
    inside = report.folder.is_relative_to(PROJECT)
    folder = report.folder.relative_to(PROJECT) if inside else report.folder
    values = {**next(iter(report.variants.values()))["parameters"], "output_dir": str(folder)}
    values["measured"] = f"{folder}/speed.json"  # for 05_speed, which else measures anew
    values = {name: values[name] for name in papermill.inspect_notebook(notebook) if name in values}
    with TemporaryDirectory() as work:
        page = Path(work) / notebook.name
        try:
            papermill.execute_notebook(notebook, page, values, cwd=work, progress_bar=False)
        except papermill.PapermillExecutionError as error:
            raise UserError(f"{notebook.name} failed on {folder}: {error.evalue}") from error
        return render(page)
