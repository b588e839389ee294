import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.model import SequenceModel, build_model, count
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.report import load_run
from rnnbench_nb.runs import train_run
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import TASKS
from rnnbench_nb.training import _optimiser

RECORDED = json.loads((Path(__file__).parent / "data/before_the_house.json").read_text())
CONTROLS = {"frozen": {"recurrence": "frozen"}, "free": {"recurrence": "free"}}
real = pytest.mark.skipif("RNNBENCH_DATA" not in os.environ, reason="RNNBENCH_DATA names no MNIST")


def build(model, input_size=28, read="last", **values):
    parameters = run_parameters({"model": model, **values}, "the test")
    random = generator(parameters.seed, "initialisation")
    return build_model(parameters, input_size, 10, random, read)


def digest(*tensors):
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("model", "total", "free", "pixel"),
    [
        ("lstm", 82_186, 81_674, 68_362),
        ("gru", 61_962, 61_706, 51_594),
        ("agru", 61_579, 53_323, 51_211),
    ],
)
def test_parameter_counts(model, total, free, pixel):
    assert count(build(model)) == (total, free)
    assert count(build(model, input_size=1))[0] == pixel


@pytest.mark.parametrize(("control", "total"), [("frozen", 61_579 - 128**2), ("free", 61_579)])
def test_the_controls_have_no_redundant_parameters(control, total):
    assert count(build("agru", recurrence=control)) == (total, total)


@pytest.mark.parametrize("model", CELLS)
def test_one_initialisation_for_all(model):
    bound = 1 / 8
    common = {"start": "common"} if "start" in CELLS[model].Options.model_fields else {}
    for name, parameter in build(model, hidden_size=64, **common).named_parameters():
        if parameter.dim() > 1:
            for gate in parameter.split(64):  # the same bound in every gate, and it is reached
                assert 0.9 * bound < gate.abs().max() <= bound, name


@pytest.mark.parametrize("name", ["lstm", "gru", "agru", *CONTROLS])
def test_published_seeds_start_from_the_weights_that_they_had(name):
    model = build(*(("agru",) if name in CONTROLS else (name,)), **CONTROLS.get(name, {}))
    state = model.state_dict()
    if name == "frozen":  # W used to be a buffer, and buffers came last of the cell
        names = ["weight_ih", "gate_weight", "bias", "log_epsilon", "candidate_weight"]
        state = {n: state[n] for n in [f"cell.{n}" for n in names] + ["head.weight", "head.bias"]}
    elif "cell.bias" in state:  # the step size came after the biases
        state["cell.log_epsilon"] = state.pop("cell.log_epsilon")
        state = {n: state[n] for n in sorted(state, key=lambda n: n.startswith("head"))}
    assert digest(*state.values()) == RECORDED[name]["weights"]


@pytest.mark.parametrize("seed", [42, 7])
@pytest.mark.parametrize("dataset", ["digits", pytest.param("mnist", marks=real)])
def test_published_seeds_have_the_split_and_the_order_of_batches_that_they_had(dataset, seed):
    parameters = run_parameters({"model": "gru", "dataset": dataset}, "the test")
    data = TASKS[parameters.task](parameters.task_options).load(seed)
    recorded = RECORDED[f"{dataset}-{seed}"]
    assert digest(*data.train, *data.validation) == recorded["split"]
    random = generator(seed, "order")
    orders = [torch.randperm(len(data.train.targets), generator=random) for _ in range(2)]
    assert digest(*orders) == recorded["order"]


@real
@pytest.mark.parametrize("name", ["lstm", "gru", "agru", *CONTROLS])
def test_published_seeds_learn_as_they_did_for_fifty_steps(name):
    values = {"model": "agru" if name in CONTROLS else name, **CONTROLS.get(name, {})}
    parameters = run_parameters(values, "the test")
    task = TASKS[parameters.task](parameters.task_options)
    train, model = task.load(42).train, build(**values)
    optimiser = _optimiser(model, parameters)
    order, losses = torch.randperm(len(train.targets), generator=generator(42, "order")), []
    for batch in order.split(parameters.batch_size)[:50]:
        loss = task.losses(model(task.inputs(train.inputs[batch])), train.targets[batch], "mean")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), parameters.clip_norm)
        optimiser.step()
        losses.append(loss.item())
    assert losses == pytest.approx(RECORDED[name]["losses"], abs=1e-3)


@pytest.mark.slow
@real
@pytest.mark.parametrize("name", ["lstm", "gru", "agru"])
def test_a_whole_run_comes_near_its_published_accuracy(name, tmp_path, capsys):
    published = load_run(f"reports/published/row_mnist/runs/{name}-seed42")
    run = train_run(published.parameters, tmp_path, report=lambda line: None)
    ours, theirs = (100 * each.record["test"]["accuracy"] for each in (run, published))
    with capsys.disabled():
        print(f"\n{name}-seed42: {ours:.2f}% here, {theirs:.2f}% published")
    assert abs(ours - theirs) <= 0.3


