"""A search: the same configurations for every contestant, and no test example is read."""

import numpy as np
import pytest
from in_process import execute

from rnnbench_nb import launch
from rnnbench_nb.errors import UserError
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.results import Report, summary_text, write_json, write_tables
from rnnbench_nb.runs import new_marker, task_of, train_run
from rnnbench_nb.site.index import verdicts
from rnnbench_nb.statistics import finding, has_enough_seeds
from rnnbench_nb.verify import verify

SMALL = """
dataset: digits
seed: 7
runs: 2
epochs: 2
hidden_size: 4
search:
  seed: 1
  values: {epochs: 1}
  draws: [{seed: 1, points: 4, ranges: {learning_rate: [1.0e-3, 0.1], gamma: [0.1, 1.0]}}]
  finalists: {gru: [3, 0]}
  choices: {gru: 0, agru: 1}
variants: {gru: {model: gru}, agru: {model: agru}, lstm: {model: lstm}}
"""


def load(tmp_path, text=SMALL):
    (tmp_path / "p.yaml").write_text(text)
    return load_protocol(tmp_path / "p.yaml")


def test_every_contestant_tries_the_same_configurations(tmp_path):
    protocol = load(tmp_path)
    own = protocol.parameterisations
    tried = {
        name: [own[f"{name}_search0{k}"] for k in range(4)] for name in ("gru", "agru", "lstm")
    }
    rates = [[each.learning_rate for each in points] for points in tried.values()]
    assert rates[0] == rates[1] == rates[2] and len(set(rates[0])) == 4
    quarters = np.sort(np.floor(2 * np.log10(np.divide(rates[0], 1e-3))))
    assert quarters.tolist() == [0, 1, 2, 3]  # one point in each quarter of the range
    assert "gamma" not in own["gru"].flat() and "lstm" not in own  # nothing is chosen for it
    assert own["agru"].cell_options == own["agru_search01"].cell_options
    assert {each.epochs for points in tried.values() for each in points} == {1}
    finalist, final = own["gru_finalist00"], own["gru"]
    assert (finalist.seed, protocol.runs["gru_finalist00"], finalist.epochs) == (2, 2, 2)
    assert final.test and not finalist.test and final.learning_rate == rates[0][0]
    seeds = [{*protocol.seeds_of(name)} for name in ("gru_search00", "gru_finalist00", "gru")]
    assert seeds == [{1}, {2, 3}, {7, 8}]


def test_some_contestants_can_be_run_alone_and_whole_numbers_stay_whole(tmp_path):
    text = SMALL.replace("gamma: [0.1, 1.0]", "batch_size: [20, 200]")
    (tmp_path / "p.yaml").write_text(text)
    own = load_protocol(tmp_path / "p.yaml", {"models": ["agru"]}).parameterisations
    assert {each.model for each in own.values()} == {"agru"} and len(own) == 5
    assert {type(each.batch_size) for each in own.values()} == {int}


def test_the_protocol_of_a_large_search_can_be_written_and_read(tmp_path):
    protocol = load(tmp_path, SMALL.replace("points: 4", "points: 512"))
    (tmp_path / "whole.yaml").write_text(text := to_yaml(protocol.dump()))
    assert len(text) > 100_000 and load_protocol(tmp_path / "whole.yaml").runs == protocol.runs


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "gru: [3, 0]",
            "gru: [4]",
            "gru: there is no configuration 4; name some from 0 to 3",
        ),
        ("choices: {gru", "choices: {grru", "search: 'grru' is unknown; it must be one of"),
        ("gamma: [0.1, 1.0]", "gama: [0.1, 1.0]", "search: unknown key 'gama'"),
        ("[0.1, 1.0]", "[0.1]", "ranges.gamma: list should have at least 2 items"),
    ],
)
def test_a_wrong_search_gets_one_sentence(tmp_path, old, new, sentence):
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, SMALL.replace(old, new))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The small search and its final runs."""
    folder = tmp_path_factory.mktemp("search")
    protocol = load(folder)
    write_json(folder / "report.json", new_marker("p", protocol))
    for parameters in launch.runs_of(protocol):
        train_run(parameters, folder / "runs" / parameters.run, lambda line: None)
    write_tables(Report(folder))
    return Report(folder)


def test_a_run_of_a_search_is_scored_on_validation_examples(report):
    assert not report.missing and verify(report) == []
    for run in report.runs:
        final, own = run.key[0] in ("gru", "agru"), run_parameters(run.record["parameters"], "")
        parts = task_of(own).load(own.seed)
        targets = (parts.test if final else parts.validation).targets.numpy()
        assert (run.predictions["label"] == targets).all() and bool(run.tables()) == final


def test_pages_keep_the_search_and_the_test_apart(report, tmp_path):
    assert {*report.tested.results["variant"]} == {"gru", "agru"}
    assert {*report.searched.variants} == {*report.variants} - {"gru", "agru"}
    assert "search" not in summary_text(report) and len(verdicts(report.tested)) == 1
    untested = report.searched.tested  # before a choice
    assert finding(untested) == "" and verdicts(untested) == [] and not has_enough_seeds(untested)
    pages = launch.analysis_pages(load(tmp_path))
    assert {"03_compare", "06_ablation", "07_gradients"} <= {*pages}
    for page in pages:
        cells = execute(page, tmp_path / f"{page}.ipynb", output_dir=str(report.folder)).cells
        shown = str([cell.get("outputs") for cell in cells])
        assert ("gru_search" in shown or "GRU-search" in shown) == (page == "06_ablation")
