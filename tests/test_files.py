import os

import pytest

from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import write_file


def test_a_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "a.txt"
    write_file(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt cannot be written \(No space left on device\)"):
        write_file(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]  # no temporary file stays behind


def test_an_unknown_name_is_told_with_the_known_ones():
    assert lookup({"row": 1}, "reading", "row") == 1
    with pytest.raises(UserError, match="reading: 'column' is unknown; it must be one of row."):
        lookup({"row": 1}, "reading", "column")
