"""Every number that an executed notebook shows, looked for in the frames and findings behind it."""

import html
import re

import pandas as pd

NUMBER = re.compile(r"(?<![\w.])([-+]?)(\d[\d,]*(?:\.\d+)?)(?:e([-+]?\d+))?(?![\w])")


def pool(*analyses):
    """The numbers in frames and findings; those in texts of frames too, but not in sentences."""
    found = []

    def take(value):
        if isinstance(value, dict):
            take(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                take(item)
        elif isinstance(value, str):
            found.extend(number for number, _, _ in numbers(value))
        elif value is not None and not isinstance(value, bool) and value == value:
            found.append(float(value))

    for analysis in analyses:
        for frame in analysis.frames.values():
            take([frame[column].drop_duplicates().tolist() for column in frame])
        take([finding.numbers for finding in analysis.findings])
    return found


def numbers(text):
    """Each number in a text: its value, half of its last digit, and its sign if it shows one."""
    for sign, digits, power in NUMBER.findall(text):
        scale = 10.0 ** int(power or 0)
        value = float(digits.replace(",", "")) * scale
        half = 0.5 * 10.0 ** -len(digits.partition(".")[2]) * scale
        if half == 0.5 and value < 10:  # a small count is no rounded number
            half = 0.005
        yield (-value if sign == "-" else value), half, sign


def shown(notebook):
    """The texts that the code cells of an executed notebook show, figures aside."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data and "text/markdown" not in data:
                text = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.S)
                yield html.unescape(re.sub(r"<[^>]*>", " ", text))
            elif not any(kind.startswith("image/") for kind in data):
                plain = data.get("text/markdown", data.get("text/plain", output.get("text", "")))
                yield "".join(plain)


def unexplained(notebook, analyses, names=()):
    """The numbers shown by a notebook that no frame or finding holds, each with its text.

    A number may be rounded to its digits, and scaled by 100.

    Args:
        notebook: An executed one.
        analyses: Those that it shows.
        names: Texts with digits that are names: of variants, and of measures such as F1.
    """
    values = pd.Series(pool(*analyses)).drop_duplicates().to_numpy()
    missing = []
    for text in shown(notebook):
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, " ")
        for value, half, sign in numbers(text):
            near = False
            for scale in (1, 100):
                there = scale * values if sign else abs(scale * values)
                near |= bool((abs(there - value) <= half * (1 + 1e-6)).any())
            if not near:
                missing.append((value, text.strip()[:200]))
    return missing
