"""What is printed while trainings run: k of n, the score, the epochs, the time left."""

import json
from types import SimpleNamespace

import pytest

from rnnbench_nb import progress

RUNS = ("gru-seed42", "gru-seed43", "lstm-seed42", "lstm-seed43")


def write(folder, run, name, content):
    (folder / "runs" / run).mkdir(parents=True, exist_ok=True)
    (folder / "runs" / run / name).write_text(json.dumps(content))


def end(folder, run, accuracy, epochs, status="completed", **more):
    variant, _, seed = run.partition("-seed")
    record = {"format": 2, "variant": variant, "model": variant, "seed": int(seed)}
    record |= {"status": status, "metrics": "classification", "epochs": epochs}
    write(folder, run, "run.json", {**record, "test": {"accuracy": accuracy}, **more})


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Four runs of ten epochs, one finished before: the lines, the clock, a look."""
    lines, now = [], [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    end(tmp_path, "gru-seed42", 0.9, 8)
    return lines, now, progress.Progress(tmp_path, dict.fromkeys(RUNS, 10), lines.append).look


def test_each_training_that_ends_is_told_once_with_its_score(shown, tmp_path):
    lines, _, look = shown
    look()
    assert lines == []  # what was finished before is not news
    end(tmp_path, "lstm-seed42", 0.5, 5)
    end(tmp_path, "gru-seed43", None, None, status="failed")
    look()
    look()
    assert lines == [
        "2 of 4 trainings have ended; gru-seed43 failed.",
        "3 of 4 trainings have ended; lstm-seed42 has accuracy 50% after 5 epochs.",
    ]


def test_a_run_that_failed_before_is_told_when_it_ends_again(tmp_path):
    end(tmp_path, "gru-seed42", None, None, status="failed")
    lines = []
    look = progress.Progress(tmp_path, {"gru-seed42": 10}, lines.append).look
    look()
    assert lines == []
    end(tmp_path, "gru-seed42", None, None, status="failed", started="later")
    look()
    assert lines == ["1 of 1 trainings has ended; gru-seed42 failed."]


def test_what_is_under_way_is_told_every_few_seconds_with_the_time_left(shown, tmp_path):
    lines, now, look = shown
    write(tmp_path, "lstm-seed43", "progress.json", {"epoch": 2, "epochs": 10, "seconds": 1})
    now[0] = 4.9
    look()
    assert lines == []
    now[0] = 60.0
    look()  # of 30 epochs two took a minute, so 28 take 14
    look()
    text = "lstm-seed43 is at epoch 2 of 10; at most 14 min are left."
    assert lines == [f"1 of 4 trainings has ended; {text}"]
    now[0] = 119.0
    look()  # half an hour later a line a minute is enough
    assert len(lines) == 2


def test_before_and_after_the_trainings_the_jobs_are_counted(shown, tmp_path):
    lines, now, look = shown
    write(tmp_path, "lstm-seed43", "progress.json", {"half": "written"})
    (tmp_path / "runs/lstm-seed43/run.json").write_text("{")
    now[0] = 5.0
    look()
    assert lines == ["1 of 4 trainings has ended; no new epoch has ended yet."]
    for run in RUNS:
        end(tmp_path, run, 0.5, 10)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/snakemake.txt").write_text("1 of 9 steps (11%) done\n7 of 9 steps (78%)\n")
    look()
    now[0] = 50.0
    look()
    text = "notebooks and pages follow (7 of 9 jobs are done)."
    assert lines[-1] == f"4 of 4 trainings have ended; {text}"


def test_a_duration_in_words():
    words = [progress.in_words(seconds) for seconds in (0.2, 89, 90, 5399, 5400)]
    assert words == ["1 s", "89 s", "2 min", "90 min", "1.5 h"]
