"""What of the user's environment reaches a run: what is listed here, and nothing else.

A start-up file, a plotting backend, another folder of modules or of kernels, or a profile that is
set for other work would change a report, or end it. So this command and all that it starts have
an environment of the project's choosing.
"""

import os
import sys
from pathlib import Path

from rnnbench_nb.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent

# What people set on purpose, for this machine or for this run.
PASSING = frozenset(
    """
    PATH HOME USER LOGNAME SHELL TERM COLUMNS LINES NO_COLOR TMPDIR TZ XDG_CACHE_HOME KRB5CCNAME
    PWD OLDPWD SHLVL _ LD_LIBRARY_PATH LD_PRELOAD DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH
    http_proxy https_proxy ftp_proxy all_proxy no_proxy
    HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
    CC CXX CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH LIBRARY_PATH
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME CUDA_PATH CUDA_LAUNCH_BLOCKING
    CUBLAS_WORKSPACE_CONFIG NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES
    HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF
    OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS PYTHONDONTWRITEBYTECODE
    """.split()
)
FAMILIES = ("RNNBENCH_", "SLURM_", "SBATCH_")  # and all that begin with these
UTF8 = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"


def environment() -> dict[str, str]:
    """The environment of every program that the project starts, from the present one.

    The package that it imports is this one, from wherever it was imported here.
    """
    chosen = {name: value for name, value in os.environ.items()
              if name in PASSING or name.startswith(FAMILIES)}  # fmt: skip
    here = str(Path(sys.executable).parent)
    others = [path for path in chosen.get("PATH", os.defpath).split(os.pathsep) if path != here]
    return chosen | {
        "PATH": os.pathsep.join([here, *others]),
        "PYTHONPATH": str(PROJECT),
        "PYTHONSAFEPATH": "1",  # no module of the working directory
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "LANG": UTF8,
        "LC_ALL": UTF8,
        "JUPYTER_PREFER_ENV_PATH": "1",  # this Python's kernel before the user's
    }


def enter() -> None:
    """Start this program again in that environment, unless it is in it.

    Raises:
        UserError: The program lies in an environment that was moved or copied here, and would start
            the code of the folder that it came from.
    """
    script = Path(sys.argv[0]).absolute()
    here, ours = script.parents[1] / "pyvenv.cfg", Path(sys.prefix) / "pyvenv.cfg"
    if here.exists() and not (ours.exists() and here.samefile(ours)):
        raise UserError(f"{script} starts the Python of another folder, {sys.prefix}: make env "
                        "mends an environment that was moved or copied.")  # fmt: skip
    if "chosen" in sys._xoptions or environment() == os.environ:
        return
    arguments = ["-X", "chosen", "-m", "rnnbench_nb", *sys.argv[1:]]
    os.execve(sys.executable, [sys.executable, *arguments], environment())
