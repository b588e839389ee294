"""A thousand runs: what planning, running and collecting cost, with a stub in place of training."""

import json
import shutil
import subprocess
import sys
import threading
import time
import venv

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import write_tiny
from test_faults import working_on

from rnnbench_nb.files import PROJECT
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import history_columns, read_csv, write_csv, write_record, write_tensors
from rnnbench_nb.tasks import TASKS

SEEDS, VARIANTS, IMAGES = 100, 10, 10_000
STUB = """#!/bin/sh
case "$2" in
    runs/*) exec cp -r "{store}/$(dirname "$2")" runs ;;
    *) exec "{papermill}" "$@" ;;
esac
"""


def write_run(folder, parameters, record, label, random):
    """A finished run of the real size: 10,000 predictions, 50 epochs."""
    record = {**record, "variant": parameters.name, "seed": parameters.seed}
    wrong = random.random(IMAGES) < random.uniform(0.01, 0.02)
    predicted = np.where(wrong, (label + 1) % 10, label).astype(np.uint8)
    outputs = 8 * np.eye(10, dtype=np.float32)[predicted] + random.random((IMAGES, 10)) / 2
    metrics = TASKS[parameters.task](parameters.task_options).metrics(label, predicted)
    record["test"] = {**metrics, "loss": 0.05}
    record["parameters"] = parameters.flat()
    record |= {"epochs": 50, "best_epoch": 40}
    write_tensors(folder / "outputs.safetensors", {"outputs": outputs.astype(np.float32)})
    write_tensors(folder / "predicted.safetensors", {"label": label, "predicted": predicted})
    frame = pd.DataFrame(
        {"epoch": np.arange(1, 51).repeat(2), "split": ["train", "validation"] * 50}
    )
    frame["loss"], frame["accuracy"] = 1 / frame["epoch"], 1 - 0.2 / frame["epoch"]
    frame = frame.assign(variant=parameters.name, model="gru", seed=parameters.seed, seconds=8.0)
    frame = frame.assign(learning_rate=1e-3, gradient_norm=1.0)
    write_csv(folder / "history.csv", frame[history_columns("accuracy")])
    write_record(folder, record)


@pytest.mark.slow
def test_a_thousand_runs_plan_run_and_collect_without_pain(report, tmp_path, capsys):
    values = [f"v{i}: {{model: gru, dropout: {i / 100}}}" for i in range(VARIANTS)]
    parameters = write_tiny(
        tmp_path / "p.yaml", models="[gru]", runs=SEEDS, epochs=50,
        variants=f"{{{', '.join(values)}}}",
    )  # fmt: skip
    finished, store = report / "runs/lstm-seed42", tmp_path / "store"
    record = json.loads((finished / "run.json").read_text())
    random, label = np.random.default_rng(0), np.arange(IMAGES, dtype=np.uint8) % 10
    protocol = load_protocol(parameters)
    for own in (own for seed in protocol.seeds for own in protocol.at(seed)):
        write_run(store / "runs" / own.run, own, record, label, random)
        shutil.copy(finished / "02_train.ipynb", store / "runs" / own.run)

    bin = tmp_path / "environment/bin"  # this environment, except that papermill trains nothing
    venv.create(bin.parent, symlinks=True)
    (site,) = bin.parent.glob("lib/*/site-packages")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "all.pth").write_text(f"{packages}\n{PROJECT}\n")
    real = shutil.which("papermill")
    (bin / "papermill").write_text(STUB.format(store=store, papermill=real))
    (bin / "papermill").chmod(0o755)

    out, peak, stop = tmp_path / "out", [0], threading.Event()

    def watch():
        while not stop.wait(0.2):
            sizes = [memory(process) for process in working_on(out)]
            peak.append(max(sizes, default=0))

    def seconds(python, *arguments):
        start = time.monotonic()
        code = "from rnnbench_nb.cli import main; main()"
        done = subprocess.run(
            [python, "-c", code, *map(str, arguments)], cwd=PROJECT, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return time.monotonic() - start

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run = [bin / "python", "run", parameters, "--output-dir", out]
    measured = {"plan": seconds(*run, "--dry-run"), "run": seconds(*run), "resume": seconds(*run)}
    measured |= {name: seconds(sys.executable, name, out) for name in ("collect", "render")}
    stop.set()
    watcher.join()
    with capsys.disabled():
        text = ", ".join(f"{name} {value:.1f} s" for name, value in measured.items())
        print(f"\n{SEEDS * VARIANTS} runs: {text}; largest process {max(peak) / 1e6:.0f} MB")
    assert len(read_csv(out / "results.csv").query("status == 'completed'")) == SEEDS * VARIANTS
    assert len(list(out.glob("pages/02_train-*.html"))) == VARIANTS  # the first seed's
    assert max(peak) < 1e9


def memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
