"""Files of a report as they come back from other programs, disks and hands, under each command."""

import shutil

import nbformat
import pytest
from click.testing import CliRunner
from conftest import write_tiny
from made import write_made_report

from rnnbench_nb import analyses, cli, figures, launch, site
from rnnbench_nb.cli import main
from rnnbench_nb.errors import UserError
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report, load_run, write_tables
from rnnbench_nb.runs import train_run
from rnnbench_nb.site.publish import publish

RUN = "runs/gru-seed1"
FILES = ["protocol.yaml", "results.csv", f"{RUN}/run.json", f"{RUN}/history.csv",
         f"{RUN}/predicted.safetensors"]  # fmt: skip


def unreadable(path):
    path.unlink()
    path.mkdir()  # as root may read any file


DAMAGES = {
    "absent": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "random": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "unreadable": unreadable,
}
TABLES = {
    "semicolons": lambda text: text.replace(",", ";").encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "byte-order mark": lambda text: text.encode("utf-8-sig"),
}
CASES = [(file, damage) for file in FILES for damage in DAMAGES]
CASES += [(file, table) for file in FILES if file.endswith(".csv") for table in TABLES]
VERIFIED = {"protocol.yaml", "results.csv", f"{RUN}/run.json", f"{RUN}/predicted.safetensors"}


