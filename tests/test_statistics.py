"""Intervals, tests and verdicts: answers by hand, by other libraries, and simulated studies."""

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats
from scipy.special import expit
from small_reports import write_report
from statsmodels.formula.api import ols
from statsmodels.stats.weightstats import DescrStatsW

from rnnbench_nb import statistics as stats
from rnnbench_nb.errors import UserError
from rnnbench_nb.metrics import Score
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.results import Report

NAMES = ["lstm", "gru", "agru"]
LABELS = {"lstm": "LSTM", "gru": "GRU", "agru": "A-GRU", "a": "a", "b": "b", "c": "c"}
PUBLISHED = Path(__file__).parents[1] / "reports/published"
PARAMETERS = Path(__file__).parents[1] / "params"


def tidy(scores):
    """Results frame from {variant: one score a seed}."""
    return pd.DataFrame(
        [(name, seed, x) for name, xs in scores.items() for seed, x in enumerate(xs)],
        columns=["variant", "seed", "accuracy"],
    )


def made_example(n=10):
    generator = np.random.default_rng(0)
    pool = generator.normal(0, 5e-4, n)  # what a seed's split does to all models alike
    means = generator.normal(0.988, 5e-4, 3)
    return {k: m + pool + generator.normal(0, 1e-3, n) for k, m in zip(NAMES, means, strict=True)}


def test_the_interval_that_decides_by_hand():
    scores = made_example()
    table = stats.compare(tidy(scores), margin=0.001)
    pairs = [("lstm", "gru"), ("lstm", "agru"), ("gru", "agru")]
    assert list(zip(table["a"], table["b"], strict=True)) == pairs
    each = [scores[a] - scores[b] for a, b in pairs]
    family = np.mean([d.var(ddof=1) for d in each])
    for (a, b), d, row in zip(pairs, each, table.to_dict("records"), strict=True):
        paired = scipy_stats.ttest_rel(scores[a], scores[b]).confidence_interval()
        np.testing.assert_allclose([row["low"], row["high"]], paired, rtol=1e-9)
        spread = (4 * family + 9 * d.var(ddof=1)) / 13  # 4 lent degrees of freedom, 9 own
        half = scipy_stats.t.ppf(1 - 0.05 / 2 / 3, 13) * np.sqrt(spread / 10)
        ends = [d.mean() - half, d.mean() + half]
        np.testing.assert_allclose([row["family_low"], row["family_high"]], ends)
        edge = scipy_stats.t.isf(row["p"] / 2, 13) * np.sqrt(spread / 10)  # an interval to 0
        assert edge == pytest.approx(abs(row["difference"]))
        assert row["correlation"] == pytest.approx(np.corrcoef(scores[a], scores[b])[0, 1])


def test_two_variants_are_the_paired_t_test_and_few_seeds_are_lent_less():
    a, b = np.array([0.98, 0.975, 0.983, 0.979]), np.array([0.97, 0.971, 0.972, 0.974])
    row = stats.compare(tidy({"a": a, "b": b}), 0.002).iloc[0]
    paired = scipy_stats.ttest_rel(a, b).confidence_interval()
    np.testing.assert_allclose([row["family_low"], row["family_high"]], paired)
    assert row["p"] == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    c = np.array([0.97, 0.97, 0.98, 0.98])
    row = stats.compare(tidy({"a": a[:2], "b": b[:2], "c": c[:2]}), 0.002, reference="b").iloc[0]
    own, other = (a - b)[:2].var(ddof=1), (c - b)[:2].var(ddof=1)
    spread = (1 * (own + other) / 2 + 1 * own) / 2  # of 4, one variant has one to lend
    half = scipy_stats.t.ppf(1 - 0.05 / 2 / 2, 2) * np.sqrt(spread / 2)
    assert row["family_high"] - row["difference"] == pytest.approx(half)


def judge(d, margin=0.1):
    """The row of one pair whose scores differ by d (S, N)."""
    scores = {("a", seed): row for seed, row in enumerate(d)}
    scores |= {("b", seed): np.zeros(d.shape[1]) for seed in range(len(d))}
    return stats.judge_family([("task", "a", "b", margin, len(d), scores)]).iloc[0]


