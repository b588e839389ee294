"""The models: one recurrent cell each, under the same classifier and the same initialisation.

To add a model, write its cell as a module with the interface of `torch.nn.GRU` in a small file
here and give it a row in `MODELS`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnbench_nb.config import ModelParameters
from rnnbench_nb.errors import lookup
from rnnbench_nb.models.agru import AGRU

__all__ = ["AGRU", "MODELS", "SequenceClassifier", "build_model", "count"]

FORGET_BIAS = 1.0  # of the LSTM (Jozefowicz et al. 2015); torch's two bias vectors share it


class Model(NamedTuple):
    """A row of the table of models.

    Attributes:
        cell: Makes the cell from `input_size, hidden_size, num_layers, dropout, batch_first`
            and the model parameters.
        redundant: Per layer, the parameters that only ever act together with others (see
            `count`).
    """

    cell: Callable[..., nn.Module]
    redundant: Callable[[ModelParameters], int]


def _agru(parameters: ModelParameters, **sizes) -> AGRU:
    return AGRU(
        **sizes,
        gamma=parameters.gamma,
        epsilon=parameters.epsilon,
        learnable_epsilon=parameters.learnable_epsilon,
        recurrence=parameters.recurrence,
    )


def _agru_redundant(parameters: ModelParameters) -> int:
    """W acts as W - W^T, which has n (n - 1) / 2 free entries out of n^2; the controls as W."""
    n = parameters.hidden_size
    return n * (n + 1) // 2 if parameters.recurrence == "antisymmetric" else 0


MODELS = {
    # torch's two bias vectors act as their sum: in all four gates of the LSTM ...
    "lstm": Model(lambda _, **sizes: nn.LSTM(**sizes), lambda p: 4 * p.hidden_size),
    # ... and in two gates of the GRU, whose candidate has the reset gate between them.
    "gru": Model(lambda _, **sizes: nn.GRU(**sizes), lambda p: 2 * p.hidden_size),
    "agru": Model(_agru, _agru_redundant),
}


class SequenceClassifier(nn.Module):
    """A recurrent cell that reads a sequence, and a linear head on its last hidden state.

    Args:
        cell: A module with the interface of `torch.nn.GRU` or `torch.nn.LSTM`, batch first.
        classes: Number of classes K.
        dropout: Probability in [0, 1) of dropping a unit before the head.
    """

    def __init__(self, cell: nn.Module, classes: int, dropout: float):
        super().__init__()
        self.cell = cell
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(cell.hidden_size, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Class scores (B, K), before the softmax, of sequences (B, T, D)."""
        _, last = self.cell(inputs)
        hidden = last[0] if isinstance(last, tuple) else last  # (layers, B, H); the LSTM adds c
        return self.head(self.dropout(hidden[-1]))

    def tracked(self) -> dict[str, Tensor]:
        """What is kept of the cell at every epoch: of an A-GRU, W (H, H) and epsilon (layer 0)."""
        if not isinstance(self.cell, AGRU):
            return {}
        _, w = self.cell.hidden_weights()
        return {"weight_hh": w.detach().clone(), "epsilon": self.cell.epsilon().detach().clone()}


def build_model(
    parameters: ModelParameters, input_size: int, classes: int, generator: torch.Generator
) -> SequenceClassifier:
    """The classifier that the parameters describe, initialised by one policy for all models.

    Every weight is uniform on +-1/sqrt(H), which is torch's own bound for LSTM and GRU and the
    same for each gate; every bias is 0, but the LSTM's forget gate starts at `FORGET_BIAS`. The
    A-GRU's W is then multiplied by `initial_scale`, which is 1 outside ablations.

    Args:
        parameters: The cell, its size and options.
        input_size: Features a step, D.
        classes: Number of classes, K.
        generator: The initialisation's own source of randomness.

    Raises:
        UserError: The model is not in the table.
    """
    cell = lookup(MODELS, "model", parameters.model).cell(
        parameters,
        input_size=input_size,
        hidden_size=parameters.hidden_size,
        num_layers=parameters.num_layers,
        dropout=parameters.dropout if parameters.num_layers > 1 else 0.0,  # between layers
        batch_first=True,
    )
    model = SequenceClassifier(cell, classes, parameters.dropout)
    bound = 1 / math.sqrt(parameters.hidden_size)
    for name, tensor in model.state_dict().items():  # buffers too: a frozen W is drawn as well
        if "weight" in name:
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
        elif "bias" in name:
            nn.init.zeros_(tensor)
        if isinstance(cell, nn.LSTM) and "bias_ih" in name:  # gates i, f, g, o
            tensor.view(4, -1)[1] = FORGET_BIAS
    if isinstance(cell, AGRU):
        for layer in range(cell.num_layers):
            cell.hidden_weights(layer)[1].detach().mul_(parameters.initial_scale)
    return model


def count(model: SequenceClassifier, parameters: ModelParameters) -> tuple[int, int]:
    """The number of trained parameters, and how many of them are free.

    Free means: not redundant with others. A pair of biases that acts as its sum counts once,
    and an antisymmetric n x n matrix counts n (n - 1) / 2.
    """
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    redundant = MODELS[parameters.model].redundant(parameters)
    return total, total - parameters.num_layers * redundant
