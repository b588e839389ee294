"""What a recurrence does to its state: spectra, step Jacobians, exponents, gradient flow.

The cells are treated alike. The state s has n numbers: n = 2H for torch.nn.LSTM, whose state is
(h, c), and n = H for torch.nn.GRU and the A-GRU, whose state is h. All is float64, batched over
images and streamed over steps: no T Jacobians are ever held at once.

Each operator has its own line between growth and decay:

- A = W - W^T - gamma I acts in continuous time: growth is a real part above 0.
- I + epsilon A is one forward Euler step of it: growth is a modulus above 1.
- J = ds'/ds is one step of the whole cell, gates included: growth over many steps is an exponent
  above 0, which the eigenvalues of a single J do not settle.

Torch's batched LU (`solve`, `det`, `slogdet`, `inv`) has no place here: on several threads it
returns wrong numbers or hangs (https://github.com/pytorch/pytorch/issues/142815).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.models import AGRU, SequenceClassifier

ERASED = 1e-12  # of a step's size: shrunk below it, a direction counts as erased by the step
INITIAL_EDGE = 2 * math.sqrt(2 / 3)  # of the spectrum of S, for W uniform on +-1/sqrt(H)


# Spectra: the recurrent matrix by itself, without gates or input.


def frequencies(weight: Tensor) -> Tensor:
    """The lambda of the eigenvalues +-i lambda of S = W - W^T, for W (..., H, H).

    They are the real eigenvalues of the Hermitian matrix iS: fast to draw, but no check that S is
    antisymmetric, since they would come out real for any S.

    Returns:
        Ascending frequencies (..., H), in pairs +-lambda (and one 0 if H is odd).
    """
    weight = weight.double()
    return torch.linalg.eigvalsh(1j * (weight - weight.mT))


def semicircle(frequency: Tensor, edge: float = INITIAL_EDGE) -> Tensor:
    """Wigner's density of the frequencies of S for a large random W: 0 beyond +-`edge`."""
    return 2 / (math.pi * edge**2) * (edge**2 - frequency**2).clamp(min=0).sqrt()


def largest_stable_step(frequency: Tensor, gamma: float) -> Tensor:
    """The largest epsilon at which an Euler step does not amplify the mode -gamma +- i lambda.

    epsilon_max = 2 gamma / (gamma^2 + lambda^2), where |1 + epsilon (-gamma +- i lambda)| = 1; 0
    if gamma is 0 or negative.
    """
    step = 2 * max(gamma, 0.0) / (gamma**2 + frequency**2)
    return step.nan_to_num(nan=math.inf)  # 0/0: the zero mode of S, neutral at any step


def euler_modulus(frequency: Tensor, gamma: float, epsilon: float | Tensor) -> Tensor:
    """|1 + epsilon (-gamma +- i lambda)|: what an Euler step multiplies a mode of A by."""
    return ((1 - epsilon * gamma) ** 2 + (epsilon * frequency) ** 2) ** 0.5


def stability(weight: Tensor, gamma: float, epsilon: float | Tensor) -> dict[str, Tensor]:
    """The place of I + epsilon A in the stability region of the forward Euler step.

    Args:
        weight: W, (..., H, H): one matrix, or one an epoch.
        gamma: Damping.
        epsilon: Step size, (...).

    Returns:
        Columns (...): `lambda_max`; `epsilon_lambda_max`, at most 1 if some gamma stabilises the
        step (gamma = 1/epsilon is the best); `epsilon_max` of the whole spectrum; `modulus_max`;
        `share_outside`, the fraction of modes with a modulus above 1.
    """
    epsilon = torch.as_tensor(epsilon, dtype=torch.float64)
    modes = frequencies(weight)  # (..., H)
    moduli = euler_modulus(modes, gamma, epsilon[..., None])  # (..., H)
    lambda_max = modes[..., -1]
    return {
        "lambda_max": lambda_max,
        "epsilon_lambda_max": epsilon * lambda_max,
        "epsilon_max": largest_stable_step(lambda_max, gamma),
        "modulus_max": moduli.amax(-1),
        "share_outside": (moduli > 1).double().mean(-1),
    }


