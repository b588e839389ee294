"""Page 08: what is kept over how many steps, and does anything measured say which cell keeps it?"""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests

from rnnbench_nb import dynamics, training
from rnnbench_nb.analyses import FEW, Analysis, examples, keyed, short, weighted
from rnnbench_nb.analyses.gradients import MOMENTS, decades, exponents, thinned
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.report import Report, Run, labels, listed, looks

SOLVED, LOST = 0.1, 0.9  # of the memoryless error: solved up to the first, lost from the second on
REACH = 0.01  # of the largest gradient of an example: an input with less no longer matters
LEVEL = 0.95
KEY = ["variant", "length"]
PREDICTORS = {  # what may say who keeps it, by the column of `measures` that it is taken from
    "decades": "how little the gradient changes on its way",
    "reach": "how far back the input matters",
    "largest_exponent": "how near 0 the largest exponent is",
    "lasting": "the share of lasting directions",
}
NEAR_ZERO = ("decades", "largest_exponent")  # of these the nearest to 0 promises most


def analyse(report: Report, count: int = 16, sequences: int = 2) -> Analysis:
    """Errors against length, gradients on their way back, exponents, and what they foretell.

    Args:
        report: Its runs must have their weights.
        count: Test examples along which gradients are taken, the first ones of the test set.
        sequences: How many of them have exponents too, in the first seed of a variant alone.

    Returns:
        Frames, keyed by `variant, length` (the steps of a sequence): `errors`, a row a run (see
        `errors`); `along`, of the longest sequences a row a run, moment and step (at most 60), and
        `measures`, a row a run and moment (see `measured`); `lengths`, means over the seeds, a
        row a variant; and `ranks`.
        Findings on `answer`, `learning`, `gradients`, `spectrum` and `lost`.

    Raises:
        UserError: No run has weights.
    """
    found, parts, lost = Analysis(), {"errors": [], "along": [], "measures": []}, {}
    for run in weighted(report):
        first = report.of(run.key[0])[0]
        try:
            for name, frame in _frames(run, first, count, sequences):
                parts[name].append(frame)
        except Exception as error:  # whatever a contributed cell raises costs its own rows alone
            lost.setdefault(run.key[0], f"{type(error).__name__}: {error}")
    for variant, reason in lost.items():
        found.say(f"{report.labels[variant]} is missing here: {reason}", "lost")
    if parts["errors"]:
        for name, tables in parts.items():
            found.frames[name] = pd.concat(tables, ignore_index=True)
        along = found["along"]  # what is drawn
        found.frames["along"] = along[along["length"] == along["length"].max()]
        found.frames["lengths"] = lengths(found["errors"], found["measures"])
        found.frames["ranks"] = ranks(found["lengths"])
        lined = by_line(report)
        _answers(found, lined)
        _learning(found, lined)
        _gradients(found, lined)
        _spectrum(found)
        _foretold(found)
    return found


def _frames(run: Run, first: Run, count: int, sequences: int) -> list[tuple[str, pd.DataFrame]]:
    """All frames of one run, so that a run that fails leaves none."""
    key = {"variant": run.key[0], "length": run.record["data"]["steps"], "seed": run.key[1]}
    frames = [("errors", pd.DataFrame([key | errors(run, first)]))]
    for moment, model in zip(MOMENTS, (run.initial_model, run.model), strict=True):
        along, row = measured(run, model, count, sequences if run is first else 0)
        frames.append(("along", keyed(key | {"moment": moment}, along)))
        frames.append(("measures", pd.DataFrame([key | {"moment": moment} | row])))
    return frames


