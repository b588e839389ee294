"""The C++ kernel of the A-GRU against the loop, in float64 where digits count."""

import copy
import logging
import platform
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

from rnnbench_nb.cells import AGRU, plain_loop
from rnnbench_nb.cells.kernels import agru as kernel
from rnnbench_nb.cells.kernels import build
from rnnbench_nb.errors import UserError

# Without a C++ compiler the loop takes the kernel's place, and the tests of results are of it.
KERNEL = not isinstance(kernel.load(), str)
needs_kernel = pytest.mark.skipif(not KERNEL, reason="the kernel cannot be compiled here")


@pytest.fixture
def load_for(monkeypatch):
    """Load the kernel again, compiled for the instructions of this name."""

    def load(isa):
        monkeypatch.setenv("RNNBENCH_ISA", isa)
        kernel.load.cache_clear()
        return kernel.load()

    yield load
    kernel.load.cache_clear()


@pytest.fixture
def fresh_load(monkeypatch, tmp_path):
    """The kernel is looked for again, in an empty cache."""
    monkeypatch.setenv("RNNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RNNBENCH_ISA", raising=False)
    kernel.load.cache_clear()
    yield tmp_path / "cache"
    kernel.load.cache_clear()


@pytest.fixture
def no_kernel(monkeypatch):
    """The kernel must not be called."""

    def forbidden(*_, **__):
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(kernel, "forward", forbidden)


def make(hidden_size, batch_size, n_steps=6, input_size=3, with_state=True, **arguments):
    """A model, inputs (T, B, D) and an initial state (1, B, H) or None."""
    torch.manual_seed(hidden_size + batch_size)
    model = AGRU(input_size, hidden_size, **{"epsilon": 0.3, **arguments})
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


# Right values

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


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_float64(size):
    assert_exact(*make(*size, with_state=size[1] % 2 == 1))


def test_agrees_with_float64_over_784_steps():
    assert_exact(*make(24, 5, 784, 1, epsilon=0.01), tolerance=1e-4)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_into_any_steps(loss):
    assert_exact(*make(20, 3), loss=loss)


@pytest.mark.parametrize("arguments", [{"recurrence": "free"}, {"learnable_epsilon": False}])
def test_with_a_free_matrix_or_a_fixed_step(arguments):
    assert_exact(*make(20, 3, **arguments))


def test_empty_batch():
    values = results(*make(5, 0))
    assert values["output"].shape == (6, 0, 5)
    assert not values["gradient of candidate_weight"].any()


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


def negative(tensor):
    """The same numbers as a view whose signs torch has yet to turn."""
    view = torch.complex(torch.zeros_like(tensor), -tensor.detach()).conj().imag
    assert view.is_neg() and torch.equal(view, tensor)
    return view


def test_negative_views_have_the_right_signs():
    model, x, h_0 = make(20, 4)
    output, h_n = model(negative(x), negative(h_0))
    want, want_h_n = model(x, h_0)
    assert torch.equal(output, want) and torch.equal(h_n, want_h_n)
    outer = torch.randn_like(output), torch.randn_like(h_n)
    weight = model.candidate_weight
    (want,) = torch.autograd.grad((want, want_h_n), weight, outer)
    assert torch.equal(torch.autograd.grad((output, h_n), weight, [*map(negative, outer)])[0], want)
    twin = copy.deepcopy(model)
    twin.weight_ih = torch.nn.Parameter(negative(model.weight_ih))
    assert torch.equal(twin(x, h_0)[0], output)


def test_small_values_keep_their_digits():
    model, x, _ = make(20, 3)
    tiny = {name: value * 1e-6 for name, value in model.state_dict().items()}
    model.load_state_dict(tiny | {"log_epsilon": model.log_epsilon})
    assert_exact(model, 1e-3 * x)  # states near 1e-9, where 1 - exp(-x) would keep no digit


def test_saturated_gates():
    model, x, h_0 = make(20, 3)
    assert_exact(model, 1e4 * x, h_0, tolerance=1e-4)  # 1 - c^2 loses digits in any float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "h_0", "W_z", "W", "bias", "epsilon"])
