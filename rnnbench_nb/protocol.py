"""Parameters of runs and of sweeps over them, from YAML files, options or a notebook.

The keys are flat: the common ones, and the options of the run's cell and task. A key that a run
does not read is refused.
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
from rnnbench_nb.tasks import DEFAULT, TASKS

QUICK_EPOCHS = 5
SEEDS = 2**32  # seeds are below it
RETIRED = {"start": "common", "biases": True}  # options in old records, which meant what is now
NO_GPU = "device: 'cuda' is asked for but no GPU is found; use 'auto' or 'cpu'."


class RunParameters(Frozen):
    """Everything that one run depends on; params/row_mnist.yaml says what each key means.

    `variant` names the parameterisation; `cell_options` and `task_options` are instances of the
    `Options` of its cell and its task. Matrices start uniform on +-1/sqrt(H), or as Xavier has it
    (Glorot and Bengio 2010). `precision` is that of `torch.set_float32_matmul_precision`.
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
        """The name of the run and of its folder, as in `x-seed42`."""
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
        """All values by flat keys, as parameter files and records hold them."""
        values = self.grouped()
        return values | values.pop("options")

    def changed(self, **values: Any) -> "RunParameters":
        """These parameters with other values, given by flat keys."""
        return run_parameters({**self.flat(), **values}, self.run)

    def same_as(self, other: "RunParameters") -> bool:
        """Whether two runs are alike in all but the variant's name."""
        return self.flat() | {"variant": None} == other.flat() | {"variant": None}


COMMON = {key for key in RunParameters.model_fields if not key.endswith("_options")}


