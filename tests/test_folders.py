"""Files of the user: every command that writes leaves them byte for byte, or is refused."""

import json
import os
from pathlib import Path

import pytest
from conftest import one_sentence, rnnbench_here, write_tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rnnbench_nb import folders, launch
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_json
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol

PROTOCOL = {"models": ["gru"], "dataset": "digits", "hidden_size": 8, "epochs": 2, "runs": 1}
CONTENTS = [b"", b"mine\n", b"{}", b"[]", b'{"format": 2}', b'["index.html", "pages/mine.html"]',
            to_yaml(PROTOCOL).encode(), b"title: Mine\npair: [agru, gru]\n",
            b'{"status": "completed", "variant": "gru", "seed": 42}']  # fmt: skip
NAMES = ["mine.R", "mine.html", "results.csv", "index.html", "run7.csv", "run7.csv.failed",
         "03_compare.ipynb", "02_train.ipynb", "run.json", "report.json", "files.json",
         "protocol.yaml", "front.yaml", "history.csv", "checkpoint.pt", ".lock", folders.LOCK,
         "models.js", "draw.html", "predicted.safetensors.xz"]  # fmt: skip
PLACES = ["", "analyses", "pages", "runs/gru-seed42", "runs/7", "notebooks", "figures", "logs",
          "variants", ".snakemake", ".sources", "sub", "sub/pages"]  # fmt: skip
TREES = st.dictionaries(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(NAMES)),
    st.one_of(st.sampled_from(CONTENTS), st.binary(max_size=40)),
    min_size=1,
    max_size=12,
)


LIMITS = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller example takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def content(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, symbolic links not followed."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}  # fmt: skip


def write(folder: Path, files: dict[tuple[str, str], bytes]) -> None:
    for (place, name), data in files.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / name).write_bytes(data)


def stopped(out, *rest) -> int:
    """In Snakemake's place: a workflow that stops at once."""
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs/snakemake.txt").touch()
    return 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home without the user's files, a workflow that does nothing, and a parameter file."""
    monkeypatch.setattr(launch, "snakemake", stopped)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_tiny(tmp_path / "p.yaml", models="[gru]")
    return tmp_path


def commands(where: str, parameters: Path) -> list[list[str]]:
    """Every command that writes, writing to `where`."""
    run = ["run", str(parameters), "--output-dir", where]
    return [run, [*run, "--quick", "--runs", "2"],
            ["publish", where, "--to", where],
            ["publish", where, "--to", where, "--replace"],
            ["collect", where], ["render", where], ["site", where],
            ["site", where, "--remake", where],
            ["site", where, "--draw", f"{where}/runs/7"]]  # fmt: skip


@LIMITS
@given(files=TREES, form=st.sampled_from(["itself", "link", "dot", "home", "inside"]))
def test_no_command_changes_a_file_that_it_did_not_make(place, files, form):
    number = len(list(place.iterdir()))
    theirs = place / "home" / f"thesis{number}"
    write(theirs, files)
    (place / f"link{number}").symlink_to(theirs)
    where = {"itself": str(theirs), "link": str(place / f"link{number}"), "dot": ".",
             "home": f"~/{theirs.name}", "inside": f"{theirs}/new/report"}[form]  # fmt: skip
    os.chdir(theirs)
    before = content(theirs)
    (at, name), *_ = files
    bench = ["bench", "--json", theirs / at / name]
    every = commands(where, place / "p.yaml")
    for command in every[:2] if form == "inside" else [*every, bench]:
        result = rnnbench_here(*command)
        after = content(theirs)
        assert {name: after.get(name) for name in before} == before, command
        assert form == "inside" or result.returncode and after == before, command


@LIMITS
@given(files=TREES)
def test_files_that_were_put_into_a_report_stay_as_they_are(place, files):
    out = place / f"out{len(list(place.iterdir()))}"
    wide = load_protocol(place / "p.yaml", {"models": ["gru", "agru"], "runs": 2})
    narrow = load_protocol(place / "p.yaml")
    launch.prepare(out, wide, "p")
    for name in folders.listed(out):  # what the workflow writes
        if not name.endswith("/") and not (out / name).exists():
            write(out, {tuple(name.rpartition("/")[::2]): b"ours"})
    files = {(at, name): data for (at, name), data in files.items()
             if not (out / at / name).exists() and not at.startswith(".")
             and (at or name not in (folders.LIST, folders.LOCK))}  # fmt: skip
    write(out, files)
    theirs = {os.path.join(*path): data for path, data in files.items()}
    for protocol in (narrow, wide, narrow):
        try:
            launch.prepare(out, protocol, "p")
        except UserError as error:
            assert "move it elsewhere" in str(error)
        for name, data in theirs.items():
            assert (out / name).read_bytes() == data


