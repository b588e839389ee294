"""The front page says what the published reports say, and answers a reader's questions."""

import math
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from markupsafe import Markup
from test_site import Links

from rnnbench_nb import statistics
from rnnbench_nb.analyses import Analysis, published
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT
from rnnbench_nb.metrics import Score
from rnnbench_nb.report import Report
from rnnbench_nb.site import drawing, front

PUBLISHED = PROJECT / "reports/published"
ROW = {
    "a": "x", "b": "y", "n": 3, "label": "X − Y", "words": "X is better", "verdict": "better",
    "difference": 0.002, "low": 0.001, "high": 0.003, "family_low": -0.001, "level": 0.95,
    "family_high": 0.005, "margin": 0.002,
    "dots": [0.001, 0.003], "group": "", "score": Score(),
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    return front.render(PUBLISHED)


def anchors(text):
    return set(re.findall(r'\bid="([^"]+)"', text))


def test_it_is_light_and_every_link_leads_somewhere(page):
    links = Links(page)
    assert len(page.encode()) < 100_000
    for address in links.addresses:
        path, _, anchor = address.partition("#")
        if not address.startswith("data:"):
            assert not path or (PUBLISHED / path).is_file(), address
            assert not anchor or path or anchor in anchors(page), address


@pytest.mark.parametrize(
    "path", sorted(PUBLISHED.rglob("*.html")), ids=lambda path: str(path.relative_to(PUBLISHED))
)
def test_every_link_of_a_published_page_leads_somewhere(path):
    for address in set(Links(path.read_text()).addresses):
        name, _, anchor = unquote(address).partition("#")
        if not re.match(r"data:|https?:", address):
            target = path.parent / name if name else path
            assert target.is_file(), address
            assert not anchor or anchor in anchors(target.read_text()), address


def test_the_page_of_drawn_digits_names_the_runs_in_its_script(page):
    text = (PUBLISHED / "draw.html").read_text()
    for model in drawing.read(PUBLISHED)["models"]:
        assert model["run"] in text and model["commit"] in text
    assert (PUBLISHED / "models.js").stat().st_size < 1_000_000
    assert page.count('href="draw.html"') == 2


def test_every_question_of_a_reader_has_its_answer(page):
    words = front.words_of(PUBLISHED)
    assert len(words.questions) == 17
    for question, address in words.questions.items():
        assert f'<a href="{address}">{question}</a>' in page
        path, _, anchor = address.partition("#")
        text = (PUBLISHED / path).read_text() if path else page
        answer = text.partition(f'id="{anchor}"')[2]
        assert re.search(r"<(p|td|table)\b", answer[:3000]), question


def test_the_answer_is_that_of_the_published_runs(page):
    report = Report(PUBLISHED / "row_mnist")
    right = {run.key: run.scores for run in report.runs}
    row = statistics.compare(report.results, 0.002, examples=right).set_index(["a", "b"])
    row = published.flipped(
        row.loc["gru", "agru"].to_dict() | {"a": "gru", "b": "agru", "dots": []}
    )
    low, high = (published.signed(row[f"family_{end}"], Score()) for end in ("low", "high"))
    answer = page.partition('id="answer"')[2].partition("</section>")[0]
    difference = published.signed(row["difference"], Score())
    assert (
        f"(A-GRU minus GRU {difference} points, 95% interval {low} to {high}, 10 seeds)" in answer
    )


def test_every_report_is_in_the_chain_and_what_is_not_published_is_open(page):
    for path in PUBLISHED.glob("*/protocol.yaml"):
        assert f'<section id="{path.parent.name}">' in page
        assert f"rnnbench run params/{path.parent.name}.yaml" in page
    assert "Which cells learn to add two numbers hundreds of steps apart" in page


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("row_mnist", ""),
        ("row_cells", " --runs 5"),
        ("pixel_mnist", " --models agru,lstm,gru,cornn"),
    ],
)
def test_the_command_makes_the_published_runs_and_no_others(page, name, options):
    asked = front.command(Report(PUBLISHED / name))
    assert asked == f"rnnbench run params/{name}.yaml{options}" and f"<code>{asked}</code>" in page


def test_of_two_reports_with_the_same_settings_the_one_with_more_seeds_speaks():
    """row_cells has the A-GRU and the GRU of row_mnist, on three of its ten seeds."""
    reports = [Report(PUBLISHED / name) for name in ("row_cells", "row_mnist", "tuned")]
    for order in (reports, reports[::-1]):
        _, rows = published.across(order, ["agru", "gru"], {})
        assert {row["report"]: row["n"] for row in rows} == {"row_mnist": 10, "tuned": 10}


def test_long_sequences_have_a_strip_of_their_own_and_each_length_is_named(page):
    short, long, errors, recalled = (part.partition("</table>")[0]
                   for part in page.partition('id="questions"')[0].split("<table")[1:])  # fmt: skip
    assert "over long sequences" in long and "over long sequences" not in short
    for length in (28, 100):
        assert f": A-GRU-{length} − GRU-{length}</a>" in long
    assert "250 steps, each model tuned</a>" in long and "A-GRU-250" not in long
    assert (
        "the adding problem, settings not searched: A-GRU-750 − GRU-750</a>" in errors
        and "(negative MSE)" in errors
    )
    assert (
        "copying memory, settings not searched: A-GRU-500 − GRU-500</a>" in recalled
        and "(recalled)" in recalled
    )


