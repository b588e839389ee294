"""What a search chose: for each contestant, the configuration that is best on validation."""

import math
import os
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from rnnbench_nb.metrics import Score
from rnnbench_nb.results import FAILED, Report, readable
from rnnbench_nb.statistics import format_score, validation_scores

LEAST = 4  # configurations of each contestant, unless a protocol says that it is a search
BUDGET = ["training_examples", "epochs", "steps"]
APART = {"seed", *BUDGET, "device", "test", "variant", "hidden_size"}  # never searched
NATURAL = {"dropout": 0, "epsilon": 1, "chrono": 1}  # the low (0) or high (1) end is no edge


class Choice(NamedTuple):
    """A contestant of a search, and its best configuration.

    The table has a row for each variant with a run: its `mean` validation score, NaN if its runs
    failed, its number of `seeds`, whether it had the largest budget (`last`), and the searched
    parameters, `keys`. The best of those with the largest budget is chosen, and `waiting` of their
    runs are not finished.
    """

    label: str
    table: pd.DataFrame
    keys: list[str]
    best: str
    waiting: int

    @property
    def configurations(self) -> int:
        """The number of different configurations."""
        return len(self.table[self.keys].drop_duplicates())

    def scale(self, key: str) -> str:
        """Return "log" if a parameter is positive over more than a factor of 10, else "linear"."""
        low, high = self.table[key].min(), self.table[key].max()
        return "log" if 0 < 10 * low < high and key != "dropout" else "linear"

    @property
    def edges(self) -> list[str]:
        """The parameters whose chosen value is among the outer tenth of the values tried."""
        edges = []
        for key in self.keys:
            values, chosen = np.unique(self.table[key]), self.table.loc[self.best, key]
            outer = max(1, round(len(values) / 10))
            ends = (values < chosen).sum() < outer, (values > chosen).sum() < outer
            if chosen and any(ends) and not (key in NATURAL and ends[NATURAL[key]]):
                edges.append(readable(key))  # 0 switches a parameter off
        return edges

    def sentence(self, score: Score) -> str:
        """Return the choice as a sentence."""
        chosen, last = self.table.loc[self.best], self.table[self.table["last"]]
        settings = ", ".join(f"{readable(key)} {chosen[key]:g}" for key in self.keys)
        mean = format_score(chosen["mean"], score, unit=score.unit)
        seeds = f"{chosen['seeds']:.0f} seeds" if chosen["seeds"] > 1 else "one seed"
        count, failed = self.configurations, self.table["mean"].isna().sum()
        again = f" ({failed} failed)" if failed else ""
        if len(last) < count:
            again += f", {len(last)} of which were trained again"
        edge = f" At the edge of the values tried: {', '.join(self.edges)}." if self.edges else ""
        runs = "run that it needs is" if self.waiting == 1 else "runs that it needs are"
        wait = f" It may change: {self.waiting} {runs} not finished." if self.waiting else ""
        return (
            f"{self.label}: {settings}. This is the best of {count} configurations{again}, "
            f"with {mean} on validation ({seeds}).{edge}{wait}"
        )


def choices(report: Report) -> list[Choice]:
    """Return the choice of each contestant of a search; empty if the report has no search.

    Runs that read no test example make a search (`Report.searched`). A report without such runs is
    one if each contestant has at least `LEAST` configurations of two or more parameters. The
    variants of a contestant share the cell, the size and all parameters that are no numbers.
    """
    report = report.searched
    own = pd.DataFrame([each["parameters"] for each in report.variants.values()])
    own.index = pd.Index(report.variants)
    declared = "test" in own and not own["test"].all()
    numeric = own.map(lambda value: type(value) in (int, float)).all()
    numbers = [key for key in own if numeric[key] and key not in APART]
    numbers.sort(key=lambda key: key != "learning_rate")
    same = own.drop(columns=[*numbers, *APART - {"hidden_size"}], errors="ignore").map(str)
    kinds = same.agg(" ".join, axis=1)
    score, found = report.score.name, []
    scores = validation_scores(report.results, report.history, score).groupby("variant")[score]
    scores = scores.agg(["mean", "size"]).rename(columns={"size": "seeds"})
    failed = [run["variant"] for run in report.missing if run["status"] == FAILED]
    budgets = {}
    for name, each in report.variants.items():
        sizes = [each["parameters"].get(key) for key in BUDGET]  # None: as much as there is
        sizes = [math.inf if size is None else size for size in sizes]
        budgets[name] = (*sizes, len(report.seeds[name]))
    for names in (own.index[kinds == kind] for kind in kinds.unique()):
        keys = [key for key in numbers if own.loc[names, key].nunique() > 1]
        table = own.loc[names, keys].astype(float).join(scores)
        table = table[table["mean"].notna() | table.index.isin(failed)]
        if len(finished := table.dropna(subset="mean")):
            most = max(budgets[name] for name in finished.index)
            table["last"] = [budgets[name] == most for name in table.index]
            needed = [name for name in names if budgets[name] >= most]
            done = finished["seeds"].reindex(needed, fill_value=0).sum()
            waiting = sum(len(report.seeds[name]) for name in needed) - int(done)
            best = table.loc[table["last"], "mean"].idxmax()
            found.append(Choice(_label(report, list(names)), table, keys, best, waiting))
    searched = declared or all(len(one.table) >= LEAST and len(one.keys) > 1 for one in found)
    return found if searched else []


def _label(report: Report, names: list[str]) -> str:
    """Return the label of the contestant with these variants, such as gru_search00."""
    start = os.path.commonprefix(names) if len(names) > 1 else names[0]
    name = re.sub(r"_((rate|search|finalist).*)?$", "", start)
    cell = report.marker["models"].get(name, {})
    return report.labels.get(name) or cell.get("label") or name
