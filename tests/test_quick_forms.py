"""The quick form of every protocol of long sequences: trained, measured, and its pages executed."""

import re

import pytest
from in_process import execute

from rnnbench_nb import launch
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.results import Report, write_json
from rnnbench_nb.runs import new_marker, train_run

FORMS = ["pixel_mnist", "permuted_mnist", "noise_padded", "adding", "copying"]
ODD = re.compile(r"\b(nan|inf|None)\b|  in :|\bin \.| \(\)|Out\[")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [*((form, None) for form in FORMS), ("copying", 1)])
def test_the_quick_form_of_a_protocol_has_all_its_pages(name, size, tmp_path):
    values = {"runs": 1} | ({"hidden_size": size} if size else {})
    protocol = load_protocol(name, values).quick().resolve()
    write_json(tmp_path / "report.json", new_marker(name, protocol))
    for parameters in protocol.at(protocol.seeds[0]):
        train_run(parameters, tmp_path / "runs" / parameters.run, report=lambda line: None)
    report = Report(tmp_path)
    assert not report.missing and not any(run.record["unmeasured"] for run in report.runs)
    pages = launch.analysis_pages(protocol)
    assert "08_memory" in pages
    assert "06_ablation" not in pages  # at each length most cells are there once
    for page in pages:
        executed = execute(page, tmp_path / f"{page}.ipynb", output_dir=str(tmp_path))
        for output in (each for cell in executed.cells for each in cell.get("outputs", [])):
            text = output.get("data", {}).get("text/markdown", "")
            assert not ODD.search(text), (page, text)
