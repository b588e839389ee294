"""The one training loop. It can resume, and treats all cells and tasks alike."""

import copy
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file, write_json
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.parameters import batches_of, epochs_of
from rnnbench_nb.protocol import RunParameters
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks.base import Part, Split, Task

EVALUATION_BATCH = 1000  # examples in a batch where no gradient is needed
# What torch.load raises for a damaged file.
DAMAGE = (OSError, RuntimeError, EOFError, TypeError, ValueError, LookupError, AttributeError)
CHECKPOINT = "checkpoint.pt"


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Set the precision of matrix products, as torch names it, and flush denormal numbers to zero.

    Vanishing gradients become denormal, and processors may take ten times as long to multiply them.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    flushed = bool(torch.tensor(1e-40) * 1 == 0)  # torch cannot tell in another way
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"  # else only torch's cells would round
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.set_flush_denormal(flushed)


def make_optimiser(model: SequenceModel, parameters: RunParameters) -> torch.optim.Optimizer:
    """Build the optimiser; weight decay leaves out the parameters that the cell excludes."""
    decayed, others = model.cell.decay_groups()
    groups: list[dict[str, Any]] = [{"params": [*decayed, *model.head.parameters()]}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    rate, decay = parameters.learning_rate, parameters.weight_decay
    options: dict[str, Any] = {"lr": rate, "weight_decay": decay, "fused": True}
    if parameters.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **options)
    kind = torch.optim.AdamW if parameters.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, **options)


def make_schedule(
    optimiser: torch.optim.Optimizer, parameters: RunParameters, epochs: int
) -> lr_scheduler.LRScheduler:
    """Build the schedule of the learning rate, which takes a step after each epoch."""
    if parameters.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimiser,
            factor=parameters.plateau_factor,
            patience=parameters.plateau_patience,
            min_lr=parameters.plateau_minimum,
        )
    if parameters.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs)
    return lr_scheduler.ConstantLR(optimiser, factor=1.0)


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
    """Everything that training changes, and what a checkpoint contains.

    Attributes:
        history: A row for each epoch and split, without the columns that name the run.
        initial, best: The state dict before the first step, and the one at the best epoch.
        tracked: The values of `SequenceModel.recurrence` before training and after each epoch.
        progress: `epoch`, `best_epoch`, `seconds`, the cell's `path`, and more.
    """

    PARTS = ("model", "optimiser", "schedule")  # attributes with a state dict
    PLAIN = ("progress", "history", "initial", "best", "tracked")
    RANDOM = ("order", "dropout", "dropout_cuda")  # states of random generators
    KEYS = ("stamp", *PARTS, *PLAIN, *RANDOM)

    def __init__(self, model: SequenceModel, parameters: RunParameters, epochs: int) -> None:
        self.model = model
        self.optimiser = make_optimiser(model, parameters)
        self.schedule = make_schedule(self.optimiser, parameters, epochs)
        self.order = generator(parameters.seed, "order")
        # Only dropout draws from torch's global generator.
        torch.manual_seed(generator(parameters.seed, "dropout").initial_seed())
        self.progress: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best_score": -math.inf}
        self.progress |= {"lowest_loss": math.inf, "epochs_without_fall": 0, "seconds": 0.0}
        self.history: list[dict[str, Any]] = []
        self.initial: dict[str, Tensor] = copy.deepcopy(model.state_dict())
        self.best = self.initial
        self.tracked = [model.recurrence()]

    def save(self, path: Path, stamp: Mapping[str, Any]) -> None:
        """Write a checkpoint; its `stamp` tells which run it belongs to."""
        random = self.order.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all()
        content = {"stamp": dict(stamp), **dict(zip(self.RANDOM, random, strict=True))}
        content |= {name: getattr(self, name).state_dict() for name in self.PARTS}
        content |= {name: getattr(self, name) for name in self.PLAIN}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_file(path, buffer.getvalue())

    def restore(self, content: Mapping[str, Any]) -> None:
        """Continue from the content of a checkpoint."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(content[name])
        for name in self.PLAIN:
            setattr(self, name, content[name])
        order, dropout, dropout_cuda = (content[name] for name in self.RANDOM)
        self.order.set_state(order)
        torch.set_rng_state(dropout)
        if len(dropout_cuda) == torch.cuda.device_count():  # else dropout on the GPU starts again
            torch.cuda.set_rng_state_all(dropout_cuda)


def read_checkpoint(folder: Path, report: Callable[[str], None] = print) -> dict[str, Any] | None:
    """Read the checkpoint in a run's folder; return None if it is missing or damaged."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")  # plain values only
        return {name: content[name] for name in State.KEYS}
    except (*DAMAGE, pickle.UnpicklingError):
        report(f"{path} is damaged, so training starts again from the first epoch.")
        return None