def test_the_two_way_test_has_the_mean_squares_of_statsmodels():
    generator = np.random.default_rng(3)
    a = generator.random((4, 8)) < [[0.2], [0.6], [0.9], [0.9]]
    b = generator.random((4, 8)) < np.repeat([0.1, 0.9], 4)
    d = a.astype(float) - b
    seed, image = np.indices(d.shape)
    frame = pd.DataFrame({"d": d.ravel(), "seed": seed.ravel(), "image": image.ravel()})
    table = sm.stats.anova_lm(ols("d ~ C(seed) + C(image)", frame).fit())
    squares, df = (table["sum_sq"] / table["df"]).to_numpy(), table["df"].to_numpy()
    assert squares[:2].min() > squares[2]  # else the example would not reach the formula
    total = squares[0] + squares[1] - squares[2]
    freedom = total**2 / (squares**2 / df).sum()
    np.testing.assert_allclose(stats.two_way(d), [np.sqrt(total / d.size), freedom])


def test_seeds_that_agree_by_chance_do_not_narrow_the_interval_for_new_images():
    d = np.random.default_rng(0).normal(0, 1, (6, 200)) + np.linspace(-1, 1, 200)
    d += 1e-3 * np.arange(6)[:, None] - d.mean(1, keepdims=True)  # almost equal means of seeds
    error, df = stats.two_way(d)
    assert error == pytest.approx(d.mean(0).std(ddof=1) / np.sqrt(200))  # over images alone
    assert df > 190


def test_where_no_image_is_special_the_tests_are_those_of_statsmodels_over_seeds():
    even = 0.1 * (np.eye(5, 8) + 3 * (np.arange(5)[:, None] == 0) - 1)
    row, means = judge(even), DescrStatsW(even.mean(1))
    assert row["p"] == row["holm"] == pytest.approx(means.ttest_mean()[1])
    assert row["equivalence"] == pytest.approx(means.ttost_mean(-0.1, 0.1)[0])
    assert (row["low"], row["high"]) == pytest.approx(means.tconfint_mean())


def test_the_interval_of_one_fitted_model_over_examples():
    z, n = scipy_stats.norm.ppf(0.975), 10_000  # Wilson: the p whose z test accepts 0.988
    for p in stats.example_interval(np.repeat([1.0, 0.0], [9880, 120])):
        assert abs(0.988 - p) == pytest.approx(z * np.sqrt(p * (1 - p) / n))
    scores = np.array([0.2, 0.4, 0.9])
    assert stats.example_interval(scores) == stats.t_interval(scores)


# Simulated studies

SPLIT = 5e-4  # what a seed's split and order do to all models alike
MARGIN, GAP = 0.002, 0.003
FAMILIES = {"row_mnist": None, "ablation": "baseline"}  # every pair of three; 19 changes of one


def rate(name, seeds, gap, count):
    """The share of families with a wrong verdict; of a gap above the margin, with a right one.

    The spreads are those of a published report. Wrong are "better" or "worse" if all are equal, and
    "equivalent" to the one that is `gap` above.
    """
    report, reference = Report(PUBLISHED / name), FAMILIES[name]
    scores = stats.validation_scores(report.results, report.history, "accuracy")
    spreads = scores.groupby("variant", sort=False)["accuracy"].std()
    generator, names = np.random.default_rng([seeds, round(1e4 * gap)]), list(spreads.index)
    first, hits = reference or names[0], 0
    for _ in range(count):
        scores = generator.normal(0, spreads.to_numpy()[:, None], (len(names), seeds))
        scores += 0.985 + generator.normal(0, SPLIT, seeds)
        scores[names.index(first)] += gap
        results = tidy(dict(zip(names, scores, strict=True)))
        table = stats.compare(results, MARGIN, reference=reference)
        table = table[(table["a"] == first) | (table["b"] == first)] if gap else table
        ends = zip(table["family_low"], table["family_high"], strict=True)
        verdicts = {stats.verdict(low, high, MARGIN) for low, high in ends}
        wanted = {"equivalent"} if gap == MARGIN else {"better", "worse"}
        hits += verdicts <= wanted if gap > MARGIN else bool(verdicts & wanted)
    return hits / count


MANY = [
    pytest.param(report, seeds, gap, 500 if report == "row_mnist" else 150, marks=pytest.mark.slow)
    for report in FAMILIES
    for seeds, gap in [(s, g) for s in (2, 3, 7, 10) for g in (0.0, MARGIN)] + [(10, GAP)]
    if not (report == "ablation" and gap == GAP)  # too many changes for such a gap
]


@pytest.mark.parametrize(
    ("report", "seeds", "gap", "count"),
    [("row_mnist", 3, 0.0, 40), ("row_mnist", 10, GAP, 40), ("ablation", 3, 0.0, 15), *MANY],
)
def test_simulated_families_keep_their_promises(report, seeds, gap, count):
    share = rate(report, seeds, gap, count)
    assert share >= 0.95 if gap == GAP else share <= 0.05 + 2 * (0.05 * 0.95 / count) ** 0.5


