"""The GRU (Cho et al. 2014) as torch.nn has it, the reset gate after the product."""

from rnnbench_nb.cells.base import Cell, Chrono, torch


class GRU(Cell):
    """torch.nn.GRU; the state is h."""

    name, label, torch_module = "gru", "GRU", "GRU"
    colour, dashes, marker = "#E69F00", (1, 1), "^"
    blocks = 3
    equation = r"""
(`torch.nn.GRU`), whose reset gate acts after the matrix product:

$$z_s, r_s = \sigma(W_{z,r}\, x_s + U_{z,r}\, h_{s-1} + b_{z,r})$$

$$n_s = \tanh\left(W_n x_s + b_n + r_s \odot (U_n h_{s-1} + b'_n)\right)$$

$$h_s = (1 - z_s) \odot n_s + z_s \odot h_{s-1}$$
"""

    class Options(Chrono):
        """What the GRU can be told."""

    def initialise(self, generator):
        """Set the bias of the update gate, second of r, z, n, which keeps the state where open."""
        self.options.draw_chrono(self.bias_ih_l0.view(3, -1)[1], generator)

    def prepare(self):
        """Torch's recurrent weights and second biases."""
        return self.weight_hh_l0, self.bias_hh_l0

    def step(self, u, h, u_h, b_h):
        """One step of the equation; u_h (3H, H) and b_h (3H,) are torch's, rows r, z, n."""
        x_r, x_z, x_n = u.chunk(3, -1)
        h_r, h_z, h_n = torch.nn.functional.linear(h, u_h, b_h).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (1 - z) * n + z * h

    def jacobian(self, u, h, u_h, b_h):
        """The step Jacobian (B, H, H) by hand: a tenth of the automatic one's time."""
        x_r, x_z, x_n = u.chunk(3, -1)
        h_r, h_z, q = torch.nn.functional.linear(h, u_h, b_h).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * q)
        u_r, u_z, u_n = u_h.chunk(3)
        q_by_h = r[..., None] * u_n + (q * r * (1 - r))[..., None] * u_r  # of r * q, which n takes
        by_update = torch.diag_embed(z) + ((h - n) * z * (1 - z))[..., None] * u_z
        return by_update + ((1 - z) * (1 - n**2))[..., None] * q_by_h

    def redundant(self):
        """Torch's two bias vectors act as their sum in r and z; the reset parts them in n."""
        return 2 * self.hidden_size
