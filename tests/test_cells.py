"""Each cell against a second reading of its source, its counts and its authors' start."""

import math

import pytest
import torch
from torch import nn

from rnnbench_nb.cells import CELLS
from rnnbench_nb.model import build_model
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.seeds import generator

# A reading takes the weights by name, x (T, B, D), the start (B, n) and the options, and gives the
# states (T, B, n). It is written from the source and by other means than the cell's file.


def layer(weight, bias, value):
    return value @ weight.T + bias


def elman(w_x, w_h, bias, x, h):
    return torch.tanh(x @ w_x.T + h @ w_h.T + bias)


def damped(w, gamma):
    """W - W^T - gamma I, entry by entry."""
    n = range(len(w))
    entries = [w[i, j] - w[j, i] - gamma * (i == j) for i in n for j in n]
    return torch.stack(entries).view_as(w)


def antisymmetric_rnn(w, x, h, o):
    a = damped(w["recurrent"], o.gamma)
    states = [h]
    for x_t in x:
        states.append(states[-1] + o.epsilon * elman(w["weight_ih"], a, w["bias"], x_t, states[-1]))
    return torch.stack(states[1:])


def gated_antisymmetric_rnn(w, x, h, o):
    """The gate is a network too: sigma(v) = (1 + tanh(v / 2)) / 2."""
    a, n = damped(w["recurrent"], o.gamma), h.shape[1]
    states = [h]
    for x_t in x:
        half = [part / 2 for part in (w["weight_ih"][:n], a, w["bias"][:n])]
        z = (1 + elman(*half, x_t, states[-1])) / 2
        c = elman(w["weight_ih"][n:], a, w["bias"][n:], x_t, states[-1])
        states.append(states[-1] + o.epsilon * z * c)
    return torch.stack(states[1:])


def cornn(w, x, state, o):
    """Its authors' code: one layer of [x, z, y], the velocities first."""
    n = state.shape[1] // 2
    y, z = state[:, :n], state[:, n:]
    w_y, w_z = w["recurrent"][:, :n], w["recurrent"][:, n:]
    joint, states = torch.cat([w["weight_ih"], w_z, w_y], 1), []
    for x_t in x:
        force = layer(joint, w["bias"], torch.cat([x_t, z, y], 1)).tanh()
        z = z + o.dt * (force - o.stiffness * y - o.damping * z)
        y = y + o.dt * z
        states.append(torch.cat([y, z], 1))
    return torch.stack(states)


def lem(w, x, state, o):
    """The paper's equation 3, every block by itself."""
    n = state.shape[1] // 2
    y, z = state[:, :n], state[:, n:]
    v, b = w["weight_ih"].split(n), w["bias"].split(n)
    u, d = (*w["recurrent"].split(n), w["memory_weight"]), w["recurrent_bias"].split(n)
    states = []
    for x_t in x:
        fed = [layer(v[i], b[i], x_t) + layer(u[i], d[i], y) for i in range(3)]
        slow, fast = o.dt / (1 + torch.exp(-fed[0])), o.dt / (1 + torch.exp(-fed[1]))
        z = z - fast * z + fast * torch.tanh(fed[2])
        y = y - slow * y + slow * torch.tanh(layer(v[3], b[3], x_t) + layer(u[3], d[3], z))
        states.append(torch.cat([y, z], 1))
    return torch.stack(states)


def mixed(w, o):
    """Twice a symmetric and twice an antisymmetric part of W, weighed, and the damping."""
    even, odd = (w + w.T) / 2, (w - w.T) / 2
    damping = torch.full((len(w),), o.gamma, dtype=w.dtype).diag()
    return 2 * (1 - o.beta) * even + 2 * o.beta * odd - damping


def lipschitz_rnn(w, x, h, o):
    """Its authors' code, rows as states: B and C there are the transposes."""
    linear, bounded = mixed(w["linear_weight"], o).T, mixed(w["tanh_weight"], o)
    states = [h]
    for x_t in x:
        flow = states[-1] @ linear + elman(w["weight_ih"], bounded, w["bias"], x_t, states[-1])
        states.append(states[-1] + o.epsilon * flow)
    return torch.stack(states[1:])


