"""What makes gradients grow: the closed form of a linear A-GRU, causes by hand, and a report."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_dynamics import (
    AGRU,
    EPSILON,
    GAMMA,
    D,
    SquaredError,
    at_rest,
    draw,
    frequencies,
    make_cell,
    modulus,
)
from test_gradients import folder  # noqa: F401 (a fixture)

from rnnbench_nb import analyses
from rnnbench_nb.analyses import growth
from rnnbench_nb.cells import CELLS
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.report import Report

STEPS = 7


@pytest.mark.parametrize(
    ("decades", "said"),
    [(0.3, "is kept"), (-0.3, "is kept"), (0.31, "grows"), (-1, "shrinks"), (2.1, "explodes"),
     (-2.1, "vanishes")],
)  # fmt: skip
def test_words_have_their_thresholds(decades, said):
    assert growth.word(decades) == said and f"*{said}*" in growth.WORDS


def test_a_linear_agru_without_gates_has_the_closed_form():
    # Gates at 1/2 and the state at rest: every step is I + (epsilon / 4) (S - gamma I), normal.
    cell = at_rest(make_cell(AGRU))
    model = SequenceModel(cell, 3).double()
    rows = growth.growth_of(model, SquaredError(), torch.zeros(2, STEPS, D), draw(2, 3))
    table = rows.set_index("replacement")
    modes = frequencies(cell.candidate_weight.detach())
    moduli = modulus(modes, GAMMA, EPSILON / 4)
    step = (moduli ** (2 * STEPS)).mean().log10().item() / 2
    flow = -GAMMA * EPSILON / 4 * STEPS / math.log(10)
    for name, decades in (("whole", step), ("flow of the path", flow)):
        assert table.loc[name, "random"] == pytest.approx(decades, rel=1e-5)
    assert table.loc["flow of the path", "gradient"] == pytest.approx(flow, rel=1e-5)
    assert table.loc["whole", "exponent"] == pytest.approx(moduli.max().log().item(), rel=1e-5)
    found = growth.attribute(rows.assign(seed=1), "random").set_index("cause")
    expected = {"Euler step": step - flow, "non-normality": 0, "gates": 0}
    for cause, effect in expected.items():
        for order in ("first", "last"):
            assert found.loc[cause, order] == pytest.approx(effect, abs=1e-6), cause
    assert found["adds"].all()


def made(**extra):
    """Two seeds, in which causes add 1, 2 and 4 decades, and 8 more where the first two meet."""
    rows = []
    for seed in (1, 2, 3):
        for name, left in growth.REPLACEMENTS.items():
            sizes = dict(zip(growth.CAUSES, (1 + seed / 100, 2, 4), strict=True))
            value = sum(sizes[cause] for cause in left or ())
            value += extra.get("together", 0) * ({"Euler step", "gates"} <= (left or set()))
            rows.append({"seed": seed, "replacement": name, "gradient": value + seed})
    return pd.DataFrame(rows)


def test_effects_are_the_first_and_the_last_removal():
    found = growth.attribute(made()).set_index("cause")
    assert found["first"].tolist() == pytest.approx([1.02, 2, 4])
    assert found["last"].tolist() == pytest.approx([1.02, 2, 4])
    half = 4.302652729911275 * 0.01 / math.sqrt(3)  # t of 2 degrees of freedom
    assert found.loc["Euler step", "first_high"] == pytest.approx(1.02 + half)
    assert found["adds"].all()
    apart = growth.attribute(made(together=8)).set_index("cause")
    assert apart["first"].tolist() == pytest.approx([9.02, 2, 12])
    assert apart["gap"].tolist() == pytest.approx([8, 0, 8])
    assert apart["adds"].tolist() == [False, True, False]


def test_an_order_is_told_where_the_intervals_are_apart():
    rows = pd.DataFrame({
        "cause": ["a", "b", "c"], "first": [1.0, 3.0, 2.9], "first_low": [0.9, 2.8, 2.5],
        "first_high": [1.1, 3.2, 3.0],
    })  # fmt: skip
    assert growth.ranked(rows) == "b and (not told apart) c, then a"


def test_the_page_says_it_with_its_numbers(folder, monkeypatch):  # noqa: F811
    analysis = analyses.Analysis()
    report = Report(folder)
    growth.add(analysis, report, report.runs, count=2)
    table = analysis["growth_means"].set_index(["variant", "moment", "replacement"])
    assert set(table.loc["lstm"].index.get_level_values("replacement")) == {"whole"}
    assert len(table.loc["agru"]) == 2 * len(growth.REPLACEMENTS)
    whole = table.loc[("agru", "trained", "whole")]
    run = report.of("agru")
    each = []
    for one in run:  # the whole Jacobian carries the loss's own gradient
        inputs, targets = analyses.examples(one, 2)
        norms = growth.dynamics.gradient_norms(one.model, one.task, inputs, targets)
        each.append((norms[:, 0] / norms[:, -1]).log10().mean().item())
    assert whole["gradient"] == pytest.approx(np.mean(each), rel=1e-5)
    said, survives, damping, beside = analysis.texts("growth")
    assert said.startswith("**A-GRU** (2 seeds, 2 test examples, 8 steps")
    assert f"{whole['gradient']:+.2f} ({whole['low']:+.2f} to {whole['high']:+.2f})" in said
    assert survives.startswith("What survives of the claim that antisymmetry keeps gradients")
    assert "beside $\\gamma = 0.01$ in use" in damping
    assert beside.startswith("Beside it, the trained gradient: in LSTM it ")
    assert set(analysis["damping"]["variant"]) == {"agru"}


@pytest.mark.parametrize(("gap", "said"), [(0, "agree to 0.3 decades"), (8, "disagree for the")])
def test_of_one_seed_no_interval_is_spoken_of(folder, gap, said):  # noqa: F811
    analysis, report = analyses.Analysis(), Report(folder)
    growth.add(analysis, report, report.of("agru")[:1], count=1)
    rows = growth.attribute(made(together=gap).query("seed == 1"))
    named = {"variant": "agru", "moment": "trained"}
    analysis.frames["attribution"] = rows.assign(**named)
    growth._say(analysis, report, "agru", 1, 8)
    one = [text for text in analysis.texts("growth") if text.startswith("**A-GRU**")][-1]
    assert "(1 seed, " in one and said in one and "interval" not in one


def test_a_cell_whose_parts_fail_loses_its_own_rows(folder, monkeypatch):  # noqa: F811
    def broken(self, *tensors):
        raise ValueError("no terms")

    monkeypatch.setattr(CELLS["agru"], "jacobian_terms", broken)
    analysis, report = analyses.Analysis(), Report(folder)
    growth.add(analysis, report, report.runs, count=1)
    assert analysis.frames == {}
    assert analysis.texts("lost")[0].endswith("in what is said of growth: ValueError: no terms")
