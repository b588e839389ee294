"""LSTM, GRU and A-GRU on Sequential MNIST: the helpers behind the notebooks."""

from rnnbench_nb.results import load_run

__all__ = ["load_run"]
