"""The front page over published reports. Its text is the template `front.html.j2` beside them.

The template takes its numbers from the methods of `Evidence`. A sentence that data could make false
stands in a `claim` with its condition.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from rnnbench_nb import folders, statistics
from rnnbench_nb.cells import CELLS
from rnnbench_nb.choices import choices
from rnnbench_nb.dynamics import CAUSES
from rnnbench_nb.errors import UserError
from rnnbench_nb.figures import legible
from rnnbench_nb.files import write_file
from rnnbench_nb.measures import causes_of_growth
from rnnbench_nb.parameters import read_yaml
from rnnbench_nb.results import MARKER, Report
from rnnbench_nb.site import drawing
from rnnbench_nb.site.index import FRONT
from rnnbench_nb.site.render import ENVIRONMENT, TEMPLATES, fill
from rnnbench_nb.statistics import Verdict

WITHDRAWN = "withdrawn.yaml"  # beside the published reports: NAME: {commit, reason}
MOVED = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>A withdrawn report</title>
<meta http-equiv="refresh" content="0; url=../withdrawn.html#{name}">
<p><a href="../withdrawn.html#{name}">This report was withdrawn</a>.
"""


class Row(NamedTuple):
    """The difference a - b of two variants, in the unit of differences (such as points)."""

    report: str
    pair: str  # the labels
    words: str  # the verdict
    verdict: Verdict
    n: int  # common seeds
    difference: float  # mean over these seeds
    low: float  # ends of the interval that decides
    high: float
    margin: float
    dots: list[float]  # the difference in each seed
    place: str  # the page that it links to
    p: float = 1  # in the study's family of comparisons, corrected
    equality: float = 1  # the p of the hypothesis that they are equal within the margin, corrected
    pairs: int = 0  # in the report's comparison, for which its interval is corrected


class Line(NamedTuple):
    """A line of a chart with its label."""

    label: str
    colour: str
    points: list[tuple[float, float]]

    @property
    def end(self) -> float:
        """The y value of its right end."""
        return self.points[-1][1]


