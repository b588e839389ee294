"""The front page over published reports: an article whose numbers come from the reports.

Its words are in `front.html.j2` beside the reports. That template calls the methods of `Evidence`
for numbers, and puts each sentence that data could make false into a `claim` with its condition.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from PIL import Image

from rnnbench_nb import folders, statistics
from rnnbench_nb.errors import UserError
from rnnbench_nb.figures import legible
from rnnbench_nb.files import write_file
from rnnbench_nb.results import MARKER, Report
from rnnbench_nb.site import drawing
from rnnbench_nb.site.index import repository
from rnnbench_nb.site.render import ENVIRONMENT, TEMPLATES, typeset
from rnnbench_nb.statistics import Verdict

TEMPLATE = "front.html.j2"
OPPOSITE = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}


class Row(NamedTuple):
    """The difference between two variants of a report, in the unit of differences (points)."""

    report: str
    a: str  # labels
    b: str
    n: int  # common seeds
    difference: float  # mean of a minus b
    low: float  # ends of the interval that decides
    high: float
    margin: float
    verdict: Verdict
    small: bool  # better or worse by less than the margin
    reason: str  # why there is no verdict
    dots: list[float]  # the difference in each seed

    @property
    def words(self) -> str:
        """The verdict in a few words."""
        better = {Verdict.BETTER: self.a, Verdict.WORSE: self.b}.get(self.verdict)
        if better:
            return f"{better} better" + ", below the margin" * self.small
        if self.verdict == Verdict.NONE:
            return f"{self.reason}: no verdict"
        return {Verdict.EQUIVALENT: "equal within the margin"}.get(self.verdict, "cannot tell")


class Line(NamedTuple):
    """A line of a chart with its label."""

    label: str
    colour: str
    points: list[tuple[float, float]]

    @property
    def end(self) -> float:
        """The height of its right end."""
        return self.points[-1][1]


class Evidence:
    """The numbers of the published reports in a folder.

    Args:
        folder: Holds the reports.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.report = cache(lambda name: Report(folder / name))
        self._comparison = cache(lambda name: statistics.comparison(self.report(name)))

    def compare(self, name: str, a: str, b: str) -> Row:
        """The difference a minus b between two variants of the report `name`.

        Raises:
            UserError: The report does not compare the two.
        """
        report, table = self.report(name), self._comparison(name)
        rows = table[table["a"].isin([a, b]) & table["b"].isin([a, b])].to_dict("records")
        if not rows:
            raise UserError(f"{self.folder / name} does not compare {a} and {b}; see {TEMPLATE}.")
        row, scale, sign = rows[0], report.score.scale, 1
        if row["a"] != a:
            sign, low, high = -1, -row["family_high"], -row["family_low"]
            row |= {"family_low": low, "family_high": high}
            row["verdict"] = OPPOSITE.get(row["verdict"], row["verdict"])
        scores = {run.key: run.scores.mean() for run in report.runs}
        dots = [scores[a, seed] - scores[b, seed] for variant, seed in scores
                if variant == a and (b, seed) in scores]  # fmt: skip
        return Row(
            name, report.labels[a], report.labels[b], row["n"], sign * scale * row["difference"],
            scale * row["family_low"], scale * row["family_high"], scale * row["margin"],
            row["verdict"], row["small"], row["reason"], [scale * dot for dot in dots],
        )  # fmt: skip

    def mean(self, name: str, variant: str) -> float:
        """The mean test score of a variant over its seeds, as people read it (per cent)."""
        report = self.report(name)
        results = report.results[report.results["variant"] == variant]
        return report.score.scale * results[report.score.name].mean()

    def seeds(self, *names: str) -> str:
        """The number of seeds of the variants of some reports, such as `1 to 3`."""
        counts = [len(self.report(n).of(v)) for n in names for v in self.report(n).variants]
        ends = dict.fromkeys(str(end) for end in (min(counts), max(counts)))
        return " to ".join(ends)

    def trainings(self) -> tuple[int, int]:
        """The number of trainings, each counted once, and of reports."""
        reports = [self.report(path.parent.name) for path in self.folder.glob(f"*/{MARKER}")]
        keys = {
            (run.record["started"], run.record["seed"], run.record["seconds"])
            for report in reports
            for run in report.runs
        }
        return len(keys), len(reports)

    def gradients(self, name: str, variants: Sequence[str], moment: str) -> list[Line]:
        """How the gradient changes on its way back through time.

        Returns:
            For each variant the mean over seeds of log10 of the gradient's norm, relative to its
            norm at the last step, against the number of steps back from there.
        """
        lines, report = [], self.report(name)
        for variant in variants:
            rows = report.table("along").query("variant == @variant and moment == @moment")
            wide = rows.pivot(index="step", columns="seed", values="log10_gradient")
            mean = (wide - wide.iloc[-1]).mean(axis=1)[::-1]
            points = [(float(mean.index[0] - step), float(y)) for step, y in mean.items()]
            colour = legible(report.looks[variant].colour)
            lines.append(Line(report.labels[variant], colour, points))
        return lines

    def growth(self, name: str, variant: str, without: str) -> float:
        """The decades that the trained gradient grows by less if a cause is replaced.

        Args:
            name: The report.
            variant: The variant.
            without: The replacement, as the measured table `growth` names it.
        """
        table = self.report(name).table("growth")
        rows = table.query("variant == @variant and moment == 'trained'")
        mean = rows.groupby("replacement")["gradient"].mean()
        return mean["whole"] - mean[without]

    def speed(self, model: str, other: str, name: str = "precision") -> tuple[float, str]:
        """How many times as long a training step of `other` takes, and the processor.

        A step reads a batch of 128 images by row, with 128 units, one thread and float32.
        """
        content = json.loads((self.folder / name / "speed.json").read_text(encoding="utf-8"))
        rows = pd.DataFrame(content["rows"]).query(
            "task == 'train' and precision == 'highest' and steps == 28 and hidden == 128 "
            "and batch == 128 and threads == 1"
        )
        median = rows.groupby("model")["seconds"].median()
        return median[other] / median[model], content["machine"]["processor"]

    def replay(self) -> dict[str, Any] | None:
        """The first image of the drawing page and how the models read it; None without that page.

        Returns:
            `picture`, an address; `label`, its class; `disagree`, whether the models end with
            different answers; `lines`, the probability of the right class after each row, in per
            cent.
        """
        content = drawing.read(self.folder)
        if content is None:
            return None
        side, picture = content["side"], io.BytesIO()
        pixels = base64.b64decode(content["images"][0])
        Image.frombytes("L", (side, side), pixels).save(picture, "png")
        data = base64.b64encode(picture.getvalue()).decode()
        lines = [
            Line(model["label"], legible(model["colour"]), list(enumerate(model["replay"], 1)))
            for model in content["models"]
        ]
        label = content["classes"][content["targets"][0]]
        return {"picture": f"data:image/png;base64,{data}", "label": label, "lines": lines,
                "disagree": content["disagree"]}  # fmt: skip


