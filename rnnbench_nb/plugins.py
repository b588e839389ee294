"""Find the cells and the tasks, each of which is a file in a folder."""

import importlib
import pkgutil
from types import ModuleType
from typing import TypeVar

from rnnbench_nb.errors import UserError

T = TypeVar("T")


def discover(package: ModuleType, kind: type[T]) -> dict[str, type[T]]:
    """Return the subclasses of `kind` that the files of a package define, by their `name`.

    Raises:
        UserError: A file cannot be imported, or two classes have the same name.
    """
    entries: dict[str, type[T]] = {}
    for _, file, _ in pkgutil.iter_modules(package.__path__):
        path = f"{package.__path__[0]}/{file}.py"
        try:
            module = importlib.import_module(f"{package.__name__}.{file}")
        except Exception as error:  # whatever a contributed file raises
            raise UserError(f"{path} cannot be imported ({error}); fix or remove it.") from error
        for entry in vars(module).values():
            if isinstance(entry, type) and issubclass(entry, kind) and "name" in vars(entry):
                name = vars(entry)["name"]
                if entries.setdefault(name, entry) is not entry:
                    raise UserError(f"{path}: the name {name!r} is in use; choose another.")
    return entries