class Evidence:
    """The numbers of the published reports in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.report = cache(lambda name: Report(folder / name).tested)
        self._comparison = cache(lambda name: statistics.comparison(self.report(name)))

    def compare(self, name: str, a: str, b: str) -> Row:
        """Return the difference a - b of two variants of the report `name`.

        Raises:
            UserError: The report does not compare these variants.
        """
        table = self._comparison(name).set_index(["a", "b"], drop=False).to_dict("index")
        if (a, b) not in table and (b, a) not in table:
            raise UserError(f"{self.folder / name} does not compare {a} and {b}; change {FRONT}.")
        row = table[a, b] if (a, b) in table else statistics.reverse(table[b, a])
        low, high = row["family_low"], row["family_high"]
        none = f"{row['reason']}: no verdict"
        own = {"low": low, "high": high, "none": none, "place": f"{name}/index.html"}
        return self._row(name, {**row, **own})

    def primary(self) -> dict[tuple[str, str, str], Row]:
        """Return the comparisons that the study declared by (report, a, b).

        Their verdicts are corrected for all of them, their intervals are not.
        """
        table = statistics.primary_family(self.folder)
        kinds = [kind if kind in {*Verdict} else Verdict.NONE for kind in table["verdict"]]
        table = table.assign(none=table["verdict"], verdict=[*map(Verdict, kinds)])
        table["place"] = "study.html"
        rows = table.to_dict("records")
        return {(row["task"], row["a"], row["b"]): self._row(row["task"], row) for row in rows}

    def _row(self, name: str, row: Mapping[Any, Any]) -> Row:
        """Return a row of a table of comparisons; its key `none` has the words without verdict."""
        report = self.report(name) if (self.folder / name / MARKER).exists() else None
        cells = {key: cell.label for key, cell in CELLS.items()}
        labels = cells | (report.labels if report else {})
        a, b = (labels.get(row[each], row[each]) for each in "ab")
        small = ", mean below the margin" if row["small"] else ""
        words = {
            Verdict.BETTER: f"{a} better{small}",
            Verdict.WORSE: f"{b} better{small}",
            Verdict.EQUIVALENT: "equal within the margin",
            Verdict.UNDECIDED: "cannot tell",
            Verdict.NONE: row["none"],
        }[row["verdict"]]
        scale, runs = (report.score.scale, report.runs) if report else (1, [])
        scores = {run.key: run.scores for run in runs}
        dots = [scale * each.mean() for each in statistics.differences(scores, row["a"], row["b"])]
        low, high, margin = (scale * row[key] for key in ("low", "high", "margin"))
        pair, middle = f"{a} − {b}", round(scale * row["difference"], 9)
        if row.get("solved_a", math.nan) >= 0 and row["n"]:  # it is NaN for a pair with a margin
            words += f"; solved by {row['solved_a']:g} and {row['solved_b']:g} seeds"
        known = row["verdict"], row["n"], middle, low, high, margin, dots, row["place"]
        others = row.get("holm", 1), row.get("equivalence", 1), row.get("comparisons", 0)
        return Row(name, pair, words, *known, *others)

    def mean(self, name: str, variant: str) -> float:
        """Return the mean test score of a variant over its seeds, scaled (in percent)."""
        score, results = self.report(name).score, self.report(name).results
        return score.scale * results.query("variant == @variant")[score.name].mean()

    def best(self, name: str) -> str:
        """Return the variant with the highest mean test score."""
        return max(self.report(name).variants, key=lambda variant: self.mean(name, variant))

    def edges(self, name: str) -> dict[str, list[str]]:
        """Return the parameters whose choice lies at an edge of a search, by contestant."""
        return {one.label: one.edges for one in choices(Report(self.folder / name)) if one.edges}

    def seeds(self, name: str) -> str:
        """Return the number of seeds of a report's variants, such as "1 to 3"."""
        counts = [len(self.report(name).of(variant)) for variant in self.report(name).variants]
        return " to ".join(dict.fromkeys([str(min(counts)), str(max(counts))]))

    def devices(self, name: str) -> str:
        """Return " on two devices" if a report's runs were, and else nothing."""
        return " on two devices" * (
            len({run.record["device"] for run in self.report(name).runs}) > 1
        )

    def trainings(self) -> tuple[int, int, set[str]]:
        """Return the numbers of different trainings and of reports, and the reports with probes."""
        reports = [Report(path.parent) for path in self.folder.glob(f"*/{MARKER}")]
        records = [run.record for report in reports for run in report.runs]
        probed = {one.name for one in reports if any(run.record.get("probe") for run in one.runs)}
        return len({(r["started"], r["seed"], r["seconds"]) for r in records}), len(reports), probed

    def gradients(self, name: str, variants: Sequence[str], moment: str) -> list[Line]:
        """Return log10 of the gradient's norm by steps back from the last one, as means over seeds.

        The norm is relative to the one at the last step.
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

    def radius(self, name: str, variant: str) -> float:
        """Return the spectral radius of the matrix A = S - gamma I at the start, a mean over seeds.

        It is the spectral norm too if S is antisymmetric.
        """
        rows = self.report(name).table("stability")
        rows = rows.query("variant == @variant and moment == 'initial'")
        gamma = self.report(name).variants[variant]["parameters"]["gamma"]
        return float(np.hypot(rows["lambda_max"], gamma).mean())

    def causes(self, name: str) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Return what makes trained gradients grow, as mean and interval in decades, by label.

        The keys are `all`, the growth as a whole; its causes, by Shapley value; and the `rest`.
        """
        report = self.report(name)
        result: dict[str, dict[str, tuple[float, float, float]]] = {}
        decades, effects = causes_of_growth(report.table("growth"), "variant")
        parts = {"all": decades["whole"]}
        parts |= {cause: effects["Shapley"].xs(cause) for cause in CAUSES}
        parts["rest"] = decades["flow of the balanced path"]
        for variant in decades.index.unique("variant"):
            result[report.labels[variant]] = own = {}
            for cause, values in parts.items():
                table = values.xs((variant, "trained")).unstack("example").to_numpy()
                own[cause] = (float(table.mean()), *statistics.mean_interval(table))
        return result

    def speed(self, model: str, other: str) -> tuple[float, str]:
        """Return the time of a training step of `other` over that of `model`, and the processor.

        A step reads 128 images by row, with 128 units, one thread and float32.
        """
        content = json.loads((self.folder / "precision/speed.json").read_text(encoding="utf-8"))
        rows = pd.DataFrame(content["rows"]).query(
            "task == 'train' and precision == 'highest' and steps == 28 and hidden == 128 "
            "and batch == 128 and threads == 1"
        )
        median = rows.groupby("model")["seconds"].median()
        return median[other] / median[model], content["machine"]["processor"]

    def replay(self) -> dict[str, Any] | None:
        """Return the drawing page's first image and how the models read it; None without the page.

        `lines` show the probability of the right class after each row, in percent; `disagree` tells
        whether the final answers of the models differ.
        """
        content = drawing.read(self.folder)
        if content is None:
            return None
        picture, pixels = io.BytesIO(), base64.b64decode(content["images"][0])
        Image.frombytes("L", (content["side"],) * 2, pixels).save(picture, "png")
        return {
            "picture": f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}",
            "label": content["classes"][content["targets"][0]],
            "disagree": content["disagree"],
            "lines": [
                Line(model["label"], legible(model["colour"]), list(enumerate(model["replay"], 1)))
                for model in content["models"]
            ],
        }


