"""Changes, families and validation scores, by hand."""

import pandas as pd
import pytest

from rnnbench_nb import statistics as ablation
from rnnbench_nb.errors import UserError
from rnnbench_nb.protocol import run_parameters


def parameters(model="agru", **values):
    return run_parameters({"model": model, **values}, "a test")


def test_changes_are_what_differs_and_nothing_else():
    variants = {
        "base": parameters(variant="base"),
        "damped": parameters(variant="damped", gamma=0.5, seed=9, device="cpu"),
        "frozen": parameters(variant="frozen", epsilon=0.1, learnable_epsilon=False),
    }
    changed = ablation.changes(variants, "base")
    assert changed == {
        "damped": {"gamma": 0.5},
        "frozen": {"epsilon": 0.1, "learnable_epsilon": False},
    }
    assert ablation.settings(changed["frozen"]) == "epsilon 0.1 and learnable_epsilon no"
    assert (
        ablation.settings({"clip_norm": None, "hidden_size": 1})
        == "clip_norm none and hidden_size 1"
    )


def test_an_option_that_the_reference_lacks_counts_where_it_is_not_at_its_default():
    variants = {
        "base": parameters("gru", variant="base"),
        "at_rest": parameters("agru", variant="at_rest"),
        "damped": parameters("agru", variant="damped", gamma=0.5),
    }
    assert ablation.changes(variants, "base") == {
        "at_rest": {"model": "agru"},
        "damped": {"model": "agru", "gamma": 0.5},
    }


def test_models_are_families_where_each_has_several_variants():
    models = {"a": "gru", "b": "agru", "c": "agru", "d": "gru"}
    variants = {name: parameters(model, variant=name) for name, model in models.items()}
    assert ablation.families(variants) == [["a", "d"], ["b", "c"]]
    assert ablation.families(variants, "c") == [["a", "d"], ["c", "b"]]
    del variants["d"]
    assert ablation.families(variants, "b") == [["b", "a", "c"]]
    with pytest.raises(UserError, match="'other' has no finished run; name one of a, b, c"):
        ablation.families(variants, "other")


def test_other_lengths_are_other_families_and_what_stands_alone_is_in_none():
    variants = {
        f"{model}_{length}": parameters(model, task="adding_problem", length=length)
        for length in (200, 750)
        for model in ("gru", "lstm", "agru")
    }
    short, long = (list(variants)[i : i + 3] for i in (0, 3))
    assert ablation.families(variants) == [short, long]
    assert ablation.families(variants, "lstm_750")[1] == ["lstm_750", "gru_750", "agru_750"]
    del variants["gru_200"], variants["lstm_200"]
    assert ablation.families(variants) == [long]


def test_validation_scores_are_those_of_the_chosen_epoch():
    history = pd.DataFrame(
        [("a", 3, 1, "train", 0.1), ("a", 3, 1, "validation", 0.8), ("a", 3, 2, "validation", 0.9),
         ("a", 4, 1, "validation", 0.6)],
        columns=["variant", "seed", "epoch", "split", "accuracy"],
    )  # fmt: skip
    results = pd.DataFrame(
        [("a", 3, 0.5, 10, 2, 1, 5.0, "completed"), ("b", 3, *[None] * 5, "failed"),
         ("a", 4, 0.5, 10, 4, 1, 2.0, "completed")],
        columns=["variant", "seed", "accuracy", "free_parameters", "epochs", "best_epoch",
                 "seconds", "status"],
    )  # fmt: skip
    assert ablation.validation_scores(results, history).to_dict("records") == [
        {"variant": "a", "seed": 3, "accuracy": 0.8, "free_parameters": 10},
        {"variant": "a", "seed": 4, "accuracy": 0.6, "free_parameters": 10},
    ]
