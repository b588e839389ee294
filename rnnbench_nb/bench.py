"""Times of training steps and of inference, by torch.utils.benchmark, the cells taking turns.

Every round measures each cell once, so that a machine whose speed drifts slows all of them alike.
The results are ratios of medians.
"""

import json
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
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.model import build_model
from rnnbench_nb.protocol import NO_GPU, run_parameters
from rnnbench_nb.runs import processor
from rnnbench_nb.seeds import generator
from rnnbench_nb.training import arithmetic

OUTPUTS, ROUNDS = 10, 11
LOOP = " loop"  # after a cell's name: the cell without its kernel
BASELINES = [name for name, cell in CELLS.items() if issubclass(cell, TorchCell)]
KERNELS = Path(build.__file__).parent
FAST = [name for name in CELLS if (KERNELS / f"{name}.cpp").exists()]  # have a compiled kernel
TIMED = [*BASELINES, *FAST, *(name + LOOP for name in FAST)]
NOISY = 0.1  # interquartile range over median, above which a warning is printed


class Shape(NamedTuple):
    """T steps of D features, H hidden units, B sequences, on a number of threads."""

    steps: int
    hidden: int
    batch: int
    threads: int
    precision: str = "highest"  # of torch.set_float32_matmul_precision

    @property
    def features(self) -> int:
        """D: a row of 28 pixels, or a single pixel."""
        return 28 if self.steps == 28 else 1


SHAPES = [Shape(steps, 128, 128, 1, p) for steps in (28, 784) for p in ("highest", "medium")]


def step_of(name: str, work: str, shape: Shape, device: str = "cpu") -> Callable[[], None]:
    """A function that does one training step ("train") or one inference ("infer") of a cell.

    A training step is forward, linear head, cross entropy, backward, clipping and fused Adam.
    """
    parameters = run_parameters(
        {"model": name.removesuffix(LOOP), "hidden_size": shape.hidden}, "bench"
    )
    model = build_model(parameters, shape.features, OUTPUTS, generator(0, "initialisation"))
    model, random = model.to(device), generator(0, "order")
    inputs = torch.rand(shape.batch, shape.steps, shape.features, generator=random).to(device)
    labels = torch.randint(OUTPUTS, (shape.batch,), generator=random).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with plain_loop() if name.endswith(LOOP) else nullcontext():
            if work == "infer":
                with torch.inference_mode():
                    model(inputs)
            else:
                optimiser.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()

    return step


def measure(
    shape: Shape, names: Collection[str] = TIMED, rounds: int = ROUNDS, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Measure cells in turn after one warm-up.

    Yields:
        A row for each kind of work, round and cell: the fields of `shape`, `task` (the work),
        `model`, `round` and `seconds`.
    """
    with arithmetic(shape.precision):
        for work in ("train", "infer"):
            timers = {
                name: Timer("step()", globals={"step": step_of(name, work, shape, device)},
                            num_threads=shape.threads)
                for name in names
            }  # fmt: skip
            for timer in timers.values():
                timer.timeit(1)
            for number in range(rounds):
                for name, timer in timers.items():
                    row = {"task": work, "model": name, "round": number}
                    yield shape._asdict() | row | {"seconds": timer.timeit(1).median}


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians of the rows of `measure`, and their ratios.

    Returns:
        A row for each shape, task and model: `milliseconds`, `spread` (interquartile range over
        median) and, for each of torch's cells, `NAME_ratio`: its median over this cell's.
    """
    keys = [*Shape._fields, "task", "model"]
    quartiles = rows.groupby(keys, sort=False)["seconds"].quantile([0.25, 0.5, 0.75]).unstack()
    table = pd.DataFrame({"milliseconds": 1e3 * quartiles[0.5]})
    table["spread"] = (quartiles[0.75] - quartiles[0.25]) / quartiles[0.5]
    for name in BASELINES:
        table[f"{name}_ratio"] = (
            table["milliseconds"].xs(name, level="model") / table["milliseconds"]
        )
    return table.reset_index()


def read(path: Path | str) -> dict[str, Any]:
    """Read what `rnnbench bench --json` wrote: `machine` and `rows`.

    Raises:
        UserError: The file does not exist, or holds something else.
    """
    try:
        report: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if set(report["rows"][0]) >= {*Shape._fields, "task", "model", "seconds"}:
            return report
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{path} holds no measurements; name a file of `rnnbench bench --json`.")


def command(
    path: Path | None, shapes: Collection[str], device: str, say: Callable[[str], None]
) -> None:
    """Measure shapes such as "28,128,128,1" on a device, print the table, and write the rows.

    Raises:
        UserError: A shape is wrong, there is no GPU, or the file holds something else.
    """
    try:
        numbers = [[int(number) for number in shape.split(",")] for shape in shapes]
        if any(len(each) != 4 or min(each) < 1 for each in numbers):
            raise ValueError
        chosen = [Shape(*each) for each in numbers] or SHAPES  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError("--shape: write four numbers above 0, such as 28,128,128,1.") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(NO_GPU)
    if path and path.exists():
        read(path)  # raises for a file of the user's, which is not overwritten
    name = processor() if device == "cpu" else torch.cuda.get_device_name(device)
    say(f"{name}, torch {torch.__version__}; a ratio above 1 means faster than torch's cell.")
    rows: list[dict[str, Any]] = []
    for shape in chosen:
        rows += measure(shape, device=device)
        table = summarise(pd.DataFrame(rows[-len(TIMED) * 2 * ROUNDS :]))
        say(table.to_string(index=False, float_format="{:.2f}".format))
        if table["spread"].max() > NOISY:
            say(f"The times spread by {table['spread'].max():.0%}; close other programs.")
    if path:
        machine = {"processor": name, "torch": torch.__version__}
        write_file(path, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