def _some(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def run_parameters(
    values: Mapping[str, Any], where: str, lenient: Collection[str] = ()
) -> RunParameters:
    """Check the parameters of a run, by flat keys or as `RunParameters.grouped` gives them.

    Raises:
        UserError: A key is unknown, or wrong, or an option that is not in `lenient` and that
            neither the cell nor the task reads; `where` names the source of the values.
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
    _require_read(values, {*COMMON, *own, *theirs}, where, lenient)
    parts = {
        "cell_options": validate(cell.Options, _some(values, own), where),
        "task_options": validate(task.Options, _some(values, theirs), where),
    }
    return validate(RunParameters, _some(values, COMMON) | parts, where)


def _require_read(
    values: Iterable[str], read: Collection[str], where: str, lenient: Collection[str] = ()
) -> None:
    """Refuse the first key that is not in `read`, unless it is an option in `lenient`."""
    entries: dict[str, Any] = {**CELLS, **TASKS}
    options = {name: entry.Options.model_fields for name, entry in entries.items()}
    for key in (key for key in values if key not in read):
        readers = ", ".join(name for name, own in options.items() if key in own)
        if not readers:
            raise UserError(f"{where}: {unknown(key, [*read, *chain(*options.values())])}")
        if key not in lenient:
            fault = f"is an option of {readers}, and nothing here reads it"
            raise UserError(f"{where}: {key} {fault}; leave it out.")


class _Sweep(Frozen):
    """What a parameter file says beside a run's parameters.

    A variant is a named set of values laid over the file's own, `runs` among them; `quick` holds
    what the quick form has instead.
    """

    models: list[str] = []
    runs: Annotated[int, Field(ge=1, le=10_000)] = 1
    variants: dict[Name, dict[str, Any]] = {}
    quick: dict[str, Any] = {}
    note: str = ""
    stand_in: bool = False


@dataclass(frozen=True)
class Protocol:
    """A sweep: for each variant its parameters at the first seed, and its number of seeds.

    `note` stands at the top of the report, which gives no verdict if other data `stand_in`. `short`
    holds the values of the quick form, for every variant that reads them.
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

    def quick(self, where: str = "quick") -> "Protocol":
        """The quick form: `short`, and at most `QUICK_EPOCHS` epochs, in every variant."""
        variants = {}
        for name, own in self.parameterisations.items():
            short = run_parameters(own.flat() | _some(self.short, own.flat()), where)
            variants[name] = short.model_copy(update={"epochs": min(short.epochs, QUICK_EPOCHS)})
        return replace(self, parameterisations=variants, short={})

    def resolved(self) -> "Protocol":
        """This protocol with what `Task.resolve` settles on this machine, and its notes."""
        variants, notes, stand_in = {}, [self.note], self.stand_in
        for name, own in self.parameterisations.items():
            settled, note = TASKS[own.task](own.task_options).resolve()
            variants[name] = own.changed(**settled)
            notes.append(note)
            stand_in |= bool(note)
        note = "; ".join(filter(None, dict.fromkeys(notes)))
        return replace(self, parameterisations=variants, note=note, stand_in=stand_in)

    def dump(self) -> dict[str, Any]:
        """All values, as a parameter file holds them: what variants share comes first."""
        flat = {name: own.flat() for name, own in self.parameterisations.items()}
        values = {key: value for own in flat.values() for key, value in own.items()}
        del values["variant"]
        shared = {
            key: value
            for key, value in values.items()
            if all(own.get(key, value) == value for own in flat.values())
        }
        variants = {name: _some(own, set(values) - set(shared)) for name, own in flat.items()}
        for name, own in variants.items():
            own |= {"runs": self.runs[name]} if self.runs[name] < len(self.seeds) else {}
        models = list(dict.fromkeys(own["model"] for own in flat.values()))
        sweep = {"models": models, "runs": len(self.seeds), "variants": variants}
        others = {"note": self.note, "stand_in": self.stand_in, "quick": self.short}
        return shared | sweep | {key: value for key, value in others.items() if value}


def _protocol(
    values: Mapping[str, Any], where: str, lenient: Collection[str], capped: bool = False
) -> Protocol:
    """Check a file's values; if `capped`, no variant has more seeds than `runs` says."""
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
    cell = models[0] if alone else rest.get("model")  # None: each variant has to say which
    _require_read(rest, COMMON, where, rest)  # what is unknown to all is no variant's fault
    variants, runs = {}, {}
    for name, own in _taking_part(models, sweep.variants, cell).items():
        place = f"{where}: variant {name!r}" if name in sweep.variants else where
        if "seed" in own or "variant" in own:
            raise UserError(f"{place}: a variant cannot set 'seed' or 'variant'; leave it out.")
        count = validate(_Sweep, {"runs": own.pop("runs", sweep.runs)}, place).runs
        runs[name] = min(count, sweep.runs) if capped else count
        whole = {**rest, **own, "variant": name}
        variants[name] = run_parameters(whole, place, set(rest) - set(own))
        if variants[name].seed + runs[name] > SEEDS:
            raise UserError(f"{where}: seed: the last seed would be above {SEEDS - 1}; lower it.")
    if not variants:
        used = " or ".join(models)
        raise UserError(f"{where}: models: no variant uses {used}; name a model that one uses.")
    _refuse_alike(variants, where)
    read = {key for own in variants.values() for key in own.flat()}
    _require_read(sweep.quick, read - {"variant"}, f"{where}: quick")
    _require_read(rest, read, where, lenient)
    protocol = Protocol(variants, runs, sweep.note, sweep.stand_in, sweep.quick)
    protocol.quick(f"{where}: quick")
    return protocol


def _taking_part(
    models: list[str], variants: Mapping[str, Mapping[str, Any]], cell: str | None
) -> dict[str, dict[str, Any]]:
    """The values of each variant that takes part, with its model, which is `cell` by default.

    A variant takes part if `models` has its cell or its own name. A cell in `models` takes part by
    itself if there are no variants, or if it stands beside the names of variants and none uses it.
    """
    whole = {
        name: {"model": "module" if "module" in own else cell, **own}
        for name, own in variants.items()
    }
    if not whole or set(models) - set(CELLS):
        used = [own["model"] for own in whole.values()]
        alone = {name: {"model": name} for name in models if name in CELLS and name not in used}
        whole = alone | whole
    chosen = (None, *models)
    return {name: own for name, own in whole.items() if own["model"] in chosen or name in models}


def _refuse_alike(variants: Mapping[str, RunParameters], where: str) -> None:
    """Refuse names of folders, or labels in figures, that are equal but for case or punctuation."""
    seen: set[str] = set()
    for name, label in labels({name: CELLS[own.model] for name, own in variants.items()}).items():
        forms = {
            re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", text.casefold()) for text in (name, label)
        }
        if seen & forms:
            raise UserError(f"{where}: variants: {name!r} looks like another; rename it.")
        seen |= forms


def _found(path: Path) -> Path:
    """The file of this name, or else the project's own."""
    ours = SOURCES / "params" / f"{path.name.removesuffix('.yaml')}.yaml"
    return path if path.is_file() or not ours.exists() else ours


def _layers(path: Path, remedy: str, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Return the values of a parameter file after those of its `base`, beside it or in params/."""
    if path in above:
        raise UserError(f"{path}: its base leads back to itself; leave the base of one file out.")
    values = read_yaml(path, remedy)
    base = values.pop("base", None)
    if base is None:
        return [values]
    remedy = f"the base of {path} must be the name, without .yaml, of a file beside it"
    return [*_layers(_found(path.parent / f"{base}.yaml"), remedy, (*above, path)), values]


def load_protocol(name: Path | str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Load the protocol in a parameter file, with `overrides` laid over it.

    The file may be named alone if it is in the project's params/. Nobody needs to read the options
    of its base, nor those of the file beside overrides.

    Raises:
        UserError: The file cannot be read or is empty, or a key or value in it is wrong.
    """
    path = Path(name)
    path = _found(path) if path.name == str(name) else path
    *below, own = _layers(path, "name a parameter file, such as params/quick.yaml")
    values = {key: value for layer in (*below, own) for key, value in layer.items()}
    protocol = _protocol(values, str(path), set(values) - set(own))
    if not overrides:
        return protocol
    lenient = set(values) - set(overrides)
    return _protocol({**values, **overrides}, "the options", lenient, "runs" in overrides)
