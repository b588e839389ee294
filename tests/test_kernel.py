"""The C++ kernel of the A-GRU against the loop, in float64 where digits count."""

import copy
import logging
import platform
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev

from rnnbench_nb.cells import AGRU, AGRUHeun, plain_loop
from rnnbench_nb.cells.kernels import agru as kernel
from rnnbench_nb.cells.kernels import build
from rnnbench_nb.errors import UserError

# Without a C++ compiler the loop takes the kernel's place, and the tests of results are of it.
KERNEL = not isinstance(kernel.load(), str)
each_method = pytest.mark.parametrize("method", kernel.PLACES)
needs_kernel = pytest.mark.skipif(not KERNEL, reason="the kernel cannot be compiled here")


@pytest.fixture
def load_for(monkeypatch):
    def load(isa):  # compile and load the kernel again, for the instructions of this name
        monkeypatch.setenv("RNNBENCH_ISA", isa)
        kernel.load.cache_clear()
        return kernel.load()

    yield load
    kernel.load.cache_clear()


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path, load_for):
    """The kernel is looked for again, in an empty cache."""
    monkeypatch.setenv("RNNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RNNBENCH_ISA", raising=False)
    kernel.load.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def no_kernel(monkeypatch):  # it must not be called
    monkeypatch.setattr(kernel, "forward", None)


def make(hidden_size, batch_size, n_steps=6, input_size=3, with_state=True, method="euler", **more):
    """A model, inputs (T, B, D) and an initial state (1, B, H) or None."""
    torch.manual_seed(hidden_size + batch_size)
    kind = AGRU if method == "euler" else partial(AGRUHeun, method=method)
    model = kind(input_size, hidden_size, **{"epsilon": 0.3, **more})
    torch.nn.init.uniform_(model.bias, -0.1, 0.1)
    x = torch.randn(n_steps, batch_size, input_size)
    return model, x, torch.randn(1, batch_size, hidden_size) if with_state else None


def weighted(tensor):
    return (tensor * torch.linspace(0.5, 1.5, tensor.numel()).to(tensor).view_as(tensor)).sum()


def loss_of_all(output, h_n):
    return weighted(output) + weighted(h_n)


def results(model, x, h_0=None, loss=loss_of_all, dtype=torch.float32):
    """Outputs, and the gradients of a loss for x, h_0 and all parameters, by name."""
    model = copy.deepcopy(model).to(dtype)
    x = x.to(dtype).detach().clone().requires_grad_()
    h_0 = None if h_0 is None else h_0.to(dtype).detach().clone().requires_grad_()
    output, h_n = model(x, h_0)
    loss(output, h_n).backward()
    gradients = {"x": x.grad, "h_0": None if h_0 is None else h_0.grad}
    gradients |= {name: parameter.grad for name, parameter in model.named_parameters()}
    named = {f"gradient of {name}": g for name, g in gradients.items() if g is not None}
    return {"output": output.detach(), "h_n": h_n.detach(), **named}


def assert_exact(model, x, h_0=None, tolerance=1e-5, tolerances=None, **options):
    """Every result is within the tolerance of the float64 loop, in norm."""
    got, want = (results(model, x, h_0, dtype=d, **options) for d in (torch.float32, torch.float64))
    assert got.keys() == want.keys()
    for name, exact in want.items():
        error = (got[name].double() - exact).norm().item()
        bound = (tolerances or {}).get(name, tolerance)
        assert error <= bound * max(exact.norm().item(), 1e-6), name


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


# H, B, T and D
SIZES = [(1, 1), (7, 5), (7, 513), (16, 128), (100, 1), (128, 128), (130, 33), (256, 5)]
SIZES = [(*size, 28, 28) for size in SIZES] + [(19, 9, 1, 1), (19, 9, 2, 50), (19, 9, 45, 17)]
LOSSES = {
    "last state": lambda output, h_n: weighted(h_n),
    "last output": lambda output, h_n: weighted(output[-1]),
    "one unit of one step": lambda output, h_n: output[2, :, 4].sum(),
    "plain sum": lambda output, h_n: output.sum(),
    "transposed": lambda output, h_n: weighted(output.transpose(0, 2).contiguous()),
}


@each_method
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_float64(size, method):
    assert_exact(*make(*size, with_state=size[1] % 2 == 1, method=method))


