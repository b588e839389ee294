"""Parameters as people write them: strict YAML, the classes that check it, and budgets."""

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnnbench_nb.errors import UserError

LIMIT = 500_000  # most characters of a YAML file; a large search writes 200 a variant

Size = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["plateau", "cosine", "none"]  # schedule of the learning rate
Name = Annotated[str, Field(pattern=r"^\w[\w.+=-]{0,63}$")]


class Frozen(BaseModel):
    """An immutable model that refuses unknown keys, wrong types and impossible values."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Kind = TypeVar("Kind", bound=Frozen)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 without aliases; `where` names the source of the text in errors.

    Raises:
        UserError: The text is not such YAML, has a key twice, or is too long.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    def refuse(node: object) -> None:
        raise ValueError("aliases are not allowed; write the value out")

    yaml = YAML(typ="safe", pure=True)
    yaml.composer.return_alias = refuse
    try:
        if len(text) > LIMIT:
            raise ValueError(f"longer than {LIMIT:,} characters")
        return yaml.load(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:100]
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{where}: this YAML cannot be read ({problem}{line}); write KEY: VALUE lines, each "
            "key once."
        ) from error


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Read a YAML file of KEY: VALUE lines, or raise a UserError that ends with `remedy`."""
    try:
        if path.resolve().is_fifo():  # not so the pipe of a shell, as at /dev/stdin
            raise OSError(0, "it is a named pipe, which may never end")
        with path.open(encoding="utf-8") as file:
            values = parse_yaml(file.read(LIMIT + 1), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path}: the file cannot be read ({reason}); {remedy}.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: the file must hold KEY: VALUE lines with text as keys; {remedy}.")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """Format values as YAML that means the same in versions 1.2 and 1.1, papermill's."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """A dumper that quotes text if YAML 1.2 would read it as a number."""

    number = re.compile(r"[-+]?[\d_]*\.?[\d_]*[eE][-+]?\d+$|0o[0-7]+$")
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", number, [*"+-.0123456789"])
    options = {"sort_keys": False, "allow_unicode": True, "width": 1_000_000}
    return yaml.dump(dict(values), Dumper=Dumper, **options)


def validate(kind: type[Kind], values: Mapping[str, Any], where: str) -> Kind:
    """Build a `kind` from these values, or raise a UserError about the first wrong key."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: {unknown(key, kind.model_fields)}") from error
        problem, value = first["msg"].removeprefix("Value error, "), reprlib.repr(first["input"])
        problem = problem[0].lower() + problem[1:]
        raise UserError(f"{where}: {key}: {problem}, but {value} is given.") from error


def unknown(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, and which known one is nearest."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"the nearest known key is {near[0]!r}" if near else "`rnnbench check` prints the known"
    return f"unknown key {key!r}; {hint}."


def batches_of(parameters: Any, examples: int) -> int:
    """Return the number of batches in a full epoch, with or without an incomplete last one."""
    whole, rest = divmod(examples, parameters.batch_size)
    return whole + (rest > 0 and not (parameters.drop_last and whole))


def epochs_of(parameters: Any, examples: int) -> int:
    """Return the number of epochs in the budget; if `steps` limits it, the last may be short."""
    if not parameters.steps:
        return parameters.epochs
    return min(parameters.epochs, math.ceil(parameters.steps / batches_of(parameters, examples)))
