"""The kernel of the A-GRU: agru.cpp, compiled on first use, for float32 tensors on the CPU.

Where it cannot be compiled, the A-GRU runs its plain loop, and the logger says so once.
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

from rnnbench_nb.cells.kernels import Served, transformed
from rnnbench_nb.cells.kernels.build import Unavailable, build

SOURCE = Path(__file__).with_name("agru.cpp")
SMALL = 1 << 16  # elements of a tensor below which memory is not worth keeping

logger = logging.getLogger("rnnbench_nb")
_spare: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # free memory by its size


class _Layer(ctypes.Structure):
    """The struct Layer of agru.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "batch", "input", "hidden")),
        *(("x", ctypes.c_void_p), ("x_step", ctypes.c_int64), ("x_row", ctypes.c_int64)),
        *(("h_0", ctypes.c_void_p), ("weights", ctypes.c_void_p), ("epsilon", ctypes.c_float)),
        *(("threads", ctypes.c_int64), ("bfloat16", ctypes.c_int64)),
    ]


@cache
def load() -> Any:
    """The library, or in a few words why there is none; the logger says which it is."""
    try:
        library = ctypes.CDLL(str(build(SOURCE)))
    except (Unavailable, OSError) as error:
        logger.warning("A-GRU: slower loop over time steps, %s", error)
        return str(error)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.agru_name.restype = library.agru_bfloat16.restype = ctypes.c_char_p
    library.agru_lanes.restype = number
    library.agru_forward.argtypes = [pointer] * 3
    library.agru_backward.argtypes = [*[pointer] * 4, number, number, *[pointer] * 4]
    library.agru_forward.restype, library.agru_backward.restype = None, ctypes.c_double
    logger.info("A-GRU: kernel (%s)", library.agru_name().decode())
    return library


def refusal(tensors: list[Tensor]) -> str:
    """Say why the kernel cannot take these tensors here and now; return "" if it can."""
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"it does not take a {type(tensor).__name__}"
        if tensor.dtype != torch.float32:
            return f"it computes in float32, not {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
    reason = transformed(tensors, "cpu")
    library = "" if reason else load()
    return reason or (library if isinstance(library, str) else "")


def run(
    cell: Any, x: Tensor, h_0: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor
) -> Served | str:
    """Run an A-GRU on x (T, B, D) from h_0 (B, H), or say why the kernel cannot.

    Products are in bfloat16 at torch's "medium", where the processor has them. Fewer units than a
    vector holds gain nothing by it, and their short sums lose digits.
    """
    tensors = [x, h_0, cell.weight_ih, gate_weight, a, cell.bias, epsilon]
    if reason := refusal(tensors):
        return reason
    path, unit = load().agru_name().decode(), load().agru_bfloat16().decode()
    bfloat16 = False
    if torch.get_float32_matmul_precision() == "medium":
        bfloat16 = bool(unit) and cell.hidden_size >= load().agru_lanes()
        path += f", bfloat16 products by {unit}" if bfloat16 else ", float32 products"
    weights = torch.cat([torch.cat([gate_weight, a]), cell.weight_ih, cell.bias[:, None]], 1)
    arguments = _rows(x), _rows(h_0).contiguous(), packed(weights), epsilon, bfloat16
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return Served(f"kernel ({path})", *_KernelLayer.apply(*arguments))
    states, _ = forward(*arguments, keep=False)
    return Served(f"kernel ({path})", states, states[-1])


def packed(weights: Tensor) -> Tensor:
    """Weights (3H, H + D + 1) as the kernel reads them, (H + D + 1, 3, padded H)."""
    by_column = weights.view(3, -1, weights.shape[1]).permute(2, 0, 1)
    return F.pad(by_column, (0, -by_column.shape[2] % load().agru_lanes())).contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """The tensor, copied if its rows are not contiguous or torch has to turn its signs."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty(*shape: int) -> Tensor:
    """An uninitialised float32 tensor, a large one in memory that another gave back.

    The system hands out fresh memory page by page, which takes up to a third as long as the
    products. The memory is the tensor's own until the last reference to it is gone.
    """
    size = math.prod(shape)
    if size < SMALL:
        return torch.empty(shape)
    spare = _spare[(size - 1).bit_length()]
    if spare:
        memory = spare.pop()
    else:
        memory = np.empty((1 << (size - 1).bit_length()) + 16, dtype=np.float32)
        memory = memory[-memory.ctypes.data % 64 // 4 :]  # from the start of a cache line
    held = memory[:size]
    weakref.finalize(held, spare.append, memory).atexit = False
    return torch.from_numpy(held).view(shape)


def _layer(x: Tensor, h_0: Tensor, weights: Tensor, epsilon: Tensor, bfloat16: bool) -> _Layer:
    sizes = (*x.shape, h_0.shape[1], x.data_ptr(), *x.stride()[:2])
    pointers = h_0.data_ptr(), weights.data_ptr()
    return _Layer(*sizes, *pointers, epsilon.item(), torch.get_num_threads(), bfloat16)


def forward(
    x: Tensor, h_0: Tensor, weights: Tensor, epsilon: Tensor, bfloat16: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The states (T, B, H), and z, r, c of each step (T, B, 3, padded H) if `keep`."""
    states = _empty(*x.shape[:2], h_0.shape[1])
    gates = _empty(*x.shape[:2], *weights.shape[1:]) if keep else None
    layer = _layer(x, h_0, weights, epsilon, bfloat16)
    load().agru_forward(ctypes.byref(layer), states.data_ptr(), _pointer(gates))
    return states, gates


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _KernelLayer(torch.autograd.Function):
    """A layer's states (T, B, H) and the last of them (B, H), by the kernel.

    The last state is returned by itself so that a loss on it alone needs no gradient of the
    size of all states.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h_0: Tensor, weights: Tensor, epsilon: Tensor, bfloat16: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.bfloat16 = bfloat16
        states, gates = forward(x, h_0, weights, epsilon, bfloat16, keep=True)
        ctx.save_for_backward(x, h_0, weights, epsilon, states, gates)
        return states, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, of_states: Tensor | None, of_last: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError("no second derivatives; use rnnbench_nb.cells.plain_loop()")
        x, h_0, weights, epsilon, states, gates = ctx.saved_tensors
        of_states = None if of_states is None else _rows(of_states)
        of_last = None if of_last is None else _rows(of_last).contiguous()
        of_x = _empty(*x.shape) if ctx.needs_input_grad[0] else None
        of_h_0 = torch.empty_like(h_0) if ctx.needs_input_grad[1] else None
        of_weights = torch.empty_like(weights)
        of_epsilon = load().agru_backward(
            ctypes.byref(_layer(x, h_0, weights, epsilon, ctx.bfloat16)),
            *(states.data_ptr(), gates.data_ptr(), _pointer(of_states)),
            *((0, 0) if of_states is None else of_states.stride()[:2]),
            *map(_pointer, (of_last, of_x, of_h_0, of_weights)),
        )
        return of_x, of_h_0, of_weights, torch.full_like(epsilon, of_epsilon), None
