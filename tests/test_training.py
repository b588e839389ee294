import math
import os
import zipfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from torch.nn import functional as F

from rnnbench_nb import runs, training
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.model import build_model
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.report import load_run
from rnnbench_nb.runs import train_run
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import TASKS
from rnnbench_nb.tasks.base import Part
from rnnbench_nb.training import arithmetic, evaluate, fit

QUIET = {"report": lambda line: None}


def change(parameters, **values):
    """The parameters with other values, those of another cell without this one's options."""
    there = parameters.flat() if "model" not in values else TINY
    return run_parameters({**there, **values}, "the test")


def data_of(parameters):
    task = TASKS[parameters.task](parameters.task_options)
    return task, task.load(parameters.seed)


def model_of(parameters):
    return build_model(parameters, 8, 10, generator(parameters.seed, "initialisation"))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("model", CELLS)
def test_same_seed_same_run_to_the_last_bit(tiny, tmp_path, model):
    parameters = change(tiny, model=model, dropout=0.2)
    first = train_run(parameters, tmp_path / "a", **QUIET)
    torch.rand(3)  # what else was drawn in the process is no matter
    second = train_run(parameters, tmp_path / "b", **QUIET)
    assert same(first.model.state_dict(), second.model.state_dict())
    timeless = ["epoch", "split", "loss", "accuracy", "gradient_norm"]
    assert first.history[timeless].equals(second.history[timeless])
    assert first.record["test"] == second.record["test"]


FALLING = {"learning_rate": 5.0, "epochs": 5}  # so that the validation loss also rises


