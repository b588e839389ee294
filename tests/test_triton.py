"""The A-GRU's Triton kernels against the loop in float64: on a GPU, or else in the interpreter."""

import json
import platform
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT
from test_kernel import LOSSES, assert_exact, loss_of_all, make, results

from rnnbench_nb.cells import AGRU, plain_loop

# There the extra `dev` has Triton, and its absence is a failure.
if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
    pytest.importorskip("triton")
from rnnbench_nb.cells.kernels import agru_triton  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # of numpy
GPU = torch.cuda.is_available()
gpu = pytest.mark.skipif(not GPU, reason="no GPU")


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """What the kernels answered to each call; where they refuse, the loop runs."""
    run, given = agru_triton.run, []
    monkeypatch.setattr(agru_triton, "run", lambda *call: given.append(run(*call)) or given[-1])
    monkeypatch.setattr(AGRU, "kernels", ())
    return given


def place(*size, **arguments):
    """A model with these kernels, inputs and an initial state on the GPU if there is one."""
    device = "cuda" if GPU else "cpu"
    model, x, h_0 = make(*size, **arguments, backend="triton")
    return model.to(device), x.to(device), None if h_0 is None else h_0.to(device)


@pytest.mark.parametrize(  # H, B, T, D
    "size",
    [
        *((1, 1, 1, 1), (16, 9, 3, 2), (19, 2, 40, 5), (139, 3, 2, 1), (160, 1, 2, 3)),
        *(pytest.param((h, b, 28, 28), marks=gpu) for h in (128, 139, 153, 256) for b in (7, 128)),
    ],
)
def test_agrees_with_float64(answers, size):
    assert_exact(*place(*size, with_state=size[1] % 2 == 1))
    served, refused = answers
    assert served.path == "kernel (Triton)" and refused.endswith("float32, not float64")


@gpu
@pytest.mark.parametrize("hidden_size", [128, 153])
def test_many_steps(hidden_size):
    assert_exact(*place(hidden_size, 128, 784, 1, epsilon=0.01), tolerance=1e-4)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_into_any_steps(loss):
    assert_exact(*place(5, 2, 3), loss=loss)


def test_small_values_and_saturated_gates_keep_their_digits():
    model, x, h_0 = place(20, 3, 3)
    assert_exact(model, 1e4 * x, h_0, tolerance=1e-4)
    tiny = {name: value * 1e-6 for name, value in model.state_dict().items()}
    model.load_state_dict(tiny | {"log_epsilon": model.log_epsilon})
    assert_exact(model, 1e-3 * x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "h_0", "W", "epsilon"])
def test_nan_and_infinity_travel_as_in_the_loop(value, where):
    model, x, h_0 = place(5, 2, 3)
    with torch.no_grad():
        places = {"x": x[1, 1, :1], "h_0": h_0[0, 1, :1], "epsilon": model.log_epsilon}
        (places | {"W": model.candidate_weight[1, 2:3]})[where].fill_(value)
    got = results(model, x, h_0)
    with plain_loop():
        want = results(model, x, h_0)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_below_highest_products_are_in_tf32(answers):
    torch.set_float32_matmul_precision("medium")
    try:
        assert_exact(*place(33, 17, 2), tolerance=2e-2)  # in the interpreter it is float32 still
    finally:
        torch.set_float32_matmul_precision("highest")
    assert answers[0].path == "kernel (Triton, TF32 products)"


def test_inference_equals_training_and_each_call_keeps_its_own_gradient():
    model, x, h_0 = place(5, 9, 2)
    with torch.no_grad():
        inference = model(x, h_0)[0]
    want = results(model, x, h_0)
    assert torch.equal(inference, want["output"])
    losses = [loss_of_all(*model(each, h_0)) for each in (x, 2 * x)]
    for loss in (losses[1], losses[0], losses[0]):
        model.zero_grad()
        loss.backward(retain_graph=True)
    assert torch.equal(model.candidate_weight.grad, want["gradient of candidate_weight"])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(losses[0], model.bias, create_graph=True)


def test_calls_that_the_kernels_do_not_serve_run_the_loop(answers, monkeypatch):
    for size, reason in (
        ((257, 1, 1), "it takes up to 256 units"),
        ((5, 0), "there is no sequence"),
    ):
        model, x, h_0 = place(*size)
        with torch.no_grad():
            output, _ = model(x, h_0)
        assert output.shape == (*x.shape[:2], size[0]) and answers[-1] == reason
    monkeypatch.setattr(agru_triton, "DEVICE", "cuda")
    model.cpu()(x.cpu(), h_0.cpu())
    assert model.path == "loop: it runs on a GPU, not on cpu"
    monkeypatch.setitem(sys.modules, agru_triton.__name__, None)
    model(x.cpu(), h_0.cpu())
    assert model.path == "loop: Triton is not installed"


@pytest.mark.parametrize("capability", ["80", "90"])
@pytest.mark.parametrize(
    "sizes", [("128", "153"), pytest.param(("16", "64", "96", "256"), marks=pytest.mark.slow)]
)
def test_compiles_without_a_gpu_and_without_spills(monkeypatch, capability, sizes):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    command = [sys.executable, "tests/triton_resources.py", capability, *sizes]
    kernels = json.loads(subprocess.check_output(command, text=True, cwd=PROJECT))
    assert len(kernels) == 4 * len(sizes)
    for *_, shared, stack in kernels:
        assert stack == 0, kernels  # spilled registers lie there
        assert shared <= 99 * 1024, kernels  # the least that a GPU has from capability 8.0 on
