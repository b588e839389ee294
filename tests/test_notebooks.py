import ast
import re
import shutil

import nbformat
import papermill
import pytest
from conftest import write_tiny
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbformat.v4 import new_code_cell, new_notebook

from rnnbench_nb.files import PROJECT
from rnnbench_nb.protocol import load_protocol

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def parameters_of(path):
    return papermill.inspect_notebook(path)


@by_name
def test_sources_are_light_and_readable(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert cell in tagged or len(cell.source.splitlines()) <= 25, cell.source
            assert "\nclass " not in cell.source and ".backward()" not in cell.source


@by_name
def test_every_parameter_has_a_type_and_help(path):
    for name, entry in parameters_of(path).items():
        assert entry["inferred_type_name"] != "None", name
        assert len(entry["help"]) > 3, name


def test_the_training_notebook_declares_what_a_variant_file_holds_with_the_quick_values():
    declared = parameters_of(PROJECT / "notebooks/02_train.ipynb")
    (quick, *_) = load_protocol("quick").parameterisations.values()
    assert set(declared) == {*quick.grouped(), "output_dir"}  # so papermill warns of no key
    for name, value in quick.grouped().items():
        if name not in ("model", "variant", "options"):
            assert ast.literal_eval(declared[name]["default"]) == value, name


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
# What the kernel is told first: there is no report, the demonstration that stands in for it is
# small, and as it always goes to the same folder, it is trained only once.
ONE_DEMONSTRATION = """
from pathlib import Path
from rnnbench_nb import analyses, demonstration

analyses.PROJECT = Path({place!r})
demonstration.SETTINGS |= {{"hidden_size": 8, "epochs": 2}}
demonstration.mkdtemp = lambda: {place!r} + "/demonstration"
"""


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """Execute a notebook with papermill, in one kernel for all: it imports only once."""
    place = tmp_path_factory.mktemp("notebooks")
    kernel, clients = AsyncKernelManager(kernel_name="python3"), []
    kernel.client = lambda make=kernel.client: clients.append(make()) or clients[-1]

    def run(notebook, parameters=None):
        try:
            return papermill.execute_notebook(
                notebook, place / "out.ipynb", parameters, progress_bar=False, km=kernel
            )
        finally:
            clients.pop().stop_channels()  # which papermill leaves open, the kernel not being its

    def first(source):
        run(new_notebook(cells=[new_code_cell(source)], metadata={"kernelspec": KERNEL}))

    def execute(name, **parameters):
        first("%reset -f")
        return run(PROJECT / f"notebooks/{name}.ipynb", parameters)

    first(ONE_DEMONSTRATION.format(place=str(place)))
    yield execute
    run_sync(kernel.shutdown_kernel)(now=True)


def text_of(notebook):
    found = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(
        out.get("text", "") + out.get("data", {}).get("text/markdown", "") for out in found
    )


def test_training_by_hand_refuses_an_unknown_key(execute):
    with pytest.raises(papermill.PapermillExecutionError) as error:
        execute("02_train", gama=0.5)
    assert "unknown key 'gama'; the nearest known key is 'gamma'" in str(error.value)


@pytest.mark.parametrize("name", ["03_compare", "04_eigenvalues", "06_ablation", "07_gradients"])
def test_a_notebook_that_reads_runs_works_from_a_fresh_clone_and_says_so_at_the_top(name, execute):
    executed = execute(name)
    outputs = [cell for cell in executed.cells if cell.get("outputs")]
    assert "**This is a demonstration:**" in text_of(nbformat.v4.new_notebook(cells=outputs[:1]))
    words = [
        words
        for cell in outputs
        for output in cell.outputs
        for kind, words in output.get("metadata", {}).items()
        if kind.startswith("image/")
    ]
    assert words and all(re.search(r"\bseeds?\b", each["caption"]) for each in words)


@pytest.mark.parametrize("name", ["03_compare", "04_eigenvalues", "06_ablation", "07_gradients"])
def test_a_wrong_folder_is_an_error_and_no_demonstration(name, execute, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="holds no report"):
        execute(name, output_dir=str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["03_compare", "07_gradients"])
def test_a_notebook_that_reads_runs_is_content_with_one(name, execute, report, tmp_path):
    write_tiny(tmp_path / "protocol.yaml", models="[agru]")
    shutil.copytree(report / "runs/agru-seed42", tmp_path / "runs/agru-seed42")
    executed = execute(name, output_dir=str(tmp_path))
    assert "a demonstration" not in text_of(executed)