# Three ways to step along ds/dt = M s for one unit of time, M (..., n, n), such as epsilon A.


def euler_step(operator: Tensor) -> Tensor:
    """I + M: the forward Euler step, which the A-GRU takes."""
    return torch.eye(operator.shape[-1], dtype=operator.dtype) + operator


def midpoint_step(operator: Tensor) -> Tensor:
    """(I - M/2)^-1 (I + M/2): the implicit midpoint step, orthogonal if M is antisymmetric."""
    left, right = euler_step(-operator / 2), euler_step(operator / 2)
    return torch.from_numpy(np.linalg.solve(left.numpy(), right.numpy()))


def exact_step(operator: Tensor) -> Tensor:
    """exp(M): the flow itself."""
    return torch.linalg.matrix_exp(operator)


def growth(operator: Tensor) -> dict[str, Tensor]:
    """What makes M (..., n, n) grow: its spectrum, its non-normality, or the Euler step.

    Returns:
        Columns (...): `abscissa`, the largest real part of an eigenvalue of M (above 0: grows in
        the long run); `numerical_abscissa`, the largest eigenvalue of (M + M^T)/2 (above 0: can
        grow at once; the same number if M is normal); `euler_radius` and `euler_norm`, the
        largest modulus of an eigenvalue and the largest singular value of I + M (against 1).
    """
    eigenvalues = torch.linalg.eigvals(operator)
    return {
        "abscissa": eigenvalues.real.amax(-1),
        "numerical_abscissa": torch.linalg.eigvalsh((operator + operator.mT) / 2)[..., -1],
        "euler_radius": (1 + eigenvalues).abs().amax(-1),
        "euler_norm": torch.linalg.svdvals(euler_step(operator))[..., 0],
    }


# The cells: one step, and its exact Jacobian.


class Step(NamedTuple):
    """One step of a cell.

    Attributes:
        cell: The cell in float64.
        before: State before the step (B, n); for the LSTM [h | c].
        after: State after it (B, n).
        gates: What the cell computed on the way, each (B, H): i, f, g, o (LSTM); r, z, n and
            q = U_n h + b_n, which r multiplies (GRU); z, r, c (A-GRU).
    """

    cell: nn.Module
    before: Tensor
    after: Tensor
    gates: dict[str, Tensor]


def _scale_rows(scale: Tensor, matrix: Tensor) -> Tensor:
    """diag(scale) M (B, m, n), for scale (B, m) and M (m, n) or (B, m, n)."""
    return scale[..., None] * matrix


