"""Every identity that the report leans on, as a test of the project's own functions.

Relative errors are below 1e-12, and below 1e-10 where a formula meets automatic differentiation.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from rnnbench_nb import dynamics
from rnnbench_nb.cells import CELLS, Cell
from rnnbench_nb.cells.base import TorchCell
from rnnbench_nb.cells.base import parameter as new_parameter
from rnnbench_nb.model import SequenceModel

B, T, D, H, K = 3, 5, 2, 6, 4
GAMMA, EPSILON = 0.3, 0.7
LSTM, GRU, AGRU = CELLS["lstm"], CELLS["gru"], CELLS["agru"]


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
    """The loss of a task, |outputs - targets|^2 summed over all but the examples."""

    def losses(self, outputs, targets, reduction="none"):
        return (outputs - targets).square().flatten(1).sum(1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_cell(kind: type, hidden: int = H, scale: float = 1.0, **options) -> nn.Module:
    """A cell in float64 whose every parameter, biases included, counts."""
    if kind is AGRU:
        options = {"gamma": GAMMA, "epsilon": EPSILON, **options}
    cell = kind(D, hidden, batch_first=True, **options).double()
    with torch.no_grad():
        for seed, parameter in enumerate(cell.parameters()):
            parameter.copy_(scale * draw(*parameter.shape, seed=seed) / math.sqrt(hidden))
        if kind is AGRU:
            cell.log_epsilon.fill_(math.log(EPSILON))  # it was rounded to float32
    return cell


def one_step(cell: nn.Module):
    """(state (n,), x (D,)) -> new state, by the library's own modules, to differentiate."""
    parameters = {k: v.detach() for k, v in cell.state_dict().items()}
    if not isinstance(cell, TorchCell):
        return lambda s, x: functional_call(cell, parameters, (x[None], s[None]))[1][0]
    kind = nn.LSTMCell if isinstance(cell, nn.LSTM) else nn.GRUCell
    twin = kind(D, cell.hidden_size).double()
    parameters = {name.removesuffix("_l0"): value for name, value in parameters.items()}
    if kind is nn.GRUCell:
        return lambda h, x: functional_call(twin, parameters, (x, h))
    return lambda s, x: torch.cat(functional_call(twin, parameters, (x, s.chunk(2))))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-12) -> None:
    """Equal up to `rtol` of the largest entry."""
    assert (actual - expected).abs().max() <= rtol * expected.abs().max()


def eigenvalues(matrix: torch.Tensor) -> torch.Tensor:
    """By imaginary part, of a general matrix: no symmetry is assumed, so none is imposed."""
    values = torch.linalg.eigvals(matrix)
    return values[values.imag.argsort()]


def log_abs_det(matrices: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.linalg.slogdet(matrices.numpy())[1])


# The cell and its exact step Jacobian


@pytest.mark.parametrize("kind", TYPES)
def test_states_are_those_of_the_module(kind):
    cell, inputs = make_cell(kind), draw(B, T, D)
    output, _ = cell(inputs)
    states = torch.stack([step.after for step in dynamics.walk(cell, inputs)], 1)
    assert states.shape == (B, T, kind.states * H)
    assert_close(states[..., :H], output.detach())


@pytest.mark.parametrize("kind", TYPES)
def test_jacobian_is_that_of_automatic_differentiation(kind):
    cell, inputs = make_cell(kind), draw(B, T, D)
    n = kind.states * H
    for t, step in enumerate(dynamics.walk(cell, inputs, start=draw(B, n, seed=9))):
        expected = vmap(jacrev(one_step(cell)))(step.before, inputs[:, t])
        assert_close(dynamics.jacobian(step), expected, 1e-10)


def terms_of(step: dynamics.Step) -> dict[str, torch.Tensor]:
    return step.cell.jacobian_terms(step.u, step.before, *step.prepared)


def gates_of(step: dynamics.Step) -> tuple[torch.Tensor, ...]:
    """z, r and c of an A-GRU, from its equations."""
    gates, a, _ = step.prepared
    u_z, u_r, u_c = step.u.chunk(3, -1)
    z, r = (u_z + step.before @ gates[:H].T).sigmoid(), (u_r + step.before @ gates[H:].T).sigmoid()
    return z, r, (u_c + (r * step.before) @ a.T).tanh()


