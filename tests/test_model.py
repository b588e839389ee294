"""Cell and head: counts, the common start, and the numbers that published seeds give."""

import hashlib
import json
import math
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT
from rnnbench_nb.model import build_model, count
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import TASKS
from rnnbench_nb.training import make_optimiser

DATA, PARAMS = Path(__file__).parent / "data", PROJECT / "params"
RECORDED = json.loads((DATA / "before_the_house.json").read_text())
WEIGHTS = json.loads((DATA / "start_weights.json").read_text())  # of version 0.1
CONTROLS = ("frozen", "free")
real = pytest.mark.skipif("RNNBENCH_DATA" not in os.environ, reason="RNNBENCH_DATA names no MNIST")


def build(model, input_size=28, read="last", **values):
    parameters = run_parameters({"model": model, **values}, "the test")
    random = generator(parameters.seed, "initialisation")
    return build_model(parameters, input_size, 10, random, read)


@cache
def loaded(dataset, seed):
    parameters = run_parameters({"model": "gru", "dataset": dataset}, "the test")
    task = TASKS[parameters.task](parameters.task_options)
    return task, task.load(seed)


def digest(*tensors):
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().numpy())
    return sha.hexdigest()


COUNTS = [  # at 128 units, 28 features and 10 classes
    ("lstm", {}, 82_186, 81_674),
    ("gru", {}, 61_962, 61_706),
    ("agru", {}, 61_579, 53_323),
    ("agru", {"recurrence": "frozen"}, 61_579 - 128**2, 61_579 - 128**2),
    ("agru", {"recurrence": "free"}, 61_579, 61_579),
    ("antisymmetric_rnn", {}, 21_386, 13_130),
    ("gated_antisymmetric_rnn", {}, 25_098, 25_098 - 128 * 129 // 2),
    ("cornn", {}, 37_770, 37_770),
    ("lem", {}, 82_186, 82_186 - 4 * 128),  # as many as torch's LSTM, with two biases a block
    ("lipschitz_rnn", {}, 37_770, 37_770),
    ("mingru", {}, 8_458 + 2 * 128, 8_458 + 2 * 128),  # ours has biases
    ("gru_reset_before", {}, 61_962 - 3 * 128, 61_578),  # torch's GRU has two biases a gate
    ("module", {"module": "torch.nn:GRU"}, 61_962, 61_962),
]


@pytest.mark.parametrize(("cell", "options", "total", "free"), COUNTS)
def test_parameter_counts(cell, options, total, free):
    assert count(build(cell, **options)) == (total, free)


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_seed_gives_the_weights_that_it_gave_to_the_last_bit(case):
    cell, _, setting = case.partition(" ")
    changes = {"xavier": {"initialisation": "xavier"}}
    changes["epsilon_itself"] = {"epsilon_itself": True, "epsilon": 0.3}
    changes |= {f"recurrence={name}": {"recurrence": name} for name in CONTROLS}
    sha = hashlib.sha256()
    for input_size, hidden_size in ((28, 16), (1, 9)):
        values = {"hidden_size": hidden_size, "seed": 42, **changes.get(setting, {})}
        for name, tensor in build(cell, input_size, **values).state_dict().items():
            sha.update(name.encode() + tensor.numpy().tobytes())
    assert sha.hexdigest()[:32] == WEIGHTS[case]


@pytest.mark.parametrize("model", [name for name in CELLS if name != "module"])
def test_one_initialisation_for_all(model):
    for name, parameter in build(model, hidden_size=64).named_parameters():
        if parameter.dim() > 1:
            for gate in parameter.split(64):  # the same bound in every gate, and it is reached
                assert 0.9 / 8 < gate.abs().max() <= 1 / 8, name


def test_the_start_of_the_agrus_authors_is_xavier_but_for_w():
    for parameters in load_protocol(PARAMS / "agru_authors.yaml").parameterisations.values():
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


@pytest.mark.parametrize("seed", [42, 7])
@pytest.mark.parametrize("dataset", ["digits", pytest.param("mnist", marks=real)])
def test_published_seeds_have_the_split_and_the_order_of_batches_that_they_had(dataset, seed):
    data = loaded(dataset, seed)[1]
    recorded = RECORDED[f"{dataset}-{seed}"]
    assert digest(*data.train, *data.validation) == recorded["split"]
    random = generator(seed, "order")
    orders = [torch.randperm(len(data.train.targets), generator=random) for _ in range(2)]
    assert digest(*orders) == recorded["order"]


@real
@pytest.mark.parametrize("name", ["lstm", "gru", "agru", *CONTROLS])
def test_published_seeds_learn_as_they_did(name):
    values = {"model": "agru", "recurrence": name} if name in CONTROLS else {"model": name}
    parameters, (task, data) = run_parameters(values, "the test"), loaded("mnist", 42)
    train, model = data.train, build(**values)
    optimiser, losses = make_optimiser(model, parameters), []
    order = torch.randperm(len(train.targets), generator=generator(42, "order"))
    for batch in order.split(parameters.batch_size)[:15]:
        loss = task.losses(model(task.inputs(train.inputs[batch])), train.targets[batch], "mean")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), parameters.clip_norm)
        optimiser.step()
        losses.append(loss.item())
    assert losses == pytest.approx(RECORDED[name]["losses"][:15], abs=1e-3)


@pytest.mark.parametrize("bias", [1.0, 2.0])
def test_the_forget_bias_counts_once(bias):
    cell = build("lstm", forget_bias=bias).cell
    i, f, g, o = (cell.bias_ih_l0 + cell.bias_hh_l0).view(4, -1)
    assert (f == bias).all() and not torch.cat([i, g, o]).any()


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


@pytest.mark.parametrize("model", CELLS)
def test_the_head_reads_the_last_state_or_every_state_after_dropout(model):
    built, inputs = build(model), torch.rand(3, 5, 28)
    output, _ = built.cell(inputs)
    torch.testing.assert_close(built(inputs), built.head(output[:, -1]))
    every = build(model, read="every")
    torch.testing.assert_close(every(inputs), every.head(every.cell(inputs)[0]))
    dropping = build(model, dropout=0.5)
    assert not torch.equal(dropping(inputs), dropping(inputs))
    torch.testing.assert_close(dropping.eval()(inputs), built(inputs))
