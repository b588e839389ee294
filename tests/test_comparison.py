"""The analyses behind 02_train, 03_compare and 06_ablation: values by hand, and on their pages."""

import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from in_process import execute
from made import write_made_report
from numbers_on_pages import shown, unexplained
from scipy import stats as scipy_stats

from rnnbench_nb import runs, statistics
from rnnbench_nb.analyses import Analysis, ablation, analyse, comparison, load, training
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.metrics import Score
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.report import Report, write_tables
from rnnbench_nb.runs import train_run

TRUTH = [0, 0, 1, 1]
# Right: gru 4 and 3 of 4, lstm 3 and 1, and the agru, on other examples, 3.
ANSWERS = {
    ("gru", 1): (TRUTH, [0, 0, 1, 1]),
    ("gru", 2): (TRUTH, [0, 0, 1, 0]),
    ("lstm", 1): (TRUTH, [0, 1, 1, 1]),
    ("lstm", 2): (TRUTH, [0, 1, 0, 0]),
    ("agru", 1): ([1, 1, 1, 0], [1, 1, 1, 1]),
}
VARIANTS = {
    "gru": {"model": "gru"},
    "lstm": {"model": "lstm", "hidden_size": 64},
    "agru": {"model": "agru"},
}
CURVES = {("gru", 1): [0.5, 0.9], ("gru", 2): [0.9], ("lstm", 1): [0.5, 0.6, 0.7, 0.9]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report whose A-GRU was tested on other examples, and whose last run did not finish."""
    return write_made_report(tmp_path_factory.mktemp("made"), VARIANTS, ANSWERS, CURVES)


@pytest.fixture(scope="module")
def found(made):
    return comparison.analyse(made, margin=0.01, levels=[0.85, 0.95])


def numbers(analysis, topic):
    return [finding.numbers for finding in analysis.findings if finding.topic == topic]


def rows(frame, *columns):
    return list(frame[list(columns)].itertuples(index=False, name=None))


def test_the_same_labels_after_more_steps_are_other_examples(tmp_path):
    made = write_made_report(tmp_path, VARIANTS, ANSWERS, CURVES)
    path = made.folder / "runs/lstm-seed1/run.json"
    record = json.loads(path.read_text())
    record["data"]["steps"] = 1000
    path.write_text(json.dumps(record))
    assert comparison.test_sets(Report(made.folder)) == [["gru"], ["lstm"], ["agru"]]


def test_each_length_has_a_reference_and_a_variant_without_runs_stands_with_its_own(tmp_path):
    names = [(model, length) for length in (28, 30) for model in ("gru", "lstm", "agru")]
    noise = {"task": "noise_padded"}
    variants = {f"{model}_{length}": {"model": model, **noise, "padded_length": length}
                for model, length in names}  # fmt: skip
    answers = {(name, 1): (TRUTH if "28" in name else [2, 3], [2] * (4 if "28" in name else 2))
               for name in list(variants)[:-1]}  # fmt: skip
    made = write_made_report(tmp_path, variants, answers, seeds=(1,))
    table = comparison.analyse(made, margin=0.01, reference="gru_28")["comparison"]
    pairs = [("lstm_28", "gru_28", 1), ("agru_28", "gru_28", 1), ("lstm_30", "gru_30", 1)]
    assert rows(table, "a", "b", "n") == [*pairs, ("agru_30", "gru_30", 0)]


def test_each_run_is_judged_by_its_own_labels(made, found):
    assert comparison.test_sets(made) == [["gru", "lstm"], ["agru"]]
    scores = comparison.scores(made)
    assert scores["accuracy"].tolist()[:5] == [1.0, 0.75, 0.75, 0.25, 0.75]
    assert np.isnan(scores["accuracy"][5])  # it did not finish
    summary = found["summary"]
    assert rows(summary, "variant", "n", "mean") == [
        ("gru", 2, 0.875), ("lstm", 2, 0.5), ("agru", 1, 0.75)]  # fmt: skip
    assert summary["sd"].tolist()[:2] == pytest.approx([0.125 * 2**0.5, 0.25 * 2**0.5])
    assert found["table"]["accuracy"].tolist() == [0.875, 0.5, 0.75]
    assert found["table"]["accuracy_sd"].tolist()[:2] == summary["sd"].tolist()[:2]
    assert found["table"]["epochs"].tolist() == [1.5, 2.5, 1]
    assert found["table"]["best_epoch"].tolist() == [1.5, 2.5, 1]


def test_variants_with_other_test_examples_get_a_sentence_and_no_verdict(found):
    (row,) = found["comparison"].to_dict("records")
    assert (row["a"], row["b"], row["n"], row["comparisons"]) == ("gru", "lstm", 2, 1)
    assert row["difference"] == 0.375
    half = scipy_stats.t.ppf(0.975, 1) * 0.125  # differences 0.25 and 0.5
    assert (row["low"], row["high"]) == pytest.approx((0.375 - half, 0.375 + half))
    # rows [0 1 0 0] and [0 1 1 0]: mean squares 1/8 (seeds), 11/24 (examples) and 1/8 (rest)
    freedom = (11 / 24) ** 2 / (1 / 64 + (11 / 24) ** 2 / 3 + 1 / 64 / 3)
    half = scipy_stats.t.ppf(0.975, freedom) * (11 / 24 / 8) ** 0.5
    wider = max(half, scipy_stats.t.ppf(0.975, 1) * 0.125)
    ends = row["family_low"], row["family_high"]
    assert ends == pytest.approx((0.375 - wider, 0.375 + wider))
    assert row["verdict"] == "not distinguishable"
    (unlike,) = found.texts("unlike")
    assert "given within each of these alone: GRU, LSTM; A-GRU." in unlike
    assert found.texts("verdicts")[2] == "- **Not distinguishable:** GRU and LSTM"
    (pair,) = found.texts("pairs")
    assert pair.startswith("- GRU minus LSTM: +37.50 points on average over 2 common seeds")
    assert "With 2 common seeds the smallest difference" in found.texts("verdicts")[3]
    said = numbers(found, "verdicts")[3]
    assert said["resolution_max"] == pytest.approx(wider) and said["unable"] == said["pairs"] == 1


def test_the_best_of_each_test_set_and_what_one_run_of_it_says(found):
    best = found.texts("answer")
    assert "98" not in best[0] and "87.50%, of GRU." in best[0] and "75.00%, of A-GRU." in best[1]
    assert numbers(found, "answer")[0] == {"examples": 4, "steps": 8, "input_size": 8}
    one = numbers(found, "one run")[0]  # the lower of two runs: 3 of 4
    assert one["score"] == 0.75 and one["examples"] == 4 and one["level"] == 0.95
    z = scipy_stats.norm.ppf(0.975) ** 2
    ends = (0.75 + z / 8 + np.array([-1, 1]) * np.sqrt(z * (0.75 * 0.25 / 4 + z / 64))) / (
        1 + z / 4
    )
    assert (one["low"], one["high"]) == pytest.approx(tuple(ends))
    assert found.texts("runs")[2] == "- A-GRU: 75.00% with one seed, which shows no spread."
    assert numbers(found, "runs")[0] == {"level": 0.95}


def test_mcnemar_is_of_pairs_of_fitted_models(found):
    table = found["mcnemar"]
    columns = ["a", "b", "seed", "both_right", "only_a", "only_b", "both_wrong", "p"]
    assert rows(table, *columns) == [
        ("gru", "lstm", 1, 3, 1, 0, 0, 1.0), ("gru", "lstm", 2, 1, 2, 0, 1, 0.5)]  # fmt: skip
    assert numbers(found, "mcnemar") == [
        {"pairs": 2, "significance": pytest.approx(0.05), "different": 0, "only_a": 1.5,
         "only_b": 0.0}]  # fmt: skip


def test_class_errors_by_hand(found):
    table = found["class_errors"].pivot_table("error", "class", ["variant", "seed"], sort=False)
    expected = {("gru", 1): [0, 0], ("gru", 2): [0, 0.5], ("lstm", 1): [0.5, 0],
                ("lstm", 2): [0.5, 1], ("agru", 1): [1, 0]}  # fmt: skip
    for key, values in expected.items():
        assert table[key].tolist() == values
    (text,) = found.texts("classes")  # one variant alone, the A-GRU, has no difference
    assert "class 0: GRU has 0.00% errors there and LSTM 50.00%" in text
    assert numbers(found, "classes") == [{"low": 0, "high": 0.5, "classes": 2, "hardest": "0"}]


def test_what_one_gets_and_the_others_miss(found):
    columns = ["variant", "example", "missed", "label", "mistaken"]
    assert rows(found["alone"], *columns) == [("gru", 1, 1.0, "0", "1"), ("gru", 2, 0.5, "1", "0")]
    assert found.texts("alone") == [
        "Of 4 examples, 0 are missed by every run. Alone: GRU 2, LSTM 0."
    ]
    assert numbers(found, "alone") == [{"examples": 4, "never": 0, "alone": [2, 0]}]


def test_time_to_a_level_and_its_table(made, found):
    times = found["times"]
    reached = times[times["level"] == 0.85]
    assert rows(reached, "variant", "seed", "epoch", "seconds")[:3] == [
        ("gru", 1, 2, 20), ("gru", 2, 1, 10), ("lstm", 1, 4, 40)]  # fmt: skip
    assert times[times["level"] == 0.95]["epoch"].isna().all()
    speed = found["speed"].set_index(["variant", "level"])
    assert speed.loc[("gru", 0.85)].tolist() == [2, 2, 1.5, 15]
    assert speed.loc[("lstm", 0.85)].tolist() == [1, 2, 4, 40]
    table = comparison.speed_table(found["speed"], made)
    assert table.loc["LSTM"].tolist() == ["4 (40 s), 1 of 2", "not reached"]
    assert table.columns.tolist() == ["85%", "95%"] and not found.texts("speed")
    never = comparison.analyse(made, levels=[0.99])
    assert never.texts("speed") == ["No run reaches 99%."]
    assert numbers(never, "speed") == [{"level": 0.99}]


def test_sizes_and_cost(found):
    columns = ["variant", "parameters", "free_parameters", "epochs", "seconds", "seconds_per_epoch",
               "path", "precision"]  # fmt: skip
    unknown = ["not recorded"] * 2
    assert rows(found["sizes"], *columns) == [
        ("gru", 1280, 1152, 1.5, 15, 10, *unknown), ("lstm", 640, 576, 2.5, 25, 10, *unknown),
        ("agru", 1280, 1152, 1, 10, 10, *unknown)]  # fmt: skip
    assert numbers(found, "sizes") == [{"more": 1.0}]
    assert "2 times the free parameters of the smallest" in found.texts("sizes")[0]


def test_calibration_by_hand_and_left_out_where_there_are_no_outputs(tmp_path, found):
    assert found["calibration"].empty and found["reliability"].empty
    assert "Nothing is said of calibration" in found.texts("calibration")[0]
    # seed 1 is sure by 0.8 and right, seed 2 is sure by 0.6 and half right
    outputs = {}
    for seed, answer in ((1, TRUTH), (2, [0, 1, 1, 0])):
        chance = np.full((4, 10), 0.2 / 9 if seed == 1 else 0.4 / 9)
        chance[np.arange(4), answer] = 0.8 if seed == 1 else 0.6
        outputs["gru", seed] = np.log(chance).astype(np.float32)
    answers = {key: (TRUTH, values.argmax(1)) for key, values in outputs.items()}
    report = write_made_report(tmp_path, {"gru": {"model": "gru"}}, answers, outputs=outputs)
    again = comparison.analyse(report)
    assert again["calibration"]["ece"].tolist() == pytest.approx([0.2, 0.1])
    bins = again["reliability"]
    assert bins["count"].tolist() == [4, 4] and bins["accuracy"].tolist() == [0.5, 1]
    assert bins["confidence"].tolist() == pytest.approx([0.6, 0.8])
    (said,) = numbers(again, "calibration")
    assert said["ece"] == pytest.approx(0.15) and said["sd"] == pytest.approx(0.1 / 2**0.5)
    assert said["gap"] == pytest.approx(-0.05)
    assert again.texts("calibration")[0].endswith("confidence 5.00 points below accuracy.")
    assert again["comparison"].empty and again["alone"].empty  # one variant alone


def test_beside_published_figures_is_welchs_test():
    ours = {"variant": "x", "mean": 0.9, "sd": 0.1, "n": 4}
    row = comparison.beside_published(ours, 0.8, 0.08, 5)
    assert row["difference"] == pytest.approx(0.1)
    assert row["published_sd"] == pytest.approx(0.08 * 1.25**0.5)
    a, b = 0.1**2 / 4, 0.0064 * 1.25 / 5
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 4)
    assert row["p"] == pytest.approx(2 * scipy_stats.t.sf(0.1 / (a + b) ** 0.5, freedom))
    assert np.isnan(comparison.beside_published({**ours, "n": 1}, 0.8, 0.08, 5)["p"])


def test_prediction_interval_holds_the_mean_of_further_runs():
    """In 95% of studies, and Student's closed form at two runs a study."""
    low, high = statistics.prediction_interval(0.5, 0.1, 2, 2)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(0.1 * scipy_stats.t.ppf(0.975, 1))
    draw = np.random.default_rng(0).normal(size=(4000, 10))
    ours, theirs = draw[:, :5], draw[:, 5:].mean(1)
    low, high = statistics.prediction_interval(ours.mean(1), ours.std(1, ddof=1), 5, 5)
    assert np.mean((low <= theirs) & (theirs <= high)) == pytest.approx(0.95, abs=0.01)
    assert np.isnan(statistics.prediction_interval(0.5, np.nan, 1, 5)).all()


@pytest.mark.parametrize(
    ("sd", "n", "published", "outcome"),
    [
        (0.001, 5, 0.987, "reproduced"),  # the interval is 0.9862 to 0.9898
        (0.001, 5, 0.986, "not reproduced"),
        (0.002, 5, 0.987, "cannot tell"),  # 0.35 points to each side
        (0.002, 5, 0.984, "not reproduced"),
        (np.nan, 1, 0.987, "cannot tell"),
    ],
)
def test_a_published_mean_is_reproduced_or_not(made, sd, n, published, outcome):
    ours = {"variant": "gru", "mean": 0.988, "sd": sd, "n": n}
    said = Analysis()
    row = comparison.beside_published(ours, published, 0.001, 5)
    assert comparison.reproduction(said, row, made)["outcome"] == outcome
    (text,) = said.texts("reproduced")
    assert text.startswith(f"- GRU: **{outcome}**. Theirs is {100 * published:.2f}%; by our {n} ")


def test_a_published_mean_that_its_rounding_may_have_put_outside_tells_nothing(made):
    ours = {"variant": "gru", "mean": 0.988, "sd": 0.001, "n": 5}
    low, _ = statistics.prediction_interval(0.988, 0.001, 5, 5)
    for published, outcome in ((low - 4e-5, "cannot tell"), (low - 6e-5, "not reproduced")):
        row = comparison.beside_published(ours, published, 0.001, 5)
        assert comparison.reproduction(Analysis(), row, made)["outcome"] == outcome


def test_only_published_settings_can_reproduce():
    """Under the authors' settings a model has an outcome; under others its settings stand there."""
    theirs = load_protocol(PROJECT / "params/agru_authors.yaml").parameterisations
    assert theirs["gru"].initialisation == "xavier" and theirs["gru"].best_by == "loss"
    for name, outcomes in (("agru_authors", True), ("row_mnist", False)):
        report = Report(PROJECT / f"reports/published/{name}")
        frame = comparison.analyse(report)["published"]
        assert frame["variant"].tolist() == ["lstm", "gru", "agru"]
        assert (frame["settings"] == "nothing").all() == outcomes == frame["outcome"].notna().all()
        assert frame["settings"].str.contains("initialisation uniform").all() != outcomes


def test_texts_of_tables(made, found):
    table = comparison.tests_table(found["comparison"], made)
    assert table.columns.tolist() == ["GRU − LSTM"]
    assert table["GRU − LSTM"]["difference"] == "+37.500"
    assert table["GRU − LSTM"]["verdict"] == "not distinguishable"
    ours = {"variant": "gru", "mean": 0.9, "sd": 0.1, "n": 4}
    row = comparison.beside_published(ours, 0.8, 0.08, 5) | {"settings": "nothing"}
    table = comparison.published_table(pd.DataFrame([row]), made)
    assert table.iloc[0, :4].tolist() == [
        "GRU", "90.00 ± 10.00 (4 seeds)", "80.00 ± 8.94 (5 runs)", "+10.00"]  # fmt: skip


def test_a_report_without_a_finished_run_is_refused(tmp_path):
    report = write_made_report(tmp_path, VARIANTS, {})
    with pytest.raises(UserError, match="no finished run, so there is nothing to compare"):
        comparison.analyse(report)
    with pytest.raises(UserError, match="finished runs of fewer than two variants"):
        ablation.analyse(report)


# Published reports, without outputs and weights


@cache
def published(name, module=comparison):
    """A published report, and the analysis of one of its pages."""
    report = Report(PROJECT / "reports/published" / name)
    return report, module.analyse(report)


# What row_mnist.yaml sets otherwise than the A-GRU's authors, for every model.
UNLIKE = (
    "initialisation uniform and plateau_minimum 0.0 and drop_last no and best_by score and "
    "min_delta 0.0"
)
ON_03 = ["row_mnist", "controls", "tuned", "row_mnist_matched", "vogt"]


@pytest.mark.parametrize("name", ON_03)
def test_the_comparison_of_a_published_report(name):
    _, found = published(name)
    assert "published report leaves them out" in found.texts("calibration")[0]
    beside = found["published"].set_index("variant")
    if name == "row_mnist":
        assert (100 * beside["published"]).tolist() == pytest.approx([98.82, 98.97, 98.63])
        assert beside["settings"].tolist() == [
            f"forget_bias 1.0 and {UNLIKE}", UNLIKE,
            f"epsilon_itself no and initial_scale 1.0 and {UNLIKE}",
        ]  # fmt: skip
        differences = [0.018, -0.124, 0.072]  # of 98.838, 98.846 and 98.702
        assert (100 * beside["difference"]).tolist() == pytest.approx(differences)
        assert found["comparison"]["verdict"].tolist() == [
            "equivalent within 0.2 points", "better", "better"]  # fmt: skip
        assert found.texts("rules")[0].startswith("Tested is the epoch of the highest validation a")
        assert found.texts("speed")[0] == comparison.SHARED  # two jobs on two cores
        assert "seconds" not in found["sizes"] and found["times"]["seconds"].isna().all()
    if name == "row_mnist_matched":
        assert beside["settings"].tolist() == [
            f"forget_bias 1.0 and hidden_size 109 and {UNLIKE}", UNLIKE,
            f"epsilon_itself no and initial_scale 1.0 and hidden_size 139 and {UNLIKE}",
        ]  # fmt: skip


def test_the_ablation_of_a_published_search_is_by_model():
    _, found = published("tuning", ablation)
    assert found["effects"]["b"].nunique() == 3 and len(found["effects"]) == 15
    assert len(found.texts("highest")) == 4 and len(found["scores"]) == 36
    assert found.texts("trust")[1].startswith("GRU-rate_0.001_dropout_0: With 2 common seeds")


def claims(report, found):
    """Each verdict of a page, turned to one order of the pair, by all that it depends on."""
    turned = {"better": "worse", "worse": "better"}
    names = {name: own.model_dump_json(exclude={"variant", "seed"})
             for name, own in report.variants.items()}  # fmt: skip
    for frame in found.frames.values():
        for row in frame.to_dict("records") if "verdict" in frame else ():
            pair, (kind, *rest) = [names[row["a"]], names[row["b"]]], row["verdict"].split(", ")
            if pair != sorted(pair):
                kind = turned.get(kind, kind)
            seeds = [{run.key[1] for run in report.of(row[end])} for end in "ab"]
            family = frozenset(names[name] for name in {*frame["a"], *frame["b"]})
            common = frozenset(seeds[0] & seeds[1])
            yield (*sorted(pair), common, row["scope"], family, row["margin"]), (kind, *rest)


def contradictions(pages):
    """The claims, and those of which another page says otherwise."""
    said = {}
    return said, [depends for page in pages for depends, verdict in claims(*page)
                  if said.setdefault(depends, verdict) != verdict]  # fmt: skip


def test_no_two_published_pages_contradict_each_other():
    pages = [published(name) for name in [*ON_03, "noise_padded"]]
    pages += [published(name, ablation) for name in ("tuning", "ablation")]
    said, against = contradictions(pages)
    assert not against
    for report, found in pages:
        for row, text in zip(found.frames.get("comparison", pd.DataFrame()).to_dict("records"),
                             found.texts("pairs"), strict=True):  # fmt: skip
            assert text.endswith(f": {statistics.verdict_text(row, report.labels)}.")
            assert row["scope"] in text
    assert len(said) == 12 + 12 + 15 + 25
    report, found = pages[0]  # the same page once more, one verdict the other way round
    table = found["comparison"].replace({"verdict": {"equivalent within 0.2 points": "better"}})
    other = (report, SimpleNamespace(frames={"comparison": table}))
    assert len(contradictions([*pages, other])[1]) == 1


def test_the_rule_of_both_pages_is_one():
    _, found = published("ablation", ablation)
    again = statistics.compare(found["scores"], 0.002, reference="baseline", split="validation")
    columns = ["a", "difference", "family_low", "family_high", "verdict"]
    ours = found["effects"][columns].sort_values("a", ignore_index=True)
    pd.testing.assert_frame_equal(ours, again[columns].sort_values("a", ignore_index=True))


def record(machine, started, finished):
    return SimpleNamespace(record={"machine": machine, "started": started, "finished": finished})


@pytest.mark.parametrize(
    ("runs", "said"),
    [([("x", "1", "3"), ("x", "3", "4")], False), ([("x", "2", "4"), ("x", "1", "3")], True),
     ([("x", "1", "3"), ("y", "2", "4")], False), ([], False)],
)  # fmt: skip
def test_runs_that_overlap_on_a_machine_shared_it(runs, said):
    assert comparison.shared(SimpleNamespace(runs=[record(*run) for run in runs])) is said


def test_the_rules_of_a_run_are_told():
    own = run_parameters({"model": "gru", "best_by": "loss", "min_delta": 0.01}, "the test")
    assert comparison.rules(own, Score()) == (
        "Tested is the epoch of the lowest validation loss; training stops after 10 epochs without "
        "a fall of at least 0.01 of the validation loss, at the latest after 50 epochs."
    )
    own = run_parameters({"model": "gru", "patience": None, "steps": 2000}, "the test")
    assert comparison.rules(own, Score()) == (
        "Tested is the epoch of the highest validation accuracy; training stops after 50 epochs or "
        "2,000 steps."
    )


# The ablation by hand


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    variants = {
        "base": {"model": "agru"},
        "wide": {"model": "agru", "hidden_size": 256},
        "damped": {"model": "agru", "gamma": 0.5},
    }
    means = {"base": [0.90, 0.92], "wide": [0.95, 0.97], "damped": [0.90, 0.921]}
    history = {
        (v, s): [0.1, m] for v, values in means.items() for s, m in zip((1, 2), values, strict=True)
    }
    answers = {key: (TRUTH, TRUTH) for key in history}
    report = write_made_report(tmp_path_factory.mktemp("changed"), variants, answers, history)
    return report, ablation.analyse(report, margin=0.01)


def test_the_frames_of_an_ablation(changed):
    report, found = changed
    variants = found["variants"].set_index("variant")
    assert variants["mean"].tolist() == pytest.approx([0.91, 0.96, 0.9105])
    assert variants["sd"].tolist()[:2] == pytest.approx([0.02 / 2**0.5] * 2)
    assert variants.loc["wide"].tolist()[2:] == [2, 2304]
    assert found["scores"]["accuracy"].tolist() == [0.90, 0.92, 0.95, 0.97, 0.90, 0.921]
    effects = found["effects"]
    assert rows(effects, "a", "b", "change", "keys") == [
        ("wide", "base", "hidden_size 256", "hidden_size"), ("damped", "base", "gamma 0.5", "gamma")
    ]  # fmt: skip
    assert effects["difference"].tolist() == pytest.approx([0.05, 0.0005])
    own, family = 0.001**2 / 2, 0.001**2 / 4  # of 0 and 0.001; the other change does not vary
    half = scipy_stats.t.ppf(1 - 0.05 / 2 / 2, 2) * ((own + family) / 2 / 2) ** 0.5
    ends = effects.loc[1, ["family_low", "family_high"]].tolist()
    assert ends == pytest.approx([0.0005 - half, 0.0005 + half])
    assert effects["verdict"].tolist() == ["better", "equivalent within 1 points"]
    assert set(effects["split"]) == {"validation"}
    table = ablation.table_of(found, report)
    assert table["validation"].tolist()[0] == "96.00 ± 1.41"
    assert table["effect"].tolist() == ["+5.00", "+0.05"]
    assert table["free parameters"].tolist() == ["2,304", "1,152"]


def test_the_findings_of_an_ablation(changed):
    _, found = changed
    assert "of 91.00% on the 8 × 8 digits" in found.texts("answer")[0]
    assert numbers(found, "answer")[0] == {"seeds": 2, "changes": 2, "steps": 8, "input_size": 8}
    assert found.texts("answer")[1] == "- **Better:** hidden_size 256 (+5.00)"
    assert found.texts("answer")[3] == "- **Equivalent:** gamma 0.5 (+0.05)"
    (take,) = found.texts("recommendation")
    assert take.startswith("**Take hidden_size 256** (base otherwise): +5.00 points, corrected")
    assert take.endswith("with 2.0 times the free parameters.")
    assert numbers(found, "recommendation") == [{"times": 2.0}]
    assert found.texts("highest")[0].endswith("where one has to be chosen: wide (96.00%).")
    assert numbers(found, "highest")[1] == {"later": 3}
    assert found.texts("trust")[0].startswith("With 2 common seeds the smallest difference")
    assert numbers(found, "trust")[0]["resolution_max"] == found["effects"]["resolution"].max()


# One run


def test_the_worst_mistakes_and_the_sentence_of_one_run(tmp_path):
    chance = np.full((4, 10), 1e-3)
    chance[[0, 1, 2, 3], [0, 1, 1, 0]] = [0.9, 0.6, 0.5, 0.7]  # right, wrong, right, wrong
    chance[[1, 3], [0, 1]] = [0.3, 0.2]
    chance /= chance.sum(1, keepdims=True)
    outputs = {("gru", 1): np.log(chance).astype(np.float32)}
    answers = {("gru", 1): (TRUTH, chance.argmax(1))}
    report = write_made_report(tmp_path, {"gru": {"model": "gru"}}, answers, outputs=outputs,
                               seeds=(1,))  # fmt: skip
    (run,) = report.runs
    found = training.analyse(run)
    worst = found["worst"]
    assert worst["example"].tolist() == [3, 1] and worst["score"].tolist() == [0, 0]
    assert worst["loss"].tolist() == pytest.approx(-np.log(chance[[3, 1], [1, 0]]), rel=1e-5)
    assert worst["text"].tolist() == ["1 → 0 (0.77)", "0 → 1 (0.66)"]
    assert found["facts"]["value"].tolist() == ["1,280", "1,152", "1", "1", "10.0",
                                                "cpu, 1 thread(s)"]  # fmt: skip
    said = numbers(found, "answer")
    assert said[0]["mean"] == 0.5 and said[0]["examples"] == 4 and said[0]["seed"] == 1
    assert (said[1]["most"], said[1]["least"]) == (0.5, 0.5)
    assert found.texts("answer")[0].startswith("GRU with seed 1 has a mean accuracy of 50.00% on 4")
    run.task.score = Score(name="accuracy", scale=1.0, unit="nats", difference="nats")
    run.record["data"]["class_names"] = []  # a task without classes
    found = training.analyse(run)
    assert found["worst"]["example"].tolist() == [3, 1, 2, 0] and len(found.findings) == 2
    assert found["worst"]["text"].tolist()[0] == "0.0000 nats"
    assert training.report_of(run).labels == {"gru": "GRU"}


# The pages


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A trained report of four variants on digits, two seeds each."""
    folder = tmp_path_factory.mktemp("small")
    variants = {name: {"model": name} for name in ("lstm", "gru", "agru")}
    variants["gamma_2"] = {"model": "agru", "gamma": 2.0}
    protocol = {**TINY, "models": ["lstm", "gru", "agru"], "variants": variants, "runs": 2}
    (folder / "protocol.yaml").write_text(to_yaml({**protocol, "seed": 42}))
    for name, values in variants.items():
        for seed in (42, 43):
            values = {**TINY, **values, "seed": seed, "variant": name}
            parameters = run_parameters(values, "the test")
            train_run(parameters, folder / "runs" / parameters.run, report=lambda line: None)
    write_tables(Report(folder))
    return folder


@pytest.mark.parametrize(
    ("page", "name", "options"),
    [
        ("03_compare", "comparison", {"levels": [0.2, 0.3, 0.9]}),
        ("04_eigenvalues", "eigenvalues", {"examples": 4}),
        ("06_ablation", "ablation", {"reference": "agru"}),
        ("07_gradients", "gradients", {"examples": 4}),
    ],
)
def test_every_number_on_the_page_is_in_the_saved_analysis(small, page, name, options, tmp_path):
    executed = execute(page, tmp_path / "out.ipynb", output_dir=str(small), **options)
    saved = load(small / "analyses" / name)
    report = Report(small)
    assert analyse(name, report, **saved.options).findings == saved.findings
    names = [*report.variants, *report.labels.values(), "F1"]
    assert sum(map(len, shown(executed))) > 500
    assert unexplained(executed, [saved], names) == []
    size = sum(path.stat().st_size for path in (small / "analyses" / name).iterdir())
    assert size < 200_000


def test_the_training_page_shows_what_the_run_says_and_keeps_it_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    for _ in range(2):
        executed = execute("02_train", tmp_path / "out.ipynb", **TINY, model="gru")
    text = " ".join(shown(executed))
    assert "gru-seed42 is finished: its results are read, not trained again." in text
    assert "GRU with seed 42 has a mean accuracy of" in text and "torch.nn.LSTM" in text
    assert "is the hardest, with" in text and "trained parameters" in text
    kept = list(tmp_path.glob("reports/by_hand/gru-seed42-*/run.json"))
    assert len(kept) == 1
