"""Values that come from people: YAML read strictly, checked, and refused in one sentence."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnnbench_nb.errors import UserError

Size = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.+=-]{0,63}$")]


class Frozen(BaseModel):
    """Unknown keys, wrong types and impossible values are refused; nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as papermill reads it, except that a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        merge = "tag:yaml.org,2002:merge"  # <<: *anchor
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise UserError(f"key {key!r} is given twice; give it once.")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The value that a piece of YAML stands for; `where` names it in an error.

    Raises:
        UserError: The text is no YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{where}: this is not valid YAML{line}; write KEY: VALUE lines."
        ) from error


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """The values of a YAML file of KEY: VALUE lines.

    Args:
        path: The file.
        remedy: What to do about one that cannot be read.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is missing or damaged; {remedy}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no KEY: VALUE lines; {remedy}.")
    return values


def validate(kind: type[Frozen], values: Mapping[str, Any], where: str) -> Any:
    """An instance of `kind` with these values.

    Raises:
        UserError: One sentence on the first key that is wrong.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error.errors()[0], kind)}") from error


def as_meant(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with what is a number or None but not to YAML as what it is meant to be.

    To YAML 1.1, 1e-3 and None are text and 1e2 is no whole number. What may be text stays text.

    Args:
        values: By key.
        fields: The fields of the keys that are known (`model_fields`).
    """
    return {key: _meant(value, _kinds(fields[key].annotation)) if key in fields else value
            for key, value in values.items()}  # fmt: skip


def _kinds(annotation: Any) -> set:
    """The types that an annotation allows."""
    parts, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        return _kinds(parts[0])
    if origin is Literal or not parts:
        return {origin or annotation}
    return set().union(*map(_kinds, parts))


def _meant(value: Any, kinds: set) -> Any:
    if value == "None" and NoneType in kinds and str not in kinds:
        return None
    if isinstance(value, str) and kinds & {int, float}:
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and int in kinds and value.is_integer():
        return int(value)
    return value


def unknown(key: str, known: Any) -> str:
    """That a key is unknown, and which known one is nearest: `lr` is learning_rate."""
    words = {name: name.split("_") for name in known}
    near = [name for name in known
            if key == "".join(word[0] for word in words[name]) or key in words[name]]  # fmt: skip
    near += difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"the nearest known key is {near[0]!r}" if near else "`rnnbench check` prints the known"
    return f"unknown key {key!r}; {hint}."


def _sentence(error: dict, kind: type[Frozen]) -> str:
    """What is wrong with a key, and what would be right."""
    key = ".".join(str(part) for part in error["loc"])
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return unknown(key, kind.model_fields)
    problem = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {problem.removeprefix('value error, ')}, but {str(value)[:60]!r} is given."
