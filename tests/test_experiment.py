import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rnnbench_nb.experiment import (
    PROJECT,
    RunParameters,
    from_notebook,
    load_protocol,
    read_values,
    recorded_parameters,
    recorded_protocol,
    run_parameters,
    to_yaml,
)
from scipy.stats import loguniform, qmc, uniform

from rnnbench_nb.errors import UserError
from rnnbench_nb.report import Report

FILES = sorted((PROJECT / "params").glob("*.yaml"))


def load(tmp_path, text, **overrides):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return load_protocol(path, overrides)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_parameter_file_is_valid_and_survives_a_round_trip(path, tmp_path):
    protocol = load_protocol(path)
    again = load(tmp_path, to_yaml(protocol.dump()))
    assert again == protocol and again.parameterisations == protocol.parameterisations


def test_the_matched_search_tries_one_latin_hypercube_with_every_model():
    places = qmc.LatinHypercube(3, seed=1).random(12).T
    ranges = loguniform(5e-4, 2e-2), uniform(0, 0.6), loguniform(0.01, 2)
    drawn = zip(*(own.ppf(place) for own, place in zip(ranges, places, strict=True)), strict=True)
    points = sorted(tuple(float(f"{value:.2g}") for value in point) for point in drawn)
    search = load_protocol(PROJECT / "params/tuned_matched_search.yaml").parameterisations.values()
    sizes = load_protocol(PROJECT / "params/row_mnist_matched.yaml").parameterisations.values()
    for model, size in {own.model: own.hidden_size for own in sizes}.items():
        tried = [own for own in search if own.model == model]
        assert {own.hidden_size for own in tried} == {size} and len(tried) == 14
        tried = tried[:12]  # and two more, around the best
        rates = [(own.learning_rate, own.dropout) for own in tried]
        assert rates == [(rate, dropout) for rate, dropout, _ in points]
        if model == "agru":
            assert [own.gamma for own in tried] == [gamma for *_, gamma in points]


def test_the_row_mnist_protocol_is_the_published_one():
    protocol = load_protocol(PROJECT / "params/row_mnist.yaml")
    published = {
        "dataset": "mnist", "reading": "row", "hidden_size": 128, "epochs": 50, "batch_size": 128,
        "optimiser": "adam", "learning_rate": 1e-3, "weight_decay": 1e-4, "clip_norm": 1.0,
        "schedule": "plateau", "plateau_factor": 0.5, "plateau_patience": 5, "patience": 10,
        "seed": 42, "offline_fallback": None,
    }  # fmt: skip
    for parameters in protocol.parameterisations.values():
        assert parameters.model_dump(include=set(published)) == published
    ours = protocol.parameterisations["agru"]
    assert (ours.gamma, ours.epsilon, ours.learnable_epsilon) == (0.01, 1.0, True)


def test_numbers_are_taken_as_they_are_meant_and_names_stay_text(tmp_path):
    typed = "learning_rate: 1e-3\nepochs: 1e2\nclip_norm: None\nseed: '7'\nhidden_size: 8.0\n" \
            "gamma: 1e-2\nvariants: {'1e-3': {model: agru, epochs: 2e1}, 'None': {model: agru}}\n" \
            "quick: {learning_rate: 1e-1}"  # fmt: skip
    protocol = load(tmp_path, f"models: [agru]\n{typed}")
    assert list(protocol.parameterisations) == ["1e-3", "None"]
    first, second = protocol.parameterisations.values()
    assert (first.learning_rate, first.epochs, second.epochs) == (0.001, 20, 100)
    assert (first.clip_norm, first.seed, first.hidden_size, first.gamma) == (None, 7, 8, 0.01)
    assert second.variant == "None" and protocol.seeds == [7]
    assert protocol.quick().parameterisations["None"].learning_rate == 0.1
    assert protocol.quick().parameterisations["None"].epochs == 5
    (tmp_path / "again.yaml").write_text(to_yaml(protocol.dump()))
    assert load_protocol(tmp_path / "again.yaml").parameterisations == protocol.parameterisations


