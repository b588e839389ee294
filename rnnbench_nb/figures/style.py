"""How figures look: the theme, the label and look of each variant, saving and showing.

Figures take tidy frames with a column `variant` and the report, which knows the label and the
look of each: one colour, dashes and marker throughout, different in greyscale too.
"""

import base64
import colorsys
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.artist import Artist
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from rnnbench_nb.files import write_file

if TYPE_CHECKING:
    from rnnbench_nb.report import Report

mpl.rcdefaults()  # not those of a matplotlibrc
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
FONTS = "font-family: 'Arial', 'DejaVu Sans', sans-serif; "  # of every text, as SVG has it
LIGHT_PAGE, DARK_PAGE = "#ffffff", "#14181c"  # as in templates/style.css
FEW = 8  # lines, beyond which they cannot be told apart
SMALL = 40_000  # bytes: what is larger as SVG is shown as PNG


def labelled(frame: pd.DataFrame, report: "Report") -> pd.DataFrame:
    """The frame with a column `label`, the name for people of its `variant`."""
    return frame.assign(label=frame["variant"].map(report.labels))


def few(frame: pd.DataFrame, report: "Report", figure: Figure) -> pd.DataFrame:
    """The rows of the first few variants, labelled; a title says so where there are more."""
    names = frame["variant"].unique()
    if len(names) > FEW:
        figure.suptitle(f"The first {FEW} of {len(names)} variants")
    return labelled(frame[frame["variant"].isin(names[:FEW])], report)


def look(report: "Report", part: str) -> dict[str, Any]:
    """One part of the look of each variant, `colour`, `dashes` or `marker`, by its label.

    Colours are darkened where their contrast with a white page is below 3.
    """
    found = {report.labels[name]: getattr(look, part) for name, look in report.looks.items()}
    return (
        {n: legible(value, LIGHT_PAGE, 3) for n, value in found.items()}
        if part == "colour"
        else found
    )


def contrast(one: str, other: str) -> float:
    """The contrast of two colours #rrggbb by WCAG 2, from 1 to 21."""
    lights = []
    for colour in (one, other):
        channels = mpl.colors.to_rgb(colour)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(lights) / min(lights)


def legible(colour: str, page: str, least: float) -> str:
    """The colour, made darker on a light page or lighter on a dark one up to a contrast."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*mpl.colors.to_rgb(colour))
    away = -0.01 if page == LIGHT_PAGE else 0.01
    while contrast(colour, page) < least:
        lightness += away
        colour = mpl.colors.to_hex(colorsys.hls_to_rgb(hue, lightness, saturation))
    return colour


def dark(colour: str) -> str:
    """A colour #rrggbb of a figure, for a dark page: greys turn round, others have contrast 4."""
    _, lightness, saturation = colorsys.rgb_to_hls(*mpl.colors.to_rgb(colour))
    if saturation < 0.05:
        return mpl.colors.to_hex(str(0.93 - 0.84 * lightness)) if lightness < 1 else DARK_PAGE
    return legible(colour, DARK_PAGE, 4)


def _rounded(tag: re.Match) -> str:
    """A tag with few decimals in its places; what is written between tags stays."""

    def short(number: re.Match) -> str:
        value = float(number[0])
        return f"{value:.{1 if abs(value) >= 1 else 2}f}".rstrip("0").rstrip(".")

    return re.sub(r" ?([A-Za-z]) (?=[-\d])", r"\1", re.sub(r"-?\d+\.\d+", short, tag[0]))


def _draw(figure: Figure, buffer: io.IOBase, **options: Any) -> None:
    """Draw a figure by `savefig`, laid out the first time alone: each part stays where it is."""
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.savefig(buffer, **options)
        figure.set_layout_engine(None)  # with "none", savefig would go on drawing it twice


def as_svg(figure: Figure, **place: Any) -> str:
    """A figure as SVG: text as text, few decimals, and other colours on a dark page.

    Args:
        figure: The figure.
        place: Of `savefig`, such as the box to draw.
    """
    buffer = io.StringIO()
    _draw(figure, buffer, format="svg", metadata={"Date": None, "Creator": None}, **place)
    text = buffer.getvalue()
    text = re.sub(
        r'<metadata>.*?</metadata>|<!--.*?-->|(?<=<g) id="[^"]*"| transform="rotate\(-0 [^"]*"',
        "", text[text.index("<svg") :], flags=re.S,
    )  # fmt: skip
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
    groups: list[bool] = []  # whether those that are open say anything

    def needed(tag: re.Match) -> str:
        says = groups.pop() if tag[0] == "</g>" else tag[0] != "<g>"
        if tag[0] != "</g>":
            groups.append(says)
        return tag[0] * says

    text = re.sub(r"</?g\b[^>]*(?<!/)>", needed, text.replace("<g/>", ""))
    names: dict[str, str] = {}  # a style that many marks have is written once

    def named(match: re.Match) -> str:
        style = match[1].replace(FONTS, "").replace("; ", ";").replace(": ", ":")
        return f'class="{names.setdefault(style, f"s{len(names)}")}"'

    text = re.sub(r"<[^>]+>", _rounded, re.sub(r'style="([^"]*)"', named, text))
    rules = f"text{{{FONTS}}}" + "".join(f".{name}{{{style}}}" for style, name in names.items())
    rules += "@media (prefers-color-scheme:dark){"
    for style, name in names.items():
        colours = re.findall(r"(fill|stroke):(#[0-9a-f]{6})", style)
        turned = ";".join(f"{part}:{dark(colour)}" for part, colour in colours)
        rules += f".{name}{{{turned}}}" * bool(turned)
    return text.replace("<defs>", f"<style>{rules}}}</style><defs>", 1)