def fit(
    model: SequenceModel,
    data: Split,
    task: Task,
    parameters: RunParameters,
    folder: Path | None = None,
    report: Callable[[str], None] = print,
    stamp: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    last: int | None = None,
) -> State:
    """Train a model in place on the training examples, and validate it after every epoch.

    The schedule and early stopping follow the validation loss. The best epoch is the earliest with
    the highest validation score, or the lowest validation loss if `best_by` is "loss". Losses are
    means over examples; those of the training part are taken while the model learns. `report` takes
    a line an epoch. A checkpoint with the `stamp` goes to `folder` after every epoch, and training
    continues from `checkpoint`. It ends after epoch `last`, if that comes before the end of the
    budget, to which the schedule belongs. Returns the state after the last epoch.

    Raises:
        UserError: The loss is not finite.
    """
    epochs, name = epochs_of(parameters, len(data.train.targets)), task.score.name
    state = State(model, parameters, epochs)
    if checkpoint:
        state.restore(checkpoint)
    progress, patience = state.progress, parameters.patience or math.inf
    last = min(epochs, last or epochs)
    while progress["epoch"] < last and progress["epochs_without_fall"] < patience:
        epoch = progress["epoch"] + 1
        rate = state.optimiser.param_groups[0]["lr"]
        start = time.perf_counter()
        training = _train_epoch(state, data.train, task, parameters, epoch)
        progress["path"] = model.cell.path
        middle = time.perf_counter()
        loss, score, _ = evaluate(model, data.validation, task)
        end = time.perf_counter()
        if not math.isfinite(training["loss"] + loss):
            advice = "lower learning_rate or clip_norm"
            raise UserError(f"{parameters.run}: the loss is not finite in epoch {epoch}; {advice}.")
        training |= {"seconds": middle - start, "learning_rate": rate}
        validation = {"loss": loss, name: score, "seconds": end - middle}
        state.history.append({"epoch": epoch, "split": "train", **training})
        state.history.append({"epoch": epoch, "split": "validation", **validation})
        state.tracked.append(model.recurrence())
        worth = score if parameters.best_by == "score" else -loss
        if worth > progress["best_score"]:
            progress |= {"best_score": worth, "best_epoch": epoch}
            state.best = copy.deepcopy(model.state_dict())
        progress["epochs_without_fall"] += 1
        if loss < progress["lowest_loss"] - parameters.min_delta:
            progress |= {"lowest_loss": loss, "epochs_without_fall": 0}
        if isinstance(state.schedule, lr_scheduler.ReduceLROnPlateau):
            state.schedule.step(loss)
        else:
            state.schedule.step()
        progress |= {"epoch": epoch, "seconds": progress["seconds"] + end - start}
        if folder:
            state.save(folder / CHECKPOINT, stamp or {})
            write_json(folder / "progress.json", {"epoch": epoch})
        report(
            f"{parameters.run}  epoch {epoch:3d}  training loss {training['loss']:.4f}  "
            f"validation loss {loss:.4f}  {name} {task.score.scale * score:.4g}{task.score.unit}  "
            f"{end - start:.1f} s"
        )
    return state


def _train_epoch(
    state: State, part: Part, task: Task, parameters: RunParameters, epoch: int
) -> dict[str, float]:
    """Train on the examples once, or until the budget of steps is used up.

    Returns the means over examples of loss and score, and over steps of the norm before clipping.
    """
    state.model.train()
    device = next(state.model.parameters()).device
    limit = parameters.clip_norm or math.inf
    batches = torch.randperm(len(part.targets), generator=state.order).split(parameters.batch_size)
    batches = batches[: batches_of(parameters, len(part.targets))]
    if parameters.steps:
        batches = batches[: parameters.steps - (epoch - 1) * len(batches)]
    losses, norms, answers = [], [], []  # on the device, so that no step waits for it
    for batch in batches:
        outputs = state.model(task.inputs(part.inputs.index_select(0, batch)).to(device))
        loss = task.losses(outputs, part.targets[batch].to(device), "mean")
        state.optimiser.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(state.model.parameters(), limit))
        state.optimiser.step()
        losses.append(loss.detach())
        answers.append(task.answers(outputs.detach()))
    loss_sum, score_sum, examples = 0.0, 0.0, sum(map(len, batches))
    values = torch.stack(losses).tolist()
    for batch, value, predicted in zip(batches, values, answers, strict=True):
        loss_sum += value * len(batch)
        score_sum += task.scores(part.targets[batch].numpy(), predicted.cpu().numpy()).sum()
    return {
        "loss": loss_sum / examples,
        task.score.name: float(score_sum / examples),
        "gradient_norm": sum(torch.stack(norms).tolist()) / len(batches),
    }
