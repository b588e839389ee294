"""The one error that is meant for users, and a function for its most frequent case."""

from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class UserError(ValueError):
    """An error of the user: one sentence with the file, key or run, the fault, and the remedy."""


def lookup(table: Mapping[str, Entry], key: str, name: object) -> Entry:
    """Return `table[name]`, or raise a UserError that names the key and the choices."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{key}: {name!r} is unknown; it must be one of {', '.join(table)}.")
    return table[name]
