import math
import pickle
from io import BytesIO

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.func import jacrev, vmap

import rnnbench_nb
from rnnbench_nb.cells.kernels.agru import loop as agru_loop

AGRU = rnnbench_nb.AGRU

NAMES = ["x", "h_0", "weight_ih", "gate_weight", "recurrent", "bias", "epsilon"]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def naive_layer(x, h_0, weight_ih, gate_weight, recurrent, bias, epsilon):
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
            c = [math.tanh(fed[2 * n + i] + sum(recurrent[i] * reset)) for i in range(n)]
            h = [h[i] + epsilon * z[i] * c[i] for i in range(n)]
            states[t, b] = h
    return states


def naive_module(model, x, h_0=None):
    """The module's equation from its state dict alone, in evaluation mode: output, h_n."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    n, w, x = model.hidden_size, weights["candidate_weight"], x.double().numpy()
    matrix = w - w.T - model.options.gamma * np.eye(n)
    start = np.zeros((x.shape[1], n)) if h_0 is None else h_0[0].double().numpy()
    layer = [weights[name] for name in ("weight_ih", "gate_weight")]
    states = naive_layer(
        x, start, *layer, matrix, weights["bias"], math.exp(weights["log_epsilon"])
    )
    return states, states[-1:]


def random_layer(generator, n_steps=4, batch_size=3, input_size=2, n=3):
    shapes = [(n_steps, batch_size, input_size), (batch_size, n), (3 * n, input_size)]
    shapes += [(2 * n, n), (n, n), (3 * n,), ()]
    values = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [value.abs() if value.dim() == 0 else value for value in values]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return AGRU(3, 4, gamma=0.3, epsilon=0.7).double()


def step(model, x, learning_rate=0.1):
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    output, h_n = model(x)
    (output.square().sum() + h_n.sum()).backward()
    optimiser.step()


def assert_follows_equation(model, x, h_0=None):
    """The forward pass uses the matrix of the current weights, in both modes."""
    want_output, want_h_n = naive_module(model, x, h_0)
    for training in (True, False):
        with torch.no_grad():
            output, h_n = model.train(training)(x, h_0)
        np.testing.assert_allclose(output, want_output, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(h_n, want_h_n, rtol=1e-11, atol=1e-12)


def test_loop_one_step_by_hand():
    one = torch.ones(1, 1, dtype=torch.float64)
    states = agru_loop(
        x=2 * one.reshape(1, 1, 1),
        h_0=3 * one,
        weight_ih=torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64),
        gate_weight=torch.tensor([[0.4], [0.5]], dtype=torch.float64),
        recurrent=-0.6 * one,
        bias=torch.tensor([0.7, 0.8, 0.9], dtype=torch.float64),
        epsilon=torch.tensor(0.25, dtype=torch.float64),
    )
    z, r = sigmoid(0.2 + 1.2 + 0.7), sigmoid(0.4 + 1.5 + 0.8)
    c = math.tanh(0.6 - 0.6 * r * 3 + 0.9)
    assert states.item() == pytest.approx(3 + 0.25 * z * c, rel=1e-14)


def test_loop_equals_naive_loop(generator):
    layer = random_layer(generator)
    want = naive_layer(*(value.numpy() for value in layer))
    np.testing.assert_allclose(agru_loop(*layer), want, rtol=1e-13)


@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_loop_gradient_equals_finite_differences_of_naive_loop(generator, position):
    layer = random_layer(generator)
    weights = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    layer[position].requires_grad_()
    (agru_loop(*layer) * weights).sum().backward()

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


def test_step_jacobian_closed_form(generator):
    x, h, weight_ih, gate_weight, matrix, bias, epsilon = random_layer(generator, 1, 1)
    w_zr, v = weight_ih.split([6, 3])
    (u_z, u_r), h = gate_weight.split(3), h[0]
    z, r = torch.sigmoid(w_zr @ x[0, 0] + gate_weight @ h + bias[:6]).chunk(2)
    c = torch.tanh(v @ x[0, 0] + matrix @ (r * h) + bias[6:])
    inner = torch.diag(r) + torch.diag(h * r * (1 - r)) @ u_r
    slope = torch.diag(c * z * (1 - z)) @ u_z + torch.diag(z * (1 - c**2)) @ matrix @ inner
    want = torch.eye(3) + epsilon * slope

    def last_state(h):
        return agru_loop(x, h[None], weight_ih, gate_weight, matrix, bias, epsilon)[0, 0]

    torch.testing.assert_close(jacrev(last_state)(h), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("with_state", [False, True])
def test_module_follows_equation(model, generator, with_state):
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    h_0 = torch.randn(1, 2, 4, generator=generator, dtype=torch.float64) if with_state else None
    assert_follows_equation(model, x, h_0)


def test_matrix_is_current_after_optimiser_step(model, generator):
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    before = model.recurrent_matrix().detach()
    step(model, x)
    assert not torch.equal(model.recurrent_matrix(), before)
    assert_follows_equation(model, x)


def test_matrix_is_current_after_loading_and_gamma_is_not_loaded(model, generator):
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    other = AGRU(3, 4, gamma=0.9).double()
    other(x)  # a cached matrix would be of these weights
    other.load_state_dict(model.state_dict())
    assert other.options.gamma == 0.9 and not any("gamma" in name for name in model.state_dict())
    assert_follows_equation(other, x)
    other.options = model.options
    assert torch.equal(other(x)[0], model(x)[0])


def test_recurrent_matrix_has_eigenvalues_on_a_line(model):
    w = model.state_dict()["candidate_weight"]
    matrix = model.recurrent_matrix().detach()
    assert torch.equal(matrix + 0.3 * torch.eye(4, dtype=torch.float64), w - w.T)
    torch.testing.assert_close(
        torch.linalg.eigvals(matrix).real, torch.full((4,), -0.3, dtype=torch.float64)
    )


def test_gradient_of_w_is_exactly_antisymmetric(generator):
    model = AGRU(3, 5)
    model(torch.randn(6, 4, 3, generator=generator))[0].square().sum().backward()
    gradient = model.candidate_weight.grad
    assert gradient.abs().max() > 0
    assert torch.equal(gradient, -gradient.T)


def test_epsilon_stays_positive_under_training():
    model = AGRU(1, 2, epsilon=0.01)
    optimiser = torch.optim.SGD(model.parameters(), lr=1000)
    for _ in range(3):  # each of these steps would take epsilon itself below zero
        optimiser.zero_grad()
        model.step_size().backward()
        optimiser.step()
    assert 0 < model.step_size() < 1e-5


def test_the_step_size_starts_as_said_and_has_a_gradient():
    model = AGRU(1, 2, epsilon=0.5)
    assert model.step_size().item() == pytest.approx(0.5)
    model(torch.ones(2, 1, 1))[0].sum().backward()
    assert model.log_epsilon.grad != 0


def test_a_fixed_step_size_has_no_gradient():
    model = AGRU(2, 3, epsilon=2, learnable_epsilon=False)
    model(torch.ones(2, 1, 2))[0].sum().backward()
    assert model.log_epsilon.grad is None and model.weight_ih.grad is not None
    assert model.step_size().item() == pytest.approx(2) and not model.step_size().requires_grad


def test_integer_epsilon_is_the_same_as_a_float():
    assert AGRU(1, 1, epsilon=1).log_epsilon.item() == 0
    assert AGRU(1, 1, epsilon=1).log_epsilon.dtype == torch.float32


def test_states_grow_by_at_most_epsilon_a_step(generator):
    model = AGRU(2, 6, epsilon=0.4)
    h_0 = torch.randn(1, 5, 6, generator=generator)
    output, _ = model(100 * torch.randn(20, 5, 2, generator=generator), h_0)
    steps = torch.arange(1, 21)
    bound = h_0.abs().max() + 0.4 * steps * (1 + 1e-6)
    assert (output.abs().amax((1, 2)) <= bound).all()
    assert output[-1].abs().max() > h_0.abs().max()


def test_parameter_count():
    assert sum(p.numel() for p in AGRU(28, 128).parameters()) == 60289


def test_initial_weights_are_uniform_and_biases_zero():
    torch.manual_seed(0)
    model = AGRU(64, 64, initial_scale=1.0)
    for name, parameter in model.named_parameters():
        if "weight" in name:
            assert 0.99 / 8 < parameter.abs().max() <= 1 / 8
            assert parameter.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.03)
    assert not model.bias.any()


LAYOUTS = [(False, True), (True, True), (False, False), (True, False)]


@pytest.mark.parametrize(("batch_first", "batched"), LAYOUTS)
@pytest.mark.parametrize("with_state", [False, True])
def test_shapes_are_those_of_torch(batch_first, batched, with_state):
    shape = ((2, 5, 3) if batch_first else (5, 2, 3)) if batched else (5, 3)
    h_0 = torch.zeros((1, 2, 4) if batched else (1, 4)) if with_state else None
    arguments = {"batch_first": batch_first}
    got = AGRU(3, 4, **arguments)(torch.zeros(shape), h_0)
    want = torch.nn.GRU(3, 4, **arguments)(torch.zeros(shape), h_0)
    assert [g.shape for g in got] == [w.shape for w in want]


def test_layouts_hold_the_same_numbers(model, generator):
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    h_0 = torch.randn(1, 2, 4, generator=generator, dtype=torch.float64)
    output, h_n = model(x, h_0)
    alone_output, alone_h_n = model(x[:, 1], h_0[:, 1])
    torch.testing.assert_close(alone_output, output[:, 1])
    torch.testing.assert_close(alone_h_n, h_n[:, 1])
    model.batch_first = True
    first_output, first_h_n = model(x.transpose(0, 1), h_0)
    assert torch.equal(first_output, output.transpose(0, 1))
    assert torch.equal(first_h_n, h_n)
    assert torch.equal(h_n[0], output[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, "input_size must be a positive integer, got 0"),
        ({"hidden_size": -1}, "hidden_size must be a positive integer, got -1"),
        ({"hidden_size": 1.5}, "hidden_size must be a positive integer, got 1.5"),
        ({"gamma": math.nan}, "gamma: input should be a finite number, but 'nan'"),
        ({"epsilon": 0}, "epsilon: input should be greater than 0, but '0'"),
        ({"epsilon": -0.1}, "epsilon: input should be greater than 0, but '-0.1'"),
        ({"epsilon": math.inf}, "epsilon: input should be a finite number, but 'inf'"),
        ({"num_layers": 2}, "A-GRU: unknown key 'num_layers'"),
        ({"bidirectional": True}, "A-GRU: unknown key 'bidirectional'"),
        ({"proj_size": 3}, "A-GRU: unknown key 'proj_size'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AGRU(**{"input_size": 2, "hidden_size": 3, **arguments})


@pytest.mark.parametrize(
    ("shape", "h_0_shape", "message"),
    [
        ((5,), None, "2 or 3 dimensions, got 1"),
        ((5, 2, 4), None, "input_size 3, got 4"),
        ((0, 2, 3), None, "at least one time step"),
        ((5, 2, 3), (1, 1, 4), r"h_0 must have the shape \(1, 2, 4\), got \(1, 1, 4\)"),
        ((5, 2, 3), (2, 4), r"h_0 must have the shape \(1, 2, 4\), got \(2, 4\)"),
        ((5, 3), (2, 1, 4), r"h_0 must have the shape \(1, 4\), got \(2, 1, 4\)"),
    ],
)
def test_wrong_shapes_are_refused(shape, h_0_shape, message):
    h_0 = None if h_0_shape is None else torch.zeros(h_0_shape)
    with pytest.raises(ValueError, match=message):
        AGRU(3, 4)(torch.zeros(shape), h_0)


def test_repr_names_what_is_not_default():
    assert repr(AGRU(2, 3)) == "AGRU(2, 3)"
    model = AGRU(2, 3, True, gamma=2, learnable_epsilon=False)
    assert repr(model) == "AGRU(2, 3, batch_first=True, gamma=2.0, learnable_epsilon=False)"


@pytest.mark.parametrize("control", ["frozen", "free"])
def test_controls_change_only_the_recurrent_matrix(control):
    model = AGRU(3, 5, gamma=0.1, recurrence=control).double()
    w = model.candidate_weight
    a = {"frozen": w - w.T, "free": w}[control] - 0.1 * torch.eye(5)
    torch.testing.assert_close(model.recurrent_matrix(), a)
    x, h = torch.rand(4, 2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
    layer = (model.weight_ih, model.gate_weight, a, model.bias, model.step_size())
    torch.testing.assert_close(model(x)[0], agru_loop(x, h, *layer))
    assert w.requires_grad == (control == "free")


def test_an_unknown_recurrence_is_refused():
    with pytest.raises(ValueError, match="recurrence: input should be 'antisymmetric', 'frozen'"):
        AGRU(3, 5, recurrence="symmetric")


def test_packed_sequences_are_refused_with_what_to_do():
    packed = torch.nn.utils.rnn.pack_sequence([torch.rand(4, 3), torch.rand(2, 3)])
    with pytest.raises(ValueError, match="A-GRU takes a tensor, not a PackedSequence: sequences"):
        AGRU(3, 4)(packed)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_traced_model_answers_its_input_not_the_traced_one():
    model = AGRU(3, 4).eval()
    first, second = torch.rand(5, 2, 3), torch.rand(5, 2, 3)
    with torch.no_grad():
        traced = torch.jit.trace(model, (first,))
        torch.testing.assert_close(traced(second)[0], model(second)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_the_old_onnx_exporter_writes_answers_its_input_too():
    model, file = AGRU(3, 4).eval(), BytesIO()
    first, second = torch.rand(5, 2, 3), torch.rand(5, 2, 3)
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


def test_the_jacobian_terms_add_up_to_the_automatic_jacobian(generator):
    model = AGRU(3, 5, gamma=0.2, epsilon=0.6).double()
    u = torch.randn(4, 15, generator=generator, dtype=torch.float64)
    h = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    terms = model.jacobian_terms(u, h, *model.prepare())
    automatic = vmap(jacrev(lambda h, u: model.step(u, h, *model.prepare())))(h, u)
    torch.testing.assert_close(sum(terms.values()), automatic, rtol=1e-12, atol=1e-13)
