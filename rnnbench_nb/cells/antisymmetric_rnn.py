"""The AntisymmetricRNN (Chang et al. 2019), an Euler step along an antisymmetric flow."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, Start, damped, parameter
from rnnbench_nb.parameters import Finite, NotNegative, Positive


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

    class Options(Start):
        """The options of the AntisymmetricRNN.

        Attributes:
            gamma: Damping.
            epsilon: Step size, never trained.
            initial_scale: Factor on the initial W; the authors searched from 0 to 16.
        """

        gamma: Finite = 0.01
        epsilon: Positive = 0.1
        initial_scale: NotNegative = 1.0

    options: Options

    def declare(self) -> None:
        """Declare W (H, H)."""
        self.recurrent = parameter(self.hidden_size, self.hidden_size)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Start V from N(0, 1/D) and W from N(0, 1/H), these being variances, as its authors do.

        Both starts learn (78% common, 84% source; gated 81% and 86%).
        """
        with torch.no_grad():
            if self.options.start == "source":
                for weight in (self.weight_ih, self.recurrent):
                    weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=generator)
            self.recurrent.mul_(self.options.initial_scale)

    def step_size(self) -> float:
        """The step size epsilon."""
        return self.options.epsilon

    def recurrent_matrix(self) -> Tensor:
        """A (H, H) = W - W^T - gamma I, computed from the current W."""
        return damped(self.recurrent - self.recurrent.T, self.options.gamma)

    def prepare(self) -> tuple[Tensor, ...]:
        """A."""
        return (self.recurrent_matrix(),)

    def step(self, u: Tensor, h: Tensor, a: Tensor) -> Tensor:
        """One step; u = V x + b."""
        return h + self.options.epsilon * torch.tanh(u + F.linear(h, a))

    def redundant(self) -> int:
        """W acts as W - W^T, which has n (n - 1) / 2 free entries out of n^2."""
        return self.hidden_size * (self.hidden_size + 1) // 2
