"""The loop: budgets, batches, choice of the epoch, checkpoints; on small parts of digits."""

import math

import pytest
import torch
from conftest import TINY
from torch.nn import functional as F

from rnnbench_nb import training
from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import epochs_of
from rnnbench_nb.protocol import RunParameters, run_parameters
from rnnbench_nb.runs import started, task_of
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
    return fit(started(parameters, task, data.train), data, task, parameters, folder, **options)


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


@pytest.mark.parametrize(
    ("setting", "base"),
    [
        ({"seed": 43}, {}), ({"hidden_size": 9}, {}), ({"dropout": 0.5}, {}),
        ({"initialisation": "xavier"}, {}), ({"batch_size": 64}, {}), ({"epochs": 3}, {}),
        ({"learning_rate": 0.02}, {}), ({"steps": 5}, {}), ({"drop_last": True}, {}),
        ({"optimiser": "adamw"}, {}), ({"optimiser": "sgd"}, {}), ({"weight_decay": 0.1}, {}),
        ({"clip_norm": 0.01}, {}), ({"clip_norm": None}, {"clip_norm": 0.01}),
        ({"schedule": "cosine"}, {}), ({"patience": 1}, FALLING),
        ({"min_delta": 100.0}, {"patience": 1, "epochs": 4}),
        ({"plateau_patience": 0}, FALLING),
        ({"plateau_factor": 0.1}, {**FALLING, "plateau_patience": 0}),
        ({"plateau_minimum": 5.0}, {**FALLING, "plateau_patience": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_has_an_effect(setting, base):
    states = [trained(change(**values)) for values in (base, {**base, **setting})]
    assert column(states[0], "loss") != column(states[1], "loss")


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [(5, None, 5), (5, 1, 1), (5, STEPS, 1), (5, STEPS + 1, 2), (5, 100, 5)],
)
def test_the_epochs_of_a_budget(epochs, steps, expected):
    assert epochs_of(change(epochs=epochs, steps=steps), EXAMPLES) == expected


def test_a_budget_of_steps_is_kept_and_the_schedule_spans_it(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: rates.append(self.param_groups[0]["lr"]) or step(self),
    )
    state = trained(change(epochs=50, steps=2 * STEPS + 3, schedule="cosine"))
    assert len(rates) == 2 * STEPS + 3 and state.progress["epoch"] == 3
    expected = [0.01 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert rates[::STEPS] == pytest.approx(expected)
    assert column(state, "learning_rate") == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "examples"), [(None, EXAMPLES), (2, 2 * BATCH)])
def test_training_numbers_are_means_over_the_examples_that_were_seen(steps, examples):
    parameters = change(learning_rate=1e-30, weight_decay=0.0, epochs=1, steps=steps)
    task = task_of(parameters)
    data = some(task.load(parameters.seed)).train
    order = torch.randperm(EXAMPLES, generator=generator(parameters.seed, "order"))[:examples]
    model = started(parameters, task, data)
    loss, accuracy, _ = evaluate(model, Part(*(tensor[order] for tensor in data)), task)
    row = trained(parameters).history[0]
    assert row["loss"] == pytest.approx(loss, rel=1e-5) and row["accuracy"] == accuracy


def test_evaluation_is_a_mean_over_examples():
    task = task_of(change())
    part = task.load(42).train
    model = started(change(), task, part)
    loss, accuracy, outputs = evaluate(model, part, task)
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(task.inputs(part.inputs)))
    assert loss == pytest.approx(F.cross_entropy(outputs, part.targets).item(), rel=1e-6)
    assert accuracy == (outputs.argmax(1) == part.targets).double().mean().item()


def test_every_model_of_a_seed_sees_the_same_batches(monkeypatch):
    seen, kind = {}, type(task_of(change()))
    inputs = kind.inputs

    def spy(task, stored):
        seen.setdefault(current, []).append(stored.sum().item())
        return inputs(task, stored)

    monkeypatch.setattr(kind, "inputs", spy)
    for current in ("lstm", "gru", "agru", "cornn"):
        trained(change(model=current, epochs=1))
    assert len(seen) == 4 and all(each == seen["gru"] for each in seen.values())


@pytest.mark.parametrize(("drop", "sizes"), [(False, [32, 32, 32, 4]), (True, [32, 32, 32])])
def test_an_incomplete_batch_is_dropped_if_asked_for(monkeypatch, drop, sizes):
    seen, kind = [], type(task_of(change()))
    losses = kind.losses
    monkeypatch.setattr(
        kind, "losses", lambda self, *args: seen.append(len(args[1])) or losses(self, *args)
    )
    trained(change(epochs=1, drop_last=drop))
    assert seen == [*sizes, EXAMPLES]  # the last are the validation examples


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


def test_weight_decay_leaves_the_step_size_alone():
    parameters = change(weight_decay=0.5)
    model = started(parameters, task_of(parameters), task_of(parameters).load(42).train)
    groups = training.make_optimiser(model, parameters).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.cell.log_epsilon)] == 0.0
    assert decay[id(model.cell.candidate_weight)] == 0.5
    assert len(decay) == len(list(model.parameters()))


def test_a_loss_that_is_not_finite_ends_training_with_its_place():
    with pytest.raises(UserError, match="agru-seed42: the loss is not finite in epoch 1;"):
        trained(change(optimiser="sgd", learning_rate=1e30, clip_norm=None))


def killed(line: str) -> None:
    if "epoch   3" in line:
        raise KeyboardInterrupt


@pytest.mark.parametrize("gpus", [None, 1])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, gpus):
    parameters = change(epochs=5, dropout=0.3, schedule="plateau", plateau_patience=0)
    whole, lines = trained(parameters), []
    with pytest.raises(KeyboardInterrupt):
        trained(parameters, tmp_path, report=killed)
    checkpoint = read_checkpoint(tmp_path)
    if gpus:  # of a machine with one that is not here
        checkpoint["dropout_cuda"] = [torch.zeros(16, dtype=torch.uint8)]
    resumed = trained(parameters, tmp_path, checkpoint=checkpoint, report=lines.append)
    assert len(lines) == 2  # epochs 4 and 5 alone
    assert same(whole.best, resumed.best) and same(whole.initial, resumed.initial)
    assert column(whole, "loss") == column(resumed, "loss")
    assert len(whole.tracked) == len(resumed.tracked) == 6


@pytest.mark.parametrize("damage", ["truncated", "of another program"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    assert read_checkpoint(tmp_path) is None
    trained(change(), tmp_path)
    path = tmp_path / "checkpoint.pt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(("precision", "rounds"), [("highest", False), ("medium", True)])
def test_torchs_own_cells_round_on_a_gpu_only_if_products_may(precision, rounds):
    before = torch.backends.cudnn.allow_tf32
    with training.arithmetic(precision):
        assert torch.backends.cudnn.allow_tf32 == rounds
        assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == before