def test_agru_terms_add_up_and_are_what_they_say():
    cell, inputs = make_cell(AGRU), draw(B, 1, D)
    (step,) = dynamics.walk(cell, inputs, start=draw(B, H, seed=9))
    terms = terms_of(step)
    assert torch.equal(sum(terms.values()), dynamics.jacobian(step))

    def frozen(h, x, z, r):  # the same step, but its gates do not depend on h
        candidate = cell.weight_ih[2 * H :] @ x + cell.bias[2 * H :]
        return h + EPSILON * z * torch.tanh(candidate + cell.recurrent_matrix() @ (r * h))

    expected = vmap(jacrev(frozen))(step.before, inputs[:, 0], *gates_of(step)[:2]).detach()
    assert_close(terms["identity"] + terms["path"], expected, 1e-10)


# Spectra


def frequencies(w: torch.Tensor) -> torch.Tensor:
    """Of S = W - W^T, ascending: the eigenvalues of the Hermitian matrix iS."""
    return torch.linalg.eigvalsh(1j * (w - w.mT))


@pytest.mark.parametrize("hidden", [6, 7])
def test_a_is_normal_with_shifted_spectrum(hidden):
    cell = make_cell(AGRU, hidden)
    a, w = cell.recurrent_matrix().detach(), cell.candidate_weight.detach()
    modes = frequencies(w)
    assert_close(eigenvalues(a), -GAMMA + 1j * modes)
    assert_close(a @ a.T, a.T @ a)
    singular_values = (GAMMA**2 + modes**2).sqrt().sort(descending=True).values
    assert_close(torch.linalg.svdvals(a), singular_values)
    grown = dynamics.abscissas(a)  # normal: the two abscissas are one, and so are the two norms
    assert_close(grown["abscissa"], grown["numerical_abscissa"])
    assert_close(dynamics.euler_radius(a), torch.linalg.svdvals(dynamics.euler_step(a))[0])
    assert dynamics.abnormality(a) < 1e-14
    assert_close(grown["abscissa"], torch.tensor(-GAMMA, dtype=torch.float64))


def test_defect_and_antisymmetric_part_by_hand():
    a = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]], dtype=torch.float64)
    symmetric = torch.tensor([[1.0, 2.0], [2.0, -1.0]], dtype=torch.float64)
    mixed = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)  # I + S + [[0, 1], [1, 0]]
    expected = [0, 1, math.sqrt(2 / 6)]
    assert dynamics.defect(torch.stack([a, symmetric, mixed])).tolist() == pytest.approx(expected)
    assert dynamics.antisymmetric_part(mixed).tolist() == [[0, 1], [-1, 0]]


def test_largest_stable_step_draws_the_line():
    generator = np.random.default_rng(0)
    modes = torch.from_numpy(generator.uniform(-2, 0.5, 5000) + 1j * generator.uniform(-3, 3, 5000))
    epsilon = torch.from_numpy(generator.uniform(0, 2, 5000))
    stable = (1 + epsilon * modes).abs() <= 1
    assert torch.equal(stable, epsilon <= dynamics.largest_stable_step(modes[:, None]))
    assert 0 < stable.sum() < 5000
    by_hand = {(-0.5 + 1j, -0.5 - 1j): 0.8, (-0.5 + 1j, -1): 0.8, (1j, -1): 0, (0.1, -1): 0,
               (0, -1): 2, (0, 0): math.inf}  # fmt: skip
    for pair, expected in by_hand.items():
        spectrum = torch.tensor(pair, dtype=torch.complex128)
        assert dynamics.largest_stable_step(spectrum).item() == pytest.approx(expected), pair


def modulus(frequency, gamma, epsilon):
    """|1 + epsilon (-gamma +- i lambda)|, by Pythagoras."""
    return ((1 - epsilon * gamma) ** 2 + (epsilon * frequency) ** 2) ** 0.5


def test_stability_by_hand():
    modes = torch.tensor([-0.01 + 1.6j, -0.01 - 1.6j], dtype=torch.complex128).repeat(2, 1)
    columns = dynamics.stability(modes, torch.tensor([1.0, 0.005], dtype=torch.float64))
    expected = {
        "epsilon": [1.0, 0.005],
        "lambda_max": [1.6, 1.6],
        "epsilon_lambda_max": [1.6, 0.008],
        "epsilon_max": [0.02 / 2.5601, 0.02 / 2.5601],
        "modulus_max": [math.sqrt(0.99**2 + 1.6**2), math.hypot(0.99995, 0.008)],
        "share_outside": [1.0, 0.0],
    }
    assert columns.keys() == expected.keys()
    for name, column in columns.items():
        assert column.tolist() == pytest.approx(expected[name], rel=1e-12), name