def without_figures(monkeypatch):
    """Functions in the places of those that draw, which take long and read nothing."""
    for name in ("training_curves", "error_curves", "test_errors", "save"):
        monkeypatch.setattr(figures, name, lambda *arguments: None)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A small report, and functions in the places of what takes long and reads nothing."""
    monkeypatch.setattr(cli, "PROJECT", tmp_path)
    without_figures(monkeypatch)
    folder = tmp_path / "reports/made"
    answers = {("gru", 1): ([0, 1, 2], [0, 1, 1])}
    write_tables(write_made_report(folder, {"gru": {"model": "gru"}}, answers, seeds=(1,)))
    (folder / "index.html").touch()
    return folder


@pytest.mark.parametrize(("file", "damage"), CASES)
def test_a_file_that_is_not_as_it_was_gets_one_sentence(made, file, damage):
    path = made / file
    if damage in TABLES:
        path.write_bytes(TABLES[damage](path.read_text()))
    else:
        DAMAGES[damage](path)
    commands = [[name, made] for name in ("verify", "collect", "render", "publish")]
    commands += [["show", made / RUN], ["list"], ["run", made / "protocol.yaml", "--dry-run"]]
    codes = {}
    for name, *arguments in commands:
        result = CliRunner().invoke(main, [name, *map(str, arguments)])
        codes[name] = result.exit_code
        if result.exit_code:
            assert result.stderr.count("\n") == 1 and result.stderr.startswith("rnnbench: ")
            assert "delete" not in result.stderr and str(made) in result.stderr
    harmless = damage == "byte-order mark"
    assert codes["verify"] == (file in VERIFIED and not harmless)
    assert codes["show"] == file.endswith("run.json")
    assert codes["list"] == 0  # it says so in the report's row
    assert codes["render"] == codes["run"] == (file == "protocol.yaml")
    cannot_write = (file, damage) == ("results.csv", "unreadable")
    assert codes["collect"] == (file == "protocol.yaml" or cannot_write)
    assert codes["publish"] == 1  # without weights


WHOLE, PUBLISHED, BEGUN = "reports/whole", "reports/published/whole", "reports/begun"
TRAINED = "runs/agru-seed42"
COMMANDS = {
    "verify": ["verify", WHOLE], "collect": ["collect", WHOLE], "publish": ["publish", WHOLE],
    "run": ["run", f"{WHOLE}/protocol.yaml", "--dry-run", "--output-dir", WHOLE],
    "site": ["site", "reports/published"], "publish partial": ["publish", BEGUN, "--partial"],
}  # fmt: skip
READ = {  # what else reads files of a report: notebooks, and those who load a run
    "weights": lambda: [load_run(f"{WHOLE}/{TRAINED}").model.eval(),
                        load_run(f"{WHOLE}/{TRAINED}").initial_model.eval()],
    "analyse": lambda: analyses.analyse("comparison", Report(WHOLE)),
    "analyse published": lambda: analyses.analyse("comparison", Report(PUBLISHED)),
}  # fmt: skip
HARMLESS = {"byte-order mark"}
# Of each file what fails where it is damaged, and the damages where nothing does.
FAILS = {
    f"{WHOLE}/variants/agru.yaml": ({"run"}, {"absent"}),
    f"{WHOLE}/notebooks/03_compare.ipynb": ({"publish"}, {"absent"}),
    f"{WHOLE}/{TRAINED}/02_train.ipynb": ({"publish"}, {"absent"}),
    f"{WHOLE}/{TRAINED}/best.safetensors": ({"weights"}, {}),
    f"{WHOLE}/{TRAINED}/initial.safetensors": ({"weights"}, {}),
    f"{WHOLE}/results.csv": ({"verify", "publish"}, HARMLESS),
    f"{WHOLE}/history.csv": ({"publish"}, HARMLESS),
    f"{WHOLE}/analyses/comparison/findings.json": ({"publish"}, {"absent"}),
    f"{WHOLE}/analyses/comparison/comparison.csv": ({"publish"}, HARMLESS),
    f"{PUBLISHED}/history.csv": ({"site", "analyse published"}, HARMLESS),
    f"{PUBLISHED}/predicted.safetensors.xz": ({"site", "analyse published"}, {}),
    f"{PUBLISHED}/analyses/comparison/findings.json": ({"site", "analyse published"}, {"absent"}),
    f"{PUBLISHED}/analyses/comparison/comparison.csv": ({"site", "analyse published"}, HARMLESS),
    "reports/published/front.yaml": ({"site"}, {}),
    f"{BEGUN}/runs/agru-seed43/checkpoint.pt": ({"publish partial"}, {}),
}  # fmt: skip


def expected(file, damage):
    """What fails: where the file is read, and where a folder stands in its place, written."""
    fails, harmless = FAILS[file]
    found, name = set() if damage in harmless else set(fails), file.rpartition("/")[2]
    if damage == "unreadable" and file.startswith(WHOLE) and name in ("results.csv", "history.csv"):
        found.add("collect")
    if damage == "unreadable" and file.startswith(f"{WHOLE}/analyses"):
        found.add("analyse")
    if name == "front.yaml" and damage != "absent":  # where there is one, the front page is made
        found |= {"publish", "publish partial"}
    return found


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A finished report, what is published of it, and one with a run under way."""
    root = tmp_path_factory.mktemp("reports")
    whole, begun = root / WHOLE, root / BEGUN

    def killed(line):
        if "  epoch " in line:
            raise KeyboardInterrupt

    def notebook(path):
        cells = [nbformat.v4.new_markdown_cell("# A page")]
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)

    for folder, count in ((whole, 1), (begun, 2)):
        protocol = load_protocol(write_tiny(root / "p.yaml", models="[agru]", runs=count, epochs=1))
        launch.write_parameters(folder, protocol)
    train_run(protocol.at(42)[0], whole / TRAINED, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        train_run(protocol.at(43)[0], begun / "runs/agru-seed43", killed)
    notebook(whole / TRAINED / "02_train.ipynb")
    notebook(whole / "notebooks/03_compare.ipynb")
    analyses.analyse("comparison", Report(whole))
    write_tables(Report(whole))
    site.build(whole)
    publish(whole, root / PUBLISHED)
    front = "title: What is said of damaged files\npair: [agru, gru]\n"
    (root / "reports/published/front.yaml").write_text(front)
    return root


def outcome(name):
    """What a command or a reader says of its failure; empty where it has none."""
    if name in READ:
        try:
            READ[name]()
        except UserError as error:
            return f"rnnbench: {error}\n"
        return ""
    result = CliRunner().invoke(main, COMMANDS[name], catch_exceptions=False)
    assert bool(result.exit_code) == bool(result.stderr)
    return result.stderr


@pytest.mark.parametrize(
    ("file", "damage"),
    [(file, damage) for file in FAILS
     for damage in [*DAMAGES, *(TABLES if file.endswith(".csv") else [])]],
)  # fmt: skip
def test_a_damaged_file_is_named_by_all_that_read_it(reports, tmp_path, monkeypatch, file, damage):
    shutil.copytree(reports / "reports", tmp_path / "reports")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "PROJECT", tmp_path)
    without_figures(monkeypatch)
    path = tmp_path / file
    if damage in TABLES:
        path.write_bytes(TABLES[damage](path.read_text()))
    else:
        DAMAGES[damage](path)
    fails = expected(file, damage)
    for name in sorted(FAILS[file][0] | fails):
        said = outcome(name)
        assert bool(said) == (name in fails), (name, said)
        assert said.count("\n") == bool(said) and "delete" not in said
        assert not said or path.name in said or damage == "absent", said
