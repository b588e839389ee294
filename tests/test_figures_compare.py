"""The figures of the comparison and of the ablation."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made import made_report
from matplotlib.colors import to_hex

from rnnbench_nb import figures
from rnnbench_nb import statistics as stats

REPORT = made_report("lstm", "gru", none="agru")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def runs(**accuracies):
    return pd.DataFrame(
        [(v, s, a) for v, values in accuracies.items() for s, a in enumerate(values)],
        columns=["variant", "seed", "accuracy"],
    )


THREE = runs(lstm=[0.980, 0.981, 0.983], gru=[0.979, 0.979, 0.979], none=[np.nan] * 3)


def lines(ax, color, width):
    """The ends (x, x) of the horizontal lines of one look, by row."""
    return {
        line.get_ydata()[0]: tuple(line.get_xdata())
        for line in ax.lines
        if to_hex(line.get_color()) == to_hex(color) and line.get_linewidth() == width
        and len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1
    }  # fmt: skip


def test_paired_differences_draws_every_seed_both_intervals_and_the_verdict():
    comparison = stats.compare(THREE, 0.002).query("n > 0")
    (row,) = comparison.to_dict("records")
    ax = figures.paired_differences(comparison, THREE, REPORT).axes[0]
    dots = ax.collections[0].get_offsets()[:, 0]
    assert sorted(dots) == pytest.approx([0.1, 0.2, 0.4])
    assert ax.patches[0].get_x() == pytest.approx(-0.2)
    assert ax.patches[0].get_width() == pytest.approx(0.4)
    thick, thin = lines(ax, "black", 3.5), lines(ax, "0.45", 1.2)
    assert thick[0] == pytest.approx((100 * row["low"], 100 * row["high"]))
    assert thin[0] == pytest.approx((100 * row["family_low"], 100 * row["family_high"]))
    assert [text.get_text() for text in ax.texts] == ["not distinguishable"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["LSTM − GRU"]


def test_long_names_leave_room_for_the_axes():
    one, other = "lstm_rate_0.003_dropout_0.25", "lstm_rate_0.001_dropout_0.25"
    both = runs(**{one: [0.980, 0.981, 0.985], other: [0.979, 0.979, 0.979]})
    report = made_report(**dict.fromkeys((one, other), "lstm"))
    figure = figures.paired_differences(stats.compare(both, 0.002), both, report)
    figure.canvas.draw()  # a layout without room is a warning, which is an error here
    (tick,) = figure.axes[0].get_yticklabels()
    assert tick.get_text().split("\n") == [report.labels[one], f"− {report.labels[other]}"]
    assert tick.get_window_extent().x0 >= 0


def test_an_interval_that_would_hide_the_dots_is_cut_with_an_arrowhead():
    two = THREE[THREE["seed"] < 2]
    ax = figures.paired_differences(stats.compare(two, 0.002).query("n > 0"), two, REPORT).axes[0]
    assert ax.get_xlim() == pytest.approx((-0.55, 0.55))  # 2.5 times the farthest, and 5%
    assert lines(ax, "0.45", 1.2)[0] == pytest.approx((-0.55, 0.55))
    assert "".join(line.get_marker() for line in ax.lines if line.get_marker() in "<>") == "<>>"


def test_an_interval_far_from_zero_is_not_marked_as_cut():
    worse = THREE.assign(accuracy=THREE["accuracy"] - 0.012 * (THREE["variant"] == "lstm"))
    ax = figures.paired_differences(stats.compare(worse, 0.002).query("n > 0"), worse, REPORT).axes[
        0
    ]
    thin = lines(ax, "0.45", 1.2)[0]
    assert ax.get_xlim()[0] < thin[0] < thin[1] < -ax.get_xlim()[1]
    assert not [line for line in ax.lines if line.get_marker() in ("<", ">")]


def test_paired_differences_takes_names_parts_groups_and_lives_with_one_seed():
    table = THREE[THREE["seed"] == 0]
    comparison = pd.concat([stats.compare(table, 0.002).query("n > 0")] * 3)
    figure = figures.paired_differences(
        comparison, table, REPORT, names=["a 1", "a 2", "b"], groups=["a", "a", "b"]
    )
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a 1", "a 2", "b"]
    assert "better than GRU" in ax.get_xlabel()
    parts = [line for line in ax.lines if list(line.get_ydata()) == [1.5, 1.5]]
    assert len(parts) == 1 and not lines(ax, "black", 3.5)
    assert len(figure.legends[0].get_texts()) == 2  # no interval, none in the legend


def history(**accuracies):
    return pd.DataFrame(
        [
            (v, v, 0, epoch, split, 1 - a, a, 2.0)
            for v, values in accuracies.items()
            for epoch, a in enumerate(values, start=1)
            for split in ("train", "validation")
        ],
        columns=["variant", "model", "seed", "epoch", "split", "loss", "accuracy", "seconds"],
    )


def test_error_curves_are_in_percent_on_a_log_scale():
    ax = figures.error_curves(history(agru=[0.9, 0.98, 0.99]), made_report("agru")).axes[0]
    assert ax.lines[0].get_ydata() == pytest.approx([10, 2, 1])
    assert ax.get_yscale() == "log"
    assert not figures.error_curves(history(), REPORT).axes[0].lines


@pytest.mark.parametrize("names", [["agru"], ["lstm", "agru"]])
def test_learning_speed_shows_medians_and_leaves_out_what_is_not_reached(names):
    curves = history(**{name: [0.9, 0.95, 0.97] for name in names})
    report = made_report(*names)
    figure = figures.learning_speed(stats.time_to_score(curves, [0.9, 0.96, 0.99]), report)
    for ax, heights in zip(figure.axes, ([1, 3], [4, 12]), strict=True):
        drawn = np.concatenate([li.get_ydata() for li in ax.lines if li.get_marker() != "None"])
        assert drawn[~np.isnan(drawn)] == pytest.approx(heights * len(names))
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["90", "96"]
    assert len(figure.legends[0].get_texts()) == len(names)
    assert not figures.learning_speed(stats.time_to_score(curves, [0.99]), report).legends


def test_reliability_draws_filled_bins_with_wilson_intervals():
    bins = pd.DataFrame({
        "variant": "agru", "low": [0.0, 0.5, 0.9], "high": [0.5, 0.9, 1.0],
        "count": [0, 10, 100], "confidence": [np.nan, 0.7, 0.95], "accuracy": [np.nan, 0.5, 0.9],
    })  # fmt: skip
    curve, counts = figures.reliability(bins, made_report("agru")).axes
    points = curve.lines[1]
    assert points.get_xdata() == pytest.approx([0.7, 0.95])
    assert points.get_ydata() == pytest.approx([0.5, 0.9])
    bar = curve.collections[0].get_segments()[0][:, 1]
    assert bar == pytest.approx(stats.wilson(5, 10))
    assert counts.lines[0].get_ydata() == pytest.approx([10, 100])


def test_the_verdict_names_the_better_one_by_its_label():
    comparison = stats.compare(THREE, 0.002).query("n > 0").assign(verdict="worse")
    ax = figures.paired_differences(comparison, THREE, REPORT).axes[0]
    assert [text.get_text() for text in ax.texts] == ["GRU is better"]
