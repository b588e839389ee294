"""What a recurrence does to its state of n numbers: spectra, step Jacobians, exponents, gradients.

All is float64, batched over examples and streamed over steps.

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
POINTS = 16  # dampings that are tried


def stability(matrix: Tensor, epsilon: Tensor) -> dict[str, float]:
    """How a recurrent matrix A (H, H) grows, as a flow and by Euler steps of a size epsilon.

    A mode lambda of A grows along the flow if Re(lambda) > 0, and along the step I + epsilon A if
    |1 + epsilon lambda| > 1, which is so beyond epsilon = -2 Re(lambda) / |lambda|^2.

    Returns:
        `epsilon`; `lambda_max`, the largest imaginary part; `epsilon_lambda_max`, at most 1 if
        some damping stabilises the step (gamma = 1/epsilon is the best); `epsilon_max`, the
        largest step at which no mode grows; the largest modulus, `modulus_max`; `share_outside`,
        the fraction of modes with one above 1; `abscissa`, the largest real part of an eigenvalue
        of epsilon A, and `numerical_abscissa`, that of its symmetric part (above 0: the flow can
        grow at once); `defect`, |A - S + gamma I| / |A| in Frobenius' norm for the nearest
        S - gamma I, S antisymmetric (0: the eigenvalues are -gamma +- i omega).
    """
    matrix, epsilon = matrix.cpu().double(), epsilon.cpu().double()
    modes = torch.linalg.eigvals(matrix)
    moduli = (1 + epsilon * modes).abs()
    largest_steps = -2 * modes.real / modes.abs() ** 2  # 0 / 0 for the mode 0, always neutral
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
    u: Tensor  # what its input contributes (B, blocks H)
    before: Tensor  # state before the step (B, n)
    prepared: tuple[Tensor, ...]  # what the cell's `prepare` gave
    after: Tensor  # state after the step (B, n)


def walk(cell: Cell, inputs: Tensor, start: Tensor | None = None) -> Iterator[Step]:
    """Run a copy of a cell in float64 over sequences (B, T, D) and yield its steps one by one.

    The start (B, n) is zeros if it is None; if it wants a gradient, so do all states after it.
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


def parts_of(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """P and G (B, n, n) of J = I + P + G, and A (n, n), for a cell with `jacobian_terms`.

    The path P = L A R is the recurrent matrix between frozen gates, L and R being diagonal and
    positive; G is the gates' own dependence on the state.
    """
    cell: Any = step.cell
    terms = cell.jacobian_terms(step.u, step.before, *step.prepared)
    return *terms, cell.recurrent_matrix()


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
# What stands in the place of a step's Jacobian, and the causes of growth that are left in it.
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


def replaced(step: Step) -> dict[str, Tensor]:
    """The step Jacobian (B, n, n) and what stands in its place, by the names of `REPLACEMENTS`.

    A step is I + M, a flow exp(M); "with gates" adds G. A cell without `jacobian_terms` has the
    whole alone.
    """
    if not getattr(step.cell, "jacobian_terms", None):
        return {"whole": jacobian(step)}
    path, gates, matrix = parts_of(step)
    found = []
    for operator in (path, balanced(path, matrix)):
        euler = torch.eye(len(matrix), dtype=matrix.dtype) + operator
        flow = torch.linalg.matrix_exp(operator)
        found += [euler + gates, euler, flow + gates, flow]
    return dict(zip(REPLACEMENTS, found, strict=True))


def least_damping(path: Tensor, matrix: Tensor, gamma: float, halvings: int = 5) -> Tensor:
    """The smallest damping at which I + P has a spectral radius of at most 1, gates held fixed.

    `POINTS` dampings are tried, evenly up to 2 / max(L R), beyond which the largest of L R
    overshoots by itself; the first that serves is refined by bisection.

    Returns:
        Dampings (B,), inf where none serves, for P = L (S - gamma I) R (B, n, n), the matrix
        S - gamma I (n, n), and the gamma in use, which is not 0.
    """
    scale = path.diagonal(dim1=-2, dim2=-1) / matrix.diagonal()  # L R, (B, n)

    def stable(damping: Tensor) -> Tensor:
        change = torch.diag_embed((damping - gamma)[:, None] * scale)
        return (1 + torch.linalg.eigvals(path - change)).abs().amax(-1) <= 1

    width = 2 / scale.amax(-1) / POINTS
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
    """What `measure` gives for `size` examples of the batches at a time, all together.

    Memory grows with `size` alone, about ten arrays (size, n, n) a thread. Each of torch's threads
    has examples of its own, because several inside one small factorisation only fight.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(measure, *(batch.split(size) for batch in batches))))
    finally:
        torch.set_num_threads(threads)


def _triangular_factors(jacobians: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """R_t (B, n, n) of Q_t R_t = J_t Q_{t-1}, Q_0 = I, and the size (B, 1) of its rounding."""
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

    Returns:
        Exponents (B, n) in nats a step, roughly descending, of J_t (B, n, n) for t = 1 ... T in
        this order; -inf for a direction that a step erases to working precision.
    """
    total, steps = torch.zeros(()), 0  # no list of T tensors, which would fragment the memory
    for r, rounding in _triangular_factors(jacobians):
        diagonal = r.diagonal(dim1=-2, dim2=-1).abs()  # (B, n)
        total = total + torch.where(diagonal > rounding, diagonal, 0).log()
        steps += 1
    return total / steps


def singular_exponents(jacobians: Iterable[Tensor]) -> Tensor:
    """Finite-time exponents log(sigma_i) / T of the product J_T ... J_1: for short sequences.

    The singular values are taken from the triangular factors, since the plain product loses all
    that is below 1e-16 of the largest: half of a trained LSTM's at T = 28.

    Returns:
        As `lyapunov_exponents`, but descending; -inf also for a direction that all steps together
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
    """The gradient of each example's loss after the last step, by reverse differentiation.

    Returns:
        dL/ds_t for t = 0 ... T (B, T + 1, n), s_0 being the state before the first step, and
        dL/dx_t for t = 1 ... T (B, T, D), for sequences (B, T, D) and targets (B, ...), or
        (B, T, ...) where every step is read. There is no dropout.
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
    """The norm over the last dimension, also of vectors whose squares would underflow."""
    largest = vectors.abs().amax(-1, keepdim=True)
    return largest[..., 0] * (vectors / largest.clamp(min=1e-300)).norm(dim=-1)
