"""The light part of a report: what is committed, and read by others."""

import shutil
from pathlib import Path

import nbformat

from rnnbench_nb import front, runs, site
from rnnbench_nb.analyses import FEW, load
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.report import (
    HISTORY_KEYS,
    Report,
    read_csv,
    verify,
    write_csv,
    write_record,
    write_tables,
)
from rnnbench_nb.runs import CHECKPOINT

PAGE_LIMIT = 600_000  # bytes
RECORDS = ("protocol.yaml", "runs/*/run.json", "runs/*/predicted.safetensors")
LIGHT = (*RECORDS, "*.csv", "*.md", "figures/*.svg", "analyses/*/*.csv", "analyses/*/*.json")


def publish(report: Path, folder: Path, partial: bool = False) -> Path:
    """Copy the light part of a finished report: no weights, few training pages.

    Notebooks are left without their pictures, which are in the pages. Of few variants the first
    seed has its training pages. Where front.yaml lies beside the folder, the front page over all
    reports there is made again.

    Args:
        report: The report's folder.
        folder: Where to; what an earlier publication left there goes.
        partial: Publish a report that is not finished: the records and tables alone, and the last
            checkpoint and history of each run that is under way, from which `rnnbench run` goes on
            on another machine.

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
    if report.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{folder} is in the report itself; name another with --to.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "protocol.yaml").exists():
        raise UserError(f"{folder} holds other things than a report; name another with --to.")
    started = {run.name: runs.partial(run) for run in under_way}  # a damaged file stops all this
    asked = {run.name for run in found.run_folders}
    few = site.first_seed(found) if len(found.variants) <= FEW else []
    shown = [f"runs/{run.name}/*.ipynb" for run in few]
    if not partial:
        check_tables(found)
    content = {}
    for pattern in RECORDS if partial else (*LIGHT, "notebooks/*.ipynb", *shown):
        for path in report.glob(pattern):
            place = path.relative_to(report)
            if place.parts[0] != "runs" or place.parts[1] in asked:
                content[place] = _whole(path)
    shutil.rmtree(folder, ignore_errors=True)
    for place, data in content.items():
        write_file(folder / place, data)
    for name, (record, history, checkpoint) in started.items():
        write_record(folder / "runs" / name, record)
        write_csv(folder / "runs" / name / "history.csv", history)
        write_file(folder / "runs" / name / CHECKPOINT, checkpoint)
    if partial:
        write_csv(folder / "history.csv", found.history)
        write_tables(Report(folder))
    under_front = (folder.parent / "front.yaml").exists()
    index = site.build(folder, under_front, PAGE_LIMIT)
    for path in folder.glob("**/*.ipynb"):
        write_file(path, without_pictures(path))
    if under_front:
        front.build(folder.parent)
    return index


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
    """An executed notebook whose pictures are replaced by what they show, in words."""
    notebook = nbformat.read(path, as_version=4)
    for output in [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]:
        pictures = [kind for kind in output.data if kind.startswith("image/")]
        for kind in pictures:
            del output.data[kind]
            output.metadata.pop(kind, None)
    return nbformat.writes(notebook) + "\n"