def test_nan_and_infinity_travel_as_in_the_loop(value, where):
    model, x, h_0 = make(20, 5)
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


def test_bfloat16_agrees_with_float64(products):
    near = {"tolerance": 2e-2, "tolerances": {"gradient of log_epsilon": 5e-2}}
    for size in SIZES:
        assert_exact(*make(*size), **near)
    for loss in LOSSES.values():
        assert_exact(*make(20, 3), loss=loss, **near)
    for hidden_size, what in ((16, f"bfloat16 products by {products}"), (15, "float32 products")):
        model, x, _ = make(hidden_size, 2)
        model(x)
        assert model.served == f"kernel ({kernel.load().agru_name().decode()}, {what})"


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
    gate_weight, a, epsilon = model.prepare()
    layer = kernel.Layer(x, h_0[0], model.weight_ih, gate_weight, a, model.bias, epsilon)
    z_and_r = kernel.forward(layer, keep=True, bfloat16=True)[1][0, :, :2, :40].flatten(1)
    torch.testing.assert_close(z_and_r.double(), want, rtol=1e-5, atol=1e-6)


def test_bfloat16_carries_nan_and_infinity(products):
    for value in (float("nan"), float("inf")):
        model, x, h_0 = make(20, 5)
        x[2, 1, 0] = value
        got = results(model, x, h_0)
        with plain_loop():
            want = results(model, x, h_0)
        assert all(torch.equal(got[name].isnan(), want[name].isnan()) for name in want)


def test_backward_has_the_precision_of_its_forward(products):
    model, x, h_0 = make(40, 37)
    want = results(model, x, h_0)
    loss = loss_of_all(*model(x, h_0))
    torch.set_float32_matmul_precision("highest")
    loss.backward()
    assert torch.equal(model.candidate_weight.grad, want["gradient of candidate_weight"])


@needs_kernel
def test_a_processor_without_bfloat16_stays_in_float32_and_says_so(load_for, medium):
    load_for("baseline")
    model, x, h_0 = make(40, 37)
    assert_exact(model, x, h_0)
    model(x)
    assert model.served.endswith(", float32 products)")
    torch.set_float32_matmul_precision("high")
    model(x)
    assert model.served.startswith("kernel (") and "products" not in model.served


# Safe to call


def same_bits_on_all_threads(model, x, h_0):
    answers = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        with torch.no_grad():
            inference = model(x, h_0)[0]
        assert not inference.requires_grad
        answers.append(results(model, x, h_0) | {"inference": inference})
        assert torch.equal(inference, answers[-1]["output"])
    for other in answers[1:]:
        assert_same_bits(other, answers[0])


@needs_kernel
def test_thread_count_changes_no_bit_and_inference_equals_training():
    same_bits_on_all_threads(*make(40, 150))


def test_thread_count_changes_no_bit_in_bfloat16(products):
    same_bits_on_all_threads(*make(40, 150))


@needs_kernel
def test_threads_flush_tiny_numbers_as_their_caller_does():
    model, x, h_0 = make(40, 150, n_steps=1)
    with torch.no_grad():
        model.log_epsilon.fill_(-95.0)  # exp(-95) is below the normal numbers of float32
    outputs = {}
    for threads in (2, 1):
        torch.set_num_threads(threads)
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            with torch.no_grad():
                outputs[threads, flush] = model(x, torch.zeros_like(h_0))[0]
    torch.set_flush_denormal(False)
    assert outputs[2, False].any() and not outputs[2, True].any()
    assert torch.equal(outputs[1, False], outputs[2, False])
    assert torch.equal(outputs[1, True], outputs[2, True])


def test_two_forwards_before_backward():
    model, x, h_0 = make(40, 150)
    other = torch.randn_like(x)
    want = [results(model, each, h_0)["gradient of candidate_weight"] for each in (x, other)]
    losses = [loss_of_all(*model(each, h_0)) for each in (x, other)]
    for which in (0, 1, 0):
        model.zero_grad()
        losses[which].backward(retain_graph=True)
        assert torch.equal(model.candidate_weight.grad, want[which])


@needs_kernel  # the loop's output is a copy of what it keeps
def test_changed_output_is_refused_in_backward():
    model, x, _ = make(20, 3)
    output, h_n = model(x)
    with torch.no_grad():
        output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h_n.sum().backward()


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

