"""Which folder a command may write to, and which files in it are the project's.

A report's folder has a marker, `report.json`, and a list, `files.json`, of every file and folder
that the project writes there. A command writes only to a folder that is new, empty or so marked;
it overwrites and removes only what the list names. All other files are the user's.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, write_json

MARKER, LIST, LOCK = "report.json", "files.json", ".rnnbench.lock"
FORMAT = 2  # of report.json and run.json


def marker(folder: Path) -> dict[str, Any] | None:
    """The marker of a report's folder, or None if the folder is no report of this version."""
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        is_ours = content["format"] == FORMAT and isinstance(content["protocol"], str)
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return content if is_ours else None


def is_published(folder: Path) -> bool:
    """Whether a folder is a published report."""
    return bool((marker(folder) or {}).get("published")) or (folder / "runs.json").exists()


def output_folder(path: Path | str, option: str = "--output-dir", publishing: bool = False) -> Path:
    """The folder that a command may write a report to, symbolic links followed; nothing is made.

    Args:
        path: The folder as the user named it.
        option: The option that named it, for the error.
        publishing: Whether the folder is to hold a published report, not one that is worked on.

    Raises:
        UserError: The folder is neither new nor empty nor a report of the kind asked for, or it
            serves another purpose.
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
    """Why a report may not be written to a folder; empty if it may."""
    reports = PROJECT / "reports"
    reserved = {
        Path("/"): "the root of the file system",
        Path.home().resolve(): "the home folder",
        PROJECT: "the project's own folder",
        reports: "the folder of all reports",
        reports / "published": "the folder of the published reports",
    }
    if folder in reserved:
        return f"is {reserved[folder]}"
    if not publishing and reports / "published" in folder.parents:
        return "is the place of a published report"
    if report := next(filter(marker, folder.parents), None):
        return f"lies in the report {report}"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not _is_lock(entry))
    except FileNotFoundError:
        return ""
    if names and marker(folder) is None:
        return f"holds files that are no report of rnnbench, such as {names[0]}"
    if names and is_published(folder) != publishing:
        return "is a report that is not published" if publishing else "is a published report"
    return ""


def _is_lock(path: Path) -> bool:
    """Whether a file is the lock of a command, which a kill may leave in an empty folder."""
    return path.name == LOCK and path.is_file() and not path.stat().st_size


def own_report(path: Path) -> Path:
    """The folder, if it is a report that is worked on, whose tables and pages a command writes."""
    folder = path.resolve()
    if marker(folder) is None or is_published(folder):
        raise UserError(f"{folder} is no report that `rnnbench run` made here; name one.")
    return folder


def digest(path: Path) -> str | None:
    """The beginning of a file's SHA-256; None if there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def seal(folder: Path) -> None:
    """Add the hashes of the marker and of all listed files to the list of a folder."""
    names = sorted(listed(folder) | {MARKER})
    hashes = {name: digest(folder / name) for name in names}
    write_json(folder / LIST, hashes | {LIST: None})


def changed(folder: Path) -> list[str]:
    """The files of a folder that are not as they were when it was sealed."""
    hashes = _list(folder).items()
    return [name for name, old in hashes if old and digest(folder / name) != old]


def listed(folder: Path) -> set[str]:
    """The names on the list of a folder, relative to it; those of folders end in a slash."""
    return {*_list(folder)} - {MARKER}


def _list(folder: Path) -> dict[str, str | None]:
    """The list of a folder: names and, where it was sealed, hashes."""
    path = folder / LIST
    if not path.exists():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        paths = [Path(name) for name in names]
        outside = [p for p in paths if p.is_absolute() or ".." in p.parts or not p.parts]
        if outside or not isinstance(names, list | dict):
            raise ValueError("a name leads out of the folder, or this is no list")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; move the folder away and start a new one.") from error
    return names if isinstance(names, dict) else dict.fromkeys(names)


def own(folder: Path, names: Iterable[str]) -> None:
    """Add names to the list of a folder, before anything is written under them.

    Raises:
        UserError: A file of such a name is there and is not on the list, so it is not ours.
    """
    before, names = listed(folder), {*names, LIST}
    for path in (folder / name for name in sorted(names - before - {LIST})):
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} is in the way of what rnnbench writes; move it elsewhere.")
    if names - before:
        write_json(folder / LIST, sorted(before | names))


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a folder that its list names, and folders that are empty then.

    Files that the list does not name stay, and so does every listed folder.
    """
    before = listed(folder)
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
