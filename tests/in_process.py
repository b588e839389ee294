"""Notebooks executed in this process, where all is imported: papermill without a kernel."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import papermill
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
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
        shell.display_pub = CapturingDisplayPublisher()
        shown, printed = shell.display_pub.outputs, io.StringIO()
        shell.display_trap.hook = CapturingDisplayHook(shell=shell, outputs=shown)
        with redirect_stdout(printed):
            shell.run_cell(cell.source, store_history=True).raise_error()
        places = {}  # what is updated stands where it was first shown
        for number, each in enumerate(shown):
            places[(each.get("transient") or {}).get("display_id", number)] = each
        cell.outputs = [
            nbformat.v4.new_output("display_data", each["data"], metadata=each["metadata"] or {})
            for each in places.values()
        ]
        if printed.getvalue():
            cell.outputs.append(nbformat.v4.new_output("stream", text=printed.getvalue()))
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return notebook
