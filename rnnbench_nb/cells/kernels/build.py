"""Compile a C++ source into a library in the user's cache, once for each compiler and processor.

The environment variable RNNBENCH_CACHE names the cache folder; the default is the platform's. The
variable RNNBENCH_ISA chooses the instructions: ``native`` (all of this processor, the default),
``no-amx`` (all but its matrix tiles), ``avx2``, or ``baseline`` (the compiler's default).
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import write_file

NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
ISA_FLAGS = {
    "native": [NATIVE],
    "no-amx": [NATIVE, "-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile"],
    "avx2": ["-march=x86-64-v3"],
    "baseline": [],
}
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared"]


class Unavailable(Exception):
    """The library cannot be built; the message says why in a few words."""


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    except subprocess.CalledProcessError as error:
        first_line = (error.stderr.strip() or str(error)).splitlines()[0]
        raise Unavailable(f"the C++ compiler failed: {first_line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the C++ compiler could not run: {error}") from error
    return result.stdout


def build(source: Path) -> Path:
    """Return the path of the library of a C++ source; without OpenMP it uses one thread.

    Raises:
        Unavailable: There is no compiler, or it fails, or the cache cannot be used.
        UserError: RNNBENCH_ISA is not one of `ISA_FLAGS`.
    """
    isa = os.environ.get("RNNBENCH_ISA", "native")
    if isa not in ISA_FLAGS:
        raise UserError(f"RNNBENCH_ISA must be one of {', '.join(ISA_FLAGS)}, not {isa!r}.")
    usual = next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")
    command = [*shlex.split(os.environ.get("CXX") or usual), *FLAGS, *ISA_FLAGS[isa]]
    try:
        return _build_by([*command, "-fopenmp"], source)
    except Unavailable:
        return _build_by(command, source)


def _build_by(command: list[str], source: Path) -> Path:
    """Return the path of the library that a compiler command makes; compile it if it is new.

    Its name has a hash of the source, the command and the macros that the compiler predefines,
    which tell its version and the instructions that it may use on this processor.
    """
    macros = _run([*command, "-x", "c++", "-dM", "-E", os.devnull])
    key = hashlib.sha256("\0".join([source.read_text(), *command, macros]).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("RNNBENCH_CACHE") or f"{home}/rnnbench_nb")
    library = folder / f"{source.stem}-{key[:20]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory() as scratch:
            built = Path(scratch) / library.name
            _run([*command, str(source), "-o", str(built)])
            try:
                write_file(library, built.read_bytes())
            except (OSError, UserError) as error:
                raise Unavailable(f"the cache {folder} cannot be used: {error}") from error
    return library
