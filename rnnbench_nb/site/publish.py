"""The light part of a report: what is committed, and read by others."""

import lzma
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import papermill

from rnnbench_nb import figures, folders, runs
from rnnbench_nb.analyses import FEW, load
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.report import (
    HISTORY_KEYS,
    PREDICTED,
    Report,
    read_csv,
    verify,
    write_csv,
    write_predictions,
    write_record,
    write_tables,
)
from rnnbench_nb.runs import CHECKPOINT
from rnnbench_nb.site import front
from rnnbench_nb.site import render as site

PAGE_LIMIT = 600_000  # bytes
LARGE = 20_000  # bytes, from which a table is compressed
RECORDS = ("protocol.yaml", "runs/*/run.json")
TABLES = ("history.csv", "analyses/*/*.csv")
LIGHT = (*RECORDS, *TABLES, "results.csv", "*.md", "speed.json", f"figures/{site.FIGURE}.svg",
         "analyses/*/*.json")  # fmt: skip


def publish(report: Path, folder: Path, partial: bool = False, replace: bool = False) -> Path:
    """Copy the light part of a finished report: no weights, at most one training page.

    Notebooks are left without their pictures, which are in the pages; of few variants one run has
    its training page, as an example; large tables are compressed, which `read_csv` and pandas read
    as they are. Where front.yaml lies beside the folder, the front page over all reports there is
    made again.

    Args:
        report: The report's folder.
        folder: Where to; the files of an earlier publication that this one lacks are removed.
        partial: Publish a report that is not finished: the records and tables alone, and the last
            checkpoint and history of each run that is under way, from which `rnnbench run` goes on
            on another machine.
        replace: Whether runs of the earlier publication may be lost or changed.

    Returns:
        The path of the published index.html.

    Raises:
        UserError: The report is not finished, or published already, or a file of it is damaged, or
            the folder holds other things than a report. What was published before then stays.
    """
    found = Report(report)
    whole = found.runs and all(run.has("best") for run in found.runs)
    stopped = any(report.glob("**/*.failed"))
    under_way = [run for run in found.run_folders if (run / CHECKPOINT).exists()
                 and not (run / "run.json").exists()] if partial else []  # fmt: skip
    if partial and not under_way:
        raise UserError(f"{report}: no run is under way there; publish it without --partial.")
    if not partial and (found.lost or stopped or not whole or not (report / "index.html").exists()):
        raise UserError(
            f"{report}: the report is not finished, or published already; run it again before "
            "publishing, or publish what there is with --partial."
        )
    folder = folders.output_folder(folder, "--to", publishing=True)
    started = {run.name: runs.partial(run) for run in under_way}  # a damaged file stops all this
    asked = {run.name for run in found.run_folders}
    example = site.first_seed(found)[:1] if len(found.variants) <= FEW else []
    shown = [f"runs/{run.name}/*.ipynb" for run in example]
    if not partial:
        check_tables(found)
    content = {}
    for pattern in RECORDS if partial else (*LIGHT, "notebooks/*.ipynb", *shown):
        for path in report.glob(pattern):
            place = path.relative_to(report)
            if place.parts[0] != "runs" or place.parts[1] in asked:
                content[place] = _whole(path)
    _check_runs(folder, content, replace)
    before, names = folders.listed(folder), _names(content, list(started))
    marker = folders.marker(report) or {"format": 2, "protocol": report.resolve().name}
    folders.mark(folder, {**marker, "published": True})
    folders.own(folder, names)
    for place, data in content.items():
        write_file(folder / place, data)
    write_predictions(folder, found)
    for name, (record, history, checkpoint) in started.items():
        write_record(folder / "runs" / name, record)
        write_csv(folder / "runs" / name / "history.csv", history)
        write_file(folder / "runs" / name / CHECKPOINT, checkpoint)
    if partial:
        write_csv(folder / "history.csv", found.history)
        write_tables(Report(folder))
    under_front = (folder.parent / "front.yaml").exists()
    folders.remove(folder, before - names)
    pack(folder)
    index = site.build(folder, under_front, PAGE_LIMIT)
    for path in (folder / place for place in content if place.suffix == ".ipynb"):
        write_file(path, without_pictures(path))
    if under_front:
        front.build(folder.parent)
    return index


def _check_runs(folder: Path, content: dict[Path, bytes], replace: bool) -> None:
    """Refuse to lose or change a published run, unless the user asked for it."""
    places = {path.relative_to(folder): path for path in folder.glob("runs/*/run.json")}
    other = [place.parent.name for place, path in sorted(places.items())
             if content.get(place) != path.read_bytes()]  # fmt: skip
    if other and not replace:
        raise UserError(
            f"{folder}: publishing would lose or change {len(other)} published runs, such as "
            f"{other[0]}; name another folder with --to, or give --replace."
        )


