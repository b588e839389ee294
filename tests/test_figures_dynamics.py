from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rnnbench_nb import launch
from rnnbench_nb.figures import dynamics as figures
from rnnbench_nb.report import Look

NAMES = ["x", "y", *"abcdefgh"]
REPORT = SimpleNamespace(
    labels={name: name.upper() for name in NAMES},
    looks={name: Look("#123456", (1, 0), "o") for name in NAMES},
)


@pytest.fixture(autouse=True)
def _close():
    yield
    figures.plt.close("all")


def spectra():
    columns = {"variant": "x", "seed": 1, "moment": ["initial", "initial", "best", "best"]}
    modes = {"real": -0.1, "imaginary": [-1.0, 1.0, -3.0, 3.0], "frequency": [-1.0, 1, -3, 3]}
    return pd.DataFrame({**columns, **modes, "step_size": 0.5})


def test_the_disc_is_where_the_euler_step_is_stable():
    figure = figures.spectrum(spectra(), REPORT)
    assert [ax.get_title() for ax in figure.axes] == ["X, initial", "X, best"]
    disc = figure.axes[0].patches[0]
    assert (disc.center, disc.radius) == ((-2.0, 0), 2.0)
    z = disc.center[0] + disc.radius * np.exp(1j * np.linspace(0, 2 * np.pi, 9))
    np.testing.assert_allclose(np.abs(1 + 0.5 * z), 1)
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), [[-0.1, -1], [-0.1, 1]])


def test_damping_and_step_size_move_the_last_spectrum_and_the_disc():
    figure = figures.moved_spectra(spectra(), REPORT, [0.0, 2.0], [0.1])
    offsets = [ax.collections[0].get_offsets().tolist() for ax in figure.axes]
    assert offsets == [[[0, -3], [0, 3]], [[-2, -3], [-2, 3]]]
    assert [ax.patches[0].radius for ax in figure.axes] == [10, 10]


def modes():
    columns = {"variant": "x", "epoch": [0, 0, 3, 3], "moment": ["initial"] * 2 + ["best"] * 2}
    spectrum = {"gamma": 0.01, "epsilon": [1.0, 1, 0.5, 0.5], "frequency": [0.0, 1, 2, 3]}
    return pd.DataFrame(columns | spectrum)


def test_what_a_page_moves_is_by_epoch():
    assert figures.moving(modes()) == {
        "epoch": [0, 3], "moment": ["initial", "best"], "gamma": [0.01, 0.01],
        "epsilon": [1.0, 0.5], "frequency": [[0.0, 1.0], [2.0, 3.0]],
    }  # fmt: skip


def test_sliders_are_for_jupyterlab_alone(monkeypatch, tmp_path):
    import ipywidgets

    made = []
    monkeypatch.setattr(ipywidgets, "interact", lambda function, **names: made.append(
        (function, names)))  # fmt: skip
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    figures.sliders(modes(), REPORT)
    assert made == []
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert "JPY_SESSION_NAME" not in launch.environment(tmp_path)  # of what makes a report
    figures.sliders(modes(), REPORT)
    ((function, names),) = made
    assert set(names) == {"gamma", "epsilon", "epoch"} and names["epoch"].options == (0, 3)
    shown = []
    monkeypatch.setattr(figures, "show", lambda figure, alt: shown.append(figure))
    function(gamma=2.0, epsilon=0.1, epoch=3)
    points = shown[0].axes[0].collections[0].get_offsets().tolist()
    assert sorted(points) == [[-2, -3], [-2, -2], [-2, 2], [-2, 3]]


def flow(variants):
    rows = [
        {"variant": v, "seed": s, "moment": m, "step": t, "log10_gradient": -t + s}
        for v in variants
        for s in (0, 2)
        for m in ("initial", "trained")
        for t in range(4)
    ]
    return pd.DataFrame(rows)


def test_a_band_and_a_line_a_variant_in_both_moments():
    figure = figures.gradient_flow(flow("xy"), REPORT)
    assert [ax.get_title() for ax in figure.axes] == ["Initial", "Trained"]
    for ax in figure.axes:
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 0, -1, -2])
    assert [text.get_text() for text in figure.legends[0].texts] == ["X", "Y"]


def test_more_variants_than_can_be_told_apart_are_said_to_be_left_out():
    figure = figures.gradient_flow(flow(NAMES), REPORT)
    assert figure.get_suptitle() == "The first 8 of 10 variants"
    assert len(figure.legends[0].texts) == 8


def test_the_semicircle_stands_in_both_moments():
    rows = {"frequency": [0.0, 1, 0, 1], "density": [0.2, 0.3, 0.1, 0.4]}
    frame = pd.DataFrame({"variant": "x", "moment": ["initial"] * 2 + ["best"] * 2, **rows})
    figure = figures.frequency_density(frame.assign(semicircle=[0.5, 0.0, 0.5, 0.0]), REPORT)
    for ax, density in zip(figure.axes, ([0.2, 0.3], [0.1, 0.4]), strict=True):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), density)
        np.testing.assert_allclose(ax.lines[-1].get_ydata(), [0.5, 0])


def test_the_steps_of_several_variants_have_rows_of_their_own():
    steps = pd.DataFrame({"replacement": ["whole", "flow"], "gradient": [1.0, 0.0]})
    moments = pd.DataFrame({"moment": ["initial", "trained"]})
    frame = pd.DataFrame({"variant": ["x", "y"], "seed": 1}).merge(steps, how="cross")
    frame = frame.merge(moments, how="cross")
    whole = pd.DataFrame([{**frame.iloc[0], "variant": "a"}])  # alone: no row in this figure
    each = ["X, whole", "X, flow", "Y, whole", "Y, flow"]
    for part, rows in ((frame, each), (frame[:4], ["whole", "flow"])):
        ax = figures.gradient_growth(pd.concat([part, whole]), REPORT).axes[0]
        assert [text.get_text() for text in ax.get_yticklabels()] == rows


def test_the_boundary_stands_beside_the_measurement():
    rates = np.array([[-1.0, 0.5, 1.0], [-1.0, -0.5, 1.0]])
    grid = pd.MultiIndex.from_product([[0.1, 1.0], [0.1, 1.0, 10.0]], names=["gamma", "epsilon"])
    growth = pd.DataFrame({"rate": rates.ravel()}, grid).reset_index()
    boundary = pd.DataFrame({"gamma": [0.1, 1.0], "epsilon": [0.2, 2.0]})
    ax = figures.growth_map(growth, boundary).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.2, 2.0])
    np.testing.assert_allclose(ax.collections[0].get_array(), rates.T)
