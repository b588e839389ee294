"""A recurrent cell with a linear head, and one initialisation policy for all cells."""

import torch
from torch import Tensor, nn

from rnnbench_nb.cells import CELLS, Cell
from rnnbench_nb.cells.base import draw
from rnnbench_nb.protocol import RunParameters


class SequenceModel(nn.Module):
    """A cell that reads a sequence, and a linear head on the first H numbers of its state.

    Args:
        cell: A cell with batch_first=True.
        outputs: Number of outputs of the head, K.
        dropout: Probability in [0, 1) that a unit is dropped before the head.
        read: "last" for an answer after the last step, "every" for one after each step.
    """

    def __init__(self, cell: Cell, outputs: int, dropout: float = 0.0, read: str = "last"):
        super().__init__()
        self.cell = cell
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(cell.hidden_size, outputs)
        self.read = read

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute outputs (B, K), or (B, T, K) if `read` is "every", from inputs (B, T, D)."""
        states, last = self.cell(inputs)
        if self.read == "last":
            last = last[0] if isinstance(last, tuple) else last  # torch's LSTM returns (h, c)
            states = last[-1, ..., : self.cell.hidden_size]  # (B, H)
        return self.head(self.dropout(states))

    def recurrence(self) -> dict[str, Tensor]:
        """Copy the cell's recurrent matrix (H, H) and step size; {} if it has none."""
        matrix = self.cell.recurrent_matrix()
        if matrix is None:
            return {}
        step_size = torch.as_tensor(self.cell.step_size())
        return {"matrix": matrix.detach().clone(), "step_size": step_size.detach().clone()}


def build_model(
    parameters: RunParameters,
    input_size: int,
    outputs: int,
    generator: torch.Generator,
    read: str = "last",
) -> SequenceModel:
    """Build the model that the parameters describe, for `input_size` features a step, D.

    Every matrix is uniform on +-1/sqrt(H), which is torch's bound for its LSTM and GRU, or Xavier
    uniform; every vector is 0. Then the cell makes its own changes: the LSTM sets its forget bias,
    the A-GRU its step size.
    """
    units, policy = parameters.hidden_size, parameters.initialisation
    options = parameters.cell_options.model_dump()
    cell = CELLS[parameters.model](input_size, units, batch_first=True, **options)
    model = SequenceModel(cell, outputs, parameters.dropout, read)
    cell.draw(generator, policy)
    draw(model.head, units, generator, policy)
    cell.initialise(generator)
    return model


def count(model: SequenceModel) -> tuple[int, int]:
    """Return the number of trained parameters, and the number of those that are free.

    Of two biases that act only as their sum one is free, and W - W^T of H units has H (H - 1) / 2.
    """
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return total, total - model.cell.redundant_parameters()
