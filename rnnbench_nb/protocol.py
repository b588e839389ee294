"""Parameters of runs and of sweeps over them, from YAML files, options or a notebook.

The keys are flat, so that one vocabulary serves parameter files, `--set KEY=VALUE` and records. A
run has the common keys and the options of its cell and its task; a key that a run does not read is
refused.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import PROJECT
from rnnbench_nb.looks import labels
from rnnbench_nb.parameters import (
    Fraction,
    Frozen,
    Integer,
    Name,
    NotNegative,
    Positive,
    Schedule,
    Size,
    read_yaml,
    unknown,
    validate,
)
from rnnbench_nb.tasks import DEFAULT, TASKS

QUICK_EPOCHS = 5
SEEDS = 2**32  # seeds are below it
RETIRED = {"start": "common", "biases": True}  # options in old records, which meant what is now
NO_GPU = "device: 'cuda' is asked for but no GPU is found; use 'auto' or 'cpu'."


class RunParameters(Frozen):
    """Everything that one run depends on.

    `variant` names the parameterisation; `cell_options` and `task_options` are instances of the
    `Options` of its cell and its task. Every matrix starts uniform on +-1/sqrt(H), or as Xavier has
    it (Glorot and Bengio 2010); dropout is before the head. `clip_norm` bounds the norm of the
    whole gradient. On a plateau the learning rate falls by a factor, not below the minimum.

    A run has at most so many epochs, and at most so many steps of the optimiser if given, so that
    the last epoch may be short. `drop_last` leaves out an incomplete batch at the end of an epoch.
    `best_by` chooses the epoch whose weights are tested; patience counts epochs without a fall of
    `min_delta` in the validation loss. `precision` is that of float32 matrix products, as in
    `torch.set_float32_matmul_precision`.
    """

    model: str
    hidden_size: Size = 128
    dropout: Fraction = 0.0
    initialisation: Literal["uniform", "xavier"] = "uniform"
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive | None = 1.0
    schedule: Schedule = "plateau"
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Annotated[Integer, Field(ge=0)] = 5
    plateau_minimum: NotNegative = 0.0
    seed: Annotated[Integer, Field(ge=0, lt=SEEDS)] = 42
    epochs: Size = 50
    steps: Size | None = None
    batch_size: Size = 128
    drop_last: bool = False
    best_by: Literal["score", "loss"] = "score"
    patience: Size | None = 10
    min_delta: NotNegative = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["highest", "medium"] = "highest"
    task: str = DEFAULT
    variant: Name | None = None
    cell_options: Frozen = Frozen()
    task_options: Frozen = Frozen()

    @property
    def name(self) -> str:
        """The variant's name; without a sweep it is the model's."""
        return self.variant or self.model

    @property
    def run(self) -> str:
        """The name of the run and of its folder: the variant's and the seed, as in `x-seed42`."""
        return f"{self.name}-seed{self.seed}"

    @property
    def group(self) -> str:
        """The task and its options as text: only variants of one group are compared."""
        return json.dumps([self.task, *self.task_options.model_dump().values()])

    def grouped(self) -> dict[str, Any]:
        """The values as notebooks take them: common keys, and all others below `options`."""
        options = self.task_options.model_dump() | self.cell_options.model_dump()
        return self.model_dump(include=COMMON) | {"options": options}

    def flat(self) -> dict[str, Any]:
        """All values by their flat keys, as parameter files and records hold them."""
        values = self.grouped()
        return values | values.pop("options")

    def changed(self, **values: Any) -> "RunParameters":
        """These parameters with other values, given by flat keys."""
        return run_parameters({**self.flat(), **values}, self.run)

    def same_as(self, other: "RunParameters") -> bool:
        """Whether two runs are the same: alike in all but the variant's name."""
        return self.flat() | {"variant": None} == other.flat() | {"variant": None}


COMMON = {key for key in RunParameters.model_fields if not key.endswith("_options")}


