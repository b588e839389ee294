"""The light part of a report: what is committed, and read by others."""

import shutil
from pathlib import Path

from rnnbench_nb import site
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.report import Report

LIGHT = (
    "protocol.yaml", "*.csv", "*.md", "figures/*.png", "figures/*.svg", "analyses/*/*.csv",
    "analyses/*/*.json", "runs/*/run.json", "runs/*/predicted.safetensors",
)  # fmt: skip


def publish(report: Path, folder: Path) -> Path:
    """Copy the light part of a finished report: no weights, a training page for each variant.

    Args:
        report: The report's folder.
        folder: Where to; what an earlier publication left there goes.

    Returns:
        The path of the published index.html.

    Raises:
        UserError: The report is not finished, or published already, or the folder holds other
            things than a report.
    """
    found = Report(report)
    whole = found.runs and all(run.has("best") for run in found.runs)
    stopped = any(report.glob("**/*.failed"))
    if found.lost or stopped or not whole or not (report / "index.html").exists():
        raise UserError(
            f"{report}: the report is not finished, or published already; run it again before "
            "publishing."
        )
    if report.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{folder} is in the report itself; name another with --to.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "protocol.yaml").exists():
        raise UserError(f"{folder} holds other things than a report; name another with --to.")
    shutil.rmtree(folder, ignore_errors=True)
    asked = {run.name for run in found.run_folders}
    shown = [f"runs/{run.name}/*.ipynb" for run in site.first_seed(found)]
    for pattern in (*LIGHT, "notebooks/*.ipynb", *shown):
        for path in report.glob(pattern):
            place = path.relative_to(report)
            if place.parts[0] != "runs" or place.parts[1] in asked:
                write_file(folder / place, path.read_bytes())
    index = site.build(folder)
    for path in folder.glob("**/*.ipynb"):  # their pages say the same
        path.unlink()
    return index
