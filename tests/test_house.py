"""How the house is built: who knows whom."""

import re
import subprocess
import sys

import pytest

from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT
from rnnbench_nb.tasks import TASKS

PACKAGE = PROJECT / "rnnbench_nb"
NAMES = {*CELLS, *TASKS}
NAMES |= {entry.__name__ for table in (CELLS, TASKS) for entry in table.values()}
NAMES -= {"module", "Module"}  # the cell that runs any torch module, which has a key of its own
OUTSIDE = [
    path
    for path in [*sorted(PACKAGE.rglob("*.py")), PROJECT / "Snakefile"]
    if path.relative_to(PROJECT).parts[1:2] not in (("cells",), ("tasks",))
    and path.name != "drawing.py"  # names the cells whose step is in the page's script
]


def words(path):
    """The words of a file, docstrings and comments aside."""
    text = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {*re.findall(r"\w+", re.sub(r"#.*", "", text))}


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_cells_or_tasks_name_stands_outside_its_file(path):
    assert not NAMES & words(path)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PROJECT))
)
def test_no_message_advises_to_delete(path):
    assert not {"delete", "Delete", "rm"} & words(path)


def test_figures_never_import_torch():
    code = "import sys, rnnbench_nb.figures; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
