"""How long a training step and an inference take: all models in one process, turn by turn.

Every measurement goes round the models, so that a machine whose speed drifts slows all of them
alike; ratios of medians are the result, times alone are not.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import mannwhitneyu
from torch import nn
from torch.nn import functional as F

from rnnbench_nb.cells import CELLS, plain_loop
from rnnbench_nb.cells.base import TorchCell
from rnnbench_nb.cells.kernels import build
from rnnbench_nb.errors import UserError
from rnnbench_nb.model import SequenceModel, build_model
from rnnbench_nb.protocol import run_parameters
from rnnbench_nb.provenance import processor
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import DEFAULT, TASKS
from rnnbench_nb.tasks.base import Part
from rnnbench_nb.training import arithmetic, evaluate

OUTPUTS = 10
WORK = ("train", "infer")
LOOP = " loop"  # after a cell's name: the cell without its backends
BASELINES = [name for name, cell in CELLS.items() if issubclass(cell, TorchCell)]
KERNELS = Path(build.__file__).parent
FAST = [name for name in CELLS if (KERNELS / f"{name}.cpp").exists()]  # have a compiled kernel
TIMED = [*BASELINES, *FAST, *(name + LOOP for name in FAST)]
EVERY = [*TIMED, *(name for name in CELLS if name not in TIMED)]  # their loops are slow
NOISY = 0.1  # interquartile range over median, above which a time is not believed
NO_LIMITS = {"highest": math.nan, "medium": math.nan}  # of arithmetic, where none is known
LEVEL = 0.01  # of the test between two measurements


class Shape(NamedTuple):
    """T steps of D features, H hidden units, B sequences, on a number of threads."""

    steps: int
    hidden: int
    batch: int
    threads: int
    precision: str = "highest"  # torch.set_float32_matmul_precision, for torch's own products

    @property
    def features(self) -> int:
        """D: a row of 28 pixels, or a single one."""
        return 28 if self.steps == 28 else 1


REFERENCE = Shape(28, 128, 128, 1)
LONG = REFERENCE._replace(steps=784)
SHORT = [REFERENCE, REFERENCE._replace(threads=2), LONG]
SHORT += [shape._replace(precision="medium") for shape in (REFERENCE, LONG)]
GRID = [Shape(*s) for s in product((28, 784), (64, 128, 256), (32, 128, 512), (1, 2))]
GRID += [Shape(*s) for s in product((28, 784), (128,), (128,), (1, 2), ("medium",))]


def model_of(name: str, shape: Shape) -> SequenceModel:
    """A cell with a head, ready to train; `name` may end in `LOOP`."""
    values = {"model": name.removesuffix(LOOP), "hidden_size": shape.hidden}
    random = generator(0, "initialisation")
    return build_model(run_parameters(values, "bench"), shape.features, OUTPUTS, random)


def step_of(name: str, work: str, shape: Shape, device: str = "cpu") -> Callable[[], None]:
    """A function that does one whole training step, or one inference, of a cell on a device.

    A training step is zero_grad, forward, linear head, cross entropy, backward, clipping by norm
    and fused Adam.
    """
    classifier = model_of(name, shape).to(device)
    random = generator(0, "order")
    inputs = torch.rand(shape.batch, shape.steps, shape.features, generator=random).to(device)
    labels = torch.randint(OUTPUTS, (shape.batch,), generator=random).to(device)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        with plain_loop() if name.endswith(LOOP) else nullcontext():
            if work == "infer":
                with torch.inference_mode():
                    classifier(inputs)
            else:
                optimiser.zero_grad()
                F.cross_entropy(classifier(inputs), labels).backward()
                nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
                optimiser.step()
            if device != "cpu":
                torch.cuda.synchronize()

    return run


def measure(
    shape: Shape,
    models: list[str] = TIMED,
    rounds: int = 11,
    seconds: float = 4.0,
    device: str = "cpu",
) -> Iterator[dict]:
    """Time the models in turn, `rounds` times or until `seconds` are over, after one warm-up.

    Yields:
        One row a piece of work, model and round: the fields of `shape`, `task` (the work), `model,
        round, seconds`.
    """
    with on_threads(shape.threads), arithmetic(shape.precision):
        for task in WORK:
            steps = {model: step_of(model, task, shape, device) for model in models}
            for step in steps.values():
                step()
            deadline = time.perf_counter() + seconds
            for number in range(rounds):
                if number >= 3 and time.perf_counter() > deadline:
                    break
                for model, step in steps.items():
                    start = time.perf_counter()
                    step()
                    elapsed = time.perf_counter() - start
                    row = {"task": task, "model": model, "round": number, "seconds": elapsed}
                    yield shape._asdict() | row


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Torch's products on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def operations(shape: Shape) -> int:
    """Floating-point operations of the products in one training step of a cell with two gates.

    Forward 3H (D + H + 1) multiply-adds for each step and sequence, backward as many for the
    weights and 3 H^2 for the state; two operations each. Activations are not counted.
    """
    forward = 3 * shape.hidden * (shape.features + shape.hidden + 1)
    return 2 * shape.steps * shape.batch * (2 * forward + 3 * shape.hidden**2)


MEMORY = """
import sys, torch
from pathlib import Path
from rnnbench_nb.bench import Shape, step_of

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
step = step_of(sys.argv[1], "train", Shape(*map(int, sys.argv[2:6])))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
before = status("VmRSS")
step(), step()
print((status("VmHWM") - before) / 1024)
"""


def memory(model: str, shape: Shape) -> float:
    """MiB that two training steps add to a process of their own at its peak; NaN but on Linux."""
    if sys.platform != "linux":
        return math.nan
    sizes = map(str, (shape.steps, shape.hidden, shape.batch, shape.threads))
    command = [sys.executable, "-c", MEMORY, model, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def summarise(rows: pd.DataFrame, limits: dict[str, float]) -> pd.DataFrame:
    """Medians and ratios.

    Args:
        rows: The rows of `measure`.
        limits: Operations a second of one core, by precision.

    Returns:
        One row a shape, task and model: `milliseconds` (median), `spread` (interquartile range
        over median), for each of torch's cells `NAME_ratio` (its median over this one's: above 1
        is faster), `limit_share` (of the arithmetic limit of its precision and threads, for a cell
        that has a backend, in training).
    """
    keys = [*Shape._fields, "task"]
    groups = rows.groupby([*keys, "model"], sort=False)["seconds"]
    quartiles = groups.quantile([0.25, 0.5, 0.75]).unstack()
    table = pd.DataFrame({"milliseconds": 1e3 * quartiles[0.5]})
    table["spread"] = (quartiles[0.75] - quartiles[0.25]) / quartiles[0.5]
    for baseline in BASELINES:
        of_baseline = table["milliseconds"].xs(baseline, level="model")
        table[f"{baseline}_ratio"] = of_baseline / table["milliseconds"]
    table = table.reset_index()
    shapes = [Shape(*row) for row in table[list(Shape._fields)].itertuples(index=False)]
    fastest = [limits[shape.precision] * shape.threads for shape in shapes]
    rate = np.array([operations(shape) for shape in shapes]) / (table["milliseconds"] / 1e3)
    ours = table["model"].isin(FAST) & (table["task"] == "train")
    return table.assign(limit_share=(rate / fastest).where(ours))


def noise(table: pd.DataFrame) -> str:
    """Why the times of `summarise` are not to be believed; empty where they are."""
    worst = table.loc[table["spread"].idxmax()]
    if worst["spread"] <= NOISY:
        return ""
    return (
        f"This machine was too noisy for these times to be believed: the middle half of those of "
        f"{worst['model']} at T = {worst['steps']} ({worst['task']}) spreads over "
        f"{worst['spread']:.0%} of their median, and {NOISY:.0%} is the limit; close what else "
        "runs, and measure again."
    )


def read(path: Path | str) -> dict:
    """What `rnnbench bench --json` wrote.

    Raises:
        UserError: The file is not there, or holds something else.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        if set(report["rows"][0]) >= {*Shape._fields, "task", "model", "seconds"}:
            return {"limits": NO_LIMITS, **report}  # files of earlier versions have none
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{path} holds no measurements; write one with `rnnbench bench --json FILE`.")


