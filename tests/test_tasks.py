"""The tasks of long memory: what they ask, what they need no memory for, what they refuse."""

import hashlib
import math
import os

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnnbench_nb.errors import UserError
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.provenance import _sources
from rnnbench_nb.report import Report, read_csv, said, verify, write_tables
from rnnbench_nb.runs import train_run
from rnnbench_nb.tasks import TASKS, images
from rnnbench_nb.tasks import data as download
from rnnbench_nb.training import evaluate

QUIET = {"report": lambda line: None}
SYNTHETIC = ["adding_problem", "copying_memory"]


def parameters_of(name, **options):
    small = {"model": "agru", "task": name, "hidden_size": 8, **TASKS[name].tiny, **options}
    return run_parameters(small, "the test")


def task_of(name, **options):
    return TASKS[name](parameters_of(name, **options).task_options)


# Permutations of pixels


def test_permutations_are_the_published_ones():
    for seed in (12008, 5544):
        torch.manual_seed(seed)  # as the papers' code draws them
        assert torch.equal(images.permutation(f"torch_{seed}", 784), torch.randperm(784))
    for seed in (92916, 0):
        np.random.seed(seed)  # noqa: NPY002
        theirs = np.random.permutation(784)  # noqa: NPY002
        assert (images.permutation(f"numpy_{seed}", 784).numpy() == theirs).all()
    numbers = list(range(1024))  # as S4 does: halves laid side by side, again and again
    rows = [[number] for number in numbers]
    while len(rows) > 1:
        half = len(rows) // 2
        rows = [first + second for first, second in zip(rows[:half], rows[half:], strict=True)]
    theirs = [number for number in rows[0] if number < 784]
    assert images.permutation("bit_reversal", 784).tolist() == theirs
    assert images.permutation("bit_reversal", 8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


@pytest.mark.parametrize("name", images.PERMUTATIONS)
def test_a_permutation_is_one_and_has_its_own_hash(name):
    order = images.permutation(name, 784)
    assert order.dtype == torch.int64 and sorted(order.tolist()) == list(range(784))
    little = b"".join(int(i).to_bytes(8, "little") for i in order)
    assert images.permutation_hash(name, 784) == hashlib.sha256(little).hexdigest()[:16]
    hashes = {images.permutation_hash(other, 784) for other in images.PERMUTATIONS}
    assert len(hashes) == len(images.PERMUTATIONS)


def test_hashes_of_permutations_never_change():
    found = {name: images.permutation_hash(name, 784) for name in images.PERMUTATIONS}
    assert found == {
        "torch_12008": "f4113bc8ae789021", "torch_5544": "88c77bc3e243c77b",
        "numpy_92916": "96240fe27409981c", "numpy_0": "fe62e3fef305ce16",
        "bit_reversal": "30d91dc29f161321",
    }  # fmt: skip


def test_a_permutation_reorders_the_pixels_and_is_named_with_its_hash():
    one = task_of("image_sequence", reading="pixel", permutation="numpy_0")
    stored = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    order = images.permutation("numpy_0", 64)
    assert torch.equal((255 * one.inputs(stored)).round()[0, :, 0].long(), order)
    digest = images.permutation_hash("numpy_0", 64)
    assert one.describe()["permutation_hash"] == digest
    said = one.sentence({**one.describe(), "steps": 64, "input_size": 1})
    assert f"read by pixel, permuted by numpy_0 ({digest}): 64 steps of 1" in said
    assert "permutation" not in task_of("image_sequence").describe()


def test_fewer_training_images_are_the_first_of_the_same_split():
    whole, part = (task_of("image_sequence", training_examples=n).load(42) for n in (None, 100))
    assert torch.equal(part.train.inputs, whole.train.inputs[:100])
    assert torch.equal(part.train.targets, whole.train.targets[:100])
    assert torch.equal(part.validation.inputs, whole.validation.inputs)
    with pytest.raises(UserError, match="training_examples: digits has 1,221, not 9,999; give"):
        task_of("image_sequence", training_examples=9999).load(42)


# Rows, then noise


def noise_of(part, length=28, rows=8):
    return task_of("noise_padded", padded_length=length).inputs(part)[:, rows:]


def test_noise_follows_the_rows_and_is_uniform():
    one, plain = task_of("noise_padded", padded_length=60), task_of("image_sequence")
    stored, pictures = one.load(42).train.inputs[:200], plain.load(42).train.inputs[:200]
    found = one.inputs(stored)
    assert found.shape == (200, 60, 8) and found.dtype == torch.float32
    assert torch.equal(found[:, :8], plain.inputs(pictures))
    values = found[:, 8:].double()  # 83,200 of them
    assert 0 <= values.min() and values.max() < 1
    error = 1 / math.sqrt(values.numel())
    assert abs(values.mean() - 1 / 2) < 4 * error * math.sqrt(1 / 12)
    assert abs(values.square().mean() - 1 / 3) < 4 * error * math.sqrt(4 / 45)
    assert abs(np.corrcoef(values[:, 0, 0], values[:, 0, 1])[0, 1]) < 0.3


def test_noise_is_of_the_image_whoever_asks_and_in_whatever_batch():
    stored = task_of("noise_padded").load(42).train.inputs
    torch.manual_seed(1)
    alone = torch.cat([noise_of(stored[i : i + 1]) for i in (5, 3)])
    assert torch.equal(alone, noise_of(stored[[5, 3]]))
    again = task_of("noise_padded", training_examples=6).load(42).train.inputs
    assert torch.equal(noise_of(again[[5, 3]]), alone)
    assert torch.equal(noise_of(stored[[5, 3]], 40)[:, :20], alone)  # longer: the same, then more


def test_fewer_validation_images_are_the_first_of_all():
    whole, fewer = (task_of("noise_padded", validation_examples=n).load(42) for n in (None, 7))
    assert len(fewer.validation.targets) == 7 and len(fewer.test.targets) == len(whole.test.targets)
    assert torch.equal(fewer.validation.inputs, whole.validation.inputs[:7])
    assert torch.equal(fewer.train.inputs, whole.train.inputs)


def test_noise_differs_between_images_parts_and_seeds_but_not_for_the_test_images():
    parts = [*task_of("noise_padded").load(42), *task_of("noise_padded").load(43)]
    firsts = [noise[0].numpy().tobytes() for noise in (noise_of(p.inputs[:1]) for p in parts)]
    assert len(set(firsts)) == 5 and firsts[2] == firsts[5]
    keys = torch.cat([part.inputs[:, -1] for part in parts[:3]])
    assert len(keys.unique(dim=0)) == len(keys) == 1797
    # The key is the seed, the part and the place: noise by hand.
    key = 42 << 32 | 1 << 30 | 7
    theirs = np.random.Generator(np.random.Philox(key=key)).random((20, 8), dtype=np.float32)
    assert (noise_of(parts[1].inputs[7:8])[0].numpy() == theirs).all()


def test_the_largest_seed_has_noise_of_its_own():
    noise = noise_of(task_of("noise_padded").load(2**32 - 1).train.inputs[:2])
    assert not torch.equal(noise[0], noise[1])


def test_after_the_noise_nothing_is_left_for_a_model_without_memory():
    one = task_of("noise_padded")
    assert one.memoryless(one.load(42)) < 0.2  # chance is 0.1
    said = one.sentence({**one.describe(), "steps": 28, "input_size": 8})
    assert said.endswith("read by row, then uniform noise: 28 steps of 8")


def test_code_that_a_task_builds_on_is_in_its_fingerprint():
    files = [path.name for path in _sources("gru", "noise_padded")]
    assert {"noise.py", "images.py"} <= set(files)
    assert "noise.py" not in [path.name for path in _sources("gru", "image_sequence")]


# The adding problem


@pytest.mark.parametrize("length", [2, 7, 50])
def test_sums_are_of_the_two_marked_values(length):
    part = task_of("adding_problem", length=length).load(42).train
    values, marks = part.inputs.unbind(2)
    assert part.inputs.shape == (640, length, 2) and (0 <= values).all() and (values < 1).all()
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    for half in (marks[:, : length // 2], marks[:, length // 2 :]):
        assert (half.sum(1) == 1).all()
        assert half.any(0).all()  # each step of the half is marked in some example
    for row, total in zip(part.inputs.tolist(), part.targets.tolist(), strict=True):
        assert total == pytest.approx(sum(value for value, mark in row if mark))


def test_errors_of_sums_by_hand():
    one = task_of("adding_problem")
    outputs, targets = torch.tensor([[1.0], [0.5]]), torch.tensor([0.5, 0.5])
    assert one.losses(outputs, targets).tolist() == [0.25, 0.0]
    assert one.losses(outputs, targets, "mean").item() == 0.125
    found = METRICS[one.metrics].values(targets.numpy(), one.answers(outputs).numpy())
    assert found == {"negative_mse": -0.125}


def test_without_memory_a_sum_is_known_up_to_a_sixth():
    one = task_of("adding_problem", training_examples=50_000)
    sums = one.load(42).train.targets.double()
    squares = (sums - 1).square()  # of the best constant
    error = (squares.std() / math.sqrt(len(sums))).item()
    assert abs(squares.mean().item() - one.memoryless_loss()) < 4 * error
    assert abs(sums.mean().item() - 1) < 4 * math.sqrt(1 / 6 / len(sums))
    assert one.memoryless(None) == -one.memoryless_loss() == -1 / 6
    assert one.describe() == {"length": 8, "memoryless_loss": 1 / 6}


# Copying memory


def test_symbols_come_first_and_are_wanted_last():
    one = task_of("copying_memory", delay=3)
    part = one.load(42).train
    inputs, symbols = one.inputs(part.inputs[:4]), part.targets[:4]
    assert inputs.shape == (4, 23, 10) and (inputs.sum(2) == 1).all()
    tokens = inputs.argmax(2)
    assert torch.equal(tokens[:, :10], symbols) and symbols.min() >= 1 and symbols.max() <= 8
    assert (tokens[:, 12] == 9).all()  # T - 1 blanks, then the sign
    assert (tokens[:, [10, 11, *range(13, 23)]] == 0).all()
    counts = part.targets.flatten().bincount(minlength=9)
    assert counts[0] == 0 and abs(counts[1:] - 800).max() < 4 * math.sqrt(800)


def test_losses_of_symbols_are_means_over_all_steps():
    one = task_of("copying_memory", delay=3)
    symbols = torch.randint(1, 9, (2, 10), generator=torch.Generator().manual_seed(0))
    outputs = torch.randn(2, 23, 9, generator=torch.Generator().manual_seed(1))
    chances = outputs.softmax(2)
    losses = [
        -sum(math.log(chances[b, t, 0 if t < 13 else symbols[b, t - 13]]) for t in range(23)) / 23
        for b in range(2)
    ]
    torch.testing.assert_close(one.losses(outputs, symbols), torch.tensor(losses))
    last = -outputs[:, -1].log_softmax(1)[[0, 1], symbols[:, -1]]
    torch.testing.assert_close(one.losses(outputs[:, -1:], symbols[:, -1:]), last)
    answers = one.answers(outputs)
    assert torch.equal(answers, outputs[:, 13:].argmax(2))
    right = [[1.0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0], [1.0] * 10]
    predicted = torch.where(torch.tensor(right) > 0, symbols, symbols % 8 + 1)
    assert one.scores(symbols.numpy(), predicted.numpy()).tolist() == [0.2, 1.0]
    assert METRICS[one.metrics].values(symbols.numpy(), predicted.numpy()) == {"recalled": pytest.approx(0.6)}


def test_without_memory_copying_costs_ten_symbols_of_eight():
    one = task_of("copying_memory", delay=100)
    assert one.memoryless_loss() == pytest.approx(10 * math.log(8) / 120)
    # The best that depends on the step alone: blanks for certain, then each symbol alike.
    best = torch.full((50, 120, 9), -1e9)
    best[:, :110, 0] = 0.0
    best[:, 110:, 1:] = 0.0
    targets = one.load(42).test.targets
    assert one.losses(best, targets, "mean").item() == pytest.approx(one.memoryless_loss())
    # And an optimiser of scores that depend on the step alone finds nothing below it.
    scores = torch.zeros(1, 120, 9, requires_grad=True)
    optimiser = torch.optim.Adam([scores], lr=0.3)
    many = one.draw(20_000, torch.Generator().manual_seed(0)).targets
    frequencies = torch.zeros(120, 9)
    frequencies[:110, 0] = 1.0
    frequencies[110:, 1:] = torch.stack([(many == k).double().mean(0) for k in range(1, 9)], 1)
    for _ in range(300):
        optimiser.zero_grad()
        loss = F.cross_entropy(scores[0], frequencies)
        loss.backward()
        optimiser.step()
    assert loss.item() == pytest.approx(one.memoryless_loss(), rel=2e-3)
    assert one.memoryless(None) == 1 / 8


# Both


@pytest.mark.parametrize("name", SYNTHETIC)
def test_parts_share_nothing_and_the_test_part_is_of_no_seed(name):
    one, other = task_of(name).load(42), task_of(name).load(0)
    assert [len(part.targets) for part in one] == [640, 60, 50]
    rows = {tuple(row) for part in one for row in part.targets.view(len(part.targets), -1).tolist()}
    assert len(rows) > 740  # of 750: sums and symbols hardly ever agree by chance
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert not torch.equal(one.validation.inputs, other.validation.inputs)
    fewer = task_of(name, training_examples=30).load(42)
    assert torch.equal(fewer.validation.inputs, one.validation.inputs)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_run_under_a_budget_of_steps_goes_on_to_the_same_weights(name, tmp_path):
    parameters = parameters_of(name, steps=12, schedule="cosine", learning_rate=0.01)  # 5 an epoch
    whole = train_run(parameters, tmp_path / "whole", **QUIET)

    def killed(line):
        if "epoch   2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(parameters, tmp_path / "broken", report=killed)
    lines = []
    again = train_run(parameters, tmp_path / "broken", report=lines.append)
    assert len(lines) == 1 and whole.record["epochs"] == 3
    for file in ("best", "outputs", "predicted"):
        file = f"{file}.safetensors"
        assert (whole.folder / file).read_bytes() == (again.folder / file).read_bytes()
    timeless = ["epoch", "split", "loss", whole.task.score.name, "learning_rate"]
    assert whole.history[timeless].equals(again.history[timeless])


@pytest.mark.parametrize("name", TASKS)
def test_a_report_of_any_task_has_tables_that_are_verified(name, tmp_path):
    small = {"models": ["gru", "agru"], "task": name, "hidden_size": 8, "epochs": 1}
    values = {**small, **TASKS[name].tiny}
    text = "\n".join(f"{key}: {value}" for key, value in values.items())
    (tmp_path / "protocol.yaml").write_text(text)
    for parameters in Report(tmp_path).protocol.at(42):
        train_run(parameters, tmp_path / "runs" / parameters.run, **QUIET)
    found = Report(tmp_path)
    write_tables(found)
    score = found.task.score
    assert len(verify(found)) == 2 and not found.lost
    assert found.history[score.name].notna().all()
    table = read_csv(tmp_path / "results.csv")
    for run, value in zip(found.runs, table[score.name], strict=True):
        loss, mean, outputs = evaluate(run.model, run.task.load(42).test, run.task)
        assert value == pytest.approx(mean) and run.scores.mean() == pytest.approx(mean)
        assert run.record["test"]["loss"] == pytest.approx(loss)
        assert run.outputs.shape == outputs.shape
    assert said(score.name) in (tmp_path / "results_summary.md").read_text()


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("image_sequence", {"reading": "pixel", "permutation": "mine"},
         "permutation: input should be 'none', 'torch_12008', 'torch_5544', 'numpy_92916',"),
        ("image_sequence", {"permutation": "numpy_0"},
         "permutation: rows cannot be permuted; give reading: pixel, or none, but 'numpy_0'"),
        ("image_sequence", {"training_examples": 0}, "training_examples: input should be greater"),
        ("noise_padded", {"padded_length": 27},
         "padded_length: input should be greater than or equal to 28, but '27' is given."),
        ("noise_padded", {"reading": "pixel"}, "reading: input should be 'row', but 'pixel'"),
        ("adding_problem", {"length": 1},
         "length: input should be greater than or equal to 2, but '1' is given."),
        ("adding_problem", {"delay": 3}, "delay is an option of copying_memory, and nothing here"),
        ("copying_memory", {"delay": 0}, "delay: input should be greater than or equal to 1"),
        ("adding_problem", {"steps": 0}, "steps: input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_bad_options_get_one_sentence(name, options, sentence):
    with pytest.raises(UserError) as error:
        parameters_of(name, **options)
    assert str(error.value).startswith(f"the test: {sentence}") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_run_that_diverges_fails_with_its_epoch_and_step(name, tmp_path):
    wild = {"optimiser": "sgd", "learning_rate": 1e30, "clip_norm": None}
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch 1 at step \d"):
        train_run(parameters_of(name, **wild), tmp_path, **QUIET)


@pytest.mark.skipif("RNNBENCH_DATA" not in os.environ, reason="RNNBENCH_DATA names no real MNIST")
def test_real_pixels_are_permuted():
    one = task_of("image_sequence", dataset="mnist", reading="pixel", permutation="torch_12008")
    stored = download.load("mnist").test_images[:2]
    flat = stored.view(2, 784).float() / 255
    order = images.permutation("torch_12008", 784)
    assert torch.equal(one.inputs(stored)[:, :, 0], flat[:, order])
    assert not torch.equal(one.inputs(stored)[:, :, 0], flat)
