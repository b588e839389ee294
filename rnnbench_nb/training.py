"""The one training loop: fair, resumable, and blind to which cell it trains."""

import copy
import io
import math
import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnbench_nb import results
from rnnbench_nb.config import PROJECT, RunParameters, load_protocol, project_path
from rnnbench_nb.data import Part, Split, as_sequence, load, resolve, split
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file
from rnnbench_nb.models import SequenceClassifier, build_model, count
from rnnbench_nb.seeds import generator

MOMENTUM = 0.9  # of SGD
EVALUATION_BATCH = 1000  # images at once where no gradient is wanted


def device_of(parameters: RunParameters) -> torch.device:
    """The device that `device: auto | cpu | cuda` means here.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if parameters.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: 'cuda' is asked for but no GPU is found; use 'auto' or 'cpu'.")
    gpu = parameters.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _optimiser(model: nn.Module, parameters: RunParameters) -> torch.optim.Optimizer:
    """The optimiser; weight decay leaves step sizes alone, which it would pull towards 1."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if "epsilon" not in name]},
        {"params": [p for name, p in named if "epsilon" in name], "weight_decay": 0.0},
    ]
    kind, options = {
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
        "sgd": (torch.optim.SGD, {"momentum": MOMENTUM}),
    }[parameters.optimiser]
    return kind(
        [group for group in groups if group["params"]],
        lr=parameters.learning_rate,
        weight_decay=parameters.weight_decay,
        fused=True,
        **options,
    )


