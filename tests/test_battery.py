"""One contract for every cell, task, pair and backend: `rnnbench test-cell NAME` runs a cell's."""

import inspect
import json
import os
import typing

import numpy as np
import pytest
import torch
from conftest import TINY
from torch.nn import functional as F

from rnnbench_nb.cells import CELLS
from rnnbench_nb.cells.kernels import unroll
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.model import build_model, count
from rnnbench_nb.protocol import RunParameters, run_parameters
from rnnbench_nb.runs import new_model
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import DEFAULT, TASKS
from rnnbench_nb.training import fit, read_checkpoint

B, T, D, H = 3, 6, 4, 7
CHOSEN = [name for name in CELLS if name == os.environ.get("RNNBENCH_CELL", name)]
each_cell = pytest.mark.parametrize("cell", CHOSEN)
each_task = pytest.mark.parametrize("task", TASKS)
OPTIONS = [(cell, option) for cell in CHOSEN for option in CELLS[cell].Options.model_fields]
OPTIONS = [pair for pair in OPTIONS if pair[1] != "backend"]  # it changes what computes, not what


def make(cell, dtype=torch.float64, **options):
    torch.manual_seed(5)
    made = CELLS[cell](D, H, **{"batch_first": True, **options}).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:  # biases that matter
                parameter.add_(torch.linspace(-0.3, 0.3, len(parameter)))
    return made


def sequence(dtype=torch.float64):
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def start(made, dtype=torch.float64):
    random = torch.Generator().manual_seed(2)
    return 0.5 * torch.randn(B, made.states * H, generator=random).to(dtype)


@each_cell
def test_a_cell_says_what_it_is(cell):
    entry = CELLS[cell]
    assert entry.name == cell and entry.label.strip() and "$" in entry.equation
    common = set(entry.Options.model_fields) & set(RunParameters.model_fields)
    assert not common, "these options are common keys already"
    assert set(entry.no_decay) <= dict(make(cell).named_parameters()).keys()


def flat(state):
    return torch.cat(state, -1) if isinstance(state, tuple) else state


@each_cell
@pytest.mark.parametrize("with_state", [False, True])
def test_layouts_are_those_of_torch_and_hold_the_same_numbers(cell, with_state):
    made, plain, x = make(cell), make(cell, batch_first=False), sequence()
    parts = made.states if isinstance(made, torch.nn.LSTM) else 1  # which takes (h, c)

    def given(*tensors):
        return (tensors if parts > 1 else tensors[0]) if with_state else None

    h_0 = start(made)[None].chunk(parts, -1)
    output, last = made(x, given(*h_0))
    assert output.shape == (B, T, H) and flat(last).shape == (1, B, made.state_size)
    torch.testing.assert_close(flat(last)[0, :, :H], output[:, -1])
    steps_first, end = plain(x.transpose(0, 1), given(*h_0))
    torch.testing.assert_close(steps_first, output.transpose(0, 1))
    torch.testing.assert_close(flat(end), flat(last))
    alone, end = made(x[0], given(*(h[:, 0] for h in h_0)))
    torch.testing.assert_close(alone, output[0])
    torch.testing.assert_close(flat(end), flat(last)[:, 0])


@each_cell
def test_arguments_stand_where_torch_has_them(cell):
    torchs = [*inspect.signature(torch.nn.RNNBase).parameters]
    expected = [name for name in torchs if name not in ("mode", "proj_size")]
    assert [*inspect.signature(CELLS[cell]).parameters] == [*expected, "options"]
    made = CELLS[cell](D, H, 1, True, True, 0.0, False, "cpu", torch.float64)
    assert made.batch_first and {p.dtype for p in made.parameters()} == {torch.float64}
    made.flatten_parameters()
    assert made(sequence(), hx=None)[0].shape == (B, T, H)
    assert next(CELLS[cell](D, H, device="meta").parameters()).is_meta