@pytest.mark.parametrize(
    ("setting", "base"),
    [
        ({"model": "gru"}, {}), ({"reading": "pixel"}, {}), ({"seed": 43}, {}),
        ({"hidden_size": 9}, {}), ({"dropout": 0.5}, {}), ({"initial_scale": 0.5}, {}),
        ({"gamma": 0.5}, {}), ({"epsilon": 0.5}, {}), ({"learnable_epsilon": False}, {}),
        ({"recurrence": "frozen"}, {}), ({"recurrence": "free"}, {}),
        ({"batch_size": 64}, {}), ({"epochs": 3}, {}), ({"learning_rate": 0.02}, {}),
        ({"steps": 11}, {}), ({"training_examples": 1000}, {}),
        ({"permutation": "bit_reversal"}, {"reading": "pixel"}),
        ({"optimiser": "adamw"}, {}), ({"optimiser": "sgd"}, {}), ({"weight_decay": 0.1}, {}),
        ({"clip_norm": 0.01}, {}), ({"clip_norm": None}, {"clip_norm": 0.01}),
        ({"schedule": "cosine"}, {}),
        ({"patience": 1}, FALLING), ({"min_delta": 100.0}, {"patience": 1, "epochs": 4}),
        ({"plateau_patience": 0}, FALLING),
        ({"plateau_factor": 0.1}, {**FALLING, "plateau_patience": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_has_an_effect(tiny, tmp_path, setting, base):
    runs = [
        train_run(change(tiny, **values), tmp_path / str(index), **QUIET)
        for index, values in enumerate((base, {**base, **setting}))
    ]
    assert list(runs[0].history["loss"]) != list(runs[1].history["loss"])


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tiny, tmp_path):
    parameters = change(tiny, epochs=5, dropout=0.3, schedule="plateau", plateau_patience=0)
    whole = train_run(parameters, tmp_path / "whole", **QUIET)

    def killed(line):
        if "epoch   3" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(parameters, tmp_path / "broken", report=killed)
    assert not (tmp_path / "broken/run.json").exists()
    lines = []
    resumed = train_run(parameters, tmp_path / "broken", report=lines.append)
    assert len(lines) == 2  # epochs 4 and 5 only
    for name in ("best", "initial", "recurrent", "outputs"):
        file = f"{name}.safetensors"
        assert (whole.folder / file).read_bytes() == (resumed.folder / file).read_bytes()
    timeless = ["epoch", "split", "loss", "accuracy", "learning_rate", "gradient_norm"]
    assert whole.history[timeless].equals(resumed.history[timeless])


STEPS = 10  # in an epoch of the 1,221 digits to train on


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [(5, None, 5), (5, 1, 1), (5, STEPS, 1), (5, STEPS + 1, 2), (5, 100, 5)],
)
def test_a_budget_holds_epochs_of_which_the_last_may_be_short(tiny, epochs, steps, expected):
    parameters = change(tiny, epochs=epochs, steps=steps)
    assert training.epochs_of(parameters, 1221) == expected
    assert training.epochs_of(parameters, STEPS * parameters.batch_size) == expected


def test_a_budget_in_steps_is_kept_to_the_step(tiny, tmp_path, monkeypatch):
    taken, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: taken.append(self.param_groups[0]["lr"]) or step(self),
    )
    parameters = change(tiny, epochs=50, steps=2 * STEPS + 3, schedule="cosine")
    run = train_run(parameters, tmp_path, **QUIET)
    assert len(taken) == 2 * STEPS + 3 and run.record["epochs"] == 3
    assert run.record["parameters"]["steps"] == 2 * STEPS + 3
    rates = [0.01 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]  # of all of it
    assert taken[::STEPS] == pytest.approx(rates)
    training_rows = run.history[run.history["split"] == "train"]
    assert training_rows["learning_rate"].to_list() == pytest.approx(rates)


def test_a_short_epoch_gives_the_means_of_what_it_saw(tiny, tmp_path):
    parameters = change(tiny, learning_rate=1e-30, weight_decay=0.0, steps=2)
    (task, data), model = data_of(parameters), model_of(parameters)
    order = torch.randperm(len(data.train.targets), generator=generator(tiny.seed, "order"))
    seen = order[: 2 * parameters.batch_size]
    expected, accuracy, _ = evaluate(model, Part(*(part[seen] for part in data.train)), task)
    row = fit(model, data, task, parameters, tmp_path, **QUIET).history[0]
    assert row["loss"] == pytest.approx(expected, rel=1e-5) and row["accuracy"] == accuracy


@pytest.mark.parametrize("damage", ["truncated", "of another program"])
def test_a_damaged_checkpoint_is_told_and_trained_over(tiny, tmp_path, damage):
    train_run(tiny, tmp_path, **QUIET)
    best = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "run.json").unlink()
    checkpoint = tmp_path / "checkpoint.pt"
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    else:
        torch.save({"parameters": "of long ago"}, checkpoint)
    lines = []
    train_run(tiny, tmp_path, report=lines.append)
    assert "checkpoint.pt is damaged: training starts again" in lines[0]
    assert (tmp_path / "best.safetensors").read_bytes() == best


def test_a_finished_run_is_read_not_trained_again(tiny, tmp_path, monkeypatch):
    first = train_run(tiny, tmp_path, **QUIET)
    monkeypatch.setattr(runs, "fit", None)
    assert train_run(tiny, tmp_path, **QUIET).record == first.record


def test_another_runs_folder_is_refused(tiny, tmp_path):
    train_run(tiny, tmp_path, **QUIET)
    with pytest.raises(UserError, match="holds a run with other parameters"):
        train_run(change(tiny, gamma=0.5), tmp_path, **QUIET)


def test_a_loss_that_is_not_finite_ends_the_run_and_is_recorded(tiny, tmp_path):
    parameters = change(tiny, optimiser="sgd", learning_rate=1e30, clip_norm=None)
    with pytest.raises(UserError, match=r"agru-seed42: the loss is (nan|inf) in epoch 1 at step"):
        train_run(parameters, tmp_path, **QUIET)
    record = load_run(tmp_path).record
    assert record["status"] == "failed"
    assert "the last finite loss was" in record["reason"]