def as_png(figure: Figure, dpi: float, **place: Any) -> bytes:
    """A figure as PNG of at most 64 colours, or 128 with a colour scale; `place` as of `as_svg`."""
    buffer = io.BytesIO()
    _draw(figure, buffer, format="png", dpi=dpi, **place)
    small = io.BytesIO()
    colours = 128 if _holds(figure, QuadMesh) else 64
    Image.open(buffer).convert("RGB").quantize(colours).save(small, format="png", optimize=True)
    return small.getvalue()


def _holds(figure: Figure, *kinds: type) -> bool:
    held = [part for ax in figure.axes for part in (*ax.images, *ax.collections)]
    return any(isinstance(part, kinds) for part in held)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG and SVG, `path` being the name without its ending; closes it."""
    write_file(f"{path}.svg", as_svg(figure))  # first, as where it is drawn alone
    write_file(f"{path}.png", as_png(figure, dpi=150))
    plt.close(figure)


def show(
    figure: Figure, alt: str, caption: str = "", live: dict[str, list] | None = None, **place: Any
) -> None:
    """Show a figure in a notebook, as SVG or, where that is large or holds pixels, PNG; closes it.

    Args:
        figure: The figure.
        alt: What it shows, for those who cannot see it.
        caption: What stands under it on a page: what marks, bars and bands are; `alt` if empty.
        live: What the script of a page moves beside it (templates/sliders.js).
        place: `display_id` and `update` of IPython's display, for a figure that changes.
    """
    pixels = _holds(figure, mpl.image.AxesImage, QuadMesh)
    kind, draw, data = "image/svg+xml", as_svg, "" if pixels else as_svg(figure)
    if pixels or len(data) > SMALL:
        kind, draw = "image/png", _as_base64
        data = draw(figure)
    words: dict[str, Any] = {"alt": alt} | ({"caption": caption} if caption else {})
    words |= {"live": json.dumps(live, separators=(",", ":"))} if live else {}
    if boxes := _panels(figure):
        words["panels"] = []
        for part in boxes:
            part.set_visible(False)
        for part, box in boxes.items():
            part.set_visible(True)
            words["panels"].append(draw(figure, bbox_inches=box))
            part.set_visible(False)
    display({kind: data, "text/plain": alt}, metadata={kind: words}, raw=True, **place)
    plt.close(figure)


def _as_base64(figure: Figure, **place: Any) -> str:
    return base64.b64encode(as_png(figure, figure.dpi, **place)).decode()


def _panels(figure: Figure) -> dict[Artist, Bbox]:
    """The panels of a figure, its title and its legend, and the box of each in inches.

    A page that is narrow has them under one another. A figure of one panel has none; a colour bar
    is no panel.
    """
    axes = [ax for ax in figure.axes if ax.has_data() and ax.get_label() != "<colorbar>"]
    if len(axes) < 2:
        return {}
    inches = figure.dpi_scale_trans.inverted()
    parts = [*figure.texts, *axes, *figure.legends]
    return {part: part.get_tightbbox().transformed(inches).padded(0.04) for part in parts}


def say(*texts: str) -> None:
    """Show texts of Markdown in a notebook, a paragraph each."""
    for text in texts:
        display(Markdown(text))


def legend_below(figure: Figure, ax: mpl.axes.Axes) -> None:
    """The legend of one of the axes, each label once, in up to four columns under the figure."""
    handles = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    if ax.get_legend():
        ax.get_legend().remove()
    if handles:
        widest = 0.6 + 0.08 * max(map(len, handles))  # inches of a column
        panels = ax.get_subplotspec().get_gridspec().ncols  # legends are no wider than one of them
        few = 1 if len(handles) < 6 else 2
        columns = min(max(int(figure.get_figwidth() / panels / widest), few), 4)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=columns,
            frameon=False, fontsize="small",
        )  # fmt: skip
        figure.set_figheight(figure.get_figheight() + 0.2 * ((len(handles) - 1) // columns))
