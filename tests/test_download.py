"""Fetching from good and bad servers, and verification."""

import dataclasses
import gzip
import hashlib
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torchvision import datasets

from rnnbench_nb.errors import UserError
from rnnbench_nb.tasks import download as data

LABELS = (4, 0, 3)


def idx(values: np.ndarray) -> bytes:
    """Write an idx file of bytes by the format's definition."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
CONTENT = dict(
    zip(
        data.FILES,
        (
            idx(IMAGES),
            idx(np.array(LABELS, np.uint8)),
            idx(IMAGES[:1] + 100),
            idx(np.array([7], np.uint8)),
        ),
        strict=True,
    )
)


class Server(BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves."""

    def do_GET(self):
        """Answer well or badly."""
        self.server.asked.append(self.path)
        _, behaviour, name = self.path.split("/")
        body = gzip.compress(CONTENT[name.removesuffix(".gz")])
        if behaviour == "absent":
            return self.send_error(404)
        if behaviour == "other":
            body = gzip.compress(b"another file, well compressed")
        if behaviour == "html":
            body = b"<html>Please log in to this network.</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if behaviour == "truncated":
            return self.wfile.write(body[:-9])
        if behaviour == "stalled":
            return self.server.closing.wait(20)
        if behaviour == "dripping":
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.server.closing.wait(0.2):
                    return None
        return self.wfile.write(body)

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serve tiny files in MNIST's name; mirrors(*behaviours) chooses how."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    sha256 = tuple(hashlib.sha256(content).hexdigest() for content in CONTENT.values())
    source = dataclasses.replace(data.DATASETS["mnist"], sha256=sha256)
    monkeypatch.setitem(data.DATASETS, "mnist", source)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.handle_error = lambda *_: None  # clients that are killed break the pipe
        server.asked, server.closing = [], threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        port = server.server_address[1]

        def mirrors(*behaviours):
            urls = [f"http://127.0.0.1:{port}/{behaviour}/" for behaviour in behaviours]
            monkeypatch.setattr(datasets.MNIST, "mirrors", urls)

        server.mirrors = mirrors
        mirrors("good")
        yield server
        server.closing.set()
        server.shutdown()


