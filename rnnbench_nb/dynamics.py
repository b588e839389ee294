"""What a recurrence does to its state: spectra, step Jacobians, exponents, gradient flow.

Every cell is treated alike, by its own `drive`, `prepare`, `step` and `jacobian`. Its state s has n
numbers, n = H times its `states`. All is float64, batched over examples and streamed over steps:
no T Jacobians are ever held at once.

Each operator has its own line between growth and decay:

- A, a cell's recurrent matrix, acts in continuous time: growth is a real part above 0.
- I + epsilon A is one forward Euler step of it: growth is a modulus above 1.
- J = ds'/ds is one step of the whole cell, gates included: growth over many steps is an exponent
  above 0, which the eigenvalues of a single J do not settle. What makes it is found by replacing
  one part of every J at a time (`replaced`).

Torch's batched LU (`solve`, `det`, `slogdet`, `inv`) has no place here: on several threads it
returns wrong numbers or hangs (https://github.com/pytorch/pytorch/issues/142815).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnbench_nb.cells import Cell
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.tasks import Task

ERASED = 1e-12  # of a step's size: shrunk below it, a direction counts as erased by the step


# Spectra: a recurrent matrix A by itself, without gates or input.


def antisymmetric_part(matrix: Tensor) -> Tensor:
    """S = (A - A^T) / 2, for A (..., H, H)."""
    return (matrix - matrix.mT) / 2


def defect(matrix: Tensor) -> Tensor:
    """How far A (..., H, H) is from any S - gamma I, S antisymmetric: |A - S + gamma I| / |A|.

    The norm is Frobenius', and gamma = -tr(A) / H is the nearest. 0 means that the eigenvalues are
    -gamma +- i lambda; 1 that A is symmetric and has no trace.
    """
    damping = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]  # -gamma
    rest = matrix - antisymmetric_part(matrix)
    rest = rest - damping * torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(matrix)


def largest_stable_step(eigenvalues: Tensor) -> Tensor:
    """The largest epsilon (...) at which an Euler step amplifies no mode, of A's modes (..., H).

    |1 + epsilon lambda| = 1 at epsilon = -2 Re(lambda) / |lambda|^2, which is
    2 gamma / (gamma^2 + omega^2) for -gamma +- i omega; 0 if the real part is 0 or above. The mode
    lambda = 0 is neutral at any step.
    """
    step = -2 * eigenvalues.real / eigenvalues.abs() ** 2
    return step.nan_to_num(nan=math.inf, posinf=math.inf).clamp(min=0).amin(-1)


def stability(eigenvalues: Tensor, epsilon: Tensor) -> dict[str, Tensor]:
    """The place of I + epsilon A in the stability region of the forward Euler step.

    Args:
        eigenvalues: Of A, complex (..., H): one spectrum, or one an epoch.
        epsilon: Step size (...).

    Returns:
        Columns (...): `epsilon`; `lambda_max`, the largest imaginary part; `epsilon_lambda_max`, at
        most 1 if some damping stabilises the step (gamma = 1/epsilon is the best); `epsilon_max`,
        the largest stable step; `modulus_max` of 1 + epsilon lambda; `share_outside`, the fraction
        of modes with a modulus above 1.
    """
    moduli = (1 + epsilon[..., None] * eigenvalues).abs()  # (..., H)
    lambda_max = eigenvalues.imag.amax(-1)
    return {
        "epsilon": epsilon,
        "lambda_max": lambda_max,
        "epsilon_lambda_max": epsilon * lambda_max,
        "epsilon_max": largest_stable_step(eigenvalues),
        "modulus_max": moduli.amax(-1),
        "share_outside": (moduli > 1).double().mean(-1),
    }


# Two ways to step along ds/dt = M s for one unit of time, M (..., n, n), such as epsilon A.


def euler_step(operator: Tensor) -> Tensor:
    """I + M: the forward Euler step, which is what a cell takes."""
    return torch.eye(operator.shape[-1], dtype=operator.dtype) + operator


def exact_step(operator: Tensor) -> Tensor:
    """exp(M): the flow itself."""
    return torch.linalg.matrix_exp(operator)


def abscissas(operator: Tensor) -> dict[str, Tensor]:
    """How the flow along M (..., n, n) grows.

    Returns:
        Columns (...): `abscissa`, the largest real part of an eigenvalue (above 0: it grows in the
        long run), and `numerical_abscissa`, the largest eigenvalue of (M + M^T)/2 (above 0: it can
        grow at once; the same number if M is normal).
    """
    return {
        "abscissa": torch.linalg.eigvals(operator).real.amax(-1),
        "numerical_abscissa": torch.linalg.eigvalsh((operator + operator.mT) / 2)[..., -1],
    }


def euler_radius(operator: Tensor) -> Tensor:
    """The largest modulus (...) of an eigenvalue of I + M, M (..., n, n): above 1, it grows."""
    return (1 + torch.linalg.eigvals(operator)).abs().amax(-1)


# A cell along a sequence: its steps, and the exact Jacobian of each.


class Step(NamedTuple):
    """One step of a cell, all in float64."""

    cell: Cell
    u: Tensor  # what its input contributes (B, blocks H)
    before: Tensor  # state before the step (B, n)
    prepared: tuple[Tensor, ...]  # what the cell's `prepare` gave
    after: Tensor  # state after the step (B, n)


def walk(cell: Cell, inputs: Tensor, start: Tensor | None = None) -> Iterator[Step]:
    """Run a copy of a cell in float64 and yield its steps one by one.

    Args:
        cell: A cell.
        inputs: Sequences (B, T, D), whatever the cell's `batch_first`.
        start: First state (B, n); zeros if None. If it wants a gradient, so do all after it.
    """
    cell = copy.deepcopy(cell).double().eval().requires_grad_(False)
    state = cell.zero_state(len(inputs)) if start is None else start.double()
    prepared = cell.prepare()
    for u in cell.drive(inputs.double()).unbind(1):
        after = cell.step(u, state, *prepared)
        yield Step(cell, u, state, prepared, after)
        state = after


def jacobian(step: Step) -> Tensor:
    """The exact step Jacobian J (B, n, n); entry [b, i, j] is d after_i / d before_j."""
    return step.cell.jacobian(step.u, step.before, *step.prepared)


# What makes a step grow: its Jacobian J = I + P + G with one part replaced, at the same state. The
# path P = L A R is the recurrent matrix between frozen gates, L and R being diagonal and positive;
# G is the gates' own dependence on the state.


class Parts(NamedTuple):
    """The parts of the step Jacobian J = I + P + G, and the matrix in P."""

    path: Tensor  # P (B, n, n)
    gates: Tensor  # G (B, n, n)
    matrix: Tensor  # A (n, n)


def parts_of(step: Step) -> Parts:
    """The parts of a step of a cell whose `jacobian_terms` are identity, path, and others."""
    cell: Any = step.cell
    terms = cell.jacobian_terms(step.u, step.before, *step.prepared)
    path = terms.pop("path")
    del terms["identity"]
    gates = sum(terms.values(), torch.zeros_like(path))
    return Parts(path, gates, cell.recurrent_matrix())


def balanced(path: Tensor, matrix: Tensor) -> Tensor:
    """N = Q^1/2 A Q^1/2 with Q = L R, of a path P = L A R (..., n, n): it has P's spectrum.

    For A = S - gamma I it is M - gamma Q with M = Q^1/2 S Q^1/2 antisymmetric: its symmetric part
    is -gamma Q, so that its flow cannot grow, and N N^T - N^T N = 2 gamma (Q M - M Q), so that it
    is normal at gamma = 0, or where Q is a multiple of I (see `abnormality`).
    """
    scale = torch.where(matrix == 0, 0, path / matrix)  # of entry i, j: L_i R_j
    return matrix * (scale * scale.mT).sqrt()


def abnormality(operator: Tensor) -> Tensor:
    """|N N^T - N^T N| / |N|^2 (...) in Frobenius' norm, for N (..., n, n): 0 if N is normal."""
    transposed = operator.mT
    commutator = operator @ transposed - transposed @ operator
    return torch.linalg.matrix_norm(commutator) / torch.linalg.matrix_norm(operator) ** 2


