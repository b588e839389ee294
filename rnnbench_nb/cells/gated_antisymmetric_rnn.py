"""The gated AntisymmetricRNN (Chang et al. 2019); gate and candidate share one product."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.antisymmetric_rnn import AntisymmetricRNN


class GatedAntisymmetricRNN(AntisymmetricRNN):
    """h' = h + epsilon z * tanh(A h + V x + b), where the gate z uses A h too (eq. 12).

    Parameters: ``weight_ih`` (2H, D), rows [V_z | V]; ``recurrent`` (H, H), W; ``bias`` (2H,).
    """

    name, label = "gated_antisymmetric_rnn", "gated AntisymmetricRNN"
    colour, dashes, marker = "#730000", (7, 1, 1, 1), "H"
    blocks = 2
    equation = r"""
(`rnnbench_nb.cells.GatedAntisymmetricRNN`; Chang et al. 2019, equation 12), whose gate shares the
product with $A = W - W^\top - \gamma I$:

$$z_s = \sigma(A h_{s-1} + V_z x_s + b_z)$$

$$h_s = h_{s-1} + \epsilon\, z_s \odot \tanh(A h_{s-1} + V x_s + b)$$
"""

    def step(self, u: Tensor, h: Tensor, a: Tensor) -> Tensor:
        gate_input, candidate_input = u.chunk(2, -1)
        shared = F.linear(h, a)
        z = torch.sigmoid(gate_input + shared)
        return h + self.options.epsilon * z * torch.tanh(candidate_input + shared)
