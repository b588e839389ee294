"""One contract for every analysis: computed, saved, read back the same, shown without weights."""

import shutil

import pandas as pd
import pytest
from conftest import TINY

from rnnbench_nb import analyses
from rnnbench_nb.analyses import PAGES, Analysis, analyse, load, open_report
from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.report import Report, write_tables
from rnnbench_nb.runs import train_run

NAMES = {page.partition("_")[2] for page in PAGES}
MODULES = {"compare": "comparison", "eigenvalues": "eigenvalues", "ablation": "ablation",
           "gradients": "gradients", "memory": "memory"}  # fmt: skip


@pytest.fixture(scope="module")
def every_cell(tmp_path_factory):
    """A report with every cell, and one of them in two variants, two seeds each."""
    folder = tmp_path_factory.mktemp("every")
    variants = {name: {"model": name} for name in CELLS} | {"wide": {"model": "agru",
                                                                     "hidden_size": 9}}  # fmt: skip
    protocol = {**TINY, "models": list(CELLS), "variants": variants, "runs": 2, "seed": 42}
    (folder / "protocol.yaml").write_text(to_yaml(protocol))
    for name, values in variants.items():
        for seed in (42, 43):
            own = {**TINY, **values, "seed": seed, "variant": name}
            parameters = run_parameters(own, "the test")
            train_run(parameters, folder / "runs" / parameters.run, report=lambda line: None)
    report = Report(folder)
    write_tables(report)
    return report


def test_every_page_has_an_analysis():
    assert set(MODULES) == NAMES
    files = {path.stem for path in (PROJECT / "rnnbench_nb/analyses").glob("*.py")}
    assert set(MODULES.values()) <= files


@pytest.mark.parametrize("name", MODULES.values())
def test_an_analysis_is_read_back_as_it_was_saved_and_needs_no_weights(every_cell, name, tmp_path):
    found = analyse(name, every_cell)
    assert found.findings and found.frames
    for frame in found.frames.values():
        assert len(frame.columns) == len(set(frame.columns)) > 1
    again = load(every_cell.folder / "analyses" / name)
    assert again.findings == found.findings
    for key, frame in found.frames.items():
        pd.testing.assert_frame_equal(again[key], frame)
    light = tmp_path / "light"
    shutil.copytree(every_cell.folder, light, ignore=shutil.ignore_patterns(
        "best*", "initial*", "outputs*", "recurrent*", "checkpoint*"))  # fmt: skip
    without = analyse(name, Report(light))
    assert without.findings == found.findings
    for key, frame in found.frames.items():
        pd.testing.assert_frame_equal(without[key], frame)
    shutil.rmtree(light)


@pytest.mark.parametrize("name", MODULES.values())
def test_an_analysis_is_by_variant_never_pooled(every_cell, name):
    saved = every_cell.folder / "analyses" / name  # by the test above, where it ran
    found = load(saved) if saved.exists() else analyse(name, every_cell)
    keyed = [frame for frame in found.frames.values() if {"variant", "a"} & set(frame)]
    assert keyed, "no frame has a variant"
    for frame in keyed:
        column = "variant" if "variant" in frame else "a"
        assert set(frame[column]) <= {*every_cell.variants, *every_cell.labels.values()}


def test_a_saved_analysis_is_not_taken_for_one_with_other_options(every_cell, tmp_path):
    analyse("comparison", every_cell, margin=0.01)
    light = tmp_path / "light"
    shutil.copytree(every_cell.folder, light, ignore=shutil.ignore_patterns("best*", "initial*"))
    assert analyse("comparison", Report(light), margin=0.01).options == {"margin": 0.01}
    with pytest.raises(UserError, match="was saved with {'margin': 0.01}, and without the weights"):
        analyse("comparison", Report(light), margin=0.02)


def test_a_damaged_analysis_is_named(tmp_path):
    Analysis({"x": pd.DataFrame({"a": [1]})}).save(tmp_path)
    (tmp_path / "findings.json").write_text("{")
    with pytest.raises(UserError, match=r"findings\.json is missing or damaged; make the report"):
        load(tmp_path)


def test_only_the_default_folder_may_give_a_demonstration(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="holds no report"):
        open_report(str(tmp_path / "nowhere"))
    monkeypatch.setattr(analyses, "PROJECT", tmp_path)
    monkeypatch.setattr("rnnbench_nb.demonstration.demonstration", lambda: "a demonstration")
    assert open_report("reports/quick") == "a demonstration"
