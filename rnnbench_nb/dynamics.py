"""Dynamics of a recurrence with n state numbers: spectra, step Jacobians, exponents, gradients.

All computations are in float64, in batches of examples, one step after another.

This module must not use torch's batched LU (`solve`, `det`, `slogdet`, `inv`): on several threads
it returns wrong numbers or hangs (https://github.com/pytorch/pytorch/issues/142815).
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

ERASURE = 1e-12  # a direction that a step shrinks below this share of its norm counts as erased
POINTS = 16  # dampings that `least_damping` tries


def stability(matrix: Tensor, epsilon: Tensor) -> dict[str, float]:
    """Measure how a recurrent matrix A (H, H) grows, as a flow and by Euler steps of size epsilon.

    A mode mu of A grows along the flow if Re(mu) > 0, and along the step I + epsilon A if
    |1 + epsilon mu| > 1, that is, if epsilon > -2 Re(mu) / |mu|^2.

    Returns:
        `epsilon`; `lambda_max`, the largest imaginary part; `epsilon_lambda_max`, at most 1 if
        some damping stabilises the step (gamma = 1/epsilon is best); `epsilon_max`, the largest
        step at which no mode grows; `modulus_max`, the largest |1 + epsilon mu|, and
        `share_outside`, the fraction of modes with one above 1; `abscissa`, the largest real part
        of an eigenvalue of epsilon A, and `numerical_abscissa`, that of its symmetric part (above
        0 the flow can grow at once); `defect`, the distance |A - S + gamma I| / |A| (Frobenius) to
        the nearest S - gamma I with antisymmetric S; at 0 eigenvalues are -gamma +- i omega.
    """
    matrix, epsilon = matrix.cpu().double(), epsilon.cpu().double()
    modes = torch.linalg.eigvals(matrix)
    moduli = (1 + epsilon * modes).abs()
    largest_steps = -2 * modes.real / modes.abs() ** 2  # NaN for the mode 0, always neutral
    symmetric = (matrix + matrix.mT) / 2
    rest = symmetric - matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)
    columns = {
        "epsilon": epsilon,
        "lambda_max": modes.imag.max(),
        "epsilon_lambda_max": epsilon * modes.imag.max(),
        "epsilon_max": largest_steps.nan_to_num(nan=math.inf, posinf=math.inf).clamp(min=0).min(),
        "modulus_max": moduli.max(),
        "share_outside": (moduli > 1).double().mean(),
        "abscissa": (epsilon * modes.real).max(),
        "numerical_abscissa": torch.linalg.eigvalsh(epsilon * symmetric)[-1],
        "defect": torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(matrix),
    }
    return {name: float(value) for name, value in columns.items()}


# A cell along a sequence: its steps, and the exact Jacobian of each.


class Step(NamedTuple):
    """One step of a cell, all in float64."""

    cell: Cell
    u: Tensor  # the drive of its input (B, blocks H)
    before: Tensor  # state before the step (B, n)
    prepared: tuple[Tensor, ...]  # the result of the cell's `prepare`
    after: Tensor  # state after the step (B, n)


def walk(cell: Cell, inputs: Tensor, start: Tensor | None = None) -> Iterator[Step]:
    """Run a copy of a cell in float64 over sequences (B, T, D) and yield its steps one by one.

    The initial state `start` (B, n) is zero by default; later states require a gradient if it does.
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


