"""The fast path of the A-GRU: agru.cpp, compiled on first use, called on float32 tensors.

A backend says by itself whether it serves a call (`refusal`), what it is (`name`), and runs it.
Where it cannot be built, the A-GRU runs its plain loop, and one line of the logger ``rnnbench_nb``
says so.
"""

import ctypes
import logging
import math
import threading
import weakref
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from rnnbench_nb.cells.agru import AGRU
from rnnbench_nb.cells.kernels.build import Unavailable, build
from rnnbench_nb.recurrent import unroll

SOURCE = Path(__file__).with_name("agru.cpp")

SMALL = 1 << 16  # elements of a tensor below which memory is not worth keeping

logger = logging.getLogger("rnnbench_nb")
_load_lock = threading.Lock()
_spare = defaultdict(list)  # memory given back, by the power of two of its size


@cache
def _load_once() -> ctypes.CDLL | str:
    """Return the library, or why there is none; say which in one line of the log."""
    try:
        library = ctypes.CDLL(str(build(SOURCE)))
    except (Unavailable, OSError) as error:
        logger.warning("A-GRU: slower loop over time steps, %s", error)
        return str(error)
    pointer = ctypes.c_void_p
    library.agru_name.restype = library.agru_bfloat16.restype = ctypes.c_char_p
    library.agru_lanes.restype = ctypes.c_int64
    library.agru_forward.argtypes = [pointer] * 3
    library.agru_backward.argtypes = [pointer] * 4
    library.agru_forward.restype = library.agru_backward.restype = None
    logger.info("A-GRU: kernel (%s)", library.agru_name().decode())
    return library


def _load() -> ctypes.CDLL | str:
    with _load_lock:
        return _load_once()


