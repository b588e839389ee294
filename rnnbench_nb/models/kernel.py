"""The fast path of the A-GRU: agru_kernel.cpp, compiled on first use, called on float32 tensors.

The library is built by the system's C++ compiler into a user cache (the folder in RNNBENCH_CACHE,
otherwise the platform's own) and rebuilt when the source, the compiler, its flags or the
processor differ. RNNBENCH_ISA chooses its instructions: ``native`` (all that the processor has,
the default), ``avx2``, or ``baseline`` (what the compiler assumes by itself). Where it cannot be
built, the A-GRU runs its plain loop and one line of the logger ``rnnbench_nb`` says so.
"""

import ctypes
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.autograd import forward_ad

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file

SOURCE = Path(__file__).with_name("agru_kernel.cpp")
NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
ISA_FLAGS = {"native": [NATIVE], "avx2": ["-march=x86-64-v3"], "baseline": []}
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread"]
VECTOR_NAMES = {64: "AVX-512", 32: "AVX2", 16: "128-bit vectors"}
BUILD_SECONDS = 300  # longest wait for the compiler, or for another process that runs it

SMALL = 1 << 16  # elements of a tensor below which memory is not worth keeping

logger = logging.getLogger("rnnbench_nb")
_load_lock = threading.Lock()
_spare = defaultdict(list)  # memory given back, by the power of two of its size


class _Unavailable(Exception):
    """Why there is no kernel, in a few words."""


