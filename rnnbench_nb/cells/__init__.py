"""The table of cells: one file a cell, found by name. `module` makes the torch module of one.

To add a cell, put one file here (README, "Add a cell"); nothing else is edited.
"""

import sys
from functools import cache

from rnnbench_nb.cells.base import Cell
from rnnbench_nb.errors import lookup
from rnnbench_nb.plugins import discover

__all__ = ["CELLS", "Cell", "module"]

CELLS: dict[str, type[Cell]] = discover(sys.modules[__name__], Cell)


@cache
def module(name: str) -> type:
    """The torch module of a cell, with the interface of torch.nn.GRU as far as it is used.

    Raises:
        UserError: No file defines a cell of this name.
    """
    from rnnbench_nb import recurrent  # loads torch

    cell = lookup(CELLS, "model", name)
    return recurrent.module_of(cell)
