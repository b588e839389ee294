"""The figures of results that several pages share, their looks, saving and showing."""

import base64

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from small_reports import write_report

from rnnbench_nb import figures, looks
from rnnbench_nb import statistics as stats
from rnnbench_nb.cells import CELLS


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    variants = {name: {"model": name} for name in ("lstm", "gru", "agru")}
    return write_report(tmp_path_factory.mktemp("made"), variants, {})


def runs(**accuracies):
    rows = [(v, s, a, "completed") for v, each in accuracies.items() for s, a in enumerate(each)]
    return pd.DataFrame(rows, columns=["variant", "seed", "accuracy", "status"])


LSTM = 0.98 + 1e-3 * np.array([1, 2, 4, 2, 1])
FIVE = runs(lstm=LSTM, gru=[0.98] * 5, agru=[np.nan] * 5)


def intervals(ax):
    return [tuple(line.get_xdata()) for line in ax.lines if line.get_label() == "interval"]


def test_paired_differences_draws_every_seed_the_interval_and_the_verdict(report):
    table = stats.compare(FIVE, 0.002)
    (row,) = table[table["n"] > 0].to_dict("records")
    ax = figures.paired_differences(table, FIVE, report).axes[0]
    dots = ax.collections[0].get_offsets()[:, 0]
    assert sorted(dots) == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.4])
    assert ax.patches[0].get_x() == pytest.approx(-0.2)
    assert ax.patches[0].get_width() == pytest.approx(0.4)
    assert intervals(ax) == [pytest.approx((100 * row["family_low"], 100 * row["family_high"]))]
    assert [text.get_text() for text in ax.texts] == ["+0.20  undecided"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["LSTM − GRU"]


def test_a_pair_without_a_verdict_has_dots_and_no_interval(report):
    few = FIVE[FIVE["seed"] < 2]
    ax = figures.paired_differences(stats.compare(few, 0.002), few, report).axes[0]
    assert len(ax.collections[0].get_offsets()) == 2 and not intervals(ax)
    assert ax.texts[0].get_text() == "+0.15  two seeds: no verdict"


def test_an_ablation_names_changes_and_parts_the_parameters(report):
    row = stats.compare(FIVE, 0.002).query("n > 0")
    changes = {"change": ["gamma 0", "gamma 2", "epsilon 1"], "keys": ["gamma", "gamma", "epsilon"]}
    table = pd.concat([row] * 3, ignore_index=True).assign(**changes)
    ax = figures.paired_differences(table, FIVE, report).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == changes["change"]
    assert len([line for line in ax.lines if list(line.get_ydata()) == [1.5, 1.5]]) == 1
    table.loc[2, "b"] = "lstm"  # another reference, which is named
    ax = figures.paired_differences(table, FIVE, report).axes[0]
    assert ax.get_yticklabels()[2].get_text() == "LSTM: epsilon 1"


def test_long_names_leave_room_for_the_axes(tmp_path):
    names = ["lstm_rate_0.003_dropout_0.25", "lstm_rate_0.001_dropout_0.25"]
    report = write_report(tmp_path, {name: {"model": "lstm"} for name in names}, {})
    both = runs(**dict(zip(names, [[0.98, 0.981, 0.985], [0.979] * 3], strict=True)))
    figure = figures.paired_differences(stats.compare(both, 0.002), both, report)
    figure.canvas.draw()  # a layout without room is a warning, which is an error here
    (tick,) = figure.axes[0].get_yticklabels()
    assert tick.get_text().split("\n") == [f"{report.labels[names[0]]} −", report.labels[names[1]]]
    assert tick.get_window_extent().x0 >= 0


def test_test_errors_draw_every_run_and_intervals_from_five_seeds_on(report):
    results = runs(lstm=LSTM, gru=[0.97, 0.98, 0.97, 0.96])
    ax = figures.test_errors(results, report).axes[0]
    assert sorted(ax.collections[0].get_offsets()[:, 0]) == pytest.approx(sorted(100 - 100 * LSTM))
    bars = [line.get_segments()[0][:, 0] for line in ax.collections[1::2] if line.get_segments()]
    low, high = stats.t_interval(100 - 100 * LSTM)
    assert bars == [pytest.approx([low, high])]  # none for the four of the GRU


def history(score="accuracy", **scores):
    rows = [
        (v, 0, epoch, split, 1 - a, a)
        for v, values in scores.items()
        for epoch, a in enumerate(values, start=1)
        for split in ("train", "validation")
    ]
    return pd.DataFrame(rows, columns=["variant", "seed", "epoch", "split", "loss", score])


def test_curves_are_on_a_log_scale(report):
    curves = history(agru=[0.9, 0.98, 0.99])
    ax = figures.error_curves(curves, report).axes[0]
    assert ax.lines[0].get_ydata() == pytest.approx([10, 2, 1]) and ax.get_yscale() == "log"
    ax = figures.training_curves(curves, report).axes[1]
    assert ax.lines[0].get_ydata() == pytest.approx([0.1, 0.02, 0.01]) and ax.get_yscale() == "log"
    assert to_hex(ax.lines[0].get_color()) == figures.look(report, "colour")["A-GRU"].lower()
    assert len(ax.collections) == 1


def test_a_score_that_is_no_percentage_is_drawn_as_it_is(tmp_path):
    report = write_report(tmp_path, {"gru": {"model": "gru"}}, {}, metrics="regression")
    values, label = figures.errors(pd.Series([-0.5]), report)
    assert values.tolist() == [-0.5] and label == "Negative MSE"
    curves = history("negative_mse", gru=[-0.5])
    assert figures.error_curves(curves, report).axes[0].get_yscale() == "linear"


def test_a_figure_is_shown_with_its_words_and_closed(report, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, **options: shown.append((data, options)))
    figure = figures.test_errors(FIVE, report)
    figures.show(figure, "Dots.", "A dot is a seed.")
    (data, options), words = shown[0], shown[0][1]["metadata"]["image/png"]
    assert data["text/plain"] == words["alt"] == "Dots." and words["caption"] == "A dot is a seed."
    assert base64.b64decode(data["image/png"])[1:4] == b"PNG" and options["raw"]
    assert not plt.fignum_exists(figure.number)


def test_every_colour_is_legible_on_white_and_those_of_twenty_variants_differ():
    many = {f"variant_{index}": CELLS["agru"] for index in range(20)}
    styles = looks.looks(CELLS) | looks.looks(many)
    colours = [figures.legible(look.colour) for look in styles.values()]
    assert [figures.legible(colour) for colour in colours] == colours
    assert len(set(colours[-20:])) == 20
    assert figures.legible("#ffffff") == "#949494"  # contrast 3.03; #969696 has 2.96
