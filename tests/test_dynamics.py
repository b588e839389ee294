"""Every identity that the report leans on, as a test of the project's own functions.

Relative errors are below 1e-12, and below 1e-10 where a formula meets automatic differentiation.
"""

import math
from functools import partial
from itertools import compress, product

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from rnnbench_nb import dynamics
from rnnbench_nb.cells import CELLS, Cell
from rnnbench_nb.cells.base import parameter as new_parameter
from rnnbench_nb.model import SequenceModel

B, T, D, H, K = 3, 5, 2, 6, 4
ONE = torch.eye(H, dtype=torch.float64)
GAMMA, EPSILON = 0.3, 0.7
LSTM, GRU, AGRU, HEUN = (CELLS[name] for name in ("lstm", "gru", "agru", "agru_heun"))


class TwoStates(Cell):
    """A cell that nobody registered, with two states and nothing by hand."""

    name, label, states = "two_states", "Two", 2

    def declare(self):
        self.mixing = new_parameter(self.hidden_size, self.hidden_size)

    def prepare(self):
        return (self.mixing,)

    @staticmethod
    def step(u, state, mixing):
        h, c = state.chunk(2, -1)
        c = c / 2 + torch.sin(h)
        return torch.cat([h / 2 + torch.tanh(u + c @ mixing.T), c], -1)


TWO = TwoStates
TYPES = [LSTM, GRU, AGRU, TWO]


class SquaredError:
    """A task of sequences as they are; its loss is summed over all but the examples."""

    def inputs(self, stored):
        return stored

    def losses(self, outputs, targets, reduction="none"):
        return (outputs - targets).square().flatten(1).sum(1)

    def memoryless(self, split):
        return "loss", 0.25


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_cell(kind: type, hidden: int = H, **options) -> nn.Module:
    """A cell in float64 whose every parameter, biases included, counts."""
    if kind in (AGRU, HEUN):
        options = {"gamma": GAMMA, "epsilon": EPSILON, **options}
    cell = kind(D, hidden, batch_first=True, **options).double()
    with torch.no_grad():
        for seed, parameter in enumerate(cell.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed) / math.sqrt(hidden))
        if kind in (AGRU, HEUN):
            cell.log_epsilon.fill_(math.log(EPSILON))  # it was rounded to float32
    return cell


def next_state(cell: nn.Module, state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The state (n,) after a step from a state (n,) and x (D,), by the module's own forward."""
    h = state.view(-1, 1, 1, H).unbind()
    _, last = cell(x[None, None], h if isinstance(cell, nn.LSTM) else state[None, None])
    return torch.cat(last if isinstance(last, tuple) else [last]).flatten()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-12) -> None:
    """Equal up to `rtol` of the largest entry."""
    assert (actual - expected).abs().max() <= rtol * expected.abs().max()


def eigenvalues(matrix: torch.Tensor) -> torch.Tensor:
    """By imaginary part, of a general matrix: no symmetry is assumed, so none is imposed."""
    values = torch.linalg.eigvals(matrix)
    return values[values.imag.argsort()]


# The cell and its exact step Jacobian


@pytest.mark.parametrize("kind", TYPES)
def test_states_and_jacobians_are_those_of_the_library(kind):
    cell, inputs = make_cell(kind), draw(B, T, D)
    output, _ = cell(inputs)
    for t, step in enumerate(dynamics.walk(cell, inputs)):
        assert step.after.shape == (B, kind.states * H)
        assert_close(step.after[:, :H], output[:, t].detach())
        for i, found in enumerate(dynamics.jacobian(step)):
            advance = partial(next_state, cell, x=inputs[i, t])
            expected = torch.autograd.functional.jacobian(advance, step.before[i])
            assert_close(found, expected, 1e-10)


def last_step(kind=AGRU, **options) -> dynamics.Step:
    *_, step = dynamics.walk(make_cell(kind, **options), draw(B, T, D))
    return step