def compare(before: dict, after: dict) -> pd.DataFrame:
    """Two measurements of the same shapes, one row a shape, work and model that both have.

    Returns:
        `ratio`, the median before over that after (above 1 is faster now), and `verdict`: faster
        or slower where a Mann-Whitney test over the rounds says so, else the same.
    """
    keys = [*Shape._fields, "task", "model"]
    first, second = (
        pd.DataFrame(report["rows"]).groupby(keys, sort=False)["seconds"]
        for report in (before, after)
    )
    earlier, rows = dict(list(first)), []
    for key, seconds in second:
        if key not in earlier:
            continue
        ratio = earlier[key].median() / seconds.median()
        apart = mannwhitneyu(earlier[key], seconds).pvalue < LEVEL
        verdict = ("faster" if ratio > 1 else "slower") if apart else "the same"
        rows.append(dict(zip(keys, key, strict=True)) | {"ratio": ratio, "verdict": verdict})
    return pd.DataFrame(rows, columns=[*keys, "ratio", "verdict"])


def run(
    shapes: list[Shape],
    report: Callable[[str], None] = print,
    every: Collection[Shape] = (),
    device: str = "cpu",
) -> dict:
    """Measure these shapes on a device, saying each as done; those in `every` for all cells.

    Returns:
        `machine`; `limits`, none known; and `rows`, those of `measure`.
    """
    limits, rows = dict(NO_LIMITS), []
    found = {"machine": machine(device), "limits": limits, "rows": rows}
    report(_machine_sentence(found))
    for shape in shapes:
        models = EVERY if shape in every else TIMED
        measured = list(measure(shape, models, device=device))
        rows += measured
        table = summarise(pd.DataFrame(measured), limits)
        for row in table[table["model"].isin(FAST)].itertuples():
            share = "" if math.isnan(row.limit_share) else f"  {row.limit_share:.0%} of the limit"
            report(
                f"{row.task:5}  T {row.steps:3}  H {row.hidden:3}  B {row.batch:3}  threads "
                f"{row.threads}  {row.precision:7}  {CELLS[row.model].label} "
                f"{row.milliseconds:8.2f} ms  {_ratios(row, 'x')}{share}"
            )
    report(noise(summarise(pd.DataFrame(rows), limits)) or "The times are steady.")
    return found


