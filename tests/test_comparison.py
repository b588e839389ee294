"""Comparisons within a report, by hand, and the pages 03 and 06 on reports made by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from in_process import execute
from scipy import stats as scipy_stats
from small_reports import write_report

from rnnbench_nb import statistics
from rnnbench_nb.choices import Choice, choices
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.results import Report
from rnnbench_nb.site import index

SLOW = pytest.mark.slow
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
    "agru": {"model": "agru", "group": "longer"},
}


def test_a_comparison_by_hand_within_its_group(tmp_path):
    report = write_report(tmp_path, VARIANTS, ANSWERS)
    (row,) = statistics.comparison(report, margin=0.01).to_dict("records")
    assert (row["a"], row["b"], row["n"], row["comparisons"]) == ("gru", "lstm", 2, 1)
    assert row["difference"] == 0.375
    half = scipy_stats.t.ppf(0.975, 1) * 0.125  # differences 0.25 and 0.5
    assert (row["low"], row["high"]) == pytest.approx((0.375 - half, 0.375 + half))
    # rows [0 1 0 0] and [0 1 1 0]: mean squares 1/8 (seeds), 11/24 (examples) and 1/8 (rest)
    freedom = (11 / 24) ** 2 / (1 / 64 + (11 / 24) ** 2 / 3 + 1 / 64 / 3)
    half = scipy_stats.t.ppf(0.975, freedom) * (11 / 24 / 8) ** 0.5
    ends = row["family_low"], row["family_high"]
    assert ends == pytest.approx((0.375 - half, 0.375 + half))
    assert (row["verdict"], row["reason"]) == ("none", "two seeds")


def test_more_than_six_variants_are_compared_with_the_first(tmp_path):
    names = [*"abcdefg"]
    answers = {(name, seed): (TRUTH, TRUTH) for name in names[:6] for seed in (1, 2)}
    report = write_report(tmp_path, {name: {"model": "gru"} for name in names}, answers)
    table = statistics.comparison(report)
    assert (table["a"] + table["b"]).tolist() == ["ba", "ca", "da", "ea", "fa", "ga"]
    assert table["n"].tolist() == [2, 2, 2, 2, 2, 0]  # g has no finished run and keeps its row


def test_a_single_variant_has_an_empty_comparison_with_all_columns(tmp_path):
    report = write_report(tmp_path, {"gru": {"model": "gru"}}, {("gru", 1): (TRUTH, TRUTH)})
    table = statistics.comparison(report)
    assert list(table) == statistics.COLUMNS and table.empty
    execute("03_compare", tmp_path / "out.ipynb", output_dir=str(tmp_path))


CHANGES = {
    "base": {"model": "agru", "gamma": 0.01, "hidden_size": 128, "seed": 1},
    "wide": {"model": "agru", "gamma": 0.01, "hidden_size": 256, "seed": 1},
    "damped": {"model": "agru", "gamma": 0.5, "hidden_size": 128, "seed": 9},
}


def write_changes(folder, means):
    """A report of CHANGES whose runs have these means of their second epoch on validation."""
    curves = {(v, s): [0.1, m] for v, ms in means.items() for s, m in enumerate(ms, start=1)}
    return write_report(folder, CHANGES, {key: (TRUTH, TRUTH) for key in curves}, curves)


def test_the_effects_of_an_ablation_by_hand(tmp_path):
    means = {"base": [0.90, 0.92], "wide": [0.95, 0.97], "damped": [0.90, 0.921]}
    changed = write_changes(tmp_path, means)
    scores = statistics.validation_scores(changed.results, changed.history, "accuracy")
    assert scores["accuracy"].tolist() == [0.90, 0.92, 0.95, 0.97, 0.90, 0.921]
    assert scores["free_parameters"].tolist() == [1152] * 2 + [2304] * 2 + [1152] * 2
    effects = statistics.effects(changed, margin=0.01)
    assert effects[["a", "b", "change", "keys"]].to_numpy().tolist() == [
        ["wide", "base", "hidden_size 256", "hidden_size"],
        ["damped", "base", "gamma 0.5", "gamma"],
    ]
    assert effects["difference"].tolist() == pytest.approx([0.05, 0.0005])
    own, family = 0.001**2 / 2, 0.001**2 / 4  # of 0 and 0.001; the other change does not vary
    half = scipy_stats.t.ppf(1 - 0.05 / 2 / 2, 2) * ((own + family) / 2 / 2) ** 0.5
    ends = effects.loc[1, ["family_low", "family_high"]].tolist()
    assert ends == pytest.approx([0.0005 - half, 0.0005 + half])
    assert set(effects["reason"]) == {"two seeds"}


def test_families_are_models_where_each_has_several_variants_and_never_cross_groups(tmp_path):
    models = {"a": "gru", "b": "agru", "c": "agru", "d": "gru"}
    answers = {(name, 1): (TRUTH, TRUTH) for name in (*models, "e", "f")}
    variants = {name: {"model": model} for name, model in models.items()}
    report = write_report(tmp_path / "search", variants, answers)
    assert statistics.families(report) == [["a", "d"], ["b", "c"]]
    assert statistics.families(report, "c") == [["a", "d"], ["c", "b"]]
    del variants["d"]
    variants |= {name: {"model": "gru", "group": "longer"} for name in "ef"}
    report = write_report(tmp_path / "groups", variants, answers)
    assert statistics.families(report, "b") == [["b", "a", "c"], ["e", "f"]]
    del answers["f", 1]  # e alone is in no family
    report = write_report(tmp_path / "missing", variants, answers)
    assert statistics.families(report) == [["a", "b", "c"]]
    with pytest.raises(UserError, match="'f' has no finished run; name one of a, b, c, e"):
        statistics.families(report, "f")
    with pytest.raises(UserError, match="finished runs of fewer than two variants"):
        statistics.effects(write_report(tmp_path / "one", {"a": variants["a"]}, answers))


# The pages


def texts(notebook, kind="markdown"):
    """The Markdown, or the HTML of tables, that the cells of an executed notebook show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("data", {}).get(f"text/{kind}", "") for output in outputs)


