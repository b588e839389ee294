"""Cell and head: counts, the common start, and the numbers that published seeds give."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch

from rnnbench_nb.cells import CELLS
from rnnbench_nb.model import build_model, count
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import TASKS
from rnnbench_nb.tasks.base import Part
from rnnbench_nb.training import fit

DATA = Path(__file__).parent / "data"
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
    parameters = run_parameters({**values, "steps": 15}, "the test")
    task, data = loaded("mnist", 42)
    data = data._replace(validation=Part(*(tensor[:100] for tensor in data.validation)))
    state = fit(build(**values), data, task, parameters, report=lambda line: None)
    expected = sum(RECORDED[name]["losses"][:15]) / 15
    assert state.history[0]["loss"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("bias", [1.0, 2.0])
def test_the_forget_bias_counts_once(bias):
    cell = build("lstm", forget_bias=bias).cell
    i, f, g, o = (cell.bias_ih_l0 + cell.bias_hh_l0).view(4, -1)
    assert (f == bias).all() and not torch.cat([i, g, o]).any()


@pytest.mark.parametrize("steps", [2, 3, 784])
def test_chrono_starts_gates_that_keep_the_state_for_so_many_steps(steps):
    gru, lstm = build("gru", chrono=steps).cell, build("lstm", chrono=steps).cell
    r, keeps, n = (gru.bias_ih_l0 + gru.bias_hh_l0).view(3, -1)
    i, f, g, o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).view(4, -1)
    assert not torch.cat([r, n, g, o]).any() and torch.equal(i, -f)
    for bias in (keeps, f):
        kept = bias.exp()  # a gate of sigmoid(log u) keeps u / (u + 1) of the state a step
        assert (kept >= 1).all() and (kept <= steps - 1 + 1e-3).all()
        assert steps < 4 or kept.std() > 0.2 * steps


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
