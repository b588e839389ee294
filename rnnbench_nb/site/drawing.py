"""The page on which one draws a digit, and the script beside it with the models that read it.

The script `models.js` holds one run of each model (its record, and its weights as float16 in
base64), test images, and what the models made of one of them, row by row.
"""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnbench_nb import folders
from rnnbench_nb import runs as all_runs
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import COMPLETED, Run
from rnnbench_nb.site.index import fill, repository
from rnnbench_nb.tasks import TASKS

PAGE, SCRIPT, BEGINNING = "draw.html", "models.js", "const MODELS = "
READERS = ("lstm", "gru", "agru")  # the cells whose step is in templates/draw.js
EXAMPLES = 20  # test images on the page


def tensors(model: SequenceModel) -> list[Tensor]:
    """The float16 tensors with which the page reads steps of D inputs, for K classes.

    Returns:
        W (blocks H, D) and b (blocks H,) of the cell's `drive`, the tensors of its `prepare`, and
        the head's weight (K, H) and bias (K,).
    """
    cell = model.cell
    with torch.no_grad():
        b = cell.drive(torch.zeros(cell.input_size))
        w = (cell.drive(torch.eye(cell.input_size)) - b).T
        return [t.half() for t in (w, b, *cell.prepare(), model.head.weight, model.head.bias)]


def describe(run: Run) -> dict[str, Any]:
    """A run in the script: its name, its test accuracy and its tensors.

    Raises:
        UserError: The run is not finished, has no weights, does not read rows of pixels, or its
            cell cannot read on the page.
    """
    record = run.record
    if record["model"] not in READERS:
        raise UserError(
            f"{run.folder}: the page cannot read with {record['model']}, only with "
            f"{', '.join(READERS)}; name a run of one of them."
        )
    if record["status"] != COMPLETED or record["data"].get("reading") != "row":
        raise UserError(f"{run.folder} is not a finished run that reads rows; name one.")
    model = all_runs.load_model(run, "best")
    made = tensors(model)
    flat = torch.cat([tensor.flatten() for tensor in made]).numpy().astype("<f2")
    cell = CELLS[record["model"]]
    return {
        "cell": cell.name,
        "label": cell.label,
        "colour": cell.colour,
        "run": run.folder.name,
        "accuracy": record["test"]["accuracy"],
        "state": cell.states * model.cell.hidden_size,
        "shapes": [list(tensor.shape) for tensor in made],
        "weights": base64.b64encode(flat.tobytes()).decode(),
    }


def write(folder: Path, runs: list[Run]) -> Path:
    """Write the script with these runs, and return its path.

    Of the test images the first ones come on which the models disagree, then others. The replay
    holds, for the first image, the probability of the right class after each row.

    Raises:
        UserError: See `describe`; or the runs do not read the same images.
    """
    models = [describe(run) for run in runs]
    data = [run.record["data"] for run in runs]
    if any(each[key] != data[0][key] for each in data for key in ("dataset", "steps")):
        raise UserError("The runs do not read the same images; name runs of one protocol.")
    images, targets = _test_examples(runs[0])
    with torch.no_grad():
        answers = torch.stack([all_runs.load_model(run, "best")(images).argmax(1) for run in runs])
        disagree = (answers != answers[0]).any(0)
        chosen = torch.cat([disagree.nonzero()[:, 0], (~disagree).nonzero()[:, 0]])[:EXAMPLES]
        for run, described in zip(runs, models, strict=True):
            model = all_runs.load_model(run, "best")
            scores = model.head(model.cell(images[chosen[:1]])[0][0])  # (T, K), batch first
            right = scores.softmax(1)[:, targets[chosen[0]]]
            described["replay"] = [round(100 * share, 1) for share in right.tolist()]
    pixels = [bytes((255 * images[i]).round().byte().flatten().tolist()) for i in chosen]
    content = {
        "side": data[0]["steps"],
        "classes": data[0]["class_names"],
        "models": models,
        "images": [base64.b64encode(each).decode() for each in pixels],
        "targets": targets[chosen].tolist(),
        "disagree": bool(disagree.any()),
    }
    folders.own(folder, [SCRIPT])
    write_file(folder / SCRIPT, f"{BEGINNING}{json.dumps(content)};\n")
    return folder / SCRIPT


def _test_examples(run: Run) -> tuple[Tensor, Tensor]:
    """The test examples of a run: images (N, T, D) and their classes (N,)."""
    parameters = run_parameters(run.record["parameters"], str(run.folder))
    task = TASKS[parameters.task](parameters.task_options)
    test = task.load(parameters.seed).test
    return task.inputs(test.inputs), test.targets


def read(folder: Path) -> dict[str, Any] | None:
    """The content of the script in a folder; None where there is none.

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


def build(folder: Path) -> None:
    """Write the page over the script of a folder, if there is one."""
    content = read(folder)
    if content is not None:
        folders.own(folder, [PAGE])
        html = fill("draw.html.j2", **content, script=SCRIPT, page=None, repository=repository())
        write_file(folder / PAGE, html)