def test_two_steps_of_the_linear_operator():
    w = draw(8, 8)
    s = w - w.T
    a = s - GAMMA * torch.eye(8, dtype=torch.float64)
    modes, d = frequencies(w), draw(8, seed=1)

    euler = dynamics.euler_step(EPSILON * a)
    expected = (1 - EPSILON * GAMMA) ** 2 * d @ d + EPSILON**2 * (s @ d) @ (s @ d)
    assert_close((euler @ d).square().sum(), expected)
    positive = modes[modes > 0]
    log_det = ((1 - EPSILON * GAMMA) ** 2 + EPSILON**2 * positive**2).log().sum()
    assert_close(log_abs_det(euler), log_det)
    assert_close(modulus(modes, GAMMA, EPSILON).log().sum(), log_det)

    damping = torch.full((8,), math.exp(-GAMMA * EPSILON), dtype=torch.float64)
    assert_close(torch.linalg.svdvals(dynamics.exact_step(EPSILON * a)), damping)

    # Both agree to the order that Euler's claims: half the step is a quarter of the error.
    errors = [(dynamics.euler_step(x * a) - dynamics.exact_step(x * a)).abs().max()
              for x in (0.01, 0.005)]  # fmt: skip
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_growth_by_hand():
    jordan = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    columns = dynamics.abscissas(torch.stack([jordan, 2 * jordan]))
    assert columns["abscissa"].tolist() == [0, 0]
    assert columns["numerical_abscissa"].tolist() == pytest.approx([0.5, 1], rel=1e-12)
    assert dynamics.euler_radius(jordan) == 1 and dynamics.abnormality(jordan) == pytest.approx(
        2**0.5
    )


# Gates


def gate_gain(step: dynamics.Step) -> torch.Tensor:
    z, r, c = gates_of(step)
    return EPSILON * z * (1 - c**2) * r


def test_gated_a_has_real_parts_between_the_damping_of_its_gates():
    cell = make_cell(AGRU)
    *_, step = dynamics.walk(cell, draw(B, T, D))
    k, gain = terms_of(step)["path"], gate_gain(step)
    real = torch.linalg.eigvals(k).real
    assert (real >= -GAMMA * gain.amax(-1, keepdim=True) - 1e-12).all()
    assert (real <= -GAMMA * gain.amin(-1, keepdim=True) + 1e-12).all()
    assert torch.equal(dynamics.abscissas(k)["abscissa"], real.amax(-1))


def test_a_stable_gated_spectrum_can_still_grow_at_once():
    *_, step = dynamics.walk(make_cell(AGRU), draw(B, T, D))
    columns = dynamics.abscissas(terms_of(step)["path"])
    assert (columns["abscissa"] < 0).all()
    assert (columns["numerical_abscissa"] > 0.01).all()


# The parts of a step, and what stands in their place


def some_parts(**options):
    *_, step = dynamics.walk(make_cell(AGRU, **options), draw(B, T, D))
    return step, dynamics.parts_of(step)


@pytest.mark.parametrize("gamma", [0.0, GAMMA])
def test_the_balanced_path_has_the_spectrum_of_the_path_and_its_flow_cannot_grow(gamma):
    step, parts = some_parts(gamma=gamma)
    gain = gate_gain(step)
    s = parts.matrix + gamma * torch.eye(H, dtype=torch.float64)
    m = gain.sqrt()[..., None] * s * gain.sqrt()[:, None]
    n = dynamics.balanced(parts.path, parts.matrix)
    assert_close(n, m - gamma * torch.diag_embed(gain))
    for mine, theirs in zip(n, parts.path, strict=True):
        assert_close(eigenvalues(mine).imag, eigenvalues(theirs).imag)
    q = torch.diag_embed(gain)
    assert_close((n + n.mT) / 2 + 1, 1 - gamma * q)
    assert_close(n @ n.mT - n.mT @ n + 1, 1 + 2 * gamma * (q @ m - m @ q))
    norm = torch.linalg.matrix_norm
    defect = 2 * gamma * norm(q @ m - m @ q) / norm(n) ** 2
    assert (dynamics.abnormality(n) - defect).abs().max() < 1e-14
    assert torch.linalg.svdvals(dynamics.exact_step(n)).max() <= 1 + 1e-14
    assert torch.linalg.svdvals(dynamics.exact_step(parts.path)).max() > 1.001


