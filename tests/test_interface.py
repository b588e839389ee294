"""The interface of torch.nn.GRU, which every cell has."""

import inspect

import pytest
import torch
from torch import nn

from rnnbench_nb.cells import AGRU, CELLS, GRU, Cell
from rnnbench_nb.errors import UserError

each_cell = pytest.mark.parametrize("kind", CELLS.values(), ids=CELLS)


def flat(state):
    return torch.cat(state, -1) if isinstance(state, tuple) else state


@each_cell
def test_arguments_stand_where_torch_has_them(kind):
    names = [name for name in inspect.signature(kind).parameters if name != "options"]
    torchs = list(inspect.signature(nn.RNNBase).parameters)
    torchs = [name for name in torchs if name not in ("mode", "proj_size")]
    assert names == torchs
    made = kind(5, 8, 1, True, True, 0.0, False, "cpu", torch.float64)
    assert made.batch_first and {p.dtype for p in made.parameters()} == {torch.float64}
    made.flatten_parameters()
    output, state = made(torch.rand(2, 3, 5, dtype=torch.float64), hx=None)
    assert output.shape == (2, 3, 8) and flat(state).shape == (1, 2, made.state_size)
    assert next(kind(5, 8, device="meta").parameters()).is_meta


@each_cell
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_layouts_hold_the_same_numbers(kind, batch_first, batched, with_state):
    torch.manual_seed(0)
    plain, x = kind(3, 4), torch.rand(5, 2, 3)
    made = kind(3, 4, batch_first=batch_first)
    made.load_state_dict(plain.state_dict())
    parts = plain.states if isinstance(plain, nn.LSTM) else 1
    start = torch.rand(1, 2, plain.state_size).chunk(parts, -1)

    def state(*tensors):
        return (tensors if parts > 1 else tensors[0]) if with_state else None

    want, want_last = plain(x, state(*start))
    if batched:
        output, last = made(x.transpose(0, 1) if batch_first else x, state(*start))
        output = output.transpose(0, 1) if batch_first else output
    else:
        output, last = made(x[:, 1], state(*(h[:, 1] for h in start)))
        want, want_last = want[:, 1], flat(want_last)[:, 1]
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(flat(last), flat(want_last))
    torch.testing.assert_close(flat(last)[0, ..., :4], want[-1])


@pytest.mark.parametrize("kind", [AGRU, GRU])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, "input_size must be a positive integer, got 0"),
        ({"hidden_size": 1.5}, "hidden_size must be a positive integer, got 1.5"),
        ({"num_layers": 2}, "is served with num_layers=1, got 2"),
        ({"num_layers": True}, "num_layers must be a positive integer, got True"),
        ({"bias": False}, "is served with bias=True, got False"),
        ({"dropout": 0.5}, "is served with dropout=0, got 0.5"),
        ({"bidirectional": True}, "is served with bidirectional=False, got True"),
        ({"proj_size": 3}, "unknown key 'proj_size'"),
    ],
)
def test_what_is_not_served_is_refused(kind, arguments, message):
    with pytest.raises(UserError, match=message):
        kind(**{"input_size": 2, "hidden_size": 3, **arguments})
    for epsilon in (0, float("inf"), float("nan"), "big"):
        with pytest.raises(UserError, match="A-GRU: epsilon: input should be"):
            AGRU(2, 3, epsilon=epsilon)


@pytest.mark.parametrize(
    ("x", "h_0", "message"),
    [
        (torch.zeros(5), None, "2 or 3 dimensions, got 1"),
        (torch.zeros(5, 2, 4), None, "input_size 3, got 4"),
        (torch.zeros(0, 2, 3), None, "at least one time step"),
        (torch.zeros(5, 2, 3), torch.zeros(1, 1, 4), r"shape \(1, 2, 4\), got \(1, 1, 4\)"),
        (torch.zeros(5, 2, 3), torch.zeros(2, 4), r"shape \(1, 2, 4\), got \(2, 4\)"),
        (torch.zeros(5, 3), torch.zeros(2, 1, 4), r"shape \(1, 4\), got \(2, 1, 4\)"),
        (torch.zeros(5, 2, 3), torch.zeros(1, 2, 4).double(), "must be torch.float32 as the weig"),
        (nn.utils.rnn.pack_sequence([torch.rand(2, 3)]), None, "takes a tensor, not a PackedSeq"),
    ],
)
def test_wrong_calls_are_refused(x, h_0, message):
    with pytest.raises(UserError, match=message):
        AGRU(3, 4)(x, h_0)


@each_cell
def test_a_reset_draws_again_and_leaves_frozen_what_was_frozen(kind):
    made = kind(3, 4)
    for index, tensor in enumerate(made.parameters()):
        tensor.requires_grad_(index % 2 == 0)
    before = [(tensor.clone(), tensor.requires_grad) for tensor in made.parameters()]
    made.reset_parameters()
    after = list(made.parameters())
    assert [trained for _, trained in before] == [tensor.requires_grad for tensor in after]
    assert any(not torch.equal(old, new) for (old, _), new in zip(before, after, strict=True))


def test_the_description_names_what_is_not_default():
    assert repr(AGRU(2, 3)) == "AGRU(2, 3)" and repr(GRU(2, 3, chrono=7)) == "GRU(2, 3, chrono=7)"
    made = AGRU(2, 3, batch_first=True, gamma=2, learnable_epsilon=False)
    assert repr(made) == "AGRU(2, 3, batch_first=True, gamma=2.0, learnable_epsilon=False)"


@each_cell
def test_a_cell_says_what_served_the_last_call(kind):
    made = kind(3, 4)
    assert isinstance(made, Cell) and made.served == "not called yet"
    made(torch.zeros(2, 1, 3))
    first = made.served
    assert first.startswith(("kernel (", "loop", "torch.nn"))
    made.double()(torch.zeros(2, 1, 3, dtype=torch.float64))
    if first.startswith("kernel"):
        assert made.served == "loop: it computes in float32, not float64"
    else:
        assert made.served == first
