"""Convert the published reports of version 0.1 to the form of version 0.2, once.

Run with the code of this commit, in the project's folder: python convert_0_1.py
"""

import json
import lzma
import shutil
from io import StringIO
from pathlib import Path

import pandas as pd
from rnnbench_nb.experiment import recorded_parameters, recorded_protocol, to_yaml

from rnnbench_nb import results, runs
from rnnbench_nb.metrics import METRICS as METRICS_OF

PUBLISHED = Path("reports/published")
METRICS = {"adding_problem": "regression", "copying_memory": "symbols"}  # others classify
TABLES = {  # of 0.2, from that of 0.1
    "stability": "eigenvalues/stability", "training": "eigenvalues/training",
    "spectra": "eigenvalues/spectra", "modes": "eigenvalues/modes",
    "growth": "eigenvalues/growth", "damping": "eigenvalues/damping",
    "along": "gradients/along", "exponents": "gradients/exponents",
    "gradients": "gradients/measures", "memory": "memory/measures",
    "memory_along": "memory/along", "memoryless": "memory/errors",
    "calibration": "comparison/calibration", "reliability": "comparison/reliability",
}  # fmt: skip
LEFT_OUT = {"gradients": ["noise_exponent"], "memory": ["length"], "memory_along": ["length"]}
NEW_KEYS = ("processor", "path", "precision", "probe")  # null where they were not recorded
KEPT = ("protocol.yaml", "results.csv", "results_summary.md", "index.html", "pages", "figures")
CONVERTED = ("report.json", "runs.json", "history.parquet", "predictions.safetensors.xz")


def table(path: Path) -> pd.DataFrame | None:
    """A table of 0.1, compressed or not; None where there is none."""
    packed = path.with_name(f"{path.name}.xz")
    if not path.exists() and not packed.exists():
        return None
    data = path.read_bytes() if path.exists() else lzma.decompress(packed.read_bytes())
    names = dict.fromkeys(("variant", "model", "split", "moment", "replacement"), str)
    return pd.read_csv(StringIO(data.decode()), dtype=names, keep_default_na=False, na_values=[""])


def converted(record: dict, where: str) -> dict:
    """A run.json of 0.2 from one of 0.1."""
    parameters = recorded_parameters(record["parameters"], where)
    data = dict(record["data"])
    outputs = data.setdefault("outputs", data.get("classes"))
    assert outputs, where
    data.setdefault("hash", None)
    record = {key: value for key, value in record.items() if key not in ("fingerprint",)}
    record |= {key: record.get(key) for key in NEW_KEYS}
    record |= {"format": results.FORMAT, "parameters": parameters.model_dump(), "data": data}
    record["metrics"] = METRICS.get(parameters.task, "classification")
    if record["path"] == "parallel scan":  # which refused at this length: the loop served
        assert (record["device"], data["steps"]) == ("cuda", 28)
        record["path"] = "loop as a CUDA graph"
    return record


def convert(folder: Path) -> None:
    """Convert one published report in place."""
    protocol = recorded_protocol(folder / "protocol.yaml")
    marker = runs.marker(folder.name, protocol)
    marker["metrics"] = METRICS.get(
        next(iter(marker["variants"].values()))["task"], "classification"
    )
    names = [f"{v}-seed{s}" for v, seeds in marker["seeds"].items() for s in seeds]
    files = [folder / f"runs/{name}/run.json" for name in names]
    there = [path for path in files if path.exists()]
    assert len(there) == len(list(folder.glob("runs/*/run.json")))
    records = [converted(json.loads(path.read_text()), str(path)) for path in there]
    results.write_json(folder / "report.json", marker)
    results.write_json(folder / "runs.json", records)
    results.write_file(folder / "protocol.yaml", to_yaml(protocol.dump()))
    score = METRICS_OF[marker["metrics"]].score.name
    history = table(folder / "history.csv").reindex(columns=results.history_columns(score))
    results.write_parquet(folder / "history.parquet", history)
    (folder / "predicted.safetensors.xz").rename(folder / "predictions.safetensors.xz")
    frames = {name: table(folder / f"analyses/{old}.csv") for name, old in TABLES.items()}
    if frames["along"] is not None:
        frames["memory_along"] = None
    elif frames["memory_along"] is not None:
        frames["along"] = frames.pop("memory_along")
        LEFT_OUT["along"] = ["length"]
    for name, frame in frames.items():
        if frame is None or frame.empty:
            continue
        if name == "memoryless":
            frame = frame[["variant", "seed", "memoryless"]].rename(columns={"memoryless": "floor"})
        frame = frame.drop(columns=LEFT_OUT.get(name, []), errors="ignore")
        results.write_parquet(folder / f"measures/{name}.parquet", frame)
    for path in folder.iterdir():
        if path.name not in (*KEPT, *CONVERTED, "measures", "speed.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = results.summary_text(results.Report(folder))
    results.write_file(folder / "results_summary.md", text)


if __name__ == "__main__":
    for path in sorted(PUBLISHED.glob("*/protocol.yaml")):
        convert(path.parent)
        print(path.parent)
