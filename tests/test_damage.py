"""Files of a report as they come back from other programs, disks and hands, under each command."""

import pytest
from click.testing import CliRunner
from made import write_made_report

from rnnbench_nb import cli, figures
from rnnbench_nb.cli import main
from rnnbench_nb.report import write_tables

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


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A small report, and functions in the places of what takes long and reads nothing."""
    monkeypatch.setattr(cli, "PROJECT", tmp_path)
    for name in ("training_curves", "error_curves", "test_errors", "save"):
        monkeypatch.setattr(figures, name, lambda *arguments: None)
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