def errors(run: Run, first: Run) -> dict[str, float]:
    """How much of the error that a model without memory makes is left, and when it was solved.

    The error is the test loss where a formula gives the memoryless loss, else what the mean test
    score lacks of that of right answers; `first`, a run on the same task, says what is lacking
    without memory.

    Returns:
        `error`, `memoryless`, `ratio` of the two; `steps` of the optimiser after which the
        validation error was first at most `SOLVED` of the memoryless one, looked at once an epoch,
        NaN if never; `budget`, the steps that were taken.
    """
    task, label = run.task, run.predictions["label"]
    curve = run.history[run.history["split"] == "validation"].sort_values("epoch")
    floor = task.memoryless_loss()
    if floor is not None:
        error, remaining = run.record["test"]["loss"], curve["loss"]
    else:
        best = float(task.scores(label, label).mean())
        floor = best - task.memoryless(task.load(first.parameters.seed))
        error, remaining = best - run.scores.mean(), best - curve[task.score.name]
    each = training.batches_of(run.parameters, run.record["data"]["train"])
    steps = (curve["epoch"] * each).clip(upper=run.parameters.steps)
    solved = steps[remaining <= SOLVED * floor]
    return {
        "error": error, "memoryless": floor, "ratio": error / floor,
        "steps": float(solved.iloc[0]) if len(solved) else np.nan, "budget": int(steps.iloc[-1]),
    }  # fmt: skip