def test_a_narrower_protocol_removes_the_pages_that_it_lacks(place):
    out = place / "out"
    launch.prepare(out, load_protocol(place / "p.yaml", {"models": ["gru", "agru"]}), "p")
    write(out, {("pages", "04_eigenvalues.html"): b"", ("pages", "mine.html"): b"",
                ("runs/agru-seed42", "best.safetensors"): b""})  # fmt: skip
    launch.prepare(out, load_protocol(place / "p.yaml"), "p")
    assert not (out / "pages/04_eigenvalues.html").exists()
    assert (out / "pages/mine.html").exists()
    assert (out / "runs/agru-seed42/best.safetensors").exists()


RESERVED = {
    "the root": (Path("/"), "the root of the file system"),
    "home": (Path.home(), "the home folder"),
    "the project": (PROJECT, "the project's own folder"),
    "reports": (PROJECT / "reports", "the folder of all reports"),
    "published": (PROJECT / "reports/published", "the folder of the published reports"),
    "params": (PROJECT / "params", "holds files"),
    "notebooks": (PROJECT / "notebooks", "holds files"),
}


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("publishing", [False, True])
@pytest.mark.parametrize("name", RESERVED)
def test_folders_that_serve_another_purpose_are_refused(tmp_path, name, publishing, link):
    folder, reason = RESERVED[name]
    if link:
        (tmp_path / "link").symlink_to(folder)
    where = tmp_path / "link" if link else folder
    with pytest.raises(UserError, match=reason) as refused:
        folders.output_folder(where, publishing=publishing)
    assert "name a new folder, such as --output-dir reports/mine" in str(refused.value)


def test_a_published_report_and_a_report_that_is_worked_on_are_told_apart(tmp_path):
    for name, published in (("mine", False), ("theirs", True)):
        write_json(
            tmp_path / name / folders.MARKER, {"format": 2, "protocol": "p", "published": published}
        )
    assert folders.output_folder(tmp_path / "mine") == tmp_path / "mine"
    assert folders.output_folder(tmp_path / "theirs", publishing=True) == tmp_path / "theirs"
    with pytest.raises(UserError, match="is a published report"):
        folders.output_folder(tmp_path / "theirs")
    with pytest.raises(UserError, match="is a report that is not published"):
        folders.output_folder(tmp_path / "mine", publishing=True)
    for inside in ("mine/runs", "theirs/new/one"):
        with pytest.raises(UserError, match="lies in the report"):
            folders.output_folder(tmp_path / inside)
    with pytest.raises(UserError, match="the place of a published report"):
        folders.output_folder(PROJECT / "reports/published/new")


@pytest.mark.parametrize("named", ["", "~nobody-of-this-name/x"])
def test_a_folder_that_cannot_be_meant_is_refused(named):
    with pytest.raises(UserError, match="name a new folder"):
        folders.output_folder(named)


def test_a_file_and_a_folder_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/new"):
        with pytest.raises(UserError, match="cannot be used"):
            folders.output_folder(folder)


def test_a_tilde_is_the_home_folder(place):
    assert folders.output_folder("~/new/x") == place / "home/new/x"


def test_a_list_that_is_damaged_or_leads_out_of_the_folder_removes_nothing(tmp_path):
    (tmp_path / "mine.txt").touch()
    for text in ("{", "[1]", '["../mine.txt"]', json.dumps([str(tmp_path / "mine.txt")])):
        write_json(tmp_path / "out" / folders.MARKER, {"format": 2, "protocol": "p"})
        (tmp_path / "out/files.json").write_text(text)
        with pytest.raises(UserError, match=r"files\.json is damaged"):
            folders.remove(tmp_path / "out", ["../mine.txt", str(tmp_path / "mine.txt")])
    assert (tmp_path / "mine.txt").exists()


def test_a_report_in_the_way_of_a_file_of_the_users_says_which(place):
    out = place / "out"
    launch.prepare(out, load_protocol(place / "p.yaml"), "p")
    write(out, {("runs/gru-seed43", "run.json"): b"copied here"})
    result = rnnbench_here("run", place / "p.yaml", "--output-dir", out, "--runs", "2")
    assert f"{out}/runs/gru-seed43 is in the way" in one_sentence(result)
    assert (out / "runs/gru-seed43/run.json").read_bytes() == b"copied here"
