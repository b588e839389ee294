"""Parameters of runs and of sweeps over them, from YAML files, options or a notebook.

The keys are flat: the common keys, and the options of the run's cell and task. A key that the run
does not use is an error.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rnnbench_nb.cells import CELLS
from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.files import SOURCES
from rnnbench_nb.looks import labels
from rnnbench_nb.parameters import (
    Fraction,
    Frozen,
    Name,
    NotNegative,
    Positive,
    Schedule,
    Size,
    read_yaml,
    unknown,
    validate,
)
from rnnbench_nb.search import Search
from rnnbench_nb.tasks import DEFAULT, TASKS

QUICK_EPOCHS = 5
SEEDS = 2**32  # every seed is below it
LEGACY = {"start": "common", "biases": True}  # options of old records; now always so


class RunParameters(Frozen):
    """Everything that one run depends on; params/row_mnist.yaml says what each key means.

    `variant` names the parameterisation. `cell_options` and `task_options` are instances of the
    `Options` of the cell and the task. Xavier's rule is that of Glorot and Bengio (2010), and
    `precision` is the argument of `torch.set_float32_matmul_precision`.
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
    plateau_patience: Annotated[int, Field(ge=0)] = 5
    plateau_minimum: NotNegative = 0.0
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
    test: bool = True
    task: str = DEFAULT
    variant: Name | None = None
    cell_options: Frozen = Frozen()
    task_options: Frozen = Frozen()

    @property
    def name(self) -> str:
        """The variant's name; without one, the model's."""
        return self.variant or self.model

    @property
    def run(self) -> str:
        """The name of the run and of its folder, such as `gru-seed42`."""
        return f"{self.name}-seed{self.seed}"

    @property
    def group(self) -> str:
        """What a run is scored on, as text: only variants of one group are compared."""
        part = [] if self.test else ["validation"]
        return json.dumps([self.task, *self.task_options.model_dump().values(), *part])

    def for_notebook(self) -> dict[str, Any]:
        """Return the values as 02_train takes them: common keys, and all others in `options`."""
        options = self.task_options.model_dump() | self.cell_options.model_dump()
        return self.model_dump(include=COMMON) | {"options": options}

    def flat(self) -> dict[str, Any]:
        """Return all values by flat keys, as in parameter files and records."""
        values = self.for_notebook()
        return values | values.pop("options")

    def replace(self, **values: Any) -> "RunParameters":
        """Return these parameters with some values replaced, by flat keys."""
        return run_parameters({**self.flat(), **values}, self.run)

    def same_as(self, other: "RunParameters") -> bool:
        """Whether two runs have equal parameters, apart from the name of the variant."""
        return self.flat() | {"variant": None} == other.flat() | {"variant": None}


COMMON = {key for key in RunParameters.model_fields if not key.endswith("_options")}