@each_cell
def test_a_cell_says_what_served_the_last_call(cell):
    made = make(cell, torch.float32)
    assert made.path == "not called yet"
    made(sequence(torch.float32))
    first = made.path
    made.double()(sequence())
    if first.startswith("kernel ("):
        assert made.path == "loop: it computes in float32, not float64"
    else:
        assert made.path == first and first.startswith(("loop", "torch.nn"))


@each_cell
def test_a_reset_draws_again_and_leaves_frozen_what_was_frozen(cell):
    made = make(cell)
    for index, tensor in enumerate(made.parameters()):
        tensor.requires_grad_(index % 2 == 0)
    before = [(tensor.clone(), tensor.requires_grad) for tensor in made.parameters()]
    made.reset_parameters()
    after = list(made.parameters())
    assert [trained for _, trained in before] == [tensor.requires_grad for tensor in after]
    assert any(not torch.equal(old, new) for (old, _), new in zip(before, after, strict=True))


@each_cell
def test_the_forward_pass_is_the_step_again_and_again(cell):
    made = make(cell)
    drive = made.drive(sequence().transpose(0, 1))
    states = unroll(made.step, drive, made.zero_state(B), *made.prepare())
    torch.testing.assert_close(made(sequence())[0], states[..., :H].transpose(0, 1))


@each_cell
def test_values_and_gradients_agree_with_float64(cell):
    single, exact = make(cell, torch.float32), make(cell, torch.float32).double()
    for made, dtype in ((single, torch.float32), (exact, torch.float64)):
        made(sequence(dtype))[0].square().sum().backward()
    for (name, got), want in zip(single.named_parameters(), exact.parameters(), strict=True):
        if want.grad is not None:
            error = (got.grad.double() - want.grad).norm()
            assert error <= 1e-4 * want.grad.norm() + 1e-6, name


@each_cell
def test_every_trained_parameter_has_a_gradient_and_is_counted(cell):
    parameters = run_parameters({"model": cell, "hidden_size": H}, "the test")
    model = build_model(parameters, D, 5, generator(0, "initialisation"))
    for tensor in model.parameters():
        if tensor.dim() == 1:
            torch.nn.init.uniform_(tensor, -0.3, 0.3, generator=generator(1, "initialisation"))
    loss = F.cross_entropy(model(sequence(torch.float32)), torch.tensor([0, 1, 2]))
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), f"{name} never learns"
    total, free = count(model)
    assert 0 < free <= total == sum(p.numel() for p in model.parameters() if p.requires_grad)


