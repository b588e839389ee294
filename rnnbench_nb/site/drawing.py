"""The page on which one draws a digit, and the script beside it with what reads the digit.

A cell can read there if a script beside its file has its step (`cells/*.js`). The script
`models.js` holds one run of each: its record, and its weights as float16 in base64.
"""

import base64
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnbench_nb import folders
from rnnbench_nb.analyses import examples
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.figures.theme import legible
from rnnbench_nb.files import write_file
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.report import COMPLETED, Run, labels
from rnnbench_nb.site import render as site

PAGE, SCRIPT, BEGINNING = "draw.html", "models.js", "const MODELS = "
EXAMPLES = 20  # test images to take instead of a drawing


def scripts() -> dict[str, str]:
    """The step in JavaScript of each cell that has one, by the cell's name."""
    paths = {name: Path(inspect.getfile(cell)).with_suffix(".js") for name, cell in CELLS.items()}
    return {
        name: path.read_text(encoding="utf-8").partition("\n")[2].strip()
        for name, path in paths.items()
        if path.exists()
    }


def tensors(model: SequenceModel) -> list[Tensor]:
    """What reading takes, for steps of D inputs and K classes, as float16.

    Returns:
        W (blocks H, D) and b (blocks H,) of the cell's `drive`, what its `prepare` gives, and the
        head's weight (K, H) and bias (K,).
    """
    cell = model.cell
    with torch.no_grad():
        b = cell.drive(torch.zeros(cell.input_size))
        w = (cell.drive(torch.eye(cell.input_size)) - b).T
        return [t.half() for t in (w, b, *cell.prepare(), model.head.weight, model.head.bias)]


def described(run: Run) -> dict[str, Any]:
    """A run in the script: what names it, and its tensors.

    Raises:
        UserError: It is not finished, has no weights, reads no rows of pixels, or its cell has no
            step in JavaScript.
    """
    record, parameters = run.record, run.parameters
    if parameters.model not in scripts():
        raise UserError(
            f"{run.folder}: no digit can be read with {parameters.model}, which has no script "
            f"beside its file; write it, or take another of {', '.join(scripts())}."
        )
    data = record.get("data", {})
    if record["status"] != COMPLETED or not run.has("best") or data.get("reading") != "row":
        raise UserError(f"{run.folder} is no finished run with weights that reads rows; name one.")
    made = tensors(run.model)
    flat = torch.cat([tensor.flatten() for tensor in made]).numpy().astype("<f2")
    return {
        "cell": parameters.model,
        "label": labels({parameters.name: parameters})[parameters.name],
        "run": run.folder.name,
        "accuracy": record["test"]["accuracy"],
        "parameters": record["parameter_count"],
        "commit": site.short(record.get("commit", "unknown")),
        "data": run.task.sentence(data),
        "state": CELLS[parameters.model].states * parameters.hidden_size,
        "shapes": [list(tensor.shape) for tensor in made],
        "weights": base64.b64encode(flat.tobytes()).decode(),
    }


def write(folder: Path, runs: list[Run]) -> Path:
    """Write the script with these runs and the first test images, and return its path.

    Raises:
        UserError: See `described`; or the runs do not read the same images.
    """
    models = [described(run) for run in runs]
    data = [{**run.record["data"], "run": run.folder.name} for run in runs]
    for other in data[1:]:
        if any(other[key] != data[0][key] for key in ("dataset", "steps", "input_size")):
            raise UserError(f"{other['run']} reads other images than {data[0]['run']}.")
    images, targets = examples(runs[0], EXAMPLES)
    pixels = (255 * images).round().byte().flatten(1)
    content = {
        "side": data[0]["steps"],
        "classes": data[0]["class_names"],
        "models": models,
        "images": [base64.b64encode(bytes(image.tolist())).decode() for image in pixels],
        "targets": targets.tolist(),
    }
    folders.own(folder, {SCRIPT})
    write_file(folder / SCRIPT, f"{BEGINNING}{json.dumps(content)};\n")
    return folder / SCRIPT


def read(folder: Path) -> dict[str, Any] | None:
    """What the script in a folder holds; None where there is none.

    Raises:
        UserError: It is damaged.
    """
    path = folder / SCRIPT
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8").removeprefix(BEGINNING)[:-2])
    except ValueError as error:
        raise UserError(f"{path} is damaged; write it again, from runs with weights.") from error


def build(folder: Path) -> Path | None:
    """Write the page over the script of a folder, and return its path; None without a script."""
    content = read(folder)
    if content is None:
        return None
    used = {model["cell"] for model in content["models"]}
    steps = {name: step for name, step in scripts().items() if name in used}
    looks = {name: (legible(CELLS[name].colour), "#a5afb9")
             for name in steps if CELLS[name].colour}  # fmt: skip
    values = {
        **content,
        "looks": looks,
        "script": SCRIPT,
        "steps": steps,
        "address": PAGE,
        "page": None,
        "root": "",
    }
    write_file(folder / PAGE, site.ENVIRONMENT.get_template("draw.html.j2").render(values))
    return folder / PAGE
