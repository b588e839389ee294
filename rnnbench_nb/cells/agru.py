"""The antisymmetric GRU (A-GRU), written from its equations."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.base import Cell, damp, parameter
from rnnbench_nb.cells.kernels import Kernel, KernelOutput
from rnnbench_nb.cells.kernels import agru as kernel
from rnnbench_nb.parameters import Finite, Frozen, NotNegative, Positive

Flow = Callable[[Tensor], Tensor]  # from a state to its slope


class AntisymmetricGRU(Cell):
    """The parameters, options and gates that the A-GRU shares with cells of other steps.

    Parameters: ``weight_ih`` (3H, D), rows [W_z | W_r | V]; ``gate_weight`` (2H, H), rows
    [U_z | U_r]; ``candidate_weight`` (H, H), W; ``bias`` (3H,); and a scalar, ``log_epsilon``,
    which keeps epsilon positive, or with ``epsilon_itself`` the step size ``epsilon``.
    """

    blocks = 3
    kernels: tuple[Kernel, ...] = (kernel.run,)
    no_decay = ("log_epsilon",)  # decay would pull the step size towards 1

    class Options(Frozen):
        gamma: Finite = 0.01  # damping
        epsilon: Positive = 1.0  # step size at the start
        learnable_epsilon: bool = True
        epsilon_itself: bool = False  # train epsilon, with weight decay, instead of log(epsilon)
        # Controls: "frozen" does not train W; "free" takes A = W - gamma I. Two take
        # A = 2 W - gamma I, in which Adam's largest step on A equals that of W - W^T: "doubled"
        # keeps the random start of W, and "released" starts it at the antisymmetric (W - W^T) / 2.
        recurrence: Literal["antisymmetric", "frozen", "free", "doubled", "released"] = (
            "antisymmetric"
        )
        initial_scale: NotNegative = 1.0  # factor on the initial W

    options: Options

    def declare(self) -> None:
        h, options = self.hidden_size, self.options
        self.gate_weight = parameter(2 * h, h)
        self.candidate_weight = parameter(h, h, trained=options.recurrence != "frozen")
        if options.epsilon_itself:
            self.epsilon = parameter(trained=options.learnable_epsilon)
        else:
            self.log_epsilon = parameter(trained=options.learnable_epsilon)

    def initialise(self, generator: torch.Generator | None) -> None:
        start = self.options.epsilon
        with torch.no_grad():
            if self.options.epsilon_itself:
                self.epsilon.fill_(start)
            else:
                self.log_epsilon.fill_(math.log(start))
            self.candidate_weight.mul_(self.options.initial_scale)
            if self.options.recurrence == "released":
                self.candidate_weight.copy_((self.candidate_weight - self.candidate_weight.T) / 2)

    def step_size(self) -> Tensor:
        return self.epsilon if self.options.epsilon_itself else self.log_epsilon.exp()

    def matrix(self) -> Tensor:
        """Compute A (H, H) from the current W."""
        w = self.candidate_weight
        matrices = {"free": w, "doubled": 2 * w, "released": 2 * w}
        return damp(matrices.get(self.options.recurrence, w - w.T), self.options.gamma)

    def prepare(self) -> tuple[Tensor, ...]:
        return self.gate_weight, self.matrix(), self.step_size()

    @staticmethod
    def gates(u: Tensor, h: Tensor, gate_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute z, r and the candidate's input V x + b, each (B, H)."""
        gate_input, candidate_input = u.split([len(gate_weight), len(gate_weight) // 2], dim=-1)
        z, r = torch.sigmoid(gate_input + F.linear(h, gate_weight)).chunk(2, dim=-1)
        return z, r, candidate_input

    def advance(self, state: Tensor, flow: Flow, epsilon: Tensor | float) -> Tensor:
        """Take a step of size epsilon along d state / dt = flow(state), by the cell's method."""
        return state + epsilon * flow(state)

    def path_terms(self, u: Tensor, h: Tensor, *prepared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return A (H, H), and L and R of the path P = diag(L) A diag(R) of each slope in a step.

        A slope z * c has the path epsilon D A diag(r) with D = diag(z (1 - c^2)), its derivative at
        fixed gates at the state where it is taken. At gamma = 0, P is similar to an antisymmetric
        matrix, so its eigenvalues are imaginary. L and R are (slopes, B, H).
        """
        gate_weight, a, epsilon = prepared
        z, r, candidate_input = self.gates(u, h, gate_weight)
        left = []

        def flow(state: Tensor) -> Tensor:
            c = torch.tanh(candidate_input + F.linear(r * state, a))
            left.append(epsilon * z * (1 - c**2))
            return z * c

        self.advance(h, flow, epsilon)
        return a, torch.stack(left), r.expand(len(left), *r.shape)

    def linear_step(self, state: Tensor, a: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Compute the step at fixed gates: the cell's method for slopes L A R of the state."""
        each = iter(zip(left, right, strict=True))

        def flow(state: Tensor) -> Tensor:
            left, right = next(each)
            return left * ((right * state) @ a.mT)

        return self.advance(state, flow, 1.0)

    def redundant_parameters(self) -> int:
        """Count the entries of W that W - W^T leaves out; the controls have none."""
        n = self.hidden_size
        return n * (n + 1) // 2 if self.options.recurrence == "antisymmetric" else 0


def run_triton(*arguments: Any) -> KernelOutput | str:
    """Run the kernels of `kernels.agru_triton`, or say why they cannot."""
    try:
        from rnnbench_nb.cells.kernels.agru_triton import run
    except ImportError:
        return "Triton is not installed"
    return run(*arguments)


class AGRU(AntisymmetricGRU):
    """Antisymmetric GRU: forward Euler steps of size epsilon, with the reset before the product.

        z  = sigma(W_z x + U_z h + b_z)        update gate
        r  = sigma(W_r x + U_r h + b_r)        reset gate
        c  = tanh(V x + A (r * h) + b)         candidate, A = W - W^T - gamma I
        h' = h + epsilon (z * c)

    A is computed from the current W at every call; its eigenvalues are -gamma +- i lambda.
    """

    name, label = "agru", "A-GRU"
    colour, dashes, marker = "#882255", (1, 0), "o"
    equation = r"""
(`rnnbench_nb.cells.AGRU`), the antisymmetric GRU, whose reset gate acts before the matrix product,
with the damping $\gamma$ and one learnable step size $\epsilon$:

$$z_s, r_s = \sigma(W_{z,r}\, x_s + U_{z,r}\, h_{s-1} + b_{z,r})$$

$$\Delta h_s = \tanh\left(V_h x_s + (W_h - W_h^\top - \gamma I)(r_s \odot h_{s-1}) + b_h\right)$$

$$h_s = h_{s-1} + \epsilon\, (z_s \odot \Delta h_s)$$
"""

    class Options(AntisymmetricGRU.Options):
        # The code that runs on a GPU: a CUDA graph of the loop ("auto"), or kernels in Triton,
        # which have yet to run on a GPU, and the graph where they cannot.
        backend: Literal["auto", "triton"] = "auto"

    options: Options

    def declare(self) -> None:
        super().declare()
        if self.options.backend == "triton":
            self.kernels = (run_triton, *self.kernels)

    def recurrent_matrix(self) -> Tensor:
        return self.matrix()

    @staticmethod
    def step(u: Tensor, h: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor) -> Tensor:
        z, r, candidate_input = AGRU.gates(u, h, gate_weight)
        return h + epsilon * (z * torch.tanh(candidate_input + F.linear(r * h, a)))
