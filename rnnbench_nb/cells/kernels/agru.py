"""The kernel of the A-GRU: agru.cpp, compiled on first use, for float32 tensors on the CPU.

Where it cannot be compiled, the A-GRU runs its plain loop, and the logger says so once.
"""

import ctypes
import logging
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnbench_nb.cells.kernels import Served, transformed, unroll
from rnnbench_nb.cells.kernels.build import Unavailable, build

SOURCE = Path(__file__).with_name("agru.cpp")
SMALL = 1 << 16  # elements of a tensor below which memory is not worth keeping

logger = logging.getLogger("rnnbench_nb")
_spare: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # free memory by log2 of its size


class Layer(NamedTuple):
    """The arguments of the equation, for T steps, B sequences, D features and H units."""

    x: Tensor  # inputs (T, B, D)
    h_0: Tensor  # (B, H)
    weight_ih: Tensor  # (3H, D), rows [W_z | W_r | V]
    gate_weight: Tensor  # (2H, H), rows [U_z | U_r]
    a: Tensor  # (H, H)
    bias: Tensor | None  # (3H,), rows [b_z | b_r | b]
    epsilon: Tensor  # a scalar

    def tensors(self) -> list[Tensor]:
        """The tensors without an absent bias."""
        return [tensor for tensor in self if tensor is not None]


@cache
def load() -> Any:
    """Return the library, or in a few words why there is none; log which it is."""
    try:
        library = ctypes.CDLL(str(build(SOURCE)))
    except (Unavailable, OSError) as error:
        logger.warning("A-GRU: slower loop over time steps, %s", error)
        return str(error)
    library.agru_name.restype = library.agru_bfloat16.restype = ctypes.c_char_p
    library.agru_lanes.restype = ctypes.c_int64
    library.agru_forward.argtypes = [ctypes.c_void_p] * 3
    library.agru_backward.argtypes = [ctypes.c_void_p] * 4
    library.agru_forward.restype = library.agru_backward.restype = None
    logger.info("A-GRU: kernel (%s)", library.agru_name().decode())
    return library


def refusal(layer: Layer) -> str:
    """Say why the kernel cannot run a layer here and now; return "" if it can."""
    for tensor in layer.tensors():
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"it does not take a {type(tensor).__name__}"
        if tensor.dtype != torch.float32:
            return f"it computes in float32, not {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
    reason = transformed(layer.tensors(), "cpu")
    library = "" if reason else load()
    return reason or (library if isinstance(library, str) else "")


def _bfloat16(hidden_size: int) -> bool:
    """Whether products are in bfloat16: at torch's "medium", where the processor has them.

    Fewer units than a vector holds gain nothing by it, and their short sums lose digits.
    """
    wanted = torch.get_float32_matmul_precision() == "medium"
    return wanted and bool(load().agru_bfloat16()) and hidden_size >= load().agru_lanes()


def _path(hidden_size: int) -> str:
    """The kernel's name as ``kernel (AVX-512)``; at torch's "medium" with that of its products."""
    vectors, unit = load().agru_name().decode(), load().agru_bfloat16().decode()
    if torch.get_float32_matmul_precision() != "medium":
        return f"kernel ({vectors})"
    products = f"bfloat16 products by {unit}" if _bfloat16(hidden_size) else "float32 products"
    return f"kernel ({vectors}, {products})"


def run(
    cell: Any, x: Tensor, h_0: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor
) -> Served | str:
    """Run an A-GRU on x (T, B, D) from h_0 (B, H), or say why the kernel cannot."""
    layer = Layer(x, h_0, cell.weight_ih, gate_weight, a, cell.bias, epsilon)
    reason = refusal(layer)
    if reason:
        return reason
    hidden_size = h_0.shape[1]
    path, bfloat16 = _path(hidden_size), _bfloat16(hidden_size)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in layer.tensors()):
        return Served(path, *_KernelLayer.apply(cell.step, bfloat16, *layer))
    states, _ = forward(layer, keep=False, bfloat16=bfloat16)
    return Served(path, states, states[-1])


