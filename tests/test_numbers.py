"""The check of the numbers on a page finds those that nothing holds."""

import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from numbers_on_pages import numbers, pool, unexplained

from rnnbench_nb.analyses import Analysis


def page(markdown="", table=""):
    shown = [
        {"text/markdown": markdown},
        {"text/html": table, "text/plain": "no 99"},
        {"image/png": "", "text/plain": "<Figure 77>"},
    ]
    outputs = [new_output("display_data", data) for data in shown]
    return new_notebook(cells=[new_code_cell("x = 123", outputs=outputs)])


@pytest.fixture
def analysis():
    found = Analysis({"x": pd.DataFrame({"variant": ["gamma_2"], "mean": [0.98765]})})
    found.say("Never looked at: 55.", one=1234.5, more=[-0.25], name="class 9")
    return found


def test_numbers_are_read_with_their_precision():
    found = list(numbers("1,234.50 -0.1 (+3) p2 x_4 1e-05 7%"))
    assert [value for value, _, _ in found] == [1234.5, -0.1, 3, 1e-5, 7]
    assert [half for _, half, _ in found] == pytest.approx([5e-3, 0.05, 5e-3, 5e-6, 5e-3])


def test_the_pool_holds_frames_and_the_numbers_of_findings_not_their_sentences(analysis):
    assert sorted(pool(analysis)) == [-0.25, 0.98765, 9, 1234.5]


@pytest.mark.parametrize(
    "text", ["98.77%", "0.988", "1,234", "-25.0", "0.25", "9", "gamma_2: 98.8", "-0.2"]
)
def test_rounding_and_percent_are_allowed(analysis, text):
    assert not unexplained(page(text), [analysis], ["gamma_2"])
    assert not unexplained(page(table=f"<style>.x 66</style><b>{text}</b>"), [analysis])


@pytest.mark.parametrize("text", ["98.78%", "0.989", "+25.0", "8", "55", "1,236"])
def test_a_number_that_nothing_holds_is_found(analysis, text):
    assert len(unexplained(page(text), [analysis])) == 1
    assert len(unexplained(page(table=f"<td>{text}</td>"), [analysis])) == 1
