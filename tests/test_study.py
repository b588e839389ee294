"""The files of the study: contestants are treated alike, and what is compared is declared."""

import re
from collections import defaultdict

import pandas as pd
import pytest
import torch

from rnnbench_nb.files import PROJECT
from rnnbench_nb.model import build_model, count
from rnnbench_nb.parameters import read_yaml
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.results import Report
from rnnbench_nb.runs import task_of

FILES = {path.stem: load_protocol(path) for path in (PROJECT / "params").glob("*.yaml")}
STUDY = {name: protocol for name, protocol in FILES.items() if name.startswith("study_")}
SEARCHED = sorted({*STUDY} - {"study_fashion"})
PUBLISHED = PROJECT / "reports/published"
KINDS = re.compile(r"(.+)_(search|finalist)\d\d")


def parts(protocol):
    """Variants by kind (search, finalist, final) and contestant."""
    result = {kind: defaultdict(list) for kind in ("search", "finalist", "final")}
    for name in protocol.parameterisations:
        contestant, kind = match.groups() if (match := KINDS.fullmatch(name)) else (name, "final")
        result[kind][contestant].append(name)
    return result


def test_sixteen_comparisons_are_declared_with_their_margins():
    two = [["agru", "gru"], ["agru", "free"]]
    heun = [["agru_heun", other] for other in ("gru", "agru", "heun_free")]
    assert {name: (protocol.primary, protocol.margin) for name, protocol in STUDY.items()} == {
        "study_rows": (two + heun, 0.002),
        "study_noise": (two + heun, 0.005),
        "study_copying": (two, None),
        "study_fashion": (two, 0.002),
        "study_pixels": (two, 0.005),
    }


@pytest.mark.parametrize("name", SEARCHED)
def test_every_contestant_tries_as_much(name):
    own, runs, tried = STUDY[name].parameterisations, STUDY[name].runs, parts(STUDY[name])
    everyone = {"gru", "agru", "free"}
    if name not in ("study_copying", "study_pixels"):
        everyone |= {"lstm", "frozen", "agru_heun", "heun_free", "heun_ordinary", "half_steps"}
    assert {*tried["search"]} == everyone
    for kind, contestants in tried.items():
        assert {*contestants} <= everyone
        assert len({tuple(runs[one] for one in each) for each in contestants.values()}) <= 1
        for each in contestants.values():
            assert {own[one].test for one in each} == {kind == "final"}
    values = [[own[one].flat() for one in each] for each in tried["search"].values()]
    for key in ("learning_rate", "dropout", "epsilon", "gamma", "chrono"):
        columns = {tuple(flat[key] for flat in each) for each in values if key in each[0]}
        assert len(columns) == 1 and len({*columns.pop()}) > 12


def test_no_seed_serves_twice():
    every = [{seed for name in FILES if name not in STUDY for seed in FILES[name].seeds}]
    for path in PUBLISHED.glob("*/results.csv"):
        every[0] |= {*pd.read_csv(path)["seed"]} if path.parent.name not in STUDY else set()
    for protocol in STUDY.values():
        for kind in parts(protocol).values():
            names = [name for each in kind.values() for name in each]
            every.append({seed for name in names for seed in protocol.seeds_of(name)})
    assert len(set.union(*every)) == sum(map(len, every))


@pytest.mark.parametrize("name", sorted(STUDY))
def test_contestants_have_equally_many_free_parameters(name):
    features, free = {"study_copying": 10, "study_pixels": 1}.get(name, 28), []
    for each in (parts(STUDY[name])["search" if name in SEARCHED else "final"]).values():
        own = STUDY[name].parameterisations[each[0]]
        free.append(count(build_model(own, features, task_of(own).outputs(), torch.Generator()))[1])
    assert max(free) <= 1.01 * min(free)


def test_fashion_has_the_settings_that_were_chosen_on_rows():
    rows, fashion = (STUDY[name].parameterisations for name in ("study_rows", "study_fashion"))
    other = {"dataset": "fashion_mnist", "seed": 511}
    for name, own in fashion.items():
        if name in rows:
            assert own.flat() == rows[name].flat() | other
        assert own.hidden_size == rows[f"{name}_search00"].hidden_size


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("study_*")), ids=lambda path: path.name)
def test_published_searches_are_equal_and_read_no_test_example(path):
    report = Report(path)
    counts = report.results["variant"].str.replace(r"\d\d$", "", regex=True).value_counts()
    for kind in ("search", "finalist"):
        assert counts[counts.index.str.endswith(kind)].nunique() <= 1
    for run in report.runs:
        searched = KINDS.fullmatch(run.key[0]) is not None
        assert run.record["parameters"].get("test", True) != searched
    search = read_yaml(PROJECT / f"params/{path.name}.yaml", "")["search"]
    tried = report.results[report.results["variant"].str.contains("_search")]
    tried[["name", "number"]] = tried["variant"].str.extract(r"(.*)_search(\d\d)")
    if search and not tried["status"].eq("missing").any():  # then the finalists are the best four
        ranked = tried.sort_values(report.score.name, ascending=False, kind="stable")
        best = ranked.groupby("name")["number"].apply(lambda each: [int(k) for k in each[:4]])
        assert search["finalists"] == best.to_dict()
    assert not report.tested.runs or "exploratory" in (path / "index.html").read_text()
    again = report.results[report.results["variant"].str.contains("_finalist")]
    for name, number in (search or {}).get("choices", {}).items():
        own = again[again["variant"].str.startswith(f"{name}_finalist")]
        assert len(own) == 8  # four finalists with two seeds
        means = own.groupby("variant")[report.score.name].mean()
        assert means.idxmax() == f"{name}_finalist{number:02}"