@pytest.mark.slow
def test_simulated_models_equal_on_all_digits_are_seldom_called_different():
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
        different += table["verdict"].isin(["better", "worse"]).any()
    assert different <= 4


@pytest.mark.parametrize("apart", [0, 1])
@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_the_family_of_the_study_keeps_its_promises(apart, count, monkeypatch):
    """Equal models are seldom told apart; those apart by the margin, seldom called equivalent."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it for each family
    generator, wrong = np.random.default_rng(apart), 0
    steps = {"agru": 0, "gru": 1, "free": 1, "heun_free": 1, "agru_heun": 2}
    study = [load_protocol(path) for path in sorted(PARAMETERS.glob("study_*.yaml"))]
    for _ in range(count):
        pairs = []
        for protocol in study:
            scores, margin, seeds = {}, protocol.margin, 10
            for name in sorted({*chain(*protocol.primary)}):
                each = generator.normal(apart * steps[name] * (margin or 0), 1e-2, (seeds, 100))
                each += generator.normal(0, 1e-3, (seeds, 1)) + generator.normal(0, 1e-2, 100)
                scores |= {(name, seed): row for seed, row in enumerate(each)}
            pairs += [("task", a, b, margin, seeds, scores) for a, b in protocol.primary]
        verdicts = stats.judge_family(pairs)["verdict"]
        wrong += verdicts.isin(["equivalent"] if apart else ["better", "worse"]).any()
    assert len(pairs) == 16 and wrong / count <= 0.05 + 2 * (0.05 * 0.95 / count) ** 0.5


def test_the_table_of_the_study_has_all_its_pairs(tmp_path):
    generator, truth = np.random.default_rng(1), np.zeros(1000, np.uint8)
    runs = {
        (name, seed): (truth, generator.random(1000) < error)
        for name, error in (("agru", 0.02), ("gru", 0.08), ("free", 0.02))
        for seed in range(10)
    }
    variants = {name: {"model": "gru"} for name in ("agru", "gru", "free")}
    write_report(tmp_path / "study_rows", variants, runs)
    symbols = np.zeros((3, 10), np.uint8)
    runs = {(name, s): (symbols, symbols + (name == "gru" and s > 0)) for name, s in runs if s < 4}
    write_report(tmp_path / "study_copying", variants, runs, metrics="symbols")
    table = stats.primary_family(tmp_path).set_index(["task", "a", "b"])
    assert len(table) == 16 and (table["verdict"] == "not run").sum() == 12
    better, equal = (table.loc["study_rows", "agru", b] for b in ("gru", "free"))
    assert better["verdict"] == "better" and better["holm"] == 16 * better["p"] < 0.05 < equal["p"]
    assert equal["verdict"] == "undecided" and equal["low"] < 0 < equal["high"] and equal["n"] == 10
    few = table.loc["study_copying", "agru", "gru"]
    assert (few["n"], few["p"], few["verdict"]) == (4, 1, "not complete")
    (tmp_path / "study_rows/runs/agru-seed9/run.json").unlink()
    nine = stats.primary_family(tmp_path).set_index(["task", "a", "b"]).loc["study_rows", "agru"]
    assert {*nine["verdict"]} == {"not complete"} and {*nine["holm"]} == {1}
    assert (few["solved_a"], few["solved_b"]) == (4, 1) and few["difference"] == 0.75


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (0.001, 0.004, "better"), (0.0001, 0.0019, "better"), (-0.004, -0.001, "worse"),
    (-0.001, 0.0019, "equivalent"), (-0.001, 0.0021, "undecided"), (np.nan, np.nan, "none"),
])  # fmt: skip
def test_the_rule(low, high, verdict):
    assert stats.verdict(low, high, 0.002) == verdict


WAVE = 1e-3 * np.array([1, -1, 2, -2, 1, -1, 2, -2, 0, 0])
SCORES = {"lstm": 0.985 + WAVE, "gru": 0.985 + WAVE[::-1] * 0.5, "agru": 0.975 - WAVE}


def test_one_short_sentence_for_each_verdict():
    def sentences(margin, scores=SCORES, **options):
        table = stats.compare(tidy(scores), margin, **options)
        return [stats.sentence(row, LABELS) for row in table.to_dict("records")]

    equal, better, _ = sentences(0.005)
    assert "LSTM and GRU are equivalent within 0.5 points" in equal
    assert "LSTM is better than A-GRU by 1.00 points (0.7" in better and "10 seeds" in better
    assert "GRU is better than A-GRU" in sentences(0.005, dict(reversed(SCORES.items())))[0]
    assert "less than the margin of 1.1 points" in sentences(0.011)[1]  # wherever the interval ends
    assert "LSTM and GRU cannot be told apart" in sentences(5e-4)[0]
    few = sentences(0.005, {name: values[:2] for name, values in SCORES.items()})
    assert few[1] == "LSTM minus A-GRU is +1.00 points; two seeds: no verdict."
    assert "stand-in data: no verdict" in sentences(0.005, stand_in=True)[1]


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_under_five_seeds_there_is_no_verdict(n):
    table = stats.compare(tidy({k: v[:n] for k, v in SCORES.items()}), margin=0.005)
    assert (table["verdict"] == "none").all() == (n < 5)
    assert table["reason"].ne("").all() == (n < 5)
    assert np.isfinite(table["family_low"]).all() == (n > 1)  # the numbers stay


def test_new_images_can_take_a_verdict_away():
    # b misses the same 4 of 1,000 images with every seed, and 1 or 2 more: sure here, not elsewhere
    right = np.ones((10, 1000), bool)
    missed = right.copy()
    missed[:, :4] = False
    missed[::2, 4] = missed[:, 5] = False
    results = tidy({"a": right.mean(1), "b": missed.mean(1)})
    assert stats.compare(results, 0.001)["verdict"][0] == "better"
    correct = {(k, s): x[s] for k, x in (("a", right), ("b", missed)) for s in range(10)}
    for extra, verdict in ((0, "better"), (5, "undecided")):
        for seed in range(10):  # 5 more that only a misses, 5 that only b misses: the same gap
            correct["a", seed][6 : 6 + extra] = False
            correct["b", seed][11 : 11 + extra] = False
        row = stats.compare(results, 0.001, examples=correct).iloc[0]
        assert row["low"] > 0 and row["verdict"] == verdict
        assert (row["family_low"] > 0) == (extra == 0)


def test_one_seed_no_spread_and_no_common_seed_are_no_crash_and_no_claim():
    results = tidy({"a": [0.9], "b": [0.8, 0.8], "c": [np.nan, 0.8, np.nan]})
    table = stats.compare(results, 0.01)
    assert list(table["n"]) == [1, 0, 1] and list(table["p"]) == [1, 1, 1]
    assert table["reason"].tolist() == ["one seed", "no common seed", "one seed"]
    assert stats.sentence(table.iloc[1], LABELS) == "a and c have no common seed."
    steps = np.arange(6) / 10
    same = stats.compare(tidy({"a": steps + 0.3, "b": steps + 0.2}), 0.5).iloc[0]
    assert np.isnan(same["low"]) and same["reason"] == "seeds that do not vary"
    assert stats.compare(results.query("variant == 'a'"), 0.01).empty


def test_references_groups_and_wrong_input():
    results = tidy(made_example())
    table = stats.compare(results, 0.001, reference="gru")
    assert table[["a", "b"]].to_numpy().tolist() == [["lstm", "gru"], ["agru", "gru"]]
    assert (table["comparisons"] == 2).all()
    scores = tidy({name: [0.9, 0.8] for name in "abcde"})
    groups = {"a": 1, "b": 2, "c": 1, "d": 2, "e": 3}
    pairs = {"": ["ac", "bd"], "a": ["ca", "db"], "d": ["bd", "ca"]}
    for first, expected in pairs.items():
        table = stats.compare(scores, 0.01, reference=first, groups=groups)
        assert (table["a"] + table["b"]).tolist() == expected
    with pytest.raises(UserError, match="reference: 'rnn' must be one of"):
        stats.compare(results, 0.001, reference="rnn")
    with pytest.raises(UserError, match="margin must be above 0, not 0"):
        stats.compare(results, 0)


def test_numbers_are_shown_in_the_unit_of_the_score():
    accuracy, nats = Score(), Score("fit", 1.0, "nats", "nats")
    assert stats.format_score(0.98765, accuracy, unit="%") == "98.77%"
    assert stats.format_score(-0.01, accuracy, "+", "points") == "−1.00 points"
    assert stats.format_score(-0.00004, accuracy) == stats.format_score(-0.0, accuracy) == "0.00"
    assert stats.format_score(-0.00004, accuracy, "+") == "+0.00"
    assert stats.format_score(0.5, nats, unit="nats") == "0.5000 nats"
    assert stats.format_score(np.nan, accuracy) == "unknown"
    fits = {"a": [-0.5, -0.4, -0.3, -0.4, -0.5], "b": [-0.7, -0.55, -0.6, -0.7, -0.7]}
    results = tidy(fits).rename(columns={"accuracy": "fit"})
    row = stats.compare(results, 0.02, nats).iloc[0]
    assert stats.sentence(row, LABELS, nats).startswith("a is better than b by 0.2300 nats (0.1")
