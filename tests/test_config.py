import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnbench_nb.cli import main
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


TEXT = st.text("aeé0.:,-#&*!|>'\"[]{}%@$() \t\n\0\ud800", max_size=6)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(allow_nan=True, width=32),
    st.floats(1e-4, 0.9),
    st.sampled_from(["gru", "row", "pixel", "digits", "adam", "none", "free", "1e-3", "", "../x"]),
    TEXT,
    st.lists(st.sampled_from(["lstm", "gru", "agru", "rnn"]), max_size=3),
    st.dictionaries(TEXT, st.integers(), max_size=2),
)


@st.composite
def mutated_files(draw):
    """The text of a parameter file of the project with one thing in it changed."""
    text = draw(st.sampled_from(FILES)).read_text()
    values = yaml.safe_load(text)
    keys = sorted(set(values) | set(Protocol.model_fields))
    kind = draw(st.sampled_from(["leave out", "number", "value", "key", "variant", "text"]))
    if kind == "leave out":
        values.pop(draw(st.sampled_from(sorted(values))))
    elif kind == "number":
        numbers = [key for key, value in values.items() if type(value) in (int, float)]
        key = draw(st.sampled_from(numbers))
        values[key] = type(values[key])(values[key] * draw(st.sampled_from([0, 1, 2, 3, 50])))
    elif kind == "value":
        values[draw(st.sampled_from(keys))] = draw(VALUES)
    elif kind == "key":
        values[draw(TEXT | st.sampled_from([k[:-1] for k in keys]))] = draw(VALUES)
    elif kind == "variant":
        changed = draw(st.dictionaries(st.sampled_from(keys), VALUES, max_size=1))
        values["variants"] = {
            draw(st.sampled_from(["a", "b-1", "ü", "a b", "../a", "$(a)"])): changed
        }
    if kind != "text":
        return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(TEXT) + text[at + draw(st.integers(0, 3)) :]


def test_500_mutated_files_give_parameters_or_one_sentence(tmp_path):
    path, valid = tmp_path / "p.yaml", []

    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(mutated_files())
    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        result = CliRunner().invoke(main, ["check", str(path)])
        valid.append(result.exit_code == 0)
        if valid[-1]:
            assert load_protocol(path).parameterisations()
        else:
            assert isinstance(result.exception, SystemExit)
            assert result.exit_code == 1
            assert len(result.stderr.splitlines()) == 1
            assert result.stderr.startswith("rnnbench: ")

    check()
    assert len(valid) >= 500
    assert 0.3 < sum(valid) / len(valid) < 0.7
