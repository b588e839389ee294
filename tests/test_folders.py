"""Files of the user: every command that writes leaves them byte for byte, or is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from conftest import rnnbench_here, write_tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from small_reports import write_small

from rnnbench_nb import folders, launch
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_json
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.site import publish
from rnnbench_nb.site.render import Page

PROTOCOL = {"models": ["gru"], "dataset": "digits", "hidden_size": 8, "epochs": 2, "runs": 1}
CONTENTS = [b"", b"mine\n", b"{}", b"[]", b'{"format": 2}', b'["index.html", "pages/mine.html"]']
CONTENTS += [to_yaml(PROTOCOL).encode(), b"title: Mine\npair: [agru, gru]\n"]
CONTENTS += [b'{"status": "completed", "variant": "gru", "seed": 42}']
NAMES = f"""
    mine.R mine.html results.csv index.html run7.csv run7.csv.failed 03_compare.ipynb run.json
    02_train.ipynb report.json files.json protocol.yaml front.yaml history.csv checkpoint.pt .lock
    {folders.LOCK} models.js draw.html front.html.j2 predicted.safetensors.xz
""".split()
PLACES = """
    analyses pages runs/gru-seed42 runs/7 notebooks figures logs variants .snakemake .sources sub
    sub/pages
""".split()
FILES = st.builds(os.path.join, st.sampled_from(["", *PLACES]), st.sampled_from(NAMES))
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
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


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


@pytest.fixture
def project(place, monkeypatch):
    """A small project in the place of the real one: two reports, and one that is published."""
    page = Page("03_compare", "Which?", Markup("<h1>Which?</h1>"), False)
    monkeypatch.setattr(publish, "_execute", lambda notebook, report: page)
    for name, module in list(sys.modules.items()):
        if name.startswith("rnnbench_nb") and hasattr(module, "PROJECT"):
            monkeypatch.setattr(module, "PROJECT", place / "project")
    template = place / "template"
    write(template, {"notebooks/03_compare.ipynb": b"{}", "README.md": b"", "params/p.yaml": b""})
    write_tiny(template / "params/p.yaml", models="[gru]")
    for name, accuracy in {"mine": 0.9, "other": 0.8}.items():
        write_small(template / f"reports/{name}", {"gru": [accuracy]})
    publish.publish(template / "reports/other", template / "reports/published/theirs")
    return place / "project"


def commands(where: str, project: Path) -> list[list[str]]:
    """Every command that takes a folder, with `where` in its place."""
    run = ["run", str(project / "params/p.yaml"), "--output-dir", where]
    mine = ["publish", str(project / "reports/mine"), "--to", where]
    plain = [[name, where] for name in ("render", "site", "verify", "show", "check", "data")]
    longer = [["--remake", where], ["--draw", f"{where}/runs/7"]]
    others = [["publish", where, "--to", where, "--replace"], ["bench", "--json", where]]
    others += [["site", where, *words] for words in longer]
    return [run, [*run, "--quick", "--runs", "2"], mine, [*mine, "--replace"], *others, *plain]


THEIRS = "project/reports/published/theirs"
HERE = f"""
    home/thesis home / project project/params project/notebooks project/reports
    project/reports/published {THEIRS} {THEIRS}/new project/reports/mine/new project/reports/other
""".split()


@pytest.mark.parametrize("where", HERE)
@settings(LIMITS, max_examples=4)
@given(files=TREES, form=st.sampled_from(["itself", "link", "dot", "new"]))
def test_no_command_changes_a_file_that_it_did_not_make(project, where, files, form):
    place = project.parent
    plt.close("all")  # of publications
    for folder in (place / "home", project):
        shutil.rmtree(folder, ignore_errors=True)
    (place / "link").unlink(missing_ok=True)
    shutil.copytree(place / "template", project)
    folder = place / where
    (folder if where != "/" else place / "home").mkdir(parents=True, exist_ok=True)
    ours = content(place)
    if "front.html.j2" in files:
        files.pop(folders.LIST, None)
    if where != "/":
        write(folder, {name: files[name] for name in files if not (folder / name).exists()})
    (place / "link").symlink_to(folder)
    os.chdir(folder)
    name = {"link": place / "link", "dot": ".", "new": folder / "new/one"}.get(form, folder)
    before, may = content(place), set()
    if "front.html.j2" in files:  # then a front page is made, and listed, in any folder
        may = {f"{where}/{folders.LIST}"} & {*ours}
    for command in commands("~" if (where, form) == ("home", "itself") else str(name), project):
        if (command[0], where) == ("render", "project/reports/other"):
            continue  # a report that one works on
        if command[0] == "bench" and not Path(command[-1]).exists():
            continue  # a new file, which takes minutes
        result = rnnbench_here(*command)
        after = content(place)
        may |= {*ours} if where == THEIRS and {"--replace", "--remake"} & {*command} else set()
        assert {name for name in before if after.get(name) != before[name]} <= may, command
        if form != "new" and where != THEIRS and "front.html.j2" not in files:
            new = after.keys() - before.keys() - {f"project/reports/other/{folders.LOCK}"}
            assert result.returncode and not new, command


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
    hidden = (".snakemake/", ".sources/")
    free = [name for name in files if not ((out / name).exists() or name.startswith(hidden))]
    theirs = {name: files[name] for name in free if name not in (folders.LIST, folders.LOCK)}
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
