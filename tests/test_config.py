import pytest
import yaml

from rnnbench_nb.config import (
    PROJECT,
    Protocol,
    RunParameters,
    from_notebook,
    load_protocol,
    to_yaml,
)
from rnnbench_nb.errors import UserError

FILES = sorted((PROJECT / "params").glob("*.yaml"))


def load(tmp_path, text, **overrides):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return load_protocol(path, overrides)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_parameter_file_is_valid_and_survives_a_round_trip(path, tmp_path):
    protocol = load_protocol(path)
    assert load(tmp_path, to_yaml(protocol)) == protocol


def test_the_row_mnist_protocol_is_the_published_one():
    protocol = load_protocol(PROJECT / "params/row_mnist.yaml")
    published = {
        "dataset": "mnist", "reading": "row", "hidden_size": 128, "epochs": 50, "batch_size": 128,
        "optimiser": "adam", "learning_rate": 1e-3, "weight_decay": 1e-4, "clip_norm": 1.0,
        "schedule": "plateau", "plateau_factor": 0.5, "plateau_patience": 5, "patience": 10,
        "gamma": 0.01, "epsilon": 1.0, "learnable_epsilon": True, "seed": 42,
        "offline_fallback": None,
    }  # fmt: skip
    assert protocol.model_dump(include=set(published)) == published


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gama: 0.1", "unknown key 'gama'; the nearest known key is 'gamma'."),
        ("epochs: ten", "epochs: input should be a valid integer, but 'ten' is given."),
        ("learning_rate: 1e-3", "learning_rate: '1e-3' is text to YAML, where a number belongs; "
         "write 0.001."),
        ("learning_rate: 1e-7", "write 1.0e-07."),
        ("hidden_size: 0", "hidden_size: input should be greater than or equal to 1, but '0'"),
        ("batch_size: -3", "batch_size: input should be greater than or equal to 1"),
        ("epsilon: 0", "epsilon: input should be greater than 0"),
        ("epsilon: .nan", "epsilon: input should be a finite number"),
        ("gamma: .inf", "gamma: input should be a finite number"),
        ("dropout: 1.0", "dropout: input should be less than 1"),
        ("learnable_epsilon: 1", "learnable_epsilon: input should be a valid boolean"),
        ("epochs: true", "epochs: input should be a valid integer"),
        ("optimiser: sdg", "optimiser: input should be 'adam', 'adamw' or 'sgd', but 'sdg'"),
        ("models: [lstm, lstm]", "models: names 'lstm' twice; name each model once"),
        ("models: []", "models: list should have at least 1 item"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice; give it once."),
        ("variants: {a b: {model: gru}}", "variants.a b"),
        ("variants: {../x: {model: gru}}", "variants"),
        ("variants: {a: {gama: 1}}", "variant 'a': unknown key 'gama'"),
        ("variants: {a: {seed: 1}}", "variant 'a': a variant cannot set 'seed'"),
        ("models: [gru]\nvariants: {a: {model: lstm}}", "none of the variants uses gru"),
        ("", "the parameter file is empty"),
        ("- a", "the parameter file must hold KEY: VALUE lines"),
        ("1: a", "the parameter file must hold KEY: VALUE lines"),
        ("a: [", "this is not valid YAML at line 1"),
        ("a: !!python/object/apply:os.getcwd []", "this is not valid YAML"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert sentence in message
    assert message.startswith(str(tmp_path / "p.yaml"))
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml.*No such file"):
        load_protocol(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"variant: \xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_protocol(tmp_path / "latin.yaml")


def test_options_are_laid_over_the_file(tmp_path):
    protocol = load(tmp_path, "seed: 1\nepsilon: 1", seed=7, runs=3)
    assert protocol.seeds == [7, 8, 9]
    assert protocol.epsilon == 1.0
    with pytest.raises(UserError, match="the options: runs"):
        load(tmp_path, "seed: 1", runs=0)


def test_variants_lie_over_the_file_and_models_choose_among_them(tmp_path):
    text = "hidden_size: 16\nvariants: {a: {model: gru}, b: {gamma: 0.5}, c: {model: lstm}}"
    found = load(tmp_path, text, models=["gru", "agru"]).parameterisations()
    assert list(found) == ["a", "b"]
    assert (found["a"].model, found["b"].gamma, found["b"].hidden_size) == ("gru", 0.5, 16)
    assert found["b"].run == "b-seed42"
    plain = load(tmp_path, "models: [gru, lstm]").parameterisations()
    assert {name: p.model for name, p in plain.items()} == {"gru": "gru", "lstm": "lstm"}


def test_the_quick_form_has_five_epochs_at_most_in_every_variant(tmp_path):
    quick = load(tmp_path, "epochs: 50\nvariants: {a: {}, b: {epochs: 70}, c: {epochs: 3}}").quick()
    assert [p.epochs for p in quick.parameterisations().values()] == [5, 5, 3]
    assert load(tmp_path, "epochs: 4").quick().epochs == 4


def test_a_notebook_refuses_what_papermill_only_warns_of():
    namespace = {"model": "gru", "seed": 3, "output_dir": "x", "In": [], "_i": "", "np": pytest}
    assert from_notebook(namespace) == RunParameters(model="gru", seed=3)
    with pytest.raises(UserError, match="unknown key 'gama'"):
        from_notebook({**namespace, "gama": 0.1})


def test_parameters_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Protocol().epochs = 3


def test_conda_users_get_the_same_dependencies():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    listed = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    by_pip = next(item["pip"] for item in listed if isinstance(item, dict))
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert sorted(by_pip[:-1]) == sorted(wanted)
    assert by_pip[-1] == "-e ."
    assert f"python{project['requires-python']}" in listed