def _schedule(
    optimiser: torch.optim.Optimizer, parameters: RunParameters
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule, stepped once an epoch."""
    schedules = torch.optim.lr_scheduler
    if parameters.schedule == "plateau":
        return schedules.ReduceLROnPlateau(
            optimiser, factor=parameters.plateau_factor, patience=parameters.plateau_patience
        )
    if parameters.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimiser, T_max=parameters.epochs)
    return schedules.ConstantLR(optimiser, factor=1.0)


@torch.inference_mode()
def evaluate(model: SequenceClassifier, data: Part, reading: str) -> tuple[float, float, Tensor]:
    """Mean loss (nats), accuracy (fraction) and class scores (N, K) of a model on images."""
    model.eval()
    device = next(model.parameters()).device
    logits = torch.cat(
        [
            model(as_sequence(images, reading).to(device)).cpu()
            for images in data.images.split(EVALUATION_BATCH)
        ]
    )
    loss = F.cross_entropy(logits, data.labels).item()
    accuracy = (logits.argmax(1) == data.labels).double().mean().item()
    return loss, accuracy, logits


class _State:
    """All that training changes; it is what a checkpoint holds."""

    def __init__(self, model: SequenceClassifier, parameters: RunParameters):
        self.parameters = parameters
        self.model = model
        self.optimiser = _optimiser(model, parameters)
        self.schedule = _schedule(self.optimiser, parameters)
        self.order = generator(parameters.seed, "order")
        # Dropout alone draws from torch's global generator.
        torch.manual_seed(generator(parameters.seed, "dropout").initial_seed())
        self.progress = {
            "epoch": 0,
            "best_epoch": 0,
            "best_accuracy": -1.0,
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
            "parameters": self.parameters.model_dump(),
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
            content = torch.load(path, weights_only=True)  # tensors and plain values only
            there = RunParameters(**content["parameters"])
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError,
                pickle.UnpicklingError):  # fmt: skip
            report(f"{path} is damaged: training starts again from the first epoch.")
            return
        if there != self.parameters:
            raise UserError(
                f"{path.parent} holds a run with other parameters; name another output folder, "
                "or delete that one."
            )
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load_state_dict(content["schedule"])
        self.order.set_state(content["order"])
        torch.set_rng_state(content["dropout"])
        torch.cuda.set_rng_state_all(content["dropout_cuda"])
        for name in self._plain:
            setattr(self, name, content[name])


def fit(
    model: SequenceClassifier,
    data: Split,
    parameters: RunParameters,
    folder: Path,
    report: Callable[[str], None] = print,
) -> _State:
    """Train a model, with one checkpoint an epoch in `folder`; a killed run resumes from it.

    The schedule and early stopping follow the validation loss; the best epoch is the one with
    the highest validation accuracy, the earliest of equals. Losses are means over images. The
    figures of the training split are running means while the model learns.

    Args:
        model: The model, on its device; changed in place.
        data: Training and validation images; the test images are not touched.
        parameters: The budget and the seed.
        folder: The run's folder.
        report: Takes one line an epoch.

    Returns:
        The state after the last epoch: its `best` weights, `history` and `tracked` matrices.

    Raises:
        UserError: The loss is not finite, or the folder holds a run with other parameters.
    """
    device = next(model.parameters()).device
    state = _State(model, parameters)
    state.resume(folder / "checkpoint.pt", report)
    progress = state.progress
    patience = parameters.patience or math.inf
    while progress["epoch"] < parameters.epochs and progress["epochs_without_fall"] < patience:
        epoch = progress["epoch"] + 1
        rate = state.optimiser.param_groups[0]["lr"]
        start = time.perf_counter()
        training = _train_epoch(state, data.train, parameters, device, epoch)
        middle = time.perf_counter()
        loss, accuracy, _ = evaluate(model, data.validation, parameters.reading)
        end = time.perf_counter()
        _require_finite(loss, parameters, epoch, "in validation", training["loss"])

        row = {"variant": parameters.name, "model": parameters.model, "seed": parameters.seed}
        row["epoch"] = epoch
        state.history += [
            {**row, "split": "train", **training, "seconds": middle - start, "learning_rate": rate},
            {**row, "split": "validation", "loss": loss, "accuracy": accuracy}
            | {"seconds": end - middle},
        ]
        state.tracked.append(model.tracked())
        if accuracy > progress["best_accuracy"]:
            progress |= {"best_accuracy": accuracy, "best_epoch": epoch}
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
            f"validation loss {loss:.4f}  accuracy {100 * accuracy:.2f}%  {end - start:.1f} s"
        )
    return state


def _train_epoch(
    state: _State, data: Part, parameters: RunParameters, device: torch.device, epoch: int
) -> dict[str, float]:
    """One pass over the training images; mean loss, accuracy and gradient norm before clipping."""
    state.model.train()
    loss_sum = correct = norm_sum = 0.0
    last_finite = math.nan
    batches = torch.randperm(len(data.labels), generator=state.order).split(parameters.batch_size)
    for step, batch in enumerate(batches, start=1):
        inputs = as_sequence(data.images[batch], parameters.reading).to(device)
        labels = data.labels[batch].to(device)
        logits = state.model(inputs)
        loss = F.cross_entropy(logits, labels)
        value = loss.item()
        _require_finite(value, parameters, epoch, f"at step {step}", last_finite)
        last_finite = value
        state.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), parameters.clip_norm or math.inf)
        state.optimiser.step()
        loss_sum += value * len(batch)
        correct += (logits.argmax(1) == labels).sum().item()
        norm_sum += norm.item()
    images = len(data.labels)
    return {
        "loss": loss_sum / images,
        "accuracy": correct / images,
        "gradient_norm": norm_sum / len(batches),
    }


def _require_finite(
    loss: float, parameters: RunParameters, epoch: int, where: str, last_finite: float
) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"{parameters.run}: the loss is {loss} in epoch {epoch} {where} (the last finite loss "
            f"was {last_finite:.4g}); lower learning_rate, epsilon or clip_norm."
        )


def prepare(
    parameters: RunParameters, report: Callable[[str], None] = print
) -> tuple[RunParameters, Split]:
    """The data of a run, and its parameters with the data set that is really used.

    Raises:
        UserError: The data set is not there and cannot be fetched, or is damaged.
    """
    dataset = resolve(parameters.dataset, parameters.offline_fallback)
    if dataset != parameters.dataset:
        report(f"{parameters.dataset} could not be fetched: this run uses {dataset} instead.")
        parameters = parameters.model_copy(update={"dataset": dataset})
    return parameters, split(load(dataset), parameters.seed)


def train_run(
    parameters: RunParameters, folder: Path | str, report: Callable[[str], None] = print
) -> results.Run:
    """Train one model with one seed, read the test set once, and write the run's folder.

    Args:
        parameters: Everything the run depends on.
        folder: The run's folder; a run that was killed there goes on from its last epoch.
        report: Takes the lines of progress.

    Returns:
        The finished run; one that was finished before is read, not trained again.

    Raises:
        UserError: The run cannot be trained; run.json then says why.
    """
    folder = Path(folder)
    if (folder / "run.json").exists():
        run = results.load_run(folder)
        if run.record["status"] == results.COMPLETED and run.parameters == parameters:
            report(f"{parameters.run} is finished: its results are read, not trained again.")
            return run
    record = {"variant": parameters.name, "model": parameters.model, "seed": parameters.seed}
    record |= {"status": results.FAILED, **results.environment()}
    try:
        parameters, data = prepare(parameters, report)
        device = device_of(parameters)
        steps, input_size = as_sequence(data.train.images[:1], parameters.reading).shape[1:]
        classes = len(data.class_names)
        random = generator(parameters.seed, "initialisation")
        model = build_model(parameters, input_size, classes, random).to(device)
        total, free = count(model, parameters)
        record |= {
            "parameters": parameters.model_dump(),
            "parameter_count": total,
            "free_parameter_count": free,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "data": {
                "dataset": parameters.dataset,
                "reading": parameters.reading,
                "train": len(data.train.labels),
                "validation": len(data.validation.labels),
                "test": len(data.test.labels),
                "steps": steps,
                "input_size": input_size,
                "classes": classes,
                "class_names": list(data.class_names),
            },
        }
        state = fit(model, data, parameters, folder, report)
        model.load_state_dict(state.best)
        loss, _, logits = evaluate(model, data.test, parameters.reading)
    except UserError as error:
        results.write_record(folder, {**record, "reason": str(error)})
        raise
    label, predicted = data.test.labels.numpy(), logits.argmax(1).numpy()
    write = results.write_tensors
    write(folder / "initial.safetensors", state.initial)
    write(folder / "best.safetensors", state.best)
    write(folder / "logits.safetensors", {"logits": logits})
    bytes_of = {"label": label, "predicted": predicted}
    write(
        folder / "predicted.safetensors",
        {name: torch.from_numpy(value.astype(np.uint8)) for name, value in bytes_of.items()},
    )
    if state.tracked[0]:
        names = state.tracked[0].keys()
        stacked = {name: torch.stack([epoch[name] for epoch in state.tracked]) for name in names}
        write(folder / "recurrent.safetensors", stacked)
    history = pd.DataFrame(state.history, columns=results.HISTORY_COLUMNS)
    results.write_csv(folder / "history.csv", history)
    record |= {
        "status": results.COMPLETED,
        "epochs": state.progress["epoch"],
        "best_epoch": state.progress["best_epoch"],
        "test": {**results.metrics(label, predicted), "loss": loss},
        "seconds": state.progress["seconds"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    results.write_record(folder, record)
    return results.load_run(folder)


def open_report(output_dir: str) -> list[Path]:
    """The run folders of a report, for the notebooks that read runs.

    A folder that holds no report yet gets a demonstration in its place (a temporary folder):
    three models, two seeds and five epochs on digits, some seconds, so that the notebooks can be
    explored from a fresh clone.

    Args:
        output_dir: The report's folder, absolute or from the project's folder.

    Returns:
        The folder of each run that the report's protocol asks for.
    """
    report = project_path(output_dir)
    if (report / "protocol.yaml").exists():
        return results.run_folders(report, load_protocol(report / "protocol.yaml"))
    print(f"{report} holds no report yet (make report): a demonstration on digits stands in.")
    settings = {"dataset": "digits", "epochs": 5, "learning_rate": 0.003, "runs": 2}
    protocol = load_protocol(PROJECT / "params/quick.yaml", settings)
    folders = results.run_folders(Path(mkdtemp()), protocol)
    variants = protocol.parameterisations().values()
    each = [v.model_copy(update={"seed": seed}) for v in variants for seed in protocol.seeds]
    for parameters, folder in zip(each, folders, strict=True):
        train_run(parameters, folder, report=lambda line: None)
    return folders
