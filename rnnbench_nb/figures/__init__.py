"""One function a figure: a tidy frame, and the report where variants are drawn; a figure out.

Saving is the caller's job (`save`), as is showing in a notebook (`show`). Nothing here needs torch.
"""

from rnnbench_nb.figures.results import (
    error_curves,
    errors,
    paired_differences,
    test_errors,
    training_curves,
)
from rnnbench_nb.figures.theme import as_svg, legend_below, look, save, show
