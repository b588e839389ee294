"""The one training loop: fair, resumable, and blind to which cell it trains."""

import copy
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import RunParameters
from rnnbench_nb.provenance import fingerprint
from rnnbench_nb.seeds import generator
from rnnbench_nb.tasks import Task
from rnnbench_nb.tasks.base import Part, Split

MOMENTUM = 0.9  # of SGD
EVALUATION_BATCH = 1000  # examples at once where no gradient is wanted


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Compute with matrix products of this precision, as torch names it, and zero for tiny numbers.

    Gradients that vanish over hundreds of steps end below 1.2e-38, where float32 has no more normal
    numbers and processors may take ten times as long for a product.
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


def _optimiser(model: SequenceModel, parameters: RunParameters) -> torch.optim.Optimizer:
    """The optimiser; weight decay leaves alone what the cell says knows none."""
    decayed, others = model.cell.decayed()
    groups = [{"params": [*decayed, *model.head.parameters()]}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    kind, options = {
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
        "sgd": (torch.optim.SGD, {"momentum": MOMENTUM}),
    }[parameters.optimiser]
    return kind(
        groups,
        lr=parameters.learning_rate,
        weight_decay=parameters.weight_decay,
        fused=True,
        **options,
    )


def epochs_of(parameters: RunParameters, examples: int) -> int:
    """The epochs of the budget; where steps end it, the last may be short.

    Args:
        parameters: The budget.
        examples: To train on.
    """
    if not parameters.steps:
        return parameters.epochs
    return min(parameters.epochs, math.ceil(parameters.steps / _batches(parameters, examples)))


def _batches(parameters: RunParameters, examples: int) -> int:
    """Batches in a whole epoch; the last may be incomplete, unless it is dropped."""
    whole, rest = divmod(examples, parameters.batch_size)
    return whole + (rest > 0 and not (parameters.drop_last and whole))


def _schedule(
    optimiser: torch.optim.Optimizer, parameters: RunParameters, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule, stepped once an epoch."""
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


@torch.inference_mode()
def evaluate(model: SequenceModel, part: Part, task: Task) -> tuple[float, float, Tensor]:
    """Mean loss, mean score and the head's outputs (N, ...) of a model on examples."""
    model.eval()
    device = next(model.parameters()).device
    outputs = torch.cat(
        [
            model(task.inputs(stored).to(device)).cpu()
            for stored in part.inputs.split(EVALUATION_BATCH)
        ]
    )
    loss = task.losses(outputs, part.targets, "mean").item()
    scores = task.scores(part.targets.numpy(), task.answers(outputs).numpy())
    return loss, float(scores.mean()), outputs


class _State:
    """All that training changes; it is what a checkpoint holds."""

    def __init__(self, model: SequenceModel, parameters: RunParameters, epochs: int):
        self.parameters = parameters
        self.fingerprint = fingerprint(parameters.model, parameters.task)
        self.model = model
        self.optimiser = _optimiser(model, parameters)
        self.schedule = _schedule(self.optimiser, parameters, epochs)
        self.order = generator(parameters.seed, "order")
        # Dropout alone draws from torch's global generator.
        torch.manual_seed(generator(parameters.seed, "dropout").initial_seed())
        self.progress = {
            "epoch": 0,
            "best_epoch": 0,
            "best_score": -math.inf,
            "lowest_loss": math.inf,
            "epochs_without_fall": 0,
            "seconds": 0.0,
        }
        self.history: list[dict] = []
        self.initial = copy.deepcopy(model.state_dict())
        self.best = self.initial
        self.tracked = [model.tracked()]

    def save(self, path: Path) -> None:
        content = {
            "parameters": self.parameters.flat(),
            "fingerprint": self.fingerprint,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state_all(),
            **{name: getattr(self, name) for name in self._plain},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_file(path, buffer.getvalue())

    _plain = ("progress", "history", "initial", "best", "tracked")

    def resume(self, path: Path, report: Callable[[str], None]) -> None:
        """Go back to a checkpoint, if there is one; a damaged one is reported and left behind."""
        if not path.exists():
            return
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")  # plain values only
            there = content["parameters"]
            missing = {"model", "optimiser", "schedule", "order", *self._plain} - set(content)
            if missing:
                raise KeyError(*missing)
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError,
                pickle.UnpicklingError):  # fmt: skip
            report(f"{path} is damaged: training starts again from the first epoch.")
            return
        if there != self.parameters.flat():
            raise UserError(
                f"{path.parent} holds a run with other parameters; name another output folder."
            )
        if content.get("fingerprint") != self.fingerprint:
            report(f"{path} is of other code than stands here: training starts again.")
            return
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load_state_dict(content["schedule"])
        self.order.set_state(content["order"])
        torch.set_rng_state(content["dropout"])
        gpus = content["dropout_cuda"]
        if len(gpus) == torch.cuda.device_count():  # on another machine they draw anew
            torch.cuda.set_rng_state_all(gpus)
        for name in self._plain:
            setattr(self, name, content[name])


def fit(
    model: SequenceModel,
    data: Split,
    task: Task,
    parameters: RunParameters,
    folder: Path,
    report: Callable[[str], None] = print,
) -> _State:
    """Train a model, with one checkpoint an epoch in `folder`; a killed run resumes from it.

    The schedule and early stopping follow the validation loss; the best epoch is the one with the
    highest validation score, or with the lowest loss where `best_by` says so, the earliest of
    equals. Losses are means over examples. The figures of the training split are running means
    while the model learns.

    Args:
        model: The model, on its device; changed in place.
        data: Training and validation examples; the test examples are not touched.
        task: What is learned.
        parameters: The budget and the seed.
        folder: The run's folder.
        report: Takes one line an epoch.

    Returns:
        The state after the last epoch: its `best` weights, `history` and `tracked` matrices.

    Raises:
        UserError: The loss is not finite, or the folder holds a run with other parameters.
    """
    device = next(model.parameters()).device
    epochs = epochs_of(parameters, len(data.train.targets))
    state = _State(model, parameters, epochs)
    state.resume(folder / "checkpoint.pt", report)
    progress = state.progress
    patience = parameters.patience or math.inf
    while progress["epoch"] < epochs and progress["epochs_without_fall"] < patience:
        epoch = progress["epoch"] + 1
        rate = state.optimiser.param_groups[0]["lr"]
        start = time.perf_counter()
        training = _train_epoch(state, data.train, task, parameters, device, epoch)
        progress["path"] = model.cell.served
        middle = time.perf_counter()
        loss, score, _ = evaluate(model, data.validation, task)
        end = time.perf_counter()
        _require_finite(loss, parameters, epoch, "in validation", training["loss"])

        row = {"variant": parameters.name, "model": parameters.model, "seed": parameters.seed}
        row["epoch"] = epoch
        state.history += [
            {**row, "split": "train", **training, "seconds": middle - start, "learning_rate": rate},
            {**row, "split": "validation", "loss": loss, task.score.name: score}
            | {"seconds": end - middle},
        ]
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
        progress["epoch"] = epoch
        progress["seconds"] += end - start
        state.save(folder / "checkpoint.pt")
        report(
            f"{parameters.run}  epoch {epoch:3d}  training loss {training['loss']:.4f}  "
            f"validation loss {loss:.4f}  {task.score.name} {task.score.scale * score:.4g}"
            f"{task.score.unit}  {end - start:.1f} s"
        )
    return state


def _train_epoch(
    state: _State,
    part: Part,
    task: Task,
    parameters: RunParameters,
    device: torch.device,
    epoch: int,
) -> dict[str, float]:
    """One pass over the training examples, or what the budget leaves of it.

    Returns:
        Means over its examples of loss and score, and over its steps of the gradient's norm before
        clipping.
    """
    state.model.train()
    answered, losses, norms = [], [], []  # on the device, which nobody waits for within an epoch
    batches = torch.randperm(len(part.targets), generator=state.order).split(parameters.batch_size)
    batches = batches[: _batches(parameters, len(part.targets))]
    if parameters.steps:
        batches = batches[: parameters.steps - (epoch - 1) * len(batches)]
    for batch in batches:
        targets = part.targets[batch]
        outputs = state.model(task.inputs(part.inputs.index_select(0, batch)).to(device))
        loss = task.losses(outputs, targets.to(device), "mean")
        state.optimiser.zero_grad()
        loss.backward()
        limit = parameters.clip_norm or math.inf
        norms.append(nn.utils.clip_grad_norm_(state.model.parameters(), limit))
        state.optimiser.step()
        losses.append(loss.detach())
        answered.append(task.answers(outputs.detach()))
    last_finite, loss_sum, score_sum, examples = math.nan, 0.0, 0.0, 0
    values = torch.stack(losses).tolist()
    told = zip(batches, values, answered, strict=True)
    for step, (batch, value, answers) in enumerate(told, start=1):
        _require_finite(value, parameters, epoch, f"at step {step}", last_finite)
        last_finite = value
        loss_sum += value * len(batch)
        score_sum += task.scores(part.targets[batch].numpy(), answers.cpu().numpy()).sum()
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
