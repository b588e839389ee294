"""The LSTM of torch.nn (Hochreiter and Schmidhuber 1997)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnbench_nb.cells.base import Chrono, TorchCell
from rnnbench_nb.parameters import Finite


class LSTM(TorchCell, nn.LSTM):  # type: ignore[misc]  # torch's `bias` is a bool
    """torch.nn.LSTM; the state is [h | c], and the head reads h."""

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
        # Initial bias of the forget gate, summed over torch's two vectors (Jozefowicz et al. 2015).
        forget_bias: Finite = 1.0

    options: Options

    def initialise(self, generator: torch.Generator | None) -> None:
        """Set the bias of the forget gate f, second of i, f, g, o; chrono also sets that of i."""
        with torch.no_grad():
            input_bias, forget_bias = self.bias_ih_l0.view(4, -1)[:2]
            forget_bias.fill_(self.options.forget_bias)
            self.options.draw_chrono(forget_bias, generator)
            if self.options.chrono:
                input_bias.copy_(-forget_bias)

    def step(self, u: Tensor, state: Tensor, u_h: Tensor, b_h: Tensor) -> Tensor:
        h, c = state.chunk(2, -1)
        i, f, g, o = (u + F.linear(h, u_h, b_h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def redundant_parameters(self) -> int:
        """Count one of torch's two bias vectors (4H,), which act only as their sum."""
        return 4 * self.hidden_size
