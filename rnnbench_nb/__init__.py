"""Recurrent cells compared: does an antisymmetric one earn its keep?"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnnbench_nb.results import Run

__all__ = ["load_run"]


def load_run(folder: str) -> "Run":
    """Read a finished run (`results.load_run`)."""
    from rnnbench_nb import results

    return results.load_run(folder)