@each_method
@pytest.mark.parametrize(
    "arguments",
    [
        {"recurrence": "free"},
        {"recurrence": "doubled"},
        {"learnable_epsilon": False},
        {"n_steps": 784, "input_size": 1, "epsilon": 0.01},
        {"batch_size": 0},
    ],
)
def test_agrees_for_other_models_many_steps_and_no_sequence(arguments, method):
    tolerance = 1e-4 if "n_steps" in arguments else 1e-5
    case = make(**{"hidden_size": 20, "batch_size": 3, "method": method, **arguments})
    assert_exact(*case, tolerance=tolerance)
    case[0](*case[1:])
    assert case[0].path.startswith("kernel") or not KERNEL


@each_method
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_into_any_steps(loss, method):
    assert_exact(*make(20, 3, method=method), loss=loss)


def test_strided_inputs_are_read_in_place():
    model, x, h_0 = make(20, 4)
    want = results(model, x, h_0)["output"]
    wide = torch.empty(6, 4, 6)
    wide[..., ::2] = x
    batch_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    for same in (wide[..., ::2], batch_first, x.flip(0).flip(0)):
        assert torch.equal(model(same, h_0)[0], want)
    expanded = x[:1].expand(6, 4, 3)
    assert torch.equal(model(expanded, h_0)[0], model(expanded.contiguous(), h_0)[0])


def test_views_whose_signs_torch_has_yet_to_turn_have_the_right_signs():
    def negative(tensor):
        view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
        assert view.is_neg() and torch.equal(view, tensor)
        return view

    model, x, h_0 = make(20, 4)
    got, want = model(negative(x), negative(h_0)), model(x, h_0)
    assert all(map(torch.equal, got, want))
    outer, weight = [*map(torch.randn_like, want)], model.candidate_weight
    (slope,) = torch.autograd.grad(want, weight, outer)
    assert torch.equal(torch.autograd.grad(got, weight, [*map(negative, outer)])[0], slope)


def test_small_values_and_saturated_gates_keep_their_digits():
    model, x, h_0 = make(20, 3)
    assert_exact(model, 1e4 * x, h_0, tolerance=1e-4)  # 1 - c^2 loses digits in any float32
    tiny = {name: value * 1e-6 for name, value in model.state_dict().items()}
    model.load_state_dict(tiny | {"log_epsilon": model.log_epsilon})
    assert_exact(model, 1e-3 * x)  # states near 1e-9, where 1 - exp(-x) would keep no digit


@each_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "h_0", "W_z", "W", "bias", "epsilon"])
def test_nan_and_infinity_travel_as_in_the_loop(value, where, method):
    model, x, h_0 = make(20, 5, method=method)
    with torch.no_grad():
        places = {"x": x[2, 1, :1], "h_0": h_0[0, 1, :1], "bias": model.bias[3:4]}
        places |= {"W_z": model.gate_weight[1, 2:3], "W": model.candidate_weight[1, 2:3]}
        places |= {"epsilon": model.log_epsilon}
        places[where].fill_(value)
    got = results(model, x, h_0)
    with plain_loop():
        want = results(model, x, h_0)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-5)


# Products in bfloat16, at torch's precision "medium"


@pytest.fixture
def medium():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(params=["AMX", "AVX-512"])
def products(request, load_for, medium):
    """Each way of computing products in bfloat16 that this processor has."""
    unit = kernel.load().agru_bfloat16().decode() if KERNEL else ""
    if unit == "AMX" and request.param == "AVX-512":
        unit = load_for("no-amx").agru_bfloat16().decode()
    if unit != request.param:
        pytest.skip(f"this processor or compiler has no bfloat16 products by {request.param}")
    return unit


@each_method
def test_bfloat16_agrees_with_float64_and_carries_nan(products, method):
    of_epsilon = 5e-2 if method == "euler" else 1e-1  # a sum of terms that cancel
    near = {"tolerance": 2e-2, "tolerances": {"gradient of log_epsilon": of_epsilon}}
    for size in SIZES:
        assert_exact(*make(*size, method=method), **near)
    for loss in LOSSES.values():
        assert_exact(*make(20, 3, method=method), loss=loss, **near)
    for hidden_size, what in ((16, f"bfloat16 products by {products}"), (15, "float32 products")):
        model, x, _ = make(hidden_size, 2, method=method)
        model(x)
        assert model.path == f"kernel ({kernel.load().agru_name().decode()}, {what})"
    model, x, h_0 = make(20, 5, method=method)
    x[2, 1, 0] = float("nan")
    got, want = results(model, x, h_0), results(model, x, h_0, dtype=torch.float64)
    assert all(torch.equal(got[name].isnan(), want[name].isnan()) for name in want)