# torch itself scripts its rules for forward mode, and warns that this is deprecated.
FORWARD_MODE_SCRIPTS = pytest.mark.filterwarnings("ignore:`torch.jit")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"dtype": torch.float64}, "it computes in float32, not float64"),
        ({"device": "meta"}, "it runs on the CPU, not on meta"),
    ],
)
def test_other_types_and_devices_run_the_loop(no_kernel, place, reason):
    model = AGRU(3, 5, **place)
    assert model(torch.zeros(6, 2, 3, **place))[0].shape == (6, 2, 5)
    assert model.served == f"loop: {reason}"
    with plain_loop():
        model(torch.zeros(6, 2, 3, **place))
    assert model.served == "loop"


def test_autocast_runs_the_loop(no_kernel):
    model, x, h_0 = make(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = model(x, h_0)
    assert model.served == "loop: autocast is on"
    assert (output - model.double()(x.double(), h_0.double())[0]).abs().max() < 0.1


def test_compiled_model_runs_the_loop(no_kernel):
    model, x, h_0 = make(5, 2)
    output, _ = torch.compile(model, backend="eager", fullgraph=True)(x, h_0)
    torch.testing.assert_close(output.double(), model.double()(x.double(), h_0.double())[0])


@FORWARD_MODE_SCRIPTS
def test_functional_transforms(no_kernel):
    model, x, h_0 = make(5, 2)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    exact = {name: value.double() for name, value in parameters.items()}

    def loss(parameters, x, h_0):
        return weighted(functional_call(model, parameters, (x, h_0))[0])

    def last(parameters, h_0):
        return functional_call(model, parameters, (x.to(h_0), h_0))[1]

    def transformed(parameters, x, h_0):
        batched = (parameters, x[:, :, None], h_0[:, :, None])  # each sample a batch of one
        return (
            grad(loss)(parameters, x, h_0)["candidate_weight"],
            vmap(loss, in_dims=(None, 1, 1))(*batched),
            vmap(grad(loss), in_dims=(None, 1, 1))(*batched)["bias"],
            jacrev(last, argnums=1)(parameters, h_0),
            jvp(lambda h: last(parameters, h), (h_0,), (torch.ones_like(h_0),))[1],
        )

    got, want = transformed(parameters, x, h_0), transformed(exact, x.double(), h_0.double())
    one_by_one = [loss(exact, x[:, [i]].double(), h_0[:, [i]].double()) for i in range(2)]
    torch.testing.assert_close(got[1].double(), torch.stack(one_by_one), rtol=1e-4, atol=1e-5)
    for ours, expected in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


@FORWARD_MODE_SCRIPTS
def test_forward_mode(no_kernel):
    model, x, h_0 = make(5, 2)
    with forward_ad.dual_level():
        output, _ = model(forward_ad.make_dual(x, torch.ones_like(x)), h_0)
        tangent = forward_ad.unpack_dual(output).tangent
    model, step = model.double(), 1e-6
    up, down = (model(x.double() + s, h_0.double())[0] for s in (step, -step))
    torch.testing.assert_close(tangent.double(), (up - down) / (2 * step), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", [loss_of_all, LOSSES["last state"]])
def test_double_backward(loss):
    model, x, _ = make(5, 2)
    answers = []
    for dtype in (torch.float32, torch.float64):
        twin, leaf = copy.deepcopy(model).to(dtype), x.to(dtype).clone().requires_grad_()
        h_0 = leaf[0] @ torch.linspace(-1, 1, 15).to(dtype).view(3, 5)  # depends on x as well
        value = loss(*twin(leaf, h_0[None]))
        (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
        slope.square().sum().backward()
        answers.append([slope.detach(), leaf.grad, *(p.grad for p in twin.parameters())])
    for got, exact in zip(*answers, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


# How it is compiled, and where it cannot be


def run_and_read_notice(caplog):
    """Two forward passes of a fresh process, as far as the log shows: right, and its lines."""
    caplog.set_level(logging.INFO, "rnnbench_nb")
    model, x, h_0 = make(5, 2)
    for _ in range(2):
        assert_exact(model, x, h_0)
    return [record.getMessage() for record in caplog.records if record.name == "rnnbench_nb"]


def test_hidden_compiler_gives_the_loop_and_one_line(monkeypatch, fresh_load, caplog, no_kernel):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    lines = run_and_read_notice(caplog)
    assert lines == ["A-GRU: slower loop over time steps, no C++ compiler found"]
    model, x, _ = make(5, 2)
    model(x)
    assert model.served == "loop: no C++ compiler found" and not fresh_load.exists()


def test_failing_compiler_gives_the_loop_and_leaves_nothing(
    monkeypatch, fresh_load, caplog, tmp_path
):
    compiler = tmp_path / "compiler"
    half = 'case "$*" in *-E*) ;; *) echo half > $(echo "$*" | sed "s/.*-o //"); '
    compiler.write_text(f"#!/bin/sh\n{half}echo 'error: no such header' >&2; exit 1;; esac\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    (line,) = run_and_read_notice(caplog)
    assert line.endswith("the C++ compiler failed: error: no such header")
    assert not list(fresh_load.glob("*.so"))


def test_unusable_cache_gives_the_loop(monkeypatch, stub_compiler, caplog, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RNNBENCH_CACHE", str(tmp_path / "file" / "cache"))
    (line,) = run_and_read_notice(caplog)
    assert "cache" in line and "cannot be used" in line


@needs_kernel
@pytest.mark.parametrize(
    ("isa", "name"),
    [pytest.param("avx2", "AVX2", marks=pytest.mark.slow), ("baseline", "128-bit vectors")],
)
def test_narrower_vectors(load_for, isa, name):
    if isa == "avx2" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("these are instructions of x86")
    assert load_for(isa).agru_name().decode() == name
    for case in (make(130, 33, 28, 28), make(100, 150), make(1, 1)):
        assert_exact(*case)


def test_unknown_instruction_set_is_refused(monkeypatch, fresh_load):
    monkeypatch.setenv("RNNBENCH_ISA", "avx9")
    with pytest.raises(
        UserError, match="RNNBENCH_ISA must be one of native, no-amx, avx2, baseline"
    ):
        kernel.load()


@pytest.fixture
def stub_compiler(monkeypatch, fresh_load):
    """A compiler that takes a moment, writes a file and is counted; its macros can be set."""

    def run(command):
        if "-fopenmp" in command and not run.openmp:
            raise build.Unavailable("the C++ compiler failed: unsupported option '-fopenmp'")
        if "-E" in command:
            return run.macros
        time.sleep(0.1)
        run.compiled.append(command)
        with open(command[-1], "wb") as file:
            file.write(b"library")
        return ""

    run.macros, run.compiled, run.openmp = "#define __AVX2__ 1\n", [], True
    monkeypatch.setattr(build, "_compiler", lambda: ["c++"])
    monkeypatch.setattr(build, "_run", run)
    return run


def test_library_is_built_once_and_again_when_anything_differs(
    monkeypatch, stub_compiler, tmp_path
):
    paths = [build.build(kernel.SOURCE)]
    assert build.build(kernel.SOURCE) == paths[0] and len(stub_compiler.compiled) == 1
    assert paths[0].read_bytes() == b"library"

    source = tmp_path / "agru.cpp"
    source.write_text(kernel.SOURCE.read_text() + "// changed\n")
    paths.append(build.build(source))
    stub_compiler.macros += "#define __AVX512F__ 1\n"  # another processor
    paths.append(build.build(source))
    stub_compiler.macros += '#define __VERSION__ "13"\n'  # another compiler
    paths.append(build.build(source))
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-g"])
    paths.append(build.build(source))
    monkeypatch.setenv("RNNBENCH_ISA", "avx2")
    paths.append(build.build(source))
    stub_compiler.openmp = False  # another library, for one thread
    paths.append(build.build(source))
    assert len(set(paths)) == len(stub_compiler.compiled) == 7


def test_builders_at_the_same_time_compile_once(stub_compiler):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: build.build(kernel.SOURCE), range(4)))
    assert len(set(paths)) == len(stub_compiler.compiled) == 1
