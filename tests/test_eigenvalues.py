import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_gradients import folder  # noqa: F401 (a fixture)

from rnnbench_nb import analyses
from rnnbench_nb.analyses import eigenvalues
from rnnbench_nb.errors import UserError
from rnnbench_nb.report import Report

A = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]], dtype=torch.float64)  # -0.5 +- 2i


def test_a_row_of_the_table_by_hand():
    epsilon = torch.tensor(0.1, dtype=torch.float64)
    row = eigenvalues.stability_row(A, torch.linalg.eigvals(A), epsilon)
    assert row == pytest.approx({
        "epsilon": 0.1, "lambda_max": 2, "epsilon_lambda_max": 0.2, "epsilon_max": 1 / 4.25,
        "modulus_max": math.hypot(0.95, 0.2), "share_outside": 0, "abscissa": -0.05,
        "numerical_abscissa": -0.05, "defect": 0,
    })  # fmt: skip


def test_a_spectrum_by_hand():
    frame = eigenvalues.spectrum(A + torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.1)  # 3, -1
    assert frame["step_size"].tolist() == [0.1, 0.1]
    assert frame["real"].tolist() == pytest.approx([-0.5, -0.5])
    assert frame["imaginary"].tolist() == pytest.approx([-math.sqrt(3), math.sqrt(3)])
    assert frame["frequency"].tolist() == pytest.approx([-2, 2])


def test_densities_are_on_common_bins_and_beside_the_semicircle(monkeypatch):
    monkeypatch.setattr(eigenvalues, "BINS", 4)
    found = {"initial": np.array([-1.0, 1.0]), "best epoch": np.array([-3.5, 0.5, 1.5, 3.9])}
    frame = eigenvalues.densities(found, edge=4.0)  # bins of 2, from -4 to 4
    assert frame["frequency"].tolist() == [-3, -1, 1, 3] * 2
    assert frame["density"].tolist() == [0, 0.25, 0.25, 0, 0.125, 0, 0.25, 0.125]
    circle = 2 / (math.pi * 16) * math.sqrt(16 - 9)
    assert frame["semicircle"].iloc[0] == pytest.approx(circle, rel=1e-5)


def test_means_are_over_the_seeds():
    frame = pd.DataFrame({"variant": ["x", "x", "y"], "seed": [1, 2, 1], "value": [1.0, 2.0, 9.0]})
    table = eigenvalues.means(frame, ["variant"])
    assert table.to_dict("list") == {"variant": ["x", "y"], "seeds": [2, 1], "value": [1.5, 9]}


def test_agreement_counts_the_points_where_growth_is_as_theory_says():
    rates = np.array([[-1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
    assert eigenvalues.agreement(rates, np.array([1, 2, 3]), np.array([1.5, 2.5])) == 5


def test_the_page_of_a_report(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(eigenvalues, "GAMMAS", np.array([0.1, 1.0]))
    monkeypatch.setattr(eigenvalues, "EPSILONS", np.array([0.1, 10.0]))
    report = Report(folder)
    analysis = analyses.analyse("eigenvalues", report, count=2)
    run = report.of("agru")[0]
    best = run.record["best_epoch"]
    a = run.model.cell.recurrent_matrix().detach().double()
    row = analysis["stability"].query("seed == 42 and moment == 'best epoch'").iloc[0]
    assert row["lambda_max"] == pytest.approx(torch.linalg.eigvals(a).imag.max().item(), rel=1e-6)
    at = analysis["training"].query(f"seed == 42 and epoch == {best}").iloc[0]
    for name in eigenvalues.TRACKED:
        assert at[name] == pytest.approx(row[name], rel=1e-5)
    assert set(analysis["stability"]["variant"]) == {"agru"}  # the LSTM has no such matrix
    assert analysis["stability_means"]["seeds"].tolist() == [2, 2]
    assert set(analysis["spectra"]["seed"]) == {42}
    modes = analysis["modes"]
    assert modes["moment"].unique().tolist() == ["initial", "best epoch"]
    assert len(modes) == 2 * len(a) // 2 and set(modes["gamma"]) == {0.01}
    trained = modes[modes["epoch"] == best]
    assert trained["frequency"].max() == pytest.approx(row["lambda_max"], abs=1e-4)
    assert trained["epsilon"].iloc[0] == pytest.approx(row["epsilon"], rel=1e-5)
    assert analysis["map"].shape == (4, 3) and len(analysis["boundary"]) == 2
    total, own = analysis.texts("answer")
    assert total.endswith("amplifies some mode of every variant that has such a matrix.")
    mean = analysis["stability_means"].iloc[1]
    assert f"by {mean['modulus_max']:.3f} trained" in own
    table = eigenvalues.stability_table(analysis["stability_means"], report)
    assert table.index[1] == ("A-GRU", "best epoch")
    assert table["largest modulus"].iloc[1] == f"{mean['modulus_max']:.4g}"


def test_variants_are_never_pooled(folder, tmp_path):  # noqa: F811
    # The same weights under two names, one of which has another step size.
    rows = [{"variant": name, "seed": seed, "moment": moment, **dict.fromkeys(
        ["lambda_max", "share_outside", "epsilon_max", "defect", "epsilon"], value),
        "modulus_max": value} for name, value in (("agru", 0.5), ("lstm", 3.0))
        for seed in (1, 2) for moment in eigenvalues.MOMENTS]  # fmt: skip
    stability = pd.DataFrame(rows)
    frames = {"stability": stability}
    frames["stability_means"] = eigenvalues.means(stability, ["variant", "moment"])
    analysis = analyses.Analysis(frames)
    eigenvalues._stability_findings(analysis, Report(folder))
    total, first, second = analysis.texts("answer")
    assert total.endswith("amplifies no mode in any seed of A-GRU.")
    assert "$\\epsilon$ stays 0.50" in first and "$\\epsilon$ stays 3.00" in second


def test_a_report_without_such_a_matrix_says_so(folder):  # noqa: F811
    report = Report(folder)
    report.__dict__["_read"] = (report.of("lstm"), [], [])
    with pytest.raises(UserError, match="no finished run of a cell with a recurrent matrix"):
        eigenvalues.analyse(report)


def test_a_map_is_for_cells_with_both_options(folder):  # noqa: F811
    analysis = analyses.Analysis()
    eigenvalues._map(analysis, Report(folder).of("lstm"))
    assert analysis.frames == {} and analysis.findings == []
