"""Tables of cells and tasks: one file an entry, found by looking into its folder."""

import importlib
import pkgutil
from types import ModuleType

from rnnbench_nb.errors import UserError


class _Lazy:
    """`torch`, imported when it is first used: names, options and results need none of it."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module("torch"), name)


torch = _Lazy()


def discover(package: ModuleType, kind: type) -> dict[str, type]:
    """The subclasses of `kind` with a `name` that the files of a package define, by that name.

    Raises:
        UserError: A file cannot be imported, or a name is taken twice.
    """
    found: dict[str, type] = {}
    for _, file, is_folder in pkgutil.iter_modules(package.__path__):
        if is_folder:
            continue
        path = f"{package.__path__[0]}/{file}.py"
        try:
            module = importlib.import_module(f"{package.__name__}.{file}")
        except Exception as error:  # whatever a contributed file raises
            raise UserError(f"{path} cannot be imported ({error}); mend or remove it.") from error
        for entry in vars(module).values():
            if not (isinstance(entry, type) and issubclass(entry, kind) and "name" in vars(entry)):
                continue
            if entry.__module__ == module.__name__:
                if entry.name in found:
                    raise UserError(f"{path}: the name {entry.name!r} is taken; choose another.")
                found[entry.name] = entry
    return found
