import math

import numpy as np
import pytest
import torch
from torch.func import jacrev

from rnnbench_nb.models.agru import AGRU, agru_loop

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
    n = model.hidden_size
    x = x.double().numpy()
    last = []
    for layer in range(model.num_layers):
        w = weights[f"weight_hh_l{layer}"]
        matrix = w[2 * n :] - w[2 * n :].T - model.gamma * np.eye(n)
        start = np.zeros((x.shape[1], n)) if h_0 is None else h_0[layer].double().numpy()
        bias = weights.get(f"bias_l{layer}", np.zeros(3 * n))
        epsilon = math.exp(weights[f"log_epsilon_l{layer}"])
        x = naive_layer(x, start, weights[f"weight_ih_l{layer}"], w[: 2 * n], matrix, bias, epsilon)
        last.append(x[-1])
    return x, np.stack(last)


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
    return AGRU(3, 4, num_layers=2, gamma=0.3, epsilon=0.7).double()


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
    h_0 = torch.randn(2, 2, 4, generator=generator, dtype=torch.float64) if with_state else None
    assert_follows_equation(model, x, h_0)


def test_matrix_is_current_after_optimiser_step(model, generator):
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    before = model.recurrent_matrix(1).detach()
    step(model, x)
    assert not torch.equal(model.recurrent_matrix(1), before)
    assert_follows_equation(model, x)


def test_matrix_is_current_after_loading_and_gamma_is_not_loaded(model, generator):
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    other = AGRU(3, 4, num_layers=2, gamma=0.9).double()
    other(x)  # a cached matrix would be of these weights
    other.load_state_dict(model.state_dict())
    assert other.gamma == 0.9 and not any("gamma" in name for name in model.state_dict())
    assert_follows_equation(other, x)
    other.gamma = model.gamma
    assert torch.equal(other(x)[0], model(x)[0])


def test_recurrent_matrix_has_eigenvalues_on_a_line(model):
    for layer in range(2):
        w = model.state_dict()[f"weight_hh_l{layer}"][8:]
        matrix = model.recurrent_matrix(layer).detach()
        assert torch.equal(matrix + 0.3 * torch.eye(4, dtype=torch.float64), w - w.T)
        torch.testing.assert_close(
            torch.linalg.eigvals(matrix).real, torch.full((4,), -0.3, dtype=torch.float64)
        )


def test_gradient_of_w_is_exactly_antisymmetric(generator):
    model = AGRU(3, 5)
    model(torch.randn(6, 4, 3, generator=generator))[0].square().sum().backward()
    gradient = model.weight_hh_l0.grad[10:]
    assert gradient.abs().max() > 0
    assert torch.equal(gradient, -gradient.T)


def test_epsilon_stays_positive_under_training():
    model = AGRU(1, 2, epsilon=0.01)
    optimiser = torch.optim.SGD(model.parameters(), lr=1000)
    for _ in range(3):  # each of these steps would take epsilon itself below zero
        optimiser.zero_grad()
        model.epsilon().backward()
        optimiser.step()
    assert 0 < model.epsilon() < 1e-5


def test_epsilon_of_each_layer_and_its_gradient():
    model = AGRU(1, 2, num_layers=2, epsilon=0.5)
    assert model.epsilon(0).item() == pytest.approx(0.5)
    model.log_epsilon_l1.data.fill_(math.log(2))
    assert (model.epsilon(0).item(), model.epsilon(1).item()) == pytest.approx((0.5, 2))
    model(torch.ones(2, 1, 1))[0].sum().backward()
    assert model.log_epsilon_l0.grad != 0 and model.log_epsilon_l1.grad != 0


def test_fixed_epsilon_is_a_buffer():
    model = AGRU(2, 3, epsilon=2, learnable_epsilon=False)
    assert "log_epsilon_l0" in dict(model.named_buffers())
    assert "log_epsilon_l0" not in dict(model.named_parameters())
    assert model.epsilon().item() == pytest.approx(2) and not model.epsilon().requires_grad


def test_integer_epsilon_is_the_same_as_a_float():
    assert AGRU(1, 1, epsilon=1).log_epsilon_l0.item() == 0
    assert AGRU(1, 1, epsilon=1).log_epsilon_l0.dtype == torch.float32


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
    without = AGRU(28, 128, bias=False, learnable_epsilon=False)
    assert sum(p.numel() for p in without.parameters()) == 60289 - 384 - 1


def test_initial_weights_are_uniform_and_biases_zero():
    torch.manual_seed(0)
    model = AGRU(64, 64, num_layers=2)
    for name, parameter in model.named_parameters():
        if name.startswith("weight"):
            assert 0.99 / 8 < parameter.abs().max() <= 1 / 8
            assert parameter.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.03)
        elif name.startswith("bias"):
            assert not parameter.any()