def files(folder):
    """Return the names and contents of the files under a folder, the lock apart."""
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def put(folder, **replaced):
    """Put all files where they belong, some of them replaced."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in CONTENT.items():
        (raw / name).write_bytes(replaced.get(name[:5], content))
    return raw


def test_a_good_server_gives_the_files_and_the_tensors(server, tmp_path, capfd):
    images = data.load("mnist")
    assert files(tmp_path) == CONTENT
    assert images.train_images.tolist() == IMAGES.tolist()
    assert images.train_labels.tolist() == list(LABELS)
    assert images.test_images.tolist() == (IMAGES[:1] + 100).tolist()
    assert images.test_labels.tolist() == [7]
    assert (images.train_images.dtype, images.train_labels.dtype) == (torch.uint8, torch.int64)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("absent", "HTTP Error 404"),
        ("truncated", "IncompleteRead"),
        ("other", "not the published file"),
        ("html", "not the published file"),
        ("stalled", "no answer in time"),
        ("dripping", "no answer in time"),
    ],
)
def test_a_bad_server_ends_in_one_sentence_within_the_deadline(server, tmp_path, behaviour, reason):
    server.mirrors(behaviour)
    start = time.monotonic()
    with pytest.raises(data.FetchError) as caught:
        data.fetch("mnist", seconds=2.0)
    assert time.monotonic() - start < 8  # the whole file takes 11 s to drip
    assert server.asked == [f"/{behaviour}/train-images-idx3-ubyte.gz"]
    message = str(caught.value)
    assert reason in message
    assert f"mnist is not complete in {tmp_path}/MNIST/raw" in message
    assert "set RNNBENCH_DATA to a folder" in message
    assert f"put {', '.join(data.FILES)} there" in message
    assert "\n" not in message
    assert files(tmp_path) == {}


def test_a_closed_port_is_one_sentence(server, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
        with pytest.raises(data.FetchError, match="Connection refused"):
            data.fetch("mnist", seconds=5.0)
    assert files(tmp_path) == {}


def test_the_next_mirror_is_asked_where_one_fails(server, tmp_path):
    (put(tmp_path) / data.FILES[0]).unlink()
    server.mirrors("absent", "truncated", "other", "good", "never")
    data.fetch("mnist", seconds=20.0)
    assert files(tmp_path) == CONTENT
    asked = [path.split("/")[1] for path in server.asked]
    assert asked == ["absent", "truncated", "other", "good"]


def test_only_missing_files_are_downloaded(server, tmp_path):
    raw = put(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    data.fetch("mnist")
    assert server.asked == ["/good/t10k-labels-idx1-ubyte.gz"]
    assert files(tmp_path) == CONTENT


def test_several_processes_may_fetch_at_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(data.fetch, ["mnist"] * 4))
    assert files(tmp_path) == CONTENT
    assert len(server.asked) == 4  # each file once


@pytest.mark.parametrize("wrong", [CONTENT[data.FILES[0]][:-5], b"", b"x" * 40])
def test_a_corrupt_file_is_named_and_kept_and_never_falls_back(server, tmp_path, wrong):
    raw = put(tmp_path, train=wrong)
    for action in (data.fetch, data.load, lambda name: data.resolve(name, "digits")):
        with pytest.raises(UserError, match="train-images-idx3-ubyte is truncated or") as caught:
            action("mnist")
        assert "move it elsewhere" in str(caught.value)
        assert not isinstance(caught.value, data.FetchError)
    assert (raw / data.FILES[0]).read_bytes() == wrong
    assert server.asked == []


def test_complete_files_in_a_read_only_folder_are_enough(server, tmp_path):
    raw = put(tmp_path)
    raw.chmod(0o555)
    assert len(data.load("mnist").train_labels) == 3
    assert not (raw / ".lock").exists()  # not even a lock is written (root could)
    raw.chmod(0o755)


def test_a_folder_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "MNIST").write_text("a file in the folder's place")
    with pytest.raises(data.FetchError, match=r"Not a directory.*RNNBENCH_DATA"):
        data.fetch("mnist")


def test_only_a_failed_fetch_falls_back(server):
    server.mirrors("absent")
    assert data.resolve("mnist", "digits") == "digits"
    with pytest.raises(data.FetchError):
        data.resolve("mnist", None)
    server.mirrors("good")
    assert data.resolve("mnist", "digits") == "mnist"


def test_the_deadline_is_short_only_with_a_fallback(monkeypatch):
    asked = []
    monkeypatch.setattr(data, "fetch", lambda name, seconds=data.SECONDS: asked.append(seconds))
    data.resolve("mnist", "digits")
    data.resolve("mnist", None)
    assert asked == [20.0, 600.0]


def test_unknown_names_are_one_sentence():
    with pytest.raises(UserError, match="dataset: 'mnits' is unknown.*mnist, fashion_mnist"):
        data.fetch("mnits")
    with pytest.raises(UserError, match="offline_fallback: 'digit' is unknown"):
        data.resolve("mnist", "digit")


def test_the_data_folder_is_the_projects_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    assert data.data_folder() == tmp_path
    monkeypatch.setenv("RNNBENCH_DATA", "")
    assert (data.data_folder().parent / "rnnbench_nb/tasks/download.py").exists()


def test_digits_are_whole_and_the_test_part_is_stratified():
    images = data.load("digits")
    assert images.train_images.shape == (1437, 8, 8)
    assert images.test_images.shape == (360, 8, 8)
    assert images.train_images.max() == 255  # 16 of 16
    assert set(images.train_images.unique().tolist()) <= {round(v * 255 / 16) for v in range(17)}
    assert images.test_labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert torch.equal(data.load("digits").test_images, images.test_images)
