"""The front page: what it claims follows from the reports, or it is not built."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import safetensors.numpy
import torch
from markupsafe import Markup
from small_reports import write_small
from test_site import addresses

from rnnbench_nb.cells import AGRU
from rnnbench_nb.errors import UserError
from rnnbench_nb.files import PROJECT, read_file, write_file, write_json
from rnnbench_nb.folders import RECORDS
from rnnbench_nb.results import write_published
from rnnbench_nb.site import front
from rnnbench_nb.site.front import Evidence, Line
from rnnbench_nb.site.index import Report
from rnnbench_nb.statistics import Verdict, comparison

PUBLISHED = PROJECT / "reports/published"
FIVE = [0.960, 0.970, 0.980, 0.970, 0.960]
LOWER = [0.925, 0.930, 0.943, 0.930, 0.920]


@pytest.fixture(scope="module")
def page() -> str:
    return front.render(PUBLISHED)


def copy(folder: Path, name: str) -> Path:
    """Copy the published report `name` to a folder that links to the others; return its copy."""
    for path in PUBLISHED.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    return shutil.copytree(PUBLISHED / name, folder / name)


def test_a_sign_that_turns_stops_the_build_with_the_name_of_the_claim(tmp_path):
    path = copy(tmp_path, "row_mnist") / "predictions.safetensors.xz"
    other = {"gru": "agru", "agru": "gru", "lstm": "lstm"}
    arrays = safetensors.numpy.load(read_file(path))
    turned = {re.sub("^[a-z]+", lambda m: other[m[0]], key): each for key, each in arrays.items()}
    write_file(path, safetensors.numpy.save(turned))
    with pytest.raises(UserError, match=r"front\.html\.j2: the claim 'the A-GRU is never b"):
        front.render(tmp_path)


def test_a_row_that_loses_a_seed_loses_its_verdict_and_its_interval(tmp_path):
    path = copy(tmp_path, "agru_authors") / RECORDS
    write_json(path, [run for run in json.loads(read_file(path)) if run["seed"] != 42])
    row = Evidence(tmp_path).compare("agru_authors", "agru", "gru")
    assert (row.n, row.verdict, row.words) == (4, Verdict.NONE, "four seeds: no verdict")
    text = front.render(tmp_path)
    drawn = text.partition("authors&#39; settings</a>")[2].partition("</tr>")[0]
    assert "four seeds: no verdict" in drawn and 'class="interval"' not in drawn
    assert 'class="seeds"' in drawn and " to " not in Markup(drawn).striptags()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder with one published report of a GRU and a worse A-GRU."""
    folder = tmp_path_factory.mktemp("front")
    write_published(
        Report(write_small(folder / "work", {"gru": FIVE, "agru": LOWER})), folder / "rows"
    )
    return folder


def test_a_comparison_is_signed_as_it_is_asked_for(small):
    evidence = Evidence(small)
    row, back = evidence.compare("rows", "agru", "gru"), evidence.compare("rows", "gru", "agru")
    assert row.difference == pytest.approx(-3.84) and back.difference == pytest.approx(3.84)
    assert (row.low, row.high) == (-back.high, -back.low) and row.low < row.difference < row.high
    assert row.dots == pytest.approx([-3.5, -4.0, -3.7, -4.0, -4.0])
    assert (row.verdict, back.verdict) == (Verdict.WORSE, Verdict.BETTER)
    assert row.words == back.words == "GRU better"
    with pytest.raises(UserError, match="does not compare agru and lstm"):
        evidence.compare("rows", "agru", "lstm")


def test_a_template_of_ones_own_has_its_claims_and_its_forest(small):
    template = small / "front.html.j2"
    with pytest.raises(UserError, match=r"front\.html\.j2 does not exist; write this template"):
        front.build(small)
    template.write_text(
        '{% from "charts.html.j2" import forest with context %}'
        '{% set row = evidence.compare("rows", "agru", "gru") %}'
        '{% call claim("worse", row.verdict == Verdict.WORSE) %}It loses.{% endcall %}'
        '{{ forest([("Difference", "A-GRU", "GRU", [(row, "Rows", "small")])], 0.8, "Points") }}'
    )
    text = front.render(small)
    assert "It loses." in text and "−3.84 (" in text and 'href="rows/index.html">Rows</a>' in text
    assert "M3 9L0 15L3 21" in text  # an arrow: it lies outside of the axis
    template.write_text('{% call claim("better", 1 > 2) %}It wins.{% endcall %}')
    with pytest.raises(UserError, match="the claim 'better' is no longer true"):
        front.build(small)
    template.write_bytes(b"{% if \xff")
    with pytest.raises(UserError, match=r"front\.html\.j2 is no valid template"):
        front.build(small)
    assert not (small / "index.html").exists()