def test_a_file_of_the_projects_is_named_without_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = load_protocol(PROJECT / "params/quick.yaml")
    assert load_protocol("quick") == load_protocol("quick.yaml") == quick
    (tmp_path / "quick.yaml").write_text("models: [gru]")
    assert load_protocol("quick.yaml").models == ["gru"]  # what lies here goes first
    with pytest.raises(UserError, match="cannot be read .* name one, such as ablation, adding"):
        load_protocol("qick")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gama: 0.1", "unknown key 'gama'; the nearest known key is 'gamma'."),
        ("epochs: ten", "epochs: input should be a valid integer, but 'ten' is given."),
        ("lr: 0.1", "unknown key 'lr'; the nearest known key is 'learning_rate'."),
        ("batch: 8", "unknown key 'batch'; the nearest known key is 'batch_size'."),
        ("qqq: 8", "unknown key 'qqq'; `rnnbench check` prints the known."),
        ("epochs: 1e-1", "epochs: input should be a valid integer"),
        ("epochs: None", "epochs: input should be a valid integer, but 'None' is given."),
        ("hidden_size: 0", "hidden_size: input should be greater than or equal to 1, but '0'"),
        ("steps: 0", "steps: input should be greater than or equal to 1, but '0'"),
        ("epochs: 0", "epochs: input should be greater than or equal to 1, but '0'"),
        ("batch_size: -3", "batch_size: input should be greater than or equal to 1"),
        ("epsilon: 0", "epsilon: input should be greater than 0"),
        ("epsilon: .nan", "epsilon: input should be a finite number"),
        ("gamma: .inf", "gamma: input should be a finite number"),
        ("dropout: 1.0", "dropout: input should be less than 1"),
        ("learnable_epsilon: 1", "learnable_epsilon: input should be a valid boolean"),
        ("epochs: true", "epochs: input should be a valid integer"),
        ("optimiser: sdg", "optimiser: input should be 'adam', 'adamw' or 'sgd', but 'sdg'"),
        ("models: [lstm, lstm]", "models: names 'lstm' twice; name each model once"),
        ("model: null\nmodels: []", "models is missing; name some of"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice; give it once."),
        ("variants: {a b: {model: gru}}", "variants.a b"),
        ("variants: {../x: {model: gru}}", "variants"),
        ("variants: {a: {gama: 1}}", "variant 'a': unknown key 'gama'"),
        ("variants: {a: {seed: 1}}", "variant 'a': a variant cannot set 'seed'"),
        ("models: [gru]\nvariants: {a: {model: lstm}}", "none of the variants uses gru"),
        ("models: [gru]\ngamma: 0.5", "gamma is an option of agru"),
        ("variants: {a: {model: gru, gamma: 1}}", "variant 'a': gamma is an option of agru"),
        ("task: guessing", "task: 'guessing' is unknown; it must be one of adding_problem"),
        ("num_layers: 1", "unknown key 'num_layers'"),
        ("seed: 4294967295\nruns: 2", "seed: the last seed would be above 4294967295"),
        ("quick: {gama: 0.1}", "quick: unknown key 'gama'; the nearest known key is 'gamma'."),
        ("quick: {epochs: ten}", "quick: epochs: input should be a valid integer, but 'ten'"),
        ("quick: {reading: line}", "reading: input should be 'row' or 'pixel', but 'line'"),
        ("base: nowhere", "nowhere.yaml is not there; name a file beside it"),
        ("base: p", "its base leads back to itself"),
        ("", "the parameter file is empty"),
        ("- a", "the parameter file must hold KEY: VALUE lines"),
        ("1: a", "the parameter file must hold KEY: VALUE lines"),
        ("a: [", "this is not valid YAML at line 1"),
        ("a: !!python/object/apply:os.getcwd []", "this is not valid YAML"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(tmp_path, text, sentence):
    if ":" in text and "model" not in text.split(":")[0] and text[0] not in "1a":
        text = f"model: agru\n{text}"
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
    protocol = load(tmp_path, "model: agru\nseed: 1\nepsilon: 1", seed=7, runs=3)
    assert protocol.seeds == [7, 8, 9]
    assert [p.seed for p in protocol.at(8)] == [8]
    assert protocol.parameterisations["agru"].epsilon == 1.0
    with pytest.raises(UserError, match="the options: runs"):
        load(tmp_path, "model: agru", runs=0)


def test_an_option_goes_to_those_that_read_it_and_to_no_other(tmp_path):
    found = load(tmp_path, "models: [gru, agru]", gamma=0.5).parameterisations
    assert found["agru"].gamma == 0.5 and "gamma" not in found["gru"].model_dump()
    with pytest.raises(UserError, match="the options: gamma is an option of agru.*, and nothing"):
        load(tmp_path, "models: [gru, agru]", models=["gru"], gamma=0.5)
    narrowed = load(tmp_path, "models: [gru, agru]\ngamma: 0.5", models=["gru"])
    assert list(narrowed.parameterisations) == ["gru"]  # what the file says of others may stay


def test_a_file_holds_what_differs_from_its_base(tmp_path):
    (tmp_path / "first.yaml").write_text("models: [gru]\nepochs: 7\nseed: 3")
    (tmp_path / "second.yaml").write_text("base: first\nepochs: 8")
    assert read_values(tmp_path / "second.yaml") == {"models": ["gru"], "epochs": 8, "seed": 3}
    protocol = load(tmp_path, "base: second\nruns: 2")
    assert protocol.seeds == [3, 4] and protocol.values["epochs"] == 8


@pytest.mark.parametrize("name", ["0.5", "None", "NA", "128", "True", "007", "inf", "1e-3"])
def test_a_name_that_looks_like_a_value_is_text_to_all_that_read_it(tmp_path, name):
    protocol = load(tmp_path, f"model: gru\nvariants: {{'{name}': {{epochs: 1}}}}")
    assert protocol.parameterisations[name].run == f"{name}-seed42"
    again = load(tmp_path, to_yaml(protocol.dump()))
    assert again.parameterisations == protocol.parameterisations
    given = yaml.safe_load(to_yaml(protocol.parameterisations[name].model_dump()))  # by papermill
    assert run_parameters(given, "variants").variant == name


def test_merge_keys_of_yaml_are_read(tmp_path):
    text = "model: agru\nvariants: {a: &a {gamma: 0.5}, b: {<<: *a, epsilon: 0.5}}"
    found = load(tmp_path, text).parameterisations["b"]
    assert (found.gamma, found.epsilon) == (0.5, 0.5)


PUBLISHED = sorted((PROJECT / "reports/published").glob("*/protocol.yaml"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_protocols_of_published_reports_stay_readable(path):
    assert recorded_protocol(path).parameterisations


def test_records_of_before_are_read_without_what_was_never_read():
    old = {"model": "gru", "gamma": 0.01, "num_layers": 1, "reading": "pixel"}
    assert recorded_parameters(old, "run.json") == run_parameters(
        {"model": "gru", "reading": "pixel"}, "x"
    )
    with pytest.raises(UserError, match="run.json: num_layers 2 is no longer read"):
        recorded_parameters({**old, "num_layers": 2}, "run.json")


def test_variants_lie_over_the_file_and_models_choose_among_them(tmp_path):
    text = "model: agru\nhidden_size: 16\n"
    text += "variants: {a: {model: gru}, b: {gamma: 0.5}, c: {model: lstm}}"
    found = load(tmp_path, text, models=["gru", "agru"]).parameterisations
    assert list(found) == ["a", "b"]
    assert (found["a"].model, found["b"].gamma, found["b"].hidden_size) == ("gru", 0.5, 16)
    assert found["b"].run == "b-seed42"
    plain = load(tmp_path, "models: [gru, lstm]").parameterisations
    assert {name: p.model for name, p in plain.items()} == {"gru": "gru", "lstm": "lstm"}


def test_the_quick_form_has_five_epochs_at_most_in_every_variant(tmp_path):
    text = "model: gru\nepochs: 50\nvariants: {a: {}, b: {epochs: 70}, c: {epochs: 3}}"
    quick = load(tmp_path, text).quick()
    assert [p.epochs for p in quick.parameterisations.values()] == [5, 5, 3]
    assert load(tmp_path, "model: gru\nepochs: 4").quick().values["epochs"] == 4


def test_a_file_says_what_its_quick_form_has_instead(tmp_path):
    text = "model: gru\nquick: {dataset: digits, steps: 3}\nvariants: {a: {}, b: {steps: 70}}"
    protocol = load(tmp_path, text)
    assert [p.steps for p in protocol.parameterisations.values()] == [None, 70]
    found = protocol.quick().parameterisations.values()
    assert [(p.steps, p.epochs, p.dataset) for p in found] == 2 * [(3, 5, "digits")]
    assert load(tmp_path, to_yaml(protocol.dump())) == protocol
    assert load(tmp_path, to_yaml(protocol.quick().dump())).short == {}
    shorter = load(tmp_path, "model: gru\nquick: {epochs: 2}").quick()
    assert shorter.values["epochs"] == 2


CELL = "model: str = 'gru'  # cell\nepochs: int = 50\ngamma: float = None\nbase: str = ''"


def notebook(injected="", also=""):
    """What a notebook holds after its parameters cell, the injected one and a start-up file."""
    namespace = {"startup": 1, "_i": "", "In": ["", CELL, f"# Parameters\n{injected}", also, "now"]}
    for cell in namespace["In"][1:4]:
        exec(cell, namespace)
    return namespace


def test_a_notebook_refuses_what_papermill_only_warns_of():
    assert from_notebook(notebook("seed = 3")) == run_parameters({"model": "gru", "seed": 3}, "x")
    with pytest.raises(UserError, match="the notebook's parameters: unknown key 'gama'"):
        from_notebook(notebook("gama = 0.1"))
    with pytest.raises(UserError, match="gamma is an option of agru.*, and nothing here reads it"):
        from_notebook(notebook("gamma = 0.1"))


def test_a_notebook_takes_options_of_its_cell_and_leaves_others_at_their_default():
    assert from_notebook(notebook("model = 'agru'")).gamma == 0.01
    assert from_notebook(notebook("model = 'agru'\ngamma = 0.5")).gamma == 0.5
    swept = "models = ['gru', 'agru']\nmodel = 'gru'\ngamma = 0.5"  # `-f` of a sweep's file
    assert "gamma" not in from_notebook(notebook(swept)).model_dump()


def test_what_a_notebook_is_given_goes_before_its_base_and_that_before_its_own_values():
    found = from_notebook(notebook("base = 'quick'\nmodel = 'lstm'"))
    assert (found.epochs, found.model) == (3, "lstm")
    assert from_notebook(notebook("base = 'quick'\nmodel = 'lstm'\nepochs = 50")).epochs == 50


def test_parameters_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunParameters(model="gru").epochs = 3


def test_a_variant_may_have_fewer_seeds_than_the_others(tmp_path):
    text = "models: [gru, lstm]\nseed: 5\nruns: 3\nvariants:\n  gru: {model: gru}\n"
    protocol = load(tmp_path, text + "  lstm: {model: lstm, runs: 2}")
    assert (protocol.seeds_of("gru"), protocol.seeds_of("lstm")) == ([5, 6, 7], [5, 6])
    assert [own.run for own in protocol.at(7)] == ["gru-seed7"]
    (tmp_path / "protocol.yaml").write_text(to_yaml(protocol.dump()))
    found = Report(tmp_path)
    assert [record["seed"] for record in found.lost if record["variant"] == "lstm"] == [5, 6]
    with pytest.raises(UserError, match="variant 'lstm': runs: input should be greater"):
        load(tmp_path, text + "  lstm: {model: lstm, runs: 0}")


def test_two_runs_are_one_if_only_the_name_of_the_variant_differs():
    one = run_parameters({"model": "gru", "variant": "a"}, "x")
    assert one.same_as(run_parameters({"model": "gru", "variant": "b"}, "x"))
    assert not one.same_as(run_parameters({"model": "gru", "variant": "a", "seed": 1}, "x"))


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


TEXTS = [to_yaml(load_protocol(path).dump()) for path in FILES]  # whole, without their bases


@st.composite
def mutated_files(draw):
    """The text of a parameter file of the project with one thing in it changed."""
    text = draw(st.sampled_from(TEXTS))
    values = yaml.safe_load(text)
    keys = sorted(set(values) | set(RunParameters.model_fields) | {"gamma", "reading", "runs"})
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
    from rnnbench_nb.cli import main

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
            assert load_protocol(path).parameterisations
        else:
            assert isinstance(result.exception, SystemExit)
            assert result.exit_code == 1
            assert len(result.stderr.splitlines()) == 1
            assert result.stderr.startswith("rnnbench: ")

    check()
    assert len(valid) >= 500
    assert 0.2 < sum(valid) / len(valid) < 0.7  # no comments there, where a change is harmless
