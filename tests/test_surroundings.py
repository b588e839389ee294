"""What of a stranger's machine must not reach a run, and what must."""

import importlib
import json
import os
import re
import subprocess
import sys
from itertools import zip_longest

import matplotlib as mpl
import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import RNNBENCH, write_tiny

from rnnbench_nb import surroundings
SHARED = "Runs shared a machine or ran on several, so their seconds should not be compared."
from rnnbench_nb.files import PROJECT
from rnnbench_nb.report import read_csv

ON_PURPOSE = {
    "https_proxy": "http://proxy:3128", "NO_PROXY": "localhost", "SSL_CERT_FILE": "/etc/own.pem",
    "CUDA_VISIBLE_DEVICES": "1", "LD_LIBRARY_PATH": "/opt/cuda/lib", "SLURM_JOB_ID": "7",
    "SBATCH_ACCOUNT": "group", "TMPDIR": "/scratch", "RNNBENCH_DATA": "/data", "CXX": "clang++",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


@pytest.fixture
def hostile(tmp_path):
    """The environment of a machine that was set up for other work, and a folder to stand in."""
    place = tmp_path / "hostile"
    kernel = {"argv": ["false"], "display_name": "another", "language": "python"}
    broken = "raise SystemExit('this module is not the project\\'s')\n"
    files = {
        "startup.py": "history_file = '~/.python_history'\n",
        "bashrc": "exit 3\n",
        "matplotlibrc": "figure.dpi: 30\nlines.linewidth: 9\nsvg.fonttype: none\nbackend: TkAgg\n",
        "ipython/profile_default/startup/00.py": "gamma = 3\nhistory_file = 'x'\n",
        "ipython/profile_default/ipython_config.py": broken,
        "jupyter/kernels/python3/kernel.json": json.dumps(kernel),
        "jupyter/jupyter_config.py": broken,
        "snakemake/config.yaml": "dry-run: true\n",
        "modules/pandas.py": broken,
        "modules/seaborn.py": broken,
        "here/random.py": broken,
        "here/torch.py": broken,
        "here/matplotlibrc": "figure.dpi: 20\n",
    }
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    settings = {
        "MPLBACKEND": "TkAgg", "MATPLOTLIBRC": "matplotlibrc", "MPLCONFIGDIR": "",
        "PYTHONSTARTUP": "startup.py", "PYTHONPATH": "modules", "IPYTHONDIR": "ipython",
        "JUPYTER_PATH": "jupyter", "JUPYTER_CONFIG_DIR": "jupyter", "JUPYTER_DATA_DIR": "jupyter",
        "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": "", "SNAKEMAKE_PROFILE": "snakemake",
        "BASH_ENV": "bashrc", "ENV": "bashrc", "GIT_DIR": "none", "HOME": "bashrc/none",
        "PIP_TARGET": "pip", "PIP_CONFIG_FILE": "none",
    }  # fmt: skip
    paths = {name: str(place / value) for name, value in settings.items()}
    values = {"LANG": "C", "LC_ALL": "POSIX", "LANGUAGE": "de", "PYTHONWARNINGS": "error",
              "PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "ascii", "PYTHONINSPECT": "1",
              "PYTHONHASHSEED": "7", "BASH_FUNC_rm%%": "() { exit 3; }", "CDPATH": "/",
              "PIP_USER": "1", "PIP_NO_INDEX": "1", "NVIDIA_TF32_OVERRIDE": "1",
              "JPY_SESSION_NAME": "x.ipynb", "PYTEST_ADDOPTS": "--nothing"}  # fmt: skip
    return paths | values, place / "here"


def test_what_is_set_on_purpose_arrives_and_nothing_else(hostile, monkeypatch):
    settings, _ = hostile
    for name, value in (settings | ON_PURPOSE).items():
        monkeypatch.setenv(name, value)
    chosen = surroundings.environment()
    assert ON_PURPOSE.items() <= chosen.items()
    assert settings.keys() & chosen.keys() == {"HOME", "LANG", "LC_ALL", "PYTHONPATH"}
    assert chosen["LANG"] == chosen["LC_ALL"] == surroundings.UTF8
    assert chosen["PYTHONPATH"] == str(PROJECT)
    assert chosen["PATH"].startswith(os.path.dirname(sys.executable))
    monkeypatch.setattr(os, "environ", chosen)
    assert surroundings.environment() == chosen  # or the command would start again for ever


def test_a_command_starts_again_in_the_environment_of_the_projects_choosing(hostile):
    settings, here = hostile
    package = f"{settings['PYTHONPATH']}{os.pathsep}{PROJECT}"
    command = [RNNBENCH, "verify", PROJECT / "reports/published/vogt"]
    done = subprocess.run(
        command, cwd=here, text=True, capture_output=True, stdin=subprocess.DEVNULL,
        env={**os.environ, **settings, "PYTHONPATH": package},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # pandas is not the hostile one
    assert done.stderr == "" and "agrees with the predictions" in done.stdout


def test_figures_do_not_follow_a_matplotlibrc(monkeypatch):
    before = dict(mpl.rcParams)
    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    importlib.reload(theme)
    assert dict(mpl.rcParams) == before


def shown(notebook):
    """What a notebook shows, but for times, what ran beside what, paths and sizes of memory."""
    found = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        outputs = cell.get("outputs", [])  # of text, the pieces it comes in are chance
        found.append("".join(output.text for output in outputs if "text" in output))
        for data in [output.data for output in outputs if "data" in output]:
            if "<table" in data.get("text/html", ""):
                page = BeautifulSoup(data["text/html"], "html.parser")
                rows = [[cell.text.strip() for cell in row(["th", "td"])] for row in page("tr")]
                kept = [row for row in rows if not row[0].startswith("seconds")]
                columns = zip_longest(*kept, fillvalue="")  # a cell may span several
                found.append([column for column in columns if not column[0].startswith("seconds")])
            elif data.get("text/markdown") != SHARED:
                found.append(sorted(data.items()))
    return re.sub(r"[\d.,]+ (s|min|ms)\b|/[^ \"]*/|0x\w+", "*", json.dumps(found))


@pytest.mark.parametrize(
    "real", ["agru-seed42|03_compare", pytest.param("", marks=pytest.mark.slow)]
)
def test_a_report_of_a_hostile_machine_is_that_of_a_clean_one(
    report, hostile, tmp_path, quick_rnnbench, monkeypatch, real
):
    settings, here = hostile
    out, parameters = tmp_path / "out", write_tiny(tmp_path / "tiny.yaml")
    arguments = ["run", parameters, "--output-dir", out]
    if real:  # these have kernels, and the rest are stand-ins
        monkeypatch.chdir(here)
        done = quick_rnnbench(*arguments, **settings, RNNBENCH_REAL_NOTEBOOKS=real)
    else:
        settings["PYTHONPATH"] += f"{os.pathsep}{PROJECT}"
        command = [RNNBENCH, *map(str, arguments)]
        environment = {**os.environ, **settings}
        done = subprocess.run(command, cwd=here, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not list(out.glob("**/*.failed"))
    for name in ("results.csv", "history.csv"):
        ours, theirs = (read_csv(folder / name) for folder in (out, report))
        times = [column for column in ours if column.startswith("seconds")]
        assert ours.drop(columns=times).to_csv() == theirs.drop(columns=times).to_csv()
    files = ["runs/agru-seed42/predicted.safetensors", "runs/agru-seed42/best.safetensors"]
    files += [f"figures/{name}.{kind}" for kind in ("png", "svg")
              for name in ("training_curves", "error_curves", "test_comparison")]  # fmt: skip
    for file in files:
        assert (out / file).read_bytes() == (report / file).read_bytes(), file
    notebooks = ["runs/agru-seed42/02_train.ipynb", "notebooks/03_compare.ipynb"]
    notebooks += [] if real else ["notebooks/04_eigenvalues.ipynb", "notebooks/07_gradients.ipynb"]
    for notebook in notebooks:
        assert shown(out / notebook) == shown(report / notebook), notebook
