import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_dynamics import TWO, B, D, H, SquaredError, draw, make_cell

from rnnbench_nb import analyses, dynamics
from rnnbench_nb.analyses import gradients
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report
from rnnbench_nb.runs import train_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of two variants, one epoch on digits."""
    out = tmp_path_factory.mktemp("dynamics")
    values = {"dataset": "digits", "hidden_size": 6, "epochs": 1, "models": "[lstm, agru]"}
    text = "\n".join(f"{key}: {value}" for key, value in {**values, "runs": 2}.items())
    (out / "tiny.yaml").write_text(text)
    protocol = load_protocol(out / "tiny.yaml")
    (out / "protocol.yaml").write_text(to_yaml(protocol.dump()))
    for seed in protocol.seeds:
        for parameters in protocol.at(seed):
            train_run(parameters, out / "runs" / parameters.run, report=lambda line: None)
    return out


@pytest.fixture
def brief(monkeypatch):
    """Noise of two sequences and three steps, so that the page takes no minutes."""
    monkeypatch.setattr(gradients, "WARM_UP", 1)
    monkeypatch.setattr(gradients, "NOISE_STEPS", 3)
    monkeypatch.setattr(gradients, "NOISE_SEQUENCES", 2)


def test_decades_are_growth_on_the_way_back():
    norms = torch.tensor([[100.0, 7, 1], [1, 7, 1]])  # 2 decades and none
    assert gradients.decades(norms) == pytest.approx(1)
    assert gradients.decades(norms.flip(1)) == pytest.approx(-1)


def test_along_by_hand():
    path = torch.tensor([[[0.0, 0], [3, 4]], [[0, 0], [0, 1]]])
    frame = gradients.along(torch.tensor([[1.0, 100], [10, 1]]), path)
    assert frame["step"].tolist() == [0, 1]
    assert frame["log10_gradient"].tolist() == pytest.approx([0.5, 1])
    assert frame["state_norm"].tolist() == [0, 3]


def test_a_long_curve_keeps_its_ends_and_few_points():
    places = gradients.thinned(785)
    assert (places[0], places[-1], len(places)) == (0, 784, gradients.POINTS)
    assert gradients.thinned(3).tolist() == [0, 1, 2]


def test_ranked_means_leave_out_erased_directions():
    found = torch.tensor([[1.0, 3, -math.inf], [-2, 5, 0]])
    assert gradients._ranked_mean(found).tolist() == [4, 0.5, -2]
    frame = gradients.spectrum(np.array([4, 0.5, -2]))
    assert frame.to_numpy().tolist() == [[0, 4], [0.5, 0.5], [1, -2]]


def test_trajectories_of_a_line_know_their_target():
    path = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3, 1) * draw(1, 1, H)
    frame, shares = gradients.trajectories(path, torch.tensor([1, 0]), ["no", "yes"])
    assert shares == pytest.approx({"first": 1, "second": 0}, abs=1e-12)
    assert frame["target"].tolist() == ["yes"] * 3 + ["no"] * 3
    assert frame["step"].tolist() == [0, 1, 2] * 2
    steps = np.abs(np.diff(frame["first"]))
    assert steps == pytest.approx(0.4 * draw(H).norm().item(), rel=1e-3)
    numbers, _ = gradients.trajectories(path, torch.tensor([[9.0, 0.5], [9, 1.5]]))
    assert numbers["target"].unique().tolist() == [0.5, 1.5]  # the last of each


def test_the_summary_is_over_the_seeds_of_each_variant():
    rows = [("x", 1, 2.0, 0.1, 0.7), ("x", 2, 4.0, 0.3, math.nan), ("y", 1, 9.0, 0.0, 0.0)]
    names = ["variant", "seed", "decades", "largest_exponent", "noise_exponent"]
    table = gradients.summary(pd.DataFrame(rows, columns=names).assign(moment="initial"))
    x, y = table.to_dict("records")
    assert (x["decades"], x["seeds"], x["noise_exponent"]) == (3, 2, 0.7)
    assert (x["decades_sd"], x["largest_exponent"]) == pytest.approx((math.sqrt(2), 0.2))
    assert (y["decades"], y["seeds"]) == (9, 1)
    assert math.isnan(y["decades_sd"])


def test_a_cell_with_two_states_that_nobody_registered_is_measured(brief):
    cell, inputs = make_cell(TWO), draw(B, 5, D)
    jacobians = [dynamics.jacobian(step) for step in dynamics.walk(cell, inputs)]
    products = [torch.linalg.multi_dot([j[b] for j in reversed(jacobians)]) for b in range(B)]
    expected = torch.stack([torch.linalg.svdvals(p).log() / 5 for p in products]).mean(0)
    np.testing.assert_allclose(gradients.exponents(cell, inputs), expected, rtol=1e-8)
    assert gradients.noise_exponents(cell).shape == (2 * H,)
    norms = dynamics.gradient_norms(SequenceModel(cell, 3), SquaredError(), inputs, draw(B, 3))
    assert norms.shape == (B, 6)


def test_the_page_of_a_report(folder, brief):
    report = Report(folder)
    analysis = analyses.analyse("gradients", report, count=3)
    run = report.of("agru")[1]
    inputs, targets = analyses.examples(run, 3)
    norms = dynamics.gradient_norms(run.model, run.task, inputs, targets)
    row = analysis["measures"].query("variant == 'agru' and seed == 43 and moment == 'trained'")
    assert row["decades"].item() == pytest.approx(gradients.decades(norms), rel=1e-12)
    exponents = gradients.exponents(run.model.cell, inputs)
    assert row["largest_exponent"].item() == pytest.approx(exponents.max(), rel=1e-12)
    assert analysis["shares"]["variant"].tolist() == ["lstm", "agru"]
    assert analysis["trajectories"].groupby("variant").size().tolist() == [3 * 9] * 2
    assert set(analysis["noise_exponents"]["seed"]) == {42}
    texts = analysis.texts("answer")
    assert len(texts) == 2 and texts[1].startswith("**A-GRU** (2 seeds): over 8 steps back")
    mean = analysis["summary"].set_index(["variant", "moment"]).loc[("agru", "trained")]
    assert f"({mean['decades']:+.1f} ±" in texts[1].partition("initially")[2]
    assert analysis.findings[-1].numbers["decades_trained"] == mean["decades"]
    assert "*is kept* means at most 0.3 decades" in analysis.texts("words")[0]


def test_a_cell_that_fails_loses_its_own_rows_and_says_so(folder, brief, monkeypatch):
    def broken(self, *tensors):
        raise ValueError("no derivative")

    monkeypatch.setattr(CELLS["lstm"], "jacobian", broken)
    analysis = gradients.analyse(Report(folder), count=2)
    assert analysis.texts("lost") == ["LSTM is missing here: ValueError: no derivative"]
    assert {variant for f in analysis.frames.values() for variant in f["variant"]} == {"agru"}
    assert len(analysis.texts("answer")) == 1


@pytest.mark.parametrize("page", ["gradients", "eigenvalues"])
def test_a_report_without_weights_and_analysis_says_so(page, folder, monkeypatch):
    report = Report(folder)
    monkeypatch.setattr(type(report.runs[0]), "has", lambda self, name: False)
    monkeypatch.setattr(report, "folder", folder / "elsewhere")
    with pytest.raises(UserError, match="no weights and no saved analysis of this page"):
        analyses.analyse(page, report)
