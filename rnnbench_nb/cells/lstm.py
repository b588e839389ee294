"""The LSTM (Hochreiter and Schmidhuber 1997), which is torch.nn's own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnbench_nb.cells.base import Chrono, TorchCell
from rnnbench_nb.parameters import Finite


class LSTM(TorchCell, nn.LSTM):  # type: ignore[misc]  # torch's `bias` is a bool
    """torch.nn.LSTM; the state is [h | c], of which h is read out."""

    name, label = "lstm", "LSTM"
    colour, dashes, marker = "#0072B2", (4, 1.5), "s"
    blocks, states = 4, 2
    equation = r"""
(`torch.nn.LSTM`), with a second state $c_s$:

$$i_s, f_s, o_s = \sigma(W_{i,f,o}\, x_s + U_{i,f,o}\, h_{s-1} + b_{i,f,o})$$

$$g_s = \tanh(W_g x_s + U_g h_{s-1} + b_g)$$

$$c_s = f_s \odot c_{s-1} + i_s \odot g_s$$

$$h_s = o_s \odot \tanh c_s$$
"""

    class Options(Chrono):
        """The options of the LSTM.

        Attributes:
            forget_bias: The forget gate's bias at the start, the sum of torch's two vectors
                (Jozefowicz et al. 2015).
        """

        forget_bias: Finite = 1.0

    options: Options

    def initialise(self, generator: torch.Generator | None) -> None:
        """Set the bias of the forget gate (second of i, f, g, o); chrono sets the first too."""
        with torch.no_grad():
            enters, keeps = self.bias_ih_l0.view(4, -1)[:2]
            keeps.fill_(self.options.forget_bias)
            self.options.draw_chrono(keeps, generator)
            if self.options.chrono:
                enters.copy_(-keeps)

    def step(self, u: Tensor, state: Tensor, u_h: Tensor, b_h: Tensor) -> Tensor:
        """One step of the equation; u_h (4H, H) and b_h (4H,) are torch's."""
        h, c = state.chunk(2, -1)
        i, f, g, o = (u + F.linear(h, u_h, b_h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def jacobian(self, u: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
        """The step Jacobian (B, 2H, 2H) by hand: a quarter of the automatic one's time."""
        (h, c), (u_h, b_h) = state.chunk(2, -1), prepared
        i, f, g, o = (u + F.linear(h, u_h, b_h)).chunk(4, -1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        u_i, u_f, u_g, u_o = u_h.chunk(4)
        tanh_c = torch.tanh(f * c + i * g)
        c_by_h = (g * i * (1 - i))[..., None] * u_i + (c * f * (1 - f))[..., None] * u_f
        c_by_h += (i * (1 - g**2))[..., None] * u_g
        h_by_c = o * (1 - tanh_c**2)  # the new h by the new c
        h_by_h = h_by_c[..., None] * c_by_h + (tanh_c * o * (1 - o))[..., None] * u_o
        h_rows = torch.cat([h_by_h, torch.diag_embed(h_by_c * f)], -1)  # (B, H, 2H)
        return torch.cat([h_rows, torch.cat([c_by_h, torch.diag_embed(f)], -1)], -2)

    def redundant(self) -> int:
        """Torch's two bias vectors act as their sum in all four gates."""
        return 4 * self.hidden_size
