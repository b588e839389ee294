import os
import time
from pathlib import Path

import pytest
import yaml

from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import LIMIT, Frozen, Size, parse_yaml, read_yaml, to_yaml, validate

ODD = "1e-3 -1.5E3 0o7 None yes No y null 007 12:30 1_0 0x1f .5 ~ *a 2020-01-01"
VALUES = {
    "floats": [1e-5, 1e16, 0.1, 2.0, float("inf")],
    "plain": ["gru", "lem_dt_0.3", "a-b/c.py", *ODD.split()],
    "long": ["", "a: b #c", "ü x", "two\nlines", "- a", "x" * 300],
    "on": {"true": True, "nothing": None, "empty": {}, "1e-3": {"lr": 3, "list": []}},
}


def test_what_is_written_means_the_same_to_readers_of_both_versions_of_yaml():
    text = to_yaml(VALUES)
    assert parse_yaml(text, "here") == VALUES
    assert yaml.safe_load(text) == VALUES  # as papermill reads it


def test_yaml_is_read_by_version_1_2():
    text = "a: 1e-3\nb: 1e2\nc: yes\nd: None\ne: 012\nf: .5\ng: null\nh: 12:30\ni: {x: 1}"
    values = {"a": 0.001, "b": 100.0, "c": "yes", "d": "None", "e": 12, "f": 0.5, "g": None}
    assert parse_yaml(text, "here") == {**values, "h": "12:30", "i": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "this YAML cannot be read .*at line 1"),
        ("a: 1\nb: 2\na: 3", 'duplicate key "a".* at line 3'),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &a [*a]", "aliases are not allowed; write the value out"),
        ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases are not allowed"),
        ("a: &a {b: 1}\nc: {<<: *a}", "aliases are not allowed"),
        ("[" * 1000, "recursion"),
        ("".join(f"key{n}: 1\n" for n in range(LIMIT // 8)), f"longer than {LIMIT:,} characters"),
        ("a: \0", "YAML cannot be read"),
        ("a: 1\n---\nb: 2", "YAML cannot be read"),
    ],
)
def test_what_is_no_yaml_or_grows_without_end_gets_a_sentence_at_once(text, sentence):
    start = time.process_time()
    with pytest.raises(UserError, match=f"^here: .*{sentence}") as error:
        parse_yaml(text, "here")
    assert time.process_time() - start < 5 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file"),
        (os.mkfifo, "it is a named pipe"),
        (os.mkdir, "Is a directory"),
        (b"\0" * 3 * LIMIT, f"longer than {LIMIT:,} characters"),
        (b"a: \xe9", "not UTF-8 text"),
        (b"# nothing", "must hold KEY: VALUE lines"),
        (b"- a", "must hold KEY: VALUE lines"),
        (b"1: a", "must hold KEY: VALUE lines"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_remedy(tmp_path, content, sentence):
    path = tmp_path / "p.yaml"
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}.*{sentence}.*(name another|write KEY)"):
        read_yaml(path, "name another")


def test_a_shells_pipe_is_read_to_its_end():
    reader, writer = os.pipe()
    os.write(writer, b"models: [lem]")
    os.close(writer)
    assert read_yaml(Path(f"/dev/fd/{reader}"), "name another") == {"models": ["lem"]}
    os.close(reader)


class Sized(Frozen):
    """Something with a number."""

    hidden_size: Size = 8
    rate: float | None = None


def test_a_wrong_value_is_named_with_what_would_be_right():
    assert validate(Sized, {"hidden_size": 100, "rate": 1}, "p") == Sized(hidden_size=100, rate=1.0)
    for values, sentence in [
        ({"hidden_size": 0}, "hidden_size: input should be greater than or equal to 1, but 0 is"),
        ({"hidden_size": 0.5}, "hidden_size: input should be a valid integer, but 0.5 is given"),
        ({"hidden_size": True}, "hidden_size: input should be a valid integer, but True is given"),
        ({"rate": "1e-3"}, "rate: input should be a valid number, but '1e-3' is given"),
        ({"size": 3}, "unknown key 'size'; the nearest known key is 'hidden_size'."),
        ({"qqq": 3}, "unknown key 'qqq'; `rnnbench check` prints the known."),
    ]:
        with pytest.raises(UserError) as error:
            validate(Sized, values, "p")
        assert str(error.value).startswith(f"p: {sentence}")
