"""Page 08: errors and reaches by hand, orders of variants, and what is said of them."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from made import made_report
from scipy.stats import spearmanr
from test_dynamics import TWO, B, D, SquaredError, draw, make_cell

from rnnbench_nb import dynamics
from rnnbench_nb.analyses import FEW, PAGES, Analysis, memory
from rnnbench_nb.files import PROJECT
from rnnbench_nb.model import SequenceModel
from rnnbench_nb.protocol import load_protocol, run_parameters
from rnnbench_nb.tasks import TASKS

NAMES = ["x", "y", "z"]


def run(name="adding_problem", losses=(), scores=(), **options):
    """What `errors` asks of a run."""
    small = {"model": "gru", "task": name, **TASKS[name].tiny, "batch_size": 100, **options}
    parameters = run_parameters(small, "a test")
    task = TASKS[name](parameters.task_options)
    curve = list(enumerate(zip(losses, scores or losses, strict=True), start=1))
    rows = [{"epoch": epoch, "split": split, "loss": loss, task.score.name: score}
            for split in ("train", "validation") for epoch, (loss, score) in curve]  # fmt: skip
    return SimpleNamespace(
        task=task, parameters=parameters, history=pd.DataFrame(rows).iloc[::-1],
        record={"data": {"train": 640}, "test": {"loss": 0.1}},
        predictions={"label": np.array([1, 0])}, scores=np.array([1.0, 0.5]),
    )  # fmt: skip


def test_the_error_of_a_task_with_a_formula_is_the_loss_and_epochs_are_counted_in_steps():
    one = run(losses=(0.2, 1 / 60, 0.01), steps=20)  # 7 steps an epoch, 6 in the last
    found = memory.errors(one, one)
    assert found == {"error": 0.1, "memoryless": 1 / 6, "ratio": 0.1 / (1 / 6), "steps": 14,
                     "budget": 20}  # fmt: skip
    assert memory.errors(run(losses=(0.2, 0.1, 0.01), steps=20), one)["steps"] == 20
    assert math.isnan(memory.errors(run(losses=(0.2, 0.1)), one)["steps"])


def test_the_error_of_a_task_without_one_is_what_the_score_lacks_of_right_answers():
    one = run("image_sequence", losses=(1, 1, 1), scores=(0.5, 0.95, 0.99), epochs=3)
    found = memory.errors(one, one)
    floor = 1 - one.task.memoryless(one.task.load(42))
    assert found["memoryless"] == pytest.approx(floor) and 0.5 < floor < 0.95
    assert found["ratio"] == pytest.approx(0.25 / floor)
    assert (found["steps"], found["budget"]) == (14, 21)


def test_reach_is_the_first_input_that_still_matters():
    gradients = torch.tensor([[0.009, 0.011, 0, 1.0], [0, 0, 0, 5], [2, 0, 0, 0.1], [0, 0, 0, 0]])
    assert memory.reach(gradients) == (3 + 1 + 4 + 0) / 4


def test_gradients_of_inputs_are_those_of_automatic_differentiation():
    cell, inputs, asked = make_cell(TWO), draw(B, 5, D), draw(B, 3, seed=2)
    model = SequenceModel(cell, 3).double()
    states, of_inputs = dynamics.sensitivities(model, SquaredError(), inputs, asked)
    assert states.shape == (B, 6)
    inputs.requires_grad_()
    expected = torch.autograd.grad(SquaredError().losses(model(inputs), asked).sum(), inputs)[0]
    torch.testing.assert_close(of_inputs, expected.norm(dim=-1), rtol=1e-9, atol=0)


def test_the_size_of_a_gradient_is_told_where_its_square_would_be_zero():
    vectors = torch.tensor([[3e-200, -4e-200], [3e200, 4e200], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(
        dynamics._size(vectors), torch.tensor([5e-200, 5e200, 0], dtype=torch.float64), atol=0,
        rtol=1e-12,
    )  # fmt: skip


def measures(**columns):
    """Frames `errors` and `measures` of three variants at ten steps, two seeds each."""
    keys = [{"variant": name, "length": 10, "seed": seed} for seed in (1, 2) for name in NAMES]
    rows = {"decades": [1.0, -2, 3] * 2, "reach": [9.0, 5, 1] * 2, "lasting": [0.5] * 6,
            "largest_exponent": [-0.1, -0.3, 0.2, *[np.nan] * 3], **columns}  # fmt: skip
    frame = pd.DataFrame(keys).assign(**rows)
    both = [frame.assign(moment=moment) for moment in ("initial", "trained")]
    errors = pd.DataFrame(keys).assign(
        error=[1.0, 2, 3, 1, 4, 3], memoryless=4.0, ratio=[0.05, 0.5, 0.9, 0.15, 0.7, 1.1],
        steps=[7, np.nan, np.nan, 14, np.nan, 21], budget=70,
    )  # fmt: skip
    return errors, pd.concat(both, ignore_index=True)


def test_means_over_the_seeds_and_what_they_are_called():
    table = memory.lengths(*measures(reach=[9.0, 5, 1, 7, 5, 1])).set_index("variant")
    assert table["ratio"].tolist() == pytest.approx([0.1, 0.6, 1.0])
    assert table["state"].tolist() == ["solved", "partly", "lost"]
    assert table["seeds"].tolist() == [2, 2, 2]
    assert table["reach_trained"].tolist() == [8, 5, 1]
    assert table["largest_exponent_initial"].tolist() == [-0.1, -0.3, 0.2]  # of the first seed


def test_orders_are_compared_by_rank_and_adjusted_for_all_that_was_tried():
    table = memory.ranks(memory.lengths(*measures()))
    assert len(table) == 6 and set(table["n"]) == {3}  # what is the same for all is in no order
    initial = table[table["moment"] == "initial"].set_index("predictor")
    # Kept: x, y, z. The gradient changes least in x, then y; the exponent is nearest 0 in x, then z
    assert initial["correlation"].to_dict() == pytest.approx(
        {"decades": 1, "reach": 1, "largest_exponent": 0.5}
    )
    assert initial["p"].tolist() == pytest.approx([1 / 3, 1 / 3, 1])  # of six orders, two-sided
    assert (table["p_holm"] == 1).all()


def test_the_correlation_is_spearmans_with_ties_and_its_p_over_all_orders():
    x, y = [1, 2, 2, 4, 5], [2, 1, 3, 4, 5]
    both = pd.DataFrame({"x": x, "y": y}).rank()
    correlation, p = memory._correlation(both)
    assert correlation == pytest.approx(spearmanr(x, y).statistic)
    assert memory._correlation(both.assign(x=both["y"])) == (1, pytest.approx(2 / 120))
    assert 2 / 120 <= p < 0.2


def said(analysis, topic):
    return " ".join(analysis.texts(topic))


def test_the_sentences():
    errors, flow = measures()
    long = [frame.assign(length=1000) for frame in (errors.assign(ratio=0.95), flow)]
    errors, flow = (pd.concat(two) for two in zip((errors, flow), long, strict=True))
    found = Analysis({"errors": errors, "measures": flow, "lengths": memory.lengths(errors, flow)})
    found.frames["ranks"] = memory.ranks(found["lengths"])
    report = made_report(x="gru", y="lstm", z="agru")
    for say in (memory._answers, memory._learning, memory._gradients):
        say(found, report)
    memory._spectrum(found)
    memory._foretold(found)
    first, second, falls = found.texts("answer")
    assert first == (
        "**10 steps**, an error of 400% without memory, trained for 70 steps of the optimiser: "
        "solved by x (10%, 1 of 2 seeds); partly learned by y (60%); "
        "lost by z (100%). **x and y keep what z loses.**"
    )
    assert second.endswith("lost by x (95%), y (95%) and z (95%). **All of them lose it.**")
    assert falls.endswith(
        "without memory: x between 10 and 1,000; y between 10 and 1,000; z at 10 already."
    )
    assert found.texts("learning")[0] == (
        "**10 steps** a sequence: x after 10; z after 21 (1 of 2 seeds); not within 70: y."
    )
    assert "fewest decades in x (+1.0 initially, +1.0 trained) and by the most in z (+3.0" in said(
        found, "gradients"
    )
    assert (
        "over the most steps in x (9.0 initially, 9.0 trained) and over the fewest in z (1"
        in said(found, "gradients")
    )
    spectrum = said(found, "spectrum")
    assert "keep it lies from -0.300 to -0.100 nats a step, of those that lose it from" in spectrum
    assert "+0.200 to +0.200: they are apart." in spectrum and "**1,000 steps" not in spectrum
    assert "Nothing that was measured is shown to foretell which of them keeps it" in spectrum
    assert "With 3 variants no such p can go below 1, so this decides nothing." in spectrum
    assert "One seed" not in spectrum


def test_with_one_seed_and_enough_variants_it_says_so():
    names = list("abcdefgh")
    lengths = pd.DataFrame({"variant": names, "length": 10, "ratio": np.linspace(0, 1, 8)})
    for name in memory.PREDICTORS:
        for moment in ("initial", "trained"):
            lengths[f"{name}_{moment}"] = np.linspace(1, 0.1, 8) if name == "reach" else 1.0
    found = Analysis({"lengths": lengths.assign(seeds=1), "ranks": memory.ranks(lengths)})
    memory._foretold(found)
    first, *rest = found.texts("spectrum")
    assert first.startswith("Which of them keeps it goes with how far back the input matters (init")
    assert "rank correlation +1.00 over 8 variants, p = 0.0002" in first
    assert len(rest) == 1 and rest[0].startswith("One seed decides nothing")


def test_a_cell_has_one_look_at_all_lengths():
    variants = {
        name: run_parameters({"model": model, "task": "adding_problem", "length": n}, "a test")
        for name, model, n in (
            ("a9", "gru", 9), ("b9", "gru", 9), ("gru_9_open", "gru", 9), ("a7", "gru", 7),
            ("gru_7_open", "gru", 7),
        )
    }  # fmt: skip
    lined = memory.by_line(SimpleNamespace(variants=variants, task=None))
    assert lined.labels == {
        "a9": "GRU", "b9": "GRU-2", "gru_9_open": "GRU-open", "a7": "GRU", "gru_7_open": "GRU-open"
    }  # fmt: skip
    assert lined.looks["a9"] == lined.looks["a7"] != lined.looks["b9"]
    one = made_report("gru", damped="agru")
    assert memory.by_line(one).labels == one.labels and memory.by_line(one).looks == one.looks


def test_the_longest_sequences_are_drawn_and_not_too_many_lines_together():
    rows = [(f"v{i}", length) for i in range(FEW + 2) for length in (5, 10)]
    found = Analysis({"along": pd.DataFrame(rows, columns=["variant", "length"])})
    parts = memory.longest(found)
    assert [len(part) for part in parts] == [5, 5]
    assert {length for part in parts for length in part["length"]} == {10}


def test_the_page_is_of_long_sequences():
    wanted = {path.stem for path in (PROJECT / "params").glob("*.yaml")
              if PAGES["08_memory"](load_protocol(path))}  # fmt: skip
    assert wanted >= {"pixel_mnist", "permuted_mnist", "noise_padded", "adding", "copying"}
    assert not wanted & {"row_mnist", "fashion_mnist", "ablation", "tuning"}
