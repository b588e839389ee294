"""Which folders a command may write to, and which files in them are the project's.

A report's folder has a marker, `report.json`, and a list, `files.json`, of every file and folder
that the project writes there. A command writes only to a folder that is new, is empty or has a
marker. It overwrites and removes only what the list names; all other files are the user's.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_json

MARKER, LIST, LOCK = "report.json", "files.json", ".rnnbench.lock"
RECORDS = "runs.json.xz"  # of all runs of a published report
FORMAT = 2  # version of report.json and run.json


def marker(folder: Path) -> dict[str, Any] | None:
    """Return the marker of a report's folder, or None if it is not a report of this version."""
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        is_ours = content["format"] == FORMAT and isinstance(content["protocol"], str)
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return content if is_ours else None


def is_published(folder: Path) -> bool:
    """Whether a folder is a published report."""
    return bool((marker(folder) or {}).get("published")) or (folder / RECORDS).exists()


def output_folder(path: Path | str, option: str = "--output-dir", publishing: bool = False) -> Path:
    """Return the folder with its links resolved, if a command may write a report to it.

    Args:
        path: The folder, as the user wrote it.
        option: The option that names it, for the error.
        publishing: Whether the report is a published one.

    Raises:
        UserError: The folder is neither new, nor empty, nor a report of this kind, or it has
            another purpose.
    """
    advice = f"name a new folder, such as {option} reports/mine"
    if not str(path):
        raise UserError(f"{option} is empty; {advice}.")
    try:
        folder = Path(path).expanduser().resolve()
        reason = _why_not(folder, publishing)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{option} {path} cannot be used ({error}); {advice}.") from error
    if reason:
        raise UserError(f"{folder} {reason}; {advice}.")
    return folder


def _why_not(folder: Path, publishing: bool) -> str:
    """Say why a folder may not hold the report; return "" if it may."""
    reports = PROJECT / "reports"
    purposes = {
        Path("/"): "the root of the file system",
        Path(os.path.expanduser("~")).resolve(): "the home folder",
        PROJECT: "the project's own folder",
        reports: "the folder of all reports",
        reports / "published": "the folder of the published reports",
    }
    if folder in purposes:
        return f"is {purposes[folder]}"
    if not publishing and reports / "published" in folder.parents:
        return "is reserved for published reports"
    if report := next(filter(marker, folder.parents), None):
        return f"lies in the report {report}"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not _is_lock(entry))
    except FileNotFoundError:
        return ""
    if names and marker(folder) is None:
        return f"holds files that are not a report of rnnbench, such as {names[0]}"
    if names and is_published(folder) != publishing:
        return "is an unpublished report" if publishing else "is a published report"
    return ""


def _is_lock(path: Path) -> bool:
    """Whether a file is the lock of a command, which may remain in an empty folder after a kill."""
    return path.name == LOCK and path.is_file() and not path.stat().st_size


def working_report(path: Path) -> Path:
    """Return the folder if it is an unpublished report here; else raise a UserError."""
    folder = path.resolve()
    if marker(folder) is None or is_published(folder):
        raise UserError(f"{folder} is not a report that `rnnbench run` made; name one.")
    return folder


def digest(path: Path) -> str | None:
    """Return the first 16 digits of a file's SHA-256, or None if there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def seal(folder: Path) -> None:
    """Add to a folder's list the hashes of the marker and of all files on it."""
    names = sorted(file_list(folder) | {MARKER})
    hashes = {name: digest(folder / name) for name in names}
    write_json(folder / LIST, hashes | {LIST: None})


def changed_files(folder: Path) -> list[str]:
    """Return the files of a folder that changed or went since it was sealed."""
    hashes = _read_list(folder).items()
    return [name for name, old in hashes if old and digest(folder / name) != old]


def file_list(folder: Path) -> set[str]:
    """Read a folder's list: names relative to the folder; those of folders end in a slash."""
    return {*_read_list(folder)} - {MARKER}


def _read_list(folder: Path) -> dict[str, str | None]:
    """Read the names on a folder's list, with hashes if the folder is sealed."""
    path = folder / LIST
    if not path.exists():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        paths = [Path(name) for name in names]
        outside = [p for p in paths if p.is_absolute() or ".." in p.parts or not p.parts]
        if outside or not isinstance(names, list | dict):
            raise ValueError("a name leads out of the folder, or this is not a list")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; move its folder away and run again.") from error
    return names if isinstance(names, dict) else dict.fromkeys(names)


def mark(folder: Path, content: dict[str, Any], names: Iterable[str]) -> None:
    """Write the marker of a folder, and add names to its list; errors as in `register`."""
    if marker(folder):  # a refusal changes no report
        register(folder, names)
    write_json(folder / MARKER, content)  # before the list: a kill may follow
    register(folder, names)


def register(folder: Path, names: Iterable[str]) -> None:
    """Add names to a folder's list; call this before you write the files.

    Raises:
        UserError: A file with such a name exists but is not on the list, so it is the user's.
    """
    before, names = file_list(folder), {*names, LIST}
    for path in (folder / name for name in sorted(names - before - {LIST})):
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists, and rnnbench would overwrite it; move it elsewhere.")
    if names - before:
        write_json(folder / LIST, sorted(before | names))


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files that a folder's list names, and their parent folders if these are empty then.

    Files that the list does not name stay, and so does every folder on the list.
    """
    before = file_list(folder)
    gone = {name for name in names if name in before and not name.endswith("/")}
    for path in (folder / name for name in gone):
        if path.is_file() or path.is_symlink():
            path.unlink()
        for parent in path.parents:
            if parent == folder or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()
    if gone:
        write_json(folder / LIST, sorted(before - gone))
