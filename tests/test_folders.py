"""Files of the user: every command that writes leaves them byte for byte, or is refused."""

import json
import os
from pathlib import Path

import pytest
from conftest import rnnbench_here, write_tiny
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
FILES = st.builds(os.path.join, st.sampled_from(PLACES), st.sampled_from(NAMES))
BYTES = st.one_of(st.sampled_from(CONTENTS), st.binary(max_size=40))
TREES = st.dictionaries(FILES, BYTES, min_size=1, max_size=12)
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


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


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
            ["render", where], ["site", where], ["site", where, "--remake", where],
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
    bench = ["bench", "--json", theirs / next(iter(files))]
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
    ours = {
        name for name in folders.file_list(out) if not (name.endswith("/") or (out / name).exists())
    }
    write(out, dict.fromkeys(ours, b"ours"))  # what the workflow writes
    theirs = {name: data for name, data in files.items() if not (out / name).exists()
              and not name.startswith((".snakemake/", ".sources/"))
              and name not in (folders.LIST, folders.LOCK)}  # fmt: skip
    write(out, theirs)
    for protocol in (narrow, wide, narrow):
        try:
            launch.prepare(out, protocol, "p")
        except UserError as error:
            assert "move it elsewhere" in str(error)
        for name, data in theirs.items():
            assert (out / name).read_bytes() == data


def test_a_narrower_protocol_removes_the_pages_that_it_lacks_and_a_wider_one_no_runs(place):
    out = place / "out"
    launch.prepare(out, load_protocol(place / "p.yaml", {"models": ["gru", "agru"]}), "p")
    theirs = {"pages/mine.html": b"", "runs/gru-seed43/run.json": b"copied here"}
    kept = theirs | {"runs/agru-seed42/best.safetensors": b"trained"}
    write(out, kept | {"pages/04_eigenvalues.html": b""})
    launch.prepare(out, load_protocol(place / "p.yaml"), "p")
    assert not (out / "pages/04_eigenvalues.html").exists()
    with pytest.raises(UserError, match=f"{out}/runs/gru-seed43 exists"):
        launch.prepare(out, load_protocol(place / "p.yaml", {"runs": 2}), "p")
    assert kept.items() <= content(out).items()


OURS, PUBLISHED = PROJECT / "reports", PROJECT / "reports/published"
BOTH = [False, True]  # whether the folder is to hold a published report
REFUSED = [
    ("/", BOTH, "is the root of the file system"),
    ("~", BOTH, "is the home folder"),
    (PROJECT, BOTH, "is the project's own folder"),
    (OURS, BOTH, "is the folder of all reports"),
    (PUBLISHED, BOTH, "is the folder of the published reports"),
    (PUBLISHED / "new", [False], "is reserved for published reports"),
    (PROJECT / "params", BOTH, "holds files that are not a report"),
    (PROJECT / "README.md", BOTH, "cannot be used"),
    (PROJECT / "README.md/new", BOTH, "cannot be used"),
    ("~nobody-of-this-name/x", BOTH, "cannot be used"),
    ("", BOTH, "is empty"),
    ("mine", [True], "is an unpublished report"),
    ("theirs", [False], "is a published report"),
    ("mine/runs", BOTH, "lies in the report"),
    ("theirs/new/one", BOTH, "lies in the report"),
]


@pytest.mark.parametrize(("folder", "kinds", "reason"), REFUSED)
def test_folders_that_serve_another_purpose_are_refused(
    tmp_path, monkeypatch, folder, kinds, reason
):
    monkeypatch.chdir(tmp_path)
    for name, published in (("mine", False), ("theirs", True)):
        marker = {"format": 2, "protocol": "p", "published": published}
        write_json(Path(name, folders.MARKER), marker)
        assert folders.output_folder(name, publishing=published) == tmp_path / name
    Path("link").symlink_to(folder or "nowhere")
    links = [] if str(folder).startswith("~") or not folder else ["link"]
    for where in [folder, *links]:
        for publishing in kinds:
            advice = "; name a new folder, such as --output-dir reports/mine"
            with pytest.raises(UserError, match=f"{reason}.*{advice}"):
                folders.output_folder(where, publishing=publishing)


def test_a_list_that_is_damaged_or_leads_out_of_the_folder_removes_nothing(tmp_path):
    write(tmp_path, {"mine.txt": b"", "out/m": b""})
    for text in ("{", "[1]", '"m"', '["../mine.txt"]', json.dumps([str(tmp_path / "mine.txt")])):
        (tmp_path / "out/files.json").write_text(text)
        with pytest.raises(UserError, match=r"files\.json is damaged"):
            folders.remove(tmp_path / "out", ["m", "../mine.txt", str(tmp_path / "mine.txt")])
    assert (tmp_path / "mine.txt").exists() and (tmp_path / "out/m").exists()