def _some(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def run_parameters(
    values: Mapping[str, Any], where: str, lenient: Collection[str] = ()
) -> RunParameters:
    """Check the parameters of a run.

    Args:
        values: By flat keys, or as `RunParameters.grouped` gives them.
        where: Names their source in an error.
        lenient: Keys that need not be read.

    Raises:
        UserError: A key is unknown, or read neither by the cell nor by the task, or wrong.
    """
    values = dict(values)
    options = values.pop("options", {})
    if not isinstance(options, dict):
        raise UserError(f"{where}: options: must hold KEY: VALUE pairs, but {options!r} is given.")
    values |= options
    values = {key: value for key, value in values.items() if (key, value) not in RETIRED.items()}
    cell = lookup(CELLS, f"{where}: model", values.get("model"))
    task = lookup(TASKS, f"{where}: task", values.get("task", DEFAULT))
    own, theirs = cell.Options.model_fields, task.Options.model_fields
    _require_read(values, {*COMMON, *own, *theirs, *lenient}, where)
    parts = {
        "cell_options": validate(cell.Options, _some(values, own), where),
        "task_options": validate(task.Options, _some(values, theirs), where),
    }
    return validate(RunParameters, _some(values, COMMON) | parts, where)


def _readers() -> dict[str, list[str]]:
    """The cells and tasks that have an option of each name."""
    readers: dict[str, list[str]] = {}
    entries: list[tuple[str, Any]] = [*CELLS.items(), *TASKS.items()]
    for name, entry in entries:
        for key in entry.Options.model_fields:
            readers.setdefault(key, []).append(name)
    return readers


def _require_read(values: Iterable[str], read: Collection[str], where: str) -> None:
    """Refuse the first key that is not in `read`: as unknown, or with those that would read it."""
    readers = _readers()
    for key in values:
        if key not in read and key in readers:
            raise UserError(
                f"{where}: {key} is an option of {', '.join(readers[key])}, and nothing here reads "
                "it; leave it out."
            )
        if key not in read:
            raise UserError(f"{where}: {unknown(key, [*sorted(read), *readers])}")


class _Sweep(Frozen):
    """What a parameter file says beside a run's parameters.

    A variant is a named set of values laid over the file's own. The seeds are `seed`, `seed + 1`,
    ..., `seed + runs - 1`; a variant with fewer `runs` has the first of them alone. `quick` holds
    what the quick form has instead. `note` is shown with the results; `stand_in` says that other
    data stand in for those asked for.
    """

    models: list[str] = []
    runs: Annotated[Integer, Field(ge=1, le=10_000)] = 1
    variants: dict[Name, dict[str, Any]] = {}
    quick: dict[str, Any] = {}
    note: str = ""
    stand_in: bool = False


@dataclass(frozen=True)
class Protocol:
    """A sweep: variants, which are parameterisations of cells on tasks, and seeds.

    Attributes:
        parameterisations: The parameters of each variant, by its name, at the first seed.
        runs: The number of seeds of each variant, from the first on.
        note: What the report says at its top, such as that other data stand in.
        stand_in: Whether other data stand in, so that the report can give no verdict.
        short: The values of the quick form, laid over those of every variant that reads them.
    """

    parameterisations: dict[str, RunParameters]
    runs: dict[str, int]
    note: str = ""
    stand_in: bool = False
    short: dict[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the sweep, in order."""
        first = next(iter(self.parameterisations.values())).seed
        return list(range(first, first + max(self.runs.values())))

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds of one variant, in order."""
        return self.seeds[: self.runs[variant]]

    def at(self, seed: int) -> list[RunParameters]:
        """The parameters of each variant that has this seed."""
        return [
            parameters.model_copy(update={"seed": seed})
            for name, parameters in self.parameterisations.items()
            if seed in self.seeds_of(name)
        ]

    def quick(self) -> "Protocol":
        """The quick form: `short`, and at most `QUICK_EPOCHS` epochs, in every variant."""
        variants = {}
        for name, own in self.parameterisations.items():
            flat = own.flat()
            short = run_parameters(flat | _some(self.short, flat), "quick")
            epochs = min(short.epochs, QUICK_EPOCHS)
            variants[name] = short.model_copy(update={"epochs": epochs})
        return replace(self, parameterisations=variants, short={})

    def resolved(self, download: bool = True) -> "Protocol":
        """This protocol with what the tasks of its variants settle on this machine, and the note.

        Missing data are downloaded if `download` is true.

        Raises:
            UserError: The data of a task are not there and cannot be had.
        """
        variants, notes, stand_in = {}, [self.note], self.stand_in
        for name, own in self.parameterisations.items():
            settled, note = TASKS[own.task](own.task_options).resolve(download)
            variants[name] = own.changed(**settled)
            notes.append(note)
            stand_in |= bool(note and settled)
        note = "; ".join(note for note in dict.fromkeys(notes) if note)
        return replace(self, parameterisations=variants, note=note, stand_in=stand_in)

    def dump(self) -> dict[str, Any]:
        """All values, as a parameter file holds them: what variants share comes first."""
        flat = {name: own.flat() for name, own in self.parameterisations.items()}
        keys = {key: None for own in flat.values() for key in own if key != "variant"}
        values = {key: [own[key] for own in flat.values() if key in own] for key in keys}
        shared = {key: each[0] for key, each in values.items() if all(v == each[0] for v in each)}
        variants = {
            name: {key: own[key] for key in keys if key in own and key not in shared}
            | ({"runs": self.runs[name]} if self.runs[name] < len(self.seeds) else {})
            for name, own in flat.items()
        }
        models = list(dict.fromkeys(own["model"] for own in flat.values()))
        sweep = {"models": models, "runs": len(self.seeds), "variants": variants}
        others = {"note": self.note, "stand_in": self.stand_in, "quick": self.short}
        return shared | sweep | {key: value for key, value in others.items() if value}


def _protocol(values: Mapping[str, Any], where: str, lenient: Collection[str] = ()) -> Protocol:
    """Check a whole file's values; nobody needs to read the options that are in `lenient`."""
    sweep = validate(_Sweep, _some(values, _Sweep.model_fields), where)
    rest = _some(values, set(values) - set(_Sweep.model_fields))
    layers = [rest, *sweep.variants.values()]
    named = [layer.get("model", "module" if "module" in layer else None) for layer in layers]
    models = list(dict.fromkeys(sweep.models or [name for name in named if name is not None]))
    if not models:
        raise UserError(f"{where}: models is missing; name some of {', '.join(CELLS)}.")
    for name in models:
        lookup({**CELLS, **sweep.variants}, f"{where}: models", name)
    common = validate(RunParameters, {"model": models[0]} | _some(rest, COMMON), where)
    if common.seed + sweep.runs > SEEDS:
        raise UserError(f"{where}: seed: the last seed would be above {SEEDS - 1}; lower it.")
    alone = len(models) == 1 and models[0] in CELLS
    cell = common.model if alone else rest.get("model")  # None: each variant has to say which
    variants, runs = {}, {}
    for name, own in _taking_part(models, sweep.variants, cell).items():
        place = f"{where}: variant {name!r}"
        if "seed" in own or "variant" in own:
            raise UserError(f"{place}: a variant cannot set 'seed' or 'variant'; leave it out.")
        count = validate(_Sweep, {"runs": own.pop("runs", sweep.runs)}, place).runs
        if count > sweep.runs:
            raise UserError(f"{place}: runs: {count} are more than the protocol's {sweep.runs}.")
        runs[name] = count
        whole = {**rest, **own, "variant": name}
        variants[name] = run_parameters(whole, place, set(rest) - set(own))
    if not variants:
        raise UserError(
            f"{where}: models: none of the variants uses {' or '.join(models)}; name a model that "
            "one of them uses."
        )
    _refuse_alike(variants, where)
    read = {key for own in variants.values() for key in own.flat()}
    _require_read(sweep.quick, read - {"variant"}, f"{where}: quick")
    _require_read(rest, {*read, *(set(lenient) & set(_readers())), *_Sweep.model_fields}, where)
    protocol = Protocol(variants, runs, sweep.note, sweep.stand_in, sweep.quick)
    try:
        protocol.quick()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return protocol


def _taking_part(
    models: list[str], variants: Mapping[str, Mapping[str, Any]], cell: str | None
) -> dict[str, dict[str, Any]]:
    """The values of each variant that takes part, with its model.

    A variant takes part if `models` has its cell or its own name. A cell in `models` takes part by
    itself if there are no variants, or if it stands beside the names of variants and none uses it.
    A variant that names no model has the cell `cell`.
    """
    whole = {
        name: {"model": "module" if "module" in own else cell, **own}
        for name, own in variants.items()
    }
    if not whole or set(models) - set(CELLS):
        used = {own["model"] for own in whole.values()}
        alone = {name: {"model": name} for name in models if name in CELLS and name not in used}
        whole = alone | whole
    return {
        name: own
        for name, own in whole.items()
        if own["model"] in (None, *models) or name in models
    }


def _refuse_alike(variants: Mapping[str, RunParameters], where: str) -> None:
    """Refuse names that are equal, or look equal in figures, but for case or punctuation."""
    seen: dict[str, str] = {}
    for name, label in labels({name: CELLS[own.model] for name, own in variants.items()}).items():
        plain = re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", label.casefold())
        if plain in seen:
            raise UserError(
                f"{where}: variants: {seen[plain]!r} and {name!r} differ in case or punctuation "
                "alone; rename one."
            )
        seen[plain] = name


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Return the values of a parameter file after those of its `base`, in the same folder.

    Raises:
        UserError: A file cannot be read, is empty or no mapping, or is among its own bases.
    """
    if path in above:
        raise UserError(f"{path}: its base leads back to itself; leave the base of one file out.")
    names = ", ".join(sorted(file.stem for file in PROJECT.glob("params/*.yaml")))
    values = read_yaml(path, f"name a parameter file, such as {names}")
    base = values.pop("base", None)
    below = path.parent / f"{base}.yaml"
    if base is not None and not below.exists():
        raise UserError(
            f"{path}: base: {below} is not there; name a file beside it, without .yaml."
        )
    return [*(_layers(below, (*above, path)) if base is not None else []), values]


def parameter_file(name: Path | str) -> Path:
    """Find a parameter file by its path, or by its name alone in the project's params/."""
    path = Path(name)
    ours = PROJECT / "params" / f"{path.name.removesuffix('.yaml')}.yaml"
    return ours if not path.is_file() and path.name == str(name) and ours.exists() else path


def load_protocol(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Load the protocol in a parameter file, with `overrides` laid over it.

    Options that the file inherits from its base, and those of the file beside overrides, need not
    be read by anybody: a protocol of one cell may have a base that gives another's options.

    Raises:
        UserError: The file cannot be read or is empty, or a key or value in it is wrong.
    """
    path = parameter_file(path)
    *below, own = _layers(path)
    values = {key: value for layer in (*below, own) for key, value in layer.items()}
    protocol = _protocol(values, str(path), set(values) - set(own))
    if not overrides:
        return protocol
    values = {**values, **overrides}
    if isinstance(fewer := overrides.get("runs"), int):  # of which no variant has more
        values["variants"] = {
            name: own | ({"runs": min(own["runs"], fewer)} if "runs" in own else {})
            for name, own in values.get("variants", {}).items()
        }
    return _protocol(values, "the options", set(values) - set(overrides))


def recorded_protocol(path: Path) -> Protocol:
    """Load a report's protocol.yaml, in which options may stand that nobody reads."""
    values = read_yaml(path, "make the report again")
    return _protocol(values, str(path), values)


def notebook_parameters(namespace: Mapping[str, Any]) -> RunParameters:
    """Check the parameters of a notebook, given its `globals()`.

    Names that papermill injected count too, so one that nobody reads is refused here; papermill
    only warns.

    Raises:
        UserError: A key or a value is wrong.
    """
    cells = [cell for cell in namespace.get("In", ()) if cell.startswith("# Parameters\n")]
    injected = re.findall(r"^(\w+) = ", "".join(cells), re.MULTILINE)
    names = {*COMMON, "options", *injected} - {"output_dir"}
    return run_parameters({key: namespace[key] for key in names}, "the notebook's parameters")
