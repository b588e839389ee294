"""The minGRU (Feng et al. 2024), whose gate and candidate depend on the input alone."""

import torch
from torch import Tensor

from rnnbench_nb.cells.base import Cell


class MinGRU(Cell):
    """h' = (1 - z) h + z g(W_h x + b_h), z = sigma(W_z x + b_z) (Feng et al. 2024, section 3.1).

    The function g(v) = v + 0.5 for v >= 0 and sigma(v) for v < 0 is positive and continuous. The
    paper has no biases; without them every zero input, such as a black pixel, gives z = 0.5.
    """

    name, label = "mingru", "minGRU"
    colour, dashes, marker = "#779954", (3, 3), "X"
    blocks = 2
    equation = r"""
(`rnnbench_nb.cells.MinGRU`; Feng et al. 2024, section 3.1), whose gate and candidate do not depend
on the state:

$$z_s = \sigma(W_z x_s + b_z), \quad c_s = g(W_h x_s + b_h), \quad
g(v) = \begin{cases} v + \tfrac12 & v \ge 0 \\ \sigma(v) & v < 0 \end{cases}$$

$$h_s = (1 - z_s) \odot h_{s-1} + z_s \odot c_s$$
"""

    def drive(self, x: Tensor) -> Tensor:
        """Compute u = [z | c] (..., 2H), gates and candidates, from the inputs (..., D) alone."""
        gate_input, v = super().drive(x).chunk(2, -1)
        candidate = torch.where(v >= 0, v + 0.5, torch.sigmoid(v))
        return torch.cat([torch.sigmoid(gate_input), candidate], -1)

    def step(self, u: Tensor, h: Tensor) -> Tensor:
        z, c = u.chunk(2, -1)
        return torch.lerp(h, c, z)  # (1 - z) h + z c
