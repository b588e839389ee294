"""The antisymmetric GRU with steps of higher order than Euler's."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.agru import AntisymmetricGRU, Flow


class AGRUHeun(AntisymmetricGRU):
    """The A-GRU with steps of Heun's method, during which the gates z and r stay fixed.

        k1 = z * tanh(V x + A (r * h) + b)
        k2 = z * tanh(V x + A (r * (h + epsilon k1)) + b)
        h' = h + epsilon (k1 + k2) / 2

    With a linear tanh and open gates, a step multiplies a mode i lambda of epsilon A by a number of
    modulus sqrt(1 + lambda^4 / 4); for Euler's step it is sqrt(1 + lambda^2).
    """

    name, label = "agru_heun", "A-GRU-Heun"
    colour, dashes, marker = "#117733", (9, 2), "h"
    equation = r"""
(`rnnbench_nb.cells.AGRUHeun`), the A-GRU with steps of Heun's method along the flow
$f(h) = z_s \odot \tanh(V_h x_s + (W_h - W_h^\top - \gamma I)(r_s \odot h) + b_h)$, whose gates stay
fixed during the step:

$$h_s = h_{s-1} + \frac{\epsilon}{2} \left(f(h_{s-1}) + f(h_{s-1} + \epsilon f(h_{s-1}))\right)$$
"""

    class Options(AntisymmetricGRU.Options):
        # Other steps along the same flow: the classical Runge-Kutta method ("rk4"), and two Euler
        # steps of half the size ("half_steps"), which cost as much as one step of Heun's.
        method: Literal["heun", "rk4", "half_steps"] = "heun"

    options: Options

    def step(self, u: Tensor, h: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor) -> Tensor:
        z, r, candidate_input = self.gates(u, h, gate_weight)

        def flow(state: Tensor) -> Tensor:
            return z * torch.tanh(candidate_input + F.linear(r * state, a))

        return self.advance(h, flow, epsilon)

    def advance(self, h: Tensor, flow: Flow, epsilon: Tensor | float) -> Tensor:
        first = flow(h)
        if self.options.method == "half_steps":
            half = h + epsilon / 2 * first
            return half + epsilon / 2 * flow(half)
        if self.options.method == "heun":
            return h + epsilon / 2 * (first + flow(h + epsilon * first))
        second = flow(h + epsilon / 2 * first)
        third = flow(h + epsilon / 2 * second)
        fourth = flow(h + epsilon * third)
        return h + epsilon / 6 * (first + 2 * second + 2 * third + fourth)