def test_the_comparison_of_two_seeds_shows_means_and_no_verdict(tmp_path):
    report = write_report(tmp_path / "made", VARIANTS, ANSWERS, {("gru", 1): [0.5, 0.95]})
    executed = execute("03_compare", tmp_path / "out.ipynb", output_dir=str(report.folder))
    assert "GRU minus LSTM is +37.50 points; two seeds: no verdict." in texts(executed)
    assert "Only variants that were tested on the same examples" in texts(executed)
    assert "highest" not in texts(executed)
    tables = texts(executed, "html")
    assert "2 (runs: 1)" in tables and "not reached" in tables


@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        ("agru_authors", ["LSTM: **undecided**", "A-GRU: **reproduced**. The authors print 98.63"]),
        pytest.param("row_mnist", ["equivalent within 0.2", "GRU has the highest"], marks=SLOW),
        pytest.param("pixel_mnist", ["LSTM minus GRU is"], marks=SLOW),
        pytest.param("row_cells", ["LEM is better than A-GRU by 0.27"], marks=SLOW),
    ],
)
def test_the_comparison_of_a_published_report_needs_no_weights(name, sentences, tmp_path):
    folder = f"reports/published/{name}"
    executed = execute("03_compare", tmp_path / "out.ipynb", output_dir=folder)
    assert all(sentence in texts(executed) for sentence in sentences)


def test_an_ablation_of_five_seeds_recommends(tmp_path):
    noise = 1e-3 * np.array([0, 1, -1, 2, -2])
    means = {"base": 0.9 + noise, "wide": 0.95 - noise, "damped": 0.9 + noise[::-1]}
    report = write_changes(tmp_path, means)
    executed = execute("06_ablation", tmp_path / "out.ipynb", output_dir=str(report.folder))
    assert "**Take hidden_size 256.** wide is better than base by 5.00 points" in texts(executed)
    assert (
        "base has 90.00% on validation. Of 3 variants, wide has the highest mean, 95.00%."
        in texts(executed)
    )