def test_bfloat16_rounds_the_factors_alone(products):
    """Factors that bfloat16 holds exactly, and sums that it would not."""
    model, x, h_0 = make(40, 37, 1, 30)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    x, h_0 = x.bfloat16().float(), h_0.bfloat16().float()
    gates = torch.nn.functional.linear(x[0].double(), model.weight_ih[:80].double())
    gates += torch.nn.functional.linear(h_0[0].double(), model.gate_weight.double())
    want = torch.sigmoid(gates + model.bias[:80].double())
    recurrent = torch.cat([model.gate_weight, model.recurrent_matrix()])
    weights = kernel.pack(torch.cat([recurrent, model.weight_ih, model.bias[:, None]], 1))
    _, activations = kernel.forward(x, h_0[0], weights, model.step_size(), (True, 0.0), keep=True)
    z_and_r = activations[0, :, :2, :40].flatten(1)
    torch.testing.assert_close(z_and_r.double(), want, rtol=1e-5, atol=1e-6)


def test_backward_has_the_precision_of_its_forward(products):
    model, x, h_0 = make(40, 37)
    want = results(model, x, h_0)
    loss = loss_of_all(*model(x, h_0))
    torch.set_float32_matmul_precision("highest")
    loss.backward()
    assert torch.equal(model.candidate_weight.grad, want["gradient of candidate_weight"])


# Safe to call


@needs_kernel
@each_method
def test_thread_count_changes_no_bit_and_inference_equals_training(method):
    model, x, h_0 = make(40, 150, method=method)
    answers = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        with torch.no_grad():
            inference = model(x, h_0)[0]
        answers.append(results(model, x, h_0))
        assert torch.equal(inference, answers[-1]["output"]) and not inference.requires_grad
        assert_same_bits(answers[-1], answers[0])


@needs_kernel
@each_method
def test_thread_count_changes_no_bit_of_products_in_bfloat16(products, method):
    test_thread_count_changes_no_bit_and_inference_equals_training(method)


@needs_kernel
def test_threads_flush_tiny_numbers_as_their_caller_does():
    model, x, h_0 = make(40, 150, n_steps=1)
    with torch.no_grad():
        model.log_epsilon.fill_(-95.0)  # exp(-95) is below the normal numbers of float32
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            outputs = []
            for threads in (2, 1):
                torch.set_num_threads(threads)
                outputs.append(model(x, torch.zeros_like(h_0))[0])
            torch.set_flush_denormal(False)
            assert torch.equal(*outputs) and bool(outputs[0].any()) != flush


def test_two_forwards_before_backward():
    model, x, h_0 = make(40, 150)
    other = torch.randn_like(x)
    want = [results(model, each, h_0)["gradient of candidate_weight"] for each in (x, other)]
    losses = [loss_of_all(*model(each, h_0)) for each in (x, other)]
    for which in (0, 1, 0):
        model.zero_grad()
        losses[which].backward(retain_graph=True)
        assert torch.equal(model.candidate_weight.grad, want[which])


def test_python_threads():
    cases = [make(40, 100 + i) for i in range(4)]
    want = [results(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(lambda c: results(*c), cases), want, strict=True):
                assert_same_bits(got, expected)


def test_memory_is_reused_only_when_free():
    first, second = kernel._empty(400, 500), kernel._empty(400, 500)
    places = first.data_ptr(), second.data_ptr()
    assert places[0] != places[1] and all(place % 64 == 0 for place in places)
    row = first[3]
    del first
    assert kernel._empty(400, 500).data_ptr() not in places  # row still refers to it
    del row
    assert kernel._empty(399, 500).data_ptr() == places[0]


# Calls that the kernel does not serve


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"dtype": torch.float64}, "it computes in float32, not float64"),
        ({"device": "meta"}, "it runs on the CPU, not on meta"),
    ],
)
def test_other_types_and_devices_run_the_loop(no_kernel, place, reason):
    model, x = AGRU(3, 5, **place), torch.zeros(6, 2, 3, **place)
    assert model(x)[0].shape == (6, 2, 5) and model.path == f"loop: {reason}"
    with plain_loop():
        model(x)
    assert model.path == "loop"


def test_other_methods_run_the_loop(no_kernel):
    model, x, h_0 = make(5, 2, method="rk4")
    assert_exact(model, x, h_0)
    model(x)
    assert model.path == "loop: it makes no steps of rk4"


