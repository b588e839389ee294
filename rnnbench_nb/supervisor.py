"""`python supervisor.py COMMAND ...` runs a command, and ends it if the parent process ends.

The parent holds the other end of the standard input, which closes when the parent ends. The command
then gets SIGINT, on which Snakemake cancels its cluster jobs; remaining descendants are killed.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress

import psutil

PATIENCE = 5.0  # seconds that an interrupted command has to end by itself
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """On Linux, become the parent of every descendant whose parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """All processes that this process started, directly or indirectly."""
    return psutil.Process().children(recursive=True)


def end_descendants(others: Collection[int] = ()) -> None:
    """Kill all descendants except those with the process ids `others`."""
    while processes := [process for process in descendants() if process.pid not in others]:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=1)


def main(command: list[str]) -> int:
    """Run the command; return its exit code, or 1 if this process had to end it."""
    adopt_orphans()
    reader, writer = os.pipe()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), lambda *_: os.write(writer, b"."))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while process.poll() is None and not select.select([0, reader], [], [], 0.1)[0]:
        pass
    code = process.poll()
    if code is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    end_descendants()
    return 1 if code is None else abs(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