def test_each_replacement_is_what_its_name_says():
    step, parts = some_parts()
    p, g, n = parts.path, parts.gates, dynamics.balanced(parts.path, parts.matrix)
    one, exp = torch.eye(H, dtype=torch.float64), torch.linalg.matrix_exp
    expected = {
        "whole": dynamics.jacobian(step),
        "step of the path": one + p,
        "flow of the path, with gates": exp(p) + g,
        "flow of the path": exp(p),
        "step of the balanced path, with gates": one + n + g,
        "step of the balanced path": one + n,
        "flow of the balanced path, with gates": exp(n) + g,
        "flow of the balanced path": exp(n),
    }
    found = dynamics.replaced(parts)
    assert list(found) == list(expected) == list(dynamics.REPLACEMENTS)
    for name, j in expected.items():
        assert_close(found[name], j)
    left = [frozenset(causes) for causes in dynamics.REPLACEMENTS.values()]
    assert len(set(left)) == 2 ** len(dynamics.CAUSES)  # every way to leave some in


def test_growth_from_end_to_end_by_hand():
    product = torch.tensor([[[100.0, 0.0], [0.0, 0.1]]], dtype=torch.float64)
    grown = dynamics.end_to_end(product, torch.tensor([[0.0, 3.0]], dtype=torch.float64))
    assert grown["gradient"].item() == pytest.approx(-1)
    assert grown["random"].item() == pytest.approx(math.log10(math.sqrt(10000.01 / 2)))
    assert grown["largest"].item() == pytest.approx(math.log(100)) and grown["growing"] == 0.5


def test_the_least_damping_is_that_of_theory_where_the_gates_are_even():
    cell = at_rest(make_cell(AGRU, 2))
    with torch.no_grad():
        cell.candidate_weight.copy_(torch.tensor([[0, 2], [0, 0]]))  # lambda = 2
    *_, step = dynamics.walk(cell, torch.zeros(1, 1, D))
    parts, gain = dynamics.parts_of(step), EPSILON / 4  # both gates are 1/2
    expected = (1 - math.sqrt(1 - (gain * 2) ** 2)) / gain  # (1 - q g)^2 + (q lambda)^2 = 1
    found = dynamics.least_damping(parts, GAMMA, halvings=30)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    wild = parts._replace(path=parts.path + 10 * (parts.path - parts.path.mT))  # lambda too large
    assert dynamics.least_damping(wild, GAMMA).tolist() == [math.inf]


def at_rest(cell):
    """The cell with open gates at one half and no bias: a linear one, for a small state."""
    with torch.no_grad():
        cell.gate_weight.zero_()
        cell.bias.zero_()
    return cell


# Gradient flow and Lyapunov exponents


@pytest.mark.parametrize("read", ["last", "every"])
@pytest.mark.parametrize("kind", TYPES)
def test_gradients_flow_back_by_the_jacobians(kind, read):
    cell, inputs, targets = make_cell(kind), draw(B, T, D), draw(B, T, K, seed=3)
    model = SequenceModel(cell, K, dropout=0.5, read=read).double()
    asked = targets[:, -1] if read == "last" else targets
    found, _ = dynamics.gradients(model, SquaredError(), inputs, asked)
    steps = list(dynamics.walk(cell, inputs))
    errors = model.head(steps[-1].after[:, :H]).detach() - targets[:, -1]
    g = torch.zeros(B, kind.states * H, dtype=torch.float64)
    g[:, :H] = 2 * errors @ model.head.weight.detach()  # only h is read out
    expected = [g]
    for step in reversed(steps):
        expected.insert(0, torch.einsum("bij,bi->bj", dynamics.jacobian(step), expected[0]))
    assert_close(found, torch.stack(expected, 1), 1e-10)  # g_{t-1} = J_t^T g_t


@pytest.mark.parametrize("kind", TYPES)
def test_exponents_sum_to_the_log_determinant(kind):
    jacobians = [dynamics.jacobian(step) for step in dynamics.walk(make_cell(kind), draw(B, T, D))]
    expected = torch.stack([log_abs_det(j) for j in jacobians]).mean(0)
    assert_close(dynamics.lyapunov_exponents(jacobians).sum(-1), expected)
    assert_close(dynamics.singular_exponents(jacobians).sum(-1), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_products_are_taken_forward_in_time(kind):
    jacobians = [dynamics.jacobian(step) for step in dynamics.walk(make_cell(kind), draw(B, T, D))]
    product = torch.linalg.multi_dot([j[0] for j in reversed(jacobians)])
    qr = dynamics.lyapunov_exponents(jacobians)[0]
    # The first axis is carried by the product itself, so its growth is the first exponent.
    assert qr[0].item() == pytest.approx(product[:, 0].norm().log().item() / T, rel=1e-12)
    singular = dynamics.singular_exponents(jacobians)[0]
    assert_close((T * singular).exp(), torch.linalg.svdvals(product))
    # At short T the two are different measures.
    assert (qr.sort(descending=True).values - singular).abs().max() > 1e-3


def test_exponents_in_closed_form():
    angle = torch.tensor(1.0, dtype=torch.float64)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 2, 2)
    triangular = draw(1, H, H).triu() + 2 * torch.eye(H, dtype=torch.float64)
    diagonal = triangular.diagonal(dim1=1, dim2=2).abs().log()
    for measure in (dynamics.lyapunov_exponents, dynamics.singular_exponents):
        expected = torch.full((1, 2), math.log(0.8), dtype=torch.float64)
        assert_close(measure([0.8 * rotation] * 50), expected)
    assert_close(dynamics.lyapunov_exponents([triangular] * 50), diagonal)