def _names(content: dict[Path, bytes], partial: list[str]) -> set[str]:
    """The names of all files that a publication writes."""
    names = {place.as_posix() for place in content}
    names |= {f"{name}.xz" for name in names if name.endswith(".csv")}
    for place in (place for place in content if place.suffix == ".ipynb"):
        run = f"-{place.parts[1]}" if place.parts[0] == "runs" else ""
        names.add(f"pages/{place.stem}{run}.html")
    names |= {f"runs/{name}/{file}" for name in partial
              for file in ("run.json", "history.csv", CHECKPOINT)}  # fmt: skip
    return names | {"index.html", "results.csv", "history.csv", "results_summary.md", PREDICTED}


def pack(folder: Path) -> None:
    """Compress the large tables of a published report."""
    ours = folders.listed(folder)
    for path in (path for pattern in TABLES for path in folder.glob(pattern)):
        if path.relative_to(folder).as_posix() in ours and path.stat().st_size > LARGE:
            write_file(path.with_name(f"{path.name}.xz"), lzma.compress(path.read_bytes()))
            path.unlink()


def check_tables(report: Report) -> None:
    """See that the tables and the analyses of a report are as they were written.

    Raises:
        UserError: One is not.
    """
    verify(report)
    read_csv(report.folder / "history.csv", needs=HISTORY_KEYS)
    for path in report.folder.glob("analyses/*/findings.json"):
        load(path.parent)


def _whole(path: Path) -> bytes:
    """The content of a file, which of a notebook must be one.

    Raises:
        UserError: It cannot be read.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".ipynb":
            nbformat.reads(content.decode(), as_version=4)
    except (OSError, ValueError, AttributeError) as error:  # nbformat's own derive from these
        raise UserError(f"{path} is damaged; move it away and make the report again.") from error
    return content


def without_pictures(path: Path) -> str:
    """An executed notebook whose pictures are replaced by what they show, in words.

    Of a table as HTML and as text the first stays; when and where a cell ran goes, and warnings.
    """
    notebook = nbformat.read(path, as_version=4)
    run = notebook.metadata.get("papermill", {})
    notebook.metadata.papermill = {"parameters": run.get("parameters", {})}
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # pages do not show what was warned of, with its paths, either
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for output in [o for o in cell.get("outputs", []) if "data" in o]:
            for kind in [kind for kind in output.data if kind.startswith("image/")]:
                del output.data[kind]
                output.metadata.pop(kind, None)
            if "text/html" in output.data:
                output.data["text/html"] = site.plain(output.data["text/html"])
                output.data.pop("text/plain", None)
    return nbformat.writes(notebook, split_lines=False) + "\n"


def remake(folder: Path) -> Path:
    """Make the pages of a published report again, from the frames and findings that it holds.

    Its notebooks are executed as they stand in notebooks/ now. A page whose notebook is not there,
    or trains, stays as it was, with the frame of the others.

    Args:
        folder: The published report; where front.yaml lies beside it, `front.build` is the
            caller's.

    Returns:
        The path of its index.html.

    Raises:
        UserError: The folder is no report, or a notebook stops with an error.
    """
    folder = folder.resolve()
    found = Report(folder)
    pages = {path.stem: site.kept(path) for path in sorted(folder.glob("pages/*.html"))}
    inside = folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder
    with TemporaryDirectory() as work:
        for path in sorted(folder.glob("notebooks/*.ipynb")):
            executed = Path(work) / path.name
            asked = nbformat.read(path, as_version=4).metadata.papermill["parameters"]
            if "output_dir" in asked:
                asked = {**asked, "output_dir": str(inside)}
            try:
                papermill.execute_notebook(
                    PROJECT / "notebooks" / path.name, executed, asked, cwd=work,
                    progress_bar=False,
                )  # fmt: skip
            except papermill.PapermillExecutionError as error:
                raise UserError(f"{path.name} of {folder}: {error.evalue}") from error
            pages[path.stem] = site.render(path.stem, executed)
            write_file(path, without_pictures(executed))
    drawn = figures.test_errors(found.results, found)
    write_file(folder / f"figures/{site.FIGURE}.svg", figures.as_svg(drawn))
    pack(folder)
    trained = [name for name in site.find_notebooks(folder, found.run_folders) if pages[name].run]
    pages |= {name: pages.pop(name) for name in trained}  # they come last
    return site.write(folder, pages, (folder.parent / "front.yaml").exists(), PAGE_LIMIT)
