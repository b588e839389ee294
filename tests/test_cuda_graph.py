"""The loop as a CUDA graph: on a GPU where there is one, its bookkeeping everywhere."""

import copy

import pytest
import torch

from rnnbench_nb.cells import CELLS, plain_loop
from rnnbench_nb.cells.base import TorchCell
from rnnbench_nb.cells.kernels import cuda_graph

OURS = [name for name, cell in CELLS.items() if not issubclass(cell, TorchCell)]
OURS.remove("module")  # somebody else's, which has no loop of ours
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Eager(cuda_graph.Captured):
    """Computes where a graph would be replayed, in memory that is overwritten as a graph's is."""

    def _capture(self, function):
        self.states = function(*self.inputs).detach()
        self.outer = torch.empty_like(self.states)

        def replay():
            with torch.enable_grad():
                self.made = function(*self.inputs)
            self.states.copy_(self.made.detach())

        def replay_backward():
            found = torch.autograd.grad(self.made, self.wanted, self.outer, allow_unused=True)
            if not hasattr(self, "gradients"):
                self.gradients = [None if g is None else g.clone() for g in found]
            for place, gradient in zip(self.gradients, found, strict=True):
                if place is not None:
                    place.copy_(gradient)

        self.replay, self.replay_backward = replay, replay_backward


def cell_on(device, name="agru", dtype=torch.float32, **options):
    return CELLS[name](3, 4, batch_first=True, device=device, dtype=dtype, **options)


def gradients(cell, x):
    cell.zero_grad()
    output, last = cell(x)
    (output.square().sum() + last.sum()).backward()
    return output.detach(), [p.grad.clone() for p in cell.parameters() if p.requires_grad]


def same(one, other, **limits):
    torch.testing.assert_close(one, other, **limits)


@pytest.fixture(params=["bookkeeping", pytest.param("gpu", marks=gpu)])
def where(request, monkeypatch):
    """The device; cells run by their graphs there."""
    if request.param == "bookkeeping":
        monkeypatch.setattr(cuda_graph, "Captured", Eager)
        refused = {True: "", False: "no gradient is wanted"}
        monkeypatch.setattr(cuda_graph, "refusal", lambda _: refused[torch.is_grad_enabled()])
    for name in OURS:
        monkeypatch.setattr(CELLS[name], "kernels", lambda self: [cuda_graph.run])
    return {"bookkeeping": "cpu", "gpu": "cuda"}[request.param]


@pytest.mark.parametrize("name", OURS)
def test_it_gives_the_states_and_gradients_of_the_loop(where, name):
    cell = cell_on(where, name, torch.float64)
    random = torch.Generator().manual_seed(0)
    served = []
    for batch in (5, 1, 5):
        x = torch.rand(batch, 7, 3, generator=random).to(where, torch.float64)
        with plain_loop():
            states, wanted = gradients(cell, x)
        output, got = gradients(cell, x)
        served.append(cell.served)
        same(output, states, rtol=0, atol=1e-12)
        same(got, wanted, rtol=1e-10, atol=1e-12)
    assert len(cuda_graph._captured[cell]) == 2 and set(served) == {"loop as a CUDA graph"}


def test_a_changed_weight_is_seen(where):
    cell = cell_on(where)
    x = torch.rand(2, 5, 3, device=where)
    first, _ = gradients(cell, x)
    with torch.no_grad():
        cell.candidate_weight.mul_(3)
    with plain_loop():
        wanted, _ = gradients(cell, x)
    after, _ = gradients(cell, x)
    same(after, wanted)
    assert not torch.equal(first, after)


def test_two_sequences_before_one_backward_keep_their_own_gradients(where):
    cell = cell_on(where)
    x, y = torch.rand(2, 2, 5, 3, device=where)

    def both():
        cell.zero_grad()
        one, two = cell(x)[0], cell(y)[0]
        (one.square().sum() + 2 * two.sum()).backward()
        return one.detach(), [p.grad.clone() for p in cell.parameters()]

    with plain_loop():
        states, wanted = both()
    output, got = both()
    same(output, states)
    same(got, wanted)
    assert cell.served == ("loop: an earlier sequence of this shape still waits for its gradient")


