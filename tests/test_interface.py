"""The interface of torch.nn.GRU, which every cell has."""

import inspect

import pytest
import torch
from torch import nn

from rnnbench_nb.cells import AGRU, CELLS, GRU
from rnnbench_nb.errors import UserError

each_cell = pytest.mark.parametrize("kind", CELLS.values(), ids=CELLS)


def flat(state):
    return torch.cat(state, -1) if isinstance(state, tuple) else state


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


@each_cell
def test_arguments_stand_where_torch_has_them(kind):
    torchs = list(inspect.signature(nn.RNNBase).parameters)
    expected = [name for name in torchs if name not in ("mode", "proj_size")]
    assert [*inspect.signature(kind).parameters] == [*expected, "options"]
    made = kind(5, 8, 1, True, True, 0.0, False, "cpu", torch.float64)
    assert made.batch_first and {p.dtype for p in made.parameters()} == {torch.float64}
    made.flatten_parameters()
    output, state = made(torch.rand(2, 3, 5, dtype=torch.float64), hx=None)
    assert output.shape == (2, 3, 8) and flat(state).shape == (1, 2, made.state_size)
    assert next(kind(5, 8, device="meta").parameters()).is_meta


@pytest.mark.parametrize("kind", [AGRU, GRU])
@pytest.mark.parametrize(
    "arguments",
    [{"num_layers": 2}, {"bias": False}, {"dropout": 0.5}, {"bidirectional": True}],
    ids=str,
)
def test_what_is_not_served_is_refused(kind, arguments):
    with pytest.raises(UserError, match=f"{kind.label} has one layer, one direction, biases"):
        kind(2, 3, **arguments)
    with pytest.raises(UserError, match=f"{kind.label}: unknown key 'proj_size'"):
        kind(2, 3, proj_size=2)


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
    assert made.served == "not called yet"
    made(torch.zeros(2, 1, 3))
    first = made.served
    assert first.startswith(("kernel (", "loop", "torch.nn"))
    made.double()(torch.zeros(2, 1, 3, dtype=torch.float64))
    if first.startswith("kernel"):
        assert made.served == "loop: it computes in float32, not float64"
    else:
        assert made.served == first
