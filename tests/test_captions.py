"""Captions say what was drawn of how many, and the finding, from the frames."""

import pandas as pd
import pytest
from made import made_report, write_made_report

from rnnbench_nb import statistics
from rnnbench_nb.analyses import Analysis, captions, comparison

PAIR = made_report("gru", "agru")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two variants, of three seeds and of two, on four examples; the GRU gets all of them."""
    answers = {("gru", seed): ([0, 1, 2, 3], [0, 1, 2, 3]) for seed in (1, 2, 3)}
    answers |= {("agru", seed): ([0, 1, 2, 3], [0, 1, 2, 0]) for seed in (1, 2)}
    history = {key: [0.5, 0.9] if key[0] == "gru" else [0.75, 0.7] for key in answers}
    variants = {name: {"model": name} for name in ("gru", "agru")}
    folder = tmp_path_factory.mktemp("made")
    report = write_made_report(folder, variants, answers, history, seeds=(1, 2, 3))
    return report, comparison.analyse(report, levels=[0.7, 0.9])


def test_results_curves_speed_and_classes(made):
    report, found = made
    said = captions.scores(report)
    assert "on its 4 test examples: a point a seed, 2 to 3 seeds a variant;" in said
    assert said.endswith("Best mean accuracy: 100.00%, of GRU.")
    said = captions.curves(report, loss=False)
    assert said.startswith("Error (%) by epoch, on 9 training and 1 validation examples: ")
    assert "means over 2 to 3 seeds" in said
    assert said.endswith("Best validation accuracy of a run, in the mean over seeds: 90.00%, "
                         "of GRU.")  # fmt: skip
    assert captions.curves(report, loss=True).endswith("in the mean over seeds: 1, of GRU.")
    said = captions.speed(found, report)
    assert said.endswith("First at 90%: GRU, after 2 epochs, in 3 of 3 runs.")
    said = captions.classes(found, report)
    assert said.endswith("Highest: 100.00%, of A-GRU on class 3.")
    assert captions.alone(found, report).startswith("1 test examples that all runs of one variant")


def test_differences_count_their_verdicts():
    rows = [("gru", "agru", 3, "better"), ("gru", "lstm", 5, "equivalent, by less")]
    frame = pd.DataFrame(rows, columns=["a", "b", "n", "verdict"])
    frame = frame.assign(split="test", level=0.95, scope="for new seeds", comparisons=2)
    said = captions.differences(frame, PAIR)
    assert said.startswith("Differences in test accuracy, a row a comparison. Circles: 3 to 5 ")
    assert "Grey line: the interval that decides, for new seeds, corrected for 2 " in said
    assert said.endswith("Of 2: 1 better, 1 equivalent.")
    assert set(frame.columns) <= set(statistics.COMPARISON_COLUMNS)


def test_lines_of_gradients_and_states_end_in_what_was_measured():
    rows = [
        (name, seed, moment, step, value, 2 * step)
        for name, change in (("gru", -2.0), ("agru", 1.0))
        for seed in (1, 2)
        for moment, times in (("initial", 0), ("trained", seed))
        for step, value in ((0, times * change), (4, 0.0))
    ]
    columns = ["variant", "seed", "moment", "step", "log10_gradient", "state_norm"]
    along = pd.DataFrame(rows, columns=columns)
    found = Analysis({"along": along}, options={"count": 32})
    said = captions.gradients(found, along, PAIR)
    assert "a mean over 32 test examples; lines are means over 2 seeds, bands one standard" in said
    assert said.endswith("−3.0 (GRU) to +1.5 (A-GRU).")  # the mean of once and twice the change
    assert captions.states(found, PAIR).endswith("At the last step, trained: 8 (GRU).")
