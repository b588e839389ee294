"""The label and the look of each variant of a report, from its cell."""

import colorsys
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

DASHES = [(3, 1, 1, 1), (6, 2), (2, 2), (5, 1, 1, 1, 1, 1), (8, 1), (1, 2)]
MARKERS = ["D", "v", "P", "X", "<", ">", "h"]


class Look(NamedTuple):
    """How a variant is drawn: colour as #rrggbb, dashes (on and off, in points), marker."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


def labels(cells: Mapping[str, Any]) -> dict[str, str]:
    """The label of each variant, from the cell class of each.

    A variant named after its cell has the cell's label (`gru_128` of the cell `gru` has
    `GRU-128`); any other keeps its own name. A part of a cell's label after a comma is put in
    brackets, because sentences separate labels by commas.
    """
    result = {}
    for name, cell in cells.items():
        label = re.sub(r", (.*)", r" (\1)", cell.label)
        rest = name.removeprefix(f"{cell.name}_")
        if name == cell.name:
            result[name] = label
        elif rest == name:
            result[name] = name
        else:
            result[name] = f"{label}-{rest}"
    return result


def looks(cells: Mapping[str, Any]) -> dict[str, Look]:
    """A different look for each variant, from the cell class of each.

    The variant named after its cell, or the only one of its cell, has the cell's look; other
    variants, and cells without a look, have the next spare one.
    """
    names = [cell.name for cell in cells.values()]
    result, spare = {}, 0
    for name, cell in cells.items():
        if cell.colour and (name == cell.name or names.count(cell.name) == 1):
            result[name] = Look(cell.colour, cell.dashes, cell.marker)
            continue
        hue, lightness = (0.36 + 0.381966 * spare) % 1, (0.33, 0.45, 0.57)[spare % 3]
        rgb = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.6))
        marker = MARKERS[spare % len(MARKERS)]
        result[name] = Look("#{:02x}{:02x}{:02x}".format(*rgb), DASHES[spare % len(DASHES)], marker)
        spare += 1
    return result