CAUSES = ("Euler step", "non-normality", "gates")
# What stands in the place of the step's Jacobian, and the causes of growth that are left in it.
REPLACEMENTS: dict[str, set[str]] = {
    "whole": set(CAUSES),
    "step of the path": {"Euler step", "non-normality"},
    "flow of the path, with gates": {"non-normality", "gates"},
    "flow of the path": {"non-normality"},
    "step of the balanced path, with gates": {"Euler step", "gates"},
    "step of the balanced path": {"Euler step"},
    "flow of the balanced path, with gates": {"gates"},
    "flow of the balanced path": set(),
}


def replaced(parts: Parts) -> dict[str, Tensor]:
    """The step Jacobian (B, n, n) and what stands in its place, by the names of `REPLACEMENTS`.

    A step is I + M, a flow exp(M); "with gates" adds G.
    """
    path, gates = parts.path, parts.gates
    even = balanced(path, parts.matrix)
    step, flow = euler_step(path), exact_step(path)
    even_step, even_flow = euler_step(even), exact_step(even)
    steps = (step, flow, even_step, even_flow)
    found = [each for step in steps for each in (step + gates, step)]
    return dict(zip(REPLACEMENTS, found, strict=True))


def end_to_end(product: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Growth from one end of a sequence to the other.

    Args:
        product: J_T ... J_1 (B, n, n).
        gradient: Of the loss with respect to the last state (B, n).

    Returns:
        Columns (B,): `gradient`, the decades by which the gradient grows on its way back, and
        `random`, those of a random direction (root mean square over all); `largest`, the natural
        logarithm of the largest growth of any direction; `growing`, the share of singular values
        above 1.
    """
    back = torch.einsum("bij,bi->bj", product, gradient)
    singular = torch.linalg.svdvals(product).clamp(min=1e-300)
    return {
        "gradient": _decades(back.norm(dim=-1)) - _decades(gradient.norm(dim=-1)),
        "random": _decades(singular.square().mean(-1).sqrt()),
        "largest": singular[:, 0].log(),
        "growing": (singular > 1).double().mean(-1),
    }


def _decades(size: Tensor) -> Tensor:
    return size.clamp(min=1e-300).log10()


def least_damping(parts: Parts, gamma: float, points: int = 16, halvings: int = 5) -> Tensor:
    """The smallest damping at which I + P has a spectral radius of at most 1, gates held fixed.

    P(gamma) = L (S - gamma I) R, of which L R is read off the diagonals of P and A, so that no
    entry there may be 0. `points` dampings are tried, evenly up to 2 / max(L R), beyond which the
    largest of L R overshoots by itself; the first that serves is refined by bisection.

    Args:
        parts: With P (B, n, n).
        gamma: The damping in A.
        points: Dampings to try.
        halvings: Of the interval between two of them.

    Returns:
        Dampings (B,); inf where none serves.
    """
    scale = parts.path.diagonal(dim1=-2, dim2=-1) / parts.matrix.diagonal()  # L R, (B, n)

    def stable(damping: Tensor) -> Tensor:
        change = (damping - gamma)[:, None] * scale
        return euler_radius(parts.path - torch.diag_embed(change)) <= 1

    width = 2 / scale.amax(-1) / points
    least = torch.full_like(width, math.inf)
    for k in range(points, 0, -1):
        least = torch.where(stable(k * width), k * width, least)
    low, high = least - width, least
    for _ in range(halvings):
        middle = (low + high) / 2
        good = stable(middle.nan_to_num(posinf=0.0))
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    return high


def over_examples(measure: Callable[..., Tensor], *batches: Tensor, size: int = 16) -> Tensor:
    """What `measure` gives for `size` examples of the batches at a time, all together.

    Batches and what `measure` returns have examples first. Memory grows with `size` alone, about
    ten arrays (size, n, n) a thread. Each of torch's threads works on examples of its own, because
    several threads inside one small factorisation only fight.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(measure, *(batch.split(size) for batch in batches))))
    finally:
        torch.set_num_threads(threads)


