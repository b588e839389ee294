"""The pages: of a report, of published reports together, and the one on which one draws a digit."""

from rnnbench_nb.site.index import build
