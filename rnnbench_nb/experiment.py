"""Parameters of runs and of sweeps over them, from YAML files, options or notebooks.

The keys are flat, so that one vocabulary serves parameter files, `--set KEY=VALUE`, papermill's
`-p KEY VALUE` and the parameters cell of a notebook. A run has the common keys, and those of the
options of its cell and its task: each goes to those that read it, and is recorded with them only.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator

from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.tasks import DEFAULT, TASKS
from rnnbench_nb.validation import (
    Fraction,
    Frozen,
    Name,
    NotNegative,
    Positive,
    Size,
    as_meant,
    parse_yaml,
    unknown,
    validate,
)

PROJECT = Path(__file__).resolve().parent.parent
QUICK_EPOCHS = 5
SEEDS = 2**32  # seeds are below it
NO_GPU = "device: 'cuda' is asked for but no GPU is found; use 'auto' or 'cpu'."
GONE = {"num_layers": (1, None)}  # keys of earlier records, with the values that change nothing


class ModelParameters(Frozen):
    """The cell, by its name, and its size; dropout is before the head.

    Every matrix starts uniform on +-1/sqrt(H), or as Xavier has it (Glorot and Bengio 2010).
    """

    model: str
    hidden_size: Size = 128
    dropout: Fraction = 0.0
    initialisation: Literal["uniform", "xavier"] = "uniform"


class OptimiserParameters(Frozen):
    """The optimiser and its schedule; clip_norm bounds the norm of the whole gradient.

    On a plateau the learning rate falls by a factor, and not below the minimum.
    """

    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive | None = 1.0
    schedule: Literal["plateau", "cosine", "none"] = "plateau"
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Annotated[int, Field(ge=0)] = 5
    plateau_minimum: NotNegative = 0.0


class TrainingParameters(Frozen):
    """The budget: at most so many epochs, and steps of the optimiser if they are given.

    The last epoch may then be short. Patience counts epochs without a fall of min_delta in the
    validation loss. `best_by` says what chooses the epoch whose weights are tested, `drop_last`
    whether an incomplete batch at the end of an epoch is left out. `precision` is that of float32
    matrix products, as `torch.set_float32_matmul_precision` has it.
    """

    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 42
    epochs: Size = 50
    steps: Size | None = None
    batch_size: Size = 128
    drop_last: bool = False
    best_by: Literal["score", "loss"] = "score"
    patience: Size | None = 10
    min_delta: NotNegative = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["highest", "medium"] = "highest"


class RunParameters(TrainingParameters, OptimiserParameters, ModelParameters):
    """Everything one run depends on, but for the options of its cell and task: see `kind_of`."""

    task: str = DEFAULT
    variant: Name | None = None

    @property
    def name(self) -> str:
        """The variant's name; without a sweep it is the model's."""
        return self.variant or self.model

    @property
    def run(self) -> str:
        """The name of the run and of its folder: the variant's and the seed, as in `x-seed42`."""
        return f"{self.name}-seed{self.seed}"

    @property
    def asked(self) -> tuple:
        """The task and its options: variants are compared where they share them."""
        task = TASKS[self.task]
        return task.name, *(getattr(self, key) for key in task.Options.model_fields)

    def same_as(self, other: "RunParameters") -> bool:
        """Whether two runs are one: alike in all but the variant's name."""
        return self.model_dump(exclude={"variant"}) == other.model_dump(exclude={"variant"})


@cache
def kind_of(model: str, task: str) -> type[RunParameters]:
    """The parameters of a run of this cell on this task: common ones and the options of both.

    Raises:
        UserError: No file defines a cell or a task of this name.
    """
    cell, tasks = lookup(CELLS, "model", model), lookup(TASKS, "task", task)
    return type("RunParameters", (RunParameters, cell.Options, tasks.Options), {})


def run_parameters(values: Mapping[str, Any], where: str) -> RunParameters:
    """The parameters of a run, checked.

    Raises:
        UserError: A key is unknown, or read neither by the cell nor by the task, or wrong.
    """
    if "model" not in values:
        raise UserError(f"{where}: model is missing; it must be one of {', '.join(CELLS)}.")
    try:
        kind = kind_of(values["model"], values.get("task", DEFAULT))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    _refuse_unread(values, kind.model_fields, where)
    return validate(kind, as_meant(values, kind.model_fields), where)


