"""The loop as a CUDA graph: on a GPU where there is one, its bookkeeping everywhere."""

import copy

import pytest
import torch

from rnnbench_nb.cells import CELLS, plain_loop
from rnnbench_nb.cells.base import TorchCell
from rnnbench_nb.cells.kernels import cuda_graph

OURS = [name for name, cell in CELLS.items() if not issubclass(cell, TorchCell)]
OURS.remove("module")  # a foreign module has no loop of ours
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Eager(cuda_graph.CapturedLoop):
    """Computes where a graph would be replayed, in memory that is overwritten as a graph's is."""

    def _capture(self, function):
        self.states = function(*self.inputs).detach()
        self.outer = torch.empty_like(self.states)

        def replay():
            with torch.enable_grad():
                self.made = function(*self.inputs)
            self.states.copy_(self.made.detach())

        def replay_backward():
            new = torch.autograd.grad(self.made, self.leaves, self.outer, allow_unused=True)
            if not hasattr(self, "gradients"):
                self.gradients = [None if grad is None else grad.clone() for grad in new]
            for place, grad in zip(self.gradients, new, strict=True):
                if place is not None:
                    place.copy_(grad)

        self.replay, self.replay_backward = replay, replay_backward


def cell_on(device, name="agru", dtype=torch.float32, **options):
    return CELLS[name](3, 4, batch_first=True, device=device, dtype=dtype, **options)


def gradients(cell, x, h_0=None):
    """The output, and the gradients of all trained tensors."""
    wanted = [t for t in (x, h_0, *cell.parameters()) if t is not None and t.requires_grad]
    output, last = cell(x, h_0)
    return output.detach(), torch.autograd.grad(output.square().sum() + last.sum(), wanted)


def agrees(cell, x, h_0=None, **limits):
    """The graph gives the states and gradients of the loop."""
    with plain_loop():
        want = gradients(cell, x, h_0)
    torch.testing.assert_close(gradients(cell, x, h_0), want, **limits)
    assert cell.path == "loop as a CUDA graph"


@pytest.fixture(params=["bookkeeping", pytest.param("gpu", marks=gpu)])
def where(request, monkeypatch):
    """The device; cells run by their graphs there."""
    if request.param == "bookkeeping":
        monkeypatch.setattr(cuda_graph, "CapturedLoop", Eager)
    for name in OURS:
        monkeypatch.setattr(CELLS[name], "kernels", (cuda_graph.run,))
    return {"bookkeeping": "cpu", "gpu": "cuda"}[request.param]


@pytest.mark.parametrize("name", OURS)
def test_it_gives_the_states_and_gradients_of_the_loop(where, name):
    cell = cell_on(where, name, torch.float64)
    random = torch.Generator().manual_seed(0)
    for batch in (5, 1, 5):
        x = torch.rand(batch, 7, 3, generator=random).to(where, torch.float64)
        agrees(cell, x, rtol=1e-10, atol=1e-12)
    assert len(cuda_graph._graphs[cell]) == 2


def test_changed_weights_copies_and_the_gradients_of_input_and_start(where):
    cell = cell_on(where)
    x, h_0 = torch.rand(2, 5, 3, device=where), torch.rand(1, 2, 4, device=where)
    kept = cell(x)[0].detach()
    before = kept.clone()
    with torch.no_grad():
        cell.candidate_weight.mul_(3)
    agrees(cell, x)
    assert torch.equal(kept, before)  # later calls leave the states of an earlier one
    twin = copy.deepcopy(cell)
    with torch.no_grad():
        twin.bias.add_(1)
    agrees(twin, x)
    agrees(cell, x.requires_grad_(), h_0.requires_grad_())


def test_two_sequences_before_one_backward_keep_their_own_gradients(where):
    cell = cell_on(where)
    x, y = torch.rand(2, 2, 5, 3, device=where)

    def both():
        one, two = cell(x)[0], cell(y)[0]
        return torch.autograd.grad(one.square().sum() + 2 * two.sum(), list(cell.parameters()))

    with plain_loop():
        want = both()
    torch.testing.assert_close(both(), want)
    assert cell.path == "loop: an earlier sequence of this shape still waits for its gradient"


def test_a_second_backward_is_refused_by_name_and_only_a_waiting_one_keeps_the_memory(where):
    cell = cell_on(where)
    x = torch.rand(2, 5, 3, device=where)
    loss = cell(x)[0].sum()
    loss.backward(retain_graph=True)
    once = cell.bias.grad.clone()
    with pytest.raises(RuntimeError, match="not available a second time"):
        loss.backward()
    (captured,) = cuda_graph._graphs[cell].values()
    kept = cell(x)[0]
    assert captured.owner() is not None
    del kept
    assert captured.owner() is None
    cell(x)[0].sum().backward()
    torch.testing.assert_close(cell.bias.grad, 2 * once)  # gradients add up over calls


def test_four_shapes_are_captured_at_most_and_none_outlives_its_cell(where):
    cell, cells = cell_on(where), len(cuda_graph._graphs)
    for steps in range(1, 1 + cuda_graph.SHAPES):
        agrees(cell, torch.rand(2, steps, 3, device=where))
    cell(torch.rand(2, 9, 3, device=where))
    assert len(cuda_graph._graphs[cell]) == cuda_graph.SHAPES
    assert cell.path == "loop: there are graphs for 4 other shapes already"
    with torch.no_grad():
        cell(torch.rand(2, 1, 3, device=where))
    assert cell.path == "loop: no gradient is needed"
    del cell
    assert len(cuda_graph._graphs) == cells


@gpu
@pytest.mark.parametrize("name", OURS)
def test_its_bits_are_those_of_the_loop_and_of_every_replay(name, monkeypatch):
    monkeypatch.setattr(CELLS[name], "kernels", ())
    cell = CELLS[name](28, 128, batch_first=True, device="cuda")
    x = torch.rand(128, 28, 28, device="cuda")
    for _ in range(3):
        agrees(cell, x, rtol=0, atol=0)
