"""The project's folders, the functions that read and write files, and notebooks without outputs."""

import json
import lzma
import os
import tempfile
from pathlib import Path
from typing import Any

from rnnbench_nb.errors import UserError

_ABOVE = Path(__file__).resolve().parents[1:]
# The folder of params/, profiles/, notebooks/ and the Snakefile: the checkout, or pip's copy.
_PLACES = [_ABOVE[0], *(folder / "share/rnnbench" for folder in _ABOVE)]
SOURCES = next((place for place in _PLACES if (place / "Snakefile").exists()), _ABOVE[0])
IS_CHECKOUT = (SOURCES / "pyproject.toml").exists()
# Where reports/ and data/ are: the checkout, or else the current folder. RNNBENCH_HOME tells it
# to jobs and kernels. Notebooks name folders relative to it.
PROJECT = SOURCES if IS_CHECKOUT else Path(os.environ.get("RNNBENCH_HOME", ".")).resolve()
if not IS_CHECKOUT:
    os.environ["RNNBENCH_HOME"] = str(PROJECT)


def write_file(path: Path | str, data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, to a file; make its parent folders if they are missing.

    A file whose name ends in .xz is compressed.

    The content goes to a temporary file, which then takes the name. So a reader, or a run that
    resumes after a kill, sees either the old file or the new one, never a part of it.

    Raises:
        UserError: The folder cannot be written, or the disk is full.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(lzma.compress(content) if path.suffix == ".xz" else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a published report
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        why, advice = error.strerror or error, "free some space there or choose another folder"
        raise UserError(f"{path} cannot be written ({why}); {advice}.") from error


def read_file(path: Path) -> bytes:
    """Read what `write_file` wrote."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON with line breaks, for people to read."""
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def strip_outputs(notebook: bytes) -> bytes:
    """Remove what execution and saving add to a notebook; return anything else unchanged."""
    try:
        content = json.loads(notebook)
        for number, cell in enumerate(content["cells"]):
            tags = cell["metadata"].get("tags")
            cell |= {"id": str(number), "metadata": {"tags": tags} if tags else {}}
            cell["source"] = "".join(cell["source"])
            cell |= {"outputs": [], "execution_count": None} if "outputs" in cell else {}
    except (ValueError, TypeError, KeyError, AttributeError):
        return notebook
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content |= {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}}
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
