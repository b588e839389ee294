"""Which variant scores best, by how much, and is it more than chance? The page 03_compare."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind_from_stats

from rnnbench_nb import statistics
from rnnbench_nb.analyses import Analysis, _examples
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.metrics import Score
from rnnbench_nb.protocol import RunParameters, load_protocol
from rnnbench_nb.report import COMPLETED, Report, said
from rnnbench_nb.report import summary as summary_of
from rnnbench_nb.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.9, 0.95, 0.97, 0.98, 0.985)
PAIRS = 4  # variants: more are compared with the first one alone
LEVEL = 0.95  # coverage of the intervals
PUBLISHED = "agru_authors"  # the protocol of published_agru_authors.csv, whose sd are of ddof 0
ROUNDED = 0.5e-4  # at most, published figures having four digits
NARROW = 0.002  # half the width of an interval within which a figure counts as reproduced


def analyse(
    report: Report, margin: float = 0.002, reference: str = "", levels: list[float] | None = None
) -> Analysis:
    """Compare the variants of a report on their test examples.

    Args:
        report: With at least one finished run.
        margin: Differences within it count as equivalent, in the unit of the score.
        reference: Compare with this variant alone; empty: every pair, up to four variants.
        levels: Validation scores whose time is told; `LEVELS` of a percentage if None.

    Returns:
        Frames `comparison` (`statistics.compare`), `summary` (`statistics.summary`), `table`
        (`report.summary`), `mcnemar`, `times` (`statistics.time_to_score`), `speed`, `sizes`,
        `published`, and, of tasks with classes, `class_errors`, `reliability`, `calibration` and
        `alone`.

    Raises:
        UserError: No run is finished.
    """
    if not report.runs:
        none = f"{report.folder} has no finished run, so there is nothing to compare."
        raise UserError(next(iter(report.damaged), none))
    if levels is None:
        levels = LEVELS if report.task.score.unit == "%" else ()
    found, groups = Analysis(), test_sets(report)
    results = scores(report)
    found.frames["table"] = summary_of(report.results)
    found.frames["summary"] = statistics.summary(results, report.task.score)
    _compare(found, report, results, groups, margin, reference)
    for names in groups:
        _best(found, report, names)
    for row in found["summary"].to_dict("records"):
        label = report.labels[row["variant"]]
        text = statistics.summary_sentence(row, label, report.task.score)
        found.say(f"- {text}", "runs", level=LEVEL)
    for text in {rules(each.parameters, report.task.score): None for each in report.runs}:
        found.say(text, "rules")
    _learning(found, report, levels)
    for part in (_examples.mcnemar, _examples.class_errors, _examples.calibration):
        part(found, report, groups)
    _examples.alone(found, report, groups)
    _sizes(found, report)
    _published(found, report)
    return found


def scores(report: Report) -> pd.DataFrame:
    """`variant, seed` and the mean test score of each run, judged by its own labels.

    NaN for runs that did not finish, which are there too.
    """
    values = {run.key: float(run.scores.mean()) for run in report.runs}
    keys = report.results[["variant", "seed"]]
    each = [values.get(key, np.nan) for key in keys.itertuples(index=False, name=None)]
    return keys.assign(**{report.task.score.name: each})


def test_sets(report: Report) -> list[list[str]]:
    """The variants with a finished run, by what they were tested on, in order."""
    found: dict[tuple, list[str]] = {}
    for name in report.variants:
        for run in report.of(name)[:1]:
            label = np.ascontiguousarray(run.predictions["label"]).astype(float)
            length = run.record["data"].get("steps")
            key = (run.parameters.task, length, hashlib.sha256(label).hexdigest())
            found.setdefault(key, []).append(name)
    return list(found.values())


def _compare(
    found: Analysis,
    report: Report,
    results: pd.DataFrame,
    groups: list[list[str]],
    margin: float,
    reference: str,
) -> None:
    """The frame `comparison`, the answers and one sentence a pair."""
    variants, labels, score = list(report.variants), report.labels, report.task.score
    largest = max(map(len, groups), default=0)
    only = reference or (variants[0] if largest > PAIRS else None)
    place = {report.variants[name].group: names[0] for names in groups for name in names}
    place = {name: place.get(own.group, name) for name, own in report.variants.items()}
    place |= {name: names[0] for names in groups for name in names}
    table = statistics.compare(
        results, margin, score, LEVEL, only, {run.key: run.scores for run in report.runs},
        place,
    )  # fmt: skip
    found.frames["comparison"] = table
    if len(groups) > 1:
        parts = "; ".join(", ".join(labels[name] for name in names) for names in groups)
        found.say(
            f"The variants were not all tested on the same examples, and a score on one set says "
            f"nothing of another: verdicts are given within each of these alone: {parts}.", "unlike"
        )  # fmt: skip
    compared = table[table["n"] > 0]
    kinds = ["better", "equivalent", "not distinguishable"]
    kinds += [statistics.UNKNOWN] * bool(compared["verdict"].eq(statistics.UNKNOWN).any())
    for kind in kinds if len(compared) else ():
        words = {"better": " is better than "}.get(kind, " and ")
        pairs = [
            labels[a] + words + labels[b] if difference > 0 else labels[b] + words + labels[a]
            for a, b, difference, verdict in zip(
                compared["a"], compared["b"], compared["difference"], compared["verdict"],
                strict=True,
            )
            if verdict.startswith(("better", "worse") if kind == "better" else kind)
        ]  # fmt: skip
        found.say(f"- **{kind.capitalize()}:** {', '.join(pairs) or 'none'}", "verdicts")
    if text := statistics.resolution_sentence(compared, score):
        found.say(text, "verdicts", **resolved(compared))
    for row in table.to_dict("records"):
        found.say(f"- {statistics.sentence(row, labels, score)}", "pairs")


def resolved(table: pd.DataFrame) -> dict[str, float]:
    """The numbers of `statistics.resolution_sentence`."""
    columns = ["resolution", "seeds_needed"]
    ends = table[columns].agg(["min", "max"]).stack().dropna()
    return {f"{name}_{end}": float(value) for (end, name), value in ends.items()} | {
        "unable": int((table["resolution"] >= table["margin"]).sum()),
        "pairs": len(table),
    }


def _best(found: Analysis, report: Report, names: list[str]) -> None:
    """The best mean among variants that were tested alike, and what one run alone can say."""
    table, score = found["summary"].set_index("variant"), report.task.score
    best = table.loc[names, "mean"].idxmax()
    runs = sorted(report.of(best), key=lambda run: run.scores.mean())
    middle = runs[(len(runs) - 1) // 2]
    data, examples = middle.record["data"], len(middle.scores)
    mean, low, high = middle.scores.mean(), *statistics.example_interval(middle.scores, LEVEL)
    size = {key: data[key] for key in ("steps", "input_size")}
    text = statistics.with_unit(statistics.shown(table.loc[best, "mean"], score), score)
    found.say(
        f"Highest mean {said(score.name)} on the {examples:,} test examples of "
        f"{middle.task.sentence(data)}: {text}, of {report.labels[best]}.",
        "answer", examples=examples, **size,
    )  # fmt: skip
    one = statistics.with_unit(statistics.shown(mean, score), score)
    ends = statistics.shown_range(low, high, score, "")
    found.say(
        f"One fitted model alone, tested on {examples:,} examples, is known no better than this: "
        f"{one}, the {'median' if len(runs) % 2 else 'lower median'} of the runs of "
        f"{report.labels[best]}, has the {100 * LEVEL:g}% interval {ends} over new examples.",
        "one run", examples=examples, score=mean, low=low, high=high, level=LEVEL,
    )  # fmt: skip


def rules(parameters: RunParameters, score: Score) -> str:
    """Which epoch of a run is tested, and when its training stops."""
    by = {"score": f"highest validation {said(score.name)}", "loss": "lowest validation loss"}
    longest = f"after {parameters.epochs} epochs"
    if parameters.steps is not None:
        longest += f" or {parameters.steps:,} steps"
    if parameters.patience is None:
        return f"Tested is the epoch of the {by[parameters.best_by]}; training stops {longest}."
    fall = f" of at least {parameters.min_delta:g}" if parameters.min_delta else ""
    unlike = " (another measure than the one that chooses)" * (parameters.best_by == "score")
    return (
        f"Tested is the epoch of the {by[parameters.best_by]}; training stops after "
        f"{parameters.patience} epochs without a fall{fall} of the validation loss{unlike}, at the "
        f"latest {longest}."
    )


def shared(report: Report) -> bool:
    """Whether runs shared a machine, or ran on unlike ones, so that their seconds say little.

    Of two machines that look alike, as in a cluster, it is said too.
    """
    last: dict[str, str] = {}
    records = [run.record for run in report.runs if "started" in run.record]
    if len({(record.get("device"), record.get("processor")) for record in records}) > 1:
        return True
    for record in sorted(records, key=lambda record: record["started"]):
        machine = record.get("machine", "")
        if record["started"] < last.get(machine, ""):
            return True
        last[machine] = max(record["finished"], last.get(machine, ""))
    return False


SHARED = (
    "Runs of this report shared a machine or ran on unlike ones, so their seconds are not compared."
)


def _learning(found: Analysis, report: Report, levels: list[float]) -> None:
    """The frames `times`, and `speed`: medians over the runs that reach a level."""
    columns = ["variant", "seed", "level", "epoch", "seconds"]
    times = statistics.time_to_score(report.history, levels, report.task.score)
    times = times.reindex(columns=columns)
    if shared(report):
        times["seconds"] = np.nan
        found.say(SHARED, "speed")
    found.frames["times"] = times
    found.frames["speed"] = times.groupby(["variant", "level"], sort=False).agg(
        reached=("epoch", "count"), runs=("epoch", "size"),
        epochs=("epoch", "median"), seconds=("seconds", "median"),
    ).reset_index()  # fmt: skip
    if len(levels) and not times["epoch"].notna().any():
        least, score = min(levels), report.task.score
        text = statistics.with_unit(f"{score.scale * least:.4g}", score)
        found.say(f"No run reaches {text}.", "speed", level=least)


def _sizes(found: Analysis, report: Report) -> None:
    """The frame `sizes`: parameters, mean epochs and seconds, and what computed them.

    Seconds are left out where runs shared a machine.
    """
    results = report.results[report.results["status"] == COMPLETED]
    cost = results.assign(seconds_per_epoch=results["seconds"] / results["epochs"])
    columns = ["parameters", "free_parameters", "epochs", "seconds", "seconds_per_epoch"]
    columns = columns[: 3 if shared(report) else None]
    sizes = cost.groupby("variant", sort=False)[columns].mean().reset_index()
    for name in ("path", "precision"):
        used = [[run.record.get(name, "not recorded") for run in report.of(variant)]
                for variant in sizes["variant"]]  # fmt: skip
        sizes[name] = [" or ".join(dict.fromkeys(each)) for each in used]
    found.frames["sizes"] = sizes
    if len(sizes) > 1:
        free = sizes["free_parameters"]
        more = free.max() / free.min() - 1
        text = "At such counts capacity cannot explain a difference."
        if more > 0.02:
            text = "Part of a difference may be capacity, which a comparison at equal counts, such "
            text += "as params/row_mnist_matched.yaml, leaves out."
        much = f"{100 * more:.1f}% more" if more < 1 else f"{1 + more:.3g} times the"
        head = (
            f"The largest has {much} free parameters {'of' if more >= 1 else 'than'} the smallest."
        )
        if more < 5e-4:
            head = "All have the same number of free parameters."
        found.say(f"{head} {text}", "sizes", more=more)


def _published(found: Analysis, report: Report) -> None:
    """The frame `published`: the variants beside the figures that others published."""
    figures = pd.read_csv(Path(__file__).with_name(f"published_{PUBLISHED}.csv"))
    theirs = load_protocol(PROJECT / f"params/{PUBLISHED}.yaml").parameterisations
    rows = []
    for ours in found["summary"].to_dict("records"):
        run = report.of(ours["variant"])[0]
        beside = figures[figures["model"] == run.parameters.model]
        if run.parameters.model not in theirs or beside.empty:
            continue
        parameters = theirs[run.parameters.model]
        data = TASKS[parameters.task](parameters.task_options).describe()
        if run.parameters.task == parameters.task and data.items() <= run.record["data"].items():
            pair = {"published": parameters, "here": run.parameters}
            changed = statistics.changes(pair, "published")["here"]
            settings = statistics.settings(changed) or "nothing"
            row = beside_published(ours, *beside.iloc[0, 1:]) | {"settings": settings}
            rows.append(row if changed else row | reproduction(found, row, report))
    columns = ["variant", "mean", "sd", "n", "published", "published_sd", "runs", "difference"]
    columns += ["p", "settings", "low", "high", "outcome"]
    found.frames["published"] = pd.DataFrame(rows, columns=columns)
    if not rows:
        text = "Those are figures on other data, or of models that this report does not hold."
        found.say(text, "published")


def beside_published(ours: dict, mean: float, sd: float, runs: int) -> dict:
    """A row of `summary` beside a published mean and sd (ddof 0) of some runs.

    Returns:
        Ours and theirs (sd of ddof 1), the `difference` of the means, and `p` of Welch's t test:
        whether two studies agree, not which model is better; NaN for one seed.
    """
    runs = int(runs)
    sd = sd * np.sqrt(runs / (runs - 1))
    known = [ours["mean"], ours["sd"], ours["n"], mean, sd, runs]
    p = ttest_ind_from_stats(*known, equal_var=False).pvalue if ours["n"] > 1 else np.nan
    names = ["mean", "sd", "n", "published", "published_sd", "runs"]
    row = dict(zip(names, known, strict=True))
    return {"variant": ours["variant"], **row, "difference": ours["mean"] - mean, "p": p}


def reproduction(found: Analysis, row: dict, report: Report) -> dict[str, object]:
    """Whether runs of the published settings give the published mean, and one sentence on it.

    Args:
        found: Where the sentence goes.
        row: Of `beside_published`.
        report: Whose runs they are.

    Returns:
        `low, high`, the 95% prediction interval for the mean of as many runs as were published, and
        the `outcome`: "not reproduced" if their mean lies outside, however it was rounded,
        "reproduced" if it lies inside and the interval is narrow enough to say so (`NARROW` to each
        side), else "cannot tell".
    """
    score = report.task.score
    low, high = statistics.prediction_interval(row["mean"], row["sd"], row["n"], row["runs"], LEVEL)
    inside = low <= row["published"] <= high
    outcome = "reproduced" if inside and high - low <= 2 * NARROW else "cannot tell"
    if row["published"] < low - ROUNDED or row["published"] > high + ROUNDED:
        outcome = "not reproduced"
    theirs = statistics.with_unit(statistics.shown(row["published"], score), score)
    ends = f"{score.scale * low:.3f} to {score.scale * high:.3f}" if low == low else "unknown"
    ends = statistics.with_unit(ends, score)
    found.say(
        f"- {report.labels[row['variant']]}: **{outcome}**. Theirs is {theirs}; by our {row['n']} "
        f"runs with their settings, the mean of {row['runs']} further ones lies at {ends} "
        f"({100 * LEVEL:g}% prediction interval).",
        "reproduced", published=row["published"], low=low, high=high, n=row["n"], runs=row["runs"],
        level=LEVEL,
    )  # fmt: skip
    return {"low": low, "high": high, "outcome": outcome}


def tests_table(comparison: pd.DataFrame, report: Report) -> pd.DataFrame:
    """The tests of each compared pair as text, a row a pair."""
    score, labels, rows = report.task.score, report.labels, {}
    for row in comparison[comparison["n"] > 0].to_dict("records"):
        ends = [
            statistics.shown_range(row[f"{kind}low"], row[f"{kind}high"], score)
            for kind in ("", "family_")
        ]
        rows[f"{labels[row['a']]} − {labels[row['b']]}"] = {
            "common seeds": row["n"],
            "difference": f"{score.scale * row['difference']:+.3f}",
            f"{100 * row['level']:g}% interval": ends[0],
            "the one that decides": ends[1],
            "smallest difference told": statistics.shown(row["resolution"], score),
            "correlation": f"{row['correlation']:.2f}",
            "sign-flip p": f"{row['p']:.4f}",
            "verdict": statistics.verdict_text(row, labels),
        }
    table = pd.DataFrame(rows).replace("nan", "unknown")
    return table if len(rows) <= PAIRS else table.T


def speed_table(speed: pd.DataFrame, report: Report) -> pd.DataFrame:
    """Epochs and seconds to each level as text, a row a variant."""
    score = report.task.score

    def text(row: pd.Series) -> str:
        if not row["reached"]:
            return "not reached"
        some = f", {row['reached']:g} of {row['runs']:g}" * (row["reached"] < row["runs"])
        seconds = f" ({row['seconds']:.3g} s)" if row["seconds"] == row["seconds"] else ""
        return f"{row['epochs']:g}{seconds}{some}"

    level = [statistics.with_unit(f"{score.scale * at:.4g}", score) for at in speed["level"]]
    table = speed.assign(text=speed.apply(text, axis=1), level=level)
    table = table.assign(variant=table["variant"].map(report.labels))
    return table.pivot(index="variant", columns="level", values="text").reindex(
        index=table["variant"].unique(), columns=pd.unique(pd.Series(level))
    )


def sizes_table(sizes: pd.DataFrame, report: Report) -> pd.DataFrame:
    """Sizes and cost as text, a row a variant."""
    table = sizes.set_index("variant").rename(index=report.labels)
    numbers = table.select_dtypes("number").map("{:,.5g}".format)
    return table.assign(**numbers).rename(columns=lambda name: name.replace("_", " "))


def published_table(published: pd.DataFrame, report: Report) -> pd.DataFrame:
    """The published figures beside ours as text, a row a variant."""
    score = report.task.score
    mean, theirs, sd, published_sd, difference = (
        (score.scale * published[name]).map(f"{{:{sign}.2f}}".format)
        for name, sign in (("mean", ""), ("published", ""), ("sd", ""), ("published_sd", ""),
                           ("difference", "+"))
    )  # fmt: skip
    seeds, runs = (published[name].astype(str) for name in ("n", "runs"))
    return pd.DataFrame({
        "variant": published["variant"].map(report.labels),
        "here": mean + " ± " + sd + " (" + seeds + " seeds)",
        "published": theirs + " ± " + published_sd + " (" + runs + " runs)",
        "difference": difference,
        "p": published["p"].map("{:.2g}".format),
        "set differently here": published["settings"],
    })  # fmt: skip


def pictures(alone: pd.DataFrame, report: Report) -> tuple["Figure", str]:
    """The examples of `alone` of one test set, as their task shows them, and a text that says them.

    Above each stand the variant that gets it, the true class and the others' error.
    """
    names = next(names for names in test_sets(report) if alone["variant"].iloc[0] in names)
    shown = alone[alone["variant"].isin(names)]
    run = report.of(names[0])[0]
    texts = [f"{report.labels[row['variant']]}: {row['label']}\nnot {row['mistaken']}"
             for row in shown.to_dict("records")]  # fmt: skip
    examples = run.task.load(run.key[1]).test.inputs[shown["example"].tolist()]
    from rnnbench_nb.figures import images

    alt = "Test examples that only one variant gets: " + "; ".join(texts).replace("\n", " ")
    return images(255 * run.task.pictures(examples).numpy(), texts), alt
