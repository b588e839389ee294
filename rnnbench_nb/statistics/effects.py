"""What each variant changes, and the effect that this has: few seeds, many variants."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from statsmodels.regression.linear_model import OLS

from rnnbench_nb.errors import UserError
from rnnbench_nb.experiment import RunParameters
from rnnbench_nb.report import COMPLETED
from rnnbench_nb.statistics.intervals import ACCURACY
from rnnbench_nb.tasks.base import Score

NO_CHANGE = {"seed", "offline_fallback", "device"}  # set differently, they change no model


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
        `variant, seed`, the score, `free_parameters`, `seconds` (per epoch).
    """
    done = results[results["status"] == COMPLETED].drop(columns=score.name)
    chosen = history[history["split"] == "validation"].rename(columns={"epoch": "best_epoch"})
    keys = ["variant", "seed", "best_epoch"]
    scores = done.astype({"best_epoch": int}).merge(chosen[[*keys, score.name]], on=keys)
    scores["seconds"] = scores["seconds"] / scores["epochs"]
    return scores[["variant", "seed", score.name, "free_parameters", "seconds"]]


def effects(
    scores: pd.DataFrame,
    variants: list[str],
    reference: str,
    margin: float,
    score: Score = ACCURACY,
    level: float = 0.95,
) -> pd.DataFrame:
    """The effect of each variant against the reference.

    With three seeds the spread of one paired difference has two degrees of freedom, so that an
    interval corrected for many variants is very wide. Here all variants share one
    spread, that of the rest in the least-squares fit of score = variant + seed + rest (a seed
    is a block: a split and an order of batches that all variants share), as in Dunnett's test
    (1955, J. Am. Stat. Assoc. 50:1096). With two variants it is the paired t test.

    - "better", "worse": the corrected interval excludes 0;
    - "no effect beyond m points": it lies inside the margin;
    - "undecided": neither. "Better" and "worse" go first.

    Args:
        scores: `variant, seed` and the score, one row a finished run; those of seeds that the
            reference did not finish do not count.
        variants: The names of all variants, those without a finished run too.
        reference: The variant that the others are compared with.
        margin: Half-width of the zone that counts as no effect, in the unit of the score.
        score: What is compared, more being better.
        level: Coverage.

    Returns:
        One row a variant, in order: `a` (the variant), `b` (the reference), `n` seeds,
        `difference`, `low, high`, `family_low, family_high` (Bonferroni-corrected over the
        variants), `margin, level, verdict`; NaN and "undecided" where nothing can be said.

    Raises:
        UserError: The margin is not positive, or the reference has no finished run.
    """
    if not margin > 0:
        raise UserError(f"The margin is {margin}, but must be above 0.")
    done = scores[scores["seed"].isin(scores.loc[scores["variant"] == reference, "seed"])]
    if done.empty:
        raise UserError(f"The reference {reference!r} has no finished run to compare with.")
    others = [name for name in variants if name != reference]
    table = pd.DataFrame({"a": others, "b": reference})
    table["n"] = [int((done["variant"] == name).sum()) for name in others]
    dummies = pd.get_dummies(done[["variant", "seed"]].astype(str), dtype=float)
    fit = OLS(done[score.name], dummies.drop(columns=f"variant_{reference}")).fit()
    which = [f"variant_{name}" for name in others]
    table["difference"] = fit.params.reindex(which).to_numpy()
    known = fit.df_resid > 0 and not np.allclose(fit.resid, 0, atol=1e-12)
    for prefix, comparisons in (("", 1), ("family_", max(len(others), 1))):
        ends = [f"{prefix}low", f"{prefix}high"]
        table[ends] = np.nan
        if known:
            table[ends] = fit.conf_int((1 - level) / comparisons).reindex(which).to_numpy()
    table = table.assign(margin=margin, level=level)
    return table.assign(verdict=[_verdict(row, score) for row in table.to_dict("records")])


def _verdict(row: Mapping, score: Score) -> str:
    low, high, margin = row["family_low"], row["family_high"], row["margin"]
    inside = -margin < low and high < margin
    if low > 0 or high < 0:
        return ("better" if low > 0 else "worse") + (", by less than the margin" if inside else "")
    return (
        f"no effect beyond {score.scale * margin:.3g} {score.difference}" if inside else "undecided"
    )
