"""Data sets of images: files that are verified when they arrive and each time they are loaded.

Raw files lie where torchvision puts them (`<folder>/MNIST/raw/train-images-idx3-ubyte`) and come
from torchvision's mirrors, but its own download is not used: it has no time limit, and afterwards
it checks only that the files exist. Here each download can be killed, and a file is data only if
its SHA-256 is the one written below, when it arrives and each time it is loaded.
"""

import gzip
import hashlib
import os
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import write_file
from rnnbench_nb.plugins import torch

if TYPE_CHECKING:
    from torch import Tensor

SECONDS = 600.0  # for 11 MB (MNIST) or 30 MB (Fashion-MNIST)
SECONDS_WITH_FALLBACK = 20.0

# Run in a process of its own, which a deadline can kill whatever it hangs in (name look-up, a
# server that drips). Ten silent seconds end one mirror, so that the next one gets its turn.
_DOWNLOAD = (
    "import sys, urllib.request as web; "
    "sys.stdout.buffer.write(web.urlopen(sys.argv[1], timeout=10).read())"
)


class FetchError(UserError):
    """The data set is not there and cannot be fetched (files that are there but wrong: UserError).

    Only this error lets a run go on with its fallback.
    """


FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        title: Its name in text.
        class_names: Name of each label, K of them.
        pixels: Of one image.
        folder: The folder in the data folder, and the name of torchvision's class.
        sha256: Of each of `FILES`, uncompressed. A data set without files has none.
    """

    title: str
    class_names: tuple[str, ...]
    pixels: int = 28 * 28
    folder: str = ""
    sha256: tuple[str, ...] = ()


# The hashes of MNIST were computed from the files; those of Fashion-MNIST (whose .gz have the MD5
# that its authors publish) are on record in several independent public projects, which agree.
DATASETS = {
    "mnist": Source(
        title="MNIST",
        class_names=tuple("0123456789"),
        folder="MNIST",
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": Source(
        title="Fashion-MNIST",
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        folder="FashionMNIST",
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "digits": Source(
        "the 8 × 8 digits of scikit-learn", class_names=tuple("0123456789"), pixels=64
    ),
}


@dataclass(frozen=True)
class Images:
    """A data set in memory: images uint8 (N, h, w), labels int64 (N,), from 0 to K - 1."""

    name: str
    train_images: "Tensor"
    train_labels: "Tensor"
    test_images: "Tensor"
    test_labels: "Tensor"
    class_names: tuple[str, ...]


def data_folder() -> Path:
    """Return the folder of all data sets: RNNBENCH_DATA, or `data` in the project."""
    named = os.environ.get("RNNBENCH_DATA")
    return Path(named).expanduser() if named else Path(__file__).resolve().parents[2] / "data"


def fetch(dataset: str, folder: Path | None = None, seconds: float = SECONDS) -> None:
    """Make sure that the files of a data set are there and right, downloading what is missing.

    Several processes may do this at once: one downloads, the others wait. A file appears under
    its name whole and verified, or not at all. Where nothing is missing, nothing is written.

    Args:
        dataset: A name in `DATASETS`.
        folder: The data folder; None for `data_folder()`.
        seconds: After these the download is given up (a file that is complete stays).

    Raises:
        FetchError: Files are missing and could not be downloaded, in time or at all.
        UserError: Unknown data set, or a file that is there is corrupt or cannot be read.
    """
    source = lookup(DATASETS, "dataset", dataset)
    raw = (folder or data_folder()) / source.folder / "raw"
    if not _missing(source, raw):
        return
    from filelock import FileLock
    from torchvision import datasets  # slow to import: needed only here, and not on the clock

    mirrors = getattr(datasets, source.folder).mirrors
    deadline = time.monotonic() + seconds
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with FileLock(raw / ".lock", timeout=seconds):
            for name, sha256 in _missing(source, raw).items():
                write_file(raw / name, _download(mirrors, name, sha256, deadline))
    except OSError as error:
        raise FetchError(
            f"{dataset} is not complete in {raw} and could not be fetched ({error}): connect to "
            f"the network, put {', '.join(FILES)} there, or set RNNBENCH_DATA to a folder that "
            f"holds {source.folder}/raw with them."
        ) from error


def resolve(dataset: str, offline_fallback: str | None) -> str:
    """Return the data set that a run uses: `dataset`, or its fallback where it cannot be fetched.

    Raises:
        FetchError: `dataset` cannot be fetched and there is no fallback.
        UserError: An unknown name, or a corrupt file, for which no fallback is taken.
    """
    if not offline_fallback:
        fetch(dataset)
        return dataset
    lookup(DATASETS, "offline_fallback", offline_fallback)
    try:
        fetch(dataset, seconds=SECONDS_WITH_FALLBACK)
        return dataset
    except FetchError:
        fetch(offline_fallback)
        return offline_fallback


def load(dataset: str) -> Images:
    """Load a data set into memory, fetching it first if need be.

    Raises:
        FetchError: The files are missing and could not be downloaded.
        UserError: Unknown data set, or a file that is there is corrupt or cannot be read.
    """
    fetch(dataset)
    source = DATASETS[dataset]
    if source.sha256:
        raw = data_folder() / source.folder / "raw"
        train_images, train_labels, test_images, test_labels = (
            _parse_idx(_read_verified(raw / name, sha256))
            for name, sha256 in zip(FILES, source.sha256, strict=True)
        )
    else:
        train_images, test_images, train_labels, test_labels = _digits()
    return Images(
        name=dataset,
        train_images=train_images,
        train_labels=train_labels.long(),
        test_images=test_images,
        test_labels=test_labels.long(),
        class_names=source.class_names,
    )


def _missing(source: Source, raw: Path) -> dict[str, str]:
    """Return name and SHA-256 of the files not in `raw`, after verifying those that are there."""
    missing = {}
    for name, sha256 in zip(FILES, source.sha256, strict=False):  # no hashes: no files
        if (raw / name).exists():
            _read_verified(raw / name, sha256)
        else:
            missing[name] = sha256
    return missing


def _read_verified(path: Path, sha256: str) -> bytes:
    """Return the content of a raw file, if it is the published one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): make it readable, or move it elsewhere to "
            "fetch it again."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{path} is truncated or corrupt ({len(content):,} bytes, whose SHA-256 is not that "
            "of the published file): move it elsewhere to fetch it again."
        )
    return content