def gates_of(step: dynamics.Step) -> tuple[torch.Tensor, ...]:
    """z, r and c of an A-GRU, from its equations."""
    gates, a, _ = step.prepared
    u_z, u_r, u_c = step.u.chunk(3, -1)
    z, r = (u_z + step.before @ gates[:H].T).sigmoid(), (u_r + step.before @ gates[H:].T).sigmoid()
    return z, r, (u_c + (r * step.before) @ a.T).tanh()


def paths_of(step: dynamics.Step) -> torch.Tensor:
    """The paths of a step's slopes (slopes, B, H, H)."""
    a, left, right = step.cell.path_terms(step.u, step.before, *step.prepared)
    return left[..., None] * a * right[..., None, :]


def replaced(step: dynamics.Step) -> dict[str, torch.Tensor]:
    """The matrices (B, H, H) that replace the Jacobian of a step, row by row."""
    units = [row.expand(len(dynamics.REPLACEMENTS), *step.before.shape) for row in ONE]
    rows = torch.stack([dynamics.replace_back(step, unit) for unit in units], 2)
    return dict(zip(dynamics.REPLACEMENTS, rows, strict=True))


@pytest.mark.parametrize("method", ["euler", "heun", "half_steps", "rk4"])
def test_the_step_of_the_path_is_that_of_fixed_gates(method):
    step = last_step() if method == "euler" else last_step(HEUN, method=method)
    (z, r, _), a, paths = gates_of(step), step.prepared[1], paths_of(step)

    def frozen(h, u_c, z, r):
        return step.cell.advance(h, lambda state: z * torch.tanh(u_c + a @ (r * state)), EPSILON)

    expected = vmap(jacrev(frozen))(step.before, step.u.chunk(3, -1)[2], z, r)
    found = replaced(step)
    assert_close(found["step of the path"], expected, 1e-10)
    assert method != "euler" or (ONE + paths[0] - expected).abs().max() < 1e-14
    assert_close(found["whole"], dynamics.jacobian(step))
    assert_close(found["flow of the path"], torch.linalg.matrix_exp(paths.mean(0)))
    assert torch.linalg.svdvals(found["flow of the balanced path"]).max() <= 1 + 1e-14


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("heun", lambda x: 1 + x + x**2 / 2),
        ("half_steps", lambda x: (1 + x / 2) ** 2),
        ("rk4", lambda x: 1 + x + x**2 / 2 + x**3 / 6 + x**4 / 24),
    ],
)
def test_a_step_at_rest_has_the_stability_function_of_its_method(method, factor):
    cell = at_rest(make_cell(HEUN, method=method))
    *_, step = dynamics.walk(cell, torch.zeros(1, 1, D))
    modes = EPSILON / 4 * (1j * frequencies(cell.candidate_weight.detach()) - GAMMA)
    for name in ("step of the path", "step of the balanced path"):
        moduli = torch.linalg.eigvals(replaced(step)[name]).abs().sort().values
        assert_close(moduli, factor(modes).abs().sort().values)


# Spectra


def frequencies(w: torch.Tensor) -> torch.Tensor:
    """Of S = W - W^T, ascending: the eigenvalues of the Hermitian matrix iS."""
    return torch.linalg.eigvalsh(1j * (w - w.mT))


def modulus(frequency, gamma, epsilon):
    """|1 + epsilon (-gamma +- i lambda)|, by Pythagoras."""
    return ((1 - epsilon * gamma) ** 2 + (epsilon * frequency) ** 2) ** 0.5


def stability(matrix, epsilon=1.0) -> dict[str, float]:
    return dynamics.stability(torch.as_tensor(matrix), torch.tensor(epsilon, dtype=torch.float64))


@pytest.mark.parametrize("hidden", [6, 7])
def test_a_is_normal_with_shifted_spectrum(hidden):
    cell = make_cell(AGRU, hidden)
    a, modes = cell.recurrent_matrix().detach(), frequencies(cell.candidate_weight.detach())
    assert_close(eigenvalues(a), -GAMMA + 1j * modes)
    singular_values = (GAMMA**2 + modes**2).sqrt().sort(descending=True).values
    assert_close(torch.linalg.svdvals(a), singular_values)
    grown = stability(a, EPSILON)  # normal: the two abscissas are one
    assert grown["abscissa"] == pytest.approx(-GAMMA * EPSILON)
    assert grown["numerical_abscissa"] == pytest.approx(-GAMMA * EPSILON)
    assert grown["modulus_max"] == pytest.approx(modulus(modes.max().item(), GAMMA, EPSILON))
    assert grown["defect"] < 1e-15 and dynamics.abnormality(a) < 1e-14


