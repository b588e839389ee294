"""The LipschitzRNN (Erichson et al. 2021): Euler steps along a linear and a bounded part."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, damp, parameter
from rnnbench_nb.parameters import Finite, Frozen, NotNegative, Positive


class LipschitzRNN(Cell):
    """h' = h + epsilon (M_B h + tanh(M_C h + U x + b)) (Erichson et al. 2021).

    Each of the two matrices mixes the antisymmetric and the symmetric part of a free matrix:
    M_B = beta (B - B^T) + (1 - beta) (B + B^T) - gamma I, and M_C likewise. The paper calls them A
    and W and lets beta and gamma differ between them; the authors' code has one beta and one gamma.

    Parameters: ``weight_ih`` (H, D), U; ``linear_weight`` and ``tanh_weight`` (H, H), B and C;
    ``bias`` (H,).
    """

    name, label = "lipschitz_rnn", "LipschitzRNN"
    colour, dashes, marker = "#BF00E6", (1, 3), "8"
    equation = r"""
(`rnnbench_nb.cells.LipschitzRNN`; Erichson et al. 2021), a forward Euler step of size $\epsilon$
along a linear and a bounded part:

$$h_s = h_{s-1} + \epsilon \left(M_B h_{s-1} + \tanh(M_C h_{s-1} + U x_s + b)\right)$$

$$M_B = \beta\, (B - B^\top) + (1 - \beta)\, (B + B^\top) - \gamma I, \quad M_C \text{ likewise}$$
"""

    class Options(Frozen):
        # The authors' values for pixel MNIST, except the scale, which is 6 to 32 in their commands.
        beta: Annotated[float, Field(gt=0, lt=1)] = 0.75  # share of the antisymmetric part
        gamma: Finite = 0.001  # damping
        epsilon: Positive = 0.03  # step size, never trained
        initial_scale: NotNegative = 1.0  # factor on the initial B and C

    options: Options

    def declare(self) -> None:
        h = self.hidden_size
        self.linear_weight, self.tanh_weight = parameter(h, h), parameter(h, h)

    def initialise(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.linear_weight.mul_(self.options.initial_scale)
            self.tanh_weight.mul_(self.options.initial_scale)

    def step_size(self) -> float:
        return self.options.epsilon

    def recurrent_matrix(self) -> Tensor:
        """M_B (H, H), which alone decides whether states stay bounded, because tanh is bounded."""
        return self._mix(self.linear_weight)

    def _mix(self, w: Tensor) -> Tensor:
        """Return beta (W - W^T) + (1 - beta) (W + W^T) - gamma I for a matrix W (H, H)."""
        return damp(w + (1 - 2 * self.options.beta) * w.T, self.options.gamma)

    def prepare(self) -> tuple[Tensor, ...]:
        return (torch.cat([self._mix(self.linear_weight), self._mix(self.tanh_weight)]),)

    def step(self, u: Tensor, h: Tensor, both: Tensor) -> Tensor:
        linear, inner = F.linear(h, both).chunk(2, -1)
        return h + self.options.epsilon * (linear + torch.tanh(inner + u))