def test_singular_exponents_keep_what_a_plain_product_loses():
    # J_t = Q_t S Q_{t-1}^T: the product is Q_T S^T Q_0^T, with singular values down to 1e-84.
    axes = torch.linalg.qr(draw(29, 1, H, H)).Q
    values = torch.logspace(0, -3, H, dtype=torch.float64)
    jacobians = [axes[t + 1] @ (values[:, None] * axes[t].mT) for t in range(28)]
    assert_close(dynamics.singular_exponents(jacobians), values.log()[None])
    naive = torch.linalg.svdvals(torch.linalg.multi_dot([j[0] for j in reversed(jacobians)]))
    assert naive[-1] > 1e-30


def test_qr_exponents_of_the_euler_step_are_off_by_order_one_over_t():
    frequencies = torch.tensor([2.0, 1.0, 0.4], dtype=torch.float64)
    w = torch.zeros(6, 6, dtype=torch.float64)
    w[[0, 2, 4], [1, 3, 5]] = frequencies
    axes = torch.linalg.qr(draw(6, 6)).Q
    a = axes @ (w - w.T - GAMMA * torch.eye(6, dtype=torch.float64)) @ axes.T
    expected = modulus(frequencies, GAMMA, EPSILON).log().repeat_interleave(2)
    for length in (28, 784):
        jacobians = [dynamics.euler_step(EPSILON * a)[None]] * length
        error = (dynamics.lyapunov_exponents(jacobians)[0] - expected).abs().max()
        assert 0.1 / length < error < 3 / length


def test_an_erased_direction_has_exponent_minus_infinity():
    # With zero biases and inputs c stays 0, so h' = o c' whatever h was: H of 2H directions go.
    cell = make_cell(LSTM)
    for parameter in (cell.bias_ih_l0, cell.bias_hh_l0):
        nn.init.zeros_(parameter)
    inputs = draw(B, T, D)
    inputs[:, 0] = 0
    for measure in (dynamics.lyapunov_exponents, dynamics.singular_exponents):
        exponents = measure(map(dynamics.jacobian, dynamics.walk(cell, inputs)))
        assert (exponents == -math.inf).sum(-1).tolist() == [H] * B
        assert exponents.isnan().sum() == 0


def test_over_examples_changes_nothing_but_the_order_of_work():
    cell, inputs = make_cell(GRU), draw(5, T, D)

    sizes = []

    def norms(part, shift):
        sizes.append(len(part))
        steps = dynamics.walk(cell, part + shift)
        return torch.stack([step.after.norm(dim=-1) for step in steps], 1)

    torch.set_num_threads(2)
    measured = dynamics.over_examples(norms, inputs, torch.ones(5, 1, 1), size=2)
    assert torch.get_num_threads() == 2
    assert sorted(sizes) == [1, 2, 2]
    assert_close(measured, norms(inputs, 1.0))


def test_gradients_of_inputs_are_those_of_automatic_differentiation():
    cell, inputs, asked = make_cell(TWO), draw(B, T, D), draw(B, K, seed=2)
    model = SequenceModel(cell, K).double()
    states, of_inputs = dynamics.sensitivities(model, SquaredError(), inputs, asked)
    assert states.shape == (B, T + 1)
    inputs.requires_grad_()
    expected = torch.autograd.grad(SquaredError().losses(model(inputs), asked).sum(), inputs)[0]
    torch.testing.assert_close(of_inputs, expected.norm(dim=-1), rtol=1e-9, atol=0)


def test_the_size_of_a_gradient_is_kept_where_its_square_would_underflow():
    vectors = torch.tensor([[3e-200, -4e-200], [3e200, 4e200], [0, 0]], dtype=torch.float64)
    expected = torch.tensor([5e-200, 5e200, 0], dtype=torch.float64)
    torch.testing.assert_close(dynamics._size(vectors), expected, atol=0, rtol=1e-12)