def test_the_largest_stable_step_draws_the_line():
    random = np.random.default_rng(0)
    for real, imaginary, epsilon in random.uniform((-2, -3, 0), (0.5, 3, 2), (300, 3)):
        found = stability([[real, imaginary], [-imaginary, real]], epsilon)
        assert (found["modulus_max"] <= 1) == (epsilon <= found["epsilon_max"])
        assert found["share_outside"] == (found["modulus_max"] > 1)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[-0.01, 1.6], [-1.6, -0.01]], {
            "epsilon": 1, "lambda_max": 1.6, "epsilon_lambda_max": 1.6,
            "epsilon_max": 0.02 / 2.5601, "modulus_max": math.hypot(0.99, 1.6),
            "share_outside": 1, "abscissa": -0.01, "numerical_abscissa": -0.01, "defect": 0}),
        ([[0.0, 1], [0, 0]], {"abscissa": 0, "numerical_abscissa": 0.5}),
        ([[1.0, 2], [2, -1]], {"defect": 1, "epsilon_max": 0}),
        ([[1.0, 2], [0, 1]], {"defect": math.sqrt(2 / 6)}),  # I + S + [[0, 1], [1, 0]]
        ([[0.0, 1], [-1, 0]], {"epsilon_max": 0}),
        ([[0.0, 0], [0, -1]], {"epsilon_max": 2}),
        ([[0.0, 0], [0, 0]], {"epsilon_max": math.inf}),
    ],
)  # fmt: skip
def test_stability_by_hand(matrix, expected):
    found = stability(torch.tensor(matrix, dtype=torch.float64))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


# Gates, the parts of a step, and what stands in their place


def gate_gain(step: dynamics.Step) -> torch.Tensor:
    z, r, c = gates_of(step)
    return EPSILON * z * (1 - c**2) * r


def test_a_gated_spectrum_lies_between_the_dampings_of_its_gates_but_can_grow_at_once():
    step = last_step()
    (path,), gain = paths_of(step), gate_gain(step)
    real = torch.linalg.eigvals(path).real
    assert (real >= -GAMMA * gain.amax(-1, keepdim=True) - 1e-12).all()
    assert (real <= -GAMMA * gain.amin(-1, keepdim=True) + 1e-12).all()
    assert all(stability(each)["numerical_abscissa"] > 0.01 for each in path)


@pytest.mark.parametrize("gamma", [0.0, GAMMA])
def test_the_balanced_path_has_the_spectrum_of_the_path_and_its_flow_cannot_grow(gamma):
    step = last_step(gamma=gamma)
    (path,), gain = paths_of(step), gate_gain(step)
    a, left, right = step.cell.path_terms(step.u, step.before, *step.prepared)
    (n,) = dynamics.balanced(a, left, right)
    q, s = torch.diag_embed(gain), a + gamma * ONE
    m = gain.sqrt()[..., None] * s * gain.sqrt()[:, None]
    assert_close(n, m - gamma * q)
    for mine, theirs in zip(n, path, strict=True):
        assert_close(eigenvalues(mine).imag, eigenvalues(theirs).imag)
    assert_close((n + n.mT) / 2 + 1, 1 - gamma * q)
    norm = torch.linalg.matrix_norm
    defect = 2 * gamma * norm(q @ m - m @ q) / norm(n) ** 2
    assert (dynamics.abnormality(n) - defect).abs().max() < 1e-14
    assert torch.linalg.svdvals(torch.linalg.matrix_exp(n)).max() <= 1 + 1e-14
    assert torch.linalg.svdvals(torch.linalg.matrix_exp(path)).max() > 1.001


