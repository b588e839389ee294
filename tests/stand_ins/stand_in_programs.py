"""`papermill` without kernels and `rnnbench` without imports, for tests of the workflow alone.

    python stand_in_programs.py FOLDER papermill|rnnbench ARGUMENT ...
    python stand_in_programs.py FOLDER serve PLACE_OF_THE_SOCKET

The `papermill` trains as 02_train.ipynb does and copies any other notebook; what
RNNBENCH_REAL_NOTEBOOKS is a pattern of, the real one makes all the same. A server imports once what
the programs need and forks for each call, because importing is most of what a call costs;
RNNBENCH_WARM_SERVER is its socket, and without it each call imports for itself. A forked process
keeps the environment of the server in /proc: what looks for processes there (OUTPUT) needs calls
without a server.
"""

import json
import os
import re
import shutil
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from select import select


def papermill(arguments: list[str]) -> None:
    import yaml

    from rnnbench_nb.files import PROJECT
    from rnnbench_nb.protocol import run_parameters
    from rnnbench_nb.runs import train_run

    source, target, *options = arguments
    shutil.copyfile(source, target)
    if Path(source).stem != "02_train":
        return
    values, options = {}, iter(options)
    for option in options:
        if option == "-f":
            values |= yaml.safe_load(Path(next(options)).read_text(encoding="utf-8"))
        elif option in ("-p", "-r"):
            name, text = next(options), next(options)
            values[name] = yaml.safe_load(text) if option == "-p" else text
    folder = PROJECT / values.pop("output_dir")
    parameters = run_parameters(values, "the notebook's parameters")
    train_run(parameters, folder / "runs" / parameters.run)


def rnnbench(arguments: list[str]) -> None:
    from rnnbench_nb.cli import main

    sys.executable = str(Path(sys.argv[0]) / "python")  # whose folder goes before others in PATH
    main(arguments, "rnnbench")


def run(folder: str, name: str, *arguments: str) -> int:
    """Call a program; its exit code."""
    sys.argv = [folder, *arguments]
    try:
        {"papermill": papermill, "rnnbench": rnnbench}[name](list(arguments))
    except SystemExit as end:
        return end.code or 0
    return 0


def serve(path: str) -> None:
    """Fork for each call, until the standard input ends, as it does with its owner."""
    import rnnbench_nb.cli
    import rnnbench_nb.figures
    import rnnbench_nb.site
    import rnnbench_nb.training  # noqa: F401

    signal.signal(signal.SIGCHLD, lambda *_: bury())
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen()
        os.rename(f"{path}.new", path)  # whoever sees it can connect
        while sys.stdin not in select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                answer(connection)
            connection.close()


def bury() -> None:
    """Wait for the forked ones that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def answer(connection: socket.socket) -> None:
    """Run what is asked for with the files, folder and environment of who asks."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile() as request:
            arguments, folder, environment = json.load(request)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        code = run(*arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:  # nothing of the server's is to be run or cleaned up here
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([code]))
        os._exit(code)


def ask(path: str) -> int:
    """Let the server do it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"+"], [0, 1, 2])
        server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
        server.shutdown(socket.SHUT_WR)
        code = server.recv(1)
    return code[0] if code else 1


if __name__ == "__main__":
    folder, name, *arguments = sys.argv[1:]
    real = Path(sys.executable).with_name("papermill")
    pattern = os.environ.get("RNNBENCH_REAL_NOTEBOOKS") or "$^"
    if name == "serve":
        serve(f"{arguments[0]}/socket")
    elif name == "papermill" and re.search(pattern, arguments[1]):
        os.execv(real, [str(real), *arguments])
    elif "RNNBENCH_WARM_SERVER" in os.environ:
        sys.exit(ask(os.environ["RNNBENCH_WARM_SERVER"]))
    else:
        sys.exit(run(folder, name, *arguments))
