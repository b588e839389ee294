"""The loop: budgets, batches, choice of the epoch, checkpoints; on small parts of digits."""

import math

import pytest
import torch
from conftest import TINY
from torch.nn import functional as F

from rnnbench_nb import training
from rnnbench_nb.errors import UserError
from rnnbench_nb.protocol import RunParameters, run_parameters
from rnnbench_nb.runs import new_model, task_of
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks.base import Part, Split
from rnnbench_nb.training import State, evaluate, fit, read_checkpoint

EXAMPLES, BATCH = 100, 32  # so an epoch has three whole batches and one of 4
STEPS = 4  # in an epoch


def change(**values) -> RunParameters:
    return run_parameters({"model": "agru", **TINY, "batch_size": BATCH, **values}, "the test")


def some(data: Split) -> Split:
    return Split(*(Part(*(tensor[:EXAMPLES] for tensor in part)) for part in data))


def trained(parameters: RunParameters, folder=None, **options) -> State:
    task = task_of(parameters)
    data = some(task.load(parameters.seed))
    options = {"report": lambda line: None, **options}
    return fit(new_model(parameters, task, data.train), data, task, parameters, folder, **options)


def column(state: State, name: str, split: str = "train") -> list[float]:
    return [row[name] for row in state.history if row["split"] == split]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_gives_the_same_run_to_the_last_bit():
    parameters = change(dropout=0.2)
    first = trained(parameters)
    torch.rand(3)  # what else the process draws does not matter
    second = trained(parameters)
    assert same(first.best, second.best) and column(first, "loss") == column(second, "loss")


FALLING = {"learning_rate": 5.0, "epochs": 5}  # with it the validation loss also rises


SETTINGS = {"seed": 43, "hidden_size": 9, "dropout": 0.5, "initialisation": "xavier", "epochs": 3}
SETTINGS |= {"learning_rate": 0.02, "steps": 5, "drop_last": True, "weight_decay": 0.1}
SETTINGS |= {"batch_size": 64, "clip_norm": 0.01, "schedule": "cosine"}


@pytest.mark.parametrize(
    ("setting", "base"),
    [
        *(({name: value}, {}) for name, value in SETTINGS.items()),
        *(({"optimiser": name}, {}) for name in ("adamw", "sgd")),
        ({"clip_norm": None}, {"clip_norm": 0.01}),
        ({"patience": 1}, FALLING),
        ({"min_delta": 100.0}, {"patience": 1, "epochs": 4}),
        ({"plateau_patience": 0}, FALLING),
        ({"plateau_factor": 0.1}, {**FALLING, "plateau_patience": 0}),
        ({"plateau_minimum": 5.0}, {**FALLING, "plateau_patience": 0}),
    ],
    ids=str,
)
def test_every_setting_has_an_effect(setting, base):
    states = [trained(change(**values)) for values in (base, {**base, **setting})]
    assert column(states[0], "loss") != column(states[1], "loss")


