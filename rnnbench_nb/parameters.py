"""Values that people write: YAML is read strictly, and frozen classes check what it says."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rnnbench_nb.errors import UserError

LIMIT = 100_000  # characters of a YAML file, and values in it once its aliases are written out
WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")  # no text to some YAML reader


def _whole(value: object) -> object:
    """Convert a float without a fraction, such as `1e2`, to the integer that it means."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
Size = Annotated[Integer, Field(ge=1, le=1_000_000)]
Count = Annotated[Integer, Field(ge=0, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["plateau", "cosine", "none"]  # of the learning rate
Name = Annotated[str, Field(pattern=r"^\w[\w.+=-]{0,63}$")]


class Frozen(BaseModel):
    """Refuses unknown keys, wrong types and impossible values; an instance never changes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Kind = TypeVar("Kind", bound=Frozen)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value that a piece of YAML 1.2 stands for.

    Args:
        text: The YAML.
        where: Names its source in an error.

    Raises:
        UserError: The text is not valid YAML, gives a key twice, or is longer than `LIMIT`.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    @cache
    def size(node: Any) -> int:
        """Count the values below a node; an aliased node counts wherever it is used."""
        if isinstance(node.value, str):
            return 1
        pairs = (part if isinstance(part, tuple) else (part,) for part in node.value)
        return 1 + sum(size(child) for pair in pairs for child in pair)

    try:
        if len(text) > LIMIT:
            raise OverflowError(f"longer than {LIMIT:,} characters")
        constructor, _ = YAML(typ="safe", pure=True).get_constructor_parser(StringIO(text))
        node = constructor.composer.get_single_node()
        if node and size(node) > LIMIT:
            raise OverflowError(f"more than {LIMIT:,} values")
        return constructor.construct_document(node) if node else None
    except (YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:100]
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{where}: this is not valid YAML ({problem}{line}); write KEY: VALUE lines, each key "
            "once."
        ) from error


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Return the values of a YAML file of KEY: VALUE lines.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise UserError(f"{path} is not a regular file; {remedy}.")
        with path.open(encoding="utf-8") as file:
            values = parse_yaml(file.read(LIMIT + 1), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path}: the file cannot be read ({reason}); {remedy}.") from error
    if values is None:
        raise UserError(f"{path}: the file is empty; {remedy}.")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: the file must hold KEY: VALUE lines, keys being names.")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """Write values as YAML that means the same to readers of version 1.2 and 1.1 (papermill)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        """Quotes text that a reader takes for something else; gives each float a point."""

    def text(self: Representer, value: str) -> Any:
        plain = re.fullmatch(r"[^\W\d_][\w./-]*", value) and value.lower() not in WORDS
        return self.represent_scalar("tag:yaml.org,2002:str", value, None if plain else '"')

    def number(self: Representer, value: float) -> Any:
        node = self.represent_float(value)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node

    Representer.add_representer(str, text)
    Representer.add_representer(float, number)
    yaml: Any = YAML(typ="safe", pure=True)
    stream = StringIO()
    yaml.Representer, yaml.default_flow_style, yaml.width = Representer, False, 1_000_000
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(dict(values), stream)
    return stream.getvalue()


def validate(kind: type[Kind], values: Mapping[str, Any], where: str) -> Kind:
    """Return an instance of `kind` with these values.

    Raises:
        UserError: One sentence on the first key that is wrong.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: {unknown(key, kind.model_fields)}") from error
        problem = first["msg"].removeprefix("Value error, ")
        problem = problem[0].lower() + problem[1:]
        raise UserError(
            f"{where}: {key}: {problem}, but {reprlib.repr(first['input'])} is given."
        ) from error


def unknown(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, and which known one is nearest: `lr` is learning_rate."""
    words = {name: name.split("_") for name in known}
    near = [
        name
        for name, parts in words.items()
        if key == "".join(part[0] for part in parts) or key in parts
    ]
    near += difflib.get_close_matches(key, words, n=1, cutoff=0.5)
    hint = f"the nearest known key is {near[0]!r}" if near else "`rnnbench check` prints the known"
    return f"unknown key {key!r}; {hint}."
