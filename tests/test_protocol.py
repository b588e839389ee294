import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.parameters import to_yaml
from rnnbench_nb.protocol import COMMON, load_protocol, run_parameters

FILES = sorted((PROJECT / "params").glob("*.yaml"))
PUBLISHED = sorted((PROJECT / "reports/published").glob("*/protocol.yaml"))


def load(tmp_path, text, **overrides):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return load_protocol(path, overrides)


def named(protocol):
    return protocol.parameterisations


def again(tmp_path, protocol):
    return load(tmp_path, to_yaml(protocol.dump()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_parameter_file_is_valid_and_survives_a_round_trip(path, tmp_path):
    protocol = load_protocol(path)
    assert again(tmp_path, protocol) == protocol


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_a_published_report_has_the_parameters_that_the_file_of_its_name_asks_for(path):
    done, asked = named(load_protocol(path)), named(load_protocol(path.parent.name))
    assert done and all(asked[name] == own for name, own in done.items())


def test_a_file_of_the_projects_is_named_without_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = load_protocol(PROJECT / "params/quick.yaml")
    assert load_protocol("quick") == load_protocol("quick.yaml") == quick
    (tmp_path / "quick.yaml").write_text("models: [gru]")
    assert list(named(load_protocol("quick.yaml"))) == ["gru"]  # what lies here goes first
    with pytest.raises(UserError, match="qick.*cannot be read .* name a parameter file, such as"):
        load_protocol("qick")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gama: 0.1", "unknown key 'gama'; the nearest known key is 'gamma'."),
        ("gama: 0.1\nvariants: {a: {}}", "p.yaml: unknown key 'gama'"),
        ("clip_norm: None", "clip_norm: input should be a valid number, but 'None' is given."),
        ("epsilon: .nan", "epsilon: input should be a finite number"),
        ("models: [lsmt]", "models: 'lsmt' is unknown; it must be one of"),
        ("model: [gru, lstm]", "models: \"['gru', 'lstm']\" is unknown; it must be one of"),
        ("model: null\nmodels: []", "models is missing; name some of"),
        ("variants: {a b: {}}", "variants.a b"),
        ("variants: {a: {gama: 1}}", "variant 'a': unknown key 'gama'"),
        ("variants: {a: {variant: b}}", "variant 'a': a variant cannot set variant"),
        ("variants: {a: {runs: 0}}", "variant 'a': runs: input should be greater"),
        ("models: [gru]\nvariants: {a: {model: lstm}}", "no variant uses gru; name one that"),
        ("models: [gru, lstm]\nvariants: {a: {epochs: 3}}", "variant 'a': model: None is unknown"),
        ("models: [gru]\ngamma: 0.5", "gamma is an option of agru"),
        ("variants: {a: {model: gru, gamma: 1}}", "variant 'a': gamma is an option of agru"),
        ("variants: {gru_128: {model: gru}, GRU-128: {}}", "'GRU-128' is too similar to another"),
        ("variants: {agru: {}, AGRU: {epochs: 2}}", "'AGRU' is too similar to another; rename it"),
        ("variants: {a_b: {}, a-b: {}}", "'a-b' is too similar to another"),
        ("task: guessing", "task: 'guessing' is unknown; it must be one of adding_problem"),
        ("seed: 4294967295\nruns: 2", "seed: the last seed would be above 4294967295"),
        ("quick: {gama: 0.1}", "quick: unknown key 'gama'"),
        ("quick: {epochs: ten}", "quick: epochs: input should be a valid integer, but 'ten'"),
        ("variants: {a: {}}\nprimary: [[a, b]]", "primary: 'b' is unknown; it must be one of a"),
        ("base: nowhere", "p.yaml must be the name, without .yaml, of a file beside it"),
        ("base: p", "its base leads back to it"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path, text, sentence):
    if "model" not in text.split(":")[0]:
        text = f"model: agru\n{text}"
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert sentence in message and str(tmp_path / "p.yaml") in message and "\n" not in message


def test_options_are_laid_over_the_file_and_go_to_those_that_read_them(tmp_path):
    text = "models: [gru, agru]\nseed: 1\nepsilon: 1"
    protocol = load(tmp_path, text, seed=7, runs=3, gamma=0.5)
    assert protocol.seeds == [7, 8, 9] and [own.seed for own in protocol.at(8)] == [8, 8]
    gru, agru = named(protocol).values()
    assert (agru.cell_options.epsilon, agru.cell_options.gamma) == (1.0, 0.5)
    assert "gamma" not in gru.flat()
    with pytest.raises(UserError, match="gamma is an option of agru.* and has no effect"):
        load(tmp_path, text, models=["gru"], gamma=0.5)
    narrowed = load(tmp_path, text, models=["gru"])
    assert list(named(narrowed)) == ["gru"]  # what the file says of others may stay


def test_a_file_holds_what_differs_from_its_base(tmp_path):
    (tmp_path / "first.yaml").write_text("models: [gru]\nepochs: 7\nseed: 3\ngamma: 2")
    (tmp_path / "second.yaml").write_text("base: first\nepochs: 8")
    protocol = load(tmp_path, "base: second\nruns: 2")  # gamma may stay: this file inherits it
    assert protocol.seeds == [3, 4] and named(protocol)["gru"].epochs == 8
    assert list(named(load(tmp_path, "base: row_cells\nmodels: [lem]"))) == ["lem"]  # of params/
    (tmp_path / "first.yaml").write_text("models: [gru]\ngama: 2")
    with pytest.raises(UserError, match="unknown key 'gama'"):
        load(tmp_path, "base: second")


@pytest.mark.parametrize("name", ["0.5", "None", "True", "007", "inf", "1e-3", "on"])
def test_a_name_that_looks_like_a_value_is_text_to_all_that_read_it(tmp_path, name):
    protocol = load(tmp_path, f"model: gru\nvariants: {{'{name}': {{epochs: 1}}}}")
    assert named(protocol)[name].run == f"{name}-seed42"
    assert again(tmp_path, protocol) == protocol
    given = yaml.safe_load(to_yaml(named(protocol)[name].for_notebook()))  # by papermill
    assert run_parameters(given, "variants") == named(protocol)[name]


def test_variants_lie_over_the_file_and_models_choose_among_them(tmp_path):
    text = "model: agru\nhidden_size: 16\n"
    text += "variants: {a: {model: gru}, b: {gamma: 0.5}, c: {model: lstm}}"
    variants = named(load(tmp_path, text, models=["gru", "agru"]))
    assert [(name, own.model) for name, own in variants.items()] == [("a", "gru"), ("b", "agru")]
    assert (variants["b"].hidden_size, variants["b"].flat()["gamma"]) == (16, 0.5)


def test_a_module_of_another_package_takes_part_beside_a_cell(tmp_path):
    text = "models: [gru, mine]\nvariants: {mine: {module: 'torch.nn:GRU', arguments: {a: false}}}"
    protocol = load(tmp_path, text)
    assert [own.model for own in named(protocol).values()] == ["gru", "module"]
    options = named(protocol)["mine"].cell_options
    assert (options.module, options.arguments) == ("torch.nn:GRU", {"a": False})
    assert again(tmp_path, protocol) == protocol
    assert list(named(load(tmp_path, text, models=["mine"]))) == ["mine"]
    assert list(named(load(tmp_path, "variants: {mine: {module: 'torch.nn:GRU'}}"))) == ["mine"]


def test_the_quick_form_has_five_epochs_at_most_and_what_its_file_says(tmp_path):
    text = "model: gru\nepochs: 50\nvariants: {a: {}, b: {epochs: 70, steps: 70}, c: {epochs: 3}}\n"
    quick = load(tmp_path, text).quick()
    assert [(p.epochs, p.steps) for p in named(quick).values()] == [(5, None), (5, 70), (3, None)]
    protocol = load(tmp_path, text + "quick: {dataset: digits, steps: 3}")
    assert [p.steps for p in named(protocol).values()] == [None, 70, None]
    variants = named(protocol.quick()).values()
    assert {(p.steps, p.task_options.dataset) for p in variants} == {(3, "digits")}
    assert again(tmp_path, protocol) == protocol
    assert again(tmp_path, protocol.quick()).short == {}


def test_a_variant_may_have_another_number_of_seeds(tmp_path):
    text = "models: [gru, lstm]\nseed: 5\nruns: 3\nvariants:\n  gru: {model: gru}\n"
    for own, seeds in ((2, [5, 6, 7]), (4, [5, 6, 7, 8])):
        protocol = load(tmp_path, f"{text}  lstm: {{model: lstm, runs: {own}}}")
        assert protocol.seeds == seeds and protocol.seeds_of("gru") == [5, 6, 7]
        assert protocol.seeds_of("lstm") == [5, 6, 7, 8][:own]
        assert [each.run for each in protocol.at(8)] == (["lstm-seed8"] if own == 4 else [])
        fewer = load_protocol(tmp_path / "p.yaml", {"runs": 1})
        assert fewer.seeds_of("gru") == fewer.seeds_of("lstm") == [5]
        assert again(tmp_path, protocol) == protocol and again(tmp_path, fewer) == fewer


def test_a_users_note_is_no_sign_of_data_that_stand_in(tmp_path):
    protocol = load(tmp_path, "model: gru\ndataset: digits\nnote: mine").resolve()
    assert (protocol.note, protocol.stand_in) == ("mine", False)
    assert again(tmp_path, protocol) == protocol


def test_runs_are_one_but_for_the_variants_name_and_compared_on_one_task():
    one = run_parameters({"model": "gru", "variant": "a"}, "x")
    assert one.same_as(run_parameters({"model": "gru", "variant": "b"}, "x"))
    assert not one.same_as(one.replace(seed=1)) and not one.same_as(one.replace(chrono=9))
    assert one.replace(chrono=9).flat() == {**one.flat(), "chrono": 9}
    assert one.group == one.replace(chrono=9, epochs=3).group != one.replace(reading="pixel").group


def test_the_options_of_a_notebook_are_checked():
    values = run_parameters({"model": "gru"}, "x").for_notebook()
    assert run_parameters(values, "x").same_as(run_parameters({"model": "gru"}, "x"))
    for options, sentence in [
        ({"gamma": 1.0}, "gamma is an option of agru.* and has no effect"),
        (3, "options: must hold KEY: VALUE pairs"),
    ]:
        with pytest.raises(UserError, match=f"this notebook: {sentence}"):
            run_parameters({**values, "options": options}, "this notebook")


TEXT = st.text("aeé0.:,-#&*!|>'\"[]{}%@$() \t\n\0", max_size=6)
ODD = [None, True, [], ["lstm"], ["gru", "gru"], {}, {"a": 1}, "gru", "pixel", "none", "1e-3", ""]
VALUES = st.sampled_from(ODD) | st.integers(-3, 300) | st.floats(width=32) | TEXT
SMALL = [to_yaml(load_protocol(path).dump()) for path in FILES if path.stat().st_size < 1500]


@st.composite
def mutated_files(draw):
    """The text of a parameter file of the project with a character or a value in it changed."""
    text = draw(st.sampled_from(SMALL))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        return text[:at] + draw(TEXT) + text[at + draw(st.integers(0, 3)) :]
    values = yaml.safe_load(text)
    keys = sorted({*values, *COMMON, "gamma", "reading", "runs", "options", "module"})
    changed = {draw(st.sampled_from(keys) | TEXT): draw(VALUES)}
    values |= changed if draw(st.booleans()) else {"variants": {"a": {"model": "gru"} | changed}}
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)


def test_mutated_files_give_parameters_or_one_sentence(tmp_path):
    valid = []

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(mutated_files())
    def check(text):
        try:
            valid.append(bool(named(load(tmp_path, text))))
        except UserError as error:
            valid.append(False)
            assert "\n" not in str(error) and "p.yaml" in str(error)

    check()
    assert {True, False} == set(valid)
