"""The one training loop: fair, resumable, and without knowledge of cells and tasks."""

import copy
import io
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import RunParameters
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks.base import Part, Split, Task

MOMENTUM = 0.9  # of SGD
EVALUATION_BATCH = 1000  # examples at once where no gradient is wanted
CHECKPOINT = "checkpoint.pt"
PROGRESS = "progress.json"  # after each epoch, for whoever shows how far a run is
OPTIMISERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": MOMENTUM}),
}


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Compute with matrix products of a precision, and with zero in place of denormal numbers.

    Gradients that vanish over hundreds of steps end below 1.2e-38, where float32 has no more
    normal numbers and a product may take a processor ten times as long.

    Args:
        precision: "highest" or "medium", as in `torch.set_float32_matmul_precision`.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"  # else torch's own cells alone round
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.set_flush_denormal(False)


def batches_of(parameters: RunParameters, examples: int) -> int:
    """The number of batches in a whole epoch; the last may be incomplete, unless it is dropped."""
    whole, rest = divmod(examples, parameters.batch_size)
    return whole + (rest > 0 and not (parameters.drop_last and whole))


def epochs_of(parameters: RunParameters, examples: int) -> int:
    """The number of epochs in the budget; if steps end it, the last epoch may be short."""
    if not parameters.steps:
        return parameters.epochs
    return min(parameters.epochs, math.ceil(parameters.steps / batches_of(parameters, examples)))


