"""The GRU of torch.nn, whose reset gate acts after the matrix product (after Cho et al. 2014)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnbench_nb.cells.base import Chrono, TorchCell


class GRU(TorchCell, nn.GRU):  # type: ignore[misc]  # torch's `bias` is a bool
    """torch.nn.GRU; the state is h."""

    name, label = "gru", "GRU"
    colour, dashes, marker = "#E69F00", (1, 1), "^"
    blocks = 3
    equation = r"""
(`torch.nn.GRU`), whose reset gate acts after the matrix product:

$$z_s, r_s = \sigma(W_{z,r}\, x_s + U_{z,r}\, h_{s-1} + b_{z,r})$$

$$n_s = \tanh\left(W_n x_s + b_n + r_s \odot (U_n h_{s-1} + b'_n)\right)$$

$$h_s = (1 - z_s) \odot n_s + z_s \odot h_{s-1}$$
"""

    Options = Chrono
    options: Chrono

    def initialise(self, generator: torch.Generator | None) -> None:
        """Set the bias of the update gate z, second of r, z, n, which keeps the state if open."""
        self.options.draw_chrono(self.bias_ih_l0.view(3, -1)[1], generator)

    def step(self, u: Tensor, h: Tensor, u_h: Tensor, b_h: Tensor) -> Tensor:
        x_r, x_z, x_n = u.chunk(3, -1)
        h_r, h_z, h_n = F.linear(h, u_h, b_h).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (1 - z) * n + z * h

    def redundant_parameters(self) -> int:
        """Count one of the two biases of r and of z, which act as their sum; those of n do not."""
        return 2 * self.hidden_size
