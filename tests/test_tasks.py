"""The tasks: images, permutations, noise, sums and symbols, and how answers are judged."""

import math

import numpy as np
import pytest
import torch

from rnnbench_nb.errors import UserError
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.tasks import TASKS, images
from rnnbench_nb.tasks.base import Part


def task_of(name, **options):
    return TASKS[name](TASKS[name].Options(**{**TASKS[name].tiny, **options}))


def values(task, label, predicted):
    return METRICS[task.metrics].values(np.asarray(label), np.asarray(predicted))


def test_metrics_of_classes_by_hand():
    # class 0: 2 of 3 found, 2 of 2 right; class 1: 1 of 1 found, 1 of 2 right
    by_hand = {"accuracy": 3 / 4, "precision": (1 + 1 / 2) / 2, "recall": (2 / 3 + 1) / 2}
    by_hand["f1"] = (4 / 5 + 2 / 3) / 2
    task = task_of("image_sequence")
    assert values(task, [0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx(by_hand)
    never = values(task, [0, 1], [0, 0])  # nobody says 1: precision 0
    assert never["precision"] == 1 / 4 and never["recall"] == 1 / 2


def test_losses_of_classes_by_hand():
    outputs, targets = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])
    losses = task_of("image_sequence").losses(outputs, targets)
    torch.testing.assert_close(losses, torch.tensor([math.log(2), math.log(4)]))


@pytest.mark.parametrize(("name", "most"), [("image_sequence", 0.6), ("noise_padded", 0.2)])
def test_a_model_without_memory_knows_little_of_a_digit(name, most):
    task = task_of(name)
    judged, score = task.memoryless(task.load(42))
    assert judged == "accuracy" and 0.05 < score < most  # chance is 0.1; the last row tells some


def test_a_split_is_disjoint_and_whole_and_follows_the_seed_alone():
    numbers = torch.arange(100)
    numbered = Part(numbers.to(torch.uint8).view(100, 1, 1), numbers)  # each its own number
    train, validation, test = images.split(numbered, numbered, seed=42)
    assert (len(train.targets), len(validation.targets)) == (85, 15) and test is numbered
    assert {*train.targets.tolist(), *validation.targets.tolist()} == set(range(100))
    for part in (train, validation):
        assert part.inputs.flatten().tolist() == part.targets.tolist()
    torch.manual_seed(1)
    again, other = (images.split(numbered, numbered, seed)[1].targets for seed in (42, 43))
    assert torch.equal(again, validation.targets) and not torch.equal(again, other)


@pytest.mark.parametrize(("reading", "shape"), [("row", (1, 2, 3)), ("pixel", (1, 6, 1))])
def test_images_are_read_from_the_top_left(reading, shape):
    stored = torch.arange(0, 256, 51, dtype=torch.uint8).view(1, 2, 3)
    inputs = task_of("image_sequence", reading=reading).inputs(stored)
    torch.testing.assert_close(inputs, torch.linspace(0, 1, 6).view(shape))


def test_fewer_images_are_the_first_of_the_same_split():
    whole = task_of("noise_padded").load(42)
    fewer = task_of("noise_padded", training_examples=100, validation_examples=7).load(42)
    for kept, part, other in zip((100, 7, 360), fewer, whole, strict=True):
        assert torch.equal(part.inputs, other.inputs[:kept]) and len(part.targets) == kept
        assert torch.equal(part.targets, other.targets[:kept])
    with pytest.raises(
        UserError, match="training_examples: digits has 1,221 training images, not 9,999; set"
    ):
        task_of("image_sequence", training_examples=9999).load(42)


@pytest.mark.parametrize("seed", [12008, 5544])
def test_a_permutation_reorders_the_pixels_as_the_papers_do(seed):
    task = task_of("image_sequence", reading="pixel", permutation=f"torch_{seed}")
    stored = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    torch.manual_seed(seed)  # as the papers' code draws it
    assert torch.equal((255 * task.inputs(stored)).round()[0, :, 0].long(), torch.randperm(64))


def noise_of(stored, length=28, rows=8):
    return task_of("noise_padded", padded_length=length).inputs(stored)[:, rows:]


def test_noise_follows_the_rows():
    task, plain = task_of("noise_padded", padded_length=60), task_of("image_sequence")
    stored, pictures = task.load(42).train.inputs[:200], plain.load(42).train.inputs[:200]
    inputs = task.inputs(stored)
    assert inputs.shape == (200, 60, 8) and inputs.dtype == torch.float32
    assert torch.equal(inputs[:, :8], plain.inputs(pictures))
    assert torch.equal(task.pictures(stored), plain.pictures(pictures))


def test_noise_is_of_the_image_in_whatever_batch_and_length():
    stored = task_of("noise_padded").load(42).train.inputs
    torch.manual_seed(1)
    alone = torch.cat([noise_of(stored[i : i + 1]) for i in (5, 3)])
    assert torch.equal(alone, noise_of(stored[[5, 3]]))
    assert torch.equal(noise_of(stored[[5, 3]], 40)[:, :20], alone)  # longer: the same, then more


def test_noise_differs_between_images_parts_and_seeds_but_not_for_the_test_images():
    parts = [*task_of("noise_padded").load(42), *task_of("noise_padded").load(43)]
    firsts = [noise_of(part.inputs[:1])[0].numpy().tobytes() for part in parts]
    assert len(set(firsts)) == 5 and firsts[2] == firsts[5]
    keys = torch.cat([part.inputs[:, -1] for part in parts[:3]])
    assert len(keys.unique(dim=0)) == len(keys) == 1797
    key = 42 << 32 | 1 << 30 | 7  # the seed, the part and the place: noise by hand
    theirs = np.random.Generator(np.random.Philox(key=key)).random((20, 8), dtype=np.float32)
    assert (noise_of(parts[1].inputs[7:8])[0].numpy() == theirs).all()
    largest = noise_of(task_of("noise_padded").load(2**32 - 1).train.inputs[:2])
    assert not torch.equal(largest[0], largest[1])


