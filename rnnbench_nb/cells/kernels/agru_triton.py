"""The A-GRU on a GPU: one Triton kernel for all steps forward and one for all steps backward.

A program takes ROWS sequences through all steps, so that no program waits for another. The float32
weights of 139 units do not fit into the memory of a processor (227 kB), so each step reads them
again from the second-level cache, in tiles that arrive while earlier ones are multiplied. The
states and gates of a program lie in global memory, and a barrier stands between their being written
and being read by other threads.

Units are padded to P, a multiple of `DEPTH`; padded columns of what a product reads are zero. The
setting ``backend: triton`` turns this on.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.kernels import NO_SECOND_DERIVATIVE, KernelOutput, refusal

LIMIT = 256  # most hidden units
CAPABILITY = 8, 0  # least compute capability of a GPU
DEPTH = tl.constexpr(32)  # rows of a tile of weights
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"  # TRITON_INTERPRET=1: it runs in numpy


class Tiling(NamedTuple):
    """How units and sequences are cut, and how the kernels are compiled."""

    P: int  # padded number of units
    ROWS: int  # sequences of a program
    UNITS: int  # units of a tile
    PRECISION: str  # of products, as tl.dot takes it
    num_warps: int
    num_stages: int = 3  # tiles of weights that are on their way at a time
    maxnreg: int = 255  # registers of a thread; ptxas chooses fewer by itself, and spills


def tiling(hidden: int, precision: str) -> Tiling:
    """Return the tiling for a number of hidden units and a precision of torch's.

    Products are in float32 at "highest". Else they are in TF32, as torch's own are, and the tensor
    cores take 16 rows at a time.
    """
    padded = triton.cdiv(hidden, DEPTH.value) * DEPTH.value
    units = min(padded & -padded, 128)  # the largest power of two that divides it
    rows, products = (8, "ieee") if precision == "highest" else (16, "tf32")
    return Tiling(padded, rows, units, products, num_warps=4 if units == 32 else 8)


@triton.jit
def sigmoid(x):
    """Compute the logistic function."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Compute the hyperbolic tangent; Cephes' polynomial keeps the digits of small numbers."""
    square = x * x
    odd = -5.70498872745e-3 * square + 2.06390887954e-2
    odd = odd * square - 5.37397155531e-2
    odd = odd * square + 1.33314422036e-1
    odd = odd * square - 3.33332819422e-1
    e = tl.exp(-2 * tl.abs(x))
    large = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.625, x + x * square * odd, tl.where(x < 0, -large, large))


