"""What each variant changes, the families that are compared, and their validation scores."""

from collections.abc import Mapping

import pandas as pd

from rnnbench_nb.errors import UserError
from rnnbench_nb.experiment import RunParameters
from rnnbench_nb.report import COMPLETED
from rnnbench_nb.statistics.intervals import ACCURACY
from rnnbench_nb.tasks.base import Score

NO_CHANGE = {"seed", "device"}  # set differently, they change no model


def families(variants: Mapping[str, RunParameters], reference: str = "") -> list[list[str]]:
    """The variants that are compared with one another, each family's reference first.

    Only variants of one task with one set of its options are compared. Among these, families are
    models if every model has several variants (a search for each model's best); else all are one.
    A variant that has none to be compared with is in no family.

    Args:
        variants: Their parameters, by name.
        reference: The reference of its family; that of another family, or of all if it is empty,
            is its first variant.

    Returns:
        The names of each family.

    Raises:
        UserError: The reference is none of these variants.
    """
    if reference and reference not in variants:
        raise UserError(
            f"The reference {reference!r} has no finished run; name one of {', '.join(variants)}."
        )
    alike, found = {}, []
    for name, parameters in variants.items():
        alike.setdefault(parameters.asked, []).append(name)
    for names in alike.values():
        models = {}
        for name in names:
            models.setdefault(variants[name].model, []).append(name)
        found += models.values() if min(map(len, models.values())) > 1 else [names]
    return [sorted(family, key=lambda name: name != reference) for family in found if family[1:]]


def changes(variants: Mapping[str, RunParameters], reference: str) -> dict[str, dict]:
    """The parameters in which each other variant differs from the reference, with their values."""
    base = variants[reference].model_dump()
    found = {}
    for name, parameters in variants.items():
        if name != reference:
            own = parameters.model_dump(exclude={"variant", *NO_CHANGE})
            fields = type(parameters).model_fields  # an option that the reference lacks is at rest
            found[name] = {key: value for key, value in own.items()
                           if value != base.get(key, fields[key].default)}  # fmt: skip
    return found


def settings(values: Mapping) -> str:
    """Parameters as people read them: `gamma 0.5 and learnable_epsilon no`."""
    words = {True: "yes", False: "no", None: "none"}
    texts = [
        f"{key} {words[value] if isinstance(value, bool | None) else value}"
        for key, value in values.items()
    ]
    return " and ".join(texts)


def validation_scores(
    results: pd.DataFrame, history: pd.DataFrame, score: Score = ACCURACY
) -> pd.DataFrame:
    """The validation score of each finished run at the epoch that it chose.

    Args:
        results: Those of a report.
        history: Likewise.
        score: The task's.

    Returns:
        `variant, seed`, the score, `free_parameters`.
    """
    done = results[results["status"] == COMPLETED].drop(columns=score.name)
    chosen = history[history["split"] == "validation"].rename(columns={"epoch": "best_epoch"})
    keys = ["variant", "seed", "best_epoch"]
    scores = done.astype({"best_epoch": int}).merge(chosen[[*keys, score.name]], on=keys)
    return scores[["variant", "seed", score.name, "free_parameters"]]
