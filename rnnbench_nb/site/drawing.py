"""The page on which a visitor draws a digit, and its script `models.js`.

The script has one run of each model, with weights as float16 in base64, and some test images.
"""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnbench_nb import folders
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import COMPLETED, Run
from rnnbench_nb.runs import load_model, task_of
from rnnbench_nb.site.render import fill

PAGE, SCRIPT, BEGINNING = "draw.html", "models.js", "const MODELS = "
READERS = ("lstm", "gru", "agru")  # the cells whose step draw.js has
EXAMPLES = 20  # test images on the page


def describe(run: Run, model: SequenceModel) -> dict[str, Any]:
    """Describe a run for the script: its name, its test accuracy and the tensors of its model.

    The tensors are W (blocks H, D) and b (blocks H,) of the cell's `drive`, those of its `prepare`,
    and the head's weight (K, H) and bias (K,), for D inputs a step and K classes.
    """
    cell = model.cell
    with torch.no_grad():
        b = cell.drive(torch.zeros(cell.input_size))
        w = (cell.drive(torch.eye(cell.input_size)) - b).T
        tensors = [w, b, *cell.prepare(), model.head.weight, model.head.bias]
        flat = torch.cat([tensor.half().flatten() for tensor in tensors]).numpy().astype("<f2")
    return {
        "cell": cell.name,
        "label": cell.label if run.key[0].startswith(cell.name) else run.key[0],
        "colour": cell.colour,
        "run": f"{run.folder.name} of {run.folder.parents[1].name}",
        "accuracy": run.record["test"]["accuracy"],
        "state": cell.state_size,
        "shapes": [list(tensor.shape) for tensor in tensors],
        "weights": base64.b64encode(flat.tobytes()).decode(),
    }


def write(folder: Path, runs: list[Run]) -> Path:
    """Write the script with these runs, and return its path.

    The test images on which the models disagree come first. For the first image, `replay` has the
    probability (0 to 100) of the right class after each row.

    Raises:
        UserError: A run has no weights, or the page cannot use it.
    """
    data = runs[0].record.get("data", {})
    for run in runs:
        images, usable = run.record.get("data", {}), run.record["model"] in READERS
        finished = run.record["status"] == COMPLETED and images.get("reading") == "row"
        if not (usable and finished and images["dataset"] == data["dataset"]):
            raise UserError(
                f"{run.folder}: the page needs finished runs of {', '.join(READERS)} on rows of "
                "the same images; name such runs."
            )
    models = [load_model(run) for run in runs]
    images, targets = _test_examples(runs[0])
    descriptions = [describe(run, model) for run, model in zip(runs, models, strict=True)]
    with torch.no_grad():
        answers = torch.stack([model(images).argmax(1) for model in models])
        disagree = (answers != answers[0]).any(0)
        indices = (~disagree).int().argsort(stable=True)[:EXAMPLES]
        for model, each in zip(models, descriptions, strict=True):
            scores = model.head(model.cell(images[indices[:1]])[0][0])  # (T, K), batch first
            right = scores.softmax(1)[:, targets[indices[0]]]
            each["replay"] = [round(100 * share, 1) for share in right.tolist()]
    pixels = [bytes((255 * images[i]).round().byte().flatten().tolist()) for i in indices]
    content = {
        "side": data["steps"],
        "classes": data["class_names"],
        "models": descriptions,
        "images": [base64.b64encode(each).decode() for each in pixels],
        "targets": targets[indices].tolist(),
        "disagree": bool(disagree.any()),
    }
    folders.register(folder, [SCRIPT])
    write_file(folder / SCRIPT, f"{BEGINNING}{json.dumps(content)};\n")
    return folder / SCRIPT


def _test_examples(run: Run) -> tuple[Tensor, Tensor]:
    """Load the test examples of a run: images (N, T, D) and their classes (N,)."""
    parameters = run_parameters(run.record["parameters"], str(run.folder))
    task = task_of(parameters)
    test = task.load(parameters.seed).test
    return task.inputs(test.inputs), test.targets


def read(folder: Path) -> dict[str, Any] | None:
    """Read the content of the script in a folder, or return None if there is no script."""
    path = folder / SCRIPT
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8").removeprefix(BEGINNING)[:-2])
    except ValueError as error:
        raise UserError(f"{path} is damaged; make it again with rnnbench site --draw.") from error


def build(folder: Path) -> None:
    """Write the page for the script in a folder, if there is one."""
    content = read(folder)
    if content is not None:
        folders.register(folder, [PAGE])
        write_file(folder / PAGE, fill("draw.html.j2", **content, script=SCRIPT, page=None))
