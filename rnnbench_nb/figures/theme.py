"""How figures look: the theme, each variant's label and look, saving and showing.

Figures take tidy frames with a column `variant`, and the report, which knows the label and the look
of each variant. A variant has one colour, dashes and marker everywhere.
"""

import base64
import colorsys
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from rnnbench_nb.files import write_file

if TYPE_CHECKING:
    from rnnbench_nb.results import Report

mpl.rcdefaults()  # a matplotlibrc of the user has no say
sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
mpl.rcParams |= {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.sans-serif": ["Arial", "DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rnnbench",  # the same figure gives the same file
}


def labelled(frame: pd.DataFrame, report: "Report") -> pd.DataFrame:
    """Return the frame with a column `label`: the name of each variant for people."""
    return frame.assign(label=frame["variant"].map(report.labels))


def look(report: "Report", part: str) -> dict[str, Any]:
    """Return `colour`, `dashes` or `marker` of each variant, by its label."""
    values = {report.labels[name]: getattr(each, part) for name, each in report.looks.items()}
    return {label: legible(v) for label, v in values.items()} if part == "colour" else values


def legible(colour: str) -> str:
    """Darken a colour #rrggbb until its contrast with white (by WCAG 2) is above 3."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*mpl.colors.to_rgb(colour))
    while True:
        rgb = colorsys.hls_to_rgb(hue, lightness, saturation)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        light = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        if 1.05 / (light + 0.05) > 3.02:
            return mpl.colors.to_hex(rgb)
        lightness -= 0.01


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG, whose text is text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure, dpi: float = 100) -> bytes:
    """Return a figure as PNG of at most 64 colours, a third of the weight of all colours."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(64).save(packed, format="png", optimize=True)
    return packed.getvalue()


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as `path`.png and `path`.svg, and close it."""
    write_file(f"{path}.svg", as_svg(figure))
    write_file(f"{path}.png", as_png(figure))
    plt.close(figure)


def show(figure: Figure, alt: str, caption: str = "", **place: Any) -> None:
    """Show a figure in a notebook as PNG, and close it.

    Args:
        figure: The figure.
        alt: What it shows, for those who cannot see it.
        caption: What stands under it on a page.
        place: `display_id` and `update` of IPython's `display`, for a figure that changes.
    """
    data = {"image/png": base64.b64encode(as_png(figure)).decode(), "text/plain": alt}
    words = {"alt": alt, "width": round(100 * figure.get_figwidth())}  # pixels on the page
    words |= {"caption": caption} if caption else {}
    display(data, metadata={"image/png": words}, raw=True, **place)
    plt.close(figure)


def legend_below(figure: Figure, ax: mpl.axes.Axes) -> None:
    """Put the legend of some axes under the figure, each label once, in two to four columns."""
    handles = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    if legend := ax.get_legend():
        legend.remove()
    if not handles:
        return
    column = 0.6 + 0.08 * max(map(len, handles))  # inches
    place = ax.get_subplotspec()
    panels = place.get_gridspec().ncols if place else 1  # a legend is no wider than one of them
    columns = min(max(int(figure.get_figwidth() / panels / column), 2), 4)
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": columns}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", **style)
    figure.set_figheight(figure.get_figheight() + 0.2 * ((len(handles) - 1) // columns))
