"""What the README says of the result is what the published runs give."""

import re

from rnnbench_nb.files import PROJECT
from rnnbench_nb.results import Report
from rnnbench_nb.statistics import comparison, primary_family

README = (PROJECT / "README.md").read_text(encoding="utf-8")
PUBLISHED = PROJECT / "reports/published"


def pair(report, better, other):
    """Mean difference in points, and the ends of the interval that decides."""
    table = comparison(Report(PUBLISHED / report)).set_index(["a", "b"])
    sign, key = (1, (better, other)) if (better, other) in table.index else (-1, (other, better))
    row = table.loc[key]
    ends = sorted(sign * 100 * row[["family_low", "family_high"]].astype(float))
    return sign * 100 * row["difference"], *ends


def test_the_answer_is_what_the_published_runs_give():
    family = primary_family(PUBLISHED).set_index(["task", "a", "b"])
    study, clothes = family.loc["study_rows"], family.loc["study_fashion"]
    by_row, free = study.loc[("agru", "gru")], study.loc[("agru", "free")]
    assert (by_row["verdict"], by_row["n"], by_row["small"]) == ("worse", 10, True)
    numbers = [-100 * by_row[end] for end in ("difference", "high", "low")]
    text = "{:.2f} points (ten seeds, uncorrected 95% interval {:.2f} to {:.2f}".format(*numbers)
    assert f"the GRU is better than the A-GRU by {text}; p = {by_row['holm']:.3f}" in README
    there = clothes.loc[("agru", "gru")]
    assert (there["verdict"], there["small"]) == ("worse", False)
    numbers = [-100 * there[end] for end in ("difference", "high", "low")]
    text = "it is better by {:.2f} ({:.2f} to {:.2f}".format(*numbers)
    assert f"{text}; p = {there['holm']:.3f})" in README
    assert free["verdict"] == clothes.loc[("agru", "free"), "verdict"] == "undecided"
    assert study.loc[("agru_heun", "agru"), "verdict"] == "equivalent"
    table = comparison(Report(PUBLISHED / "study_rows").tested).set_index(["a", "b"])
    assert table.loc[("agru", "frozen"), "verdict"] == "equivalent"
    ran = family[family["n"] > 0].index.unique("task")
    assert {*ran} == {"study_rows", "study_fashion"} and "Other tasks lack final runs." in README
    over_noise = pair("noise_tuned", "agru", "gru")
    assert over_noise[1] < 0 < over_noise[2]
    ends = f"A-GRU minus GRU {over_noise[1]:.2f} to +{over_noise[2]:.2f}".replace("-0", "−0")
    assert ends in README


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.split()) <= 1500
    for place in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (PROJECT / place).exists(), place
