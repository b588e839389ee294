"""The parallel scan of the minGRU, in torch's operations: about 2 log2(T) passes for T steps.

All states at once pay where a single step cannot fill the machine. Measured on a CPU at 128 units,
training: from about 50 steps on and up to 4 sequences (a fourth of the loop's time for one sequence
of 784 steps, two thirds for four); not at 28 steps, where both take as long. With 128 sequences the
loop, which does half the work and stays in the cache, takes half of the scan's time at 28 and 784
steps. On a GPU it was not measured.
"""

import torch
from torch import Tensor

LONG, FEW = 50, 4  # steps from which and, on a CPU, sequences up to which the scan is faster


def name(_: list[Tensor]) -> str:
    """What runs where nothing is refused."""
    return "parallel scan"


def refusal(tensors: list[Tensor]) -> str:
    """Why the loop is better on these tensors, among them inputs (T, B, D); empty if it is not."""
    steps, sequences = next((x.shape[:2] for x in tensors if x.dim() == 3), (LONG, FEW + 1))
    if steps < LONG:
        return f"the parallel scan is no faster below {LONG} steps"
    if sequences > FEW and any(tensor.device.type == "cpu" for tensor in tensors):
        return f"on a CPU the parallel scan is slower above {FEW} sequences"
    return ""


def scan(a: Tensor, b: Tensor) -> Tensor:
    """All h_t = a_t h_{t-1} + b_t (T, ...) from h_0 = 0: Blelloch (1990), section 1.4.

    Two steps make one of the same kind, h_{t+1} = a_{t+1} a_t h_{t-1} + (a_{t+1} b_t + b_{t+1}). So
    the second state of each pair is found by a scan over the pairs, and the first by one step from
    the pair before.
    """
    if len(a) == 1:
        return b
    first_a, first_b, second_a, second_b = a[:-1:2], b[:-1:2], a[1::2], b[1::2]
    second = scan(second_a * first_a, second_a * first_b + second_b)
    first = torch.cat([b[:1], a[2::2] * second[: len(a[2::2])] + b[2::2]])
    pairs = torch.stack([first[: len(second)], second], 1).flatten(0, 1)
    return torch.cat([pairs, first[len(second) :]])


def run(cell, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """All states (T, B, H) from inputs (T, B, D) and a start (B, H), and the last (B, H)."""
    z, c = cell.drive(x).chunk(2, -1)
    a, b = 1 - z, z * c
    states = scan(a, torch.cat([b[:1] + a[:1] * state, b[1:]]))
    return states, states[-1]
