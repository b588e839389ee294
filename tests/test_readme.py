"""What the README says of the result is what the published runs give."""

import pytest

from rnnbench_nb import figures, stats
from rnnbench_nb.config import PROJECT
from rnnbench_nb.results import formatted, load_run, read_csv, summary

README = (PROJECT / "README.md").read_text()


def rows(*columns):
    return ["| " + " | ".join(map(str, row)) + " |" for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("report", ["row_mnist", "controls"])
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
