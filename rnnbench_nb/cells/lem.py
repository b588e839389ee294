"""The long expressive memory, LEM (Rusch et al. 2022), whose gates choose two time scales."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, parameter
from rnnbench_nb.parameters import Frozen, Positive


class LEM(Cell):
    """Long expressive memory (Rusch et al. 2022, eq. 3), with two biases a block as in their code.

    Parameters: ``weight_ih`` (4H, D), rows [V_1 | V_2 | V_y | V_z]; ``recurrent`` (3H, H), rows
    [W_1 | W_2 | W_y]; ``memory_weight`` (H, H), W_z; ``recurrent_bias`` and ``bias`` (4H,). The
    state is [y | z], and the head reads y.
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

    class Options(Frozen):
        dt: Positive = 1.0  # the largest time step, never trained

    options: Options

    def declare(self) -> None:
        h = self.hidden_size
        self.recurrent, self.memory_weight = parameter(3 * h, h), parameter(h, h)
        self.recurrent_bias = parameter(4 * h)

    def prepare(self) -> tuple[Tensor, ...]:
        h = self.hidden_size
        return self.recurrent, self.memory_weight, *self.recurrent_bias.split([3 * h, h])

    def step(self, u: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        recurrent, memory_weight, bias, memory_bias = prepared
        linear, size = F.linear, len(memory_bias)
        y, z = state.chunk(2, -1)
        u_y, u_z = u.split([3 * size, size], -1)
        gates, inner = (u_y + linear(y, recurrent, bias)).split([2 * size, size], -1)
        a, c = (self.options.dt * torch.sigmoid(gates)).chunk(2, -1)
        z = torch.lerp(z, torch.tanh(inner), c)  # (1 - c) z + c tanh(...)
        y = torch.lerp(y, torch.tanh(u_z + linear(z, memory_weight, memory_bias)), a)
        return torch.cat([y, z], -1)

    def redundant_parameters(self) -> int:
        """Count one of the two bias vectors (4H,), which act only as their sum."""
        return 4 * self.hidden_size
