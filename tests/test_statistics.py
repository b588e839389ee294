"""Intervals, tests and verdicts: hand-computed answers, the libraries' own, simulated studies."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats
from scipy.special import expit
from sklearn.calibration import calibration_curve
from statsmodels.formula.api import ols
from statsmodels.stats.contingency_tables import mcnemar

from rnnbench_nb import statistics as stats
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.metrics import Score
from rnnbench_nb.report import read_csv

NAMES = ["lstm", "gru", "agru"]
LABELS = {"lstm": "LSTM", "gru": "GRU", "agru": "A-GRU", "a": "a", "b": "b", "c": "c"}


def tidy(scores):
    """Results frame from {variant: one score a seed}."""
    return pd.DataFrame(
        [(name, seed, x) for name, xs in scores.items() for seed, x in enumerate(xs)],
        columns=["variant", "seed", "accuracy"],
    )


def made_example(seed, n=10):
    generator = np.random.default_rng(seed)
    pool = generator.normal(0, 5e-4, n)  # what a seed's split does to all models alike
    means = generator.normal(0.988, 5e-4, 3)
    return {k: m + pool + generator.normal(0, 1e-3, n) for k, m in zip(NAMES, means, strict=True)}


# Three made examples against scipy's and statsmodels' own functions


@pytest.mark.parametrize("example", [0, 1, 2])
def test_summary_agrees_with_scipy(example):
    scores = made_example(example)
    table = stats.summary(tidy(scores)).set_index("variant")
    assert list(table.index) == NAMES
    for name, x in scores.items():
        interval = scipy_stats.ttest_1samp(x, 0).confidence_interval(0.95)
        row = table.loc[name]
        expected = [10, x.mean(), x.std(ddof=1), *interval, x.min(), x.max()]
        np.testing.assert_allclose(row[:7].astype(float), expected, rtol=1e-12)


@pytest.mark.parametrize("example", [0, 1, 2])
def test_the_interval_that_decides_by_hand(example):
    scores = made_example(example)
    table = stats.compare(tidy(scores), margin=0.001)
    pairs = [("lstm", "gru"), ("lstm", "agru"), ("gru", "agru")]
    assert list(zip(table["a"], table["b"], strict=True)) == pairs
    assert list(table.columns) == stats.COMPARISON_COLUMNS
    each = [scores[a] - scores[b] for a, b in pairs]
    family = np.mean([d.var(ddof=1) for d in each])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
    for (a, b), d, row in zip(pairs, each, table.to_dict("records"), strict=True):
        paired = scipy_stats.ttest_rel(scores[a], scores[b]).confidence_interval()
        np.testing.assert_allclose([row["low"], row["high"]], paired, rtol=1e-9)
        spread = (4 * family + 9 * d.var(ddof=1)) / 13  # 4 lent degrees of freedom, 9 own
        half = scipy_stats.t.ppf(1 - 0.05 / 2 / 3, 13) * np.sqrt(spread / 10)
        ends = [d.mean() - half, d.mean() + half]
        np.testing.assert_allclose([row["family_low"], row["family_high"]], ends)
        assert row["resolution"] == pytest.approx(half)
        assert row["p"] == np.mean(np.abs(d @ signs) >= abs(d.sum()) * (1 - 1e-9))
        correlation = scipy_stats.pearsonr(scores[a], scores[b])[0]
        np.testing.assert_allclose(row["correlation"], correlation)


def test_two_variants_are_the_paired_t_test_and_few_seeds_are_lent_less():
    a, b = np.array([0.98, 0.975, 0.983, 0.979]), np.array([0.97, 0.971, 0.972, 0.974])
    row = stats.compare(tidy({"a": a, "b": b}), 0.002).iloc[0]
    paired = tuple(scipy_stats.ttest_rel(a, b).confidence_interval())
    assert (row["low"], row["high"]) == pytest.approx(paired)
    assert (row["family_low"], row["family_high"]) == pytest.approx(paired)
    c = np.array([0.97, 0.97, 0.98, 0.98])
    row = stats.compare(tidy({"a": a[:2], "b": b[:2], "c": c[:2]}), 0.002, reference="b").iloc[0]
    own, other = (a - b)[:2].var(ddof=1), (c - b)[:2].var(ddof=1)
    spread = (1 * (own + other) / 2 + 1 * own) / 2  # of 4, one variant has one to lend
    half = scipy_stats.t.ppf(1 - 0.05 / 2 / 2, 2) * np.sqrt(spread / 2)
    assert row["resolution"] == pytest.approx(half)


def test_a_family_lends_only_to_what_was_tested_alike():
    scores = made_example(0, 3) | {"far": np.array([0.1, 0.9, 0.5])}
    scores["near"] = scores["far"] + np.array([0.1, -0.1, 0.2])
    tested = {name: name in NAMES for name in scores}
    table = stats.compare(tidy(scores), 0.001, tested_on=tested)
    alone = stats.compare(tidy({name: scores[name] for name in NAMES}), 0.001)
    assert table["comparisons"].tolist() == [4] * 4
    widths = scipy_stats.t.ppf(1 - 0.025 / np.array([4, 3]), 4)  # 2 own, 2 lent
    assert table["resolution"][0] / alone["resolution"][0] == pytest.approx(widths[0] / widths[1])


def test_two_way_interval_has_the_mean_squares_of_statsmodels():
    generator = np.random.default_rng(3)
    a = generator.random((4, 8)) < 0.9
    b = generator.random((4, 8)) < np.repeat([0.1, 0.9], 4)
    d = a.astype(float) - b
    seed, image = np.indices(d.shape)
    frame = pd.DataFrame({"d": d.ravel(), "seed": seed.ravel(), "image": image.ravel()})
    table = sm.stats.anova_lm(ols("d ~ C(seed) + C(image)", frame).fit())
    squares, df = (table["sum_sq"] / table["df"]).to_numpy(), table["df"].to_numpy()
    assert squares[1] > squares[2]  # else the example would not reach the formula
    total = squares[0] + squares[1] - squares[2]
    freedom = total**2 / (squares**2 / df).sum()
    half = scipy_stats.t.ppf(0.975, freedom) * np.sqrt(total / d.size)
    interval = stats.two_way_interval(a, b)
    np.testing.assert_allclose(interval, [d.mean() - half, d.mean() + half])
    even = np.eye(4, 8, dtype=bool) | (np.arange(4)[:, None] == 0)  # no image is special
    interval = scipy_stats.ttest_1samp(even.mean(1), 0).confidence_interval()
    np.testing.assert_allclose(stats.two_way_interval(even, ~even & even), interval)


# Simulated studies

SPLIT = 5e-4  # what a seed's split and order do to all models alike
MARGIN, GAP = 0.002, 0.003


def published_spreads(report, split):
    """The standard deviations over seeds of the variants of a published report."""
    folder = PROJECT / "reports/published" / report
    results = read_csv(folder / "results.csv")
    if split == "validation":
        results = stats.validation_scores(results, read_csv(folder / "history.csv"))
    return results.groupby("variant", sort=False)["accuracy"].std()


# Three models, every pair; nineteen changes of one; a search.
FAMILIES = {
    "row_mnist": ("test", None),
    "controls": ("test", None),
    "ablation": ("validation", "baseline"),
}
STUDIES = {
    2: (0.0, MARGIN), 3: (0.0, MARGIN), 7: (0.0, MARGIN), 10: (0.0, MARGIN, GAP),
}  # fmt: skip


def rate(report, seeds, gap, count):
    """The share of families with a wrong verdict; of a gap above the margin, with a right one.

    Wrong are "better" or "worse" if all are equal, and "equivalent" to the one that is `gap` above.
    """
    split, reference = FAMILIES[report]
    spreads = published_spreads(report, split)
    generator, names = np.random.default_rng([seeds, round(1e4 * gap)]), list(spreads.index)
    first, found = reference or names[0], 0
    for _ in range(count):
        scores = generator.normal(0, spreads.to_numpy()[:, None], (len(names), seeds))
        scores += 0.985 + generator.normal(0, SPLIT, seeds)
        scores[names.index(first)] += gap
        table = stats.compare(tidy(dict(zip(names, scores, strict=True))), MARGIN,
                              reference=reference)  # fmt: skip
        of_first = table[(table["a"] == first) | (table["b"] == first)]["verdict"]
        verdicts = of_first if gap else table["verdict"]
        kinds = "equivalent" if gap == MARGIN else "better|worse"
        told = verdicts.str.contains(kinds)
        found += told.all() if gap > MARGIN else told.any()
    return found / count


@pytest.fixture
def quick_flips(monkeypatch):
    monkeypatch.setattr(stats.verdicts, "sign_flip_p", lambda differences: 1.0)  # decides nothing


CASES = [(report, seeds, gap) for report in FAMILIES for seeds, gaps in STUDIES.items()
         for gap in gaps if not (gap == GAP and report == "ablation")]  # fmt: skip


def keeps_its_promise(report, seeds, gap, count):
    allowed = 0.05 + 2 * (0.05 * 0.95 / count) ** 0.5
    found = rate(report, seeds, gap, count)
    return found >= 0.95 if gap == GAP else found <= allowed


@pytest.mark.parametrize(
    ("report", "seeds", "gap", "count"),
    [("row_mnist", 2, 0.0, 60), ("row_mnist", 3, MARGIN, 60), ("row_mnist", 10, 0.0, 60),
     ("row_mnist", 10, GAP, 60), ("ablation", 3, 0.0, 25)],
)  # fmt: skip
def test_simulated_families_keep_their_promises(report, seeds, gap, count, quick_flips):
    assert keeps_its_promise(report, seeds, gap, count)


@pytest.mark.slow
@pytest.mark.parametrize(("report", "seeds", "gap"), CASES)
def test_two_thousand_simulated_families_keep_their_promises(report, seeds, gap, quick_flips):
    assert keeps_its_promise(report, seeds, gap, 2000)


def test_simulated_models_equal_on_all_digits_are_seldom_called_different(quick_flips):
    """Answers to 10,000 images, 350 of them hard, and for each model other ones the hardest."""
    generator, different = np.random.default_rng(2024), 0
    for _ in range(40):
        common = generator.normal(-1, 1.5, 350)
        correct = {}
        for name in NAMES:
            wrong = expit(common + generator.normal(0, 1, 350))  # mean 0.343: 1.2% of all images
            wrong = wrong * generator.normal(1, 0.05, (10, 1))  # better and worse seeds
            answers = generator.random((10, 350)) >= wrong
            correct |= {(name, seed): row for seed, row in enumerate(answers)}
        rows = [(name, seed, row.mean()) for (name, seed), row in correct.items()]
        results = pd.DataFrame(rows, columns=["variant", "seed", "accuracy"])
        table = stats.compare(results, MARGIN, examples=correct)
        different += table["verdict"].str.contains("better|worse").any()
    assert different <= 4


# Verdicts


def test_each_verdict_is_reached_and_said():
    wave = 1e-3 * np.array([1, -1, 2, -2, 1, -1, 2, -2, 0, 0])
    scores = {"lstm": 0.985 + wave, "gru": 0.985 + wave[::-1] * 0.5, "agru": 0.975 - wave}
    table = stats.compare(tidy(scores), margin=0.005)
    assert list(table["verdict"]) == ["equivalent within 0.5 points", "better", "better"]
    assert list(stats.compare(tidy(scores), 5e-4)["verdict"])[0] == "not distinguishable"
    said = [stats.sentence(row, LABELS) for row in table.to_dict("records")]
    assert said[2].startswith("GRU minus A-GRU: +1.00 points on average over 10 common seeds (95% ")
    assert "for new seeds on these test examples, corrected for 3 comparisons" in said[2]
    assert said[2].endswith("): GRU is better.")
    small = stats.compare(tidy(scores), margin=0.02).to_dict("records")[2]
    assert stats.sentence(small, LABELS).endswith("GRU is better, by less than the margin.")


@pytest.mark.parametrize(
    ("ends", "said"),
    [((0.001, 0.004), "better"), ((-0.004, -0.001), "worse"),
     ((0.0001, 0.0019), "better, by less than the margin"), ((-0.001, 0.0019), "equivalent within"),
     ((-0.001, 0.0021), "not distinguishable"), ((np.nan, np.nan), stats.UNKNOWN)],
)  # fmt: skip
def test_the_rule(ends, said):
    assert stats.verdict(*ends, 0.002).startswith(said)
    assert ("margin" in stats.verdict(*ends, 0.002)) == ("margin" in said)


def test_new_images_can_take_a_verdict_away():
    # b misses the same 4 of 1,000 images with every seed, and 1 or 2 more: sure here, not elsewhere
    right = np.ones((10, 1000), bool)
    missed = right.copy()
    missed[:, :4] = False
    missed[::2, 4] = missed[:, 5] = False
    results = tidy({"a": right.mean(1), "b": missed.mean(1)})
    assert stats.compare(results, 0.001)["verdict"][0] == "better"
    correct = {(k, s): x[s] for k, x in (("a", right), ("b", missed)) for s in range(10)}
    for extra, verdict in ((0, "better"), (5, "not distinguishable")):
        for seed in range(
            10
        ):  # 5 more images that only a misses, 5 that only b misses: the same gap
            correct["a", seed][6 : 6 + extra] = False
            correct["b", seed][11 : 11 + extra] = False
        row = stats.compare(results, 0.001, examples=correct).iloc[0]
        assert row["low"] > 0 and row["verdict"] == verdict
        assert (row["family_low"] > 0) == (extra == 0)
        assert "for new seeds and new test examples" in stats.sentence(row, LABELS)
    wide = [stats.compare(results, m, examples=correct).iloc[0] for m in (0.01, 0.02)]
    assert [row["verdict"] for row in wide] == ["not distinguishable", "equivalent within 2 points"]


def test_what_seeds_can_tell_is_said_once():
    wave = np.array([1, -1, 0]) * 1e-3
    scores = {"a": 0.98 + wave, "b": 0.97 - wave}  # differences of sd 0.2 points
    table = stats.compare(tidy(scores), margin=0.002)
    half = scipy_stats.t.ppf(0.975, 2) * 0.002 / np.sqrt(3)
    assert table["resolution"][0] == pytest.approx(half)
    needed = next(n for n in range(2, 99) if scipy_stats.t.ppf(0.975, n - 1) <= np.sqrt(n))
    assert table["seeds_needed"][0] == needed
    assert stats.resolution_sentence(table) == (
        "With 3 common seeds the smallest difference that can be told from none is "
        f"{100 * half:.2f} points. At a margin of 0.2 points they could not be called equivalent "
        f"if they were: this spread needs at least {needed} seeds (`--runs {needed}`)."
    )
    several = stats.resolution_sentence(stats.compare(tidy(scores | {"c": scores["a"]}), 0.002))
    assert ", by pair. At" in several and "of 3 pairs could not be called" in several
    assert "could not" not in stats.resolution_sentence(stats.compare(tidy(scores), margin=0.02))
    one = stats.compare(tidy({name: values[:1] for name, values in scores.items()}), 0.002)
    assert stats.resolution_sentence(one).startswith("One seed, or seeds that do not vary")
    assert stats.resolution_sentence(one[:0]) == ""


def test_ties_count_whatever_the_rounding_of_floats():
    # differences of 7, -4, 21, 0, -7 images: |sum| >= 17 in 24 of 32 sign patterns, 8 of them tied
    a, b = [0.9887, 0.9870, 0.9888, 0.9880, 0.9887], [0.9880, 0.9874, 0.9867, 0.9880, 0.9894]
    assert stats.compare(tidy({"a": a, "b": b}), 0.001)["p"][0] == 24 / 32


def test_one_seed_no_spread_and_no_common_seed_are_no_crash_and_no_claim():
    results = pd.DataFrame(
        [("a", 1, 0.9), ("b", 1, 0.8), ("b", 2, 0.8), ("c", 2, 0.8), ("c", 3, np.nan)],
        columns=["variant", "seed", "accuracy"],
    )
    table = stats.compare(results, 0.01)
    assert list(table["n"]) == [1, 0, 1] and list(table["p"]) == [1, 1, 1]
    assert (table["verdict"] == stats.UNKNOWN).all()
    assert "+10.00 points in the one common seed" in stats.sentence(table.iloc[0], LABELS)
    assert stats.sentence(table.iloc[1], LABELS).startswith("a and c have no seed in common")
    same = stats.compare(tidy({"a": [0.3, 0.2, 0.4], "b": [0.2, 0.1, 0.3]}), 0.5).iloc[0]
    assert np.isnan(same["low"]) and same["verdict"] == stats.UNKNOWN
    assert stats.summary(results)["n"].tolist() == [1, 2, 1]
    said = stats.summary_sentence(stats.summary(results).iloc[0], "a")
    assert said == "a: 90.00% with one seed, which shows no spread."
    assert stats.compare(results.query("variant == 'a'"), 0.01).empty


def test_reference_halves_the_family_and_wrong_input_is_refused():
    results = tidy(made_example(0))
    table = stats.compare(results, 0.001, reference="gru")
    assert table[["a", "b"]].values.tolist() == [["lstm", "gru"], ["agru", "gru"]]
    assert (table["comparisons"] == 2).all()
    with pytest.raises(UserError, match="'rnn' is none of the variants"):
        stats.compare(results, 0.001, reference="rnn")
    with pytest.raises(UserError, match="margin is 0"):
        stats.compare(results, 0)
    with pytest.raises(UserError, match="twice"):
        stats.compare(pd.concat([results, results]), 0.001)


def test_summary_sentence():
    row = stats.summary(tidy({"gru": [0.98, 0.99, 1.0]})).iloc[0]
    said = "GRU: 99.00% on average over 3 seeds (sd 1.00, 95% interval 96.52 to 101.48, runs 98.00"
    assert stats.summary_sentence(row, "GRU") == f"{said} to 100.00)."


def test_only_variants_that_were_tested_on_the_same_examples_are_compared():
    scores = {"a": [0.9, 0.8], "b": [0.7, 0.9], "c": [0.8, 0.8]}
    table = stats.compare(tidy(scores), 0.01, tested_on={"a": 1, "b": 2, "c": 1})
    assert table[["a", "b"]].values.tolist() == [["a", "c"]] and table["comparisons"][0] == 1
    assert stats.compare(tidy(scores), 0.01, tested_on={"a": 1, "b": 2, "c": 3}).empty


def test_each_set_of_test_examples_has_a_reference():
    scores = {name: [0.9, 0.8] for name in "abcde"}
    places = {"a": 1, "b": 2, "c": 1, "d": 2, "e": 3}
    table = stats.compare(tidy(scores), 0.01, reference="a", tested_on=places)
    assert table[["a", "b"]].to_numpy().tolist() == [["c", "a"], ["d", "b"]]
    table = stats.compare(tidy(scores), 0.01, reference="d", tested_on=places)
    assert table[["a", "b"]].to_numpy().tolist() == [["b", "d"], ["c", "a"]]
    assert set(table["comparisons"]) == {2}


def test_a_score_in_another_unit_is_compared_and_said_in_it():
    score = Score(name="fit", scale=1.0, unit="nats", difference="nats")
    fits = {"a": [-0.5, -0.4, -0.3], "b": [-0.7, -0.55, -0.6]}  # differences 0.2, 0.15, 0.3
    results = tidy(fits).rename(columns={"accuracy": "fit"})
    each = {(v, s): np.array([x - 0.1, x + 0.1]) for v in fits for s, x in enumerate(fits[v])}
    (row,) = stats.compare(results, 0.02, score, examples=each).to_dict("records")
    assert row["difference"] == pytest.approx(0.65 / 3) and row["verdict"] == "better"
    assert stats.sentence(row, LABELS, score).startswith("a minus b: +0.2167 nats on average over")
    said = stats.summary_sentence(stats.summary(results, score).iloc[0], "a", score)
    assert said.startswith("a: -0.4000 nats on average over 3 seeds (sd 0.1000, 95% interval")
    wide = stats.compare(results, 5.0, score).iloc[0]
    assert wide["verdict"] == "better, by less than the margin"
    assert stats.verdict(-1, 1, 5.0, score) == "equivalent within 5 nats"
    assert stats.example_interval(np.array([0.2, 0.4, 0.9])) == pytest.approx(
        tuple(scipy_stats.ttest_1samp([0.2, 0.4, 0.9], 0).confidence_interval())
    )
    assert stats.example_interval(np.array([0.0, 1.0, 1.0])) == stats.wilson(2, 3)


def test_numbers_are_worded_in_the_unit_of_the_score():
    assert stats.shown(0.98765, Score()) == "98.77" and stats.shown(0.01, Score(), "+") == "+1.00"
    assert stats.with_unit("98.77", Score()) == "98.77%"
    assert stats.with_unit("0.5", Score(scale=1, unit="nats")) == "0.5 nats"
    assert stats.shown_range(-0.001, 0.02, Score()) == "-0.10 to +2.00"
    assert stats.shown_range(np.nan, np.nan, Score()) == "unknown"


# One test set


def test_wilson_by_hand():
    p, z, n = 0.988, scipy_stats.norm.ppf(0.975), 10_000
    half = z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    expected = (np.array([-half, half]) + p + z**2 / 2 / n) / (1 + z**2 / n)
    np.testing.assert_allclose(stats.wilson(9880, n), expected)


def test_mcnemar_per_seed():
    label = np.zeros(12, int)
    a, b = np.ones((2, 12), int), np.ones((2, 12), int)
    a[0, :10], b[0, :3] = 0, 0  # both right 3, only a 7, neither 2
    a[1, :4], b[1, :4] = 0, 0
    table = stats.mcnemar_per_seed(a == label, b == label, seeds=[42, 43])
    assert table.iloc[:, :5].values.tolist() == [[42, 3, 7, 0, 2], [43, 4, 0, 0, 8]]
    np.testing.assert_allclose(table["p"], [2 / 2**7, 1.0])
    np.testing.assert_allclose(table["p"][0], mcnemar([[3, 7], [0, 2]]).pvalue)
    said = stats.mcnemar_sentence(table, "gru", "lstm")
    assert "in 1 of 2 pairs" in said and "not the architectures" in said


def test_calibration_by_hand_and_by_sklearn():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.35, 0.65], [0.45, 0.55]])
    label = np.array([0, 1, 1, 0])
    table = stats.reliability_table(np.log(probability), label, bins=2)
    assert table["count"].tolist() == [0, 4] and np.isnan(table["accuracy"][0])
    # four bins: (0.55, 0.65) in the third, half right; (0.8, 0.9) in the fourth, half right
    ece = stats.expected_calibration_error(np.log(probability), label, bins=4)
    assert ece == pytest.approx(0.5 * abs(0.6 - 0.5) + 0.5 * abs(0.85 - 0.5))
    generator = np.random.default_rng(5)
    logits, label = generator.normal(0, 3, (500, 10)), generator.integers(0, 10, 500)
    label[::2] = logits[::2].argmax(1)
    table = stats.reliability_table(logits, label).query("count > 0")
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    confidence = (shifted / shifted.sum(1, keepdims=True)).max(1)
    accuracy, mean = calibration_curve(logits.argmax(1) == label, confidence, n_bins=15)
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], mean)
    assert table["count"].sum() == 500


def test_disagreements():
    correct = {
        "gru": np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool),
        "lstm": np.array([[0, 0, 1, 1], [0, 1, 1, 1]], bool),
        "agru": np.array([[0, 1, 1, 1], [0, 0, 1, 1]], bool),
    }
    table = stats.disagreements(correct)
    assert table.values.tolist() == [["gru", 0, 1.0], ["gru", 1, 0.5]]
    assert stats.disagreements(correct, missed=0.25)["variant"].tolist() == [
        "gru", "gru", "lstm", "agru",
    ]  # fmt: skip


def test_time_to_score():
    rows = [
        ("gru", 1, epoch, split, accuracy, seconds)
        for epoch, accuracy in [(2, 0.7), (1, 0.5), (3, 0.6)]  # any order in the file
        for split, seconds in [("train", 10.0 * epoch), ("validation", 1.0)]
    ]
    columns = ["variant", "seed", "epoch", "split", "accuracy", "seconds"]
    history = pd.DataFrame(rows, columns=columns)
    history.loc[history["split"] == "train", "accuracy"] = 1.0  # must not count
    table = stats.time_to_score(history, [0.5, 0.6, 0.9])
    assert table["epoch"].tolist()[:2] == [1, 2] and table["seconds"].tolist()[:2] == [11, 32]
    assert table.loc[2, ["epoch", "seconds"]].isna().all()
    assert list(table.columns) == ["variant", "seed", "level", "epoch", "seconds"]


def test_many_seeds_get_sampled_signs():
    differences = np.random.default_rng(0).normal(0.2, 1.0, 100)
    p = stats.sign_flip_p(differences)
    assert p == stats.sign_flip_p(differences)  # the same signs each time
    assert p == pytest.approx(scipy_stats.ttest_1samp(differences, 0).pvalue, rel=1)