@triton.jit
def product(
    left, inside, right, column, LENGTH: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    """Multiply rows of this LENGTH by columns of `right`, (LENGTH, WIDTH)."""
    total = tl.zeros((left.shape[0], column.shape[1]), tl.float32)
    for first in range(0, LENGTH, DEPTH):
        k = first + tl.arange(0, DEPTH)
        a = tl.load(left + k[None, :], mask=inside, other=0.0)
        b = tl.load(right + k[:, None] * WIDTH + column)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def forward_kernel(
    u,  # (T, B, 3, H): the drive
    epsilon,
    gate_weights,  # (P, P, 2): U_z and U_r, transposed, in turn
    candidate_weights,  # (P, P): A, transposed
    states,  # (T + 1, B, P): the first is h_0
    kept,  # (T, B, 4, P): z, r, c, r * h; or of one step, if kept_step is 0
    kept_step,
    T,
    B,
    H,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute all states; the first program takes the first ROWS sequences, and so on."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < B
    row = row.to(tl.int64)
    eps = tl.load(epsilon)
    u += row * 3 * H
    states += row * P
    kept += row * 4 * P
    for _ in range(T):
        for first in range(0, P, UNITS):
            unit = first + tl.arange(0, UNITS)[None, :]
            real = inside & (unit < H)
            u_z = tl.load(u + unit, mask=real, other=0.0)
            u_r = tl.load(u + H + unit, mask=real, other=0.0)
            h = tl.load(states + unit, mask=real, other=0.0)
            both = 2 * first + tl.arange(0, 2 * UNITS)[None, :]
            sums = product(states, inside, gate_weights, both, P, 2 * P, PRECISION)
            sum_z, sum_r = tl.split(tl.reshape(sums, (ROWS, UNITS, 2)))
            r = sigmoid(u_r + sum_r)
            tl.store(kept + unit, sigmoid(u_z + sum_z), mask=inside)
            tl.store(kept + P + unit, r, mask=inside)
            tl.store(kept + 3 * P + unit, tl.where(real, r * h, 0.0), mask=inside)
        tl.debug_barrier()
        for first in range(0, P, UNITS):
            unit = first + tl.arange(0, UNITS)[None, :]
            real = inside & (unit < H)
            u_c = tl.load(u + 2 * H + unit, mask=real, other=0.0)
            h = tl.load(states + unit, mask=real, other=0.0)
            z = tl.load(kept + unit, mask=real, other=0.0)
            reset = kept + 3 * P
            c = tanh(u_c + product(reset, inside, candidate_weights, unit, P, P, PRECISION))
            tl.store(kept + 2 * P + unit, c, mask=inside)
            new = tl.where(real, h + eps * (z * c), 0.0)
            tl.store(states + B * P + unit, new, mask=inside)
        tl.debug_barrier()
        u += B * 3 * H
        states += B * P
        kept += kept_step


@triton.jit
def backward_kernel(
    epsilon,
    gate_weights,  # (2 P, P): U_z over U_r
    candidate_weights,  # (P, P): A
    states,  # (T + 1, B, P)
    kept,  # (T, B, 4, P)
    grad_states,  # (T, B, H), with any strides
    step_stride,
    row_stride,
    unit_stride,
    du,  # (T, B, 3, P): the gradient of the drive
    dh,  # (B, P): the gradient of the last state, and in the end of h_0
    grad_epsilon,  # (B,)
    T,
    B,
    H,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Walk back through the steps; the equations are those of `backward` in agru.cpp."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < B
    epsilon_row = grad_epsilon + row
    row = row.to(tl.int64)
    last = tl.cast(T, tl.int64) - 1
    eps = tl.load(epsilon)
    states += (last * B + row) * P
    kept += (last * B + row) * 4 * P
    du += (last * B + row) * 3 * P
    grad_states += last * step_stride + row * row_stride
    dh += row * P
    epsilon_sum = tl.zeros((ROWS, UNITS), tl.float32)
    for step in range(T + 1):  # the last passes the gradient of the first step on to h_0
        now = row < tl.where(step < T, B, 0)
        for first in range(0, P, UNITS):
            unit = first + tl.arange(0, UNITS)[None, :]
            real = now & (unit < H)
            z = tl.load(kept + unit, mask=real, other=0.0)
            c = tl.load(kept + 2 * P + unit, mask=real, other=0.0)
            outer = tl.load(grad_states + unit * unit_stride, mask=real, other=0.0)
            g = tl.load(dh + unit, mask=inside, other=0.0) + outer
            if step > 0:
                later = du + B * 3 * P
                g += product(later, inside, gate_weights, unit, 2 * P, P, PRECISION)
            tl.store(dh + unit, g, mask=inside)
            scaled = eps * g
            tl.store(du + unit, tl.where(real, scaled * c * (1 - z) * z, 0.0), mask=now)
            dc = tl.where(real, scaled * z * (1 - c * c), 0.0)
            tl.store(du + 2 * P + unit, dc, mask=now)
            epsilon_sum += tl.where(real, g * (z * c), 0.0)
        tl.debug_barrier()
        if step < T:
            for first in range(0, P, UNITS):
                unit = first + tl.arange(0, UNITS)[None, :]
                real = inside & (unit < H)
                r = tl.load(kept + P + unit, mask=real, other=0.0)
                h = tl.load(states + unit, mask=real, other=0.0)
                g = tl.load(dh + unit, mask=real, other=0.0)
                q = product(du + 2 * P, inside, candidate_weights, unit, P, P, PRECISION)
                dr = tl.where(real, q * h * (1 - r) * r, 0.0)
                tl.store(du + P + unit, dr, mask=inside)
                tl.store(dh + unit, tl.where(real, g + q * r, 0.0), mask=inside)
        tl.debug_barrier()
        states -= B * P
        kept -= B * 4 * P
        du -= B * 3 * P
        grad_states -= step_stride
    tl.store(epsilon_row, tl.sum(epsilon_sum, axis=1, keep_dims=True), mask=inside)


def forward(
    keep: bool, u: Tensor, h_0: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor, cut: Tiling
) -> tuple[Tensor, Tensor]:
    """Compute h_0 and all states (T + 1, B, P), and if `keep` z, r, c, r * h, (T, B, 4 P)."""
    (steps, batch, _), hidden = u.shape, len(a)
    states = u.new_empty(steps + 1, batch, cut.P)
    states[0] = F.pad(h_0, (0, cut.P - hidden))
    kept = u.new_empty(steps if keep else 1, batch, 4 * cut.P)
    z, r, c = _padded(gate_weight, a, cut.P).mT
    with torch.cuda.device_of(u):
        forward_kernel[(triton.cdiv(batch, cut.ROWS),)](
            *(u.contiguous(), epsilon, torch.stack([z, r], -1), c.contiguous(), states, kept),
            *(kept.stride(0) if keep else 0, steps, batch, hidden),
            **cut._asdict(),
        )
    return states, kept


def _padded(gate_weight: Tensor, a: Tensor, padded: int) -> Tensor:
    """U_z, U_r and A (3, P, P), with zeros as further rows and columns."""
    blocks = torch.cat([gate_weight, a]).view(3, len(a), len(a))
    return F.pad(blocks, (0, padded - len(a)) * 2)


class _TritonLayer(torch.autograd.Function):
    """The kernels as a function that torch can differentiate once.

    It returns all states (T, B, H) and, separately, the last one (B, H).
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        _, _, gate_weight, a, epsilon, ctx.cut = arguments
        states, kept = forward(True, *arguments)
        ctx.save_for_backward(gate_weight, a, epsilon, states, kept)
        real = states[1:, :, : len(a)]
        return real, real[-1].clone()

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor | None, grad_last: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        gate_weight, a, epsilon, states, kept = ctx.saved_tensors
        (steps, batch, _), hidden, padded = kept.shape, len(a), ctx.cut.P
        zero = states.new_zeros(1).expand(steps, batch, hidden)
        outer = zero if grad_states is None else grad_states.resolve_neg()
        dh = states.new_zeros(batch, padded)
        if grad_last is not None:
            dh[:, :hidden] = grad_last
        du, grad_epsilon = kept.new_empty(steps, batch, 3 * padded), kept.new_empty(batch)
        weights = _padded(gate_weight, a, padded)
        backward_kernel[(triton.cdiv(batch, ctx.cut.ROWS),)](
            *(epsilon, weights[:2], weights[2], states, kept, outer, *outer.stride(), du, dh),
            *(grad_epsilon, steps, batch, hidden),
            **ctx.cut._asdict(),
        )
        rows = du.view(-1, 3 * padded)
        of_gates = rows[:, : 2 * padded].T @ states[:-1].view(-1, padded)
        of_a = rows[:, 2 * padded :].T @ kept.view(-1, 4 * padded)[:, 3 * padded :]
        of_gates = of_gates.view(2, padded, padded)[:, :hidden, :hidden].flatten(0, 1)
        of_u = du.view(steps, batch, 3, padded)[..., :hidden].flatten(2)
        return of_u, dh[:, :hidden], of_gates, of_a[:hidden, :hidden], grad_epsilon.sum(), None


def run(
    cell: Any, x: Tensor, h_0: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor
) -> KernelOutput | str:
    """Run an A-GRU on x (T, B, D) from h_0 (B, H), or say why the kernels cannot."""
    tensors = [x, h_0, cell.weight_ih, gate_weight, a, cell.bias, epsilon]
    if reason := refusal(tensors, DEVICE):
        return reason
    if cell.hidden_size > LIMIT:
        return f"it takes up to {LIMIT} units"
    if not x.shape[1]:
        return "there is no sequence"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < CAPABILITY:
        return "it needs a GPU of compute capability 8.0"
    cut = tiling(cell.hidden_size, torch.get_float32_matmul_precision())
    arguments = cell.drive(x), h_0, gate_weight, a, epsilon, cut
    path = "kernel (Triton)" if cut.PRECISION == "ieee" else "kernel (Triton, TF32 products)"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return KernelOutput(path, *_TritonLayer.apply(*arguments))
    states = forward(False, *arguments)[0][1:, :, : cell.hidden_size]
    return KernelOutput(path, states, states[-1])
