"""Each cell against a second reading of its source, and what the A-GRU alone has."""

from io import BytesIO

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from rnnbench_nb.cells import AGRU, CELLS, GRU
from rnnbench_nb.errors import UserError

# A reading takes the weights by name, inputs x (B, D), the state (B, n) and the options, and gives
# the next state. It is written from the source and by other means than the cell's file.


def sigmoid(v):
    return 1 / (1 + torch.exp(-v))


def elman(w_x, w_h, bias, x, h):
    return torch.tanh(x @ w_x.T + h @ w_h.T + bias)


def damped(w, gamma):
    """W - W^T - gamma I, entry by entry."""
    n = range(len(w))
    entries = [w[i, j] - w[j, i] - gamma * (i == j) for i in n for j in n]
    return torch.stack(entries).view_as(w)


def antisymmetric_rnn(w, x, h, o):
    a = damped(w["recurrent"], o.gamma)
    return h + o.epsilon * elman(w["weight_ih"], a, w["bias"], x, h)


def gated_antisymmetric_rnn(w, x, h, o):
    """The gate is a network too: sigma(v) = (1 + tanh(v / 2)) / 2."""
    a, n = damped(w["recurrent"], o.gamma), h.shape[1]
    z = (1 + elman(*(part / 2 for part in (w["weight_ih"][:n], a, w["bias"][:n])), x, h)) / 2
    return h + o.epsilon * z * elman(w["weight_ih"][n:], a, w["bias"][n:], x, h)


def cornn(w, x, state, o):
    """Its authors' code: one layer of [x, z, y], the velocities first."""
    (y, z), (w_y, w_z) = state.chunk(2, 1), w["recurrent"].chunk(2, 1)
    joint = torch.cat([w["weight_ih"], w_z, w_y], 1)
    force = torch.tanh(torch.cat([x, z, y], 1) @ joint.T + w["bias"])
    z = z + o.dt * (force - o.stiffness * y - o.damping * z)
    return torch.cat([y + o.dt * z, z], 1)


def lem(w, x, state, o):
    """The paper's equation 3, every block by itself."""
    (y, z), n = state.chunk(2, 1), state.shape[1] // 2
    fed = [x @ v.T + b for v, b in zip(w["weight_ih"].split(n), w["bias"].split(n), strict=True)]
    u, d = (*w["recurrent"].split(n), w["memory_weight"]), w["recurrent_bias"].split(n)
    slow, fast = (o.dt * sigmoid(fed[i] + y @ u[i].T + d[i]) for i in range(2))
    z = z - fast * z + fast * torch.tanh(fed[2] + y @ u[2].T + d[2])
    y = y - slow * y + slow * torch.tanh(fed[3] + z @ u[3].T + d[3])
    return torch.cat([y, z], 1)


def mixed(w, o):
    """Twice a symmetric and twice an antisymmetric part of W, weighed, and the damping."""
    even, odd = (w + w.T) / 2, (w - w.T) / 2
    damping = torch.full((len(w),), o.gamma, dtype=w.dtype).diag()
    return 2 * (1 - o.beta) * even + 2 * o.beta * odd - damping


def lipschitz_rnn(w, x, h, o):
    linear, bounded = mixed(w["linear_weight"], o), mixed(w["tanh_weight"], o)
    return h + o.epsilon * (h @ linear.T + elman(w["weight_ih"], bounded, w["bias"], x, h))


def mingru(w, x, h, o):
    k, v = (x @ w["weight_ih"].T + w["bias"]).chunk(2, 1)
    return sigmoid(-k) * h + sigmoid(k) * torch.maximum(v + 0.5, sigmoid(v).clamp(max=0.5))


def reset_before(w, matrix, x, h):
    """The update gate, and the candidate by a matrix, of a GRU that resets before the product."""
    n = h.shape[1]
    (w_z, w_r, v), (b_z, b_r, b) = w["weight_ih"].split(n), w["bias"].split(n)
    u_z, u_r = w["gate_weight"].split(n)
    r = sigmoid(x @ w_r.T + h @ u_r.T + b_r)
    return sigmoid(x @ w_z.T + h @ u_z.T + b_z), elman(v, matrix, b, x, r * h)


def gru_reset_before(w, x, h, o):
    z, c = reset_before(w, w["candidate_weight"], x, h)
    return h - z * h + z * c


def agru_matrix(w, o):
    matrix = {"free": 1.0, "doubled": 2.0, "released": 2.0}.get(o.recurrence, 0) * w
    matrix = matrix if matrix.any() else w - w.T
    return matrix - o.gamma * torch.eye(len(w), dtype=w.dtype)


def agru(w, x, h, o):
    z, c = reset_before(w, agru_matrix(w["candidate_weight"], o), x, h)
    return h + (w["epsilon"] if o.epsilon_itself else torch.exp(w["log_epsilon"])) * c * z


