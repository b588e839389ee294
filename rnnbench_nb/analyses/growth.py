"""What makes the gradient grow along a sequence: the part of page 04 on the step between gates.

Real parts judge a flow, and moduli one step. Growth over a sequence is measured on products of
steps, with one part of each replaced at a time along the same states.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rnnbench_nb import dynamics
from rnnbench_nb.analyses import Analysis, examples, keyed, short
from rnnbench_nb.cells import CELLS
from rnnbench_nb.dynamics import CAUSES, REPLACEMENTS
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.report import Report, Run
from rnnbench_nb.statistics import t_interval
from rnnbench_nb.tasks import Task

MOMENTS = ("initial", "trained")
LEVEL = 0.95  # coverage of the intervals over seeds
KEPT, FAR = 0.3, 2.0  # decades from end to end: a factor of two, and of a hundred
SAMPLES = 4  # steps of a sequence at which the smallest damping is looked for
SEQUENCES = 2  # sequences for it
BUDGET = 3000  # steps of all runs that tell their parts, at each moment: about two minutes
MEASURES = ("gradient", "random", "exponent", "growing")
WORDS = (
    f"Of a change from end to end of a sequence, *is kept* means at most {KEPT:g} decades (a "
    "factor of two), *grows* and *shrinks* more than that, and *explodes* and *vanishes* more than "
    f"{FAR:g} decades (a factor of a hundred)."
)


def word(decades: float, low: float = np.nan, high: float = np.nan) -> str:
    """What a change from end to end is called (see `WORDS`), and the ends of its interval."""
    if not np.isnan([low, high]).any():
        return " or ".join(dict.fromkeys(map(word, (decades, low, high))))
    if abs(decades) <= KEPT:
        return "is kept"
    grows = decades > 0
    if abs(decades) > FAR:
        return "explodes" if grows else "vanishes"
    return "grows" if grows else "shrinks"


def add(analysis: Analysis, report: Report, runs: list[Run], count: int) -> None:
    """Add frames and findings on growth from end to end, of every run, along `count` examples.

    (Fewer in a large report or of a long sequence: see `BUDGET`.)

    - `growth`, of each `variant, seed, moment` by `replacement` (`dynamics.REPLACEMENTS`; "whole"
      alone for cells that do not tell their parts): the `MEASURES`, means over the examples. They
      are decades over the sequence for `gradient` and `random`, nats a step for `exponent`, the
      largest, and a share of the directions for `growing`.
    - `growth_means` over the seeds, with an interval of `gradient`.
    - `attribution`, a row a variant, moment and cause, see `attribute`.
    - `damping`, see `damping_of`.

    Findings are on `growth`, `words` and `lost`.
    """
    found, dampings, walked = [], [], {}
    telling = sum(hasattr(CELLS[run.parameters.model], "jacobian_terms") for run in runs)
    for run in runs:
        inputs, targets = examples(run, count)
        length = inputs.shape[1]
        few = max(BUDGET // length // max(telling, 1), SEQUENCES)
        inputs, targets = inputs[:few], targets[:few]
        walked[run.key[0]] = {"examples": len(inputs), "steps": length}
        try:
            for moment, model in zip(MOMENTS, (run.initial_model, run.model), strict=True):
                key = dict(zip(("variant", "seed"), run.key, strict=True)) | {"moment": moment}
                found.append(keyed(key, growth_of(model, run.task, inputs, targets)))
                if hasattr(model.cell, "jacobian_terms"):
                    dampings.append(key | damping_of(model, inputs))
        except Exception as error:  # whatever a contributed cell raises costs its own rows alone
            reason = f"{type(error).__name__}: {error}"
            analysis.say(
                f"{run.folder.name} is missing in what is said of growth: {reason}", "lost"
            )
    if not dampings:  # no cell that tells its parts
        return
    frame, damping = pd.concat(found, ignore_index=True), pd.DataFrame(dampings)
    analysis.frames |= {"growth": frame, "growth_means": means(frame), "damping": damping}
    parts = [
        keyed({"variant": variant, "moment": moment}, attribute(rows))
        for (variant, moment), rows in frame.groupby(["variant", "moment"], sort=False)
        if rows["replacement"].nunique() > 1
    ]
    analysis.frames["attribution"] = pd.concat(parts, ignore_index=True)
    analysis.say(WORDS, "words", kept=KEPT, far=FAR)
    for variant in analysis["attribution"]["variant"].unique():
        _say(analysis, report, variant, **walked[variant])
    _beside(analysis, report)


def growth_of(model: SequenceModel, task: Task, inputs: Tensor, targets: Tensor) -> pd.DataFrame:
    """`replacement` and the `MEASURES` along sequences (B, T, D), means over them."""
    split = hasattr(model.cell, "jacobian_terms")

    def measure(inputs: Tensor, targets: Tensor) -> Tensor:
        gradient = dynamics.gradients(model, task, inputs, targets)[0][:, -1]
        products: dict[str, Tensor] = {}
        for step in dynamics.walk(model.cell, inputs):
            steps = dynamics.replaced(dynamics.parts_of(step)) if split else {
                "whole": dynamics.jacobian(step)}  # fmt: skip
            for name, j in steps.items():
                products[name] = j @ products[name] if name in products else j
        grown = [dynamics.end_to_end(product, gradient) for product in products.values()]
        return torch.stack([torch.stack(list(g.values()), -1) for g in grown], 1)  # (B, R, 4)

    values = dynamics.over_examples(measure, inputs, targets).mean(0)
    values[:, 2] /= inputs.shape[1]  # a step
    frame = pd.DataFrame({name: short(values[:, i]) for i, name in enumerate(MEASURES)})
    frame.insert(0, "replacement", list(REPLACEMENTS)[: len(values)])
    return frame


def damping_of(model: SequenceModel, inputs: Tensor) -> dict[str, float]:
    """The smallest damping that keeps the path's step from growing, states held fixed.

    Taken at `SAMPLES` steps, from a quarter of the way to the last, of the first `SEQUENCES`
    sequences.

    Returns:
        `gamma`, in use; `least`, the median of the smallest, and `none`, the share of steps where
        none exists (NaN where gamma is 0: see `dynamics.least_damping`); `abnormality`, the mean of
        `dynamics.abnormality` of the balanced path.
    """
    length = inputs.shape[1]
    chosen = np.linspace(length // 4, length - 1, SAMPLES).astype(int)
    steps = enumerate(dynamics.walk(model.cell, inputs[:SEQUENCES]))
    parts = [dynamics.parts_of(step) for t, step in steps if t in chosen]
    gamma = getattr(model.cell.options, "gamma", 0.0)
    even = [dynamics.abnormality(dynamics.balanced(p.path, p.matrix)) for p in parts]
    found = {"gamma": gamma, "least": np.nan, "none": np.nan}
    if gamma:
        least = torch.cat([dynamics.least_damping(p, gamma) for p in parts])
        found |= {"least": float(least.median()), "none": float(least.isinf().double().mean())}
    return found | {"abnormality": float(torch.cat(even).mean())}


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of each variant, moment and replacement; `low, high` of `gradient`."""
    groups = frame.groupby(["variant", "moment", "replacement"], sort=False)
    table = groups[list(MEASURES)].mean()
    table.insert(0, "seeds", groups.size())
    table[["low", "high"]] = [t_interval(g.to_numpy(), LEVEL) for _, g in groups["gradient"]]
    return table.reset_index()


