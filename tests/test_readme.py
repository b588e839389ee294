"""What the README says of the result is what the published runs give."""

import pytest

from rnnbench_nb import ablation, figures, stats
from rnnbench_nb.config import PROJECT, load_protocol
from rnnbench_nb.results import formatted, load_run, read_csv, summary

README = (PROJECT / "README.md").read_text()


def rows(*columns):
    return ["| " + " | ".join(map(str, row)) + " |" for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("report", ["row_mnist", "row_mnist_matched", "controls", "tuned"])
def test_the_tables_are_those_of_the_published_runs(report):
    published = PROJECT / "reports/published" / report
    results = read_csv(published / "results.csv")
    results = results.assign(variant=results["variant"].map(figures.label))
    table = formatted(summary(results))
    columns = ["variant", "seeds", "accuracy %", "parameters", "free", "epochs"]
    expected = rows(*(table[name] for name in columns))
    right = {}
    for folder in (published / "runs").iterdir():
        run = load_run(folder)
        key = figures.label(run.parameters.name), run.parameters.seed
        right[key] = run.predictions["predicted"] == run.predictions["label"]
    pairs = stats.compare(results, margin=0.002, correct=right)
    points = {name: (100 * pairs[name]).map("{:+.2f}".format)
              for name in ("difference", "two_way_low", "two_way_high")}  # fmt: skip
    expected += rows(
        pairs["a"] + " − " + pairs["b"],
        points["difference"],
        points["two_way_low"] + " to " + points["two_way_high"],
        pairs["verdict"],
    )
    assert [row for row in expected if row not in README] == []


def test_the_tuned_comparison_takes_what_the_search_found_best_on_validation():
    published = PROJECT / "reports/published/tuning"
    tables = [read_csv(published / f"{name}.csv") for name in ("results", "history")]
    means = (
        ablation.validation_scores(*tables).groupby("variant")["accuracy"].mean().round(9)
    )  # ties
    search, tuned = (
        load_protocol(PROJECT / f"params/{name}.yaml").parameterisations()
        for name in ("tuning", "tuned")
    )
    for family in ablation.families(search):
        best = search[means[family].idxmax()]
        pair = {"found": best, "taken": tuned[best.model]}
        assert ablation.changes(pair, "found") == {"taken": {"epochs": 20}}
