"""What the notebooks share: a report to read, sentences with numbers, figures and sliders."""

import atexit
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from IPython.display import Markdown, display

from rnnbench_nb.figures.theme import show
from rnnbench_nb.files import PROJECT, write_file
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report

__all__ = ["claim", "open_report", "show", "sliders"]
DEFAULT_REPORT = "reports/quick"
DEMONSTRATION = {"dataset": "digits", "epochs": 5, "learning_rate": 0.003, "hidden_size": 32}


def open_report(output_dir: str) -> Report:
    """Open a report and show what its reader has to know first.

    Where the default folder holds no report, a demonstration is trained in a temporary folder.

    Args:
        output_dir: Folder of the report, relative to the project.

    Raises:
        UserError: A folder other than the default holds no report.
    """
    folder = PROJECT / output_dir
    if output_dir == DEFAULT_REPORT and not (folder / "protocol.yaml").exists():
        folder = _demonstration()
    report = Report(folder)
    for sentence in report.lost_sentences():
        claim("**Not in what follows:** {sentence}", sentence=sentence)
    return report


def _demonstration() -> Path:
    """Train the models of params/quick.yaml on digits, which takes some seconds; the folder."""
    from rnnbench_nb.runs import train_run

    claim(
        "**This is a demonstration:** there is no report yet (`make report` makes one), so a "
        "small one on digits stands in. What it shows holds for nothing else."
    )
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    protocol = load_protocol(PROJECT / "params/quick.yaml", DEMONSTRATION).resolved()
    write_file(folder / "protocol.yaml", to_yaml(protocol.dump()))
    for seed in protocol.seeds:
        for parameters in protocol.at(seed):
            train_run(parameters, folder / "runs" / parameters.run, lambda line: None)
    return folder


def claim(text: str, when: Any = True, **numbers: Any) -> None:
    """Show a sentence, if its condition holds.

    Args:
        text: Markdown with a replacement field for each number, such as `{error:.2f}`.
        when: The condition under which the sentence is true.
        numbers: The numbers in it, by name.
    """
    if when:
        display(Markdown(text.format(**numbers)))


def sliders(draw: Callable[..., None], **controls: Any) -> None:
    """In JupyterLab, call `draw` with the values of sliders; elsewhere do nothing.

    Args:
        draw: Shows a figure; its parameters' defaults are where the sliders start.
        controls: For each of its parameters what `ipywidgets.interact` takes: (min, max, step),
            or a list of values.
    """
    if "JPY_SESSION_NAME" in os.environ:
        import ipywidgets

        ipywidgets.interact(draw, **controls)