def _lstm_step(cell: nn.LSTM, x: Tensor, state: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    h, c = state.chunk(2, -1)
    from_input = F.linear(x, cell.weight_ih_l0, cell.bias_ih_l0)
    i, f, g, o = (from_input + F.linear(h, cell.weight_hh_l0, cell.bias_hh_l0)).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return torch.cat([o * c.tanh(), c], -1), {"i": i, "f": f, "g": g, "o": o}


def _lstm_jacobian(step: Step) -> Tensor:
    i, f, g, o = step.gates.values()
    u_i, u_f, u_g, u_o = step.cell.weight_hh_l0.chunk(4)
    c, tanh_c = step.before.chunk(2, -1)[1], step.after.chunk(2, -1)[1].tanh()  # c old, c new
    c_by_h = (
        _scale_rows(g * i * (1 - i), u_i)
        + _scale_rows(c * f * (1 - f), u_f)
        + _scale_rows(i * (1 - g**2), u_g)
    )
    h_by_new_c = o * (1 - tanh_c**2)
    h_by_h = _scale_rows(h_by_new_c, c_by_h) + _scale_rows(tanh_c * o * (1 - o), u_o)
    h_rows = torch.cat([h_by_h, torch.diag_embed(h_by_new_c * f)], -1)  # (B, H, 2H)
    c_rows = torch.cat([c_by_h, torch.diag_embed(f)], -1)  # (B, H, 2H)
    return torch.cat([h_rows, c_rows], -2)


def _gru_step(cell: nn.GRU, x: Tensor, h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x_r, x_z, x_n = F.linear(x, cell.weight_ih_l0, cell.bias_ih_l0).chunk(3, -1)
    h_r, h_z, q = F.linear(h, cell.weight_hh_l0, cell.bias_hh_l0).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * q).tanh()
    return (1 - z) * n + z * h, {"r": r, "z": z, "n": n, "q": q}


def _gru_jacobian(step: Step) -> Tensor:
    r, z, n, q = step.gates.values()
    u_r, u_z, u_n = step.cell.weight_hh_l0.chunk(3)
    q_by_h = _scale_rows(r, u_n) + _scale_rows(q * r * (1 - r), u_r)
    by_update = torch.diag_embed(z) + _scale_rows((step.before - n) * z * (1 - z), u_z)
    return by_update + _scale_rows((1 - z) * (1 - n**2), q_by_h)


def _agru_step(cell: AGRU, x: Tensor, h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x_z, x_r, x_c = F.linear(x, cell.weight_ih_l0, cell.bias_l0).chunk(3, -1)
    u_z, u_r = cell.hidden_weights()[0].chunk(2)
    z, r = (x_z + h @ u_z.T).sigmoid(), (x_r + h @ u_r.T).sigmoid()
    c = (x_c + (r * h) @ cell.recurrent_matrix().T).tanh()
    return h + cell.epsilon() * z * c, {"z": z, "r": r, "c": c}


def agru_terms(step: Step) -> dict[str, Tensor]:
    """The A-GRU's step Jacobian in three terms, J = I + epsilon K + epsilon G.

    With D = diag(z (1 - c^2)), K = D A diag(r) is the recurrent matrix between frozen gates: not
    antisymmetric, but at gamma = 0 similar to an antisymmetric matrix, so its spectrum is still
    imaginary. G = diag(c z (1 - z)) U_z + D A diag(h r (1 - r)) U_r comes from the gates' own
    dependence on h.

    Returns:
        `identity` (H, H), `antisymmetric` epsilon K (B, H, H), `gates` epsilon G (B, H, H).
    """
    z, r, c = step.gates.values()
    h, epsilon = step.before, step.cell.epsilon()
    u_z, u_r = step.cell.hidden_weights()[0].chunk(2)
    d_a = _scale_rows(z * (1 - c**2), step.cell.recurrent_matrix())  # (B, H, H)
    by_reset = (d_a * (h * r * (1 - r))[:, None, :]) @ u_r
    return {
        "identity": torch.eye(h.shape[-1], dtype=h.dtype),
        "antisymmetric": epsilon * d_a * r[:, None, :],
        "gates": epsilon * (_scale_rows(c * z * (1 - z), u_z) + by_reset),
    }


def _agru_jacobian(step: Step) -> Tensor:
    return sum(agru_terms(step).values())


CELLS = {
    "LSTM": (_lstm_step, _lstm_jacobian),
    "GRU": (_gru_step, _gru_jacobian),
    "AGRU": (_agru_step, _agru_jacobian),
}


def walk(cell: nn.Module, inputs: Tensor, start: Tensor | None = None) -> Iterator[Step]:
    """Run a copy of a cell in float64 and yield its steps one by one.

    Args:
        cell: A torch.nn.LSTM, torch.nn.GRU or AGRU of one layer.
        inputs: Sequences (B, T, D), whatever the cell's `batch_first`.
        start: First state (B, n); zeros if None.

    Raises:
        UserError: The cell is another one, or has more than one layer.
    """
    advance, _ = lookup(CELLS, "cell", type(cell).__name__)
    if cell.num_layers != 1:
        raise UserError(f"num_layers: {cell.num_layers}: the dynamics shown are those of 1 layer.")
    cell = copy.deepcopy(cell).double().requires_grad_(False)
    size = cell.hidden_size * (2 if isinstance(cell, nn.LSTM) else 1)
    inputs = inputs.double()
    state = inputs.new_zeros(len(inputs), size) if start is None else start.double()
    for x in inputs.unbind(1):
        after, gates = advance(cell, x, state)
        yield Step(cell, state, after, gates)
        state = after


def jacobian(step: Step) -> Tensor:
    """The exact step Jacobian J (B, n, n); entry [b, i, j] is d after_i / d before_j."""
    return CELLS[type(step.cell).__name__][1](step)


def over_images(measure: Callable[..., Tensor], *batches: Tensor, size: int = 16) -> Tensor:
    """Apply `measure` to `size` images at a time, on all of torch's threads.

    Memory then grows with `size` alone, about ten arrays (size, n, n) a thread. Each thread works
    on images of its own, because several threads inside one small factorisation only fight.

    Args:
        measure: Takes a part of each batch; returns a tensor, images first.
        batches: Inputs, labels and so on, images first.
        size: Images in a part.

    Returns:
        What `measure` returned, all images together.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(measure, *(batch.split(size) for batch in batches))))
    finally:
        torch.set_num_threads(threads)


# Along a sequence: products of Jacobians, gradients, states.


def _triangular_factors(jacobians: Iterable[Tensor]) -> Iterator[Tensor]:
    """R_t (B, n, n) of Q_t R_t = J_t Q_{t-1}, Q_0 = I: J_T ... J_1 = Q_T R_T ... R_1."""
    q = None  # kept as Householder vectors, which is faster than forming it
    for j in jacobians:
        q = torch.geqrf(j if q is None else torch.ormqr(*q, j, left=False))
        yield q.a.triu()


def _rounding(r: Tensor) -> Tensor:
    """The size (B, 1) up to which the entries of a triangular factor are rounding, not data."""
    return ERASED * torch.linalg.matrix_norm(r)[:, None]


def lyapunov_exponents(jacobians: Iterable[Tensor]) -> Tensor:
    """Exponents by QR, lambda_i = mean over t of log |R_t,ii|: for long sequences.

    Benettin et al. 1980; Dieci and Van Vleck 2002; for recurrent networks Vogt et al. 2022
    (Front. Appl. Math. Stat. 8:818799). Their sum is the mean of log |det J_t| at any T; each by
    itself is off by the order of 1/T.

    Args:
        jacobians: J_t (B, n, n) for t = 1 ... T in this order, as `map(jacobian, walk(...))`.

    Returns:
        Exponents (B, n) in nats a step, roughly descending; -inf for a direction that a step
        erases to working precision.
    """
    total, steps = 0, 0  # no list of T small tensors: between large ones it fragments memory
    for r in _triangular_factors(jacobians):
        diagonal = r.diagonal(dim1=-2, dim2=-1).abs()  # (B, n)
        total = total + torch.where(diagonal > _rounding(r), diagonal, 0).log()
        steps += 1
    return total / steps


def singular_exponents(jacobians: Iterable[Tensor]) -> Tensor:
    """Finite-time exponents log(sigma_i) / T of the product J_T ... J_1: for short sequences.

    Its singular values sigma_i are the exact growth over T steps. They are taken from the
    triangular factors, since the plain product loses all that is below 1e-16 of the largest:
    half of a trained LSTM's at T = 28.

    Args:
        jacobians: J_t (B, n, n) for t = 1 ... T in this order, as `map(jacobian, walk(...))`.

    Returns:
        Exponents (B, n) in nats a step, descending; -inf for a direction that a step erases to
        working precision, or all steps together shrink below 1e-308.
    """
    total, steps = None, 0
    for r in _triangular_factors(jacobians):
        rows = r.abs().amax(-1)  # (B, n)
        r = torch.where((rows > _rounding(r))[..., None], r, 0)
        total = r if total is None else r @ total
        steps += 1
    return torch.linalg.svdvals(total).log() / steps


def gradient_norms(classifier: SequenceClassifier, inputs: Tensor, labels: Tensor) -> Tensor:
    """The size of the loss's gradient with respect to every state, by g_{t-1} = J_t^T g_t.

    The loss is one image's cross-entropy: no mean over a batch, no dropout.

    Args:
        classifier: A cell of one layer and its head.
        inputs: Sequences (B, T, D).
        labels: Classes (B,).

    Returns:
        |dL/ds_t| for t = 0 ... T (B, T + 1), s_0 being the state before the first step.
    """
    steps = list(walk(classifier.cell, inputs))
    head = copy.deepcopy(classifier.head).double().requires_grad_(False)
    state = steps[-1].after
    scores = head(state[:, : head.in_features])  # (B, K)
    by_score = scores.softmax(-1) - F.one_hot(labels.long(), head.out_features)  # (B, K)
    g = F.pad(by_score @ head.weight, (0, state.shape[1] - head.in_features))  # no c in the head
    norms = torch.empty(len(steps) + 1, len(g), dtype=g.dtype)
    norms[-1] = g.norm(dim=-1)
    for t in reversed(range(len(steps))):
        g = torch.einsum("bij,bi->bj", jacobian(steps[t]), g)
        norms[t] = g.norm(dim=-1)
    return norms.T


def trajectories(cell: nn.Module, inputs: Tensor) -> Tensor:
    """All states (B, T + 1, n) of a cell that reads `inputs` (B, T, D), the zero start first."""
    steps = list(walk(cell, inputs))
    return torch.stack([steps[0].before, *(step.after for step in steps)], dim=1)


def principal_components(states: Tensor, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Trajectories (B, T + 1, n) along their `count` main directions, by PCA of all states.

    Returns:
        Coordinates (B, T + 1, count), and the fraction of the variance along each (count,).
    """
    pca = PCA(count, svd_solver="full")
    coordinates = pca.fit_transform(states.flatten(0, 1).numpy())
    return coordinates.reshape(*states.shape[:2], count), pca.explained_variance_ratio_


def growth_map(
    cell: AGRU, gammas: Sequence[float], epsilons: Sequence[float], start: Tensor, steps: int
) -> Tensor:
    """Measured growth of an A-GRU's state without input or biases, over gamma and epsilon.

    Both gates rest at 1/2, so a small state meets an Euler step of size epsilon/4, and the theory
    draws the boundary at epsilon = 4 `largest_stable_step`. A large state saturates tanh and then
    grows by at most epsilon a step: start small.

    Args:
        cell: Whose weights to use; its own gamma, epsilon and biases are set aside.
        gammas: Dampings.
        epsilons: Step sizes, positive.
        start: First states (B, H), none of them zero.
        steps: Steps to take, T.

    Returns:
        Mean over the batch of log(|h_T| / |h_0|) / T, in nats a step (gammas, epsilons).
    """
    cell = copy.deepcopy(cell).double().requires_grad_(False)
    cell.bias_l0.zero_()
    silence = start.new_zeros(len(start), steps, cell.input_size)
    rates = []
    for gamma, epsilon in product(gammas, epsilons):
        cell.gamma = float(gamma)
        cell.log_epsilon_l0.fill_(math.log(epsilon))
        *_, last = walk(cell, silence, start)
        rates.append((last.after.norm(dim=-1) / start.norm(dim=-1)).log().mean() / steps)
    return torch.stack(rates).reshape(len(gammas), len(epsilons))