def _loop_gradients(
    step: Callable[..., Tensor],
    layer: Layer,
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the gradients of `_KernelLayer` by the loop, which can be differentiated again."""
    # Aliases, so that an argument computed from another one does not pass its gradient on here.
    aliases: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in layer]
    x, h_0, weight_ih, gate_weight, a, bias, epsilon = aliases
    states = unroll(step, F.linear(x, weight_ih, bias), h_0, gate_weight, a, epsilon)
    pairs = zip((states, states[-1]), grads, strict=True)
    outputs, outer = zip(*((s, g) for s, g in pairs if g is not None), strict=True)
    wanted = [tensor for tensor, need in zip(aliases, needed, strict=True) if need]
    gradients = iter(torch.autograd.grad(outputs, wanted, outer, create_graph=True))
    return [next(gradients) if need else None for need in needed]


def _empty(*shape: int) -> Tensor:
    """Return an uninitialised float32 tensor, a large one in memory that another gave back.

    The system hands out fresh memory page by page, which takes up to a third as long as the
    products. The memory is the tensor's own until the last reference to it is gone.
    """
    size = math.prod(shape)
    if size < SMALL:
        return torch.empty(shape)
    spare = _spare[(size - 1).bit_length()]
    try:
        memory = spare.pop()
    except IndexError:
        memory = np.empty((1 << (size - 1).bit_length()) + 16, dtype=np.float32)
        memory = memory[-memory.ctypes.data % 64 // 4 :]  # from the start of a cache line
    held = memory[:size]
    weakref.finalize(held, spare.append, memory).atexit = False
    return torch.from_numpy(held).view(shape)


def _fields(text: str) -> list[tuple[str, Any]]:
    """Read the fields of a struct from a list such as "float epsilon, int64 threads"."""
    pairs = (field.split() for field in text.split(", "))
    return [(name, getattr(ctypes, f"c_{kind}")) for kind, name in pairs]


class _Layer(ctypes.Structure):
    """The struct Layer of agru.cpp."""

    _fields_ = _fields(
        "int64 steps, int64 batch, int64 input, int64 hidden, void_p x, int64 x_step, int64 x_row, "
        "void_p h_0, void_p weights, float epsilon, int64 threads, int64 bfloat16"
    )


class _Gradients(ctypes.Structure):
    """The struct Gradients of agru.cpp."""

    _fields_ = _fields(
        "void_p output, int64 output_step, int64 output_row, void_p last, void_p x, void_p h_0, "
        "void_p weights, double epsilon"
    )


def _rows(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if its rows are not contiguous or torch has to turn its signs."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _layer(layer: Layer, bfloat16: bool) -> tuple[Any, list[Tensor]]:
    """Describe a layer by its struct, and by the tensors that must outlive it."""
    bias = torch.zeros(len(layer.weight_ih)) if layer.bias is None else layer.bias
    recurrent = torch.cat([layer.gate_weight, layer.a])
    weights = torch.cat([recurrent, layer.weight_ih, bias[:, None]], 1)
    held = [_rows(layer.x), layer.h_0.resolve_neg().contiguous(), weights]
    sizes = (*layer.x.shape, layer.h_0.shape[1], held[0].data_ptr(), *held[0].stride()[:2])
    how = (layer.epsilon.item(), torch.get_num_threads(), bfloat16)
    return _Layer(*sizes, *map(_pointer, held[1:]), *how), held


def forward(layer: Layer, keep: bool, bfloat16: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return the states (T, B, H), and z, r, c of each step (T, B, 3, padded H) if `keep`.

    Products are in bfloat16 if `bfloat16`, which the library must have.
    """
    struct, _held = _layer(layer, bfloat16)
    lanes = load().agru_lanes()
    padded = math.ceil(struct.hidden / lanes) * lanes
    states = _empty(struct.steps, struct.batch, struct.hidden)
    gates = _empty(struct.steps, struct.batch, 3, padded) if keep else None
    load().agru_forward(ctypes.byref(struct), states.data_ptr(), _pointer(gates))
    return states, gates


class _KernelLayer(torch.autograd.Function):
    """A layer's states (T, B, H) and the last of them (B, H), by the kernel.

    The last state is returned by itself so that a loss on it alone needs no gradient of the
    size of all states.
    """

    @staticmethod
    def forward(
        ctx: Any, step: Callable[..., Tensor], bfloat16: bool, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.step, ctx.bfloat16 = step, bfloat16
        states, gates = forward(Layer(*tensors), keep=True, bfloat16=bfloat16)
        ctx.save_for_backward(*tensors, states, gates)
        return states, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, states, gates = ctx.saved_tensors
        layer, needed = Layer(*tensors), ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # create_graph: these gradients will be differentiated
            return None, None, *_loop_gradients(ctx.step, layer, needed, grads)
        if grads == (None, None):
            return (None,) * (2 + len(layer))
        struct, (x, h_0, weights) = _layer(layer, ctx.bfloat16)
        of_states = None if grads[0] is None else _rows(grads[0])
        of_last = None if grads[1] is None else grads[1].resolve_neg().contiguous()
        of_input = _empty(*x.shape) if needed[0] else None
        of_start = torch.empty_like(h_0) if needed[1] else None
        of_weights = torch.empty_like(weights)
        strides = (0, 0) if of_states is None else of_states.stride()[:2]
        pointers = map(_pointer, (of_last, of_input, of_start, of_weights))
        gradients: Any = _Gradients(_pointer(of_states), *strides, *pointers)
        load().agru_backward(
            ctypes.byref(struct), states.data_ptr(), gates.data_ptr(), ctypes.byref(gradients)
        )
        of_h, of_x, of_one = of_weights.split((struct.hidden, struct.input, 1), 1)
        of_gates, of_a = of_h.split((2 * struct.hidden, struct.hidden))
        of_bias = None if layer.bias is None else of_one[:, 0]
        of_epsilon = torch.full_like(layer.epsilon, gradients.epsilon)
        return None, None, of_input, of_start, of_x, of_gates, of_a, of_bias, of_epsilon