def test_dropout_acts_between_layers_in_training_only(generator):
    x = torch.randn(4, 3, 2, generator=generator)
    model = AGRU(2, 8, num_layers=2, dropout=0.5)
    plain = AGRU(2, 8, num_layers=2)
    plain.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    output, h_n = model(x)
    assert not torch.equal(output, plain(x)[0])
    assert torch.equal(h_n[0], plain(x)[1][0])  # the first layer is fed the whole input
    assert torch.equal(model.eval()(x)[0], plain(x)[0])


LAYOUTS = [(False, True), (True, True), (False, False), (True, False)]


@pytest.mark.parametrize(("batch_first", "batched"), LAYOUTS)
@pytest.mark.parametrize("with_state", [False, True])
def test_shapes_are_those_of_torch(batch_first, batched, with_state):
    shape = ((2, 5, 3) if batch_first else (5, 2, 3)) if batched else (5, 3)
    h_0 = torch.zeros((2, 2, 4) if batched else (2, 4)) if with_state else None
    arguments = {"num_layers": 2, "batch_first": batch_first}
    got = AGRU(3, 4, **arguments)(torch.zeros(shape), h_0)
    want = torch.nn.GRU(3, 4, **arguments)(torch.zeros(shape), h_0)
    assert [g.shape for g in got] == [w.shape for w in want]


def test_layouts_hold_the_same_numbers(model, generator):
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    h_0 = torch.randn(2, 2, 4, generator=generator, dtype=torch.float64)
    output, h_n = model(x, h_0)
    alone_output, alone_h_n = model(x[:, 1], h_0[:, 1])
    torch.testing.assert_close(alone_output, output[:, 1])
    torch.testing.assert_close(alone_h_n, h_n[:, 1])
    model.batch_first = True
    first_output, first_h_n = model(x.transpose(0, 1), h_0)
    assert torch.equal(first_output, output.transpose(0, 1))
    assert torch.equal(first_h_n, h_n)
    assert torch.equal(h_n[1], output[-1])


def test_without_bias_equals_zero_bias(generator):
    x = torch.randn(5, 2, 3, generator=generator)
    model = AGRU(3, 4, bias=False)
    assert model.bias_l0 is None
    zero = AGRU(3, 4)
    zero.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(x)[0], zero(x)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, "input_size must be a positive integer, got 0"),
        ({"hidden_size": -1}, "hidden_size must be a positive integer, got -1"),
        ({"hidden_size": 1.5}, "hidden_size must be a positive integer, got 1.5"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"dropout": 1.0, "num_layers": 2}, r"dropout must be a probability in \[0, 1\), got 1"),
        ({"dropout": 0.2}, "between layers"),
        ({"gamma": math.nan}, "gamma must be a finite number, got nan"),
        ({"epsilon": 0}, "epsilon must be a positive finite number, got 0"),
        ({"epsilon": -0.1}, "epsilon must be a positive finite number, got -0.1"),
        ({"epsilon": math.inf}, "epsilon must be a positive finite number, got inf"),
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
        ((5, 2, 3), (2, 1, 4), r"h_0 must have the shape \(2, 2, 4\), got \(2, 1, 4\)"),
        ((5, 2, 3), (2, 4), r"h_0 must have the shape \(2, 2, 4\), got \(2, 4\)"),
        ((5, 3), (2, 1, 4), r"h_0 must have the shape \(2, 4\), got \(2, 1, 4\)"),
    ],
)
def test_wrong_shapes_are_refused(shape, h_0_shape, message):
    h_0 = None if h_0_shape is None else torch.zeros(h_0_shape)
    with pytest.raises(ValueError, match=message):
        AGRU(3, 4, num_layers=2)(torch.zeros(shape), h_0)


def test_repr_names_what_is_not_default():
    assert repr(AGRU(2, 3)) == "AGRU(2, 3, gamma=0.01)"
    model = AGRU(2, 3, 2, False, True, 0.1, gamma=2, learnable_epsilon=False)
    assert repr(model) == (
        "AGRU(2, 3, num_layers=2, bias=False, batch_first=True, dropout=0.1, gamma=2.0, "
        "learnable_epsilon=False)"
    )


@pytest.mark.parametrize("control", ["frozen", "free"])
def test_controls_change_only_the_recurrent_matrix(control):
    model = AGRU(3, 5, gamma=0.1, recurrence=control).double()
    gates, w = model.hidden_weights()
    a = {"frozen": w - w.T, "free": w}[control] - 0.1 * torch.eye(5)
    torch.testing.assert_close(model.recurrent_matrix(), a)
    x, h = torch.rand(4, 2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
    expected = agru_loop(x, h, model.weight_ih_l0, gates, a, model.bias_l0, model.epsilon())
    torch.testing.assert_close(model(x)[0], expected)
    trained = dict(model.named_parameters())
    assert trained["weight_hh_l0"].shape == ((10, 5) if control == "frozen" else (15, 5))


def test_an_unknown_recurrence_is_refused():
    with pytest.raises(ValueError, match="recurrence must be antisymmetric, frozen or free"):
        AGRU(3, 5, recurrence="symmetric")
