import base64

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made import made_report

from rnnbench_nb import figures
from rnnbench_nb.cells import CELLS
from rnnbench_nb.figures import theme
from rnnbench_nb.metrics import Score
from rnnbench_nb.results import history_columns, result_columns

THREE = made_report("lstm", "gru", "agru")
TWENTY = made_report(**{f"variant_{index}": "agru" for index in range(20)})


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def history():
    rows = [
        (v, v, seed, epoch, split, 1 / epoch, 1 - 0.1 / epoch, 1.0, 0.001, 1.0)
        for v in ("lstm", "gru", "agru")
        for seed in (1, 2)
        for epoch in (1, 2, 3)
        for split in ("train", "validation")
    ]
    return pd.DataFrame(rows, columns=history_columns("accuracy"))


def results(variants=("lstm", "gru", "agru"), accuracies=(0.98, 0.99)):
    frame = pd.DataFrame(
        [
            {"variant": v, "seed": s, "accuracy": a, "status": "completed"}
            for v in variants
            for s, a in enumerate(accuracies)
        ]
    )
    return frame.reindex(columns=result_columns(["accuracy"]))


def test_curves_show_each_model_in_its_colour_with_units():
    figure = figures.accuracy_curves(history(), THREE)
    for ax, title in zip(
        figure.axes, ("Training (mean over the epoch)", "Validation"), strict=True
    ):
        assert ax.get_title() == title
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("Epoch", "Accuracy (%)")
        drawn = [matplotlib.colors.to_hex(line.get_color()).upper() for line in ax.lines[:3]]
        assert drawn == [colour.upper() for colour in theme.look(THREE, "colour").values()]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 - np.array([10, 5, 10 / 3]))
    label = figures.training_curves(history(), THREE).axes[0].get_ylabel()
    assert label == "Cross entropy (nats, log scale)"


def test_the_comparison_shows_every_seed_and_the_interval():
    ax = figures.test_errors(results(accuracies=(0.98, 0.985, 0.99)), THREE).axes[0]
    dots = np.concatenate([dots.get_offsets()[:, 0] for dots in ax.collections[::2]])
    assert sorted(dots) == pytest.approx([1] * 3 + [1.5] * 3 + [2] * 3)
    low, high = ax.collections[1].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx(
        (1.5 - 4.3027 * 0.5 / 3**0.5, 1.5 + 4.3027 * 0.5 / 3**0.5), abs=1e-3
    )
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["LSTM", "GRU", "A-GRU"]


@pytest.mark.parametrize("accuracies", [(0.98,), (0.98, 0.99)])
def test_one_or_two_seeds_have_no_interval(accuracies):
    axes = figures.test_errors(results(accuracies=accuracies), THREE).axes
    assert len(axes[0].collections) == 3


def test_looks_are_by_label_and_those_of_twenty_variants_differ():
    assert theme.look(THREE, "marker") == {"LSTM": "s", "GRU": CELLS["gru"].marker, "A-GRU": "o"}
    assert theme.labelled(results(), THREE)["label"].tolist()[::2] == ["LSTM", "GRU", "A-GRU"]
    assert len(set(theme.look(TWENTY, "colour").values())) == 20


def test_a_score_that_is_no_percentage_is_drawn_as_it_is():
    report = made_report("lstm", "gru", "agru")
    report.task.score = Score(name="accuracy", scale=1.0, unit="nats", difference="nats")
    ax = figures.test_errors(results(), report).axes[0]
    assert ax.collections[0].get_offsets()[:, 0].tolist() == [0.98, 0.99]
    assert ax.get_xlabel() == "Test accuracy (nats)"
    ax = figures.error_curves(history(), report).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1 - 0.1 / np.array([1, 2, 3]))
    assert (ax.get_ylabel(), ax.get_yscale()) == ("Accuracy (nats)", "linear")


@pytest.mark.parametrize("variants", [["agru"], ["lstm", "gru", "agru"]])
def test_class_errors_are_in_percent_for_any_number_of_models(variants):
    rows = [
        {"variant": v, "seed": s, "class": k, "error": 0.02 * (s + 1)}
        for v in variants
        for s in (0, 1)
        for k in "ab"
    ]
    ax = figures.class_errors(pd.DataFrame(rows), made_report(*variants)).axes[0]
    heights = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() != "None"])
    assert heights[~np.isnan(heights)] == pytest.approx(3)
    assert ax.get_ylabel() == "Test error (%)"


def test_class_errors_of_many_variants_are_a_table():
    rows = [
        {"variant": v, "seed": s, "class": k, "error": 0.01 * i + 0.002 * s}
        for i, v in enumerate(TWENTY.variants)
        for s in (0, 1)
        for k in "ab"
    ]
    ax = figures.class_errors(pd.DataFrame(rows), TWENTY).axes[0]
    assert [text.get_text() for text in ax.texts[:6]] == ["0.1", "0.1", "1.1", "1.1", "2.1", "2.1"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(TWENTY.variants)


def test_bands_of_many_variants_are_left_out():
    rows = history()[history()["variant"] == "gru"]
    many = pd.concat([rows.assign(variant=name) for name in TWENTY.variants])
    assert not figures.training_curves(many, TWENTY).axes[0].collections
    assert len(figures.training_curves(history(), THREE).axes[0].collections) == 3


def test_a_report_without_a_finished_run_still_gets_its_figures():
    empty = history().iloc[:0]
    for figure in (
        figures.training_curves(empty, THREE),
        figures.accuracy_curves(empty, THREE),
        figures.test_errors(results().assign(status="failed"), THREE),
    ):
        assert figure.axes[0].get_xlabel()
        assert not figure.axes[0].collections


def test_saving_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        figures.save(figures.test_errors(results(), THREE), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_a_figure_is_shown_with_its_words_and_closed(monkeypatch):
    shown = []
    monkeypatch.setattr(theme, "display", lambda data, **options: shown.append((data, options)))
    figures.show(figures.test_errors(results(), THREE), "Dots.", "A dot is a seed.")
    (data, options), words = shown[0], shown[0][1]["metadata"]["image/png"]
    assert data["text/plain"] == words["alt"] == "Dots." and words["caption"] == "A dot is a seed."
    assert base64.b64decode(data["image/png"])[1:4] == b"PNG" and options["raw"]
    assert not plt.get_fignums()


def test_every_colour_is_legible_on_white():
    every = made_report(**{name: name for name in CELLS})
    for colour in {*theme.look(every, "colour").values(), *theme.look(TWENTY, "colour").values()}:
        assert theme.legible(colour) == colour
    assert theme.legible("#ffffff") == "#949494"  # contrast 3.03; #969696 has 2.96


def test_texts_are_shown_as_markdown(monkeypatch):
    shown = []
    monkeypatch.setattr(theme, "display", shown.append)
    figures.say("One.", "**Two.**")
    assert [text.data for text in shown] == ["One.", "**Two.**"]
