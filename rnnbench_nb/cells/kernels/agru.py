"""The kernel of the A-GRU and `agru_heun`: agru.cpp, for float32 tensors on the CPU.

It is compiled on first use. Where it cannot be, the cells run their plain loop, and the logger says
so once.
"""

import ctypes
import logging
import math
import weakref
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.kernels import NO_SECOND_DERIVATIVE, KernelOutput, refusal
from rnnbench_nb.cells.kernels.build import Unavailable, build

SOURCE = Path(__file__).with_name("agru.cpp")
# By method, the place in a step where its second slope is taken; Euler's method has none.
PLACES = {"euler": 0.0, "heun": 1.0, "half_steps": 0.5}
Mode = tuple[bool, float]  # whether products are in bfloat16, and one of these places
SMALL = 1 << 16  # numbers in a tensor below which its memory is not kept

logger = logging.getLogger("rnnbench_nb")
_spare: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # free memory by log2 of size


class _Layer(ctypes.Structure):
    """The struct `Layer` of agru.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "batch", "input", "hidden")),
        *(("x", ctypes.c_void_p), ("x_step", ctypes.c_int64), ("x_row", ctypes.c_int64)),
        *(("h_0", ctypes.c_void_p), ("weights", ctypes.c_void_p), ("epsilon", ctypes.c_float)),
        *(("threads", ctypes.c_int64), ("bfloat16", ctypes.c_int64), ("place", ctypes.c_float)),
    ]


@cache
def load() -> Any:
    """Load the library, or say in a few words why there is none; log either."""
    try:
        library = ctypes.CDLL(str(build(SOURCE)))
    except (Unavailable, OSError) as error:
        logger.warning("The A-GRU runs its slower loop over time steps: %s", error)
        return str(error)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.agru_name.restype = library.agru_bfloat16.restype = ctypes.c_char_p
    library.agru_lanes.restype = number
    library.agru_forward.argtypes = [pointer] * 3
    library.agru_backward.argtypes = [*[pointer] * 4, number, number, *[pointer] * 4]
    library.agru_forward.restype, library.agru_backward.restype = None, ctypes.c_double
    logger.info("The A-GRU runs its kernel (%s)", library.agru_name().decode())
    return library


def run(
    cell: Any, x: Tensor, h_0: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor
) -> KernelOutput | str:
    """Run an A-GRU on x (T, B, D) from h_0 (B, H), or say why the kernel cannot.

    At torch's precision "medium", matrix products are in bfloat16 if the processor supports it. A
    cell with fewer units than a vector register holds keeps float32, as bfloat16 gains it nothing.
    """
    tensors = [x, h_0, cell.weight_ih, gate_weight, a, cell.bias, epsilon]
    if reason := refusal(tensors, "cpu"):
        return reason
    if isinstance(load(), str):
        return load()
    method = getattr(cell.options, "method", "euler")
    if method not in PLACES:
        return f"it makes no steps of {method}"
    path, unit = load().agru_name().decode(), load().agru_bfloat16().decode()
    bfloat16 = False
    if torch.get_float32_matmul_precision() == "medium":
        bfloat16 = bool(unit) and cell.hidden_size >= load().agru_lanes()
        path += f", bfloat16 products by {unit}" if bfloat16 else ", float32 products"
    weights = torch.cat([torch.cat([gate_weight, a]), cell.weight_ih, cell.bias[:, None]], 1)
    arguments = (
        _rows(x),
        _rows(h_0).contiguous(),
        pack(weights),
        epsilon,
        (bfloat16, PLACES[method]),
    )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return KernelOutput(f"kernel ({path})", *_KernelLayer.apply(*arguments))
    states, _ = forward(*arguments, keep=False)
    return KernelOutput(f"kernel ({path})", states, states[-1])


def pack(weights: Tensor) -> Tensor:
    """Rearrange weights (3H, H + D + 1) as the kernel reads them, (H + D + 1, 3, padded H)."""
    by_column = weights.view(3, -1, weights.shape[1]).permute(2, 0, 1)
    return F.pad(by_column, (0, -by_column.shape[2] % load().agru_lanes())).contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """The tensor; a copy if its rows are not contiguous or torch has yet to negate it."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty(*shape: int) -> Tensor:
    """Return an uninitialised float32 tensor; a large one reuses the memory of an earlier one.

    Fresh memory comes from the system page by page, which takes up to a third as long as the
    products. Memory is reused only after the last reference to its tensor is gone.
    """
    size = math.prod(shape)
    if size < SMALL:
        return torch.empty(shape)
    spare = _spare[(size - 1).bit_length()]
    if spare:
        memory = spare.pop()
    else:
        memory = np.empty((1 << (size - 1).bit_length()) + 16, dtype=np.float32)
        memory = memory[-memory.ctypes.data % 64 // 4 :]  # start at a cache line
    view = memory[:size]
    weakref.finalize(view, spare.append, memory).atexit = False
    return torch.from_numpy(view).view(shape)


def _layer(x: Tensor, h_0: Tensor, weights: Tensor, epsilon: Tensor, mode: Mode) -> _Layer:
    sizes = (*x.shape, h_0.shape[1], x.data_ptr(), *x.stride()[:2])
    pointers = h_0.data_ptr(), weights.data_ptr()
    return _Layer(*sizes, *pointers, epsilon.item(), torch.get_num_threads(), *mode)


def forward(
    x: Tensor, h_0: Tensor, weights: Tensor, epsilon: Tensor, mode: Mode, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the states (T, B, H); if `keep`, also z, r and each tanh (T, B, 3 or 4, padded H)."""
    states = _empty(*x.shape[:2], h_0.shape[1])
    gates = _empty(*x.shape[:2], 3 + (mode[1] > 0), weights.shape[2]) if keep else None
    layer = _layer(x, h_0, weights, epsilon, mode)
    load().agru_forward(ctypes.byref(layer), states.data_ptr(), _pointer(gates))
    return states, gates


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _KernelLayer(torch.autograd.Function):
    """The kernel as a function that torch can differentiate once.

    It returns all states (T, B, H) and, separately, the last one (B, H), so that a loss on the last
    state needs no gradient of the size of all states.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h_0: Tensor, weights: Tensor, epsilon: Tensor, mode: Mode
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.mode = mode
        states, gates = forward(x, h_0, weights, epsilon, mode, keep=True)
        ctx.save_for_backward(x, h_0, weights, epsilon, states, gates)
        return states, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor | None, grad_last: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        x, h_0, weights, epsilon, states, gates = ctx.saved_tensors
        grad_states = None if grad_states is None else _rows(grad_states)
        grad_last = None if grad_last is None else _rows(grad_last).contiguous()
        grad_x = _empty(*x.shape) if ctx.needs_input_grad[0] else None
        grad_h_0 = torch.empty_like(h_0) if ctx.needs_input_grad[1] else None
        grad_weights = torch.empty_like(weights)
        grad_epsilon = load().agru_backward(
            ctypes.byref(_layer(x, h_0, weights, epsilon, ctx.mode)),
            *(states.data_ptr(), gates.data_ptr(), _pointer(grad_states)),
            *((0, 0) if grad_states is None else grad_states.stride()[:2]),
            *map(_pointer, (grad_last, grad_x, grad_h_0, grad_weights)),
        )
        return grad_x, grad_h_0, grad_weights, torch.full_like(epsilon, grad_epsilon), None