def attribute(rows: pd.DataFrame, measure: str = "gradient") -> pd.DataFrame:
    """The effect of each cause of growth, when it is removed first and when it is removed last.

    Args:
        rows: `seed, replacement` and the measure.
        measure: One of those in decades.

    Returns:
        A row a `cause`: its effects `first` and `last` (decades) and their difference `gap`, means
        over the seeds, each with `_low, _high`, a paired t interval; and whether it `adds`: the
        intervals of first and last overlap (without them, the gap is at most `KEPT`).
    """
    values = rows.pivot(index="seed", columns="replacement", values=measure)
    by_causes = {frozenset(left): values[name] for name, left in REPLACEMENTS.items()
                 if left is not None}  # fmt: skip
    every, nothing = frozenset(CAUSES), frozenset()
    table = []
    for cause in CAUSES:
        effects = {
            "first": by_causes[every] - by_causes[every - {cause}],
            "last": by_causes[nothing | {cause}] - by_causes[nothing],
        }
        effects["gap"] = effects["first"] - effects["last"]
        row = {"cause": cause}
        for name, each in effects.items():
            low, high = t_interval(each.to_numpy(), LEVEL)
            row |= {name: each.mean(), f"{name}_low": low, f"{name}_high": high}
        adds = row["first_low"] <= row["last_high"] and row["last_low"] <= row["first_high"]
        if np.isnan([row["first_low"], row["last_low"]]).any():
            adds = abs(row["gap"]) <= KEPT
        table.append(row | {"adds": bool(adds)})
    return pd.DataFrame(table)


def ranked(rows: pd.DataFrame) -> str:
    """The causes by their effect when removed first, and which of them the seeds tell apart."""
    order = rows.sort_values("first", ascending=False)
    text = order["cause"].iloc[0]
    for before, after in pairwise(order.to_dict("records")):
        apart = before["first_low"] > after["first_high"]
        text += f"{', then' if apart else ' and (not told apart)'} {after['cause']}"
    return text


def _interval(row: dict, name: str, low: str, high: str) -> str:
    """Such as `+1.17 decades (+1.05 to +1.29)`."""
    ends = f" ({row[low]:+.2f} to {row[high]:+.2f})" if row[low] == row[low] else ""
    return f"{row[name]:+.2f}{ends}"


def _told(row: dict) -> str:
    """Such as `is kept or shrinks, -0.24 (-0.36 to -0.13)`, of a row of `growth_means`."""
    called = word(row["gradient"], row["low"], row["high"])
    return f"{called}, {_interval(row, 'gradient', 'low', 'high')}"


