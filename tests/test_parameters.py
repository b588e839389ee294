import os
import time

import pytest
import yaml

from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import LIMIT, Frozen, Size, parse_yaml, read_yaml, to_yaml, validate

VALUES = {
    "floats": [1e-5, 1e16, 0.1, 2.0, float("inf")],
    "plain": ["gru", "lem_dt_0.3", "a-b/c.py"],
    "odd": ["1e-3", "None", "yes", "No", "y", "null", "007", "12:30", "1_0", "0x1f", ".5", "~", ""],
    "long": ["a: b #c", "ü x", "two\nlines", "- a", "*a", "2020-01-01", "x" * 300],
    "on": {"true": True, "nothing": None, "empty": {}, "1e-3": {"lr": 3, "list": []}},
}


def test_what_is_written_means_the_same_to_readers_of_both_versions_of_yaml():
    text = to_yaml(VALUES)
    assert parse_yaml(text, "here") == VALUES
    assert yaml.safe_load(text) == VALUES  # as papermill reads it


def test_yaml_is_read_by_version_1_2():
    text = "a: 1e-3\nb: 1e2\nc: yes\nd: None\ne: 012\nf: .5\ng: null\nh: 12:30\ni: &i {x: 1}\n"
    values = {"a": 0.001, "b": 100.0, "c": "yes", "d": "None", "e": 12, "f": 0.5, "g": None}
    values |= {"h": "12:30", "i": {"x": 1}, "j": {"x": 1, "y": 2}}
    assert parse_yaml(text + "j: {<<: *i, y: 2}", "here") == values


LAUGHS = "a0: &a0 [1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "this is not valid YAML .*at line 1"),
        ("a: 1\nb: 2\na: 3", 'duplicate key "a".* at line 3'),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &a [*a]", "recursion"),
        ("[" * 1000, "recursion"),
        (LAUGHS, "more than 100,000 values"),
        (MERGED, "more than 100,000 values"),
        ("".join(f"key{n}: 1\n" for n in range(40_000)), "longer than 100,000 characters"),
        ("a: \0", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_or_grows_without_end_gets_a_sentence_at_once(text, sentence):
    start = time.process_time()
    with pytest.raises(UserError, match=f"^here: .*{sentence}") as error:
        parse_yaml(text, "here")
    assert time.process_time() - start < 5 and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "p.yaml"
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(300_000_000)  # of zeros
    for name, content, sentence in [
        ("p.yaml", None, "No such file"),
        ("pipe", None, "is not a regular file"),
        ("huge", None, f"longer than {LIMIT:,} characters"),
        ("p.yaml", b"a: \xe9", "not UTF-8 text"),
        ("p.yaml", b"# nothing", "is empty"),
        ("p.yaml", b"- a", "must hold KEY: VALUE lines"),
        ("p.yaml", b"1: a", "must hold KEY: VALUE lines"),
    ]:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*{sentence}"):
            read_yaml(tmp_path / name, "name another")


class Sized(Frozen):
    """Something with a number."""

    hidden_size: Size = 8
    rate: float | None = None


def test_a_wrong_value_is_named_with_what_would_be_right():
    assert validate(Sized, {"hidden_size": 1e2}, "p").hidden_size == 100  # a float that is whole
    for values, sentence in [
        ({"hidden_size": 0}, "hidden_size: input should be greater than or equal to 1, but 0 is"),
        ({"hidden_size": 0.5}, "hidden_size: input should be a valid integer, but 0.5 is given"),
        ({"hidden_size": True}, "hidden_size: input should be a valid integer, but True is given"),
        ({"rate": "1e-3"}, "rate: input should be a valid number, but '1e-3' is given"),
        ({"size": 3}, "unknown key 'size'; the nearest known key is 'hidden_size'."),
        ({"hs": 3}, "unknown key 'hs'; the nearest known key is 'hidden_size'."),
        ({"qqq": 3}, "unknown key 'qqq'; `rnnbench check` prints the known."),
    ]:
        with pytest.raises(UserError) as error:
            validate(Sized, values, "p")
        assert str(error.value).startswith(f"p: {sentence}")
    with pytest.raises(ValueError, match="frozen"):
        Sized().hidden_size = 3