def test_a_short_last_batch_counts_for_what_it_holds(tiny, tmp_path):
    parameters = change(tiny, learning_rate=1e-30, weight_decay=0.0, epochs=1)
    (task, data), model = data_of(parameters), model_of(parameters)
    expected, accuracy, _ = evaluate(model, data.train, task)
    row = fit(model, data, task, parameters, tmp_path, **QUIET).history[0]
    assert len(data.train.targets) % parameters.batch_size != 0
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert row["accuracy"] == accuracy


def test_evaluation_is_a_mean_over_examples(tiny):
    (task, data), model = data_of(tiny), model_of(tiny)
    loss, accuracy, logits = evaluate(model, data.train, task)
    with torch.no_grad():
        direct = model(task.inputs(data.train.inputs))
    torch.testing.assert_close(logits, direct)
    assert loss == pytest.approx(F.cross_entropy(direct, data.train.targets).item(), rel=1e-6)
    assert accuracy == (direct.argmax(1) == data.train.targets).double().mean().item()


def test_every_model_of_a_seed_sees_the_same_batches(tiny, tmp_path, monkeypatch):
    seen, kind = {}, TASKS[tiny.task]
    inputs = kind.inputs

    def spy(task, stored):
        seen.setdefault(current, []).append(stored.sum().item())
        return inputs(task, stored)

    monkeypatch.setattr(kind, "inputs", spy)
    for current in CELLS:
        train_run(change(tiny, model=current), tmp_path / current, **QUIET)
    assert len(seen) >= 3 and all(each == seen["gru"] for each in seen.values())


def test_the_test_images_are_read_once_and_last(tiny, tmp_path, monkeypatch):
    reads = []

    def spy(model, part, task):
        reads.append(len(part.targets))
        return evaluate(model, part, task)

    for module in (training, runs):
        monkeypatch.setattr(module, "evaluate", spy)
    run = train_run(tiny, tmp_path, **QUIET)
    sizes = run.record["data"]
    assert Counter(reads) == {sizes["validation"]: tiny.epochs, sizes["test"]: 1}
    assert reads[-1] == sizes["test"]


def test_the_best_epoch_is_by_validation_loss_if_asked_for(tiny, tmp_path):
    parameters = change(tiny, model="gru", seed=2, epochs=8, learning_rate=0.2, best_by="loss")
    run = train_run(parameters, tmp_path, **QUIET)
    validation = run.history[run.history["split"] == "validation"].set_index("epoch")
    assert run.record["best_epoch"] == validation["loss"].idxmin()
    assert run.record["best_epoch"] != validation["accuracy"].idxmax()  # so it is told apart


def test_an_incomplete_batch_is_dropped_if_asked_for(tiny, tmp_path, monkeypatch):
    sizes = []
    kind = TASKS[tiny.task]
    losses = kind.losses

    def spy(self, outputs, targets, reduction):
        sizes.append(len(targets))
        return losses(self, outputs, targets, reduction)

    monkeypatch.setattr(kind, "losses", spy)
    whole = tiny.batch_size
    for drop, incomplete in ((False, 1), (True, 0)):
        sizes.clear()
        run = train_run(change(tiny, epochs=1, drop_last=drop), tmp_path / str(drop), **QUIET)
        batches = sizes[:-2]  # the others are validation and test
        examples = run.record["data"]["train"]
        assert examples % whole and len(batches) == examples // whole + incomplete
        assert sum(batches) == (examples if incomplete else examples // whole * whole)


def test_the_rate_on_a_plateau_has_a_minimum(tiny):
    parameters = change(tiny, plateau_patience=0, plateau_minimum=4e-4)
    state = training._State(model_of(parameters), parameters, 9)
    for _ in range(9):
        state.schedule.step(1.0)
    assert state.optimiser.param_groups[0]["lr"] == 4e-4


def test_the_best_epoch_is_by_validation_accuracy(tiny, tmp_path):
    run = train_run(change(tiny, epochs=6, learning_rate=0.1), tmp_path, **QUIET)
    validation = run.history[run.history["split"] == "validation"].set_index("epoch")
    assert run.record["best_epoch"] == validation["accuracy"].idxmax()
    task, data = data_of(tiny)
    _, accuracy, _ = evaluate(run.model, data.validation, task)
    assert accuracy == validation["accuracy"].max()
    # The weights that are scored are the weights of that epoch: the matrix is the tracked one.
    matrix = run.model.cell.recurrent_matrix().detach().numpy()
    assert (matrix == run.recurrent["matrix"][run.record["best_epoch"]]).all()
    assert len(run.recurrent["step_size"]) == 7


def test_early_stopping_counts_epochs_without_a_fall(tiny, tmp_path):
    run = train_run(change(tiny, epochs=9, patience=2, min_delta=100.0), tmp_path, **QUIET)
    assert run.record["epochs"] == 3  # the first epoch falls from infinity, the next two do not


def test_weight_decay_leaves_the_step_size_alone(tiny):
    model = model_of(tiny)
    groups = training._optimiser(model, change(tiny, weight_decay=0.5)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.cell.log_epsilon)] == 0.0
    assert decay[id(model.cell.candidate_weight)] == 0.5
    assert len(decay) == len(list(model.parameters()))


