"""Values that come from people: YAML read strictly, checked, and refused in one sentence."""

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnnbench_nb.errors import UserError

Size = Annotated[int, Field(ge=1, le=1_000_000)]
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


def validate(kind: type[Frozen], values: Mapping[str, Any], where: str) -> Any:
    """An instance of `kind` with these values.

    Raises:
        UserError: One sentence on the first key that is wrong.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error.errors()[0], kind)}") from error


def unknown(key: str, known: Any) -> str:
    """That a key is unknown, and which known one is nearest."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key {key!r}" + (f"; the nearest known key is {nearest[0]!r}." * bool(nearest))


def _sentence(error: dict, kind: type[Frozen]) -> str:
    """What is wrong with a key, and what would be right."""
    key = ".".join(str(part) for part in error["loc"])
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return unknown(key, kind.model_fields)
    if error["type"] in ("float_type", "int_type") and isinstance(value, str):
        try:
            return (
                f"{key}: {value!r} is text to YAML, where a number belongs; "
                f"write {_number(float(value))}."
            )
        except ValueError:
            pass
    problem = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {problem.removeprefix('value error, ')}, but {str(value)[:60]!r} is given."


def _number(value: float) -> str:
    """A number as YAML 1.1 reads it: 1.0e-03, not 1e-03."""
    return yaml.safe_dump(value).split("\n")[0] if math.isfinite(value) else "a finite number"
