"""What stands under the figures of the pages: what marks and bands are, of how many, the finding.

Each takes an analysis (or a frame of it) and the report, and returns one plain text.
"""

import pandas as pd

from rnnbench_nb import statistics
from rnnbench_nb.analyses import Analysis
from rnnbench_nb.metrics import METRICS
from rnnbench_nb.report import COMPLETED, Report, said

BAND = "lines are means over {n}, bands one standard deviation"


def seeds(frame: pd.DataFrame) -> str:
    """`10 seeds`, or `2 to 10 seeds` where variants differ, of columns `variant, seed`."""
    counts = frame.groupby("variant")["seed"].nunique()
    few, many = int(counts.min()), int(counts.max())
    return f"{few} to {many} seeds" if few < many else f"{many} seed{'s' * (many > 1)}"


def _ends(values: pd.Series, report: Report, form: str = "{:.3g}") -> str:
    """The lowest and the highest of values by variant: `1.1 (GRU) to 2.06 (A-GRU)`."""
    low, high = values.idxmin(), values.idxmax()
    least, most = (form.format(values[name]).replace("-", "−") for name in (low, high))
    if low == high:
        return f"{most} ({report.labels[high]})"
    return f"{least} ({report.labels[low]}) to {most} ({report.labels[high]})"


def differences(table: pd.DataFrame, report: Report) -> str:
    """Of paired differences: the rows of `statistics.compare` that have seeds."""
    few, many = int(table["n"].min()), int(table["n"].max())
    n = f"{few} to {many} common seeds" if few < many else f"{many} common seed{'s' * (many > 1)}"
    first = table.iloc[0]
    kinds = table["verdict"].str.partition(",")[0].value_counts()
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    made, name = int(first["comparisons"]), said(report.task.score.name)
    corrected = f", corrected for {made} comparisons made together" if made > 1 else ""
    return (
        f"Differences in {first['split']} {name}, a row a comparison. Circles: "
        f"{n}. Thick mark: their mean. Black bar: its {100 * first['level']:g}% interval over "
        f"seeds. Grey line: the interval that decides, {first['scope']}{corrected}. Grey band: "
        f"differences that count as equivalent. Of {len(table)}: {told}."
    )


def scores(report: Report) -> str:
    """Of the test result of every run."""
    done = report.results[report.results["status"] == COMPLETED]
    tested = sorted({run.record["data"]["test"] for run in report.runs})
    score = report.task.score
    means = done.groupby("variant", sort=False)[score.name].mean().astype(float)
    best = statistics.with_unit(statistics.shown(means.max(), score), score)
    return (
        f"Every run's result on its {' or '.join(f'{n:,}' for n in tested)} test examples: a point "
        f"a seed, {seeds(done)} a variant; mark and bar are the mean and its 95% t interval over "
        f"seeds, from three seeds on. Best mean {said(score.name)}: {best}, of "
        f"{report.labels[means.idxmax()]}."
    )


def curves(report: Report, loss: bool) -> str:
    """Of the loss by epoch, or of the score, drawn as an error where it is a percentage."""
    history, data, score = report.history, report.runs[0].record["data"], report.task.score
    rows = history[history["split"] == "validation"].groupby(["variant", "seed"], sort=False)
    if loss:
        what, best = (
            METRICS[report.task.metrics].loss_label,
            rows["loss"].min().groupby("variant", sort=False).mean(),
        )
        name = best.idxmin()
        told = f"Lowest validation loss of a run, in the mean over seeds: {best[name]:.3g}"
    else:
        name = said(score.name)
        what = "Error (%)" if score.unit == "%" else name[0].upper() + name[1:]
        best = rows[score.name].max().groupby("variant", sort=False).mean()
        name = best.idxmax()
        value = statistics.with_unit(statistics.shown(best[name], score), score)
        told = f"Best validation {said(score.name)} of a run, in the mean over seeds: {value}"
    return (
        f"{what} by epoch, on {data['train']:,} training and {data['validation']:,} validation "
        f"examples: lines are means over {seeds(history)}, bands go from the lowest to the highest "
        f"(left out of many variants). {told}, of {report.labels[name]}."
    )