def mingru(w, x, h, o):
    """In closed form: h_0 and each z_i c_i, every one times the product of the later 1 - z_j."""
    n = h.shape[1]
    bias = w.get("bias", x.new_zeros(2 * n))
    k, v = layer(w["weight_ih"][:n], bias[:n], x), layer(w["weight_ih"][n:], bias[n:], x)
    keep = nn.functional.logsigmoid(-k)  # log(1 - z)
    c = torch.where(v < 0, 1 / (1 + torch.exp(-v)), 0.5 + v)
    states = []
    for t in range(len(x)):
        terms = [
            (keep[i + 1 : t + 1].sum(0).exp() - keep[i : t + 1].sum(0).exp()) * c[i]
            for i in range(t + 1)
        ]
        states.append(keep[: t + 1].sum(0).exp() * h + torch.stack(terms).sum(0))
    return torch.stack(states)


def gru_reset_before(w, x, h, o):
    """Cho et al. 2014 as printed, their z being the share of the old state."""
    n = h.shape[1]
    w_z, w_r, v = w["weight_ih"].split(n)
    u_z, u_r = w["gate_weight"].split(n)
    b_z, b_r, b = w["bias"].split(n)
    states = [h]
    for x_t in x:
        old = states[-1]
        their_z = torch.sigmoid(-(x_t @ w_z.T + old @ u_z.T + b_z))
        r = torch.sigmoid(x_t @ w_r.T + old @ u_r.T + b_r)
        candidate = elman(v, w["candidate_weight"], b, x_t, r * old)
        states.append(their_z * old + (1 - their_z) * candidate)
    return torch.stack(states[1:])


