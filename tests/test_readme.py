"""What the README says of the result is what the published runs give."""

import pandas as pd
import pytest

from rnnbench_nb import statistics
from rnnbench_nb.analyses import load
from rnnbench_nb.files import PROJECT
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report, formatted, read_csv, summary

README = (PROJECT / "README.md").read_text()


def table_of(*columns):
    """The whole of a table below its names: rule, rows, and the empty line after the last one."""
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in zip(*columns, strict=True)]
    return "\n".join(["", "|" + " --- |" * len(columns), *rows, "", ""])


@pytest.mark.parametrize(
    "report",
    [
        "row_mnist",
        "row_mnist_matched",
        "controls",
        "noise_tuned",
        "noise_controls",
        "tuned",
        "tuned_matched",
    ],
)
def test_the_tables_are_those_of_the_published_runs(report):
    published = Report(PROJECT / "reports/published" / report)
    results = read_csv(published.folder / "results.csv")
    labelled = results.assign(variant=results["variant"].map(published.labels))
    table = formatted(summary(labelled), published.task)
    columns = ["variant", "seeds", "accuracy %", "parameters", "free parameters", "epochs"]
    assert f"| {' | '.join(columns)} |" + table_of(*(table[name] for name in columns)) in README
    right = {run.key: run.scores for run in published.runs}
    pairs = statistics.compare(results, margin=0.002, examples=right)
    points = {name: (100 * pairs[name]).map("{:+.2f}".format)
              for name in ("difference", "family_low", "family_high")}  # fmt: skip
    intervals = points["family_low"] + " to " + points["family_high"]
    verdicts = [statistics.verdict_text(row, published.labels) for row in pairs.to_dict("records")]
    names = pairs["a"].map(published.labels) + " − " + pairs["b"].map(published.labels)
    assert table_of(names, points["difference"], intervals, verdicts) in README


def test_what_is_kept_over_how_many_steps_is_what_the_published_runs_say():
    found = load(PROJECT / "reports/published/noise_padded/analyses/memory").texts("answer")
    assert len(found) == 4
    for text in found:
        assert f"\n- {text}\n" in README


@pytest.mark.parametrize(
    ("searched", "taken"), [("tuning", "tuned"), ("tuned_matched_search", "tuned_matched")]
)
def test_a_tuned_comparison_takes_what_its_search_found_best_on_validation(searched, taken):
    published = PROJECT / f"reports/published/{searched}"
    tables = [read_csv(published / f"{name}.csv") for name in ("results", "history")]
    scores = statistics.validation_scores(*tables)
    means = scores.groupby("variant")["accuracy"].mean().round(9)  # so that equal means tie
    search, tuned = (
        load_protocol(PROJECT / f"params/{name}.yaml").parameterisations
        for name in (searched, taken)
    )
    for family in statistics.families(search):
        best = search[means[family].idxmax()]
        pair = {"found": best, "taken": tuned[best.model]}
        assert statistics.changes(pair, "found") == {"taken": {"epochs": 20}}


@pytest.mark.parametrize("protocol", ["noise_controls", "noise_tuned", "noise_padded"])
def test_over_noise_each_has_what_the_search_found_best_for_it_on_validation(protocol):
    searches = ("noise_controls_search", "noise_search")
    tables = [
        [read_csv(PROJECT / f"reports/published/{search}/{name}.csv") for search in searches]
        for name in ("results", "history")
    ]
    scores = statistics.validation_scores(*map(pd.concat, tables))
    scores = scores.groupby("variant")["accuracy"].mean()
    *searched, taken = (
        load_protocol(PROJECT / f"params/{name}.yaml").parameterisations
        for name in (*searches, protocol)
    )
    search = searched[0] | searched[1]
    assert scores["gru_rate_0.01"] < 0.15 and scores["gru_rate_0.03"] > 0.95  # the rate decides
    for name, ours in taken.items():
        plain = name.removesuffix(f"_{ours.padded_length}")
        alike = [each for each in search if each.startswith(f"{plain}_")]
        if ours.model == "lstm":  # whose settings no search found: it learned with none
            assert len(alike) == 6 and scores[alike].max() < 0.15
            continue
        assert len(alike) == {"agru": 16, "gru": 7, "gated_antisymmetric_rnn": 5}[ours.model]
        pair = {"found": search[scores[alike].idxmax()], name: ours}
        length = {"padded_length": ours.padded_length} if ours.padded_length != 250 else {}
        assert statistics.changes(pair, "found") == {name: length}


def test_by_pixel_the_rates_of_gru_and_lstm_lie_at_the_edge_and_the_agrus_was_not_searched():
    searched, taken = (load_protocol(PROJECT / f"params/{name}.yaml").parameterisations
                       for name in ("pixel_mnist_search", "pixel_mnist"))  # fmt: skip
    rates = {model: {own.learning_rate for own in searched.values() if own.model == model}
             for model in ("gru", "lstm", "agru")}  # fmt: skip
    assert all(max(rates[model]) == taken[model].learning_rate for model in ("gru", "lstm"))
    assert rates["agru"] == {taken["agru"].learning_rate}
