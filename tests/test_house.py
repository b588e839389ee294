"""How the house is built: who knows whom, checked on the syntax trees."""

import ast
import re

import pytest

from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT
from rnnbench_nb.tasks import DEFAULT, TASKS

PACKAGE = PROJECT / "rnnbench_nb"
NAMES = {name for table in (CELLS, TASKS) for name in table} - {DEFAULT}
NAMES |= {entry.__name__ for table in (CELLS, TASKS) for entry in table.values()}
NAMES -= {"module", "Module"}  # the cell that runs any torch module, which has a key of its own
OUTSIDE = [
    path
    for path in [*sorted(PACKAGE.rglob("*.py")), PROJECT / "Snakefile"]
    if path.relative_to(PROJECT).parts[1:2] not in (("cells",), ("tasks",))
    and path.name != "drawing.py"  # names the cells whose step is in the page's script
]


def words(path):
    """Identifiers and strings of a module, docstrings aside."""
    text = path.read_text(encoding="utf-8")
    if path.name == "Snakefile":  # its rules are no Python: all its words, comments aside
        yield from re.findall(r"\w+", re.sub(r"#.*", "", text))
        return
    tree, docstrings = ast.parse(text), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            docstrings.add(id(body[0].value))
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            value = getattr(node, field, None)
            yield from value.split(".") if isinstance(value, str) else ()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield from [node.value, *re.findall(r"\w+", node.value)]


def test_the_walk_sees_names_and_strings(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('"""gru"""\nimport a.lstm\nx = f"agru-{1}"\nGRU = 1\n')
    assert {"lstm", "agru", "GRU"} <= set(words(path)) and "gru" not in set(words(path))


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_cells_or_tasks_name_stands_outside_its_file(path):
    assert not NAMES & set(words(path))


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PROJECT))
)
def test_no_message_advises_to_delete(path):
    assert not {"delete", "Delete", "rm"} & set(words(path))


def test_the_default_task_is_named_once():
    found = [path for path in OUTSIDE if DEFAULT in set(words(path))]
    assert not found and DEFAULT in TASKS


def imports(path):
    """The modules of the package that a file imports at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_figures_never_import_torch():
    assert not any(name.partition(".")[0] == "torch" for name in imports(PACKAGE / "figures.py"))
