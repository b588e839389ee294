"""What reads drawn digits: the script with the weights of runs, and the page over it."""

import base64
import re

import numpy as np
import pytest
import torch
from small_reports import write_small

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_json
from rnnbench_nb.model import build_model
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import Report, write_tensors
from rnnbench_nb.site import drawing
from rnnbench_nb.tasks.data import load

WIDTHS = {"lstm": 24, "gru": 32, "agru": 33}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """300 images of scikit-learn's digits, enlarged to 28 x 28 pixels, and their classes."""
    _, test = load("digits")
    big = np.pad(np.kron(test.inputs[:300], np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(big).float() / 255, test.targets[:300].long()


def write_runs(folder):
    """Runs of the cells that can read, of which only the head has learned, by least squares."""
    report = write_small(folder, {name: [0.9] for name in drawing.READERS})
    images, targets = digits()
    for run in Report(report).runs:
        own = {"model": run.record["model"], "seed": 42, "hidden_size": WIDTHS[run.record["model"]]}
        write_json(run.folder / "run.json", run.record | {"parameters": own})
        parameters = run_parameters(own, "a test")
        model = build_model(parameters, 28, 10, torch.Generator().manual_seed(1))
        with torch.no_grad():
            last = model.cell(images)[0][:, -1]  # (B, H)
            wanted = 10 * torch.nn.functional.one_hot(targets, 10) - 1.0
            model.head.weight.copy_(torch.linalg.lstsq(last, wanted).solution.T)
        state = {key: value.numpy() for key, value in model.state_dict().items()}
        write_tensors(run.folder / "best.safetensors", state)
    return Report(report).runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the script and the page, and the runs in them."""
    folder = tmp_path_factory.mktemp("drawing")
    runs = write_runs(folder / "report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_test_examples", lambda run: digits())
        drawing.write(folder, runs)
    drawing.build(folder)
    return folder, runs


def test_the_script_starts_with_images_on_which_the_models_disagree(made):
    folder, runs = made
    content = drawing.read(folder)
    assert [model["cell"] for model in content["models"]] == ["lstm", "gru", "agru"]
    images = [list(base64.b64decode(image)) for image in content["images"]]
    first = torch.tensor(images).reshape(drawing.EXAMPLES, 28, 28)[:1] / 255
    models = [drawing.load_model(run) for run in runs]
    with torch.no_grad():
        shares = [model(first).softmax(1)[0, content["targets"][0]].item() for model in models]
        assert content["disagree"] and len({model(first).argmax().item() for model in models}) > 1
    ends = [model["replay"][-1] for model in content["models"]]
    assert ends == pytest.approx([100 * share for share in shares], abs=0.1)


def test_the_page_names_each_run_and_what_it_scored(made):
    text = (made[0] / "draw.html").read_text()
    for run in made[1]:
        width = WIDTHS[run.record["model"]]
        assert f"({run.folder.name} of report, {width} units, test accuracy 90.00%)" in text
    assert '<script src="models.js">' in text and "Drawing and reading need JavaScript" in text


def test_one_model_is_enough(made, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "_test_examples", lambda run: digits())
    drawing.write(tmp_path, made[1][2:])
    drawing.build(tmp_path)
    text = re.sub("<[^>]+>", "", (tmp_path / "draw.html").read_text())
    assert "A trained model (A-GRU) reads the digit" in text and "disagree" not in text
    assert "A-GRU (agru-seed42 of report, 33 units, test accuracy" in text


def test_what_cannot_read_is_refused(tmp_path):
    drawing.build(tmp_path)
    assert drawing.read(tmp_path) is None and not (tmp_path / "draw.html").exists()
    (tmp_path / "models.js").write_text("const MODELS = {;\n")
    with pytest.raises(UserError, match=r"models\.js is damaged; make it again"):
        drawing.build(tmp_path)
    runs = Report(write_small(tmp_path / "made", {"lem": [0.9], "gru": [0.9]})).runs
    with pytest.raises(UserError, match="lem-seed42: the page needs finished runs of lstm"):
        drawing.write(tmp_path, runs)
    with pytest.raises(UserError, match=r"best\.safetensors"):
        drawing.write(tmp_path, runs[1:])
