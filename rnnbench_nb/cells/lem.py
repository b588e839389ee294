"""The long expressive memory, LEM (Rusch et al. 2022), with two time scales that gates choose."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, Start, parameter, uniform
from rnnbench_nb.parameters import Positive


class LEM(Cell):
    """Long expressive memory (Rusch et al. 2022, eq. 3), sigma being the sigmoid.

        a  = dt sigma(W_1 y + V_1 x + b_1)
        c  = dt sigma(W_2 y + V_2 x + b_2)
        z' = (1 - c) z + c tanh(W_y y + V_y x + b_y)
        y' = (1 - a) y + a tanh(W_z z' + V_z x + b_z)

    As in its authors' code each block has two bias vectors, which act as their sum.

    Parameters: ``weight_ih`` (4H, D), rows [V_1 | V_2 | V_y | V_z]; ``recurrent`` (3H, H), rows
    [W_1 | W_2 | W_y]; ``memory_weight`` (H, H), W_z; ``recurrent_bias`` and ``bias`` (4H,). The
    state is [y | z], of which y is read out.
    """

    name, label = "lem", "LEM"
    colour, dashes, marker = "#3D2273", (4, 1, 2, 1), "*"
    blocks, states = 4, 2
    equation = r"""
(`rnnbench_nb.cells.LEM`; Rusch et al. 2022, equation 3), with two states and a time step for each
that gates choose:

$$a_s, c_s = \Delta t\, \sigma(W_{1,2}\, y_{s-1} + V_{1,2}\, x_s + b_{1,2})$$

$$z_s = (1 - c_s) \odot z_{s-1} + c_s \odot \tanh(W_y y_{s-1} + V_y x_s + b_y)$$

$$y_s = (1 - a_s) \odot y_{s-1} + a_s \odot \tanh(W_z z_s + V_z x_s + b_z)$$
"""

    class Options(Start):
        """The options of LEM.

        Attributes:
            dt: The largest time step, never trained.
        """

        dt: Positive = 1.0

    options: Options

    def declare(self) -> None:
        """Declare the recurrent weights, and the second biases."""
        h = self.hidden_size
        self.recurrent, self.memory_weight = parameter(3 * h, h), parameter(h, h)
        self.recurrent_bias = parameter(4 * h)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Start all uniform on +-1/sqrt(H), as its authors do, whose Kaiming head is left out.

        Both starts learn (86% common, 89% source).
        """
        if self.options.start == "source":  # the matrices have that start already
            vectors = (tensor for tensor in self.parameters() if tensor.dim() == 1)
            uniform(vectors, self.hidden_size, generator)

    def prepare(self) -> tuple[Tensor, ...]:
        """The recurrent weights, each with its biases."""
        h = self.hidden_size
        return self.recurrent, self.memory_weight, *self.recurrent_bias.split([3 * h, h])

    def step(
        self,
        u: Tensor,
        state: Tensor,
        recurrent: Tensor,
        memory_weight: Tensor,
        bias: Tensor,
        memory_bias: Tensor,
    ) -> Tensor:
        """One step; u = V x + b, rows as in ``weight_ih``."""
        linear, size = F.linear, len(memory_bias)
        y, z = state.chunk(2, -1)
        u_y, u_z = u.split([3 * size, size], -1)
        gates, inner = (u_y + linear(y, recurrent, bias)).split([2 * size, size], -1)
        a, c = (self.options.dt * torch.sigmoid(gates)).chunk(2, -1)
        z = torch.lerp(z, torch.tanh(inner), c)  # (1 - c) z + c tanh(...)
        y = torch.lerp(y, torch.tanh(u_z + linear(z, memory_weight, memory_bias)), a)
        return torch.cat([y, z], -1)

    def redundant(self) -> int:
        """The two bias vectors act as their sum."""
        return 4 * self.hidden_size