def test_a_frozen_matrix_stays_and_weight_decay_cannot_reach_it(tiny, tmp_path):
    parameters = change(tiny, recurrence="frozen", weight_decay=0.5)
    run = train_run(parameters, tmp_path, **QUIET)
    assert (run.recurrent["matrix"] == run.recurrent["matrix"][0]).all()
    assert run.record["parameter_count"] == run.record["free_parameter_count"]


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_epsilon_stays_positive(tiny, tmp_path, kind):
    parameters = change(tiny, optimiser=kind, epsilon=1e-3, learning_rate=0.5, epochs=3)
    assert (train_run(parameters, tmp_path, **QUIET).recurrent["step_size"] > 0).all()


def test_an_asked_for_gpu_that_is_not_there_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    with pytest.raises(UserError, match="device: 'cuda' is asked for but no GPU is found"):
        runs.device_of(change(tiny, device="cuda"))
    assert runs.device_of(tiny).type == "cpu"


@pytest.mark.skipif("RNNBENCH_DATA" not in os.environ, reason="RNNBENCH_DATA names no real MNIST")
@pytest.mark.parametrize("model", CELLS)
def test_one_epoch_of_real_mnist(model, tmp_path):
    values = {"model": model, "epochs": 1, "learning_rate": 1e-2}  # slow learners get there too
    parameters = run_parameters(values, "the test")
    (task, data), random = data_of(parameters), generator(42, "initialisation")
    data = data._replace(train=Part(data.train.inputs[:12_800], data.train.targets[:12_800]))
    state = fit(build_model(parameters, 28, 10, random), data, task, parameters, tmp_path, **QUIET)
    assert state.history[1]["accuracy"] > 0.3  # chance is 0.1, and these are 100 steps
    assert math.isfinite(state.history[0]["gradient_norm"])


@pytest.fixture
def project(monkeypatch, tmp_path):
    """A project of its own, whose reports a run may be taken from."""
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    return tmp_path / "reports"


def test_a_run_that_another_report_has_is_taken_from_there(tiny, project, monkeypatch):
    named = change(tiny, variant="first")
    first = train_run(named, project / "a/runs/first-seed42", **QUIET)
    monkeypatch.setattr(runs, "fit", None)  # nothing is trained
    lines = []
    second = train_run(
        change(tiny, variant="second"), project / "b/runs/second-seed42", report=lines.append
    )
    assert lines == [
        "second-seed42 is finished in reports/a/runs/first-seed42: it is taken from there, not "
        "trained again."
    ]
    assert second.record["taken_from"] == "reports/a/runs/first-seed42"
    assert second.record["variant"] == "second" == second.parameters.variant
    assert set(second.history["variant"]) == {"second"}
    assert same(first.model.state_dict(), second.model.state_dict())
    assert second.record["test"] == first.record["test"]