def make_optimiser(model: SequenceModel, parameters: RunParameters) -> torch.optim.Optimizer:
    """The optimiser; parameters that the cell excludes from weight decay have none."""
    decayed, others = model.cell.decayed()
    groups: list[dict[str, Any]] = [{"params": [*decayed, *model.head.parameters()]}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    kind, options = OPTIMISERS[parameters.optimiser]
    rates = {"lr": parameters.learning_rate, "weight_decay": parameters.weight_decay}
    return kind(groups, **rates, **options, fused=True)  # type: ignore[call-arg]


def make_schedule(
    optimiser: torch.optim.Optimizer, parameters: RunParameters, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule, which takes a step after each epoch."""
    schedules = torch.optim.lr_scheduler
    if parameters.schedule == "plateau":
        return schedules.ReduceLROnPlateau(
            optimiser,
            factor=parameters.plateau_factor,
            patience=parameters.plateau_patience,
            min_lr=parameters.plateau_minimum,
        )
    if parameters.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimiser, T_max=epochs)
    return schedules.ConstantLR(optimiser, factor=1.0)


class Step(NamedTuple):
    """One step of training: loss and gradient norm before clipping (scalars), outputs (B, ...)."""

    loss: Tensor
    norm: Tensor
    outputs: Tensor


def train_step(
    model: SequenceModel,
    optimiser: torch.optim.Optimizer,
    task: Task,
    inputs: Tensor,
    targets: Tensor,
    clip_norm: float | None,
) -> Step:
    """Take one step on a batch of sequences (B, T, D), without waiting for the device."""
    outputs = model(inputs)
    loss = task.losses(outputs, targets, "mean")
    optimiser.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf)
    optimiser.step()
    return Step(loss.detach(), norm, outputs.detach())


@torch.inference_mode()
def evaluate(model: SequenceModel, part: Part, task: Task) -> tuple[float, float, Tensor]:
    """Compute the mean loss, the mean score and the outputs (N, ...) of a model on N examples."""
    model.eval()
    device = next(model.parameters()).device
    batches = part.inputs.split(EVALUATION_BATCH)
    outputs = torch.cat([model(task.inputs(stored).to(device)).cpu() for stored in batches])
    loss = task.losses(outputs, part.targets, "mean").item()
    scores = task.scores(part.targets.numpy(), task.answers(outputs).numpy())
    return loss, float(scores.mean()), outputs


class State:
    """Everything that training changes; a checkpoint holds it.

    Attributes:
        history: One row for each epoch and split, without the columns that name the run.
        initial, best: The state dict before the first step and at the best epoch.
        tracked: What `SequenceModel.tracked` gave before training and after each epoch.
        progress: `epoch`, `best_epoch`, `seconds` and what chooses and stops.
    """

    PLAIN = ("progress", "history", "initial", "best", "tracked")

    def __init__(self, model: SequenceModel, parameters: RunParameters, epochs: int) -> None:
        self.model = model
        self.optimiser = make_optimiser(model, parameters)
        self.schedule = make_schedule(self.optimiser, parameters, epochs)
        self.order = generator(parameters.seed, "order")
        # Dropout alone draws from torch's global generator.
        torch.manual_seed(generator(parameters.seed, "dropout").initial_seed())
        self.progress: dict[str, Any] = {
            "epoch": 0, "best_epoch": 0, "best_score": -math.inf, "lowest_loss": math.inf,
            "epochs_without_fall": 0, "seconds": 0.0,
        }  # fmt: skip
        self.history: list[dict[str, Any]] = []
        self.initial: dict[str, Tensor] = copy.deepcopy(model.state_dict())
        self.best = self.initial
        self.tracked = [model.tracked()]

    def save(self, path: Path, stamp: Mapping[str, Any]) -> None:
        """Write a checkpoint; `stamp` says which run it belongs to."""
        content = {
            "stamp": dict(stamp),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state_all(),
            **{name: getattr(self, name) for name in self.PLAIN},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_file(path, buffer.getvalue())

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load_state_dict(content["schedule"])
        self.order.set_state(content["order"])
        torch.set_rng_state(content["dropout"])
        if len(content["dropout_cuda"]) == torch.cuda.device_count():  # else they draw anew
            torch.cuda.set_rng_state_all(content["dropout_cuda"])
        for name in self.PLAIN:
            setattr(self, name, content[name])


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The checkpoint in a run's folder; None if there is none.

    Raises:
        ValueError: It is damaged.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")  # plain values only
        missing = {"stamp", "model", "optimiser", "schedule", "order", *State.PLAIN} - set(content)
    except (OSError, RuntimeError, EOFError, TypeError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged") from error
    if missing:
        raise ValueError(f"{path} is damaged")
    return content


def fit(
    model: SequenceModel,
    data: Split,
    task: Task,
    parameters: RunParameters,
    folder: Path | None = None,
    report: Callable[[str], None] = print,
    stamp: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> State:
    """Train a model, with one checkpoint an epoch in `folder`.

    The schedule and early stopping follow the validation loss; the best epoch is the one with the
    highest validation score, or with the lowest loss if `best_by` says so, the earliest of equals.
    Losses are means over examples. The numbers of the training split are running means while the
    model learns.

    Args:
        model: The model, on its device; changed in place.
        data: Training and validation examples; the test examples are not touched.
        task: What is learned.
        parameters: The budget and the seed.
        folder: The run's folder; without one nothing is written.
        report: Takes one line an epoch.
        stamp: What the checkpoint says of the run it belongs to.
        checkpoint: A checkpoint of this run, from which training goes on.

    Returns:
        The state after the last epoch.

    Raises:
        UserError: The loss is not finite.
    """
    epochs = epochs_of(parameters, len(data.train.targets))
    state = State(model, parameters, epochs)
    if checkpoint:
        state.restore(checkpoint)
    progress, patience, score_name = state.progress, parameters.patience, task.score.name
    while progress["epoch"] < epochs:
        if patience and progress["epochs_without_fall"] >= patience:
            break
        epoch = progress["epoch"] + 1
        rate = state.optimiser.param_groups[0]["lr"]
        start = time.perf_counter()
        training = _train_epoch(state, data.train, task, parameters, epoch)
        progress["path"] = model.cell.served
        middle = time.perf_counter()
        loss, score, _ = evaluate(model, data.validation, task)
        end = time.perf_counter()
        _require_finite(loss, parameters, epoch, "in validation", training["loss"])

        seconds = {"train": middle - start, "validation": end - middle}
        key = {"epoch": epoch, "split": "train"}
        row = {**key, **training, "seconds": seconds["train"], "learning_rate": rate}
        state.history.append(row)
        row = {**key, "split": "validation", "loss": loss, score_name: score}
        state.history.append({**row, "seconds": seconds["validation"]})
        state.tracked.append(model.tracked())
        worth = score if parameters.best_by == "score" else -loss
        if worth > progress["best_score"]:
            progress |= {"best_score": worth, "best_epoch": epoch}
            state.best = copy.deepcopy(model.state_dict())
        if loss < progress["lowest_loss"] - parameters.min_delta:
            progress |= {"lowest_loss": loss, "epochs_without_fall": 0}
        else:
            progress["epochs_without_fall"] += 1
        plateau = isinstance(state.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
        state.schedule.step(*([loss] if plateau else []))
        progress |= {"epoch": epoch, "seconds": progress["seconds"] + end - start}
        if folder:
            state.save(folder / CHECKPOINT, stamp or {})
            now = {"epoch": epoch, "epochs": epochs, "seconds": progress["seconds"], "loss": loss}
            write_file(folder / PROGRESS, json.dumps(now | {score_name: score}) + "\n")
        report(
            f"{parameters.run}  epoch {epoch:3d}  training loss {training['loss']:.4f}  "
            f"validation loss {loss:.4f}  {score_name} {task.score.scale * score:.4g}"
            f"{task.score.unit}  {end - start:.1f} s"
        )
    return state


def _train_epoch(
    state: State, part: Part, task: Task, parameters: RunParameters, epoch: int
) -> dict[str, float]:
    """Train on all training examples once, or on what the budget of steps leaves of them.

    Returns:
        Means over its examples of loss and score, and over its steps of the gradient's norm before
        clipping.
    """
    state.model.train()
    device = next(state.model.parameters()).device
    batches = torch.randperm(len(part.targets), generator=state.order).split(parameters.batch_size)
    batches = batches[: batches_of(parameters, len(part.targets))]
    if parameters.steps:
        batches = batches[: parameters.steps - (epoch - 1) * len(batches)]
    losses, norms, answers = [], [], []  # on the device, which nobody waits for within an epoch
    for batch in batches:
        inputs = task.inputs(part.inputs.index_select(0, batch)).to(device)
        targets = part.targets[batch].to(device)
        step = train_step(state.model, state.optimiser, task, inputs, targets, parameters.clip_norm)
        losses.append(step.loss)
        norms.append(step.norm)
        answers.append(task.answers(step.outputs))
    last_finite, loss_sum, score_sum, examples = math.nan, 0.0, 0.0, 0
    steps = zip(batches, torch.stack(losses).tolist(), answers, strict=True)
    for number, (batch, loss, predicted) in enumerate(steps, start=1):
        _require_finite(loss, parameters, epoch, f"at step {number}", last_finite)
        last_finite = loss
        loss_sum += loss * len(batch)
        score_sum += task.scores(part.targets[batch].numpy(), predicted.cpu().numpy()).sum()
        examples += len(batch)
    return {
        "loss": loss_sum / examples,
        task.score.name: float(score_sum / examples),
        "gradient_norm": sum(torch.stack(norms).tolist()) / len(batches),
    }


def _require_finite(
    loss: float, parameters: RunParameters, epoch: int, where: str, last_finite: float
) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"{parameters.run}: the loss is {loss} in epoch {epoch} {where} (the last finite loss "
            f"was {last_finite:.4g}); lower learning_rate or clip_norm."
        )