@each_cell
def test_the_start_depends_on_the_seed_alone(cell):
    parameters = run_parameters({"model": cell, "hidden_size": H}, "the test")
    made = []
    for seed, noise in ((42, 0), (42, 1), (43, 0)):
        torch.manual_seed(noise)
        made.append(build_model(parameters, D, 5, generator(seed, "initialisation")).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


@each_cell
def test_the_step_jacobian_is_that_of_finite_differences(cell):
    made = make(cell)
    u, state, prepared = made.drive(sequence()[:, 0]), start(made), made.prepare()
    shifts = 1e-6 * torch.eye(state.shape[1], dtype=torch.float64)
    columns = [
        made.step(u, state + s, *prepared) - made.step(u, state - s, *prepared) for s in shifts
    ]
    numeric = torch.stack(columns, -1) / 2e-6
    torch.testing.assert_close(made.jacobian(u, state, *prepared), numeric, rtol=1e-5, atol=1e-7)


def other_values(cell, option):
    """Values of an option that are not its default."""
    if cell == "module":
        return [{"module": "torch.nn:GRU", "arguments": {"nonlinearity": "relu"}}[option]]
    field = CELLS[cell].Options.model_fields[option]
    choices = typing.get_args(field.annotation)
    if isinstance(field.default, bool):
        return [not field.default]
    if choices and all(isinstance(choice, str) for choice in choices):
        return [choice for choice in choices if choice != field.default]
    if isinstance(field.default, float):
        return [field.default / 2 or 1.0]  # half of a share is one, and twice may be none
    return [field.default * 2 or 10]  # one step of memory is none


@pytest.mark.parametrize(("cell", "option"), OPTIONS)
def test_every_option_has_an_effect(cell, option):
    def trained(**options):
        made = make(cell, **options)
        optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            made(sequence())[0].square().sum().backward()
            optimiser.step()
        return made(sequence())[0]

    for value in other_values(cell, option):
        assert not torch.equal(trained(**{option: value}), trained()), value


def small_run(cell, task, **values):
    """The parameters of a run of some epochs, its task, data and model."""
    small = {key: value for key, value in TINY.items() if key in RunParameters.model_fields}
    parameters = run_parameters(
        {"model": cell, "task": task, **small, **TASKS[task].tiny, **values}, "the test"
    )
    one = TASKS[task](parameters.task_options)
    data = one.load(parameters.seed)
    return parameters, one, data, new_model(parameters, one, data.train)


QUICK = ("agru", "cornn", "lstm", "module")  # a kernel, our loop, torch's, a foreign one


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=[] if cell in QUICK or len(CHOSEN) == 1 else [pytest.mark.slow])
        for cell in CHOSEN
    ],
)
def test_training_that_was_killed_goes_on_to_the_same_weights(cell, tmp_path):
    def trained(folder, report=lambda line: None):
        parameters, task, data, model = small_run(cell, DEFAULT, dropout=0.2, epochs=3)
        checkpoint = read_checkpoint(folder)
        return fit(model, data, task, parameters, folder, report, checkpoint=checkpoint)

    def killed(line):
        if "epoch   2" in line:
            raise KeyboardInterrupt

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", killed)
    again = trained(tmp_path / "broken")
    for name, tensor in whole.best.items():
        assert torch.equal(tensor, again.best[name]), name
    assert whole.progress["path"] == again.progress["path"] == whole.model.cell.path


@pytest.mark.parametrize(
    ("cell", "task"),
    [
        # Half of the pairs are enough for the quick tests, but for those of a single cell.
        pytest.param(cell, task, marks=[pytest.mark.slow] * ((i + j) % 2 and len(CHOSEN) > 1))
        for i, cell in enumerate(CHOSEN)
        for j, task in enumerate(TASKS)
    ],
)
def test_every_cell_learns_every_task(cell, task):
    parameters, one, data, model = small_run(cell, task, epochs=4)
    state = fit(model, data, one, parameters, report=lambda line: None)
    losses = [row["loss"] for row in state.history if row["split"] == "train"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@each_task
def test_a_task_keeps_its_contract(task):
    _, one, _, _ = small_run(next(iter(CELLS)), task)
    first, again, other = one.load(42), one.load(42), one.load(43)
    for part, same in zip(first, again, strict=True):
        assert torch.equal(part.inputs, same.inputs) and torch.equal(part.targets, same.targets)
        assert len(part.inputs) == len(part.targets) > 0
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert torch.equal(first.test.inputs, other.test.inputs)
    inputs, targets = one.inputs(first.test.inputs[:5]), first.test.targets[:5]
    assert inputs.dtype == torch.float32 and inputs.dim() == 3 and len(inputs) == 5
    steps = (inputs.shape[1],) if one.read == "every" else ()
    outputs = torch.randn(5, *steps, one.outputs(), generator=generator(0, "order"))
    losses = one.losses(outputs, targets)
    assert losses.shape == (5,) and (losses > 0).all()
    torch.testing.assert_close(one.losses(outputs, targets, "mean"), losses.mean())
    label, predicted = targets.numpy(), one.answers(outputs).numpy()
    scores, metrics = one.scores(label, predicted), METRICS[one.metrics].values(label, predicted)
    assert scores.shape == (5,) and tuple(metrics) == METRICS[one.metrics].names
    assert metrics[one.score.name] == pytest.approx(scores.mean())
    right = one.scores(label, label)
    judged, value = one.memoryless(first)
    assert (right >= scores).all() and (0 < value if judged == "loss" else value < right.mean())
    assert json.loads(json.dumps(one.describe())) == one.describe()
    pictures = one.pictures(first.test.inputs[:2])
    assert pictures.ndim == 3 and len(pictures) == 2
