"""The LSTM (Hochreiter and Schmidhuber 1997), which is torch.nn's own."""

from rnnbench_nb.cells.base import Cell, torch

FORGET_BIAS = 1.0  # Jozefowicz et al. 2015; torch's two bias vectors share it


class LSTM(Cell):
    """torch.nn.LSTM; the state is [h | c], of which h is read out."""

    name, label, torch_module = "lstm", "LSTM", "LSTM"
    colour, dashes, marker = "#0072B2", (4, 1.5), "s"
    blocks, states = 4, 2
    equation = r"""
(`torch.nn.LSTM`), with a second state $c_s$:

$$i_s, f_s, o_s = \sigma(W_{i,f,o}\, x_s + U_{i,f,o}\, h_{s-1} + b_{i,f,o})$$

$$g_s = \tanh(W_g x_s + U_g h_{s-1} + b_g)$$

$$c_s = f_s \odot c_{s-1} + i_s \odot g_s$$

$$h_s = o_s \odot \tanh c_s$$
"""

    def initialise(self, generator):
        """Start the forget gate, second of i, f, g, o, at `FORGET_BIAS`."""
        with torch.no_grad():
            self.bias_ih_l0.view(4, -1)[1] = FORGET_BIAS

    def prepare(self):
        """Torch's recurrent weights and second biases."""
        return self.weight_hh_l0, self.bias_hh_l0

    def step(self, u, state, u_h, b_h):
        """One step of the equation; u_h (4H, H) and b_h (4H,) are torch's."""
        h, c = state.chunk(2, -1)
        i, f, g, o = (u + torch.nn.functional.linear(h, u_h, b_h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def redundant(self):
        """Torch's two bias vectors act as their sum in all four gates."""
        return 4 * self.hidden_size