@pytest.mark.parametrize("kind", [AGRU, HEUN, GRU, LSTM, TWO])
def test_growth_is_that_of_products_of_explicit_matrices(kind):
    model, inputs, targets = SequenceModel(make_cell(kind), K).double(), draw(B, T, D), draw(B, K)
    of_states, _ = dynamics.gradients(model, SquaredError(), inputs, targets)
    last, exp, products = of_states[:, -1], torch.linalg.matrix_exp, torch.eye(kind.states * H)

    def step_of(paths):  # Euler's, or Heun's
        both = paths[-1] @ paths[0] if kind is HEUN else 0
        return ONE + paths.mean(0) + both / 2

    for step in dynamics.walk(model.cell, inputs):
        matrices = {frozenset(dynamics.CAUSES): dynamics.jacobian(step)}
        if kind in (AGRU, HEUN):
            paths = paths_of(step)
            even = dynamics.balanced(*step.cell.path_terms(step.u, step.before, *step.prepared))
            gates = dynamics.jacobian(step) - step_of(paths)
            for present in product([True, False], repeat=3):
                operators = paths if present[1] else even
                matrix = step_of(operators) if present[0] else exp(operators.mean(0))
                causes = frozenset(compress(dynamics.CAUSES, present))
                matrices[causes] = matrix + gates * present[2]
        products = torch.stack([*matrices.values()], 1) @ products.to(last)
    first = torch.einsum("brij,bi->brj", products, last)
    expected = (first.norm(dim=-1) / last.norm(dim=-1, keepdim=True)).log10()
    names = [frozenset(causes) for causes in dynamics.REPLACEMENTS.values()]
    found = dynamics.growth(model, SquaredError(), inputs, targets)
    assert len(matrices) == found.shape[1]
    assert_close(found[:, [names.index(causes) for causes in matrices]], expected, 1e-10)


def test_a_flow_is_that_of_the_matrix_exponential_also_if_it_is_fast():
    left, right, a, v = 30 * draw(1, B, H).abs(), draw(1, B, H).abs(), draw(H, H), draw(2, B, H)
    flow = torch.linalg.matrix_exp((left[..., None] * (a - a.T) * right[..., None, :])[0])
    found = dynamics.flow_back(a - a.T, left, right, v)
    assert_close(found, torch.einsum("rbi,bij->rbj", v, flow), 1e-9)


def test_the_least_damping_is_that_of_theory_where_the_gates_are_even():
    cell = at_rest(make_cell(AGRU, 2))
    with torch.no_grad():
        cell.candidate_weight.copy_(torch.tensor([[0, 2], [0, 0]]))  # lambda = 2
    *_, step = dynamics.walk(cell, torch.zeros(1, 1, D))
    gain = EPSILON / 4  # both gates are 1/2
    expected = (1 - math.sqrt(1 - (gain * 2) ** 2)) / gain  # (1 - q g)^2 + (q lambda)^2 = 1
    found = dynamics.least_damping(step, GAMMA, halvings=30)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    wild = step.prepared[1] * torch.tensor([[1.0, 20], [20, 1]])  # lambda too large
    prepared = (step.prepared[0], wild, step.prepared[2])
    assert dynamics.least_damping(step._replace(prepared=prepared), GAMMA).tolist() == [math.inf]


def at_rest(cell):
    """The cell with open gates at one half and no bias: a linear one, for a small state."""
    with torch.no_grad():
        cell.gate_weight.zero_()
        cell.bias.zero_()
    return cell


# Gradient flow and Lyapunov exponents


