"""The one error that is meant for the user, and the most common way to raise it."""

from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class UserError(ValueError):
    """One clear sentence: which file, key or run it is, what is wrong, and what would be right."""


def lookup(table: Mapping[str, Entry], key: str, name: object) -> Entry:
    """Return `table[name]`; an unknown name is a UserError that names the key and the choices."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{key}: {name!r} is unknown; it must be one of {', '.join(table)}.")
    return table[name]
