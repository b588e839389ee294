"""Changes and effects: hand-made variants, the paired t test, simulated studies."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from rnnbench_nb import statistics as ablation
from rnnbench_nb.errors import UserError
from rnnbench_nb.experiment import run_parameters

COLUMNS = ["variant", "seed", "accuracy"]


def parameters(model="agru", **values):
    return run_parameters({"model": model, **values}, "a test")


def scores(**accuracies):
    return pd.DataFrame(
        [(v, s, a) for v, values in accuracies.items() for s, a in enumerate(values)],
        columns=COLUMNS,
    ).dropna()


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
        {"variant": "a", "seed": 3, "accuracy": 0.8, "free_parameters": 10, "seconds": 2.5},
        {"variant": "a", "seed": 4, "accuracy": 0.6, "free_parameters": 10, "seconds": 0.5},
    ]


def test_two_variants_are_the_paired_t_test():
    a, b = [0.98, 0.975, 0.983, 0.979], [0.97, 0.971, 0.972, 0.974]
    (row,) = ablation.effects(scores(b=b, a=a), ["b", "a"], "b", 0.002).to_dict("records")
    paired = scipy_stats.ttest_rel(a, b).confidence_interval()
    assert row["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert (row["low"], row["high"]) == pytest.approx(tuple(paired))
    assert (row["family_low"], row["family_high"]) == pytest.approx(tuple(paired))
    assert (row["a"], row["b"], row["n"]) == ("a", "b", 4)


def test_more_variants_share_one_spread_and_a_correction():
    rng = np.random.default_rng(0)
    y = 0.98 + 0.001 * rng.normal(size=(4, 3))  # variants, seeds
    table = scores(**dict(zip("rxyz", y, strict=True)))
    effects = ablation.effects(table, list("rxyz"), "r", 0.002)
    rest = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    error = np.sqrt((rest**2).sum() / 6 * 2 / 3)  # 6 degrees of freedom, 3 seeds a mean
    half = scipy_stats.t.ppf(1 - 0.05 / 2 / 3, 6) * error
    np.testing.assert_allclose(effects["difference"], y[1:].mean(1) - y[0].mean())
    np.testing.assert_allclose(effects["family_high"] - effects["difference"], half)


def test_every_verdict_is_reached():
    jitter = np.array([-1, 0, 1]) * 1e-4
    table = scores(
        base=0.98 + jitter, better=0.99 - jitter, worse=0.97 - jitter, same=0.98 - jitter,
        slightly=0.9815 - jitter, close=0.982 + jitter,
    )  # fmt: skip
    verdicts = ablation.effects(table, list(table["variant"].unique()), "base", 0.003)["verdict"]
    small = "better, by less than the margin"
    assert list(verdicts) == ["better", "worse", "no effect beyond 0.3 points", small, small]
    wide = scores(base=[0.98, 0.97, 0.99], other=[0.98, 0.99, 0.97])
    assert list(ablation.effects(wide, ["base", "other"], "base", 0.002)["verdict"]) == [
        "undecided"
    ]


def test_missing_runs_one_seed_and_wrong_input():
    table = scores(base=[0.98, 0.97, np.nan], other=[0.99, np.nan, 0.5], gone=[np.nan] * 3)
    effects = ablation.effects(table, ["base", "other", "gone"], "base", 0.002)
    assert list(effects["n"]) == [1, 0]  # the seed that the reference lacks does not count
    assert effects["difference"].iloc[0] == pytest.approx(0.01)
    assert effects[["difference", "family_low"]].iloc[1].isna().all()
    assert set(effects["verdict"]) == {"undecided"}
    one = ablation.effects(scores(base=[0.98], other=[0.99]), ["base", "other"], "base", 0.002)
    assert one["low"].isna().all() and one["verdict"].tolist() == ["undecided"]
    with pytest.raises(UserError, match="'gone' has no finished run"):
        ablation.effects(table, ["base", "gone"], "gone", 0.002)
    with pytest.raises(UserError, match="margin is 0"):
        ablation.effects(table, ["base", "other"], "base", 0)


def test_simulated_ablations_keep_their_promises():
    """16 variants, 3 seeds, realistic spreads: false claims in few studies, 0.4 points found."""
    rng = np.random.default_rng(1)
    names = [f"v{index}" for index in range(16)]
    spread = 7e-4 * np.linspace(0.6, 1.5, 16)[:, None]
    claims = found = 0
    for _ in range(100):
        y = 0.985 + 0.001 * rng.normal(size=3) + spread * rng.normal(size=(16, 3))
        for gap in (0, 0.004):
            y[1] += gap
            table = scores(**dict(zip(names, y, strict=True)))
            verdict = ablation.effects(table, names, "v0", 0.002)["verdict"]
            claims += not gap and verdict.str.contains("better|worse").any()
            found += bool(gap) and verdict.iloc[0].startswith("better")
    assert claims <= 8
    assert found >= 95
