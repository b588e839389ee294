"""Parameters: one frozen, validated class a concern, from YAML files, options or notebooks.

The keys are flat, so that one vocabulary serves parameter files, `--set KEY=VALUE`, papermill's
`-p KEY VALUE` and the parameters cell of a notebook.
"""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rnnbench_nb.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
QUICK_EPOCHS = 5

Size = Annotated[int, Field(ge=1, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^\w[\w.+=-]{0,63}$")]


class Frozen(BaseModel):
    """Unknown keys, wrong types and impossible values are refused; nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DataParameters(Frozen):
    """Which images, and how they are read as a sequence."""

    dataset: str = "mnist"
    offline_fallback: Literal["digits"] | None = None
    reading: str = "row"


class ModelParameters(Frozen):
    """The cell and its size; gamma and all below it are the A-GRU's."""

    model: str = "agru"
    hidden_size: Size = 128
    num_layers: Size = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gamma: Finite = 0.01
    epsilon: Positive = 1.0
    learnable_epsilon: bool = True
    recurrence: Literal["antisymmetric", "frozen", "free"] = "antisymmetric"
    initial_scale: NotNegative = 1.0


class OptimiserParameters(Frozen):
    """The optimiser and its schedule; clip_norm bounds the norm of the whole gradient."""

    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive | None = 1.0
    schedule: Literal["plateau", "cosine", "none"] = "plateau"
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Annotated[int, Field(ge=0)] = 5


class TrainingParameters(Frozen):
    """The budget: patience counts epochs without a fall of min_delta in the validation loss."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    epochs: Size = 50
    batch_size: Size = 128
    patience: Size | None = 10
    min_delta: NotNegative = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class RunParameters(TrainingParameters, OptimiserParameters, ModelParameters, DataParameters):
    """Everything one run depends on: one variant, one seed."""

    variant: Name | None = None

    @property
    def name(self) -> str:
        """The variant's name; without a sweep it is the model's."""
        return self.variant or self.model

    @property
    def run(self) -> str:
        """The name of the run and of its folder, such as `agru-seed42`."""
        return f"{self.name}-seed{self.seed}"


class Protocol(RunParameters):
    """What a parameter file says: a run's parameters, and the sweep over models and seeds.

    A variant is a named set of values laid over the file's own. The seeds are `seed`,
    `seed + 1`, ..., `seed + runs - 1`.
    """

    models: Annotated[list[str], Field(min_length=1)] = ["lstm", "gru", "agru"]
    runs: Annotated[int, Field(ge=1, le=10_000)] = 1
    variants: dict[Name, dict[str, Any]] = {}

    @field_validator("models")
    @classmethod
    def _named_once(cls, models: list[str]) -> list[str]:
        twice = sorted({model for model in models if models.count(model) > 1})
        if twice:
            raise ValueError(f"names {twice[0]!r} twice; name each model once")
        return models

    @property
    def seeds(self) -> list[int]:
        """The seeds of the sweep, in order."""
        return list(range(self.seed, self.seed + self.runs))

    def quick(self) -> "Protocol":
        """This protocol with at most `QUICK_EPOCHS` epochs in every variant."""
        variants = {
            name: {**values, "epochs": min(values.get("epochs", self.epochs), QUICK_EPOCHS)}
            for name, values in self.variants.items()
        }
        epochs = min(self.epochs, QUICK_EPOCHS)
        return self.model_copy(update={"epochs": epochs, "variants": variants})

    def parameterisations(self) -> dict[str, RunParameters]:
        """The parameters of each variant whose model takes part, by name, at the first seed.

        Raises:
            UserError: A variant has an unknown key or an impossible value, or none is left.
        """
        base = self.model_dump(include=set(RunParameters.model_fields))
        named = self.variants or {model: {"model": model} for model in self.models}
        found = {}
        for name, values in named.items():
            where = f"variant {name!r}"
            if "seed" in values or "variant" in values:
                raise UserError(f"{where}: a variant cannot set 'seed' or 'variant'; leave it out.")
            parameters = validate(RunParameters, {**base, **values, "variant": name}, where)
            if parameters.model in self.models:
                found[name] = parameters
        if not found:
            raise UserError(
                f"models: none of the variants uses {' or '.join(self.models)}; name a model that "
                f"one of them uses."
            )
        return found


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as papermill reads it, except that a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise UserError(f"key {key!r} is given twice; give it once.")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The value that a piece of YAML stands for; `where` names it in an error.

    Raises:
        UserError: The text is no YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{where}: this is not valid YAML{line}; write KEY: VALUE lines."
        ) from error


def validate(kind: type[Frozen], values: Mapping[str, Any], where: str) -> Any:
    """An instance of `kind` with these values.

    Raises:
        UserError: One sentence on the first key that is wrong.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error.errors()[0], kind)}") from error


def _sentence(error: dict, kind: type[Frozen]) -> str:
    """What is wrong with a key, and what would be right."""
    key = ".".join(str(part) for part in error["loc"])
    value = error["input"]
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.0)[0]
        return f"unknown key {key!r}; the nearest known key is {nearest!r}."
    if error["type"] in ("float_type", "int_type") and isinstance(value, str):
        try:
            return (
                f"{key}: {value!r} is text to YAML, where a number belongs; "
                f"write {_number(float(value))}."
            )
        except ValueError:
            pass
    problem = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {problem.removeprefix('value error, ')}, but {str(value)[:60]!r} is given."


def _number(value: float) -> str:
    """A number as YAML 1.1 reads it: 1.0e-03, not 1e-03."""
    return yaml.safe_dump(value).split("\n")[0] if math.isfinite(value) else "a finite number"


def load_protocol(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """The protocol in a parameter file, with `overrides` laid over it.

    Raises:
        UserError: The file is missing or empty, or a key or value in it is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"{path}: the parameter file cannot be read ({reason}); name one, such as "
            "params/quick.yaml."
        ) from error
    values = parse_yaml(text, str(path))
    if values is None:
        raise UserError(f"{path}: the parameter file is empty; copy params/quick.yaml and edit it.")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: the parameter file must hold KEY: VALUE lines, keys being names.")
    validate(Protocol, values, str(path))  # the file's own faults are told as the file's
    protocol = validate(Protocol, {**values, **(overrides or {})}, "the options")
    try:
        protocol.parameterisations()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return protocol


def to_yaml(parameters: RunParameters) -> str:
    """The parameters as a YAML file that `load_protocol` and papermill read back unchanged."""
    return yaml.safe_dump(parameters.model_dump(), sort_keys=False, allow_unicode=True)


def from_notebook(namespace: Mapping[str, Any]) -> RunParameters:
    """The parameters of a notebook, from its `globals()` right after the parameters cell.

    Every public plain value counts, so that a key that papermill injected but nobody knows
    is refused here (papermill itself only warns).

    Raises:
        UserError: A key or a value is wrong.
    """
    plain = (bool, int, float, str, list, dict, type(None))
    values = {
        key: value
        for key, value in namespace.items()
        if type(value) in plain and not key.startswith("_") and key not in ("In", "Out")
    }
    values.pop("output_dir", None)
    protocol = validate(Protocol, values, "the notebook's parameters")
    return RunParameters(**protocol.model_dump(include=set(RunParameters.model_fields)))


def project_path(path: Path | str) -> Path:
    """A path as notebooks and the command line mean it: relative to the project's folder."""
    return PROJECT / Path(path)