def balanced(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return N = Q^1/2 A Q^1/2 (..., n, n) with Q = L R (..., n) for a path P = L A R.

    N has P's spectrum. For A = S - gamma I, N = M - gamma Q, where M = Q^1/2 S Q^1/2 is
    antisymmetric. The symmetric part of N is -gamma Q, so its flow cannot grow. As N N^T - N^T N =
    2 gamma (Q M - M Q), N is normal if gamma = 0 or if Q is a multiple of I (see `abnormality`).
    """
    root = (left * right).sqrt()
    return root[..., None] * matrix * root[..., None, :]


def abnormality(operator: Tensor) -> Tensor:
    """Return |N N^T - N^T N| / |N|^2 in Frobenius' norm for N (..., n, n); 0 if N is normal."""
    transposed = operator.mT
    commutator = operator @ transposed - transposed @ operator
    return torch.linalg.matrix_norm(commutator) / torch.linalg.matrix_norm(operator) ** 2


CAUSES = ("discrete step", "non-normality", "gates")
# The matrices that replace a step's Jacobian, and the causes of growth that remain in each.
REPLACEMENTS: dict[str, set[str]] = {
    "whole": set(CAUSES),
    "step of the path": {"discrete step", "non-normality"},
    "flow of the path, with gates": {"non-normality", "gates"},
    "flow of the path": {"non-normality"},
    "step of the balanced path, with gates": {"discrete step", "gates"},
    "step of the balanced path": {"discrete step"},
    "flow of the balanced path, with gates": {"gates"},
    "flow of the balanced path": set(),
}


def pull_back(step: Callable[[Tensor], Tensor], state: Tensor, vectors: Tensor) -> Tensor:
    """Return v^T J for vectors v (..., B, n) and the Jacobian J of a step at a state (B, n)."""
    back = torch.func.vjp(step, state)[1]
    return torch.vmap(lambda v: back(v)[0])(vectors.flatten(0, -3)).view_as(vectors)


def flow_back(matrix: Tensor, left: Tensor, right: Tensor, vectors: Tensor) -> Tensor:
    """Return v^T exp(P) for vectors v (..., B, n), by Taylor's series.

    P is the mean of the paths L A R, with L and R (slopes, B, n).
    """
    bound = left.abs().max() * right.abs().max() * torch.linalg.matrix_norm(matrix)
    parts = math.ceil(bound / 16)  # terms of at most exp(16) keep nine digits
    for _ in range(parts):
        term, order = vectors, 1
        while (term.abs() > 1e-17 * vectors.abs()).any():
            each = [(term * one) @ matrix * other for one, other in zip(left, right, strict=True)]
            term = torch.stack(each).mean(0) / (order * parts)
            vectors, order = vectors + term, order + 1
    return vectors


def replace_back(step: Step, vectors: Tensor) -> Tensor:
    """Return v^T J' for each replacement J' of the step's Jacobian J, and its vector v (8, B, n).

    For a path P, the step is the cell's `linear_step` (I + P by Euler's method), and the flow is
    exp(P), with the mean of the paths if the step has several slopes. "With gates" adds J less the
    step of the path. The balanced path of L A R is Q^1/2 A Q^1/2 with Q = L R (see `balanced`).
    """
    cell: Any = step.cell
    matrix, left, right = cell.path_terms(step.u, step.before, *step.prepared)
    root = (left * right).sqrt()

    def back(v: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return pull_back(lambda h: cell.linear_step(h, matrix, left, right), step.before, v)

    moved = []
    for scales, v in zip([(left, right), (root, root)], vectors.split(4), strict=True):
        moved += [back(v[:2], *scales), flow_back(matrix, *scales, v[2:])]
    gated = vectors[::2]
    whole = pull_back(lambda h: cell.step(step.u, h, *step.prepared), step.before, gated)
    result = torch.cat(moved)
    result[::2] += whole - back(gated, left, right)
    return result


def growth(model: SequenceModel, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the decades by which each example's gradient grows on its way back to the start.

    Every step's Jacobian is replaced by each of the matrices in `REPLACEMENTS`, along the same
    states. Vectors are carried back in place of products of matrices, at a cost of n^2 a step.

    Returns:
        Decades (B, 8) in the order of `REPLACEMENTS`; for a cell without `path_terms` the first
        alone (B, 1). Arguments are those of `gradients`.
    """
    of_states, _ = gradients(model, task, inputs, targets)
    sizes, decades = norm(of_states), torch.zeros(())
    if not hasattr(model.cell, "path_terms"):
        return (log10(sizes[:, 0]) - log10(sizes[:, -1]))[:, None]
    vectors = (of_states[:, -1] / sizes[:, -1:]).expand(len(REPLACEMENTS), -1, -1)
    for step in reversed(list(walk(model.cell, inputs))):
        vectors = replace_back(step, vectors)
        size = norm(vectors).clamp(min=1e-300)
        vectors, decades = vectors / size[..., None], decades + size.log10()
    return decades.T


def least_damping(step: Step, gamma: float, halvings: int = 5) -> Tensor:
    """Find the least damping at which a step has a spectral radius of at most 1, at fixed gates.

    It tries `POINTS` even dampings up to 2 / max(L R), beyond which the damping alone overshoots by
    Euler's and Heun's methods, and refines the first stable one by bisection.

    Returns:
        The least dampings (B,), inf if none of these is stable, for a step of a cell with the
        damping gamma.
    """
    cell: Any = step.cell
    matrix, left, right = cell.path_terms(step.u, step.before, *step.prepared)
    one = torch.eye(len(matrix)).to(matrix)

    def stable(damping: Tensor) -> Tensor:
        a = matrix - (damping - gamma)[:, None, None] * one  # (B, n, n)
        taken = cell.linear_step(one.expand_as(a), a, left[:, :, None], right[:, :, None])
        return torch.linalg.eigvals(taken).abs().amax(-1) <= 1

    width = 2 / (left * right).amax((0, -1)) / POINTS
    least = torch.full_like(width, math.inf)
    for k in range(POINTS, 0, -1):
        least = torch.where(stable(k * width), k * width, least)
    low, high = least - width, least
    for _ in range(halvings):
        middle = (low + high) / 2
        good = stable(middle.nan_to_num(posinf=0.0))
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    return high


def over_examples(measure: Callable[..., Tensor], *batches: Tensor, size: int = 16) -> Tensor:
    """Apply `measure` to `size` examples of the batches at a time, and concatenate the results.

    It needs about ten arrays (size, n, n) a thread, whatever the number of examples. Each of
    torch's threads has its own examples, because threads inside one small factorisation are slow.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(measure, *(batch.split(size) for batch in batches))))
    finally:
        torch.set_num_threads(threads)


def _triangular_factors(jacobians: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield R_t (B, n, n) of Q_t R_t = J_t Q_{t-1} with Q_0 = I, and its rounding error (B, 1)."""
    q = None  # kept as Householder vectors, which is faster than forming it
    for j in jacobians:
        q = torch.geqrf(j if q is None else torch.ormqr(*q, j, left=False))
        r = q.a.triu()
        yield r, ERASURE * torch.linalg.matrix_norm(r)[:, None]


def lyapunov_exponents(jacobians: Iterable[Tensor]) -> Tensor:
    """Compute Lyapunov exponents by QR, lambda_i = mean over t of log |R_t,ii|, for long sequences.

    See Benettin et al. 1980, Dieci and Van Vleck 2002, and for recurrent networks Vogt et al. 2022
    (Front. Appl. Math. Stat. 8:818799). The sum of the exponents is the mean of log |det J_t|,
    exact at any T; each exponent has an error of order 1/T.

    Returns:
        Exponents (B, n) in nats a step, roughly descending, for J_t (B, n, n) in the order t = 1
        ... T; -inf for a direction that a step erases to working precision.
    """
    total, steps = torch.zeros(()), 0  # a list of T tensors would fragment the memory
    for r, rounding in _triangular_factors(jacobians):
        diagonal = r.diagonal(dim1=-2, dim2=-1).abs()  # (B, n)
        total = total + torch.where(diagonal > rounding, diagonal, 0).log()
        steps += 1
    return total / steps


def singular_exponents(jacobians: Iterable[Tensor]) -> Tensor:
    """Compute the exponents log(sigma_i) / T of the product J_T ... J_1, for short sequences.

    The singular values sigma_i come from the triangular factors, because the plain product loses
    those below 1e-16 of the largest: half of a trained LSTM's at T = 28.

    Returns:
        As `lyapunov_exponents`, but descending; also -inf for a direction that all steps together
        shrink below 1e-308.
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
    """Differentiate each example's loss after the last step, in reverse mode and without dropout.

    Returns:
        dL/ds_t for t = 0 ... T (B, T + 1, n), where s_0 is the state before the first step, and
        dL/dx_t for t = 1 ... T (B, T, D), for sequences (B, T, D) and targets (B, ...). If the
        model answers after every step, targets are (B, symbols), and the last one is that of T.
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


def norm(vectors: Tensor) -> Tensor:
    """Return the norm over the last dimension, also for vectors whose squares would underflow."""
    largest = vectors.abs().amax(-1, keepdim=True)
    return largest[..., 0] * (vectors / largest.clamp(min=1e-300)).norm(dim=-1)


def log10(sizes: Tensor) -> Tensor:
    """Return the decimal logarithm of sizes, at least -300."""
    return sizes.clamp(min=1e-300).log10()
