"""Notebooks executed in this process, where all is imported: papermill without a kernel."""

import sys
from pathlib import Path

import nbformat
import papermill
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output
from papermill.parameterize import parameterize_notebook

from rnnbench_nb.files import PROJECT


def execute(name: str, target: Path, **parameters) -> nbformat.NotebookNode:
    """Execute a notebook of the project and write it, with what it shows, to `target`.

    Raises:
        Exception: What a cell raises.
    """
    notebook = papermill.iorw.load_notebook_node(str(PROJECT / f"notebooks/{name}.ipynb"))
    notebook = parameterize_notebook(notebook, parameters, kernel_name="python3", language="python")
    shell = InteractiveShell.instance()
    shell.reset(new_session=True)
    select_figure_formats(shell, {"png"})
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        with capture_output(stderr=False) as shown:
            shell.display_trap.hook = sys.displayhook
            result = shell.run_cell(cell.source, store_history=True)
        places = {}  # what is updated stands where it was first shown
        for number, each in enumerate(shown.outputs):
            places[(each.transient or {}).get("display_id", number)] = each
        cell.outputs = [
            nbformat.v4.new_output("display_data", each.data, metadata=each.metadata or {})
            for each in places.values()
        ]
        if shown.stdout:
            cell.outputs.append(nbformat.v4.new_output("stream", text=shown.stdout))
        if isinstance(result.error_in_exec, SystemExit):  # the page ends here
            break
        result.raise_error()
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return notebook
