"""What reads drawn digits: the script with the weights of runs, and the page over it."""

import base64
import json

import numpy as np
import pytest
import torch
from small_reports import write_small

from rnnbench_nb.errors import UserError
from rnnbench_nb.model import build_model
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import Report, write_tensors
from rnnbench_nb.site import drawing
from rnnbench_nb.tasks.data import load

HIDDEN = 32


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """300 images of scikit-learn's digits, enlarged to 28 x 28 pixels, and their classes."""
    _, test = load("digits")
    big = np.pad(np.kron(test.inputs[:300], np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(big).float() / 255, test.targets[:300].long()


def write_runs(folder):
    """Runs of the cells that can read, of which only the head has learned, by least squares."""
    report = write_small(folder, {name: [0.9] for name in drawing.READERS})
    images, targets = digits()
    for name in drawing.READERS:
        path = report / f"runs/{name}-seed42"
        record = json.loads((path / "run.json").read_text())
        record["parameters"] = {"model": name, "seed": 42, "hidden_size": HIDDEN}
        (path / "run.json").write_text(json.dumps(record))
        parameters = run_parameters(record["parameters"], "a test")
        model = build_model(parameters, 28, 10, torch.Generator().manual_seed(1))
        with torch.no_grad():
            last = model.cell(images)[0][:, -1]  # (B, H)
            wanted = 10 * torch.nn.functional.one_hot(targets, 10) - 1.0
            model.head.weight.copy_(torch.linalg.lstsq(last, wanted).solution.T)
        state = {key: value.numpy() for key, value in model.state_dict().items()}
        write_tensors(path / "best.safetensors", state)
    return Report(report).runs


def reference(model, images):
    """The scores and norms of a model in the script, by numpy in float64.

    Args:
        model: One of the script's models.
        images: (N, T, D), values from 0 to 1.

    Returns:
        Scores (N, T, K) and norms of the state (N, T).
    """
    weights = np.frombuffer(base64.b64decode(model["weights"]), "<f2").astype(float)
    sizes = np.cumsum([int(np.prod(shape)) for shape in model["shapes"]])[:-1]
    parts = zip(np.split(weights, sizes), model["shapes"], strict=True)
    w, b, *prepared, weight, bias = (part.reshape(shape) for part, shape in parts)
    state, scores, norms = np.zeros((len(images), model["state"])), [], []
    for t in range(images.shape[1]):
        state = step(model["cell"], images[:, t] @ w.T + b, state, *prepared)
        scores.append(state[:, : weight.shape[1]] @ weight.T + bias)
        norms.append(np.linalg.norm(state, axis=1))
    return np.stack(scores, 1), np.stack(norms, 1)


def step(cell, u, state, matrix, *others):
    """One step of the equations of the GRU and LSTM (as torch has them) and of the A-GRU."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    if cell == "lstm":
        h, c = np.split(state, 2, 1)
        i, f, g, o = np.split(u + h @ matrix.T + others[0], 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return np.concatenate([sigmoid(o) * np.tanh(c), c], 1)
    if cell == "gru":
        x, y = np.split(u, 3, 1), np.split(state @ matrix.T + others[0], 3, 1)
        r, z = sigmoid(x[0] + y[0]), sigmoid(x[1] + y[1])
        return (1 - z) * np.tanh(x[2] + r * y[2]) + z * state
    (z, r, c), (antisymmetric, epsilon) = np.split(u, 3, 1), others
    z_h, r_h = np.split(state @ matrix.T, 2, 1)
    c = np.tanh(c + (sigmoid(r + r_h) * state) @ antisymmetric.T)
    return state + epsilon * sigmoid(z + z_h) * c


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


def test_the_script_holds_the_weights_and_images_on_which_the_models_disagree(made):
    folder, runs = made
    content = drawing.read(folder)
    assert [model["cell"] for model in content["models"]] == ["lstm", "gru", "agru"]
    images = [list(base64.b64decode(image)) for image in content["images"]]
    images = np.reshape(images, (drawing.EXAMPLES, 28, 28)) / 255
    answers = []
    for run, model in zip(runs, content["models"], strict=True):
        scores, _ = reference(model, images)
        with torch.no_grad():
            trained = drawing.load_model(run)(torch.from_numpy(images).float())
        np.testing.assert_allclose(scores[:, -1], trained, atol=0.2)  # float16
        answers.append(trained.argmax(1).tolist())
        right = np.exp(scores[0] - scores[0].max(1, keepdims=True))
        share = 100 * right[:, content["targets"][0]] / right.sum(1)
        np.testing.assert_allclose(model["replay"], share, atol=5)  # float16
    assert content["disagree"] and len({answer[0] for answer in answers}) > 1


def test_the_page_names_each_run_and_what_it_scored(made):
    text = (made[0] / "draw.html").read_text()
    for run in made[1]:
        assert f"{run.folder.name}, test accuracy 90.00%" in text
    assert '<script src="models.js">' in text and "Drawing and reading need JavaScript" in text


def test_what_cannot_read_is_refused(tmp_path):
    drawing.build(tmp_path)
    assert drawing.read(tmp_path) is None and not (tmp_path / "draw.html").exists()
    (tmp_path / "models.js").write_text("const MODELS = {;\n")
    with pytest.raises(UserError, match=r"models\.js is damaged; write it again"):
        drawing.build(tmp_path)
    runs = Report(write_small(tmp_path / "made", {"lem": [0.9], "gru": [0.9]})).runs
    with pytest.raises(UserError, match="lem-seed42: the page reads with finished runs of lstm"):
        drawing.write(tmp_path, runs)
    with pytest.raises(UserError, match=r"best\.safetensors"):
        drawing.write(tmp_path, runs[1:])
