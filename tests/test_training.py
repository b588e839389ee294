import math
import os
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from rnnbench_nb import training
from rnnbench_nb.config import RunParameters
from rnnbench_nb.data import Part, as_sequence
from rnnbench_nb.errors import UserError
from rnnbench_nb.models import build_model
from rnnbench_nb.results import load_run
from rnnbench_nb.seeds import generator
from rnnbench_nb.training import evaluate, fit, prepare, train_run

QUIET = {"report": lambda line: None}


def change(parameters, **values):
    return RunParameters(**{**parameters.model_dump(), **values})


def model_of(parameters):
    return build_model(parameters, 8, 10, generator(parameters.seed, "initialisation"))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("model", ["lstm", "gru", "agru"])
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
        ({"hidden_size": 9}, {}), ({"num_layers": 2}, {}), ({"dropout": 0.5}, {}),
        ({"gamma": 0.5}, {}), ({"epsilon": 0.5}, {}), ({"learnable_epsilon": False}, {}),
        ({"recurrence": "frozen"}, {}), ({"recurrence": "free"}, {}),
        ({"batch_size": 64}, {}), ({"epochs": 3}, {}), ({"learning_rate": 0.02}, {}),
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
    for name in ("best", "initial", "recurrent", "logits"):
        file = f"{name}.safetensors"
        assert (whole.folder / file).read_bytes() == (resumed.folder / file).read_bytes()
    timeless = ["epoch", "split", "loss", "accuracy", "learning_rate", "gradient_norm"]
    assert whole.history[timeless].equals(resumed.history[timeless])


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
    monkeypatch.setattr(training, "fit", None)
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
    parameters, data = prepare(change(tiny, learning_rate=1e-30, weight_decay=0.0, epochs=1))
    model = model_of(parameters)
    expected, accuracy, _ = evaluate(model, data.train, "row")
    row = fit(model, data, parameters, tmp_path, **QUIET).history[0]
    assert len(data.train.labels) % parameters.batch_size != 0
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert row["accuracy"] == accuracy


def test_evaluation_is_a_mean_over_images(tiny):
    parameters, data = prepare(tiny)
    model = model_of(parameters)
    loss, accuracy, logits = evaluate(model, data.train, "row")
    with torch.no_grad():
        direct = model(as_sequence(data.train.images, "row"))
    torch.testing.assert_close(logits, direct)
    assert loss == pytest.approx(F.cross_entropy(direct, data.train.labels).item(), rel=1e-6)
    assert accuracy == (direct.argmax(1) == data.train.labels).double().mean().item()


def test_every_model_of_a_seed_sees_the_same_batches(tiny, tmp_path, monkeypatch):
    seen = {}

    def spy(images, reading):
        seen.setdefault(current, []).append(images.sum().item())
        return as_sequence(images, reading)

    monkeypatch.setattr(training, "as_sequence", spy)
    for current in ("lstm", "gru", "agru"):
        train_run(change(tiny, model=current), tmp_path / current, **QUIET)
    assert seen["lstm"] == seen["gru"] == seen["agru"]


def test_the_test_images_are_read_once_and_last(tiny, tmp_path, monkeypatch):
    reads = []

    def spy(model, data, reading):
        reads.append(len(data.labels))
        return evaluate(model, data, reading)

    monkeypatch.setattr(training, "evaluate", spy)
    run = train_run(tiny, tmp_path, **QUIET)
    sizes = run.record["data"]
    assert Counter(reads) == {sizes["validation"]: tiny.epochs, sizes["test"]: 1}
    assert reads[-1] == sizes["test"]


def test_the_best_epoch_is_by_validation_accuracy(tiny, tmp_path):
    run = train_run(change(tiny, epochs=6, learning_rate=0.1), tmp_path, **QUIET)
    validation = run.history[run.history["split"] == "validation"].set_index("epoch")
    assert run.record["best_epoch"] == validation["accuracy"].idxmax()
    data = prepare(tiny)[1]
    _, accuracy, _ = evaluate(run.model, data.validation, "row")
    assert accuracy == validation["accuracy"].max()
    # The weights that are scored are the weights of that epoch: W is the tracked one.
    w = run.model.cell.weight_hh_l0[16:].detach().numpy()
    assert (w == run.recurrent["weight_hh"][run.record["best_epoch"]]).all()
    assert len(run.recurrent["epsilon"]) == 7


def test_early_stopping_counts_epochs_without_a_fall(tiny, tmp_path):
    run = train_run(change(tiny, epochs=9, patience=2, min_delta=100.0), tmp_path, **QUIET)
    assert run.record["epochs"] == 3  # the first epoch falls from infinity, the next two do not


def test_weight_decay_leaves_the_step_size_alone(tiny):
    model = model_of(tiny)
    groups = training._optimiser(model, change(tiny, weight_decay=0.5)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.cell.log_epsilon_l0)] == 0.0
    assert decay[id(model.cell.weight_hh_l0)] == 0.5
    assert len(decay) == len(list(model.parameters()))


def test_a_frozen_matrix_stays_and_weight_decay_cannot_reach_it(tiny, tmp_path):
    parameters = change(tiny, recurrence="frozen", weight_decay=0.5)
    w = train_run(parameters, tmp_path, **QUIET).recurrent["weight_hh"]
    assert (w == w[0]).all()


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_epsilon_stays_positive(tiny, tmp_path, kind):
    parameters = change(tiny, optimiser=kind, epsilon=1e-3, learning_rate=0.5, epochs=3)
    assert (train_run(parameters, tmp_path, **QUIET).recurrent["epsilon"] > 0).all()


def test_an_asked_for_gpu_that_is_not_there_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    with pytest.raises(UserError, match="device: 'cuda' is asked for but no GPU is found"):
        training.device_of(change(tiny, device="cuda"))
    assert training.device_of(tiny).type == "cpu"


@pytest.mark.skipif("RNNBENCH_DATA" not in os.environ, reason="RNNBENCH_DATA names no real MNIST")
@pytest.mark.parametrize("model", ["lstm", "gru", "agru"])
def test_one_epoch_of_real_mnist(model, tmp_path):
    parameters, data = prepare(RunParameters(model=model, epochs=1))
    classifier = build_model(parameters, 28, 10, generator(42, "initialisation"))
    part = Part(data.train.images[:12_800], data.train.labels[:12_800])
    data = type(data)(part, data.validation, data.test, data.class_names)
    state = fit(classifier, data, parameters, tmp_path, **QUIET)
    assert state.history[1]["accuracy"] > 0.3  # chance is 0.1, and these are 100 steps
    assert math.isfinite(state.history[0]["gradient_norm"])