@pytest.mark.parametrize("difference", ["parameters", "code", "data", "precision", "weights"])
def test_a_run_that_differs_is_not_taken(tiny, project, monkeypatch, difference):
    train_run(tiny, project / "a/runs/agru-seed42", **QUIET)
    wanted = change(tiny, gamma=0.5) if difference == "parameters" else tiny
    if difference == "code":
        monkeypatch.setattr(runs, "fingerprint", lambda model, task: "of other code")
    if difference == "data":
        described = runs._described
        monkeypatch.setattr(runs, "_described", lambda *a: described(*a) | {"hash": "another"})
    if difference == "precision":
        monkeypatch.setattr(runs, "arithmetic", lambda precision: arithmetic("medium"))
    if difference == "weights":
        (project / "a/runs/agru-seed42/best.safetensors").unlink()
    lines = []
    train_run(wanted, project / "b/runs/agru-seed42", report=lines.append)
    assert "epoch   1" in lines[0]


def test_a_checkpoint_of_other_code_is_told_and_trained_over(tiny, tmp_path, monkeypatch):
    train_run(tiny, tmp_path, **QUIET)
    (tmp_path / "run.json").unlink()
    monkeypatch.setattr(training, "fingerprint", lambda model, task: "of other code")
    lines = []
    train_run(tiny, tmp_path, report=lines.append)
    assert "checkpoint.pt is of other code than stands here: training starts again" in lines[0]


def on_a_gpu(content, path):
    """Save a checkpoint as a machine with a GPU would, which is where its tensors say they are."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, part in parts.items():
            if name.endswith("/data.pkl"):  # a text in a pickle has its length before it
                assert (cpu := b"X\x03\0\0\0cpu") in part
                part = part.replace(cpu, b"X\x06\0\0\0cuda:0")
            file.writestr(name, part)


@pytest.mark.parametrize("there, here", [(1, 0), (2, 0), (2, 1)])
def test_a_checkpoint_of_gpus_goes_on_where_there_are_fewer(
    tiny, tmp_path, monkeypatch, there, here
):
    whole = train_run(tiny, tmp_path / "whole", **QUIET)

    def killed(line):
        if "epoch   2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(change(tiny, epochs=3), tmp_path / "run", report=killed)
    path = tmp_path / "run/checkpoint.pt"
    states = [torch.zeros(16, dtype=torch.uint8)] * there
    on_a_gpu({**torch.load(path, weights_only=True), "dropout_cuda": states}, path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", None)  # of GPUs that are not here
    assert runs.partial(path.parent)[0]["epochs"] == 2
    lines = []
    again = train_run(change(tiny, epochs=3), tmp_path / "run", report=lines.append)
    assert "epoch   3" in lines[0] and len(again.history) == len(whole.history) + 2


def test_answers_are_kept_in_a_type_that_holds_them():
    narrow = runs._narrow(label=np.array([0, 300]), predicted=np.array([0, 1]))
    assert narrow["label"].tolist() == [0, 300] and narrow["label"].dtype == np.uint16
    assert runs._narrow(label=np.array([0, 9]))["label"].dtype == np.uint8
    assert runs._narrow(label=np.array([-1, 9]))["label"].tolist() == [-1, 9]
    assert runs._narrow(label=np.array([0.25]))["label"].tolist() == [0.25]


@pytest.mark.parametrize("precision, rounds", [("highest", False), ("medium", True)])
def test_torchs_own_cells_round_on_a_gpu_only_where_products_may(precision, rounds):
    before = torch.backends.cudnn.allow_tf32
    with arithmetic(precision):
        assert torch.backends.cudnn.allow_tf32 == rounds
    assert torch.backends.cudnn.allow_tf32 == before
