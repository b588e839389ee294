"""What a run measures: by hand, against the dynamics, and for cells that cannot be measured."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import test_dynamics
import torch
from test_dynamics import AGRU, EPSILON, GAMMA, TWO, B, D, H, K, at_rest, draw, make_cell
from torch import nn

from rnnbench_nb import dynamics, measures
from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import Report
from rnnbench_nb.runs import train_run
from rnnbench_nb.tasks.base import Part, Split

STEPS = 7


def finished(cell, inputs=None):
    """A run of a cell that has not been trained."""
    model, inputs = SequenceModel(cell, K).double(), draw(B, STEPS, D) if inputs is None else inputs
    targets, outputs = (draw(len(inputs), K, seed=seed) for seed in (3, 0))
    models = {"initial": model, "trained": copy.deepcopy(model)}
    data, task = Split(*3 * [Part(inputs, targets)]), test_dynamics.SquaredError()
    return measures.RunData(task, data, models, outputs, [model.recurrence()] * 2)


def only(frame, **values):
    """The row of a frame with these values."""
    (row,) = frame[(frame[list(values)] == pd.Series(values)).all(axis=1)].to_dict("records")
    return row


def test_spectra_of_a_known_matrix():
    cell = make_cell(AGRU, 2, gamma=0.5)
    with torch.no_grad():
        cell.candidate_weight.copy_(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))  # -0.5 +- 2i
        cell.log_epsilon.fill_(math.log(0.1))
    tables = measures.spectra(finished(cell)) | measures.training(finished(cell))
    row = only(tables["stability"], moment="trained")
    expected = {"epsilon": 0.1, "lambda_max": 2, "modulus_max": math.hypot(0.95, 0.2)}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert tables["training"]["epoch"].tolist() == [0, 1]
    assert tables["training"]["modulus_max"].tolist() == pytest.approx([math.hypot(0.95, 0.2)] * 2)
    modes = tables["spectra"].query("moment == 'initial'")
    assert modes["real"].tolist() == pytest.approx([-0.5, -0.5])
    assert modes["imaginary"].tolist() == pytest.approx([-2, 2])
    assert modes["frequency"].tolist() == pytest.approx([-2, 2])


def test_gradients_and_states_along_a_sequence():
    run = finished(make_cell(TWO))
    tables, model = measures.gradients(run), run.models["trained"]
    of_states, of_inputs = map(dynamics.norm, dynamics.gradients(model, run.task, *run.examples()))
    along = tables["along"].query("moment == 'trained'")
    assert along["step"].tolist() == list(range(STEPS + 1))
    assert along["log10_gradient"].tolist() == pytest.approx(of_states.log10().mean(0).tolist())
    states = model.cell(run.data.test.inputs)[0].norm(dim=-1).mean(0).tolist()
    assert along["state_norm"].tolist() == pytest.approx([0, *states])
    row = only(tables["memory"], moment="trained")
    decades = (of_states[:, 0] / of_states[:, -1]).log10().mean().item()
    assert row["decades"] == pytest.approx(decades)
    assert row["reach"] == measures.reach(of_inputs)


def test_a_long_curve_has_few_points():
    places = measures.even_places(785)
    assert (places[0], places[-1], len(places)) == (0, 784, measures.POINTS)
    assert measures.even_places(3).tolist() == [0, 1, 2]


def test_reach_is_the_first_input_that_still_matters():
    gradients = torch.tensor([[0.009, 0.011, 0, 1.0], [0, 0, 0, 5], [2, 0, 0, 0.1], [0, 0, 0, 0]])
    assert measures.reach(gradients) == (3 + 1 + 4 + 0) / 4


@pytest.mark.parametrize("short", [0, 100])
def test_exponents_are_means_of_ranked_directions(short, monkeypatch):
    monkeypatch.setattr(measures, "SHORT", short)
    cell = make_cell(CELLS["lstm"])
    for bias in (cell.bias_ih_l0, cell.bias_hh_l0):
        nn.init.zeros_(bias)
    inputs = draw(B, STEPS, D)
    inputs[1:, 0] = 0  # with zero biases the first step then erases half of the directions
    run = finished(cell, inputs)
    jacobians = list(map(dynamics.jacobian, dynamics.walk(cell, run.examples()[0])))
    measure = dynamics.singular_exponents if short else dynamics.lyapunov_exponents
    each = measure(jacobians).sort(descending=True).values
    assert (each == -math.inf).sum(-1).tolist() == [0, H, H] and not each.isnan().any()
    expected = [column[~column.isinf()].mean().item() for column in each.T]
    tables = measures.exponents(run)
    spectrum = tables["exponents"].query("moment == 'trained'")
    assert spectrum["exponent"].tolist() == pytest.approx(expected)
    assert (spectrum["position"].iloc[0], spectrum["position"].iloc[-1]) == (0, 1)
    row = only(tables["memory"], moment="initial")
    assert row["largest_exponent"] == pytest.approx(max(expected))
    assert row["lasting"] == np.mean(np.array(expected) > -1 / STEPS)


def test_growth_of_a_linear_agru_without_gates_has_the_closed_form():
    # Gates at 1/2 and the state at rest: every step is I + (epsilon / 4) (S - gamma I), normal.
    cell = at_rest(make_cell(AGRU))
    run = finished(cell, torch.zeros(2, STEPS, D))
    table = measures.growth(run)["growth"].query("moment == 'trained' and example == 1")
    grown = table.set_index("replacement")["gradient"]
    assert list(grown.index) == list(dynamics.REPLACEMENTS) and grown.dtype == "float32"
    g = dynamics.gradients(run.models["trained"], run.task, *run.examples())[0][1, -1]
    step = torch.eye(H) + EPSILON / 4 * cell.recurrent_matrix().detach()
    moved = g @ torch.linalg.matrix_power(step, STEPS)
    flow = -GAMMA * EPSILON / 4 * STEPS / math.log(10)
    for name, causes in dynamics.REPLACEMENTS.items():
        decades = (moved.norm() / g.norm()).log10() if "discrete step" in causes else flow
        assert grown[name] == pytest.approx(float(decades), rel=1e-5)


def test_damping_is_for_cells_that_tell_their_parts():
    row = only(measures.damping(finished(make_cell(AGRU)))["damping"], moment="trained")
    assert row["gamma"] == GAMMA and 0 <= row["none"] <= 1 and row["abnormality"] > 0
    free = only(measures.damping(finished(make_cell(AGRU, gamma=0.0)))["damping"], moment="trained")
    assert free["least"] > 0 or free["none"] == 1
    other = finished(make_cell(TWO))._replace(matrices=[{}])
    assert measures.damping(other) == measures.spectra(other) == measures.training(other) == {}


def test_reliability_by_hand():
    run = finished(make_cell(TWO))
    logits = torch.tensor([[0.0, 0.0], [0.0, 50.0], [50.0, 0.0]])
    test = run.data.test._replace(targets=torch.tensor([0, 1, 1]))
    run_of_classes = run._replace(outputs=logits, data=run.data._replace(test=test))
    table = measures.reliability(run_of_classes)["reliability"]
    full = table[table["count"] > 0]
    assert len(table) == measures.BINS and table["confidence"].isna().sum() == measures.BINS - 2
    assert full["count"].tolist() == [1, 2] and full["accuracy"].tolist() == [1, 0.5]
    assert full["confidence"].tolist() == pytest.approx([0.5, 1])
    assert full["low"].iloc[0] <= 0.5 < full["high"].iloc[0]
    assert measures.reliability(run) == {}  # numbers, not classes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "agru-seed42"
    values = {"model": "agru", "dataset": "digits", "hidden_size": 6, "epochs": 1}
    return train_run(run_parameters(values, "the test"), folder, report=lambda line: None)


def test_a_run_keeps_its_tables_keyed_by_variant_and_seed(trained):
    tables = trained.tables()
    names = "stability training spectra along exponents memory growth "
    names += "damping memoryless reliability calibration"
    assert {*names.split()} == set(tables)
    for name, table in tables.items():
        assert list(table.columns[:2]) == ["variant", "seed"], name
        assert set(zip(table["variant"], table["seed"], strict=True)) == {("agru", 42)}, name
    row = only(tables["stability"], moment="trained")
    at_best = only(tables["training"], epoch=trained.record["best_epoch"])
    assert at_best["modulus_max"] == pytest.approx(row["modulus_max"], rel=1e-6)
    assert 0.3 < tables["memoryless"]["floor"].item() < 0.9
    assert tables["reliability"]["count"].sum() == trained.record["data"]["test"]


def test_a_cell_that_cannot_be_measured_loses_those_tables_alone(monkeypatch):
    def broken(self, *tensors):
        raise ValueError("no derivative")

    monkeypatch.setattr(CELLS["agru"], "jacobian", broken)
    parameters = run_parameters({"model": "agru", "dataset": "digits", "hidden_size": 4}, "a test")
    tables, failures = measures.measure(parameters, finished(make_cell(AGRU)))
    assert failures == {"exponents": "ValueError: no derivative"}
    assert "exponents" not in tables and {"along", "growth", "memory"} <= set(tables)
    assert "largest_exponent" not in tables["memory"]
    assert tables["memoryless"][["judged", "right", "floor"]].values.tolist() == [["loss", 0, 0.25]]


def test_causes_share_the_growth_in_every_order(trained):
    rows = trained.tables()["growth"]
    decades, effects = measures.causes_of_growth(rows, "variant")
    whole, none = decades["whole"], decades["flow of the balanced path"]
    shares = effects.unstack("cause")
    torch.testing.assert_close(
        *(torch.tensor(x.to_numpy()) for x in (shares["Shapley"].sum(axis=1), whole - none))
    )
    first = whole - decades["flow of the path, with gates"]
    last = decades["step of the balanced path"] - none
    for column, expected in {"first": first, "last": last}.items():
        assert (shares[column, "discrete step"] - expected).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["noise_tuned", "pixel_mnist"])
def test_published_tables_have_the_columns_of_new_ones(name, trained):
    report = Report(PROJECT / f"reports/published/{name}")
    for table, rows in trained.tables().items():
        there = report.table(table)
        if not there.empty and table not in ("reliability", "growth"):
            assert set(there) == set(rows), table