def claim(path: Path) -> Callable[..., str]:
    """The function `claim` of a template at `path`."""

    def claim(name: str, condition: Any, caller: Callable[[], str]) -> str:
        if not condition:
            raise UserError(
                f"{path}: the claim {name!r} is no longer true; write what the reports say now."
            )
        return f"{caller()} "

    return claim


def places(lines: Sequence[Line], top: float, bottom: float, height: float) -> Mapping[str, float]:
    """The heights in pixels of the lines' labels, at least 16 apart, from the top of a chart."""
    found, last = {}, -16.0
    for line in sorted(lines, key=lambda line: -line.end):
        last = max(height * (top - line.end) / (top - bottom), last + 16)
        found[line.label] = last
    return found


def render(folder: Path) -> str:
    """The front page of a folder of published reports.

    Raises:
        UserError: The folder has no template, or a claim in it is no longer true.
    """
    path, evidence = folder / TEMPLATE, Evidence(folder)
    if not path.exists():
        raise UserError(f"{path} does not exist, so there is no front page; write it.")
    loader = jinja2.FileSystemLoader([folder, TEMPLATES])
    template = ENVIRONMENT.overlay(loader=loader).get_template(TEMPLATE)
    values = {"evidence": evidence, "claim": claim(path), "places": places, "Verdict": Verdict}
    values |= {"repository": repository(), "draw": (folder / drawing.SCRIPT).exists()}
    return typeset(template.render(values))


def build(folder: Path) -> Path:
    """Write index.html of a folder of published reports, and the drawing page beside it.

    Returns:
        The path of index.html.
    """
    text = render(folder)
    drawing.build(folder)
    folders.own(folder, ["index.html"])
    write_file(folder / "index.html", text)
    return folder / "index.html"
