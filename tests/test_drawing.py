"""What reads drawn digits: the script with the weights of runs, and the page over it."""

import base64

import numpy as np
import pytest
import torch
from conftest import one_sentence, rnnbench_here
from made import write_made_report

from rnnbench_nb.analyses import examples
from rnnbench_nb.cells import CELLS
from rnnbench_nb.cells.base import unroll
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.model import build_model
from rnnbench_nb.report import load_run, write_tensors
from rnnbench_nb.site import drawing


def write_runs(folder, hidden_size=32):
    """Runs on digits of the cells that can read; only the head has learned, by least squares."""
    variants = {name: {"model": name, "hidden_size": hidden_size} for name in drawing.scripts()}
    answers = {(name, 1): ([0, 1, 2], [0, 1, 1]) for name in variants}
    report = write_made_report(folder, variants, answers, seeds=(1,))
    images, targets = examples(report.runs[0], 300)
    for run in report.runs:
        model = build_model(run.parameters, 8, 10, torch.Generator().manual_seed(1))
        with torch.no_grad():
            last = model.cell(images)[0][:, -1]  # (B, H)
            wanted = torch.nn.functional.one_hot(targets, 10) - 0.1
            model.head.weight.copy_(torch.linalg.lstsq(last, wanted).solution.T)
        state = {key: value.numpy() for key, value in model.state_dict().items()}
        write_tensors(run.folder / "best.safetensors", state)
    return [load_run(run.folder) for run in report.runs]


def reference(model, images):
    """The scores, norms and gradients of a model in the script, by torch.

    Args:
        model: One of the script's models.
        images: float64 (B, T, D).

    Returns:
        Scores (B, T, K), norms of the state (B, T), and of the gradient by row (B, T).
    """
    weights = np.frombuffer(base64.b64decode(model["weights"]), "<f2")
    sizes = np.cumsum([int(np.prod(shape)) for shape in model["shapes"]])[:-1]
    w, b, *prepared, weight, bias = (
        torch.tensor(part).double().reshape(shape)
        for part, shape in zip(np.split(weights, sizes), model["shapes"], strict=True)
    )
    cell = CELLS[model["cell"]](images.shape[-1], weight.shape[1], batch_first=True)
    x = images.clone().requires_grad_()
    drive = torch.nn.functional.linear(x.transpose(0, 1), w, b)
    start = torch.zeros(len(x), model["state"]).double()
    states = unroll(cell.step, drive, start, *prepared)  # (T, B, n)
    scores = torch.nn.functional.linear(states[..., : weight.shape[1]], weight, bias)
    scores[-1].amax(-1).sum().backward()
    norms, gradients = states.norm(dim=-1).T, x.grad.norm(dim=-1)
    return [part.detach() for part in (scores.transpose(0, 1), norms, gradients)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the script and the page, and the runs in them."""
    folder = tmp_path_factory.mktemp("drawing")
    runs = write_runs(folder / "report")
    drawing.write(folder, runs)
    drawing.build(folder)
    return folder, runs


def test_the_script_holds_the_weights_that_were_trained(made):
    folder, runs = made
    content = drawing.read(folder)
    assert [model["cell"] for model in content["models"]] == list(drawing.scripts())
    assert content["side"] == 8 and len(content["images"]) == drawing.EXAMPLES
    images = [list(base64.b64decode(image)) for image in content["images"]]
    images = torch.tensor(images).double().reshape(-1, 8, 8) / 255
    for run, model in zip(runs, content["models"], strict=True):
        scores, _, _ = reference(model, images)
        with torch.no_grad():
            trained = run.model(images.float())
        torch.testing.assert_close(scores[:, -1].float(), trained, atol=2e-2, rtol=0)
        assert len(set(trained.argmax(1).tolist())) > 5


def test_the_page_names_each_run_and_where_it_comes_from(made):
    folder, runs = made
    text = (folder / "draw.html").read_text()
    for run in runs:
        assert f'<td data-label="Run">{run.folder.name}</td>' in text
        assert CELLS[run.parameters.model].label in text
    assert text.count('<td data-label="Test accuracy">66.67%</td>') == len(runs)
    assert text.count("<script>") == 1 and "src=" not in text.partition("</style>")[2].partition(
        "<script>")[0]  # fmt: skip


def test_a_cell_can_read_where_a_script_lies_beside_its_file():
    folder = PROJECT / "rnnbench_nb/cells"
    assert set(drawing.scripts()) == {path.stem for path in folder.glob("*.js")}
    assert all(step.startswith("({") for step in drawing.scripts().values())


def test_what_cannot_read_is_refused(made, tmp_path, monkeypatch):
    folder, runs = made
    assert drawing.build(tmp_path) is None
    (tmp_path / "models.js").write_text("const MODELS = {;\n")
    with pytest.raises(UserError, match=r"models\.js is damaged; write it again"):
        drawing.build(tmp_path)
    answers = {("a", 1): ([0], [0])}
    without = write_made_report(tmp_path, {"a": {"model": "lem"}}, answers, seeds=(1,)).runs[0]
    with pytest.raises(UserError, match="no digit can be read with lem, which has no script"):
        drawing.write(tmp_path, [without])
    monkeypatch.setattr(drawing, "scripts", lambda: {"lem": ""})
    with pytest.raises(UserError, match="is no finished run with weights that reads rows"):
        drawing.write(tmp_path, [without])


def test_the_command_writes_both(made, tmp_path, monkeypatch):
    folder, runs = made
    monkeypatch.setattr("rnnbench_nb.site.front.render", lambda folder: "the front page")
    options = [part for run in runs for part in ("--draw", run.folder)]
    assert rnnbench_here("site", tmp_path, *options).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "draw.html", "models.js"}
    for name in ("draw.html", "models.js"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    refused = rnnbench_here("site", tmp_path, "--draw", tmp_path / "nothing")
    assert "nothing" in one_sentence(refused)