def speed(found: Analysis, report: Report) -> str:
    """Of the epochs to each validation score."""
    rows = found["speed"][found["speed"]["reached"] > 0]
    top = rows[rows["level"] == rows["level"].max()]
    first, score = top.loc[top["epochs"].idxmin()], report.task.score
    level = statistics.with_unit(f"{score.scale * first['level']:.4g}", score)
    return (
        f"Epochs to a validation {said(score.name)}: medians over the runs that get there, of "
        f"{seeds(found['times'])} a variant; bars reach from the fastest to the slowest. First at "
        f"{level}: {report.labels[first['variant']]}, after {first['epochs']:g} epochs, in "
        f"{first['reached']:.0f} of {first['runs']:.0f} runs."
    )


def classes(found: Analysis, report: Report) -> str:
    """Of the test error by class."""
    errors = found["class_errors"]
    means = errors.groupby(["variant", "class"], sort=False)["error"].mean()
    variant, worst = means.idxmax()
    return (
        f"Test error by class, the mean over {seeds(errors)}; where points are drawn, bars are one "
        f"standard deviation over seeds. Highest: {100 * means.max():.2f}%, of "
        f"{report.labels[variant]} on class {worst}."
    )


def reliability(found: Analysis, report: Report) -> str:
    """Of accuracy against confidence."""
    error = found["calibration"].groupby("variant", sort=False)["ece"].mean()
    counts = found["reliability"].groupby("variant")["count"].sum()
    return (
        f"Accuracy of the answers by their confidence, and how many have it: "
        f"{int(counts.max()):,} answers a variant, those of {seeds(found['calibration'])} pooled; "
        f"bars are 95% Wilson intervals, as if answers were independent. Expected calibration "
        f"error in points: {_ends(100 * error, report)}."
    )


def alone(found: Analysis, report: Report) -> str:
    """Of the examples that one variant alone gets."""
    return (
        f"{len(found['alone'])} test examples that all runs of one variant get and most runs of "
        f"the others miss ({seeds(report.results)} a variant); above each that variant, the true "
        "class, and the others' most frequent error."
    )


def spectrum(found: Analysis, report: Report) -> str:
    """Of the first run's eigenvalues."""
    rows = found["spectra"]
    run = rows.iloc[0]
    outside = found["stability"].set_index(["variant", "seed", "moment"])["share_outside"]
    shares = [f"{outside[run['variant'], run['seed'], moment]:.0%} ({moment})"
              for moment in rows["moment"].unique()]  # fmt: skip
    return (
        f"Eigenvalues of A of {report.labels[run['variant']]}, seed {run['seed']}: a point each of "
        f"{int((rows['moment'] == run['moment']).sum())}. Grey: the disc in which an Euler step "
        f"amplifies nothing. Outside it: {' and '.join(shares)}."
    )


def frequencies(found: Analysis, report: Report) -> str:
    """Of the densities of frequencies."""
    last = found["stability_means"].drop_duplicates("variant", keep="last").set_index("variant")
    return (
        f"Density of the frequencies, those of {seeds(found['stability'])} of a variant together. "
        "Dashed: the semicircle of a random matrix. Largest frequency, trained, in the mean over "
        f"seeds: {_ends(last['lambda_max'], report)}."
    )


def stability(found: Analysis, report: Report) -> str:
    """Of the spectrum's place through training."""
    last = found["stability_means"].drop_duplicates("variant", keep="last").set_index("variant")
    return (
        f"By epoch: {BAND.format(n=seeds(found['training']))}. Dashed: above 1 an Euler "
        f"step amplifies. At the chosen epoch the largest modulus is "
        f"{_ends(last['modulus_max'], report)}."
    )


def growth(found: Analysis, report: Report) -> str:
    """Of the gradient's growth with each step in the place of the Jacobian."""
    several = found["growth"].groupby("variant")["replacement"].transform("nunique") > 1
    drawn = found["growth"][several]
    whole = found["growth_means"].query("replacement == 'whole'")
    whole = whole[whole["variant"].isin(drawn["variant"])]
    whole = whole.drop_duplicates("variant", keep="last").set_index("variant")
    return (
        f"Growth of the gradient from the last step to the first in decades: points are means over "
        f"{seeds(drawn)}, bars one standard deviation, along {found.options['count']} "
        f"test examples at most. Dashed: it stays. Through the trained network: "
        f"{_ends(whole['gradient'], report, '{:+.2f}')}."
    )


