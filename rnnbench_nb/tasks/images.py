"""Classification of images that are read as sequences, row by row or pixel by pixel."""

from typing import Literal

import numpy as np

from rnnbench_nb.errors import lookup
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import download
from rnnbench_nb.tasks.base import Frozen, Part, Split, Task, torch

VALIDATION_FRACTION = 0.15  # of the training images: 51,000 / 9,000 of MNIST
FITTED = 6000  # training images that are enough for a logistic regression

# Reading: images float32 (B, h, w) in [0, 1] to sequences (B, T, D).
READINGS = {
    "row": lambda images: images,  # T = h steps of D = w pixels, from the top
    "pixel": lambda images: images.flatten(1).unsqueeze(2),  # T = h * w steps of one pixel
}


def as_sequence(images, reading: str):
    """Read a batch of images as sequences.

    Args:
        images: uint8 (B, h, w); a batch at a time, since float32 takes four times the memory.
        reading: A name in `READINGS`.

    Returns:
        float32 (B, T, D) in [0, 1]: (B, h, w) for 'row', (B, h w, 1) for 'pixel'.

    Raises:
        UserError: Unknown reading.
    """
    return lookup(READINGS, "reading", reading)(images.float() / 255)


def split(images: download.Images, seed: int) -> Split:
    """Draw the validation images from the training images; the test images stay as they are.

    The draw has a generator of its own, so every model of one seed gets the same split.

    Args:
        images: The data set, N training images.
        seed: The run's seed.

    Returns:
        N - round(0.15 N) images to train on, round(0.15 N) to validate on, and all test images.
    """
    count = len(images.train_labels)
    order = torch.randperm(count, generator=generator(seed, "split"))
    validation, train = order.tensor_split([round(VALIDATION_FRACTION * count)])
    return Split(
        train=Part(images.train_images[train], images.train_labels[train]),
        validation=Part(images.train_images[validation], images.train_labels[validation]),
        test=Part(images.test_images, images.test_labels),
    )


class ImageSequence(Task):
    """Which class is the image that was read, after its last step?"""

    name, label = "image_sequence", "image classification"
    loss_label = "Cross entropy (nats)"
    metric_names = ("accuracy", "precision", "recall", "f1")
    metrics_note = "Precision, recall and F1 are means over the classes."
    data_page = "01_data"

    class Options(Frozen):
        """Which images, and how they are read.

        Attributes:
            dataset: A data set of `download.DATASETS`.
            offline_fallback: Taken, and said so, where the data set cannot be fetched.
            reading: By row or by pixel.
        """

        dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
        offline_fallback: Literal["digits"] | None = None
        reading: Literal["row", "pixel"] = "row"

    def fetch(self):
        """Download and verify what is missing of the data set."""
        download.fetch(self.options.dataset)
        folder = download.data_folder()
        return f"{self.options.dataset} is complete and verified in {folder}."

    def resolve(self):
        """The data set that is there: the one asked for, or its fallback."""
        wanted = self.options.dataset
        used = download.resolve(wanted, self.options.offline_fallback)
        named = download.DATASETS[used].title
        note = f"{wanted} is not there and could not be fetched: {named} instead"
        return {"dataset": used, "offline_fallback": None}, note if used != wanted else ""

    def describe(self):
        """The data set, its reading and its classes."""
        names = list(download.DATASETS[self.options.dataset].class_names)
        options = {"dataset": self.options.dataset, "reading": self.options.reading}
        return {**options, "classes": len(names), "class_names": names}

    def sentence(self, data):
        """Such as `MNIST, read by row: 28 steps of 28`."""
        title = download.DATASETS[data["dataset"]].title
        steps = f"{data['steps']} steps of {data['input_size']}"
        return f"{title}, read by {data['reading']}: {steps}"

    def load(self, seed):
        """The images of the data set, those of validation drawn by the seed."""
        return split(download.load(self.options.dataset), seed)

    def inputs(self, stored):
        """Images uint8 (B, h, w) as sequences."""
        return as_sequence(stored, self.options.reading)

    def outputs(self):
        """One class score for each class."""
        return len(download.DATASETS[self.options.dataset].class_names)

    def losses(self, outputs, targets, reduction="none"):
        """Cross entropy of class scores (B, K), in nats."""
        return torch.nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    def answers(self, outputs):
        """The class of the highest score."""
        return outputs.argmax(1)

    def scores(self, label, predicted):
        """1 for each image that is right, else 0."""
        return (predicted == label).astype(float)

    def metrics(self, label, predicted):
        """Accuracy and macro precision, recall and F1, as fractions: those of scikit-learn."""
        classes = np.union1d(label, predicted)
        truth, answer = np.searchsorted(classes, label), np.searchsorted(classes, predicted)
        found, there, said = (
            np.bincount(labels, minlength=len(classes)).astype(float)
            for labels in (truth[truth == answer], truth, answer)
        )
        values = {
            "precision": found / np.maximum(said, 1),  # a class that is never said has none
            "recall": found / np.maximum(there, 1),
            "f1": 2 * found / (there + said),
        }
        return super().metrics(label, predicted) | {k: float(v.mean()) for k, v in values.items()}

    def memoryless(self, split):
        """That of a logistic regression on the last step of some training images."""
        from sklearn.linear_model import LogisticRegression

        train, validation = (
            (self.inputs(part.inputs[:FITTED])[:, -1].numpy(), part.targets[:FITTED].numpy())
            for part in (split.train, split.validation)
        )
        return float(LogisticRegression(max_iter=300).fit(*train).score(*validation))

    def mistakes(self, examples, texts):
        """A grid of images."""
        from rnnbench_nb.figures import images

        return images(np.asarray(examples), texts)