def test_autocast_and_compiled_models_run_the_loop(no_kernel):
    model, x, h_0 = make(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = model(x, h_0)
    assert model.path == "loop: autocast is on"
    compiled, _ = torch.compile(model, backend="eager", fullgraph=True)(x, h_0)
    exact = model.double()(x.double(), h_0.double())[0]
    assert (output - exact).abs().max() < 0.1
    torch.testing.assert_close(compiled.double(), exact)


def dual(function):
    def tangent(h_0):
        with forward_ad.dual_level():
            output = function(forward_ad.make_dual(h_0, torch.ones_like(h_0)))
            return forward_ad.unpack_dual(output).tangent

    return tangent


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch scripts its own rules for forward mode
@pytest.mark.parametrize("transform", [grad, jacrev, dual])
def test_transforms_run_the_loop(no_kernel, transform):
    model, x, h_0 = make(5, 2)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    transformed = transform(lambda h_0: functional_call(model, weights, (x, h_0))[0].sum())
    got = transformed(h_0)
    with plain_loop():
        assert torch.equal(got, transformed(h_0))


@needs_kernel
@each_method
def test_a_second_derivative_is_refused(method):
    model, x, _ = make(5, 2, method=method)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(model(x)[0].sum(), model.bias, create_graph=True)


# How it is compiled, and where it cannot be


FAILS = "#!/bin/sh\necho 'error: no such header' >&2; exit 1\n"


@pytest.mark.parametrize(
    ("compiler", "cache", "reason"),
    [
        (None, "cache", "the C++ compiler could not run: "),
        (FAILS, "cache", "the C++ compiler failed: error: no such header"),
        ("#!/bin/sh\n", "compiler/cache", "cannot be used"),  # a file in the folder's place
    ],
)
def test_without_compiler_or_cache_the_loop_runs_and_one_line_says_so(
    monkeypatch, fresh_cache, caplog, no_kernel, tmp_path, compiler, cache, reason
):
    (tmp_path / "compiler").write_text(compiler or "")
    (tmp_path / "compiler").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "compiler") if compiler else "missing")
    monkeypatch.setenv("RNNBENCH_CACHE", str(tmp_path / cache))
    caplog.set_level(logging.INFO, "rnnbench_nb")
    model, x, h_0 = make(5, 2)
    for _ in range(2):
        assert_exact(model, x, h_0)
    (record,) = caplog.records
    assert "slower loop" in record.getMessage() and reason in record.getMessage()
    model(x)
    assert model.path.startswith("loop: ") and reason in model.path
    assert not list(fresh_cache.glob("*.so"))


@needs_kernel
@pytest.mark.parametrize(
    ("isa", "name"),
    [pytest.param("avx2", "AVX2", marks=pytest.mark.slow), ("baseline", "128-bit vectors")],
)
def test_narrower_vectors_have_float32_alone_and_say_so(load_for, medium, isa, name):
    if isa == "avx2" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("these are instructions of x86")
    load_for(isa)
    for size in ((130, 33, 28, 28), (100, 150), (1, 1)):
        for method in kernel.PLACES:
            assert_exact(*make(*size, method=method))
    model, x, _ = make(40, 3)
    for precision, products in (("medium", ", float32 products"), ("high", "")):
        torch.set_float32_matmul_precision(precision)
        model(x)
        assert model.path == f"kernel ({name}{products})"


def test_unknown_instruction_set_is_refused(load_for):
    with pytest.raises(UserError, match="must be one of native, no-amx, avx2, baseline"):
        load_for("avx9")


def test_library_is_built_once_and_again_when_anything_differs(monkeypatch, fresh_cache, tmp_path):
    stub, compiled = SimpleNamespace(macros="#define __AVX2__ 1\n", openmp=True), []

    def run(command):
        if "-fopenmp" in command and not stub.openmp:
            raise build.Unavailable("the C++ compiler failed: unsupported option '-fopenmp'")
        if "-E" in command:
            return stub.macros
        compiled.append(command)
        Path(command[-1]).write_bytes(b"library")

    monkeypatch.setattr(build, "_run", run)
    source = tmp_path / "agru.cpp"
    source.write_bytes(kernel.SOURCE.read_bytes())
    changes = [
        lambda: None,
        lambda: source.write_text("// changed"),
        lambda: setattr(stub, "macros", "#define __AVX512F__ 1"),  # another processor
        lambda: monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-g"]),
        lambda: monkeypatch.setenv("RNNBENCH_ISA", "avx2"),
        lambda: setattr(stub, "openmp", False),  # another library, for one thread
    ]
    paths = set()
    for number, change in enumerate(changes, start=1):
        change()
        paths |= {build.build(source), build.build(source)}
        assert len(paths) == len(compiled) == number
    assert all(path.read_bytes() == b"library" for path in paths)
