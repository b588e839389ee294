"""What the README says of the result is what the published runs give."""

import pytest

from rnnbench_nb import ablation, figures, stats
from rnnbench_nb.config import PROJECT, load_protocol
from rnnbench_nb.results import formatted, load_run, read_csv, summary

README = (PROJECT / "README.md").read_text()


def table_of(*columns):
    """The whole of a table below its names: rule, rows, and the empty line after the last one."""
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in zip(*columns, strict=True)]
    return "\n".join(["", "|" + " --- |" * len(columns), *rows, "", ""])


@pytest.mark.parametrize("report", ["row_mnist", "row_mnist_matched", "controls", "tuned"])
def test_the_tables_are_those_of_the_published_runs(report):
    published = PROJECT / "reports/published" / report
    results = read_csv(published / "results.csv")
    results = results.assign(variant=results["variant"].map(figures.label))
    table = formatted(summary(results))
    columns = ["variant", "seeds", "accuracy %", "parameters", "free parameters", "epochs"]
    assert f"| {' | '.join(columns)} |" + table_of(*(table[name] for name in columns)) in README
    right = {}
    for folder in (published / "runs").iterdir():
        run = load_run(folder)
        key = figures.label(run.parameters.name), run.parameters.seed
        right[key] = run.predictions["predicted"] == run.predictions["label"]
    pairs = stats.compare(results, margin=0.002, correct=right)
    points = {name: (100 * pairs[name]).map("{:+.2f}".format)
              for name in ("difference", "two_way_low", "two_way_high")}  # fmt: skip
    intervals = points["two_way_low"] + " to " + points["two_way_high"]
    names = pairs["a"] + " − " + pairs["b"]
    assert table_of(names, points["difference"], intervals, pairs["verdict"]) in README


def test_the_tuned_comparison_takes_what_the_search_found_best_on_validation():
    published = PROJECT / "reports/published/tuning"
    tables = [read_csv(published / f"{name}.csv") for name in ("results", "history")]
    scores = ablation.validation_scores(*tables)
    means = scores.groupby("variant")["accuracy"].mean().round(9)  # so that equal means tie
    search, tuned = (
        load_protocol(PROJECT / f"params/{name}.yaml").parameterisations()
        for name in ("tuning", "tuned")
    )
    for family in ablation.families(search):
        best = search[means[family].idxmax()]
        pair = {"found": best, "taken": tuned[best.model]}
        assert ablation.changes(pair, "found") == {"taken": {"epochs": 20}}
