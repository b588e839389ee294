"""The label and the style of each variant of a report, from its cell."""

import re
from collections.abc import Mapping
from colorsys import hls_to_rgb
from typing import Any, NamedTuple

DASHES = [(3, 1, 1, 1), (6, 2), (2, 2), (5, 1, 1, 1, 1, 1), (8, 1), (1, 2)]
MARKERS = ["D", "v", "P", "X", "<", ">", "h"]


class Look(NamedTuple):
    """The style of a variant in figures: colour #rrggbb, dashes (on and off, in points), marker."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


def labels(cells: Mapping[str, Any]) -> dict[str, str]:
    """Return the label of each variant, from the variants' cell classes.

    A variant whose name begins with its cell's has the cell's label: `gru_128` of the cell `gru` is
    `GRU-128`. Any other variant keeps its name. What follows a comma in a cell's label goes into
    brackets, because sentences separate labels by commas.
    """
    result = {}
    for name, cell in cells.items():
        label = re.sub(r", (.*)", r" (\1)", cell.label)
        if name == cell.name:
            result[name] = label
        elif name.startswith(f"{cell.name}_"):
            result[name] = label + "-" + name.removeprefix(f"{cell.name}_")
        else:
            result[name] = name
    return result


def looks(cells: Mapping[str, Any]) -> dict[str, Look]:
    """Return a different style for each variant: that of its cell class, or a spare one."""
    names = [cell.name for cell in cells.values()]
    result, spare = {}, 0
    for name, cell in cells.items():
        if cell.colour and (name == cell.name or names.count(cell.name) == 1):
            result[name] = Look(cell.colour, cell.dashes, cell.marker)
            continue
        hue, lightness = (0.36 + 0.381966 * spare) % 1, (0.33, 0.45, 0.57)[spare % 3]
        colour = "#" + bytes(round(255 * part) for part in hls_to_rgb(hue, lightness, 0.6)).hex()
        result[name] = Look(colour, DASHES[spare % len(DASHES)], MARKERS[spare % len(MARKERS)])
        spare += 1
    return result
