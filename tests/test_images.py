"""The split of a run, images read as sequences, and what the task says of its answers."""

import os

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from rnnbench_nb.errors import UserError
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.tasks import TASKS, download, images


def task(**options):
    parameters = run_parameters({"model": "gru", "dataset": "digits", **options}, "the test")
    return TASKS["image_sequence"](parameters.task_options)


def test_an_unknown_reading_is_one_sentence():
    with pytest.raises(UserError, match="reading: 'column' is unknown.*row, pixel"):
        images.as_sequence(torch.zeros(1, 2, 2, dtype=torch.uint8), "column")
    with pytest.raises(UserError, match="reading: input should be 'row' or 'pixel', but 'column'"):
        task(reading="column")


def test_metrics_by_hand():
    # class 0: 2 of 3 found, 2 of 2 right; class 1: 1 of 1 found, 1 of 2 right
    found = METRICS[task().metrics].values(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    expected = {
        "accuracy": 3 / 4, "precision": (1 + 1 / 2) / 2, "recall": (2 / 3 + 1) / 2,
        "f1": (4 / 5 + 2 / 3) / 2,
    }  # fmt: skip
    assert found == pytest.approx(expected)
    assert tuple(found) == METRICS[task().metrics].names


def test_metrics_are_those_of_scikit_learn_to_the_last_bit():
    random = np.random.default_rng(0)
    for _ in range(50):
        label, predicted = random.integers(0, 10, (2, random.integers(1, 300)))
        found = METRICS[task().metrics].values(label, predicted)
        theirs = precision_recall_fscore_support(
            label, predicted, average="macro", zero_division=0.0
        )
        assert [found[name] for name in ("precision", "recall", "f1")] == list(theirs[:3])


def test_losses_are_of_each_example_and_their_mean():
    outputs = torch.tensor([[0.0, 0.0], [np.log(3), 0.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    losses = task().losses(outputs, targets)
    torch.testing.assert_close(losses, torch.tensor([np.log(2), np.log(4)], dtype=torch.float64))
    assert task().losses(outputs, targets, "mean").item() == pytest.approx(losses.mean().item())


def test_a_model_without_memory_knows_little_of_a_digit():
    one = task()
    assert 0.1 < one.memoryless(one.load(42)) < 0.6  # chance is 0.1, and the last row tells some


def test_the_data_in_words():
    one = task(reading="pixel")
    data = {**one.describe(), "steps": 64, "input_size": 1}
    assert one.sentence(data) == "the 8 × 8 digits of scikit-learn, read by pixel: 64 steps of 1"


@pytest.fixture
def numbered():
    """Return a hundred training images of one pixel, each its own number, labelled with it."""
    numbers = torch.arange(100)
    pixels = numbers.to(torch.uint8).view(100, 1, 1)
    return download.Images("digits", pixels, numbers, pixels[:5] + 100, numbers[:5], ("any",))


def test_a_split_is_disjoint_and_whole_and_keeps_labels(numbered):
    split = images.split(numbered, seed=42)
    train, validation = set(split.train.targets.tolist()), set(split.validation.targets.tolist())
    assert (len(train), len(validation)) == (85, 15)
    assert train | validation == set(range(100))
    for part in (split.train, split.validation):
        assert part.inputs.flatten().tolist() == part.targets.tolist()
    assert split.test.inputs is numbered.test_images
    assert split.test.targets is numbered.test_labels


def test_a_split_follows_the_seed_and_nothing_else(numbered):
    first = images.split(numbered, seed=42).validation.targets.tolist()
    torch.manual_seed(1)
    assert images.split(numbered, seed=42).validation.targets.tolist() == first
    assert images.split(numbered, seed=43).validation.targets.tolist() != first


def test_images_are_read_from_the_top_left():
    pixels_of = torch.tensor([[[0, 51, 102], [153, 204, 255]]], dtype=torch.uint8)  # (1, 2, 3)
    rows, pixels = (images.as_sequence(pixels_of, reading) for reading in ("row", "pixel"))
    assert rows.dtype == pixels.dtype == torch.float32
    assert torch.allclose(rows, torch.tensor([[[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]]]))
    assert torch.allclose(pixels, torch.tensor([[[0.0], [0.2], [0.4], [0.6], [0.8], [1.0]]]))


def test_real_mnist_is_the_known_one():
    if not os.environ.get("RNNBENCH_DATA") or not (download.data_folder() / "MNIST").is_dir():
        pytest.skip("RNNBENCH_DATA does not name a folder with MNIST")
    loaded = download.load("mnist")
    split = images.split(loaded, seed=42)
    assert [len(p.targets) for p in (split.train, split.validation, split.test)] == [
        51_000,
        9_000,
        10_000,
    ]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert loaded.train_labels.bincount().tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert loaded.test_labels.bincount().tolist() == counts
    assert loaded.train_images.sum() == 1_567_298_545  # mean 33.3184, or the well-known 0.1307
    assert loaded.test_images.sum() == 264_923_200
    assert loaded.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