def run_parts(report: Callable[[str], None] = print) -> dict:
    """Seconds of an epoch of row MNIST by part, and memory at T = 784, for each model."""
    parts = {model: epoch_parts(model) for model in BASELINES + FAST}
    for model, seconds in parts.items():
        told = "  ".join(f"{part} {value:.2f}" for part, value in seconds.items())
        report(f"epoch  {model:4}  {sum(seconds.values()):6.2f} s: {told}")
    used = {model: memory(model, LONG) for model in BASELINES + FAST}
    told = ", ".join(f"{model} {value:.0f} MiB" for model, value in used.items())
    report(f"memory of a training step at T = {LONG.steps}: {told}")
    return {"parts": parts, "memory": used}


def tables(report: dict) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What was measured: `summarise` with paths; seconds of an epoch by part; MiB of a step.

    Raises:
        UserError: It was measured at given shapes, or on a GPU, which is without the last two.
    """
    if "parts" not in report:
        raise UserError(
            "These measurements lack the parts of an epoch, as those at given shapes and on a GPU "
            "do; write them with `rnnbench bench --json FILE`, or read them with --compare."
        )
    table = summarise(pd.DataFrame(report["rows"]), report["limits"])
    machine = report["machine"]
    paths = {"medium": machine.get("medium_paths", {})}
    table["path"] = [
        paths.get(precision, machine["paths"]).get(name, "loop")
        for name, precision in zip(table["model"], table["precision"], strict=True)
    ]
    parts = pd.DataFrame(report["parts"]).T
    total = parts.sum(axis=1)
    shares = {f"share of {CELLS[name].label}": total / total[name] for name in BASELINES}
    aside = parts[["data", "evaluation"]].sum(axis=1) / total
    memory = pd.Series(report["memory"], name=f"MiB, training step at T = {LONG.steps}")
    parts = parts.assign(total=total, **shares, **{"data and evaluation": aside})
    return table, parts, memory.to_frame()


def _ratios(row: Any, words: str) -> str:
    """How fast a row of `summarise` is beside each of torch's cells."""
    ratios = {CELLS[b].label: getattr(row, f"{b}_ratio") for b in BASELINES}
    return " and ".join(f"{ratio:.2f} {words} {label}" for label, ratio in ratios.items())


def _machine_sentence(report: dict) -> str:
    found = report["machine"]
    paths = "; ".join(f"{CELLS[name].label}: {found['paths'][name]}" for name in FAST)
    known = {name: limit for name, limit in report["limits"].items() if not math.isnan(limit)}
    limits = " and ".join(f"{limit / 1e9:.0f} at {name}" for name, limit in known.items())
    reaches = f" One core reaches, in GFLOP/s of multiply-adds, {limits}, the arithmetic limits."
    return f"{found['processor']}, torch {found['torch']}; {paths}.{reaches if limits else ''}"