def measured(
    run: Run, model: torch.nn.Module, count: int, sequences: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The gradient of the last step's loss along real sequences, and the exponents.

    Returns:
        A frame `step, log10_gradient`: of the loss with respect to the state after each step, a
        mean over the examples. And a row: `decades`, by how many factors of ten it grows on its way
        from the last step to the start; `reach` (see there); `largest_exponent`, by QR on long
        sequences (see `gradients.exponents`), in nats a step; `lasting`, the share of directions
        that lose less than a factor e over the whole sequence. The last two are NaN without
        `sequences`.
    """
    inputs, targets = examples(run, count)
    steps = inputs.shape[1]

    def both(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.cat(dynamics.sensitivities(model, run.task, inputs, targets), dim=1)

    found = dynamics.over_examples(both, inputs, targets, size=8)
    gradients, of_inputs = found.split([steps + 1, steps], dim=1)
    places, size = thinned(steps + 1), gradients.clamp(min=1e-300).log10().mean(0)
    along = pd.DataFrame({"step": places, "log10_gradient": short(size[places])})
    row = {"decades": decades(gradients), "reach": reach(of_inputs)}
    rates = exponents(model.cell, inputs[:sequences]) if sequences else None
    row["largest_exponent"] = np.nan if rates is None else float(np.nanmax(rates))
    row["lasting"] = np.nan if rates is None else float((rates > -1 / steps).mean())
    return along, row


def reach(gradients: torch.Tensor) -> float:
    """How far back an input matters: a mean over gradients with respect to the inputs (B, T).

    It is the place, counted back from the last step, which is 1, of the first input whose gradient
    is at least `REACH` of the largest in its sequence; 0 where all gradients are 0.
    """
    matters = (gradients >= REACH * gradients.amax(1, keepdim=True)) & (gradients > 0)
    return float((matters * torch.arange(gradients.shape[1], 0, -1)).amax(1).double().mean())


def lengths(errors: pd.DataFrame, measures: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of each variant: a row each.

    Returns:
        The key; `error, memoryless, ratio, budget, seeds`; `state`: solved, partly or lost, by the
        mean ratio; `agree`, how many seeds are in that state by themselves; and of each measure
        NAME the columns `NAME_initial` and `NAME_trained`.
    """
    groups = errors.groupby(KEY, sort=False)
    table = groups[["error", "memoryless", "ratio", "budget"]].mean()
    table = table.assign(seeds=groups.size(), state=_states(table["ratio"]))
    means = errors[KEY].merge(table["state"].reset_index(), how="left")["state"]
    alike = errors.assign(agree=_states(errors["ratio"]) == means.to_numpy())
    table["agree"] = alike.groupby(KEY, sort=False)["agree"].sum()
    wide = measures.pivot_table(list(PREDICTORS), KEY, "moment", sort=False, dropna=False)
    wide.columns = [f"{name}_{moment}" for name, moment in wide.columns]
    return table.join(wide).reset_index()


def _states(ratio: pd.Series) -> np.ndarray:
    return np.select([ratio >= LOST, ratio <= SOLVED], ["lost", "solved"], "partly")


def ranks(lengths: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of each of the `PREDICTORS` with what is kept, at each length.

    Returns:
        `length, moment, predictor, n` (variants), `correlation`; `p`, exact over the orders of up
        to seven variants, else over a sample of them; `p_holm`, adjusted over all rows.
    """
    rows = []
    for length, part in lengths.groupby("length"):
        for moment in MOMENTS:
            for name in PREDICTORS:
                x = part[f"{name}_{moment}"]
                x = -x.abs() if name in NEAR_ZERO else x
                both = pd.DataFrame({"x": x, "y": -part["ratio"]}).dropna().rank()
                if len(both) > 2 and (both.nunique() > 1).all():
                    rows.append([length, moment, name, len(both), *_correlation(both)])
    table = pd.DataFrame(rows, columns=["length", "moment", "predictor", "n", "correlation", "p"])
    return table.assign(p_holm=multipletests(table["p"], method="holm")[1] if rows else [])


def _correlation(both: pd.DataFrame) -> tuple[float, float]:
    """Pearson's correlation of the columns x and y, and its p over the orders of x."""
    x, y = ((both[name] - both[name].mean()) / both[name].std(ddof=0) for name in "xy")
    y = y.to_numpy()
    test = stats.permutation_test(
        (x.to_numpy(),), lambda x, axis: np.round((x * y).mean(axis), 9),
        permutation_type="pairings", random_state=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.statistic), float(test.pvalue)


def by_line(report: Report) -> SimpleNamespace:
    """What figures and tables ask a report for, a cell having one label and look at all lengths.

    With several variants of a cell at a length, the first of each length belong together, and of
    the others those whose names differ in their length alone, or else the second, and so on. Where
    all variants have one task, each is itself.
    """
    names, there = {name: name for name in report.variants}, {}
    if len({own.group for own in report.variants.values()}) > 1:
        for name, own in report.variants.items():
            place = there[own.model, own.group] = there.get((own.model, own.group), 0) + 1
            head, _, rest = name.partition(f"{own.model}_")
            parts = rest.split("_") if rest and not head else []
            lengths = [str(value) for value in own.task_options.model_dump().values()]
            more = [part for part in parts if part not in lengths] or [str(place)]
            names[name] = own.model if place == 1 else "_".join([own.model, *more])
    lines = {line: report.variants[name] for name, line in names.items()}
    label, look = labels(lines), looks(lines)
    return SimpleNamespace(
        variants=report.variants, task=report.task,
        labels={name: label[line] for name, line in names.items()},
        looks={name: look[line] for name, line in names.items()},
    )  # fmt: skip


def _share(ratio: float) -> str:
    """What is left of the memoryless error as people read it."""
    return f"{100 * ratio:.3g}%" if ratio < 2 else f"{ratio:,.1f} times it"


def _answers(found: Analysis, lined: SimpleNamespace) -> None:
    """Who solves, keeps and loses it at each length, and where each falls."""
    table, task = found["lengths"], lined.task
    table = table.assign(label=table["variant"].map(lined.labels))
    for length, part in table.groupby("length"):
        memoryless, budget = part["memoryless"].mean(), int(part["budget"].max())
        amount = f"an error of {task.score.scale * memoryless:.4g}{task.score.unit}"
        if task.memoryless_loss() is not None:
            loss = METRICS[task.metrics].loss_label
            amount = f"{loss[0].lower()}{loss[1:]} of {memoryless:.4g}"
        states = []
        for state in ("solved", "partly", "lost"):
            rows = part[part["state"] == state].sort_values("ratio")
            texts = [
                f"{row.label} ({_share(row.ratio)}"
                + f", {row.agree} of {row.seeds} seeds" * (row.agree < row.seeds) + ")"
                for row in rows.itertuples()
            ]  # fmt: skip
            states += [f"{state} {'learned ' * (state == 'partly')}by {listed(texts)}"] * any(texts)
        kept, lost = (list(part.loc[(part["state"] == "lost") == it, "label"]) for it in (0, 1))
        verdict = "All of them lose it." if lost else "All of them keep it."
        if kept and lost:
            verdict = f"{listed(kept)} {'keep' if kept[1:] else 'keeps'} what {listed(lost)} "
            verdict += "lose." if lost[1:] else "loses."
        found.say(
            f"**{length:,} steps**, {amount} without memory, trained for {budget:,} steps of the "
            f"optimiser: {'; '.join(states)}. **{verdict}**",
            length=length, memoryless=memoryless, budget=budget,
        )  # fmt: skip
    if table["length"].nunique() > 1:
        falls = [f"{label} {_fall(part)}" for label, part in table.groupby("label", sort=False)]
        text = f"The steps at which each falls to the error without memory: {'; '.join(falls)}."
        found.say(text)


def _fall(part: pd.DataFrame) -> str:
    """Between which of the lengths it is lost, from the rows of one cell in `lengths`."""
    part = part.sort_values("length")
    lost, steps = part["state"].eq("lost").to_numpy(), [f"{each:,}" for each in part["length"]]
    if not lost.any():
        return f"not up to {steps[-1]}"
    first = int(lost.argmax())
    where = f"between {steps[first - 1]} and {steps[first]}" if first else f"at {steps[0]} already"
    return where + ", though not at every greater one" * (not lost[first:].all())


def _learning(found: Analysis, lined: SimpleNamespace) -> None:
    """After how many steps of the optimiser each variant has solved it, at each length."""
    for length, part in found["errors"].groupby("length"):
        texts, never, medians = [], [], []
        for variant, rows in part.groupby("variant", sort=False):
            reached, label = rows["steps"].dropna(), lined.labels[variant]
            if reached.empty:
                never.append(label)
                continue
            medians.append(reached.median())
            some = f" ({len(reached)} of {len(rows)} seeds)" * (len(reached) < len(rows))
            texts.append(f"{label} after {medians[-1]:,.0f}{some}")
        budget = int(part["budget"].max())
        texts += [f"not within {budget:,}: {listed(never)}"] if never else []
        found.say(
            f"**{length:,} steps** a sequence: {'; '.join(texts)}.", "learning",
            length=length, budget=budget, medians=medians,
            seeds=[int(n) for n in part.groupby("variant")["steps"].agg(["count", "size"]).stack()],
        )  # fmt: skip


def _gradients(found: Analysis, lined: SimpleNamespace) -> None:
    """Where the gradient changes least and most on its way back, and who reaches farthest."""
    for length, part in found["lengths"].groupby("length"):
        part = part.assign(label=part["variant"].map(lined.labels))

        def ends(order: pd.Series, name: str, form: str, part: pd.DataFrame = part) -> list[str]:
            rows = part.loc[[order.idxmin(), order.idxmax()]].drop_duplicates(KEY)
            return [
                f"{row['label']} ({row[f'{name}_{MOMENTS[0]}']:{form}} initially, "
                f"{row[f'{name}_{MOMENTS[1]}']:{form}} trained)"
                for _, row in rows.iterrows()
            ]

        flow = ends(part["decades_trained"].abs(), "decades", "+.1f")
        far = ends(-part["reach_trained"], "reach", ".1f")
        found.say(
            f"**{length:,} steps:** on its way to the start the gradient changes by the fewest "
            f"decades in {' and by the most in '.join(flow)}; inputs matter over the most steps in "
            f"{' and over the fewest in '.join(far)}.",
            "gradients", length=length,
        )  # fmt: skip


def _spectrum(found: Analysis) -> None:
    """Whether the exponents of what keeps it and of what loses it are apart, at each length."""
    for length, part in (
        found["lengths"].dropna(subset="largest_exponent_trained").groupby("length")
    ):
        rates, lost = part["largest_exponent_trained"], part["state"].eq("lost")
        if lost.all() or not lost.any():
            continue
        kept, lost = rates[~lost], rates[lost]
        apart = kept.min() > lost.max() or lost.min() > kept.max()
        verdict = "they are apart" if apart else "they overlap, so it is not what they say"
        found.say(
            f"**{length:,} steps:** trained, the largest exponent of those that keep it lies from "
            f"{kept.min():+.3f} to {kept.max():+.3f} nats a step, of those that lose it from "
            f"{lost.min():+.3f} to {lost.max():+.3f}: {verdict}.",
            "spectrum", length=length, apart=bool(apart),
        )  # fmt: skip
    if not found.texts("spectrum"):
        found.say(
            "At no length does one of them lose what another keeps, so there is nothing for the "
            "exponents to explain.", "spectrum"
        )  # fmt: skip


def _foretold(found: Analysis) -> None:
    """Whether anything measured goes with what is kept, and what so few variants can show."""
    table, seeds = found["ranks"], int(found["lengths"]["seeds"].min())
    if table.empty:
        text = "With fewer than three variants at a length there is no order to foretell."
        found.say(text, "spectrum")
        return
    best, n = table.loc[table["p_holm"].idxmin()], int(table["n"].max())
    floor = min(1.0, len(table) * 2 / math.factorial(n))
    head = "Nothing that was measured is shown to foretell which of them keeps it; nearest comes"
    if best["p_holm"] <= 1 - LEVEL:
        head = "Which of them keeps it goes with"
    found.say(
        f"{head} {PREDICTORS[best['predictor']]} ({best['moment']}, at {best['length']:,} steps): "
        f"rank correlation {best['correlation']:+.2f} over {best['n']} variants, p = "
        f"{best['p']:.3g}, and {best['p_holm']:.3g} after Holm over {len(table)}.",
        "spectrum", tests=len(table),
    )  # fmt: skip
    if floor > 1 - LEVEL:
        found.say(
            f"With {n} variants no such p can go below {floor:.3g}, so this decides nothing.",
            "spectrum", floor=floor, n=n,
        )  # fmt: skip
    if seeds == 1:
        found.say(
            "One seed decides nothing: where a variant has only one, another seed may put it in "
            "another place.", "spectrum", seeds=seeds,
        )  # fmt: skip


def table_of(found: Analysis, lined: SimpleNamespace) -> pd.DataFrame:
    """The frame `lengths` as text, a row a variant and length."""
    rows = found["lengths"].sort_values("length", kind="stable")

    def both(name: str, form: str) -> pd.Series:
        first, last = (rows[f"{name}_{moment}"].map(f"{{:{form}}}".format) for moment in MOMENTS)
        return first + " → " + last

    return pd.DataFrame({
        "steps": rows["length"].map("{:,}".format),
        "model": rows["variant"].map(lined.labels),
        "seeds": rows["seeds"],
        "error": rows["error"].map("{:.4g}".format),
        "of the memoryless": rows["ratio"].map(_share),
        "gradient (decades)": both("decades", "+.1f"),
        "reach (steps)": both("reach", ".1f"),
        "largest exponent": both("largest_exponent", "+.3f"),
        "lasting directions": both("lasting", ".0%"),
    })  # fmt: skip


def longest(found: Analysis, most: int = FEW) -> list[pd.DataFrame]:
    """The rows of `along` of the longest sequences, so many variants in each frame."""
    frame = found["along"]  # which in analyses of before has the others too
    frame = frame[frame["length"] == frame["length"].max()]
    names = frame["variant"].unique()
    parts = np.array_split(names, -(-len(names) // most))
    return [frame[frame["variant"].isin(part)] for part in parts]
