"""The quick form of every protocol of long sequences, as a whole report: trained, analysed, shown.

What Snakemake and kernels add is tested elsewhere; here all is done in this process.
"""

import re

import numpy as np
import pytest
from conftest import rnnbench_here
from in_process import execute
from numbers_on_pages import shown, unexplained

from rnnbench_nb import launch, site
from rnnbench_nb.analyses import load
from rnnbench_nb.files import PROJECT
from rnnbench_nb.parameters import parse_yaml
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.report import Report, verify
from rnnbench_nb.runs import train_run

FORMS = ["pixel_mnist", "permuted_mnist", "noise_padded", "fashion_mnist", "adding", "copying"]
ODD = re.compile(r"\b(nan|inf|None)\b|  in :|\bin \.| \(\)|<pandas|<Figure|<Axes|Out\[")
ELSEWHERE = {"04_eigenvalues", "07_gradients"}  # pages tested there, which know no task


def make(folder, name):
    """Train, tabulate, execute and render the quick form of a protocol."""
    protocol = load_protocol(PROJECT / f"params/{name}.yaml", {"runs": 1}).quick().resolved()
    launch.write_parameters(folder, protocol)
    for parameters in protocol.at(protocol.seeds[0]):
        train_run(parameters, folder / "runs" / parameters.run, report=lambda line: None)
    assert rnnbench_here("collect", folder).returncode == 0
    pages = {}
    for page, parameters in launch.data_pages(protocol).items():
        options = parse_yaml(launch.data_options(parameters), page)
        pages[page] = execute(page, folder / f"notebooks/{page}.ipynb", **options)
    for page in set(launch.analysis_pages(protocol)) - ELSEWHERE:
        options = {"examples": 4, "sequences": 1} if page == "08_memory" else {}
        target = folder / f"notebooks/{page}.ipynb"
        pages[page] = execute(page, target, output_dir=str(folder), **options)
    first = protocol.at(protocol.seeds[0])[0]
    own = {"output_dir": str(folder), **first.grouped()}
    pages["02_train"] = execute("02_train", folder / f"runs/{first.run}/02_train.ipynb", **own)
    site.build(folder)
    return pages


@pytest.mark.parametrize("name", FORMS)
def test_the_quick_form_of_a_protocol_gives_a_whole_report(name, tmp_path):
    pages = make(tmp_path, name)
    report = Report(tmp_path)
    assert not report.lost and len(verify(report)) == len(report.variants)
    assert (tmp_path / "index.html").exists()
    assert len(list((tmp_path / "pages").glob("*.html"))) == len(pages)
    for page, notebook in pages.items():
        for text in shown(notebook):
            assert not ODD.search(text), (page, text)
    lengths = {run.record["data"]["steps"] for run in report.runs}
    assert ("08_memory" in pages) == (name != "fashion_mnist")
    assert "06_ablation" not in pages  # at each length most cells are there once
    comparison = load(tmp_path / "analyses/comparison")["comparison"]
    steps = {run.key[0]: run.record["data"]["steps"] for run in report.runs}
    assert all(steps[a] == steps[b] for a, b in zip(comparison["a"], comparison["b"], strict=True))
    if "08_memory" in pages:
        memory = load(tmp_path / "analyses/memory")
        assert set(memory["lengths"]["length"]) == lengths
        assert np.isfinite(memory["lengths"].drop(columns=["variant", "state"])).all(axis=None)
        names = [*report.variants, *report.labels.values()]
        assert unexplained(pages["08_memory"], [memory], names) == []
