"""What is said while trainings run: k of n, the score, the epochs, the time left."""

import json

import pytest
from conftest import write_tiny

from rnnbench_nb.progress import SECONDS, Progress, in_words
from rnnbench_nb.report import Report


@pytest.fixture
def told(tmp_path):
    """A report of four runs, one of them finished; lines, clock, and ways to end and go on."""
    write_tiny(tmp_path / "protocol.yaml", models="[gru, lstm]", runs=2, epochs=10)
    lines, now = [], [0.0]

    def end(run, accuracy, epochs):
        variant, _, seed = run.partition("-seed")
        record = {"variant": variant, "seed": int(seed), "status": "completed", "epochs": epochs}
        (tmp_path / f"runs/{run}").mkdir(parents=True)
        record["test"] = {"accuracy": accuracy}
        (tmp_path / f"runs/{run}/run.json").write_text(json.dumps(record))

    def reach(run, epoch):
        (tmp_path / "logs").mkdir(exist_ok=True)
        line = f"{run}  epoch {epoch:3d}  training loss 0.1\n"
        (tmp_path / f"logs/{run}.txt").write_text(f"Executing Cell 9\n{line}")

    end("gru-seed42", 0.9, 8)
    progress = Progress(Report(tmp_path), lines.append, clock=lambda: now[0])
    return progress, lines, now, end, reach


def test_each_training_that_ends_is_told_with_the_time_left(told):
    progress, lines, now, end, _ = told
    progress.look()
    assert lines == []  # what was finished before is not told again
    end("lstm-seed42", 0.5, 5)
    now[0] = 600.0
    progress.look()
    # five epochs took ten minutes, and two trainings have ten epochs each at most
    assert lines == [
        "2 of 4 trainings: lstm-seed42, accuracy 50%, 5 epochs; about 40 min left at most."
    ]
    end("gru-seed43", 0.25, 10)
    end("lstm-seed43", 0.75, 10)
    progress.look()
    assert lines[1:] == [
        "3 of 4 trainings: gru-seed43, accuracy 25%, 10 epochs; about 7 min left at most.",
        "4 of 4 trainings: lstm-seed43, accuracy 75%, 10 epochs.",
    ]


def test_what_is_under_way_is_told_now_and_then(told):
    progress, lines, now, _, reach = told
    reach("lstm-seed43", 2)
    now[0] = SECONDS - 1
    progress.look()
    assert lines == []
    now[0] = 3600.0
    progress.look()  # of 30 epochs two took an hour
    progress.look()
    assert lines == ["1 of 4 trainings; lstm-seed43 at epoch 2 of 10; about 14.0 h left at most."]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")],
)
def test_a_span_of_time_in_words(seconds, said):
    assert in_words(seconds) == said