@SLOW
def test_a_published_ablation_below_five_seeds_has_no_verdict(tmp_path):
    folder = "reports/published/ablation"
    executed = execute("06_ablation", tmp_path / "out.ipynb", output_dir=folder)
    assert "There is no verdict: three seeds." in texts(executed) and "Take" not in texts(executed)


def test_the_outer_two_of_sixteen_values_are_edges_unless_an_end_is_natural():
    table = pd.DataFrame({key: range(1, 17) for key in ("learning_rate", "epsilon", "dropout")})
    edges = [Choice("", table, [*table], best, 0).edges for best in range(16)]
    low, high = ["learning rate", "epsilon"], ["learning rate", "dropout"]
    assert edges == [low] * 2 + [[]] * 12 + [high] * 2


def test_a_search_names_each_choice_and_what_lies_at_an_edge(tmp_path):
    variants, curves = {}, {}
    for name, own in {"gru": {"model": "gru"}, "free": {"model": "agru", "a": "free"}}.items():
        for k, rate in enumerate([0.001, 0.01, 0.02, 0.1]):
            values = {"learning_rate": rate, "dropout": k / 10, "test": False, "epochs": 1}
            variants[f"{name}_search0{k}"] = {**own, **values}
            curves[f"{name}_search0{k}", 1] = [0.9 - rate if name == "gru" else 0.5 + rate]
    variants["free_finalist02"] = {**variants["free_search02"], "epochs": 2}
    curves |= {("free_finalist02", seed): [0.1, 0.51] for seed in (2, 3)}
    report = write_report(tmp_path, variants, {key: (TRUTH, TRUTH) for key in curves}, curves)
    gru, free = choices(report)
    assert (gru.best, free.best) == ("gru_search00", "free_finalist02")  # not free_search03
    assert (gru.edges, free.edges) == (["learning rate"], [])  # no dropout is no edge
    executed = execute("06_ablation", tmp_path / "out.ipynb", output_dir=str(tmp_path))
    text = (
        "free: learning rate 0.02, dropout 0.2. This is the best of 4 configurations, 1 of which "
    )
    text += "were trained again, with 51.00% on validation (2 seeds)."
    assert text in texts(executed) and "Validation result against each" in str(executed.cells)
    assert "Every variant" in executed.cells[-2].source and not executed.cells[-1].outputs
    (tmp_path / "runs/free_finalist02-seed3/run.json").unlink()
    free = choices(Report(tmp_path))[1]
    assert (free.best, free.waiting) == ("free_finalist02", 2)  # of the seeds 1, 2 and 3
    text = free.sentence(report.score)
    assert text.endswith(" It may change: 2 runs that it needs are not finished.")
    record = json.loads((path := tmp_path / "runs/free_search03-seed1/run.json").read_text())
    path.write_text(json.dumps(record | {"status": "failed", "reason": "it diverged"}))
    text = choices(Report(tmp_path))[1].sentence(report.score)  # it was tried all the same
    assert "best of 4 configurations (1 failed), 1 of which were trained again" in text
    write_report(tmp_path, variants, {key: (TRUTH, TRUTH) for key in curves}, curves)
    text = index.build(report).read_text()
    assert "These runs belong to a search" in text and "values tried: learning rate." in text
    assert "100" not in text.partition("training runs</summary>")[2]  # no score that was not read


def test_a_budget_is_no_setting_and_the_largest_decides(tmp_path):
    variants = {
        f"gru_search0{k}": {"model": "gru", "learning_rate": rate, "test": False, "steps": 10}
        for k, rate in enumerate([0.001, 0.01, 0.02, 0.1])
    }
    variants["gru_finalist01"] = {**variants["gru_search01"], "steps": None}
    curves = {(name, 1): [0.9 - own["learning_rate"]] for name, own in variants.items()}
    report = write_report(tmp_path, variants, {key: (TRUTH, TRUTH) for key in curves}, curves)
    (gru,) = choices(report)
    assert (gru.keys, gru.configurations, gru.best) == (["learning_rate"], 4, "gru_finalist01")


@pytest.mark.parametrize("name", ["ablation", "copying", "row_cells"])
def test_what_changes_one_setting_at_a_time_is_no_search(name):
    assert choices(Report(PROJECT / f"reports/published/{name}")) == []
