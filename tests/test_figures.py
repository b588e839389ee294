import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from rnnbench_nb import figures
from rnnbench_nb.results import HISTORY_COLUMNS, RESULT_COLUMNS


@pytest.fixture(autouse=True)
def _close():
    yield
    figures.plt.close("all")


def history():
    rows = [
        (v, v, seed, epoch, split, 1 / epoch, 1 - 0.1 / epoch, 1.0, 0.001, 1.0)
        for v in ("lstm", "gru", "agru")
        for seed in (1, 2)
        for epoch in (1, 2, 3)
        for split in ("train", "validation")
    ]
    return pd.DataFrame(rows, columns=HISTORY_COLUMNS)


def results(variants=("lstm", "gru", "agru"), accuracies=(0.98, 0.99)):
    frame = pd.DataFrame(
        [
            {"variant": v, "seed": s, "accuracy": a, "status": "completed"}
            for v in variants
            for s, a in enumerate(accuracies)
        ]
    )
    return frame.reindex(columns=RESULT_COLUMNS)


def test_curves_show_each_model_in_its_colour_with_units():
    figure = figures.accuracy_curves(history())
    for ax, title in zip(
        figure.axes, ("Training (mean over the epoch)", "Validation"), strict=True
    ):
        assert ax.get_title() == title
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("Epoch", "Accuracy (%)")
        drawn = [matplotlib.colors.to_hex(line.get_color()).upper() for line in ax.lines[:3]]
        assert drawn == list(figures.COLOURS.values())
        np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 - np.array([10, 5, 10 / 3]))
    assert "nats" in figures.training_curves(history()).axes[0].get_ylabel()


def test_the_comparison_shows_every_seed_and_the_interval():
    figure = figures.test_comparison(results())
    ax = figure.axes[0]
    dots = np.concatenate([dots.get_offsets()[:, 0] for dots in ax.collections[::2]])
    assert sorted(dots) == pytest.approx([1] * 3 + [2] * 3)
    low, high = ax.collections[1].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((1.5 - 12.7062 / 2, 1.5 + 12.7062 / 2), abs=1e-3)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["LSTM", "GRU", "A-GRU"]


def test_one_seed_has_no_interval():
    assert len(figures.test_comparison(results(accuracies=(0.98,))).axes[0].collections) == 3


def test_variants_outside_the_table_get_looks_of_their_own():
    look = figures.look(["agru", "gamma-0", "gamma-2"], figures.COLOURS)
    assert list(look) == ["A-GRU", "gamma-0", "gamma-2"]
    assert len({matplotlib.colors.to_hex(colour) for colour in look.values()}) == 3


def test_confusion_counts_and_colours_errors_only():
    truth, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    figure = figures.confusion(truth, predicted, ["a", "b"])
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["1", "1", "1", "2"]
    assert ax.images[0].get_array().tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("variants", [["agru"], ["lstm", "gru", "agru"]])
def test_class_errors_are_in_percent_for_any_number_of_models(variants):
    rows = [
        {"variant": v, "seed": s, "class": k, "error": 0.02 * (s + 1)}
        for v in variants
        for s in (0, 1)
        for k in "ab"
    ]
    ax = figures.class_errors(pd.DataFrame(rows)).axes[0]
    heights = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() != "None"])
    assert heights[~np.isnan(heights)] == pytest.approx(3)
    assert ax.get_ylabel() == "Test error (%)"


def test_a_report_without_a_finished_run_still_gets_its_figures():
    empty = history().iloc[:0]
    for figure in (
        figures.training_curves(empty),
        figures.accuracy_curves(empty),
        figures.test_comparison(results().assign(status="failed")),
    ):
        assert figure.axes[0].get_xlabel()
        assert not figure.axes[0].collections


def test_saving_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        figures.save(figures.test_comparison(results()), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_showing_carries_the_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda figure, metadata: shown.append(metadata))
    figures.show(figures.test_comparison(results()), "Dots.")
    assert shown == [{"image/png": {"alt": "Dots."}}]
    assert not figures.plt.get_fignums()