@pytest.mark.parametrize(
    ("budget", "steps", "epochs"),
    [({"steps": 1}, 1, 1), ({"steps": STEPS}, STEPS, 1), ({"steps": 11}, 11, 3),
     ({"epochs": 2}, 2 * STEPS, 2), ({"epochs": 2, "drop_last": True}, 2 * (STEPS - 1), 2)],
)  # fmt: skip
def test_a_budget_is_kept_and_the_schedule_spans_it(budget, steps, epochs):
    state = trained(change(**{"epochs": 50, "schedule": "cosine", **budget}))
    assert state.progress["epoch"] == epochs
    assert {each["step"].item() for each in state.optimiser.state.values()} == {steps}
    expected = [0.01 * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    assert column(state, "learning_rate") == pytest.approx(expected)


@pytest.mark.parametrize("model", ["lstm", "gru", "agru", "cornn"])
@pytest.mark.parametrize(("steps", "examples"), [(None, EXAMPLES), (2, 2 * BATCH)])
def test_every_model_sees_the_batches_of_its_seed_and_keeps_means_over_them(model, steps, examples):
    values = {"learning_rate": 1e-30, "weight_decay": 0.0, "epochs": 1, "steps": steps}
    parameters = change(model=model, **values)
    task = task_of(parameters)
    data = some(task.load(parameters.seed)).train
    order = torch.randperm(EXAMPLES, generator=generator(parameters.seed, "order"))[:examples]
    untrained, part = new_model(parameters, task, data), Part(*(tensor[order] for tensor in data))
    loss, accuracy, outputs = evaluate(untrained, part, task)
    assert loss == pytest.approx(F.cross_entropy(outputs, part.targets).item(), rel=1e-6)
    row = trained(parameters).history[0]
    assert row["loss"] == pytest.approx(loss, rel=1e-5) and row["accuracy"] == accuracy


@pytest.mark.parametrize(("best_by", "epoch"), [("score", 4), ("loss", 5)])
def test_the_best_epoch_is_the_earliest_best_on_validation(best_by, epoch):
    values = {"model": "gru", "seed": 8, "learning_rate": 1.0, "schedule": "none"}
    state = trained(change(**values, epochs=8, best_by=best_by))
    scores, losses = (column(state, name, "validation") for name in ("accuracy", "loss"))
    assert scores.index(max(scores)) == 3 and scores.count(max(scores)) == 2
    assert losses.index(min(losses)) == 4 and state.progress["best_epoch"] == epoch
    assert same(trained(change(**values, epochs=epoch)).model.state_dict(), state.best)


def test_early_stopping_counts_epochs_without_a_fall():
    state = trained(change(epochs=9, patience=2, min_delta=100.0))
    assert state.progress["epoch"] == 3  # the first falls from infinity, the next two do not


def test_matrix_and_step_size_are_tracked_from_the_start_to_every_epoch():
    state = trained(change(epochs=2))
    matrices = [each["matrix"] for each in state.tracked]
    assert len(matrices) == 3 and not torch.equal(matrices[0], matrices[2])
    assert torch.equal(matrices[2], state.model.cell.recurrent_matrix())
    assert torch.equal(state.tracked[2]["step_size"], state.model.cell.step_size())
    frozen = trained(change(recurrence="frozen", weight_decay=0.5)).tracked
    assert torch.equal(frozen[0]["matrix"], frozen[-1]["matrix"])


@pytest.mark.parametrize(
    ("itself", "name", "expected"), [(False, "log_epsilon", 0.0), (True, "epsilon", 0.5)]
)
def test_weight_decay_leaves_the_step_size_alone_unless_it_is_trained_itself(
    itself, name, expected
):
    parameters = change(weight_decay=0.5, epsilon_itself=itself)
    model = new_model(parameters, task_of(parameters), task_of(parameters).load(42).train)
    groups = training.make_optimiser(model, parameters).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(getattr(model.cell, name))] == expected
    assert decay[id(model.cell.candidate_weight)] == 0.5
    assert len(decay) == len(list(model.parameters()))


def test_a_loss_that_is_not_finite_ends_training_with_its_place():
    with pytest.raises(UserError, match="agru-seed42: the loss is not finite in epoch 1;"):
        trained(change(optimiser="sgd", learning_rate=1e30, clip_norm=None))


def killed(line: str) -> None:
    if "epoch   3" in line:
        raise KeyboardInterrupt


@pytest.mark.parametrize("gpus", [0, 9])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, gpus):
    parameters = change(epochs=5, dropout=0.3, schedule="plateau", plateau_patience=0)
    whole, lines = trained(parameters), []
    with pytest.raises(KeyboardInterrupt):
        trained(parameters, tmp_path, report=killed)
    checkpoint = read_checkpoint(tmp_path)
    checkpoint["dropout_cuda"] = [torch.zeros(16, dtype=torch.uint8)] * gpus  # not all are here
    resumed = trained(parameters, tmp_path, checkpoint=checkpoint, report=lines.append)
    assert len(lines) == 2  # epochs 4 and 5 alone
    assert same(whole.best, resumed.best) and same(whole.initial, resumed.initial)
    assert column(whole, "loss") == column(resumed, "loss")
    assert len(whole.tracked) == len(resumed.tracked) == 6


@pytest.mark.parametrize("damage", ["truncated", "of another program", "a byte"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    assert read_checkpoint(tmp_path) is None
    trained(change(), tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] if damage != "a byte" else whole.replace(b"stamp", b"st\x84mp"))
    if damage == "of another program":
        torch.save({"model": {}}, path)
    lines = []
    assert read_checkpoint(tmp_path, lines.append) is None
    assert lines[0].startswith(f"{path} is damaged, so training starts again")


@pytest.mark.parametrize(("precision", "rounds"), [("highest", False), ("medium", True)])
def test_torchs_own_cells_round_on_a_gpu_only_if_products_may(precision, rounds):
    before = torch.backends.cudnn.allow_tf32
    with training.arithmetic(precision):
        assert torch.backends.cudnn.allow_tf32 == rounds
        assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == before


def test_denormal_numbers_are_zero_within_a_training_that_makes_a_probe():
    small = torch.tensor(1e-40)
    with training.arithmetic("highest"):
        with training.arithmetic("highest"):  # that of the probe
            pass
        assert small * 1 == 0
    assert small * 1 > 0
