"""The coRNN (Rusch and Mishra 2021), a network of coupled damped oscillators."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, parameter
from rnnbench_nb.parameters import Frozen, NotNegative, Positive


class CoRNN(Cell):
    """Coupled oscillators (Rusch and Mishra 2021, eq. 3, with explicit damping as in their code).

    Their gamma is called stiffness here, and their epsilon damping, because other cells call their
    damping gamma and their step size epsilon.

    Parameters: ``weight_ih`` (H, D), V; ``recurrent`` (H, 2H), columns [W | W_z]; ``bias`` (H,).
    The state is [y | z], and the head reads y.
    """

    name, label = "cornn", "coRNN"
    colour, dashes, marker = "#0000E6", (2, 1), "d"
    states = 2
    equation = r"""
(`rnnbench_nb.cells.CoRNN`; Rusch and Mishra 2021, equation 3), oscillators $y$ with velocities $z$,
the stiffness $\gamma$ and the damping $\epsilon$:

$$z_s = z_{s-1} + \Delta t \left(\tanh(W y_{s-1} + W_z z_{s-1} + V x_s + b)
- \gamma y_{s-1} - \epsilon z_{s-1}\right)$$

$$y_s = y_{s-1} + \Delta t\, z_s$$
"""

    class Options(Frozen):
        # The authors' values for 784 pixels; with 28 rows, 0.3, 1 and 1 learn faster.
        dt: Positive = 0.042  # step size, never trained
        stiffness: NotNegative = 2.7  # square of the oscillators' frequency; gamma in the paper
        damping: NotNegative = 4.7  # damping of the velocities; epsilon in the paper

    options: Options

    def declare(self) -> None:
        self.recurrent = parameter(self.hidden_size, 2 * self.hidden_size)

    def prepare(self) -> tuple[Tensor, ...]:
        return (self.recurrent,)

    def step(self, u: Tensor, state: Tensor, recurrent: Tensor) -> Tensor:
        y, z = state.chunk(2, -1)
        options = self.options
        force = torch.tanh(u + F.linear(state, recurrent))
        z = z + options.dt * (force - options.stiffness * y - options.damping * z)
        return torch.cat([y + options.dt * z, z], -1)
