"""Time training steps and inference with torch.utils.benchmark.

A round measures each cell once, so that a machine whose speed drifts slows all cells alike.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from rnnbench_nb.cells import CELLS, plain_loop
from rnnbench_nb.cells.base import TorchCell
from rnnbench_nb.cells.kernels import build
from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import write_json
from rnnbench_nb.model import build_model
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.runs import NO_GPU, processor
from rnnbench_nb.seeds import generator
from rnnbench_nb.training import arithmetic

OUTPUTS, ROUNDS = 10, 11
LOOP = " loop"  # suffix of a cell's name: the cell without its kernel
TRITON = " triton"  # the cell with its kernels in Triton, for a GPU
BASELINES = [name for name, cell in CELLS.items() if issubclass(cell, TorchCell)]
# The cells with a compiled kernel.
FAST = [name for name in CELLS if Path(build.__file__).with_name(f"{name}.cpp").exists()]
MODELS = [*BASELINES, *FAST, *(name + LOOP for name in FAST)]
NOISY = 0.1  # spread (interquartile range over median) above which a warning is printed


class Shape(NamedTuple):
    """The shape of a measurement: steps T, hidden units H, sequences B, and threads."""

    steps: int
    hidden: int
    batch: int
    threads: int
    precision: str = "highest"  # of torch.set_float32_matmul_precision


SHAPES = [Shape(steps, 128, 128, 1, p) for steps in (28, 784) for p in ("highest", "medium")]


def step_of(name: str, work: str, shape: Shape, device: str = "cpu") -> Callable[[], str]:
    """Return a function that makes one training step ("train") or inference ("infer") of a cell.

    A training step has forward, linear head, cross entropy, backward, clipping and fused Adam. The
    function returns the `path` of the cell.
    """
    values: dict[str, Any] = {"model": name.split()[0], "hidden_size": shape.hidden}
    values |= {"backend": "triton"} if name.endswith(TRITON) else {}
    parameters = run_parameters(values, "bench")
    features = 28 if shape.steps == 28 else 1  # a row of pixels, or a single one
    model = build_model(parameters, features, OUTPUTS, generator(0, "initialisation"))
    model, random = model.to(device), generator(0, "order")
    inputs = torch.rand(shape.batch, shape.steps, features, generator=random).to(device)
    labels = torch.randint(OUTPUTS, (shape.batch,), generator=random).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> str:
        with plain_loop() if name.endswith(LOOP) else nullcontext():
            if work == "infer":
                with torch.inference_mode():
                    model(inputs)
            else:
                optimiser.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
        return str(model.cell.path)

    return step


def measure(
    shape: Shape, names: Collection[str] = MODELS, rounds: int = ROUNDS, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Measure cells in turn; yield rows of `shape` and `task, model, round, path, seconds`."""
    with arithmetic(shape.precision):
        for work in ("train", "infer"):
            steps = {name: step_of(name, work, shape, device) for name in names}
            timers = {
                name: Timer("step()", globals={"step": step}, num_threads=shape.threads)
                for name, step in steps.items()
            }
            paths = {name: step() for name, step in steps.items()}
            for number in range(rounds):
                for name, timer in timers.items():
                    row = {"task": work, "model": name, "round": number, "path": paths[name]}
                    yield shape._asdict() | row | {"seconds": timer.timeit(1).median}


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return medians of the rows of `measure`: `milliseconds`, and `spread` (see `NOISY`).

    For each of torch's cells, `NAME_ratio` is its median over the one of the row's model.
    """
    keys = [*Shape._fields, "task", "model"]
    quartiles = rows.groupby(keys, sort=False)["seconds"].quantile([0.25, 0.5, 0.75]).unstack()
    table = pd.DataFrame({"milliseconds": 1e3 * quartiles[0.5]})
    table["spread"] = (quartiles[0.75] - quartiles[0.25]) / quartiles[0.5]
    times = table["milliseconds"]
    for name in BASELINES:
        table[f"{name}_ratio"] = times.xs(name, level="model") / times
    return table.reset_index()


def command(path: Path | None, device: str, models: str | None, say: Callable[[str], None]) -> None:
    """Measure all `SHAPES` on a device, print tables with `say`, and write the rows to `path`.

    Beside torch's cells, it measures those that `models` names, separated by commas, or `MODELS`.

    Raises:
        UserError: There is no GPU, the file exists, or there is no such cell.
    """
    standard = [*MODELS, *(name + TRITON for name in FAST if device == "cuda")]
    named = standard if models is None else [name.strip() for name in models.split(",")]
    for each in named:
        lookup(CELLS, "--models", each.removesuffix(LOOP).removesuffix(TRITON))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(NO_GPU)
    if path and path.exists():
        raise UserError(f"--json {path}: the file exists; name a new one.")
    name = processor() if device == "cpu" else torch.cuda.get_device_name(device)
    say(f"{name}, torch {torch.__version__}; a ratio above 1 is faster than torch's cell.")
    if device == "cuda":
        say("cuDNN's allow_tf32 is off at precision highest, and else on.")
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        new_rows = list(measure(shape, [*dict.fromkeys([*BASELINES, *named])], device=device))
        frame, rows = pd.DataFrame(new_rows), rows + new_rows
        table = summarise(frame)
        table["path"] = frame.drop_duplicates(["task", "model"])["path"].to_numpy()
        say(table.to_string(index=False, float_format="{:.2f}".format))
        if table["spread"].max() > NOISY:
            say(f"The times vary by {table['spread'].max():.0%}; close other programs.")
    if path:
        machine = {"processor": name, "torch": torch.__version__}
        write_json(path, {"machine": machine, "rows": rows})