def _gradient(analysis: Analysis, variant: str, moment: str, replacement: str) -> dict:
    table = analysis["growth_means"]
    chosen = (table["variant"] == variant) & (table["moment"] == moment)
    return table[chosen & (table["replacement"] == replacement)].iloc[0].to_dict()


def _say(analysis: Analysis, report: Report, variant: str, examples: int, steps: int) -> None:
    """One paragraph: how much, by what, and what is left of the promise."""
    label, trained = report.labels[variant], MOMENTS[1]

    def told(replacement: str, moment: str = trained) -> str:
        row = _gradient(analysis, variant, moment, replacement)
        return _told(row)

    whole = _gradient(analysis, variant, trained, "whole")
    seeds = int(whole["seeds"])
    rows = analysis["attribution"].query("variant == @variant and moment == @trained")
    effects = "; ".join(
        f"{row['cause']} {_interval(row, 'first', 'first_low', 'first_high')} and "
        f"{_interval(row, 'last', 'last_low', 'last_high')}"
        for row in rows.to_dict("records")
    )
    unlike = list(rows.loc[~rows["adds"], "cause"])
    close = "within their intervals" if seeds > 1 else f"to {KEPT:g} decades"
    adding = f"First and last agree {close} for each of them, so the effects add."
    if unlike:
        names = " and the ".join(unlike)
        adding = f"First and last disagree for the {names}: there the effects do not simply add."
    spread = f"; in brackets {100 * LEVEL:g}% intervals over seeds" if seeds > 1 else ""
    analysis.say(
        f"**{label}** ({seeds} seed{'s' * (seeds > 1)}, {examples} test examples, {steps} steps, "
        f"in decades from end to end{spread}): on its way back through the trained network the "
        f"gradient {told('whole')}; through the initial one it {told('whole', MOMENTS[0])}. What "
        f"each cause adds, removed first and removed last: {effects}. {adding} From what adds "
        f"the most, removed first: {ranked(rows)}.",
        "growth", seeds=seeds, examples=examples, steps=steps, level=LEVEL, kept=KEPT,
    )  # fmt: skip
    damping = analysis["damping"].query("variant == @variant")
    normal = float(damping["abnormality"].max())
    analysis.say(
        "What survives of the claim that antisymmetry keeps gradients: along the exact flow of the "
        "balanced path, for which it is a theorem if the matrix is antisymmetric, the gradient "
        f"{told('flow of the balanced path')}; along the exact flow of the path as it is, it "
        f"{told('flow of the path')}; with the Euler step in the place of that flow it "
        f"{told('step of the path')}; and with the gates, which is the network, it "
        f"{told('whole')}. "
        f"The balanced path is normal but for a defect of at most {normal:.1g} of its square.",
        "growth", abnormality=normal,
    )  # fmt: skip
    _damping(analysis, label, damping)


def _damping(analysis: Analysis, label: str, rows: pd.DataFrame) -> None:
    """Whether any damping would make the steps of the path stable."""
    table = rows.groupby("moment", sort=False)[["gamma", "least", "none"]].mean()
    if table["none"].isna().any():
        return
    parts = []
    for moment, row in table.iterrows():
        found = f"{row['least']:.2g} in the median" if np.isfinite(row["least"]) else "mostly none"
        nowhere = f", and none at all at {row['none']:.0%} of the steps" * bool(row["none"])
        parts.append(f"{moment} {found}{nowhere}")
    analysis.say(
        f"The smallest damping with which the path's step of {label} would have a spectral radius "
        "of at most 1, states and gates held fixed, beside "
        f"$\\gamma = {table['gamma'].iloc[0]:g}$ in use: {'; '.join(parts)}.", "growth",
        gamma=table["gamma"].iloc[0], **{f"{name}_{moment}": row[name]
                                         for moment, row in table.iterrows()
                                         for name in ("least", "none")},
    )  # fmt: skip


def _beside(analysis: Analysis, report: Report) -> None:
    """The variants whose parts are not told, in one sentence."""
    others = [v for v in analysis["growth_means"]["variant"].unique()
              if v not in set(analysis["attribution"]["variant"])]  # fmt: skip
    if not others:
        return
    texts = []
    for variant in others:
        rows = [_gradient(analysis, variant, moment, "whole") for moment in reversed(MOMENTS)]
        after, before = map(_told, rows)
        texts.append(f"in {report.labels[variant]} it {after} (initially: {before})")
    analysis.say(f"Beside it, the trained gradient: {'; '.join(texts)}.", "growth")


def means_table(table: pd.DataFrame, report: Report) -> pd.DataFrame:
    """The means over the seeds as text, a row a variant, moment and replacement."""
    rows = table.assign(variant=table["variant"].map(report.labels))
    rows["gradient (decades)"] = [
        _interval(row, "gradient", "low", "high") for row in rows.to_dict("records")
    ]
    rows["random direction (decades)"] = rows["random"].map("{:+.2f}".format)
    rows["largest exponent (nats a step)"] = rows["exponent"].map("{:+.3f}".format)
    rows["growing directions"] = rows["growing"].map("{:.0%}".format)
    return rows.set_index(["variant", "moment", "replacement"]).iloc[:, -4:]