def _some(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def run_parameters(
    values: Mapping[str, Any], where: str, lenient: Collection[str] = ()
) -> RunParameters:
    """Check the parameters of a run, with flat keys or in the form of `for_notebook`.

    Options in `lenient` may be unused. `where` names the source of the values in errors.

    Raises:
        UserError: A key is unknown or unused, or its value is wrong.
    """
    values = dict(values)
    options = values.pop("options", {})
    if not isinstance(options, dict):
        raise UserError(f"{where}: options: must hold KEY: VALUE pairs, but {options!r} is given.")
    values |= options
    values = {key: value for key, value in values.items() if (key, value) not in LEGACY.items()}
    cell = lookup(CELLS, f"{where}: model", values.get("model"))
    task = lookup(TASKS, f"{where}: task", values.get("task", DEFAULT))
    own, theirs = cell.Options.model_fields, task.Options.model_fields
    _require_read(values, {*COMMON, *own, *theirs}, where, lenient)
    parts = {
        "cell_options": validate(cell.Options, _some(values, own), where),
        "task_options": validate(task.Options, _some(values, theirs), where),
    }
    return validate(RunParameters, _some(values, COMMON) | parts, where)


def _require_read(
    values: Iterable[str], read: Collection[str], where: str, lenient: Collection[str] = ()
) -> None:
    """Raise a UserError on the first key that is not in `read`, unless it is in `lenient`."""
    entries: dict[str, Any] = {**CELLS, **TASKS}
    options = {name: entry.Options.model_fields for name, entry in entries.items()}
    for key in (key for key in values if key not in read):
        readers = ", ".join(name for name, own in options.items() if key in own)
        if not readers:
            raise UserError(f"{where}: {unknown(key, [*read, *chain(*options.values())])}")
        if key not in lenient:
            fault = f"is an option of {readers} and has no effect here"
            raise UserError(f"{where}: {key} {fault}; leave it out.")


class _Sweep(Frozen):
    """The keys of a parameter file that are not parameters of a run.

    A variant is a named set of values that replace the file's own, such as its `runs`. `quick` has
    the values of the quick form. `primary` has pairs [a, b] of variants, the comparisons for which
    a study is made. Differences within `margin` count as equivalent.
    """

    models: list[str] = []
    runs: Annotated[int, Field(ge=1, le=10_000)] = 1
    variants: dict[Name, dict[str, Any]] = {}
    quick: dict[str, Any] = {}
    note: str = ""
    stand_in: bool = False
    search: Search | None = None
    primary: list[Annotated[list[Name], Field(min_length=2, max_length=2)]] = []
    margin: Positive | None = None


@dataclass(frozen=True)
class Protocol:
    """A sweep: for each variant its parameters at the first seed, and its number of seeds.

    The report shows `note` at its top. It gives no verdict if `stand_in` is true, that is, if other
    data replace those of the protocol. `short` has the values of the quick form. `primary` and
    `margin` declare comparisons, which `statistics.primary_family` judges; no report changes by
    them, and `dump` leaves them out.
    """

    parameterisations: dict[str, RunParameters]
    runs: dict[str, int]
    note: str = ""
    stand_in: bool = False
    short: dict[str, Any] = field(default_factory=dict)
    primary: list[list[str]] = field(default_factory=list, compare=False)
    margin: float | None = field(default=None, compare=False)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the sweep, in order."""
        return sorted({seed for variant in self.runs for seed in self.seeds_of(variant)})

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds of one variant, in order."""
        first = self.parameterisations[variant].seed
        return list(range(first, first + self.runs[variant]))

    def at(self, seed: int) -> list[RunParameters]:
        """The parameters of each variant that has this seed."""
        return [
            parameters.model_copy(update={"seed": seed})
            for name, parameters in self.parameterisations.items()
            if seed in self.seeds_of(name)
        ]

    def quick(self, where: str = "quick") -> "Protocol":
        """Return the quick form: the values `short` and at most `QUICK_EPOCHS` epochs."""
        variants = {}
        for name, own in self.parameterisations.items():
            short = run_parameters(own.flat() | _some(self.short, own.flat()), where)
            variants[name] = short.model_copy(update={"epochs": min(short.epochs, QUICK_EPOCHS)})
        return replace(self, parameterisations=variants, short={})

    def resolve(self) -> "Protocol":
        """Fetch the data, and return this protocol with what `Task.resolve` changed and noted."""
        variants, notes, stand_in = {}, [self.note], self.stand_in
        for name, own in self.parameterisations.items():
            changes, note = TASKS[own.task](own.task_options).resolve()
            variants[name] = own.replace(**changes)
            notes.append(note)
            stand_in |= bool(note)
        note = "; ".join(filter(None, dict.fromkeys(notes)))
        return replace(self, parameterisations=variants, note=note, stand_in=stand_in)

    def dump(self) -> dict[str, Any]:
        """Return all values in the form of a parameter file; shared values come first."""
        flat = {name: own.flat() for name, own in self.parameterisations.items()}
        values = {key: value for own in flat.values() for key, value in own.items()}
        del values["variant"]
        shared = {
            key: value
            for key, value in values.items()
            if all(own.get(key, value) == value for own in flat.values())
        }
        variants = {name: _some(own, set(values) - set(shared)) for name, own in flat.items()}
        most = max(self.runs.values())
        for name, own in variants.items():
            own |= {"runs": self.runs[name]} if self.runs[name] < most else {}
        models = list(dict.fromkeys(own["model"] for own in flat.values()))
        sweep = {"models": models, "runs": most, "variants": variants}
        others = {"note": self.note, "stand_in": self.stand_in, "quick": self.short}
        return shared | sweep | {key: value for key, value in others.items() if value}


def _protocol(
    values: Mapping[str, Any], where: str, lenient: Collection[str], cap_runs: bool = False
) -> Protocol:
    """Check the values of a file; `cap_runs` limits every variant to `runs` seeds."""
    sweep = validate(_Sweep, _some(values, _Sweep.model_fields), where)
    rest = _some(values, set(values) - set(_Sweep.model_fields))
    layers = [rest, *sweep.variants.values()]
    named = [layer.get("model") or ("module" if "module" in layer else "") for layer in layers]
    models = list(dict.fromkeys(sweep.models or [str(name) for name in named if name]))
    if not models:
        raise UserError(f"{where}: models is missing; name some of {', '.join(CELLS)}.")
    for name in models:
        lookup({**CELLS, **sweep.variants}, f"{where}: models", name)
    alone = len(models) == 1 and models[0] in CELLS
    cell = models[0] if alone else rest.get("model")  # None if each variant names its own
    _require_read(rest, COMMON, where, rest)  # an unknown key is no variant's fault
    variants, runs = {}, {}
    participants = _participants(models, sweep.variants, cell)
    if sweep.search:
        options = {name: CELLS[own["model"]].Options for name, own in participants.items()}
        common = {key: RunParameters.model_fields[key].annotation for key in COMMON}
        participants = sweep.search.variants(participants, options, common, sweep.variants, where)
    for name, own in participants.items():
        place = f"{where}: variant {name!r}" if name in sweep.variants else where
        if "variant" in own:
            raise UserError(f"{place}: a variant cannot set variant; leave it out.")
        count = validate(_Sweep, {"runs": own.pop("runs", sweep.runs)}, place).runs
        runs[name] = min(count, sweep.runs) if cap_runs else count
        whole = {**rest, **own, "variant": name}
        variants[name] = run_parameters(whole, place, set(rest) - set(own))
        if variants[name].seed + runs[name] > SEEDS:
            raise UserError(f"{where}: seed: the last seed would be above {SEEDS - 1}; lower it.")
    if not variants:
        used = " or ".join(models)
        raise UserError(f"{where}: models: no variant uses {used}; name one that a variant uses.")
    _refuse_alike(variants, where)
    read = {key for own in variants.values() for key in own.flat()}
    _require_read(sweep.quick, read - {"variant"}, f"{where}: quick")
    _require_read(rest, read, where, lenient)
    for name in chain(*sweep.primary):
        lookup(sweep.variants, f"{where}: primary", name)
    others = sweep.note, sweep.stand_in, sweep.quick, sweep.primary, sweep.margin
    protocol = Protocol(variants, runs, *others)
    protocol.quick(f"{where}: quick")
    return protocol


def _participants(
    models: list[str], variants: Mapping[str, Mapping[str, Any]], cell: str | None
) -> dict[str, dict[str, Any]]:
    """The values of each variant that takes part, with its model, which is `cell` by default.

    A variant takes part if `models` has its cell or its name. A cell in `models` takes part without
    a variant if there are no variants, or if `models` also names variants and none uses the cell.
    """
    whole = {
        name: {"model": "module" if "module" in own else cell, **own}
        for name, own in variants.items()
    }
    if not whole or set(models) - set(CELLS):
        used = [own["model"] for own in whole.values()]
        alone = {name: {"model": name} for name in models if name in CELLS and name not in used}
        whole = alone | whole
    selection = (None, *models)
    return {name: own for name, own in whole.items() if own["model"] in selection or name in models}


def _refuse_alike(variants: Mapping[str, RunParameters], where: str) -> None:
    """Refuse folder names or labels that differ only in case or punctuation."""
    seen: set[str] = set()
    for name, label in labels({name: CELLS[own.model] for name, own in variants.items()}).items():
        forms = {
            re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", text.casefold()) for text in (name, label)
        }
        if seen & forms:
            raise UserError(f"{where}: variants: {name!r} is too similar to another; rename it.")
        seen |= forms


def _resolve(path: Path) -> Path:
    """Return the file with this path, or else the one with its name in the project's params/."""
    ours = SOURCES / "params" / f"{path.name.removesuffix('.yaml')}.yaml"
    return path if path.is_file() or not ours.exists() else ours


def _layers(path: Path, remedy: str, parents: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Read a parameter file and its `base`, from its folder or params/; the base comes first."""
    if path in parents:
        raise UserError(f"{path}: its base leads back to it; remove the base of one file.")
    values = read_yaml(path, remedy)
    base = values.pop("base", None)
    if base is None:
        return [values]
    remedy = f"the base of {path} must be the name, without .yaml, of a file beside it"
    return [*_layers(_resolve(path.parent / f"{base}.yaml"), remedy, (*parents, path)), values]


def load_protocol(name: Path | str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Load the protocol in a parameter file; `overrides` replace its values.

    A file in the project's params/ needs no folder and no ending. Options of its base may be
    unused, and so may options of the file if there are overrides.

    Raises:
        UserError: The file cannot be read or is empty, or a key or value in it is wrong.
    """
    path = Path(name)
    path = _resolve(path) if path.name == str(name) else path
    *below, own = _layers(path, "name a parameter file, such as params/quick.yaml")
    values = {key: value for layer in (*below, own) for key, value in layer.items()}
    protocol = _protocol(values, str(path), set(values) - set(own))
    if not overrides:
        return protocol
    lenient = set(values) - set(overrides)
    return _protocol({**values, **overrides}, "the options", lenient, "runs" in overrides)