def test_gradients_add_up_over_calls(where):
    cell = cell_on(where)
    x = torch.rand(2, 5, 3, device=where)
    _, once = gradients(cell, x)
    cell.zero_grad(set_to_none=True)
    for _ in range(3):
        output, last = cell(x)
        (output.square().sum() + last.sum()).backward()
    same([p.grad for p in cell.parameters()], [3 * grad for grad in once])


def test_states_of_an_earlier_call_stay(where):
    cell = cell_on(where)
    x = torch.rand(2, 5, 3, device=where)
    kept = cell(x)[0]
    before = kept.detach().clone()
    cell(2 * x)
    assert torch.equal(kept, before)


def test_a_second_backward_is_refused_by_name(where):
    cell = cell_on(where)
    loss = cell(torch.rand(2, 5, 3, device=where))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="asked for twice"):
        loss.backward()


def test_a_sequence_that_nobody_differentiates_frees_the_memory(where):
    cell = cell_on(where)
    x = torch.rand(2, 5, 3, device=where)
    cell(x)
    (captured,) = cuda_graph._captured[cell].values()
    assert captured.owner() is None
    kept = cell(x)
    assert captured.owner() is not None
    del kept
    assert captured.owner() is None


def test_the_gradient_of_the_input_and_the_start(where):
    cell = cell_on(where)
    x = torch.rand(2, 5, 3, device=where, requires_grad=True)
    h_0 = torch.rand(1, 2, 4, device=where, requires_grad=True)
    with plain_loop():
        wanted = torch.autograd.grad(cell(x, h_0)[0].square().sum(), [x, h_0])
    same(torch.autograd.grad(cell(x, h_0)[0].square().sum(), [x, h_0]), wanted)


def test_no_more_shapes_are_captured_than_said(where):
    cell = cell_on(where)
    for steps in range(1, 4 + cuda_graph.SHAPES):
        x = torch.rand(2, steps, 3, device=where)
        with plain_loop():
            _, wanted = gradients(cell, x)
        same(gradients(cell, x)[1], wanted)
    assert len(cuda_graph._captured[cell]) == cuda_graph.SHAPES
    assert cell.served == "loop: graphs of 4 other shapes are kept already"


def test_a_cell_that_is_gone_leaves_nothing_behind(where):
    cell = cell_on(where)
    cell(torch.rand(2, 5, 3, device=where))
    before = len(cuda_graph._captured)
    del cell
    assert len(cuda_graph._captured) == before - 1


def test_a_copy_captures_anew(where):
    cell = cell_on(where)
    x = torch.rand(2, 5, 3, device=where)
    cell(x)
    twin = copy.deepcopy(cell)
    with torch.no_grad():
        twin.bias.add_(1)
    with plain_loop():
        wanted, _ = gradients(twin, x)
    same(gradients(twin, x)[0], wanted)


@pytest.mark.parametrize("reason", ["no gradient is wanted", "it runs on a GPU, not on cpu"])
def test_a_refusal_says_why(reason):
    tensors = list(cell_on("cpu").parameters())
    with torch.set_grad_enabled("gradient" not in reason):
        assert cuda_graph.refusal(tensors) == reason


@gpu
@pytest.mark.parametrize("name", OURS)
def test_its_bits_are_those_of_the_loop_and_of_every_replay(name, monkeypatch):
    monkeypatch.setattr(CELLS[name], "kernels", lambda self: [])
    cell = CELLS[name](28, 128, batch_first=True, device="cuda")
    x = torch.rand(128, 28, 28, device="cuda")
    with plain_loop():
        states, wanted = gradients(cell, x)
    for _ in range(3):
        output, got = gradients(cell, x)
        assert torch.equal(output, states)
        assert all(map(torch.equal, got, wanted))
