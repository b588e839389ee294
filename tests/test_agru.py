"""The A-GRU against its equation, written by scalars, and as a torch module like any other."""

import math
import pickle
from io import BytesIO

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from rnnbench_nb.cells import AGRU
from rnnbench_nb.cells.kernels import unroll

NAMES = ["x", "h_0", "weight_ih", "gate_weight", "a", "bias", "epsilon"]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def naive_layer(x, h_0, weight_ih, gate_weight, a, bias, epsilon):
    """The equation by scalars, one sample and one unit at a time: (T, B, H) from numpy arrays."""
    n_steps, batch_size, _ = x.shape
    n = h_0.shape[1]
    states = np.empty((n_steps, batch_size, n))
    for b in range(batch_size):
        h = list(h_0[b])
        for t in range(n_steps):
            fed = [float(row @ x[t, b]) + o for row, o in zip(weight_ih, bias, strict=True)]
            z = [sigmoid(fed[i] + sum(gate_weight[i] * h)) for i in range(n)]
            r = [sigmoid(fed[n + i] + sum(gate_weight[n + i] * h)) for i in range(n)]
            reset = [r[j] * h[j] for j in range(n)]
            c = [math.tanh(fed[2 * n + i] + sum(a[i] * reset)) for i in range(n)]
            h = [h[i] + epsilon * z[i] * c[i] for i in range(n)]
            states[t, b] = h
    return states


def loop(x, h_0, weight_ih, gate_weight, a, bias, epsilon):
    """The cell's own step, again and again."""
    drive = torch.nn.functional.linear(x, weight_ih, bias)
    return unroll(AGRU.step, drive, h_0, gate_weight, a, epsilon)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def layer():
    """Tensors of a layer by `NAMES`: four steps, three samples, two features, three units."""
    shapes = [(4, 3, 2), (3, 3), (9, 2), (6, 3), (3, 3), (9,), ()]
    tensors = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    return [*tensors[:-1], tensors[-1].abs()]


@pytest.fixture
def model():
    torch.manual_seed(1)
    return AGRU(3, 4, gamma=0.3, epsilon=0.7).double()


def assert_follows_equation(model, x, h_0=None):
    """The forward pass uses the matrix of the current weights, in training and evaluation."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    n, w = model.hidden_size, weights["candidate_weight"]
    matrix = {"free": w}.get(model.options.recurrence, w - w.T) - model.options.gamma * np.eye(n)
    start = np.zeros((x.shape[1], n)) if h_0 is None else h_0[0].numpy()
    fed, epsilon = (weights["weight_ih"], weights["gate_weight"]), math.exp(weights["log_epsilon"])
    want = naive_layer(x.numpy(), start, *fed, matrix, weights["bias"], epsilon)
    for training in (True, False):
        with torch.no_grad():
            output, h_n = model.train(training)(x, h_0)
        np.testing.assert_allclose(output, want, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(h_n[0], want[-1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_gradients_equal_finite_differences_of_the_naive_loop(layer, position):
    weights = random(4, 3, 3, seed=9)
    layer[position].requires_grad_()
    (loop(*layer) * weights).sum().backward()
    arrays = [value.detach().numpy().copy() for value in layer]
    varied, numeric = arrays[position], np.empty(layer[position].shape)
    for index in np.ndindex(varied.shape):
        ends, start = [], varied[index]
        for shift in (1e-5, -1e-5):
            varied[index] = start + shift
            ends.append((naive_layer(*arrays) * weights.numpy()).sum())
        varied[index] = start
        numeric[index] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(layer[position].grad, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("recurrence", ["antisymmetric", "frozen", "free"])
@pytest.mark.parametrize("with_state", [False, True])
def test_the_module_follows_the_equation(recurrence, with_state):
    model = AGRU(3, 4, gamma=0.3, epsilon=0.7, recurrence=recurrence).double()
    assert_follows_equation(model, random(5, 2, 3), random(1, 2, 4) if with_state else None)
    assert model.candidate_weight.requires_grad == (recurrence != "frozen")


def test_the_matrix_is_current_after_an_optimiser_step(model):
    x, before = random(5, 2, 3), model.recurrent_matrix().detach()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    model(x)[0].square().sum().backward()
    optimiser.step()
    assert not torch.equal(model.recurrent_matrix(), before)
    assert_follows_equation(model, x)


def test_the_matrix_is_current_after_loading_and_gamma_is_not_loaded(model):
    other = AGRU(3, 4, gamma=0.9).double()
    other(random(5, 2, 3))  # a cached matrix would be of these weights
    other.load_state_dict(model.state_dict())
    assert other.options.gamma == 0.9 and not any("gamma" in name for name in model.state_dict())
    assert_follows_equation(other, random(5, 2, 3))


def test_the_recurrent_matrix_has_its_eigenvalues_on_a_line(model):
    w, matrix = model.state_dict()["candidate_weight"], model.recurrent_matrix().detach()
    assert torch.equal(matrix + 0.3 * torch.eye(4, dtype=torch.float64), w - w.T)
    real = torch.linalg.eigvals(matrix).real
    torch.testing.assert_close(real, torch.full((4,), -0.3, dtype=torch.float64))


def test_the_gradient_of_w_is_exactly_antisymmetric():
    model = AGRU(3, 5)
    model(random(6, 4, 3).float())[0].square().sum().backward()
    gradient = model.candidate_weight.grad
    assert gradient.any() and torch.equal(gradient, -gradient.T)


@pytest.mark.parametrize("learnable", [True, False])
def test_the_step_size_starts_as_given_is_trained_if_wanted_and_stays_positive(learnable):
    model = AGRU(1, 2, epsilon=2, learnable_epsilon=learnable)
    assert model.step_size().item() == pytest.approx(2)
    model(torch.ones(2, 1, 1))[0].sum().backward()
    assert bool(model.log_epsilon.grad) == learnable and model.weight_ih.grad.any()
    with torch.no_grad():
        model.log_epsilon.sub_(20)  # far more than an optimiser takes epsilon itself below zero
    assert model.step_size() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_the_old_onnx_exporter_writes_answers_its_input_too():
    model, file, (first, second) = AGRU(3, 4).eval(), BytesIO(), random(2, 5, 2, 3).float()
    with torch.no_grad():
        torch.onnx.export(model, (first,), file, dynamo=False)
        session = ReferenceEvaluator(onnx.load_from_string(file.getvalue()))
        out, _ = session.run(None, {session.input_names[0]: second.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(second)[0])


def test_the_module_is_copied_and_pickled_like_any_other():
    model = AGRU(3, 4, gamma=0.2)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is AGRU and again.options == model.options
    assert torch.equal(again.candidate_weight, model.candidate_weight)
