"""Verify names what was edited in a report."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from conftest import TINY, one_sentence, rnnbench_here
from small_reports import write_report

from rnnbench_nb import cli, folders, results
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, read_file, write_json
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.results import Report, write_tables
from rnnbench_nb.runs import data_record, new_model, task_of
from rnnbench_nb.training import fit
from rnnbench_nb.verify import TOLERANCE, retrain, verify

BUDGET = {"epochs": 3, "steps": None, "batch_size": 2, "drop_last": False, "patience": None}
BUDGET |= {"min_delta": 0.0, "best_by": "score", "hidden_size": 8}
LABELS = [0, 1, 2, 1]


@pytest.fixture
def folder(tmp_path):
    """A sound report of two variants with two seeds."""
    variants = {name: {"model": name, **BUDGET} for name in ("gru", "lstm")}
    runs = [(name, seed) for name in variants for seed in (1, 2)]
    answers = {key: (LABELS, np.roll(LABELS, number)) for number, key in enumerate(runs)}
    curves = {key: [0.1, 0.1 * number, 0.15] for number, key in enumerate(runs)}
    write_tables(write_report(tmp_path, variants, answers, curves))
    return tmp_path


def problems(folder):
    return verify(Report(folder))


def published(folder):
    """The published form of a report, not sealed."""
    results.write_published(Report(folder), place := folder.with_name(f"{folder.name}-published"))
    return place


def test_a_sound_report_agrees(folder):
    assert problems(folder) == problems(published(folder)) == []


def edit_table(change, *names):
    """Change the first of the tables that is there."""

    def edit(folder):
        path = next(folder / name for name in names or ["results.csv"] if (folder / name).exists())
        if path.suffix == ".parquet":
            results.write_frame(path, change(pd.read_parquet(path)))
        else:
            change(pd.read_csv(path, keep_default_na=False)).to_csv(path, index=False)

    return edit


def cell(row, **values):
    def change(table):
        for name, value in values.items():
            column = [value if i == row else old for i, old in enumerate(table[name])]
            table = table.assign(**{name: column})
        return table

    return edit_table(change)


def edit_record(run="gru-seed1", **values):
    def edit(folder):
        path, common = folder / f"runs/{run}/run.json", folder / folders.RECORDS
        records = json.loads(read_file(common if common.exists() else path))
        record = records if path.exists() else records[run == "gru-seed2"]
        for name, value in values.items():
            record[name] = record[name] | value if isinstance(value, dict) else value
        write_json(path if path.exists() else common, records)

    return edit


def edit_history(change, run="gru-seed1"):
    return edit_table(change, f"runs/{run}/history.csv", "history.parquet")


def edit_answers(**arrays):
    def edit(folder):
        path, common = folder / "runs/gru-seed1/predictions.safetensors", {}
        new, name = {"label": np.array(LABELS), "predicted": np.array(LABELS)} | arrays, "{}"
        if not path.exists():
            path, name = folder / "predictions.safetensors.xz", "gru-seed1/{}"
            common = safetensors.numpy.load(read_file(path))
        common |= {name.format(key): array for key, array in new.items()}
        results.write_tensors(path, common)

    return edit


EDITS = {
    "a row missing": (edit_table(lambda t: t.drop(index=1)), "0 rows of gru, seed 2"),
    "all rows missing": (edit_table(lambda t: t[:0]), "0 rows of lstm, seed 1"),
    "a row twice": (edit_table(lambda t: pd.concat([t, t[:1]])), "2 rows of gru, seed 1"),
    "a row of no run": (cell(0, seed=9), "1 rows of gru, seed 9"),
    "rows in another order": (edit_table(lambda t: t[::-1]), "results.csv does not match"),
    "one more column": (edit_table(lambda t: t.assign(recall_sd=0.1)), "results.csv does not"),
    "another variant": (cell(0, variant="agru"), "1 rows of agru, seed 1"),
    "another model": (cell(0, model="agru"), "has model agru for gru, seed 1"),
    "every status failed": (edit_table(lambda t: t.assign(status="failed")), "status failed"),
    "one status failed": (cell(1, status="failed"), "has status failed for gru, seed 2"),
    "no accuracy": (cell(1, accuracy=""), "has accuracy"),
    **{
        name: (cell(2, **{name: 0.4}), f"has {name} 0.4 for lstm, seed 1; its record has")
        for name in results.result_columns(METRICS["classification"].names)[3:-1]
    },
    "a record's score": (edit_record(test={"accuracy": 0.9}), "its predictions give 1.0"),
    "a record's best epoch": (edit_record(best_epoch=1), "its history gives 3"),
    "a record's seconds": (edit_record(seconds=9.5), "its seconds are 9.5; its history gives"),
    "a record's loss": (edit_record(test={"loss": 0.5}), "its record has 0.5"),
    "a record's size": (edit_record(parameter_count=9), "its record has 9"),
    "a record's status": (edit_record(status="failed"), "its record has failed"),
    "a record's data": (edit_record(data={"test": 5}), "it has 4 answers to 5 examples"),
    "a record's variant": (edit_record(variant="agru"), "its record has missing"),
    "a record's seed": (edit_record(seed=9), "its record has missing"),
    "a record's metrics": (edit_record(metrics="x"), "its record has missing"),
    "a record's epochs": (edit_record(epochs=2), "each of its 2 epochs once"),
    "a record's parameters": (edit_record(parameters={"epochs": 4}), "protocol asks for 3"),
    "a record's model": (edit_record(model="lstm"), "names another run"),
    "answers": (edit_answers(predicted=np.zeros(4, int)), "its predictions give 0.25"),
    "an answer": (edit_answers(predicted=np.array([0, 1, 2, 2])), "its predictions give 0.75"),
    "labels and answers": (
        edit_answers(label=np.array([1, 0, 2, 1]), predicted=np.array([1, 0, 2, 1])),
        "its labels differ from those of the other runs",
    ),
    "seconds of an epoch": (edit_history(lambda h: h.assign(seconds=2.0)), "its history gives"),
    "another split": (
        edit_history(lambda h: h.replace({"split": {"validation": "test"}})),
        "epochs once",
    ),
    "a curve": (edit_history(lambda h: h.assign(accuracy=0.5)), "its history gives 1"),
    "an epoch missing": (edit_history(lambda h: h[:-2]), "each of its 3 epochs once"),
    "an epoch twice": (edit_history(lambda h: pd.concat([h, h[:1]])), "epochs once"),
    "the summary": (lambda f: (f / "results_summary.md").write_text("better\n"), "summary"),
}


@pytest.mark.parametrize("form", [lambda folder: folder, published], ids=["own", "published"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_named(folder, edit, form):
    change, sentence = EDITS[edit]
    change(place := form(folder))
    try:
        assert any(sentence in problem for problem in problems(place)), problems(place)
    except UserError as error:  # a name in the records that no history has
        assert form is published and edit.startswith("a record's"), error


def test_the_history_of_a_report_and_the_files_of_a_run_are_as_they_were_written(folder):
    table = pd.DataFrame({"variant": ["gru"], "seed": [1], "ece": [0.1]})
    results.write_frame(folder / "runs/gru-seed1/measures/calibration.parquet", table)
    edit_record(hashes=results.digests(folder / "runs/gru-seed1"))(folder)
    assert problems(folder) == []
    edit_table(lambda h: h.assign(loss=2.0), "history.csv")(folder)
    assert problems(folder) == ["history.csv does not match the runs"]
    edit_history(lambda h: h.assign(gradient_norm=2.0))(folder)
    edit_table(lambda t: t.assign(ece=0.2), "runs/gru-seed1/measures/calibration.parquet")(folder)
    (folder / "runs/gru-seed1/predictions.safetensors").touch()  # not changed
    names = "history.csv", "measures/calibration.parquet"
    named = [f"gru-seed1: its {name} has changed since it was written" for name in names]
    assert problems(folder)[:2] == named


def test_every_file_of_a_published_report_is_as_it_was_published(tmp_path):
    shutil.copytree(PROJECT / "reports/published/agru_authors", folder := tmp_path / "agru_authors")
    assert problems(folder) == []
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != folders.LIST]
    measures = [path for path in files if path.parent.name == "measures"]
    measures[0].unlink()
    assert problems(folder) == [f"measures/{measures[0].name} has changed since it was published"]
    assert len(files) > 10
    for path in files:
        path.write_bytes(b"edited")
    names = {path.relative_to(folder).as_posix() for path in files}
    assert names == {*folders.changed_files(folder)}


def test_what_is_damaged_stops_the_check_of_no_other_report(folder, monkeypatch):
    damaged, sound = published(folder), folder
    write_json(damaged / folders.RECORDS, [{"variant": "gru", "seed": 1, "status": "completed"}])
    result = rnnbench_here("verify", damaged, sound)
    assert "is missing or damaged" in result.stdout and f"{sound} agrees" in result.stdout
    assert one_sentence(result) == "rnnbench: checks that failed: 1; the lines above name them."
    edit_record(**{"test": None})(folder)
    assert "runs is missing or damaged" in rnnbench_here("verify", folder).stdout
    monkeypatch.setattr(cli, "PROJECT", folder)  # without a name: all published reports
    shutil.copytree(
        PROJECT / "reports/published/agru_authors", folder / "reports/published/agru_authors"
    )
    assert "agru_authors agrees with the predictions of 15 runs" in rnnbench_here("verify").stdout


def test_an_early_stop_is_where_patience_says(tmp_path):
    answers, curve = {("gru", 1): (LABELS, LABELS)}, {("gru", 1): [0.1, 0.2, 0.3]}
    # The loss is 1 in each epoch: the second and third are no fall.
    for patience, found in ((2, []), (5, ["it has 3 epochs; budget and history give 9"])):
        variants = {"gru": {"model": "gru", **BUDGET, "epochs": 9, "patience": patience}}
        write_tables(write_report(tmp_path, variants, answers, curve))
        assert problems(tmp_path) == [f"gru-seed1: {problem}" for problem in found]


def test_unfinished_runs_are_not_blamed_published_or_not(folder, tmp_path_factory):
    (folder / "runs/gru-seed1/run.json").unlink()
    edit_record("gru-seed2", status="failed", reason="the loss is nan", test={})(folder)
    write_tables(Report(folder))
    results.write_published(Report(folder), place := tmp_path_factory.mktemp("published"))
    assert problems(folder) == problems(place) == []
    text = (place / "results_summary.md").read_text()
    assert "gru-seed1 is missing: it did not finish; see logs/gru-seed1.txt\n" in text
    assert "gru-seed2 is failed: the loss is nan\n" in text


def test_a_run_is_trained_again_and_agrees_differs_or_cannot_be_checked(tmp_path):
    own = {"model": "gru", **TINY, "epochs": 3, "schedule": "cosine"}
    parameters = run_parameters(own, "the test")
    task = task_of(parameters)
    data = task.load(42)
    model = new_model(parameters, task, data.train)
    history = fit(model, data, task, parameters, report=lambda line: None).history
    variants = {"gru": {"model": "gru", **parameters.flat()}}
    write_report(
        tmp_path, variants, {("gru", 42): (LABELS, LABELS)}, {("gru", 42): [0.1, 0.2, 0.3]}
    )
    rows = pd.DataFrame(history).assign(variant="gru", model="gru", seed=42)
    edit_history(lambda _: rows, "gru-seed42")(tmp_path)
    edit_record("gru-seed42", data=data_record(task, data))(tmp_path)
    lines = []

    def outcome():
        return retrain(Report(tmp_path), 2, lines.append)  # of three epochs

    assert outcome() == ["agrees"] and lines == ["gru-seed42: agrees (0)"]
    edit_history(lambda h: h.assign(loss=h["loss"] * (1 + 2 * TOLERANCE)), "gru-seed42")(tmp_path)
    assert outcome() == ["differs"]
    for change, reason in (({"data": {"hash": "x"}}, "data"), ({"device": "cuda"}, "GPU")):
        edit_record("gru-seed42", **change)(tmp_path)
        assert outcome() == ["cannot be checked"] and reason in lines[-1]
