"""Faster ways to run a cell's loop. A kernel answers a call with states, or says why it cannot."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Served(NamedTuple):
    """The answer of a kernel that served a call."""

    path: str  # the code that ran, such as "kernel (AVX-512)"
    states: Tensor  # after each step (T, B, n)
    last: Tensor  # after the last step (B, n)


def unroll(step: Callable[..., Tensor], drive: Tensor, state: Tensor, *prepared: Tensor) -> Tensor:
    """The states (T, B, n) after each step, from the drive (T, B, blocks H) and a start (B, n)."""
    states = []
    for u in drive:
        state = step(u, state, *prepared)
        states.append(state)
    return torch.stack(states)


def transformed(tensors: list[Tensor], device: str) -> str:
    """Say why no kernel can take these tensors, whatever the cell; return "" if one might."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the call is compiled or traced"
    if torch._C._are_functorch_transforms_active():  # as torch's own Function asks
        return "a torch.func transform is at work"
    if torch.is_autocast_enabled(device):
        return "autocast is on"
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return "forward-mode differentiation is on"
    return ""
