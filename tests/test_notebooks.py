import json

import nbformat
import papermill
import pytest
import yaml

from rnnbench_nb.config import PROJECT, Protocol, load_protocol

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def parameters_of(path):
    return papermill.inspect_notebook(path)


@by_name
def test_sources_are_light_and_readable(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert cell in tagged or len(cell.source.splitlines()) <= 25, cell.source
            assert "\nclass " not in cell.source and ".backward()" not in cell.source


@by_name
def test_every_parameter_has_a_type_and_help(path):
    for name, entry in parameters_of(path).items():
        assert entry["inferred_type_name"] != "None", name
        assert len(entry["help"]) > 3, name


def test_the_training_notebook_declares_every_key_with_the_quick_values():
    declared = parameters_of(PROJECT / "notebooks/02_train.ipynb")
    assert set(declared) == {*Protocol.model_fields, "output_dir"}
    quick = load_protocol(PROJECT / "params/quick.yaml").model_dump()
    for name, value in quick.items():
        assert yaml.safe_load(str(_literal(declared[name]["default"]))) == _yaml(value), name


def _literal(text):
    return {"True": "true", "False": "false", "None": "null"}.get(text, text).replace("'", '"')


def _yaml(value):
    return yaml.safe_load(json.dumps(value))


def test_every_parameter_file_passes_papermill_without_a_warning():
    declared = set(parameters_of(PROJECT / "notebooks/02_train.ipynb"))
    for path in (PROJECT / "params").glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) <= declared


def execute(name, out, **parameters):
    return papermill.execute_notebook(
        PROJECT / f"notebooks/{name}.ipynb", out, parameters, progress_bar=False, cwd=out.parent
    )


def test_training_by_hand_refuses_an_unknown_key(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as error:
        execute("02_train", tmp_path / "out.ipynb", gama=0.5)
    assert "unknown key 'gama'; the nearest known key is 'gamma'" in str(error.value)


@pytest.mark.parametrize("name", ["03_compare", "04_eigenvalues", "06_ablation", "07_gradients"])
def test_a_notebook_that_reads_runs_works_from_a_fresh_clone(name, tmp_path):
    executed = execute(name, tmp_path / "out.ipynb", output_dir=str(tmp_path / "none"))
    text = "".join(
        out.get("text", "") for cell in executed.cells for out in cell.get("outputs", [])
    )
    assert "a demonstration on digits stands in" in text