@pytest.mark.parametrize("bias", [1.0, 2.0])
def test_the_forget_bias_is_what_is_said_once(bias):
    cell = build("lstm", forget_bias=bias).cell
    i, f, g, o = (cell.bias_ih_l0 + cell.bias_hh_l0).view(4, -1)
    assert (f == bias).all()
    assert not torch.cat([i, g, o]).any()


@pytest.mark.parametrize("steps", [0, 2, 3, 784])
def test_chrono_starts_gates_that_keep_the_state_for_so_many_steps(steps):
    plain = build("gru").cell, build("lstm").cell
    gru, lstm = build("gru", chrono=steps).cell, build("lstm", chrono=steps).cell
    r, keeps, n = (gru.bias_ih_l0 + gru.bias_hh_l0).view(3, -1)
    i, f, g, o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).view(4, -1)
    assert not torch.cat([r, n, g, o]).any()
    for same, other in zip(plain, (gru, lstm), strict=True):
        assert torch.equal(same.weight_hh_l0, other.weight_hh_l0)
    if steps == 0:
        assert not keeps.any() and not i.any() and (f == 1).all()
        return
    for bias in (keeps, f):
        kept = bias.exp()  # a gate of sigmoid(log u) keeps u / (u + 1) of the state a step
        assert (kept >= 1).all() and (kept <= steps - 1 + 1e-3).all()
        assert steps < 4 or kept.std() > 0.2 * steps
    assert torch.equal(i, -f)


def test_the_start_of_the_agrus_authors_is_xavier_but_for_w():
    protocol = load_protocol("params/agru_authors.yaml")
    for parameters in protocol.parameterisations.values():
        model = build_model(parameters, 28, 10, torch.Generator().manual_seed(0))
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            bound = math.sqrt(6 / sum(weight.shape))  # of the whole stacked matrix
            if name == "cell.candidate_weight":
                bound = 1 / math.sqrt(128)
            assert 0.98 * bound < weight.abs().max() <= 1.00001 * bound, name
        if parameters.model == "agru":
            assert model.cell.step_size() is model.cell.epsilon and model.cell.epsilon == 1
            assert any(p is model.cell.epsilon for p in model.cell.decayed()[0])


@pytest.mark.parametrize("model", CELLS)
def test_the_head_reads_the_last_state_or_every_state(model):
    built, inputs = build(model), torch.rand(3, 5, 28)
    output, _ = built.cell(inputs)
    torch.testing.assert_close(built(inputs), built.head(output[:, -1]))
    every = build(model, read="every")
    torch.testing.assert_close(every(inputs), every.head(every.cell(inputs)[0]))
    assert every(inputs).shape == (3, 5, 10)


@pytest.mark.parametrize("model", CELLS)
def test_dropout_means_something_with_one_layer(model):
    built = build(model, dropout=0.5)
    inputs = torch.rand(3, 5, 28)
    assert not torch.equal(built(inputs), built(inputs))
    built.eval()
    assert torch.equal(built(inputs), built(inputs))


def test_what_is_tracked_is_the_recurrent_matrix_and_the_step_size():
    built = build("agru", epsilon=0.5)
    tracked, w = built.tracked(), built.cell.candidate_weight
    torch.testing.assert_close(tracked["matrix"], w - w.T - 0.01 * torch.eye(128))
    torch.testing.assert_close(tracked["step_size"], torch.tensor(0.5))
    assert build("gru").tracked() == {}


def test_a_frozen_matrix_is_drawn_by_the_seed_like_the_others():
    first, other = (build("agru", recurrence="frozen", seed=seed) for seed in (42, 43))
    again = build("agru", recurrence="frozen")
    w = first.cell.candidate_weight
    assert 0.08 < w.abs().max() <= 1 / 128**0.5
    assert torch.equal(w, again.cell.candidate_weight)
    assert not torch.equal(w, other.cell.candidate_weight)


def test_the_initial_scale_acts_on_the_recurrent_matrix_alone():
    plain, scaled = (build("agru", initial_scale=scale).state_dict() for scale in (1.0, 0.5))
    plain["cell.candidate_weight"] *= 0.5
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)


def test_a_cell_that_reads_in_two_directions_is_refused():
    with pytest.raises(UserError, match="GRU reads in two directions, and the last state of one"):
        SequenceModel(nn.GRU(3, 4, bidirectional=True), 10)


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="model: 'agr' is unknown; it must be one of agru, anti"):
        build("agr")