def name(parameters: list[Tensor]) -> str:
    """What runs a cell with these parameters where nothing is refused, as ``kernel (AVX-512)``.

    At torch's precision "medium" it says what its products are computed in as well.
    """
    vectors, unit = _load().agru_name().decode(), _load().agru_bfloat16().decode()
    if torch.get_float32_matmul_precision() != "medium":
        return f"kernel ({vectors})"
    rounded = _bfloat16(max(len(tensor) for tensor in parameters if tensor.dim()) // 3)
    return (
        f"kernel ({vectors}, {f'bfloat16 products by {unit}' if rounded else 'float32 products'})"
    )


def _bfloat16(hidden_size: int) -> bool:
    """Whether products are in bfloat16: at torch's "medium", where the processor has them.

    Fewer units than a vector holds gain nothing by it, and their short sums lose digits.
    """
    asked = torch.get_float32_matmul_precision() == "medium"
    library = _load()
    return asked and bool(library.agru_bfloat16()) and hidden_size >= library.agru_lanes()


def refusal(tensors: list[Tensor]) -> str:
    """Why the kernel cannot run a layer on these tensors here and now; empty if it can."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the call is compiled or traced"
    if torch._C._are_functorch_transforms_active():  # as torch's own Function asks
        return "a torch.func transform is at work"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"it does not take a {type(tensor).__name__}"
        if tensor.dtype != torch.float32:
            return f"it computes in float32, not {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
        if forward_ad.unpack_dual(tensor).tangent is not None:
            return "forward-mode differentiation is on"
    library = _load()
    return library if isinstance(library, str) else ""


def run(cell: AGRU, x: Tensor, h_0: Tensor, gate_weight: Tensor, a: Tensor, epsilon: Tensor):
    """Run the cell on x (T, B, D) from h_0 (B, H): all states (T, B, H), and the last (B, H)."""
    layer = (x, h_0, cell.weight_ih, gate_weight, a, cell.bias, epsilon)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in layer):
        return _KernelLayer.apply(*layer)
    states, _ = forward(*layer, keep=False, bfloat16=_bfloat16(h_0.shape[1]))
    return states, states[-1]


def loop(
    x: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    gate_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    epsilon: Tensor,
) -> Tensor:
    """The states (T, B, H) by the equation itself, one step at a time: what the kernel must give.

    Args:
        x: Inputs (T, B, D).
        h_0: Initial state (B, H).
        weight_ih: Input weights (3H, D), rows [W_z | W_r | V].
        gate_weight: Recurrent weights of the gates (2H, H), rows [U_z | U_r].
        recurrent: Recurrent matrix A of the candidate (H, H).
        bias: Biases (3H,), rows [b_z | b_r | b], or None for none.
        epsilon: Step size, a scalar tensor.
    """
    return unroll(AGRU.step, F.linear(x, weight_ih, bias), h_0, gate_weight, recurrent, epsilon)


class _KernelLayer(torch.autograd.Function):
    """`loop` by the kernel: returns the states (T, B, H) and the last of them (B, H).

    The last state is returned by itself so that a loss on it alone needs no gradient of the
    size of all states.
    """

    @staticmethod
    def forward(ctx, *layer: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.bfloat16 = _bfloat16(layer[1].shape[1])
        output, gates = forward(*layer, keep=True, bfloat16=ctx.bfloat16)
        ctx.save_for_backward(*layer, output, gates)
        return output, output[-1].clone()

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *layer, output, gates = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: these gradients will be differentiated
            return _loop_gradients(layer, ctx.needs_input_grad, grads)
        if grads == (None, None):
            return (None,) * len(layer)
        return backward(
            *layer,
            output=output,
            gates=gates,
            grad_output=grads[0],
            grad_last=grads[1],
            need_x=ctx.needs_input_grad[0],
            need_h_0=ctx.needs_input_grad[1],
            bfloat16=ctx.bfloat16,
        )


def _loop_gradients(
    layer: list[Tensor | None], needed: tuple[bool, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `_KernelLayer` by the loop, which can be differentiated again."""
    # Aliases, so that an argument computed from another one does not pass its gradient on here.
    layer = [None if tensor is None else tensor.view_as(tensor) for tensor in layer]
    states = loop(*layer)
    pairs = [(s, g) for s, g in zip((states, states[-1]), grads, strict=True) if g is not None]
    outputs, outer = zip(*pairs, strict=True)
    wanted = [tensor for tensor, need in zip(layer, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, outer, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


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


class _Layer(ctypes.Structure):
    """The struct Layer of agru.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "batch", "input", "hidden")),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x_step", "x_row")),
        *((name, ctypes.c_void_p) for name in ("h_0", "weights")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("threads", "bfloat16")),
    ]


class _Gradients(ctypes.Structure):
    """The struct Gradients of agru.cpp."""

    _fields_ = [
        ("output", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("output_step", "output_row")),
        *((name, ctypes.c_void_p) for name in ("last", "x", "h_0", "weights")),
        ("epsilon", ctypes.c_double),
    ]


def _rows(tensor: Tensor) -> Tensor:
    """Return the tensor (T, B, N), copied only if its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _layer(
    x: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    gate_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    epsilon: Tensor,
    bfloat16: bool,
) -> tuple[_Layer, list[Tensor]]:
    """Describe a layer by its struct, and by the tensors that must outlive it."""
    bias = torch.zeros(len(weight_ih)) if bias is None else bias
    weights = torch.cat([torch.cat([gate_weight, recurrent]), weight_ih, bias[:, None]], 1)
    held = [_rows(x), h_0.contiguous(), weights]
    sizes = (*x.shape, h_0.shape[1], held[0].data_ptr(), *held[0].stride()[:2])
    how = (epsilon.item(), torch.get_num_threads(), bfloat16)
    return _Layer(*sizes, *map(_pointer, held[1:]), *how), held


def forward(
    x: Tensor, *weights_and_epsilon: Tensor | None, keep: bool, bfloat16: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Run a layer as `loop` does.

    Args:
        x: Inputs (T, B, D).
        weights_and_epsilon: The other arguments of `loop`, in its order.
        keep: Whether to return what `backward` needs.
        bfloat16: Whether products are in bfloat16, which the library must have.

    Returns:
        The states after each step (T, B, H), and z, r, c of each step, or None.
    """
    library, (layer, _held) = _load(), _layer(x, *weights_and_epsilon, bfloat16)
    lanes = library.agru_lanes()
    padded = math.ceil(layer.hidden / lanes) * lanes
    output = _empty(layer.steps, layer.batch, layer.hidden)
    gates = _empty(layer.steps, layer.batch, 3, padded) if keep else None
    library.agru_forward(ctypes.byref(layer), output.data_ptr(), _pointer(gates))
    return output, gates


def backward(
    x: Tensor,
    *weights_and_epsilon: Tensor | None,
    output: Tensor,
    gates: Tensor,
    grad_output: Tensor | None,
    grad_last: Tensor | None,
    need_x: bool,
    need_h_0: bool,
    bfloat16: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the arguments of `forward`, in their order.

    Args:
        x: Inputs (T, B, D).
        weights_and_epsilon: The other arguments of `loop`, in its order.
        output: The states that `forward` returned (T, B, H).
        gates: What else it returned.
        grad_output: Gradient of the states (T, B, H), or None for zero.
        grad_last: Gradient to be added at the last state (B, H), or None for zero.
        need_x: Whether the gradient of x is wanted; it is None otherwise.
        need_h_0: Whether that of h_0 is wanted.
        bfloat16: As it was in `forward`.
    """
    layer, (_, h_0, weights) = _layer(x, *weights_and_epsilon, bfloat16)
    *_, bias, epsilon = weights_and_epsilon
    grad_output = None if grad_output is None else _rows(grad_output)
    grad_last = None if grad_last is None else grad_last.contiguous()
    grad_x = _empty(*x.shape) if need_x else None
    grad_h_0 = torch.empty_like(h_0) if need_h_0 else None
    grad_weights = torch.empty_like(weights)
    strides = (0, 0) if grad_output is None else grad_output.stride()[:2]
    pointers = map(_pointer, (grad_last, grad_x, grad_h_0, grad_weights))
    gradients = _Gradients(_pointer(grad_output), *strides, *pointers)
    _load().agru_backward(
        ctypes.byref(layer), output.data_ptr(), gates.data_ptr(), ctypes.byref(gradients)
    )
    of_h, of_x, of_one = grad_weights.split((layer.hidden, layer.input, 1), 1)
    gate_weight, recurrent = of_h.split((2 * layer.hidden, layer.hidden))
    of_bias = None if bias is None else of_one[:, 0]
    of_epsilon = torch.full_like(epsilon, gradients.epsilon)
    return grad_x, grad_h_0, of_x, gate_weight, recurrent, of_bias, of_epsilon