def _download(mirrors: list[str], name: str, sha256: str, deadline: float) -> bytes:
    """Return the verified content of one raw file from the first mirror that gives it.

    Args:
        mirrors: Addresses that end in a slash, in the order in which they are asked.
        name: The uncompressed file.
        sha256: Of its content.
        deadline: On the clock of `time.monotonic`, in seconds.

    Raises:
        OSError: No mirror gave the file; the message says what each did.
    """
    failures = []
    for mirror in mirrors:
        url = f"{mirror}{name}.gz"
        try:
            answer = subprocess.run(
                [sys.executable, "-I", "-c", _DOWNLOAD, url],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=max(0.0, deadline - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            failures.append(f"{url}: no answer in time")
            break
        if answer.returncode != 0:
            reason = answer.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            failures.append(f"{url}: {reason}")
            continue
        try:
            content = gzip.decompress(answer.stdout)
        except (OSError, EOFError, zlib.error):
            content = b""
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        failures.append(f"{url}: not the published file")
    raise OSError("; ".join(failures))


def _parse_idx(content: bytes) -> "Tensor":
    """Return the uint8 tensor in an idx file: two zeros, type, rank, big-endian sizes, values."""
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    values = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * rank)  # torch may write
    return torch.from_numpy(values.reshape(shape))


def _digits() -> "list[Tensor]":
    """Return scikit-learn's digits (8 x 8, 0 to 16, scaled to 0 to 255), a fifth of them as test.

    Returns:
        Images uint8 (1437, 8, 8) and (360, 8, 8), labels int64 (1437,) and (360,).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return [torch.tensor(part) for part in parts]