def sentences(report: dict, table: pd.DataFrame, parts: pd.DataFrame) -> list[str]:
    """What the tables say, the machine first, each with its numbers."""
    found = [_machine_sentence(report), *filter(None, [noise(table)])]
    ours = table[table["model"].isin(FAST) & (table["task"] == "train")]
    keys = [name for name in (*Shape._fields, "model") if name != "precision"]
    highest = ours[ours["precision"] == "highest"].set_index(keys)["milliseconds"]
    for row in ours.itertuples():
        ratios = _ratios(row, "times as fast as torch's")
        at_highest = highest.get(tuple(getattr(row, key) for key in keys))
        gain = ""
        if row.precision != "highest" and at_highest:
            gain = f", {at_highest / row.milliseconds:.2f} times as fast as at highest"
        found.append(
            f"- {CELLS[row.model].label}, {row.steps} steps, {row.hidden} units, batch {row.batch},"
            f" threads {row.threads}, precision {row.precision}: a training step takes "
            f"{row.milliseconds:.1f} ms, {ratios}{gain}, at {row.limit_share:.0%} of the "
            "arithmetic limit of this precision."
        )
    for name in FAST:
        labels, row = [CELLS[baseline].label for baseline in BASELINES], parts.loc[name]
        shares = [f"{row[f'share of {label}']:.2f} of the {label}'s time" for label in labels]
        found.append(
            f"On one thread an epoch of the {CELLS[name].label} takes {' and '.join(shares)}, and "
            f"{row['data and evaluation']:.0%} of it is data and evaluation rather than training."
        )
    return found


def caption(report: dict, table: pd.DataFrame) -> str:
    """What stands under the picture of the ratios at highest precision."""
    rounds = 1 + max(row["round"] for row in report["rows"])
    ours = table[table["model"].isin(FAST) & (table["precision"] == "highest")]
    ratios = ours.set_index("steps")[[f"{name}_ratio" for name in BASELINES]].stack()
    (fast, of_fast), (slow, of_slow) = ratios.idxmax(), ratios.idxmin()
    best, worst = (CELLS[name.removesuffix("_ratio")].label for name in (of_fast, of_slow))
    return (
        f"Ratios of median times, of up to {rounds} rounds in which the models take turns, at "
        f"precision highest; a mark a shape: T steps, H units, B sequences. Highest: "
        f"{ratios.max():.2f} ({best}, T = {fast}); lowest: {ratios.min():.2f} ({worst}, T = "
        f"{slow})."
    )


def _served(name: str, hidden: int, device: str) -> str:
    cell = CELLS[name](hidden, hidden, device=device)
    cell(torch.zeros(2, 1, hidden, device=device))
    return cell.served


def machine(device: str = "cpu") -> dict:
    """What was measured on: its name, version of torch, and what runs each cell by precision."""
    where = processor() if device == "cpu" else torch.cuda.get_device_name(device)
    found = {"processor": where, "torch": torch.__version__}
    for key, precision in (("paths", "highest"), ("medium_paths", "medium")):
        with arithmetic(precision):
            hidden = REFERENCE.hidden
            found[key] = {name: _served(name, hidden, device) for name in CELLS}
    return found


@on_threads(1)
def epoch_parts(model: str, examples: int = 51_000, evaluated: int = 9_000) -> dict[str, float]:
    """Seconds of an epoch of row MNIST by part, on one thread and made-up images.

    Returns:
        `data` (picking and converting batches), `forward`, `backward`, `optimiser` (with the
        clipping) and `evaluation` of the validation images.
    """
    classifier = model_of(model, REFERENCE)
    task = TASKS[DEFAULT](run_parameters({"model": model}, "bench").task_options)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=1e-4, fused=True)
    random = generator(0, "order")
    pictures = torch.randint(256, (examples, 28, 28), generator=random).byte()
    labels = torch.randint(OUTPUTS, (examples,), generator=random)
    parts = dict.fromkeys(("data", "forward", "backward", "optimiser", "evaluation"), 0.0)
    clock = time.perf_counter()

    def book(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        parts[part] += now - clock
        clock = now

    for batch in torch.randperm(examples, generator=random).split(REFERENCE.batch):
        inputs, wanted = task.inputs(pictures[batch]), labels[batch]
        book("data")
        loss = F.cross_entropy(classifier(inputs), wanted)
        book("forward")
        optimiser.zero_grad()
        loss.backward()
        book("backward")
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimiser.step()
        book("optimiser")
    evaluate(classifier, Part(pictures[:evaluated], labels[:evaluated]), task)
    book("evaluation")
    return parts
