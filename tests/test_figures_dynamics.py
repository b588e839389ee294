import numpy as np
import pandas as pd
import pytest

from rnnbench_nb import figures_dynamics as figures


@pytest.fixture(autouse=True)
def _close():
    yield
    figures.plt.close("all")


def test_the_disc_is_where_the_euler_step_is_stable():
    figure = figures.spectrum(
        {"S": np.array([1j, -1j]), "A": np.array([-0.1 + 1j, -0.1 - 1j])}, {"S": 0.5, "A": 0.5}
    )
    disc = figure.axes[0].patches[0]
    assert (disc.center, disc.radius) == ((-2.0, 0), 2.0)
    z = disc.center[0] + disc.radius * np.exp(1j * np.linspace(0, 2 * np.pi, 9))
    np.testing.assert_allclose(np.abs(1 + 0.5 * z), 1)


def test_a_band_and_a_line_a_model_in_both_moments():
    rows = [
        {"variant": v, "seed": s, "moment": m, "step": t, "log10_norm": -t + s}
        for v in ("gru", "agru")
        for s in (0, 2)
        for m in ("initial", "trained")
        for t in range(4)
    ]
    figure = figures.gradient_flow(pd.DataFrame(rows))
    assert [ax.get_title() for ax in figure.axes] == ["Initial", "Trained"]
    for ax in figure.axes:
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 0, -1, -2])


def test_the_boundary_stands_beside_the_measurement():
    gammas, epsilons = np.array([0.1, 1.0]), np.array([0.1, 1.0, 10.0])
    rates = np.array([[-1.0, 0.5, 1.0], [-1.0, -0.5, 1.0]])
    boundary = np.array([0.2, 2.0])
    ax = figures.growth_map(gammas, epsilons, rates, boundary).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), boundary)
    np.testing.assert_allclose(ax.collections[0].get_array(), rates.T)