READINGS = {
    "antisymmetric_rnn": (antisymmetric_rnn, {"gamma": 0.3, "epsilon": 0.7}),
    "gated_antisymmetric_rnn": (gated_antisymmetric_rnn, {"gamma": 0.3, "epsilon": 0.7}),
    "cornn": (cornn, {"dt": 0.3, "stiffness": 1.7, "damping": 0.6}),
    "lem": (lem, {"dt": 0.7}),
    "lipschitz_rnn": (lipschitz_rnn, {"beta": 0.6, "gamma": 0.2, "epsilon": 0.4}),
    "mingru": (mingru, {}),
    "gru_reset_before": (gru_reset_before, {}),
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
    x, start = x.requires_grad_(), None if h_0 is None else h_0.requires_grad_()
    inputs = [x, *made.parameters(), *([] if h_0 is None else [start])]
    output, last = made(x, None if h_0 is None else start[None])
    begin = made.zero_state(x.shape[1]) if h_0 is None else start
    states = reading(dict(made.named_parameters()), x, begin, made.options)
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


@pytest.mark.parametrize("cell", ["antisymmetric_rnn", "gated_antisymmetric_rnn"])
def test_the_matrix_is_antisymmetric_but_for_its_damping_and_always_the_current_one(cell):
    made = make(cell, gamma=0.3)
    for _ in range(2):
        w = nn.init.normal_(made.recurrent)
        torch.testing.assert_close(made.prepare()[0], damped(w, 0.3))
        assert torch.equal(made.recurrent_matrix(), made.prepare()[0])


def uniform(bound):
    return bound / math.sqrt(3), bound


D, H = 150, 200
SOURCE = {  # standard deviation, and the bound of a uniform start
    "antisymmetric_rnn": {"weight_ih": (D**-0.5, None), "recurrent": (H**-0.5, None)},
    "gated_antisymmetric_rnn": {"weight_ih": (D**-0.5, None), "recurrent": (H**-0.5, None)},
    "cornn": dict.fromkeys(("weight_ih", "recurrent", "bias"), uniform((D + 2 * H) ** -0.5)),
    "lem": dict.fromkeys(
        ("weight_ih", "recurrent", "memory_weight", "recurrent_bias", "bias"), uniform(H**-0.5)
    ),
    "lipschitz_rnn": {
        **dict.fromkeys(("weight_ih", "bias"), uniform(D**-0.5)),
        **dict.fromkeys(("linear_weight", "tanh_weight"), (1 / H, None)),
    },
    "mingru": dict.fromkeys(("weight_ih", "bias"), uniform(D**-0.5)),
    "gru_reset_before": {
        "weight_ih": (0.01, None),
        "gate_weight": (H**-0.5, None),
        "candidate_weight": (H**-0.5, None),
    },
}


@each_cell
def test_the_source_start_is_that_of_its_authors(cell):
    made = CELLS[cell](D, H, start="source")
    made.reset_parameters(torch.Generator().manual_seed(7))
    state = {name: parameter.clone() for name, parameter in made.named_parameters()}
    for name, tensor in state.items():
        if name not in SOURCE[cell]:
            assert name == "bias" and not tensor.any()
            continue
        std, bound = SOURCE[cell][name]
        tolerance = 0.02 if tensor.dim() > 1 else 0.1
        assert tensor.std().item() == pytest.approx(std, rel=tolerance), name
        assert abs(tensor.mean().item()) < 5 * std / math.sqrt(tensor.numel()), name
        if bound:
            assert 0.98 * bound < tensor.abs().max() <= bound, name
        else:  # a normal start has no bound
            assert tensor.abs().max() > 3 * std, name
    made.reset_parameters(torch.Generator().manual_seed(7))
    assert all(torch.equal(state[name], p) for name, p in made.named_parameters())


def test_each_recurrent_matrix_of_the_reset_before_gru_starts_orthogonal():
    made = CELLS["gru_reset_before"](3, 20, start="source")
    for matrix in (*made.gate_weight.chunk(2), made.candidate_weight):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(20), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "scaled", "options"),
    [
        ("agru", {"candidate_weight"}, {}),
        ("antisymmetric_rnn", {"recurrent"}, {"start": "source"}),
        ("gated_antisymmetric_rnn", {"recurrent"}, {"start": "common"}),
        ("lipschitz_rnn", {"linear_weight", "tanh_weight"}, {"start": "source"}),
    ],
)
def test_the_initial_scale_acts_on_the_recurrent_matrices_alone(cell, scaled, options):
    plain, twice = (CELLS[cell](3, 5, initial_scale=scale, **options) for scale in (1.0, 2.0))
    for made in (plain, twice):
        made.reset_parameters(torch.Generator().manual_seed(7))
    ours = dict(twice.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter * (1 + (name in scaled)), ours[name]), name


@each_cell
def test_the_head_starts_alike_whatever_the_start_of_the_cell(cell):
    heads = []
    for start in ("common", "source"):
        parameters = run_parameters({"model": cell, "start": start}, "the test")
        model = build_model(parameters, 28, 10, generator(42, "initialisation"))
        assert not model.head.bias.any()
        heads.append(model.head.weight)
    assert torch.equal(*heads)


def test_without_biases_the_mingru_forgets_by_halves_where_the_input_is_zero():
    made = CELLS["mingru"](1, 6, biases=False).double()
    assert made.bias is None and list(dict(made.named_parameters())) == ["weight_ih"]
    h_0 = torch.full((1, 1, 6), 8.0, dtype=torch.float64)
    states = made(torch.zeros(3, 1, 1, dtype=torch.float64), h_0)[0]
    assert states[:, 0, 0].tolist() == [4.25, 2.375, 1.4375]  # h' = h / 2 + 1 / 4
    agrees(make("mingru", biases=False), mingru, torch.randn(4, 3, 4).double(), None)


@each_cell
def test_a_cell_can_be_told_from_the_others_by_its_look(cell):
    entry, others = CELLS[cell], [CELLS[name] for name in CELLS if name != cell]
    channels = [int(entry.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(s * c for s, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 3  # contrast with white
    for part in ("label", "colour", "dashes", "marker"):
        assert getattr(entry, part) not in [getattr(other, part) for other in others], part