@pytest.mark.parametrize("length", [2, 7, 50])
def test_sums_are_of_the_two_marked_values(length):
    part = task_of("adding_problem", length=length).load(42).train
    drawn, marks = part.inputs.unbind(2)
    assert part.inputs.shape == (640, length, 2) and set(marks.unique().tolist()) <= {0.0, 1.0}
    for half in (marks[:, : length // 2], marks[:, length // 2 :]):
        assert (half.sum(1) == 1).all()
        assert half.any(0).all()  # each step of the half is marked in some example
    for row, total in zip(part.inputs.tolist(), part.targets.tolist(), strict=True):
        assert total == pytest.approx(sum(value for value, mark in row if mark))


def test_errors_of_sums_by_hand():
    task = task_of("adding_problem")
    outputs, targets = torch.tensor([[1.0], [0.5]]), torch.tensor([0.5, 0.5])
    assert task.losses(outputs, targets).tolist() == [0.25, 0.0]
    assert values(task, targets, task.answers(outputs)) == {"negative_mse": -0.125}


def test_without_memory_a_sum_is_known_up_to_a_sixth():
    task = task_of("adding_problem", training_examples=50_000)
    squares = (task.load(42).train.targets.double() - 1).square()  # of the best constant
    judged, least = task.memoryless(None)
    error = squares.std() / math.sqrt(len(squares))
    assert judged == "loss" and abs(squares.mean() - least) < 4 * error


def test_symbols_come_first_and_are_wanted_last():
    task = task_of("copying_memory", delay=3)
    part = task.load(42).train
    inputs, symbols = task.inputs(part.inputs[:4]), part.targets[:4]
    assert inputs.shape == (4, 23, 10) and (inputs.sum(2) == 1).all()
    tokens = inputs.argmax(2)
    assert torch.equal(tokens[:, :10], symbols)
    assert (tokens[:, 12] == 9).all()  # T - 1 blanks, then the sign
    assert (tokens[:, [10, 11, *range(13, 23)]] == 0).all()
    counts = part.targets.flatten().bincount(minlength=9)
    assert counts[0] == 0 and abs(counts[1:] - 800).max() < 4 * math.sqrt(800)


def test_losses_of_symbols_are_means_over_all_steps():
    task = task_of("copying_memory", delay=3)
    symbols = task.load(42).train.targets[:2]
    outputs = torch.randn(2, 23, 9, generator=torch.Generator().manual_seed(1))
    each = -outputs.log_softmax(2)
    losses = [
        sum(each[b, t, 0 if t < 13 else symbols[b, t - 13]] for t in range(23)) / 23
        for b in range(2)
    ]
    torch.testing.assert_close(task.losses(outputs, symbols), torch.stack(losses))
    last = each[[0, 1], -1, symbols[:, -1]]
    torch.testing.assert_close(task.losses(outputs[:, -1:], symbols[:, -1:]), last)
    assert torch.equal(task.answers(outputs), outputs[:, 13:].argmax(2))
    predicted = symbols.clone()
    predicted[0, 2:] = symbols[0, 2:] % 8 + 1  # two of ten are right, and then all
    assert task.scores(symbols.numpy(), predicted.numpy()).tolist() == [0.2, 1.0]
    assert values(task, symbols, predicted) == {"recalled": pytest.approx(0.6)}


def test_without_memory_copying_costs_ten_symbols_of_eight():
    task = task_of("copying_memory", delay=100)
    # The best scores that depend on the step alone: blanks for certain, then each symbol alike.
    best = torch.full((50, 120, 9), -1e9)
    best[:, :110, 0] = 0.0
    best[:, 110:, 1:] = 0.0
    loss = task.losses(best, task.load(42).test.targets, "mean").item()
    assert task.memoryless(None) == ("loss", pytest.approx(loss))


@pytest.mark.parametrize("name", ["adding_problem", "copying_memory"])
def test_parts_share_nothing_and_keep_to_their_sizes(name):
    one = task_of(name).load(42)
    assert [len(part.targets) for part in one] == [640, 60, 50]
    rows = {tuple(row) for part in one for row in part.targets.view(len(part.targets), -1).tolist()}
    assert len(rows) > 740  # of 750: sums and symbols hardly ever agree by chance
    fewer = task_of(name, training_examples=30).load(42)
    assert torch.equal(fewer.validation.inputs, one.validation.inputs)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("image_sequence", {"reading": "column"}, "reading: .*'row' or 'pixel'.*'column'"),
        (
            "image_sequence",
            {"permutation": "torch_5544"},
            "permutation: rows have no permutation",
        ),
        ("image_sequence", {"offline_fallback": {"dataset": "mnist"}}, "offline_fallback.dataset"),
        ("noise_padded", {"padded_length": 27}, "padded_length: .*28"),
        ("adding_problem", {"length": 1}, "length: .*2"),
    ],
)
def test_bad_options_get_one_sentence(name, options, sentence):
    with pytest.raises(UserError, match=f"^the test: {sentence}") as error:
        run_parameters({"model": "gru", "task": name, **TASKS[name].tiny, **options}, "the test")
    assert "\n" not in str(error.value)
