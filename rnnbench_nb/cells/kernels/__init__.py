"""Faster ways to run a cell's loop. A kernel returns the states, or says why it cannot."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

NO_SECOND_DERIVATIVE = "no second derivative here; use rnnbench_nb.cells.plain_loop()"


class KernelOutput(NamedTuple):
    """What a kernel returns if it ran."""

    path: str  # the code that ran, such as "kernel (AVX-512)"
    states: Tensor  # the state after each step (T, B, n)
    last: Tensor  # the state after the last step (B, n)


Kernel = Callable[..., KernelOutput | str]  # of the cell, x, the state and what it prepared


def unroll(step: Callable[..., Tensor], drive: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
    """Compute the states (T, B, n) from the drive (T, B, blocks H) and an initial state (B, n)."""
    states = []
    for u in drive:
        state = step(u, state, *prepared)
        states.append(state)
    return torch.stack(states)


def general_refusal(tensors: list[Tensor], device: str) -> str:
    """Say why no kernel of any cell can take these tensors; return "" if one may."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the call is compiled or traced"
    if torch._C._are_functorch_transforms_active():  # as torch's own Function asks
        return "a torch.func transform is active"
    if torch.is_autocast_enabled(device):
        return "autocast is on"
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return "forward-mode differentiation is on"
    return ""


def refusal(tensors: list[Tensor], device: str) -> str:
    """Say why no kernel in float32 on this kind of device can take these tensors, or return ""."""
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"it does not take a {type(tensor).__name__}"
        if tensor.dtype != torch.float32:
            return f"it computes in float32, not {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.device.type != device:
            place = {"cpu": "the CPU", "cuda": "a GPU"}[device]
            return f"it runs on {place}, not on {tensor.device.type}"
    return general_refusal(tensors, device)
