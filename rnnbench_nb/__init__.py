"""Recurrent cells compared, does an antisymmetric one earn its keep: helpers of the notebooks."""

__all__ = ["load_run"]


def __getattr__(name: str) -> object:
    """Import `load_run`, the version, or the module of a cell by its class name, on first use."""
    if name == "load_run":
        from rnnbench_nb.report import load_run

        return load_run
    if name == "__version__":
        from importlib.metadata import version

        return version("rnnbench_nb")
    if name[:1].isupper():
        from rnnbench_nb.cells import CELLS, module

        for cell in CELLS.values():
            if cell.__name__ == name:
                return module(cell.name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
