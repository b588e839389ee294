"""The light part of a report, which is committed and read by others."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import papermill

from rnnbench_nb import figures, folders
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, SOURCES, write_file, write_json
from rnnbench_nb.results import MARKER, MISSING, Report, write_published
from rnnbench_nb.site import front
from rnnbench_nb.site.index import FIGURE, FRONT, write
from rnnbench_nb.site.render import Page, render

ALSO = ("protocol.yaml", "speed.json")  # files of a report that are copied as they are


def publish(report: Path, folder: Path, replace: bool = False) -> Path:
    """Copy the light part of a report's finished runs: no weights and no executed notebooks.

    What an earlier publication wrote in the folder is replaced; `replace` says that runs of it may
    be lost or changed. Pages are made from the published folder alone, and then the front page
    over all reports, if there is one. Returns the path of the published index.html.

    Raises:
        UserError: The report is published itself, has no finished run or a damaged file, or the
            folder may not be written; what was published there stays.
    """
    found = Report(report)
    if found.published:
        raise UserError(f"{report} is a published report; name the report it was made from.")
    if not found.runs:
        reason = found.missing[0]["reason"]
        raise UserError(f"{report} has no finished run to publish: {reason}.")
    for run in found.every_run:
        if run.record["status"] == MISSING and (run.folder / "run.json").exists():  # damaged
            raise UserError(run.record["reason"])
    folder = folders.output_folder(folder, "--to", publishing=True)
    ours = {run.key: run.record for run in found.runs}
    there = [] if replace or not (folder / MARKER).exists() else Report(folder).runs
    if other := [run.folder.name for run in there if ours.get(run.key) != run.record]:
        raise UserError(
            f"{folder}: publishing would lose or change {len(other)} published runs, such as "
            f"{other[0]}; name another folder with --to, or give --replace."
        )
    with TemporaryDirectory() as work:
        write_published(found, Path(work))
        paths = [path for path in Path(work).rglob("*") if path.is_file() and path.name != MARKER]
        content = {path.relative_to(work).as_posix(): path.read_bytes() for path in paths}
    content |= {name: (report / name).read_bytes() for name in ALSO if (report / name).is_file()}
    before, listed = folders.listed(folder), folders.listed(report)
    write_json(folder / MARKER, {**found.marker, "published": True})  # first: a kill may follow
    folders.own(folder, {*content, "index.html", "pages/"})
    for name, data in content.items():
        write_file(folder / name, data)
    folders.remove(folder, before - content.keys())
    index = remake(folder, [Path(name).stem for name in listed if name.endswith(".ipynb")])
    if (folder.parent / FRONT).exists():
        front.build(folder.parent)
    return index


def remake(folder: Path, names: Iterable[str] | None = None) -> Path:
    """Make the pages of a published report by executing the notebooks as they are now.

    These are the notebooks of its present pages, unless `names` tells others.

    Raises:
        UserError: The folder is no published report, or a notebook stops with an error.
    """
    folder = folder.resolve()
    found = Report(folder)
    if not found.published:
        raise UserError(f"{folder} is no published report; `rnnbench run` makes its pages.")
    names = [path.stem for path in folder.glob("pages/*.html")] if names is None else names
    notebooks = [SOURCES / f"notebooks/{name}.ipynb" for name in sorted(names)]
    pages = [_executed(path, found) for path in notebooks if path.exists()]
    folders.own(folder, [FIGURE])
    write_file(folder / FIGURE, figures.as_svg(figures.test_errors(found.results, found)))
    index = write(found, pages)
    folders.seal(folder)
    return index


def _executed(notebook: Path, report: Report) -> Page:
    """The page of a notebook, executed on a published report."""
    inside = report.folder.is_relative_to(PROJECT)
    folder = report.folder.relative_to(PROJECT) if inside else report.folder
    known = {**next(iter(report.variants.values()))["parameters"], "output_dir": str(folder)}
    values = {name: known[name] for name in papermill.inspect_notebook(notebook) if name in known}
    with TemporaryDirectory() as work:
        page = Path(work) / notebook.name
        try:
            papermill.execute_notebook(notebook, page, values, cwd=work, progress_bar=False)
        except papermill.PapermillExecutionError as error:
            raise UserError(f"{notebook.name} of {folder}: {error.evalue}") from error
        return render(page)
