"""Recurrent cells compared: does an antisymmetric one earn its keep?"""

from typing import Any

__all__ = ["load_run"]


def load_run(folder: Any) -> Any:
    """Read a finished run (`results.load_run`)."""
    from rnnbench_nb import results

    return results.load_run(folder)
