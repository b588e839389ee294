import pytest
import torch
from torch import nn

from rnnbench_nb.config import RunParameters
from rnnbench_nb.errors import UserError
from rnnbench_nb.models import FORGET_BIAS, MODELS, Model, build_model, count
from rnnbench_nb.seeds import generator


def build(model, input_size=28, **values):
    parameters = RunParameters(model=model, **values)
    random = generator(parameters.seed, "initialisation")
    return build_model(parameters, input_size, 10, random), parameters


@pytest.mark.parametrize(
    ("model", "total", "free", "pixel"),
    [
        ("lstm", 82_186, 81_674, 68_362),
        ("gru", 61_962, 61_706, 51_594),
        ("agru", 61_579, 53_323, 51_211),
    ],
)
def test_parameter_counts(model, total, free, pixel):
    assert count(*build(model)) == (total, free)
    assert count(*build(model, input_size=1))[0] == pixel


@pytest.mark.parametrize(("control", "total"), [("frozen", 61_579 - 128**2), ("free", 61_579)])
def test_the_controls_have_no_redundant_parameters(control, total):
    assert count(*build("agru", recurrence=control)) == (total, total)


@pytest.mark.parametrize("model", MODELS)
def test_one_initialisation_for_all(model):
    built, _ = build(model, hidden_size=64, num_layers=2)
    bound = 1 / 8
    for name, parameter in built.named_parameters():
        if "weight" in name:
            for gate in parameter.split(64):  # the same bound in every gate, and it is reached
                assert 0.9 * bound < gate.abs().max() <= bound, name
        elif "bias" in name and model != "lstm":
            assert not parameter.any(), name


def test_the_forget_bias_is_what_is_said_once():
    built, _ = build("lstm")
    i, f, g, o = (built.cell.bias_ih_l0 + built.cell.bias_hh_l0).view(4, -1)
    assert (f == FORGET_BIAS).all()
    assert not torch.cat([i, g, o]).any()


@pytest.mark.parametrize("model", MODELS)
def test_the_start_depends_on_the_seed_alone(model):
    torch.manual_seed(0)
    first = build(model)[0].state_dict()
    torch.manual_seed(1)
    torch.rand(10)
    again, other = build(model)[0].state_dict(), build(model, seed=43)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("model", MODELS)
def test_the_head_reads_the_top_layers_last_state(model):
    built, _ = build(model, num_layers=2)
    inputs = torch.rand(3, 5, 28)
    output, _ = built.cell(inputs)
    torch.testing.assert_close(built(inputs), built.head(output[:, -1]))


@pytest.mark.parametrize("model", MODELS)
def test_dropout_means_something_with_one_layer(model):
    built, _ = build(model, dropout=0.5)
    inputs = torch.rand(3, 5, 28)
    assert not torch.equal(built(inputs), built(inputs))
    built.eval()
    assert torch.equal(built(inputs), built(inputs))


def test_only_the_antisymmetric_matrix_is_tracked():
    built, _ = build("agru", epsilon=0.5)
    tracked = built.tracked()
    assert torch.equal(tracked["weight_hh"], built.cell.weight_hh_l0[256:])
    torch.testing.assert_close(tracked["epsilon"], torch.tensor(0.5))
    assert build("gru")[0].tracked() == {}


def test_a_frozen_matrix_is_drawn_by_the_seed_like_the_others():
    first, other = (build("agru", recurrence="frozen", seed=seed)[0] for seed in (42, 43))
    again = build("agru", recurrence="frozen")[0]
    w, w_other = first.cell.weight_frozen_l0, other.cell.weight_frozen_l0
    assert 0.08 < w.abs().max() <= 1 / 128**0.5
    assert torch.equal(w, again.cell.weight_frozen_l0) and not torch.equal(w, w_other)


def test_the_initial_scale_acts_on_the_recurrent_matrix_alone():
    plain, scaled = (
        build("agru", num_layers=2, initial_scale=scale)[0].state_dict() for scale in (1.0, 0.5)
    )
    for layer in (0, 1):
        plain[f"cell.weight_hh_l{layer}"][256:] *= 0.5
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)


def test_a_new_row_is_all_that_a_new_model_needs(monkeypatch):
    row = Model(lambda _, **sizes: nn.RNN(**sizes), lambda parameters: parameters.hidden_size)
    monkeypatch.setitem(MODELS, "rnn", row)
    built, parameters = build("rnn")
    assert built(torch.rand(2, 4, 28)).shape == (2, 10)
    assert count(built, parameters)[0] - count(built, parameters)[1] == 128


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="model: 'agr' is unknown; it must be one of lstm, gru"):
        build("agr")