# Along a sequence: products of Jacobians, gradients, states.


def _triangular_factors(jacobians: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """R_t (B, n, n) of Q_t R_t = J_t Q_{t-1}, Q_0 = I: J_T ... J_1 = Q_T R_T ... R_1.

    With each comes the size (B, 1) up to which its entries are rounding, not data.
    """
    q = None  # kept as Householder vectors, which is faster than forming it
    for j in jacobians:
        q = torch.geqrf(j if q is None else torch.ormqr(*q, j, left=False))
        r = q.a.triu()
        yield r, ERASED * torch.linalg.matrix_norm(r)[:, None]


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
    total, steps = torch.zeros(()), 0  # no list of T tensors, which would fragment the memory
    for r, rounding in _triangular_factors(jacobians):
        diagonal = r.diagonal(dim1=-2, dim2=-1).abs()  # (B, n)
        total = total + torch.where(diagonal > rounding, diagonal, 0).log()
        steps += 1
    return total / steps


def singular_exponents(jacobians: Iterable[Tensor]) -> Tensor:
    """Finite-time exponents log(sigma_i) / T of the product J_T ... J_1: for short sequences.

    Its singular values sigma_i are the exact growth over T steps. They are taken from the
    triangular factors, since the plain product loses all that is below 1e-16 of the largest:
    half of a trained LSTM's at T = 28.

    Args:
        jacobians: As for `lyapunov_exponents`.

    Returns:
        Exponents (B, n) in nats a step, descending; -inf for a direction that a step erases to
        working precision, or all steps together shrink below 1e-308.
    """
    total, steps = None, 0
    for r, rounding in _triangular_factors(jacobians):
        rows = r.abs().amax(-1)  # (B, n)
        r = torch.where((rows > rounding)[..., None], r, 0)
        total = r if total is None else r @ total
        steps += 1
    return torch.linalg.svdvals(total).log() / steps


def gradients(
    model: SequenceModel, task: Task, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss's gradient with respect to every state and every input.

    The loss is one example's, after the last step: no mean over a batch, no dropout. The gradients
    are those of g_{t-1} = J_t^T g_t, by reverse differentiation.

    Args:
        model: A cell and its head.
        task: Whose loss is taken.
        inputs: Sequences (B, T, D).
        targets: What is to be answered, (B, ...), or (B, T, ...) where every step is read.

    Returns:
        dL/ds_t for t = 0 ... T (B, T + 1, n), s_0 being the state before the first step, and
        dL/dx_t for t = 1 ... T (B, T, D).
    """
    inputs = inputs.detach().double().requires_grad_()
    start = model.cell.zero_state(len(inputs)).double().requires_grad_()
    states = [start, *(step.after for step in walk(model.cell, inputs, start))]
    head = copy.deepcopy(model.head).double().requires_grad_(False)
    outputs = head(states[-1][:, : head.in_features])  # (B, K)
    if model.read == "every":
        outputs, targets = outputs[:, None], targets[:, -1:]  # (B, 1, K), (B, 1, ...)
    loss = task.losses(outputs, targets.double() if targets.is_floating_point() else targets).sum()
    of_inputs, *of_states = torch.autograd.grad(loss, [inputs, *states])
    return torch.stack(of_states, dim=1), of_inputs


def sensitivities(
    model: SequenceModel, task: Task, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The sizes of the `gradients`: |dL/ds_t| (B, T + 1) and |dL/dx_t| (B, T)."""
    of_states, of_inputs = gradients(model, task, inputs, targets)
    return _size(of_states), _size(of_inputs)


def _size(vectors: Tensor) -> Tensor:
    """The norm over the last dimension, also of vectors whose squares would underflow."""
    largest = vectors.abs().amax(-1, keepdim=True)
    return largest[..., 0] * (vectors / largest.clamp(min=1e-300)).norm(dim=-1)
