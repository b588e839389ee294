"""The GRU whose reset gate acts before the matrix product (Cho et al. 2014).

It is a control for the A-GRU, which resets there too. The two differ only in the candidate's matrix
and in how they combine the old state and the candidate.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, parameter


class GRUResetBefore(Cell):
    """The GRU of Cho et al. (2014, eq. 5-8), with biases and with z in place of their 1 - z.

    The parameters are those of the A-GRU without its step size:
    ``weight_ih`` (3H, D), rows [W_z | W_r | V]; ``gate_weight`` (2H, H), rows [U_z | U_r];
    ``candidate_weight`` (H, H), W; ``bias`` (3H,).
    """

    name, label = "gru_reset_before", "GRU, reset before"
    colour, dashes, marker = "#73593F", (1, 1, 3, 1), "v"
    blocks = 3
    equation = r"""
(`rnnbench_nb.cells.GRUResetBefore`; Cho et al. 2014, equations 5 to 8), whose reset gate acts
before the matrix product:

$$z_s, r_s = \sigma(W_{z,r}\, x_s + U_{z,r}\, h_{s-1} + b_{z,r})$$

$$h_s = (1 - z_s) \odot h_{s-1} + z_s \odot \tanh\left(V x_s + W (r_s \odot h_{s-1}) + b\right)$$
"""

    def declare(self) -> None:
        h = self.hidden_size
        self.gate_weight, self.candidate_weight = parameter(2 * h, h), parameter(h, h)

    def prepare(self) -> tuple[Tensor, ...]:
        return self.gate_weight, self.candidate_weight

    def step(self, u: Tensor, h: Tensor, gate_weight: Tensor, w: Tensor) -> Tensor:
        linear, size = F.linear, len(w)
        gate_input, candidate_input = u.split([2 * size, size], -1)
        z, r = torch.sigmoid(gate_input + linear(h, gate_weight)).chunk(2, -1)
        return torch.lerp(h, torch.tanh(candidate_input + linear(r * h, w)), z)
