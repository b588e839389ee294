"""Foreign modules as cells: their counts, start, states, Jacobians and refusals."""

import pytest
import torch

from rnnbench_nb import dynamics
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.model import build_model
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.seeds import generator

FILE = '''
import torch

class Leaky(torch.nn.Module):
    """h' = h / 2 + tanh(W x) / 2, with a state (B, H)."""

    def __init__(self, input_size, hidden_size, batch_first):
        super().__init__()
        self.mix = torch.nn.Linear(input_size, hidden_size, bias=False)

    def forward(self, x, h=None):
        h, states = x.new_zeros(len(x), self.mix.out_features) if h is None else h, []
        for x_t in x.unbind(1):
            h = h / 2 + torch.tanh(self.mix(x_t)) / 2
            states.append(h)
        return torch.stack(states, 1), h

class Deaf(Leaky):
    def forward(self, x, h=None):
        return super().forward(x, h)[0]

class Scaled(Leaky):
    def forward(self, x, h=None):
        states, h = super().forward(x, h)
        return 2 * states, h
'''


@pytest.fixture
def leaky(tmp_path):
    (tmp_path / "leaky.py").write_text(FILE)
    return f"{tmp_path}/leaky.py"


def make(module, **arguments):
    torch.manual_seed(0)
    return CELLS["module"](3, 4, batch_first=True, module=module, arguments=arguments).double()


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_torchs_gru_has_the_outputs_and_jacobians_of_our_cell():
    foreign, ours = make("torch.nn:GRU"), CELLS["gru"](3, 4, batch_first=True).double()
    ours.load_state_dict(foreign.inner.state_dict())
    x, h = random(2, 5, 3), random(2, 4)
    torch.testing.assert_close(foreign(x, h[None])[0], ours(x, h[None])[0])
    assert foreign.path == "torch.nn:GRU"
    jacobian = ours.jacobian(ours.drive(x[:, 0]), h, *ours.prepare())
    torch.testing.assert_close(foreign.jacobian(foreign.drive(x[:, 0]), h), jacobian)


def test_steps_of_a_module_in_a_file_are_its_forward_pass_and_differentiate_right(leaky):
    made, x, start = make(f"{leaky}:Leaky"), random(2, 5, 3), random(2, 4)
    output, last = made(x, start[None])
    steps = list(dynamics.walk(made, x, start))
    torch.testing.assert_close(torch.stack([s.after for s in steps], 1), output)
    torch.testing.assert_close(steps[-1].after, last[0])
    halves = torch.eye(4, dtype=torch.float64).expand(2, 4, 4) / 2
    torch.testing.assert_close(dynamics.jacobian(steps[0]), halves)


@pytest.mark.parametrize("module", ["torch.nn:LSTM", "leaky:Scaled"])
def test_a_state_that_is_not_the_last_output_leaves_the_outputs_and_no_jacobian(leaky, module):
    made = make(module.replace("leaky", leaky))
    output, last = made(random(2, 5, 3))
    assert torch.equal(output, made.inner(random(2, 5, 3))[0])
    assert torch.equal(last[0], output[:, -1])
    with pytest.raises(UserError, match="is not its last output"):
        next(dynamics.walk(made, random(2, 5, 3)))


def test_it_keeps_its_own_start():
    values = {"model": "module", "module": "torch.nn:GRU", "hidden_size": 6}
    parameters = run_parameters(values, "the test")
    one, same, other = (
        build_model(parameters, 5, 3, generator(seed, "test")) for seed in (1, 1, 2)
    )
    biases = [model.cell.inner.bias_hh_l0 for model in (one, same, other)]
    assert biases[0].any()  # the common start has no biases
    assert torch.equal(biases[0], biases[1]) and not torch.equal(biases[0], biases[2])


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("torch.nn:Nobody", {}, "module: 'torch.nn:Nobody' cannot be built .AttributeError"),
        ("nowhere:GRU", {}, "cannot be built .ModuleNotFoundError: No module named 'nowhere'"),
        ("missing.py:GRU", {}, "cannot be built .FileNotFoundError"),
        ("torch.nn:Linear", {}, "cannot be built .TypeError: .* 'batch_first'"),
        ("torch.nn:GRU", {"bidirectional": True}, "does not return outputs .B, T, H."),
        ("leaky:Deaf", {}, "does not return outputs"),
    ],
)
def test_what_cannot_take_part_is_refused_with_what_to_do(module, arguments, message, leaky):
    with pytest.raises(UserError, match=message):
        make(module.replace("leaky", leaky), **arguments)
