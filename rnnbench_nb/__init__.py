"""LSTM, GRU and A-GRU on Sequential MNIST: the helpers behind the notebooks."""

__all__ = ["load_run"]


def __getattr__(name: str) -> object:
    """Import `load_run`, and torch with it, on first use: a wrong option fails in a second."""
    if name == "load_run":
        from rnnbench_nb.results import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