def test_declared_comparisons_are_judged_together(tmp_path):
    work = write_small(tmp_path / "work", {"gru": 2 * FIVE, "agru": 2 * LOWER})
    write_published(Report(work), tmp_path / "study_rows")
    rows = Evidence(tmp_path).primary()
    first, others = rows.pop(("study_rows", "agru", "gru")), rows.values()
    assert (first.pair, first.words) == ("A-GRU − GRU", "GRU better")
    assert first.difference == pytest.approx(-3.84) and first.p < 0.05 and len(first.dots) == 10
    assert first.low < first.difference < first.high < 0 and first.margin == 0.2
    assert first.place == "study.html" and "solved" not in first.words
    assert len(others) == 15 and {(row.words, row.verdict, row.p) for row in others} == {
        ("not run", Verdict.NONE, 1)
    }


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("study_*")), ids=lambda path: path.name)
def test_a_declared_pair_has_no_second_verdict_in_its_published_report(path, tmp_path):
    report, declared = Report(path).tested, Evidence(PUBLISHED).primary()
    table = comparison(report)
    own = [{a, b} for a, b in table[["a", "b"]].itertuples(index=False)]
    judged = [{a, b} for (name, a, b), row in declared.items() if name == path.name and row.n]
    if not report.variants:  # its final runs have yet to be made
        assert judged == own == []
        return
    assert own and judged and not any(pair in judged for pair in own)
    assert set(table["comparisons"]) == {len(table) + len(judged)}  # corrected for all pairs
    alone = comparison(Report(shutil.copytree(path, tmp_path / path.name)).tested)
    pairs = [{a, b} for a, b in alone[["a", "b"]].itertuples(index=False)]
    assert any(pair in judged for pair in pairs)  # where no page of the study is beside it


def test_the_radius_at_the_start_is_that_of_a_matrix_that_is_drawn_anew():
    torch.manual_seed(0)
    matrix = AGRU(28, 139, gamma=2.4).recurrent_matrix().detach()
    radius = torch.linalg.eigvals(matrix).abs().max().item()
    assert radius == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-5)
    assert Evidence(PUBLISHED).radius("study_rows", "agru") == pytest.approx(radius, rel=0.03)


def test_causes_of_growth_are_those_of_the_page_of_eigenvalues():
    text = (PUBLISHED / "study_rows/pages/04_eigenvalues.html").read_text().replace("−", "-")
    causes = Evidence(PUBLISHED).causes("study_rows")
    assert {"A-GRU", "free"} <= causes.keys()
    for own in causes.values():
        assert [*own] == ["all", "discrete step", "non-normality", "gates", "rest"]
        rest, _, _ = own.pop("rest")
        assert sum(mean for mean, _, _ in own.values()) + rest == pytest.approx(2 * own["all"][0])
        for mean, low, high in own.values():
            assert f"{mean:+z.2f} ({low:+z.2f} to {high:+z.2f})" in text


def test_an_interval_that_widens_stops_the_build_with_the_name_of_the_claim(tmp_path):
    (tmp_path / "front.html.j2").write_text(
        '{% set row = evidence.compare("rows", "agru", "gru") %}'
        '{% call claim("the GRU is better", row.verdict == Verdict.WORSE) %}It is.{% endcall %}'
    )
    for place, accuracies in {"narrow": LOWER, "wide": [0.8, *LOWER[1:-1], 0.98]}.items():
        work = write_small(tmp_path / place, {"gru": FIVE, "agru": accuracies})
        write_published(Report(work), tmp_path / "rows")
        if place == "narrow":
            assert "It is." in front.render(tmp_path)
    with pytest.raises(UserError, match="the claim 'the GRU is better' is no longer true"):
        front.render(tmp_path)


def test_a_withdrawn_report_is_listed_and_its_old_address_leads_there(small):
    (small / "front.html.j2").write_text("Reports")
    reason = "{commit: '1234567', reason: One <seed>.}"
    (small / "withdrawn.yaml").write_text(f"old: {reason}\nrows: {reason}\n")
    front.build(small)
    assert '<tr id="old">' in (text := (small / "withdrawn.html").read_text())
    assert "One &lt;seed&gt;." in text and "1234567" in text
    assert "url=../withdrawn.html#old" in (small / "old/index.html").read_text()
    assert not (small / "rows/index.html").exists()  # that report is published


def test_labels_of_lines_do_not_overlap():
    lines = [Line(name, "#000", [(0, 0), (1, y)]) for name, y in (("a", 99), ("b", 100), ("c", 0))]
    places = front.places(lines, 100, 0, 200)
    assert places == {"b": 0, "a": 16, "c": 200}


def test_gradients_are_relative_to_the_last_step():
    (line,) = Evidence(PUBLISHED).gradients("noise_tuned", ["gru"], "initial")
    rows = Report(PUBLISHED / "noise_tuned").table("along")
    rows = rows.query("variant == 'gru' and moment == 'initial'").groupby("seed")["log10_gradient"]
    assert line.points[0] == (0, 0)
    assert line.end == pytest.approx((rows.first() - rows.last()).mean())


def test_the_published_page_is_what_is_committed_light_and_short(page):
    assert page == (PUBLISHED / "index.html").read_text()
    assert front.render(PUBLISHED, "study.html.j2") == (PUBLISHED / "study.html").read_text()
    assert len(page.encode()) < 60_000
    answer = page.partition('class="answer"')[2].partition("</section>")[0]
    assert len(Markup(answer).striptags().split()) <= 65


@pytest.mark.parametrize(
    "name", sorted(path.relative_to(PUBLISHED).as_posix() for path in PUBLISHED.rglob("*.html"))
)
def test_every_link_of_a_published_page_leads_somewhere(name):
    path = PUBLISHED / name
    for address in set(addresses(path.read_text())):
        target, _, anchor = unquote(address).partition("#")
        if not re.match(r"data:|https?:", address):
            other = path.parent / target if target else path
            assert other.is_file(), address
            assert not anchor or f'id="{anchor}"' in other.read_text(), address


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_published_reports_are_light_and_each_is_reached(page):
    assert size(PUBLISHED) < 10_000_000
    for path in PUBLISHED.glob("*/report.json"):
        assert size(path.parent) <= 600_000 * max(1, len(Report(path.parent).records) / 30), path
        assert f'href="{path.parent.name}/index.html"' in page, path