def agru_heun(w, x, h, o):
    """Each method by its table of Butcher: where a slope is taken, and how much of it."""
    places, shares = {
        "heun": ([0, 1], [1 / 2, 1 / 2]),
        "half_steps": ([0, 1 / 2], [1 / 2, 1 / 2]),
        "rk4": ([0, 1 / 2, 1 / 2, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    }[o.method]
    gates = x @ w["weight_ih"].T + w["bias"]
    n, size, slope, total = len(h[0]), torch.exp(w["log_epsilon"]), torch.zeros_like(h), 0
    z, r = torch.sigmoid(gates[:, : 2 * n] + h @ w["gate_weight"].T).split(n, 1)
    for place, share in zip(places, shares, strict=True):
        state = r * (h + place * size * slope)
        product = state @ agru_matrix(w["candidate_weight"], o).T
        slope = z * torch.tanh(gates[:, 2 * n :] + product)
        total = total + share * slope
    return h + size * total


READINGS = {
    "antisymmetric_rnn": (antisymmetric_rnn, {"gamma": 0.3, "epsilon": 0.7}),
    "gated_antisymmetric_rnn": (gated_antisymmetric_rnn, {"gamma": 0.3, "epsilon": 0.7}),
    "cornn": (cornn, {"dt": 0.3, "stiffness": 1.7, "damping": 0.6}),
    "lem": (lem, {"dt": 0.7}),
    "lipschitz_rnn": (lipschitz_rnn, {"beta": 0.6, "gamma": 0.2, "epsilon": 0.4}),
    "mingru": (mingru, {}),
    "gru_reset_before": (gru_reset_before, {}),
    "agru": (agru, {"gamma": 0.3, "epsilon": 0.7}),
    "agru_heun": (agru_heun, {"gamma": 0.3, "epsilon": 0.7}),
}
SHAPES = [(3, 5, 4, 6), (1, 5, 4, 6), (3, 1, 4, 6), (3, 5, 1, 6), (3, 5, 4, 1), (1, 1, 1, 1)]
each_cell = pytest.mark.parametrize("cell", READINGS)


def make(cell, features=4, units=6, **options):
    """A cell in float64 with weights, biases too, that matter."""
    made = CELLS[cell](features, units, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(3))
    return made


def agrees(made, reading, x, h_0):
    """The output, the last state and all gradients of a module are those of the reading."""
    leaves = [x] if h_0 is None else [x, h_0]
    inputs = [leaf.requires_grad_() for leaf in leaves]
    inputs += [parameter for parameter in made.parameters() if parameter.requires_grad]
    output, last = made(x, None if h_0 is None else h_0[None])
    states = [made.zero_state(x.shape[1]) if h_0 is None else h_0]
    for x_t in x:
        states.append(reading(dict(made.named_parameters()), x_t, states[-1], made.options))
    states = torch.stack(states[1:])
    torch.testing.assert_close(output, states[..., : made.hidden_size], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(last[0], states[-1], rtol=1e-10, atol=1e-12)
    random = torch.Generator().manual_seed(4)
    shares = torch.randn(output.shape, generator=random, dtype=torch.float64)
    ours = torch.autograd.grad((output * shares).sum() + last.sum(), inputs)
    read = (states[..., : made.hidden_size] * shares).sum() + states[-1].sum()
    for ours_, theirs in zip(ours, torch.autograd.grad(read, inputs), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-10, atol=1e-10)


@each_cell
@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cell_is_what_its_source_says(cell, shape, with_start):
    sequences, steps, features, units = shape
    reading, options = READINGS[cell]
    made, random = make(cell, features, units, **options), torch.Generator().manual_seed(1)
    x = torch.randn(steps, sequences, features, generator=random, dtype=torch.float64)
    h_0 = torch.randn(sequences, made.states * units, generator=random, dtype=torch.float64)
    agrees(made, reading, x, h_0 if with_start else None)


CONTROLS = ["free", "frozen", "doubled", "released"]


@pytest.mark.parametrize(
    "options", [*({"recurrence": name} for name in CONTROLS), {"epsilon_itself": True}]
)
def test_so_are_the_controls_of_the_agru(options):
    agrees(make("agru", gamma=0.3, **options), agru, torch.randn(5, 2, 4).double(), None)


@pytest.mark.parametrize("method", ["half_steps", "rk4"])
def test_so_are_the_other_methods_of_the_better_step(method):
    made = make("agru_heun", gamma=0.3, method=method, recurrence="released")
    agrees(made, agru_heun, torch.randn(5, 2, 4).double(), None)


@pytest.mark.parametrize("cell", ["agru", "agru_heun"])
def test_a_released_matrix_starts_as_the_antisymmetric_one_and_all_of_it_is_free(cell):
    outputs, free = [], []
    for recurrence in ("antisymmetric", "released"):
        torch.manual_seed(0)
        made = CELLS[cell](4, 6, recurrence=recurrence)
        free.append(sum(p.numel() for p in made.parameters()) - made.redundant_parameters())
        outputs.append(made(torch.ones(30, 2, 4))[0])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    assert free[1] - free[0] == 6 * 7 / 2


@pytest.mark.parametrize("recurrence", ["antisymmetric", "released"])
def test_adams_largest_step_on_the_matrix_is_the_same_for_the_released_control(recurrence):
    made = make("agru", recurrence=recurrence)
    before = made.recurrent_matrix().detach()
    optimiser = torch.optim.Adam(made.parameters(), lr=0.1)
    made(torch.randn(5, 2, 4).double())[0].square().sum().backward()
    optimiser.step()
    step = (made.recurrent_matrix() - before).abs().max().item()
    assert step == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("cell", ["agru", "antisymmetric_rnn", "gated_antisymmetric_rnn"])
def test_the_matrix_in_use_is_that_of_the_current_weights(cell):
    """After a step of an optimiser, and after loading; the damping is not loaded."""
    made, other, x = make(cell, gamma=0.3), make(cell, gamma=0.9), torch.randn(5, 2, 4).double()
    before = made.recurrent_matrix().detach()
    real = torch.linalg.eigvals(before).real
    torch.testing.assert_close(real, torch.full_like(real, -0.3))
    optimiser = torch.optim.Adam(made.parameters(), lr=0.1)
    made(x)[0].square().sum().backward()
    optimiser.step()
    assert not torch.equal(made.recurrent_matrix(), before)
    agrees(made, READINGS[cell][0], x, None)
    other(x)  # a cached matrix would be of these weights
    other.load_state_dict(made.state_dict())
    assert other.options.gamma == 0.9
    agrees(other, READINGS[cell][0], x, None)


def test_the_gradient_of_the_agrus_w_is_exactly_antisymmetric():
    made = AGRU(3, 5)
    made(torch.randn(6, 4, 3))[0].square().sum().backward()
    gradient = made.candidate_weight.grad
    assert gradient.any() and torch.equal(gradient, -gradient.T)


@pytest.mark.parametrize("learnable", [True, False])
def test_the_step_size_starts_as_given_is_trained_if_wanted_and_stays_positive(learnable):
    made = AGRU(1, 2, epsilon=2, learnable_epsilon=learnable)
    assert made.step_size().item() == pytest.approx(2)
    made(torch.ones(2, 1, 1))[0].sum().backward()
    assert bool(made.log_epsilon.grad) == learnable and made.weight_ih.grad.any()
    with torch.no_grad():
        made.log_epsilon.sub_(20)  # far more than an optimiser takes epsilon itself below zero
    assert made.step_size() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_the_old_onnx_exporter_writes_answers_its_input_too():
    made, file, (first, second) = AGRU(3, 4).eval(), BytesIO(), torch.randn(2, 5, 2, 3)
    with torch.no_grad():
        torch.onnx.export(made, (first,), file, dynamo=False)
        session = ReferenceEvaluator(onnx.load_from_string(file.getvalue()))
        out, _ = session.run(None, {session.input_names[0]: second.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), made(second)[0])


@pytest.mark.parametrize("kind", [AGRU, GRU])
@pytest.mark.parametrize("name", ["num_layers", "bias", "dropout", "bidirectional", "proj_size"])
def test_arguments_of_torch_that_are_not_served_are_refused(kind, name):
    with pytest.raises(UserError, match="has one layer, one direction|unknown key 'proj_size'"):
        kind(2, 3, **{name: 0.5})


@pytest.mark.parametrize(
    ("x", "h_0", "message"),
    [
        (torch.zeros(3), None, r"steps of 3 features, got \(3,\)"),
        (torch.zeros(5, 2, 4), None, r"steps of 3 features, got \(5, 2, 4\)"),
        (torch.zeros(0, 2, 3), None, r"steps of 3 features, got \(0, 2, 3\)"),
        (torch.zeros(5, 2, 3), torch.zeros(1, 1, 4), r"shape \(1, 2, 4\), got \(1, 1, 4\)"),
        (torch.zeros(5, 2, 3), torch.zeros(1, 2, 4).double(), "must be torch.float32 as the weig"),
        (nn.utils.rnn.pack_sequence([torch.rand(2, 3)]), None, "takes a tensor, not a PackedSeq"),
        (torch.zeros(5, 3), torch.zeros(2, 1, 4), r"shape \(1, 4\), got \(2, 1, 4\)"),
    ],
)
def test_wrong_calls_are_refused(x, h_0, message):
    with pytest.raises(UserError, match=message):
        AGRU(3, 4)(x, h_0)


def test_the_description_names_what_is_not_default():
    assert repr(AGRU(2, 3)) == "AGRU(2, 3)" and repr(GRU(2, 3, chrono=7)) == "GRU(2, 3, chrono=7)"
    made = AGRU(2, 3, batch_first=True, gamma=2, learnable_epsilon=False)
    assert repr(made) == "AGRU(2, 3, batch_first=True, gamma=2.0, learnable_epsilon=False)"


@each_cell
def test_a_cell_can_be_told_from_the_others_by_its_look(cell):
    entry, others = CELLS[cell], [CELLS[name] for name in CELLS if name != cell]
    channels = [int(entry.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(s * c for s, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 3  # contrast with white
    for part in ("label", "colour", "dashes", "marker"):
        assert getattr(entry, part) not in [getattr(other, part) for other in others], part
