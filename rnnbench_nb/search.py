"""A search over settings that treats all contestants alike."""

from collections.abc import Collection, Mapping
from itertools import chain
from typing import Annotated, Any

import torch
from pydantic import Field

from rnnbench_nb.errors import UserError, lookup
from rnnbench_nb.parameters import Count, Frozen, Name, NotNegative, Size, unknown

Values = dict[str, Any]
Range = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]


class Draw(Frozen):
    """`points` of a scrambled Sobol sequence in the `ranges` of parameters, low and high ends.

    A range is logarithmic if its low end is above 0. Values are rounded to two digits.
    """

    seed: Count
    points: Size
    ranges: dict[str, Range]

    def configurations(self) -> list[Values]:
        """Return the values of every point."""
        low, high = torch.tensor(list(self.ranges.values()), dtype=torch.float64).T
        engine = torch.quasirandom.SobolEngine(len(low), scramble=True, seed=self.seed)
        places = engine.draw(self.points, dtype=torch.float64)
        linear = low + (high - low) * places
        points = torch.where(low > 0, low * (high / low) ** places, linear)
        rounded = [[float(f"{value:.2g}") for value in point] for point in points.tolist()]
        return [dict(zip(self.ranges, point, strict=True)) for point in rounded]


class Search(Frozen):
    """The search of a protocol: every contestant tries the same configurations, without test data.

    A contestant is a variant of the parameter file. It trains configuration K once, with the seed
    `seed` and the parameters `values`, as CONTESTANT_searchK. The `finalists` of a contestant, a
    list of such K, are trained with the next `finalist_runs` seeds and the parameters
    `finalist_values`, by default the whole budget, as CONTESTANT_finalistK. The contestant itself
    has the configuration that `choices` names, and no runs before there is one. It leaves out what
    its cell has no option for.
    """

    seed: Count
    draws: Annotated[list[Draw], Field(min_length=1)]
    values: Values = {}
    finalists: dict[Name, list[Count]] = {}
    finalist_values: Values = {}
    finalist_runs: Size = 2
    choices: dict[Name, Count] = {}

    def variants(
        self,
        contestants: Mapping[str, Values],
        options: Mapping[str, type[Frozen]],
        common: Mapping[str, Any],
        declared: Collection[str],
        where: str,
    ) -> dict[str, Values]:
        """Return the values of all variants by name.

        Args:
            contestants: The values of each contestant.
            options: The class of the options of each contestant's cell.
            common: The keys that every contestant has, with the types of their values.
            declared: The names of all variants of the file, of which `contestants` take part.
            where: The source of the values, for errors.

        Raises:
            UserError: A finalist, a choice or a range belongs to no variant.
        """
        points = [point for draw in self.draws for point in draw.configurations()]
        chosen = [*self.finalists.items(), *((name, [k]) for name, k in self.choices.items())]
        for name, numbers in chosen:
            lookup(dict.fromkeys([*contestants, *declared]), f"{where}: search", name)
            if max(numbers, default=0) >= len(points):
                raise UserError(
                    f"{where}: search: {name}: there is no configuration {max(numbers)}; name some "
                    f"from 0 to {len(points) - 1}."
                )
        read = {*common, *chain(*(kind.model_fields for kind in options.values()))}
        for key in (key for draw in self.draws for key in draw.ranges if key not in read):
            raise UserError(f"{where}: search: {unknown(key, read)}")
        every: dict[str, Values] = {}
        for name, own in contestants.items():
            own_options = options[name].model_fields.items()
            kinds = {**common, **{key: field.annotation for key, field in own_options}}
            known = [
                {
                    key: round(value) if kinds[key] is int else value
                    for key, value in point.items()
                    if key in kinds
                }
                for point in points
            ]
            if name in self.choices:
                every[name] = own | known[self.choices[name]]
            once = {"seed": self.seed, "runs": 1, "test": False} | self.values
            every |= {f"{name}_search{k:02}": own | each | once for k, each in enumerate(known)}
            again = {"seed": self.seed + 1, "runs": self.finalist_runs, "test": False}
            again |= self.finalist_values
            for k in self.finalists.get(name, []):
                every[f"{name}_finalist{k:02}"] = own | known[k] | again
        return every
