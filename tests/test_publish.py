"""What is published is light, and says the same as the report it comes from."""

import re
import shutil

import nbformat
import pandas as pd
import pytest
from conftest import one_sentence, rnnbench_here, write_tiny

from rnnbench_nb import launch
from rnnbench_nb.analyses import Analysis, Finding, load
from rnnbench_nb.errors import UserError
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report, load_run, read_csv, write_tables
from rnnbench_nb.runs import train_run
from rnnbench_nb.site import render as site
from rnnbench_nb.site.publish import publish, without_pictures


def notebook(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_markdown_cell(f"# The page {path.stem}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished report of one model and two seeds, and of another whose run is left over."""
    out = tmp_path_factory.mktemp("made") / "small"
    protocol = load_protocol(write_tiny(out.parent / "p.yaml", models="[gru]", runs=2, epochs=1))
    launch.write_parameters(out, protocol)
    for parameters in (*protocol.at(42), *protocol.at(43)):
        run = train_run(parameters, out / "runs" / parameters.run, report=lambda line: None)
        notebook(run.folder / "02_train.ipynb")
    shutil.copytree(out / "runs/gru-seed42", out / "runs/lstm-seed42")  # no longer asked for
    notebook(out / "notebooks/03_compare.ipynb")
    Analysis(findings=[Finding("It is so.", {"n": 1})]).save(out / "analyses/small")
    write_tables(Report(out))
    site.build(out)
    return out


def test_the_light_part_is_copied_and_nothing_else(made, tmp_path):
    (tmp_path / "there/runs/lstm-seed7").mkdir(parents=True)  # of an earlier publication
    (tmp_path / "there/protocol.yaml").touch()
    index = publish(made, tmp_path / "there")
    assert index == tmp_path / "there/index.html"
    files = {str(path.relative_to(index.parent)) for path in index.parent.rglob("*.*")
             if path.is_file()}  # fmt: skip
    assert files == {
        "runs/gru-seed42/run.json", "runs/gru-seed43/run.json", "predicted.safetensors.xz",
        "index.html", "protocol.yaml", "results.csv", "history.csv", "results_summary.md",
        "pages/03_compare.html", "pages/02_train-gru-seed42.html", "analyses/small/findings.json",
        "notebooks/03_compare.ipynb", "runs/gru-seed42/02_train.ipynb",
    }  # fmt: skip
    assert load(index.parent / "analyses/small").texts("answer") == ["It is so."]


def test_large_tables_are_compressed_and_read_as_before(made, tmp_path, monkeypatch):
    monkeypatch.setattr("rnnbench_nb.site.publish.LARGE", 100)
    folder = publish(made, tmp_path / "there").parent
    assert not (folder / "history.csv").exists() and (folder / "results.csv").exists()
    assert Report(folder).history.equals(Report(made).history)
    assert Report(folder).runs[0].history.equals(Report(made).runs[0].history)
    assert pd.read_csv(folder / "history.csv.xz").equals(pd.read_csv(made / "history.csv"))
    assert 'href="history.csv.xz"' in (folder / "index.html").read_text()
    with pytest.raises(UserError, match="published already"):
        publish(folder, tmp_path / "again")
    (folder / "history.csv.xz").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"history\.csv\.xz is missing or damaged"):
        read_csv(folder / "history.csv")


def test_of_many_variants_no_training_page_is_published(made, tmp_path, monkeypatch):
    monkeypatch.setattr("rnnbench_nb.site.publish.FEW", 0)
    folder = publish(made, tmp_path / "there").parent
    assert not list(folder.glob("**/02_train*"))


def test_a_published_notebook_says_its_pictures_in_words_and_a_table_once(tmp_path):
    data = {"image/png": "x" * 9, "text/plain": "A line."}
    shown = nbformat.v4.new_output("display_data", data, metadata={"image/png": {"alt": "A line."}})
    table = nbformat.v4.new_output(
        "display_data", {"text/html": '<td id="T_1" >1</td>', "text/plain": "1"}
    )
    where = {"papermill": {"status": "completed"}, "execution": {"reply": "now"}, "tags": ["x"]}
    warned = nbformat.v4.new_output("stream", name="stderr", text="/somewhere/x.py:1: Warning")
    cells = [nbformat.v4.new_code_cell("x", outputs=[warned, shown, table], metadata=where)]
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata.papermill = {"output_path": "/somewhere", "parameters": {"seed": 1}}
    nbformat.write(made, tmp_path / "a.ipynb")
    light = nbformat.reads(without_pictures(tmp_path / "a.ipynb"), 4)
    picture, rows = light.cells[0].outputs
    assert (picture.data, picture.metadata) == ({"text/plain": "A line."}, {})
    assert rows.data == {"text/html": "<td >1</td>"}
    assert light.cells[0].metadata == {"tags": ["x"]}
    assert light.metadata.papermill == {"parameters": {"seed": 1}}


def test_the_default_place_is_the_published_folder_of_its_name(made, monkeypatch, tmp_path):
    monkeypatch.setattr("rnnbench_nb.cli.PROJECT", tmp_path)
    result = rnnbench_here("publish", made)
    assert result.stdout.strip() == str(tmp_path / "reports/published/small/index.html")


def test_a_published_report_has_the_histories_and_scores_of_its_runs(made, tmp_path):
    before, after = Report(made), Report(publish(made, tmp_path / "there").parent)
    assert after.lost == []
    assert after.history.equals(before.history)
    assert after.results.equals(before.results)
    assert [run.scores.tolist() for run in after.runs] == [r.scores.tolist() for r in before.runs]


def test_places_that_hold_other_things_are_left_alone(made, tmp_path):
    (tmp_path / "thesis.tex").touch()
    refused = rnnbench_here("publish", made, "--to", tmp_path)
    assert "holds other things than a report; name another with --to" in one_sentence(refused)
    assert (tmp_path / "thesis.tex").exists()
    for place in (made, made / "runs"):
        with pytest.raises(UserError, match="is in the report itself"):
            publish(made, place)
    assert (made / "index.html").exists()


def test_what_is_not_finished_or_published_already_is_refused(made, tmp_path):
    published = publish(made, tmp_path / "there").parent
    with pytest.raises(UserError, match="is not finished, or published already"):
        publish(published, tmp_path / "again")
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy/notebooks/03_compare.ipynb.failed").touch()
    with pytest.raises(UserError, match="is not finished, or published already"):
        publish(tmp_path / "copy", tmp_path / "again")
    (tmp_path / "copy/notebooks/03_compare.ipynb.failed").unlink()
    (tmp_path / "copy/runs/gru-seed43/run.json").unlink()
    with pytest.raises(UserError, match="is not finished, or published already"):
        publish(tmp_path / "copy", tmp_path / "again")


def test_a_run_under_way_is_carried_to_the_same_weights(made, tmp_path, monkeypatch):
    def killed(line):
        if "epoch   2" in line:
            raise KeyboardInterrupt

    here, there = tmp_path / "here/reports/small", tmp_path / "there/reports"
    shutil.copytree(made, here, ignore=shutil.ignore_patterns("gru-seed43"))
    three = load_protocol(write_tiny(tmp_path / "p.yaml", models="[gru]", runs=2, epochs=3))
    shutil.rmtree(here / "variants")
    launch.write_parameters(here, three)
    shutil.rmtree(here / "runs/gru-seed42")  # not yet begun
    parameters = three.at(43)[0]
    with pytest.raises(KeyboardInterrupt):
        train_run(parameters, here / "runs/gru-seed43", report=killed)
    whole = train_run(parameters, tmp_path / "whole", report=lambda line: None)
    with pytest.raises(UserError, match="or publish what there is with --partial"):
        publish(here, there / "published/small")
    monkeypatch.setattr("rnnbench_nb.cli.PROJECT", there.parent)
    assert rnnbench_here("publish", here, "--partial").returncode == 0
    published = there / "published/small"
    files = {path.name for path in (published / "runs/gru-seed43").iterdir()}
    assert files == {"run.json", "history.csv", "checkpoint.pt"}
    said = "gru-seed43 is partial: it has had 2 epochs, and its checkpoint goes on from there"
    assert said in (published / "results_summary.md").read_text()
    assert "is partial: it has had 2 epochs" in (published / "index.html").read_text()
    assert Report(published).results["status"].tolist() == ["missing", "partial"]
    assert load_run(published / "runs/gru-seed43").history["epoch"].max() == 2

    monkeypatch.setattr("rnnbench_nb.runs.PROJECT", there.parent)  # a clone on another machine
    lines = []
    carried = train_run(parameters, there / "small/runs/gru-seed43", report=lines.append)
    origin = "reports/published/small/runs/gru-seed43"
    assert lines[0] == f"gru-seed43 goes on after epoch 2 of {origin}." and len(lines) == 2
    for name in ("best", "initial", "outputs", "predicted"):
        assert (carried.folder / f"{name}.safetensors").read_bytes() == \
               (whole.folder / f"{name}.safetensors").read_bytes()  # fmt: skip
    timeless = ["epoch", "split", "loss", "accuracy", "learning_rate"]
    assert carried.history[timeless].equals(whole.history[timeless])
    other = parameters.model_copy(update={"epochs": 4})
    train_run(other, there / "other/gru-seed43", report=lines.append)
    assert "epoch   1" in lines[2]  # another run begins at its beginning

    launch.write_parameters(there / "small", three)
    with pytest.raises(UserError, match="no run is under way there"):
        publish(there / "small", published, partial=True)
    shutil.copytree(here / "notebooks", there / "small/notebooks")
    train_run(three.at(42)[0], there / "small/runs/gru-seed42", report=lambda line: None)
    write_tables(Report(there / "small"))
    site.build(there / "small")
    publish(there / "small", published)
    assert not list(published.glob("runs/*/checkpoint.pt"))  # it is done


def test_a_damaged_checkpoint_is_named_and_what_is_published_stays(made, tmp_path):
    shutil.copytree(made, tmp_path / "here")
    (tmp_path / "here/runs/gru-seed43/run.json").unlink()
    (tmp_path / "here/runs/gru-seed43/checkpoint.pt").write_bytes(b"no checkpoint")
    published = publish(made, tmp_path / "there").parent
    with pytest.raises(UserError, match=r"gru-seed43/checkpoint\.pt is damaged; move it away"):
        publish(tmp_path / "here", published, partial=True)
    assert (published / "pages/03_compare.html").exists()


def test_pages_remade_without_weights_equal_those_made_with_them(report, tmp_path):
    published = publish(report, tmp_path / "published").parent
    assert not list(published.glob("runs/*/best.safetensors"))
    names = launch.analysis_pages(Report(report).protocol)
    assert names == ["03_compare", "04_eigenvalues", "07_gradients"]
    before = {path.stem: site.kept(path).body for path in published.glob("pages/*.html")}
    svg = (published / "figures/test_comparison.svg").read_text()
    (published / "figures/test_comparison.svg").write_text("old")
    (published / "notebooks/07_gradients.ipynb").unlink()  # as of before analyses were saved
    remade = rnnbench_here("site", tmp_path, "--remake", published)
    assert one_sentence(remade).endswith("front.yaml is not there, so there is no front page; "
                                         "write it.")  # fmt: skip
    assert (published / "figures/test_comparison.svg").read_text() == svg
    after = {path.stem: site.kept(path).body for path in published.glob("pages/*.html")}
    assert after.keys() == before.keys() >= {*names, "01_data"}
    assert sum(name.startswith("02_train") for name in after) == 1
    given = re.compile("<p>Parameters of this run</p>.*?</pre>", re.S)  # another folder now
    for name, body in before.items():
        assert given.sub("", after[name]) == given.sub("", body), name
    text = (published / "pages/07_gradients.html").read_text()
    assert 'rel="next" href="02_train-' in text and "download>" not in text