def _compiler() -> str:
    """Return the path of the C++ compiler: $CXX, otherwise the first of the usual names."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    for name in names:
        if path := shutil.which(name):
            return path
    raise _Unavailable("no C++ compiler found")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS
        )
    except subprocess.CalledProcessError as error:
        first_line = (error.stderr.strip() or str(error)).splitlines()[0]
        raise _Unavailable(f"the C++ compiler failed: {first_line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"the C++ compiler could not run: {error}") from error
    return done.stdout


def _build() -> Path:
    """Return the path of the library, compiled now unless the cache holds it.

    Its name is a hash of the source, the flags and all macros that the compiler predefines under
    them, which name its version and every instruction set it may use on this processor.
    """
    isa = os.environ.get("RNNBENCH_ISA", "native")
    if isa not in ISA_FLAGS:
        raise UserError(f"RNNBENCH_ISA must be one of {', '.join(ISA_FLAGS)}, got {isa!r}")
    compiler = _compiler()
    command = [compiler, *FLAGS, *ISA_FLAGS[isa]]
    macros = _run([*command, "-x", "c++", "-dM", "-E", os.devnull])
    key = hashlib.sha256("\0".join([SOURCE.read_text(), *command, macros]).encode()).hexdigest()
    folder = Path(os.environ.get("RNNBENCH_CACHE") or platformdirs.user_cache_dir("rnnbench_nb"))
    library = folder / f"agru_kernel-{key[:20]}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock"), timeout=BUILD_SECONDS):
            if not library.exists():
                with tempfile.TemporaryDirectory() as scratch:
                    built = Path(scratch) / library.name
                    _run([*command, str(SOURCE), "-o", str(built)])
                    write_file(library, built.read_bytes())
    except (OSError, Timeout, UserError) as error:
        raise _Unavailable(f"the cache {folder} cannot be used: {error}") from error
    return library


@cache
def _load_once() -> ctypes.CDLL | str:
    """Return the library, or why there is none; say which in one line of the log."""
    try:
        library = ctypes.CDLL(str(_build()))
    except (_Unavailable, OSError) as error:
        logger.warning("A-GRU: slower loop over time steps, %s", error)
        return str(error)
    size, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    library.agru_forward.argtypes = (
        [size] * 4 + [pointer, size, size] + [pointer] * 5 + [number] + [pointer] * 2 + [size]
    )
    library.agru_backward.argtypes = (
        [size] * 4
        + [pointer, size, size]
        + [pointer] * 4
        + [number]
        + [pointer] * 3
        + [size, size]
        + [pointer] * 8
        + [size]
    )
    library.agru_forward.restype = library.agru_backward.restype = None
    logger.info("A-GRU: kernel (%s)", VECTOR_NAMES[library.agru_vector_bytes()])
    return library


def _load() -> ctypes.CDLL | str:
    with _load_lock:
        return _load_once()


def path_in_use() -> str:
    """Name the path of float32 on the CPU: ``kernel (AVX-512)``, or ``loop: `` and the reason."""
    library = _load()
    if isinstance(library, str):
        return f"loop: {library}"
    return f"kernel ({VECTOR_NAMES[library.agru_vector_bytes()]})"


def serves(tensors: list[Tensor]) -> bool:
    """Say whether the kernel can run a layer on these tensors here and now.

    It cannot without a compiler, for anything but plain float32 tensors on the CPU, under
    autocast, under torch.compile and torch.func transforms, or in forward-mode differentiation.
    """
    return (
        all(
            type(t) in (Tensor, torch.nn.Parameter)
            and t.dtype == torch.float32
            and t.device.type == "cpu"
            and forward_ad.unpack_dual(t).tangent is None
            for t in tensors
        )
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # as torch's own Function asks
        and not isinstance(_load(), str)
    )


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


def _rows(tensor: Tensor) -> Tensor:
    """Return the tensor (T, B, N), copied only if its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def forward(
    x: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    gate_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    epsilon: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run a layer as `agru_loop` does.

    Args:
        x: Inputs (T, B, D); like the others up to epsilon as in `agru_loop`, float32.
        h_0: Initial state (B, H).
        weight_ih: Input weights (3H, D).
        gate_weight: Recurrent weights of the gates (2H, H).
        recurrent: Recurrent matrix (H, H).
        bias: Biases (3H,), or None.
        epsilon: Step size, a scalar tensor.
        keep: Whether to return what `backward` needs.

    Returns:
        The states after each step (T, B, H), and what `backward` needs, or None.
    """
    n_steps, batch_size, input_size = x.shape
    hidden_size = h_0.shape[1]
    x = _rows(x)
    held = [w.contiguous() for w in (h_0, weight_ih, gate_weight, recurrent)]
    bias = None if bias is None else bias.contiguous()
    output = _empty(n_steps, batch_size, hidden_size)
    library = _load()
    lanes = library.agru_vector_bytes() // 4
    padded = -(-hidden_size // lanes) * lanes
    gates = _empty(n_steps, batch_size, 3, padded) if keep else None
    library.agru_forward(
        n_steps, batch_size, input_size, hidden_size,
        x.data_ptr(), x.stride(0), x.stride(1),
        *map(_pointer, held), _pointer(bias), epsilon.item(),
        output.data_ptr(), _pointer(gates), torch.get_num_threads(),
    )  # fmt: skip
    return output, gates


def backward(
    x: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    gate_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    epsilon: Tensor,
    output: Tensor,
    gates: Tensor,
    grad_output: Tensor | None,
    grad_last: Tensor | None,
    need_x: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the first seven arguments, which are those of `forward`.

    Args:
        x: Inputs (T, B, D).
        h_0: Initial state (B, H).
        weight_ih: Input weights (3H, D).
        gate_weight: Recurrent weights of the gates (2H, H).
        recurrent: Recurrent matrix (H, H).
        bias: Biases (3H,), or None.
        epsilon: Step size, a scalar tensor.
        output: The states that `forward` returned (T, B, H).
        gates: What `forward` kept.
        grad_output: Gradient of the states (T, B, H), or None for zero.
        grad_last: Gradient to be added at the last state (B, H), or None for zero.
        need_x: Whether the gradient of x is wanted; otherwise it is None.
    """
    n_steps, batch_size, input_size = x.shape
    hidden_size = h_0.shape[1]
    x = _rows(x)
    held = [w.contiguous() for w in (h_0, weight_ih, gate_weight, recurrent)]
    grad_output = None if grad_output is None else _rows(grad_output)
    grad_last = None if grad_last is None else grad_last.contiguous()
    grad_x = _empty(n_steps, batch_size, input_size) if need_x else None
    grads = [torch.empty_like(w) for w in held]
    grad_bias = None if bias is None else torch.empty_like(bias)
    grad_epsilon = ctypes.c_double()
    _load().agru_backward(
        n_steps, batch_size, input_size, hidden_size,
        x.data_ptr(), x.stride(0), x.stride(1),
        *map(_pointer, held), epsilon.item(), output.data_ptr(), gates.data_ptr(),
        _pointer(grad_output), *((0, 0) if grad_output is None else grad_output.stride()[:2]),
        _pointer(grad_last), _pointer(grad_x), *map(_pointer, grads), _pointer(grad_bias),
        ctypes.addressof(grad_epsilon), torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, *grads, grad_bias, torch.full_like(epsilon, grad_epsilon.value)
