"""Mend the programs of an environment that was moved or copied: they start the Python beside them.

Called by `make env` with that Python; nothing of the package is imported.
"""

import sys
import venv
from importlib.metadata import distributions
from pathlib import Path

from pip._vendor.distlib.scripts import ScriptMaker  # as pip writes them


def relocate(folder: Path) -> None:
    """Write the programs of all installed packages, and those of venv, to `folder` again."""
    venv.create(folder.parent, symlinks=True)
    maker = ScriptMaker(None, str(folder))
    maker.variants, maker.clobber, maker.set_mode = {""}, True, True
    for package in distributions():
        for program in package.entry_points.select(group="console_scripts"):
            maker.make(f"{program.name} = {program.value}")


if __name__ == "__main__":
    relocate(Path(sys.executable).parent)