def test_what_is_kept_of_long_sequences_is_said_first(tmp_path):
    shutil.copytree(PUBLISHED / "tuned", tmp_path / "tuned")
    report = Report(tmp_path / "tuned")
    before, rows = published.evidence(report)
    kept = Analysis()
    kept.say("**250 steps**: lost by GRU.", "answer")
    kept.save(tmp_path / "tuned/analyses/memory")
    texts, same = published.evidence(report)
    assert texts == ["**250 steps**: lost by GRU.", *before] and len(same) == len(rows) == 3


def test_one_seed_has_a_mark_and_no_interval():
    row = {**ROW, "n": 1, "dots": [0.002]} | dict.fromkeys(("family_low", "family_high"), math.nan)
    (drawn,) = front.drawn([row])
    assert (drawn["known"], drawn["interval_at"], list(drawn["text"])) == (
        False,
        None,
        ["difference"],
    )


def test_each_score_has_a_strip_of_its_own_and_short_sequences_come_first():
    rows = [{**ROW, "long": long, "score": Score(name)}
            for long, name in ((True, "b"), (False, "a"), (True, "a"), (False, "a"))]  # fmt: skip
    groups = front.together(rows)
    assert [[(r["long"], r["score"].name) for r in group] for group in groups] == [
        [(False, "a"), (False, "a")], [(True, "a")], [(True, "b")]
    ]  # fmt: skip


def test_a_row_turned_round_says_the_same():
    turned = published.flipped(ROW)
    assert published.interval(ROW) == "+0.20 points, 95% interval −0.10 to +0.50, 3 seeds"
    assert published.interval(turned) == "−0.20 points, 95% interval −0.50 to +0.10, 3 seeds"
    assert (turned["a"], turned["verdict"], turned["dots"]) == ("y", "worse", [-0.001, -0.003])
    again = published.flipped(turned)
    assert {key: again[key] for key in ("a", "verdict", "dots", "low", "family_high")} == {
        key: ROW[key] for key in ("a", "verdict", "dots", "low", "family_high")
    }
    alone = ROW | dict.fromkeys(("family_low", "low", "high"), float("nan")) | {"n": 1}
    assert published.interval(alone) == "+0.20 points, 1 seed"


def test_a_strip_has_zero_in_the_middle_and_all_of_its_row():
    (row,) = front.drawn([ROW])
    assert row["interval_at"] == pytest.approx((50 - 10 / 1.05, 50 + 50 / 1.05), abs=0.05)
    assert row["mean_at"] == pytest.approx(50 + 20 / 1.05, abs=0.05)
    assert row["text"] == {"difference": "+0.20", "low": "−0.10", "high": "+0.50"}


def test_growth_is_told_by_the_reports_that_are_named_in_their_order(page):
    names = front.words_of(PUBLISHED).growth
    told = front.growth([PUBLISHED / name for name in [*names, "row_mnist", "no_such_report"]])
    assert list(told) == names and all(told.values())
    section = page[page.index('id="growth"') : page.index('id="unknown"')]
    places = [section.index(f"{name}/pages/04_eigenvalues.html") for name in names]
    assert places == sorted(places)
    assert front.growth([PUBLISHED / "row_mnist"]) == {}  # its weights were gone


def test_a_question_is_the_first_of_its_protocol():
    assert front.question("row_mnist").startswith("Which cell is best on row-by-row MNIST")
    assert front.question("no_such_file") == "no such file"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (None, "is not there, so there is no front page"),
        ("title: A\npair: [agru, gru]\n", "holds no report"),
        ("title: A\npair: [agru, gruu]\n", "gruu"),
        ("title: A\npair: [agru]\n", "pair: "),
    ],
)
def test_wrong_words_are_refused(words, message, tmp_path):
    if words:
        (tmp_path / "front.yaml").write_text(words)
    with pytest.raises(UserError, match=message):
        front.build(tmp_path)


def test_a_report_that_is_added_changes_the_page(tmp_path):
    for name in ("vogt", "front.yaml"):
        copy = shutil.copytree if name == "vogt" else shutil.copy
        copy(PUBLISHED / name, tmp_path / name)
    before = Path(front.build(tmp_path)).read_text()
    shutil.copytree(PUBLISHED / "vogt", tmp_path / "later")
    after = front.render(tmp_path)
    assert '<section id="later">' in after and '<section id="later">' not in before


def test_the_answer_opens_with_the_report_on_antisymmetry_itself(page):
    answer = Markup(page.partition('id="answer"')[2].partition("</section>")[0]).striptags()
    assert answer.partition(">")[2].lstrip().startswith("Antisymmetry itself, all else")
    rows = published.compared(Report(PUBLISHED / "controls"))
    assert len(rows) == 3
    for row in rows:
        assert f"{row['label']} {published.interval(row)}: {row['words']}" in answer


def test_a_training_that_two_reports_hold_is_counted_once(page):
    reports = [Report(path.parent) for path in PUBLISHED.glob("*/protocol.yaml")]
    runs = {(run.record["model"], run.record["seed"], run.record["seconds"])
            for report in reports for run in report.runs}  # fmt: skip
    assert len(runs) < sum(len(report.runs) for report in reports)
    assert f"{len(runs)} trainings in {len(reports)} reports" in page


def test_a_verdict_stands_in_the_table_or_where_there_is_none_in_a_list():
    told, table = (front.entry(Report(PUBLISHED / name), front.words_of(PUBLISHED))
                   for name in ("permuted_mnist", "row_mnist"))  # fmt: skip
    assert "- **" in told["texts"] and not told["groups"]
    assert "- **" not in table["texts"] and table["groups"]


def test_of_an_ablation_the_front_page_tells_what_its_questions_ask(page):
    assert 'id="ablation-gamma"' in page and 'id="ablation-epsilon"' not in page
