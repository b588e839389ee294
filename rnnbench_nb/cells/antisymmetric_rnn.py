"""The AntisymmetricRNN (Chang et al. 2019): Euler steps along an antisymmetric flow."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, damp, parameter
from rnnbench_nb.parameters import Finite, Frozen, NotNegative, Positive


class AntisymmetricRNN(Cell):
    """h' = h + epsilon tanh(A h + V x + b), A = W - W^T - gamma I (Chang et al. 2019, eq. 11).

    Parameters: ``weight_ih`` (H, D), V; ``recurrent`` (H, H), W; ``bias`` (H,).
    """

    name, label = "antisymmetric_rnn", "AntisymmetricRNN"
    colour, marker = "#E60000", "p"
    dashes: ClassVar[tuple[float, ...] | None] = (7, 1)
    equation = r"""
(`rnnbench_nb.cells.AntisymmetricRNN`; Chang et al. 2019, equation 11), a forward Euler step of size
$\epsilon$ with the damping $\gamma$:

$$h_s = h_{s-1} + \epsilon \tanh\left((W - W^\top - \gamma I)\, h_{s-1} + V x_s + b\right)$$
"""

    class Options(Frozen):
        gamma: Finite = 0.01  # damping
        epsilon: Positive = 0.1  # step size, never trained
        initial_scale: NotNegative = 1.0  # factor on the initial W; the authors searched 0 to 16

    options: Options

    def declare(self) -> None:
        self.recurrent = parameter(self.hidden_size, self.hidden_size)

    def initialise(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.recurrent.mul_(self.options.initial_scale)

    def step_size(self) -> float:
        return self.options.epsilon

    def recurrent_matrix(self) -> Tensor:
        return damp(self.recurrent - self.recurrent.T, self.options.gamma)

    def prepare(self) -> tuple[Tensor, ...]:
        return (self.recurrent_matrix(),)

    def step(self, u: Tensor, h: Tensor, a: Tensor) -> Tensor:
        return h + self.options.epsilon * torch.tanh(u + F.linear(h, a))

    def redundant_parameters(self) -> int:
        """Count the entries of W that W - W^T leaves out: it has H (H - 1) / 2 free ones of H^2."""
        return self.hidden_size * (self.hidden_size + 1) // 2