def claim(path: Path, name: str, condition: Any, caller: Callable[[], str]) -> str:
    """Return a sentence of the template at `path`, or raise a UserError if its condition fails."""
    if not condition:
        raise UserError(
            f"{path}: the claim {name!r} is no longer true; rewrite it to match the reports."
        )
    return f"{caller()} "


def places(lines: Sequence[Line], top: float, bottom: float, height: float) -> Mapping[str, float]:
    """Return the heights of the lines' labels in pixels from the top, at least 16 apart."""
    heights, last = {}, -16.0
    for line in sorted(lines, key=lambda line: -line.end):
        heights[line.label] = last = max(height * (top - line.end) / (top - bottom), last + 16)
    return heights


def render(folder: Path, template: str = FRONT) -> str:
    """Return the front page of a folder of published reports, or that of another template there.

    Raises:
        UserError: The folder has no template, or a claim in it is no longer true.
    """
    path, loader = folder / template, jinja2.FileSystemLoader([folder, TEMPLATES])
    if not path.exists():
        raise UserError(f"{path} does not exist; write this template for a front page.")
    try:
        return fill(
            ENVIRONMENT.overlay(loader=loader).get_template(template),
            page=None,
            evidence=Evidence(folder),
            claim=partial(claim, path),
            places=places,
            Verdict=Verdict,
            draw=(folder / drawing.SCRIPT).exists(),
        )
    except (jinja2.TemplateError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid template ({error}); correct it.") from error


def withdrawn(folder: Path) -> dict[str, str]:
    """Return the page of withdrawn reports, and one at the old address of each, by path."""
    if not (folder / WITHDRAWN).exists():
        return {}
    reports = read_yaml(folder / WITHDRAWN, "correct it")
    pages = {"withdrawn.html": fill("withdrawn.html.j2", reports=reports, page=None)}
    gone = [name for name in reports if not (folder / name / MARKER).exists()]
    return pages | {f"{name}/index.html": MOVED.format(name=name) for name in gone}


def build(folder: Path) -> Path:
    """Write the front page, the drawing page and those of withdrawn reports; return the first.

    Any other template NAME.html.j2 in the folder makes the page NAME.html.
    """
    pages = {"index.html": render(folder), **withdrawn(folder)}
    others = {path.name for path in folder.glob("*.html.j2")} - {FRONT}
    pages |= {name.removesuffix(".j2"): render(folder, name) for name in sorted(others)}
    drawing.build(folder)
    folders.register(folder, pages)
    for name, text in pages.items():
        write_file(folder / name, text)
    return folder / "index.html"
