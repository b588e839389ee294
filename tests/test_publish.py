"""What is published is light, whole, and loses nothing that was there."""

import json
import shutil

import pandas as pd
import pytest
from markupsafe import Markup
from nbformat.v4 import new_code_cell, new_markdown_cell
from small_reports import save_notebook, write_small

from rnnbench_nb import folders
from rnnbench_nb.errors import UserError
from rnnbench_nb.results import Report, write_frame
from rnnbench_nb.site import publish
from rnnbench_nb.site.render import Page

RUNS = {"gru": [0.96, 0.97], "agru": [0.95, 0.96]}


@pytest.fixture(autouse=True)
def _pages(monkeypatch, request):
    """Pages are made without a kernel, but for the test that asks for one."""
    if "by_executing" not in request.node.name:
        made = Page("03_compare", "Which?", Markup("<h1>Which?</h1>"), False)
        monkeypatch.setattr(publish, "_execute", lambda notebook, report: made)


@pytest.fixture
def made(tmp_path):
    """A finished report, with what a user keeps there and a table that was measured."""
    report = write_small(tmp_path / "made", RUNS)
    (report / "speed.json").write_text("{}")
    (report / "thesis.tex").write_text("mine")
    for name in ("gru-seed42", "agru-seed42"):
        table = pd.DataFrame({"variant": [name.partition("-")[0]], "seed": [42], "step": [1]})
        write_frame(report / f"runs/{name}/measures/along.parquet", table)
        (report / f"runs/{name}/best.safetensors").write_bytes(b"weights")
    return report


def test_the_light_part_is_copied_and_says_the_same(made, tmp_path):
    folder = publish.publish(made, tmp_path / "there").parent
    names = "report.json files.json protocol.yaml runs.json.xz results.csv results_summary.md "
    names += "history.parquet predictions.safetensors.xz speed.json measures/along.parquet "
    names += "pages/03_compare.html index.html figures/test_comparison.svg"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {*names.split()}
    assert Report(folder).records == Report(made).records and folders.changed_files(folder) == []
    (folder / "pages/03_compare.html").write_text("edited")
    assert folders.changed_files(folder) == ["pages/03_compare.html"]
    assert Report(folder).table("along")["variant"].tolist() == ["gru", "agru"]


def test_of_an_unfinished_report_the_finished_runs_are_published(made, tmp_path):
    shutil.rmtree(made / "runs/agru-seed43")
    text = publish.publish(made, tmp_path / "there").read_text()
    assert "3 of 4 runs are finished" in text and len(Report(tmp_path / "there").runs) == 3
    shutil.rmtree(made / "runs")
    with pytest.raises(UserError, match="made has no finished run to publish"):
        publish.publish(made, tmp_path / "other")


def test_what_is_damaged_is_named_and_what_was_published_stays(made, tmp_path):
    folder = publish.publish(made, tmp_path / "there").parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    path = made / "runs/gru-seed43/predictions.safetensors"
    whole = path.read_bytes()
    path.write_bytes(b"cut")
    with pytest.raises(UserError, match=r"gru-seed43/predictions\.safetensors is missing or dam"):
        publish.publish(made, folder)
    path.write_bytes(whole)
    (folder / folders.LIST).write_text("[")
    with pytest.raises(UserError, match=r"files\.json is damaged"):
        publish.publish(made, folder)
    (folder / folders.LIST).write_bytes(before[folder / folders.LIST])
    assert all(path.read_bytes() == content for path, content in before.items())


def test_published_again_files_of_others_stay_and_lost_or_changed_runs_need_a_flag(made, tmp_path):
    folder = publish.publish(made, tmp_path / "there").parent
    (folder / "notes.md").write_text("mine")
    (made / "speed.json").unlink()
    publish.publish(made, folder)  # the same runs
    assert not (folder / "speed.json").exists()  # of the earlier publication
    path = made / "runs/gru-seed42/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1.0}))
    with pytest.raises(UserError, match="change 1 published runs, such as gru-seed42"):
        publish.publish(made, folder)
    publish.publish(made, folder, replace=True)
    assert Report(folder).runs[0].record["seconds"] == 1.0
    assert (folder / "notes.md").exists() and (made / "thesis.tex").exists()


def test_places_that_hold_other_things_are_left_alone(made, tmp_path):
    for place in (tmp_path, made, made / "runs"):
        with pytest.raises(UserError, match=f"{place.name}.*name a new folder"):
            publish.publish(made, place)
    folder = publish.publish(made, tmp_path / "there").parent
    with pytest.raises(UserError, match="there is a published report"):
        publish.publish(folder, tmp_path / "again")


def test_where_a_front_page_lies_above_it_is_made_again(made, tmp_path):
    front = tmp_path / "all/front.html.j2"
    front.parent.mkdir()
    front.write_text("{{ evidence.trainings()[0] }} trainings")
    index = publish.publish(made, tmp_path / "all/made")
    assert (tmp_path / "all/index.html").read_text() == "4 trainings"
    assert 'href="../index.html">All reports' in index.read_text()


def test_pages_are_made_by_executing_the_notebooks_on_the_published_folder(
    made, tmp_path, monkeypatch
):
    monkeypatch.setattr(publish, "SOURCES", tmp_path / "project")
    notebook = tmp_path / "project/notebooks/03_compare.ipynb"
    parameters = new_code_cell("output_dir = ''", metadata={"tags": ["parameters"]})
    count = "from pathlib import Path\nprint(len([*Path(output_dir).rglob('*.parquet')]), 'tables')"
    save_notebook(notebook, new_markdown_cell("# Which?"), parameters, new_code_cell(count))
    folder = publish.publish(made, tmp_path / "there").parent
    assert "2 tables" in (folder / "pages/03_compare.html").read_text()
    failing = new_code_cell("raise ValueError('no such column')")
    save_notebook(notebook, new_markdown_cell("# Which?"), parameters, failing)
    with pytest.raises(UserError, match=r"03_compare\.ipynb failed on .*there: no such column"):
        publish.remake(folder)
    assert "2 tables" in (folder / "pages/03_compare.html").read_text()
    with pytest.raises(UserError, match="made is not a published report"):
        publish.remake(made)
