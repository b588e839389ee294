"""Whatever ends a command ends its work: the supervisor alone, without the project's imports."""

import signal
import subprocess
import sys
from contextlib import suppress

import psutil
from conftest import until

from rnnbench_nb import supervisor

# A command that starts a process in a session of its own, as Jupyter starts a kernel, and a child
# of it; both ignore what asks them to end.
STUBBORN = """
import signal, subprocess, sys, time
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
if len(sys.argv) < 4:
    subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "again"], start_new_session=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-P", *sys.argv[1:]], stdin=subprocess.PIPE,
                 start_new_session=True).wait()
"""


def working(mark: str) -> list[psutil.Process]:
    """The processes whose last arguments name the mark."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def test_whatever_ends_the_parent_ends_all_of_its_work(tmp_path):
    path = tmp_path / "stubborn.py"
    path.write_text(STUBBORN)
    parents = {}
    for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"):
        command = [supervisor.__file__, sys.executable, str(path), f"{tmp_path.name}-{name}"]
        parents[name] = subprocess.Popen(
            [sys.executable, "-c", PARENT, *command], stderr=subprocess.DEVNULL
        )
    for name, parent in parents.items():  # parent, supervisor and three stubborn ones
        until(lambda mark=f"{tmp_path.name}-{name}": len(working(mark)) >= 5, 30)
        parent.send_signal(getattr(signal, name))
        parent.wait()
    until(lambda: not any(working(f"{tmp_path.name}-{name}") for name in parents), 10)


def test_the_exit_code_is_that_of_the_command():
    for code in (0, 3):
        command = [sys.executable, "-P", supervisor.__file__, sys.executable, "-c", f"exit({code})"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            assert process.wait() == code