def growth_map(found: Analysis, report: Report) -> str:
    """Of measured growth over damping and step size."""
    rates = found["map"]
    run = found["spectra"].iloc[0]
    return (
        f"Growth of a small state without input, in nats a step, at {len(rates)} dampings and step "
        f"sizes; untrained weights of {report.labels[run['variant']]}, seed {run['seed']}. Solid: "
        f"where none is measured. Dashed: where theory has none. It grows at "
        f"{(rates['rate'] > 0).mean():.0%} of the points."
    )


def moved(found: Analysis, report: Report) -> str:
    """Of the spectrum and the disc for other dampings and step sizes."""
    run = found["spectra"].iloc[-1]
    modes = int((found["spectra"]["moment"] == run["moment"]).sum())
    return (
        f"The {modes} eigenvalues of the trained S, of {report.labels[run['variant']]}, seed "
        f"{run['seed']}, moved left by the damping; grey: the disc, of radius 1 by the step size, "
        "in which an Euler step amplifies nothing."
    )


def gradients(found: Analysis, along: pd.DataFrame, report: Report) -> str:
    """Of gradient norms along sequences; `along` is what is drawn."""
    trained = along[along["moment"] == along["moment"].iloc[-1]]
    ends = trained.groupby(["variant", "seed"], sort=False)["log10_gradient"].agg(["first", "last"])
    change = (ends["first"] - ends["last"]).groupby("variant", sort=False).mean()
    return (
        f"Norm of the loss's gradient with respect to the state at each step, a mean over "
        f"{found.options['count']} test examples; {BAND.format(n=seeds(along))}. On its way to the "
        f"start it changes, trained, by these decades: {_ends(change, report, '{:+.1f}')}."
    )


def states(found: Analysis, report: Report) -> str:
    """Of the norms of states along sequences."""
    along = found["along"]
    trained = along[along["moment"] == along["moment"].iloc[-1]]
    last = trained.groupby(["variant", "seed"], sort=False)["state_norm"].last()
    return (
        f"Norm of the hidden state at each step, a mean over {found.options['count']} test "
        f"examples; {BAND.format(n=seeds(along))}. At the last step, trained: "
        f"{_ends(last.groupby('variant', sort=False).mean(), report)}."
    )


def exponents(found: Analysis, report: Report, name: str = "exponents") -> str:
    """Of exponents in descending order: along test examples, or `noise_exponents`."""
    frame = found[name]
    of = f"{found.options['count']} test examples"
    if name != "exponents":
        from rnnbench_nb.analyses.gradients import NOISE_SEQUENCES, NOISE_STEPS, WARM_UP

        of = f"{NOISE_SEQUENCES} sequences of {NOISE_STEPS} steps of noise after {WARM_UP}"
    trained = frame[frame["moment"] == frame["moment"].iloc[-1]]
    largest = trained.groupby(["variant", "seed"], sort=False)["exponent"].max()
    return (
        f"Exponents in descending order, means over {of}; {BAND.format(n=seeds(frame))}. Dashed: "
        f"above it a direction grows. Largest, trained: "
        f"{_ends(largest.groupby('variant', sort=False).mean(), report, '{:+.3f}')}."
    )


def trajectories(found: Analysis, report: Report) -> str:
    """Of states in their two main directions."""
    shares = found["shares"].set_index("variant")
    both = 100 * (shares["first"] + shares["second"])
    return (
        f"States of {found['trajectories']['example'].nunique()} test examples from the first step "
        "to the last, a line each, in the two directions of the largest variance; trained, first "
        f"seed, coloured by target. The two hold this much of the variance in %: "
        f"{_ends(both, report, '{:.0f}')}."
    )


def memory(found: Analysis, lined: Report) -> str:
    """Of the error against length; `lined` knows the labels of what is drawn as one line."""
    said = found.texts("answer")[-1].replace("**", "")
    return (
        "What is left of the error without memory, against length: points are means over "
        f"{seeds(found['errors'])}, bands one standard deviation. {said}"
    )