@pytest.mark.parametrize("read", ["last", "every"])
@pytest.mark.parametrize("kind", TYPES)
def test_gradients_flow_back_by_the_jacobians_and_to_the_inputs(kind, read):
    cell, inputs, targets = make_cell(kind), draw(B, T, D), draw(B, T, K, seed=3)
    model = SequenceModel(cell, K, dropout=0.5, read=read).double().eval()
    asked = targets[:, -1] if read == "last" else targets
    found, of_inputs = dynamics.gradients(model, SquaredError(), inputs, asked)
    steps = list(dynamics.walk(cell, inputs))
    errors = model.head(steps[-1].after[:, :H]).detach() - targets[:, -1]
    g = torch.zeros(B, kind.states * H, dtype=torch.float64)
    g[:, :H] = 2 * errors @ model.head.weight.detach()  # only h is read out
    expected = [g]
    for step in reversed(steps):
        expected.insert(0, torch.einsum("bij,bi->bj", dynamics.jacobian(step), expected[0]))
    assert_close(found, torch.stack(expected, 1), 1e-10)  # g_{t-1} = J_t^T g_t
    last = model(inputs.requires_grad_()).view(B, -1, K)[:, -1]
    loss = (last - targets[:, -1]).square().sum()
    assert_close(of_inputs, torch.autograd.grad(loss, inputs)[0], 1e-10)


def test_the_norm_of_a_gradient_is_kept_where_its_square_would_underflow():
    vectors = torch.tensor([[3e-200, -4e-200], [3e200, 4e200], [0, 0]], dtype=torch.float64)
    expected = torch.tensor([5e-200, 5e200, 0], dtype=torch.float64)
    torch.testing.assert_close(dynamics.norm(vectors), expected, atol=0, rtol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_exponents_are_those_of_the_product_forward_in_time(kind):
    jacobians = [dynamics.jacobian(step) for step in dynamics.walk(make_cell(kind), draw(B, T, D))]
    qr, singular = dynamics.lyapunov_exponents(jacobians), dynamics.singular_exponents(jacobians)
    log_dets = torch.stack([torch.as_tensor(np.linalg.slogdet(j.numpy())[1]) for j in jacobians])
    for exponents in (qr, singular):
        assert_close(exponents.sum(-1), log_dets.mean(0))
    product = torch.linalg.multi_dot([j[0] for j in reversed(jacobians)])
    # The first axis is carried by the product itself, so its growth is the first exponent.
    assert qr[0, 0].item() == pytest.approx(product[:, 0].norm().log().item() / T, rel=1e-12)
    assert_close((T * singular[0]).exp(), torch.linalg.svdvals(product))
    # At short T the two are different measures.
    assert (qr[0].sort(descending=True).values - singular[0]).abs().max() > 1e-3


def test_exponents_in_closed_form():
    angle = torch.tensor(1.0, dtype=torch.float64)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 2, 2)
    triangular = draw(1, H, H).triu() + 2 * ONE
    for measure in (dynamics.lyapunov_exponents, dynamics.singular_exponents):
        expected = torch.full((1, 2), math.log(0.8), dtype=torch.float64)
        assert_close(measure([0.8 * rotation] * 50), expected)
    diagonal = triangular.diagonal(dim1=1, dim2=2).abs().log()
    assert_close(dynamics.lyapunov_exponents([triangular] * 50), diagonal)


def test_singular_exponents_keep_what_a_plain_product_loses():
    # J_t = Q_t S Q_{t-1}^T: the product is Q_T S^T Q_0^T, with singular values down to 1e-84.
    axes = torch.linalg.qr(draw(29, 1, H, H)).Q
    values = torch.logspace(0, -3, H, dtype=torch.float64)
    jacobians = [axes[t + 1] @ (values[:, None] * axes[t].mT) for t in range(28)]
    assert_close(dynamics.singular_exponents(jacobians), values.log()[None])
    naive = torch.linalg.svdvals(torch.linalg.multi_dot([j[0] for j in reversed(jacobians)]))
    assert naive[-1] > 1e-30


def test_over_examples_changes_nothing_but_the_order_of_work():
    inputs, shift, sizes = draw(5, T, D), draw(5, 1, 1), []
    torch.set_num_threads(2)
    measured = dynamics.over_examples(
        lambda x, y: sizes.append(len(x)) or (x + y).sum(1), inputs, shift, size=2
    )
    assert torch.get_num_threads() == 2 and sorted(sizes) == [1, 2, 2]
    assert_close(measured, (inputs + shift).sum(1))