def recorded_parameters(values: Mapping[str, Any], where: str) -> RunParameters:
    """The parameters in a run.json, earlier ones too, which held every cell's options."""
    kind = kind_of(values["model"], values.get("task", DEFAULT))
    for key, neutral in GONE.items():
        if values.get(key) not in neutral:
            raise UserError(f"{where}: {key} {values[key]} is no longer read; leave the run out.")
    return validate(kind, {k: v for k, v in values.items() if k in kind.model_fields}, where)


def _readers(key: str) -> list[str]:
    """The cells and tasks that have an option of this name."""
    return [name for table in (CELLS, TASKS) for name, entry in table.items()
            if key in entry.Options.model_fields]  # fmt: skip


def _refuse_unread(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in keys:
        if key in known:
            continue
        readers = _readers(key)
        if readers:
            raise UserError(
                f"{where}: {key} is an option of {', '.join(readers)}, and nothing here reads it; "
                "leave it out."
            )
        raise UserError(f"{where}: {unknown(key, known)}")


class _Sweep(Frozen):
    """What a parameter file says beside a run's parameters.

    A variant is a named set of values laid over the file's own. The seeds are `seed`, `seed + 1`,
    ..., `seed + runs - 1`; a variant with `runs` of its own has the first of them alone. `quick`
    holds what the quick form has instead.
    """

    base: str | None = None
    models: list[str] = []
    runs: Annotated[int, Field(ge=1, le=10_000)] = 1
    variants: dict[Name, dict[str, Any]] = {}
    quick: dict[str, Any] = {}
    note: str = ""

    @field_validator("models")
    @classmethod
    def _named_once(cls, models: list[str]) -> list[str]:
        twice = sorted({model for model in models if models.count(model) > 1})
        if twice:
            raise ValueError(f"names {twice[0]!r} twice; name each model once")
        return models


@dataclass(frozen=True)
class Protocol:
    """A sweep: variants, which are parameterisations of cells on tasks, and seeds.

    Attributes:
        models: The cells that take part.
        runs: Number of seeds.
        values: The common values, and the options that are laid over those of cells and tasks.
        variants: The values of each variant, laid over `values`; empty for one variant a cell.
        note: What the report says at its top, such as that other data stand in.
        short: The values of the quick form, laid over those of every variant.
    """

    models: list[str]
    runs: int
    values: dict[str, Any]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""
    short: dict[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the sweep, in order."""
        first = self.values["seed"]
        return list(range(first, first + self.runs))

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds of one variant, in order."""
        return self.seeds[: self.variants.get(variant, {}).get("runs")]

    @cached_property
    def parameterisations(self) -> dict[str, RunParameters]:
        """The parameters of each variant whose model takes part, by name, at the first seed."""
        named = self.variants or {model: {"model": model} for model in self.models}
        found = {}
        for name, own in named.items():
            where = f"variant {name!r}"
            if "seed" in own or "variant" in own:
                raise UserError(f"{where}: a variant cannot set 'seed' or 'variant'; leave it out.")
            own = dict(own)
            validate(_Sweep, {"runs": own.pop("runs", 1)}, where)
            values = {**self.values, **own, "variant": name}
            if values.get("model") not in self.models:
                continue
            task = lookup(TASKS, f"{where}: task", values["task"])
            cell = lookup(CELLS, f"{where}: model", values["model"])
            read = {*RunParameters.model_fields, *cell.Options.model_fields,
                    *task.Options.model_fields}  # fmt: skip
            kept = {key: value for key, value in values.items() if key in read or key in own}
            found[name] = run_parameters(kept, where)
        if not found:
            raise UserError(
                f"models: none of the variants uses {' or '.join(self.models)}; name a model that "
                f"one of them uses."
            )
        return found

    def at(self, seed: int) -> list[RunParameters]:
        """The parameters of each variant that has this seed."""
        return [p.model_copy(update={"seed": seed}) for name, p in self.parameterisations.items()
                if seed in self.seeds_of(name)]  # fmt: skip

    def quick(self) -> "Protocol":
        """The quick form: `short`, and at most `QUICK_EPOCHS` epochs, in every variant."""

        def shortened(values: dict[str, Any]) -> dict[str, Any]:
            epochs = {"epochs": self.values["epochs"], **values, **self.short}["epochs"]
            return {**values, **self.short, "epochs": min(epochs, QUICK_EPOCHS)}

        variants = {name: shortened(own) for name, own in self.variants.items()}
        return replace(self, values=shortened(self.values), variants=variants, short={})

    def resolved(self) -> "Protocol":
        """This protocol with what the tasks of its variants settle on this machine, and the note.

        Raises:
            UserError: The data of a task are not there and cannot be had.
        """
        values, notes = dict(self.values), {self.note: None} if self.note else {}
        variants = {name: dict(own) for name, own in self.variants.items()}
        for name, parameters in self.parameterisations.items():
            settled, note = TASKS[parameters.task](parameters).resolve()
            for key, value in settled.items():
                if getattr(parameters, key) != value:
                    own = variants.get(name, {})
                    (own if key in own else values)[key] = value
            notes |= {note: None} if note else {}
        return replace(self, values=values, variants=variants, note="; ".join(notes))

    def dump(self) -> dict[str, Any]:
        """All values, as a parameter file holds them."""
        sweep = {"models": self.models, "runs": self.runs, "variants": self.variants}
        sweep |= {"note": self.note} if self.note else {}
        sweep |= {"quick": self.short} if self.short else {}
        return {**{k: v for k, v in self.values.items() if k != "variant"}, **sweep}


def _protocol(values: Mapping[str, Any], where: str, lenient: Iterable[str] = ()) -> Protocol:
    """The protocol that the values describe; keys in `lenient` may be read by nobody."""
    values = as_meant(values, _Sweep.model_fields | RunParameters.model_fields)
    sweep = validate(_Sweep, {k: v for k, v in values.items() if k in _Sweep.model_fields}, where)
    common = RunParameters.model_fields
    variants = {name: as_meant(own, common) for name, own in sweep.variants.items()}
    short = as_meant(sweep.quick, common)
    sweep = sweep.model_copy(update={"variants": variants, "quick": short})
    rest = {key: value for key, value in values.items() if key not in _Sweep.model_fields}
    layers = [rest, *sweep.variants.values()]
    tasks = [layer["task"] for layer in layers if "task" in layer] or [DEFAULT]
    own = [layer["model"] for layer in layers if layer.get("model") is not None]
    taking_part = [lookup(TASKS, f"{where}: task", name) for name in tasks]
    taking_part += [lookup(CELLS, f"{where}: model", name) for name in own]
    taking_part += [lookup(CELLS, f"{where}: models", name) for name in sweep.models]
    models = sweep.models or list(dict.fromkeys(own))
    if not models:
        raise UserError(f"{where}: models is missing; name some of {', '.join(CELLS)}.")
    options = {key for entry in taking_part for key in entry.Options.model_fields}
    rest = {k: v for k, v in rest.items()
            if k in options or k in RunParameters.model_fields or k not in lenient}  # fmt: skip
    _refuse_unread(rest, [*RunParameters.model_fields, *_Sweep.model_fields, *options], where)
    _refuse_unread(sweep.quick, [*RunParameters.model_fields, *options], f"{where}: quick")
    common, short = (
        {k: v for k, v in layer.items() if k in RunParameters.model_fields}
        for layer in (rest, sweep.quick)
    )
    validate(RunParameters, {"model": models[0], **short}, f"{where}: quick")
    checked = validate(RunParameters, {"model": models[0], **common}, where).model_dump()
    if checked["seed"] + sweep.runs > SEEDS:
        raise UserError(f"{where}: seed: the last seed would be above {SEEDS - 1}; lower it.")
    if "model" not in common and len(models) > 1:  # each variant has to say which
        del checked["model"]
    values = {**checked, **rest}
    protocol = Protocol(models, sweep.runs, values, sweep.variants, sweep.note, sweep.quick)
    try:
        protocol.parameterisations  # noqa: B018 (wrong values are told now)
        protocol.quick().parameterisations  # noqa: B018 (and those of the quick form)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return protocol


def _own_values(path: Path) -> dict[str, Any]:
    """The values in a parameter file itself."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"{path}: the parameter file cannot be read ({reason}); name one, such as "
            f"{', '.join(sorted(file.stem for file in PROJECT.glob('params/*.yaml')))}."
        ) from error
    values = parse_yaml(text, str(path))
    if values is None:
        raise UserError(f"{path}: the parameter file is empty; copy params/quick.yaml and edit it.")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: the parameter file must hold KEY: VALUE lines, keys being names.")
    return values


def read_values(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values in a parameter file, laid over those of its `base` in the same folder.

    Raises:
        UserError: The file is missing or empty, no mapping, or among its own bases.
    """
    values = _own_values(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if path in seen:
        raise UserError(f"{path}: its base leads back to itself; leave the base of one file out.")
    return {**_base(path.parent, base, str(path), (*seen, path)), **values}


def _base(folder: Path, base: object, where: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = folder / f"{base}.yaml"
    if not path.exists():
        raise UserError(
            f"{where}: base: {path} is not there; name a file beside it, without .yaml."
        )
    return read_values(path, seen)


def parameter_file(name: Path | str) -> Path:
    """A parameter file as people name it: a path, or the name of one in the project's params/."""
    path = Path(name)
    ours = PROJECT / "params" / f"{path.name.removesuffix('.yaml')}.yaml"
    return ours if not path.is_file() and path.name == str(name) and ours.exists() else path


def load_protocol(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """The protocol in a parameter file, with `overrides` laid over it.

    What the file inherits from its base, and what the overrides leave of the file, may be read by
    nobody: a protocol of one cell may have a base that gives another's options.

    Raises:
        UserError: The file is missing or empty, or a key or value in it is wrong.
    """
    path, overrides = parameter_file(path), overrides or {}
    values = read_values(path)
    inherited = set(values) - set(_own_values(path))
    protocol = _protocol(values, str(path), inherited)  # the file's own faults are told as its own
    if not overrides:
        return protocol
    return _protocol({**values, **overrides}, "the options", set(values) - set(overrides))


def recorded_protocol(path: Path) -> Protocol:
    """The protocol in a report's protocol.yaml, earlier ones too, which held unread keys."""
    values = {key: value for key, value in read_values(path).items() if key not in GONE}
    return _protocol(values, str(path), values)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Values as a YAML file that `load_protocol` and papermill read back unchanged."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def from_notebook(namespace: Mapping[str, Any]) -> RunParameters:
    """The parameters of a notebook, from its `globals()` in the cell after the parameters.

    What the notebook's cells assigned before counts, so that a key that papermill injected but
    nobody knows is refused here (papermill itself only warns). An option of a cell or task that
    the parameters cell leaves at None has the default of its reader.

    Raises:
        UserError: A key or a value is wrong.
    """
    cells = list(namespace.get("In", ()))[:-1]
    injected = [
        name for cell in cells if cell.startswith("# Parameters") for name in _assigned(cell)
    ]
    names = dict.fromkeys(name for cell in cells for name in _assigned(cell)) or namespace
    values = {name: namespace[name] for name in names if name in namespace and name[0] != "_"}
    values.pop("output_dir", None)
    base, there = values.pop("base", None), {}
    known = {*RunParameters.model_fields, *_Sweep.model_fields}
    values = {k: v for k, v in values.items() if v is not None or k in known or k in injected}
    if base:  # what is given here goes before the base, and the base before the notebook's own
        there = _base(PROJECT / "params", base, "the notebook's parameters")
        values = {**values, **there, **{k: v for k, v in values.items() if k in injected}}
    protocol = _protocol(values, "the notebook's parameters", set(there) - set(injected))
    model = values.get("model") or protocol.models[0]
    task = lookup(TASKS, "task", values.get("task") or DEFAULT)
    read = {*kind_of(model, task.name).model_fields} - {"model"}
    kept = {key: value for key, value in protocol.values.items() if key in read}
    return run_parameters({**kept, "model": model}, "the notebook's parameters")


def _assigned(source: str) -> list[str]:
    """The names that a piece of code assigns at its top level."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a cell with a magic
        return []
    found = []
    for statement in statements:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def project_path(path: Path | str) -> Path:
    """A path as notebooks and the command line mean it: relative to the project's folder."""
    return PROJECT / Path(path)
