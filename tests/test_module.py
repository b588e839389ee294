"""Foreign modules as cells: their counts, start, states, Jacobians and refusals."""

import pytest
import torch
from torch import nn

from rnnbench_nb import dynamics
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.model import build_model, count
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.seeds import generator

FILE = '''
import torch

class Leaky(torch.nn.Module):
    """h' = h / 2 + tanh(W x) / 2, which keeps no state of a torch cell's shape if `odd`."""

    def __init__(self, input_size, hidden_size, batch_first, odd=False):
        super().__init__()
        self.mix, self.odd = torch.nn.Linear(input_size, hidden_size, bias=False), odd

    def forward(self, x, state=None):
        h, states = x.new_zeros(len(x), self.mix.out_features) if state is None else state[0], []
        for x_t in x.unbind(1):
            h = h / 2 + torch.tanh(self.mix(x_t)) / 2
            states.append(h)
        return torch.stack(states, 1), [h] if self.odd else h[None]

class Deaf(Leaky):
    def forward(self, x, state=None):
        return super().forward(x, state)[0]
'''


@pytest.fixture
def leaky(tmp_path):
    (tmp_path / "leaky.py").write_text(FILE)
    return f"{tmp_path}/leaky.py:Leaky"


def make(module, **arguments):
    torch.manual_seed(0)
    return CELLS["module"](3, 4, batch_first=True, module=module, arguments=arguments).double()


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_torchs_own_modules_have_the_outputs_and_jacobians_of_our_cells(kind):
    foreign = make(f"torch.nn:{kind}")
    ours = CELLS[kind.lower()](3, 4, batch_first=True).double()
    ours.load_state_dict(foreign.inner.state_dict())
    x, state = random(2, 5, 3), random(2, foreign.state_size)
    torch.testing.assert_close(foreign(x)[0], ours(x)[0])
    assert foreign.served == f"torch.nn:{kind}"
    u = x[:, 0]
    jacobian = ours.jacobian(ours.drive(u), state, *ours.prepare())
    torch.testing.assert_close(foreign.jacobian(foreign.drive(u), state), jacobian)


@pytest.mark.parametrize(
    ("module", "arguments", "n"),
    [
        ("torch.nn:RNN", {}, 4),
        ("torch.nn:LSTM", {"num_layers": 2}, 16),
        ("leaky", {}, 4),
        ("ncps.torch:CfC", {}, 4),  # of a published package
        ("ncps.torch:CfC", {"mixed_memory": True}, 8),
    ],
)
def test_steps_are_the_forward_pass_and_differentiate_right(module, arguments, n, leaky):
    if module.startswith("ncps"):
        pytest.importorskip("ncps")
    made = make(leaky if module == "leaky" else module, **arguments)
    assert made.state_size == n
    x, start = random(2, 5, 3), random(2, n)
    output, last = made(x, start[None])
    steps = list(dynamics.walk(made, x, start))
    torch.testing.assert_close(torch.stack([s.after[:, :4] for s in steps], 1), output)
    torch.testing.assert_close(steps[-1].after, last[0])
    u, shift = x[:, 0], 1e-6 * torch.eye(n, dtype=torch.float64)
    columns = [(made.step(u, start + s) - made.step(u, start - s)) / 2e-6 for s in shift]
    numeric = torch.stack(columns, -1)
    torch.testing.assert_close(dynamics.jacobian(steps[0]), numeric, rtol=1e-6, atol=1e-8)


def test_a_state_of_another_shape_leaves_the_outputs_and_no_jacobian(leaky):
    made = make(leaky, odd=True)
    output, last = made(random(2, 5, 3))
    assert torch.equal(last[0], output[:, -1])
    with pytest.raises(UserError, match="has no state that is like a torch cell's"):
        next(dynamics.walk(made, random(2, 5, 3)))


def test_it_keeps_its_own_start_and_all_its_parameters_count():
    values = {"model": "module", "module": "torch.nn:GRU", "hidden_size": 6}
    parameters = run_parameters(values, "the test")
    model = build_model(parameters, 5, 3, generator(1, "initialisation"))
    assert model.cell.inner.bias_hh_l0.any()  # the common start has no biases
    trained = sum(p.numel() for p in [*nn.GRU(5, 6).parameters(), *nn.Linear(6, 3).parameters()])
    assert count(model) == (trained, trained)


def test_a_protocol_names_it_in_a_variant(tmp_path, leaky):
    path = tmp_path / "p.yaml"
    path.write_text(f"models: [gru, mine]\nvariants: {{mine: {{module: '{leaky}'}}}}\n")
    parameters = load_protocol(path).parameterisations
    assert parameters["mine"].model == "module" and parameters["mine"].cell_options.module == leaky
    assert list(parameters) == ["gru", "mine"]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("torch.nn:Nobody", {}, "module: 'torch.nn:Nobody' cannot be imported .AttributeError"),
        ("nowhere:GRU", {}, "cannot be imported .ModuleNotFoundError: No module named 'nowhere'"),
        ("missing.py:GRU", {}, "cannot be imported .FileNotFoundError"),
        ("torch.nn:Linear", {}, "module: torch.nn:Linear: TypeError: .* 'batch_first'"),
        ("torch.nn:GRU", {"bidirectional": True}, "does not return outputs .B, T, H."),
        ("leaky:Deaf", {}, "does not return outputs"),
    ],
)
def test_what_cannot_take_part_is_refused_with_what_to_do(module, arguments, message, leaky):
    with pytest.raises(UserError, match=message):
        make(module.replace("leaky:", leaky.rpartition(":")[0] + ":"), **arguments)
