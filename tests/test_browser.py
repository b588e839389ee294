"""The published pages in a browser: accessible, quiet, narrow, and alive; from files alone."""

import io
import re
from unicodedata import normalize

import numpy as np
import pytest
import torch
from conftest import CHROMIUM
from pypdf import PdfReader
from test_drawing import made, reference  # noqa: F401 (a fixture)

from rnnbench_nb import dynamics
from rnnbench_nb.analyses import examples
from rnnbench_nb.cells import CELLS
from rnnbench_nb.files import PROJECT
from rnnbench_nb.report import read_csv
from rnnbench_nb.site import drawing
from rnnbench_nb.tasks import data as download

sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
if not CHROMIUM:
    pytest.skip("no Chromium is installed", allow_module_level=True)

PUBLISHED = PROJECT / "reports/published"
KINDS = [
    "index.html", "row_mnist/index.html", "row_mnist/pages/01_data.html",
    "row_mnist/pages/03_compare.html", "row_mnist/pages/07_gradients.html",
    "ablation/pages/06_ablation.html", "draw.html", "gradient_growth/pages/04_eigenvalues.html",
    "gradient_growth/pages/02_train-agru-seed42.html", "noise_padded/pages/08_memory.html",
    "precision/pages/05_speed.html", "adding/pages/08_memory.html",
]  # fmt: skip
VIEWS = [(width, scheme) for width in (390, 1300) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a published page; what it logs and what it asks for beyond files is kept."""
    page = browser.new_page()
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("request", lambda request: page.heard.append(request.url)
            if not request.url.startswith(("file:", "data:")) else None)  # fmt: skip

    def visit(name, folder=PUBLISHED):
        page.goto((folder / name).as_uri())
        return page

    yield visit
    page.close()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_page_is_accessible_quiet_and_narrow(name, visit):
    check(visit(name))


def test_the_page_of_drawn_digits_is_too(visit, made):  # noqa: F811
    page = visit("draw.html", made[0])
    page.get_by_role("button", name="Take a test image").click()
    page.locator(".answers section").first.wait_for()
    check(page)


def check(page):
    """It has no finding by axe, logs and fetches nothing, and fits into 320 px."""
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    for width, scheme in VIEWS:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page, options={"iframes": False})
        assert not found.response["violations"], (width, scheme, found.generate_report())
    page.set_viewport_size({"width": 320, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert not page.heard


def test_panels_lie_beside_one_another_and_on_a_phone_under_one_another(visit):
    page = visit("row_mnist/pages/03_compare.html")
    panels = page.locator(".panels").first.locator("img")
    for width, beside in ((1300, True), (390, False)):
        page.set_viewport_size({"width": width, "height": 800})
        first, second = (panels.nth(number).bounding_box() for number in (0, 1))
        assert (first["x"] + first["width"] <= second["x"]) == beside
        assert (first["y"] + first["height"] <= second["y"]) == (not beside)
        assert page.evaluate(
            "[...document.querySelectorAll('.panels')].every((p) => p.scrollWidth <= p.clientWidth)"
        )
    assert first["width"] > 300


def test_a_table_is_sorted_by_keyboard_and_one_switch_shows_all_code(visit):
    page = visit("row_mnist/pages/03_compare.html")
    assert page.locator(".code:visible").count() == 0
    page.locator("#show-code").press("Space")
    assert page.locator(".code:visible").count() > 5

    page = visit("row_mnist/index.html")
    head = page.get_by_role("button", name="Free parameters")
    order = []
    for _ in range(2):
        head.press("Enter")
        order.append(page.locator("table.cards tbody th").all_inner_texts())
    assert order == [["A-GRU", "GRU", "LSTM"], ["LSTM", "GRU", "A-GRU"]]
    assert page.locator("[aria-sort=descending]").count() == 1


MOVED = "gradient_growth/pages/04_eigenvalues.html"


def expected(modes, epoch, gamma, epsilon):
    """What the sentence says: epoch, damping, step size, % outside, growth, largest stable step."""
    frequency = torch.tensor(modes[modes["epoch"] == epoch]["frequency"].to_numpy())
    eigenvalues = torch.complex(torch.tensor(-gamma).expand(len(frequency)).double(), frequency)
    found = dynamics.stability(torch.cat([eigenvalues, eigenvalues.conj()]), torch.tensor(epsilon))
    names = "share_outside", "modulus_max", "epsilon_max"
    share, growth, largest = (found[name].item() for name in names)
    return [epoch, gamma, epsilon, 100 * share, growth, largest]


def test_each_slider_moves_the_spectrum_and_its_sentence(visit):
    page = visit(MOVED)
    modes = read_csv(PUBLISHED / "gradient_growth/analyses/eigenvalues/modes.csv")
    form = page.locator("form.live")

    def state():
        sentence = form.get_by_role("status").inner_text()
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", sentence)]
        disc = form.locator(".disc").get_attribute("r")
        return numbers, (disc, form.locator(".out, .in").evaluate_all(
            "(all) => all.map((c) => c.getAttribute('cx') + ' ' + c.getAttribute('cy'))"
        ))  # fmt: skip

    before, pictures = state(), []
    best = modes[modes["moment"] == "best epoch"].iloc[0]
    assert before[0][0] == best["epoch"]
    for name, key in (("gamma", "ArrowRight"), ("epsilon", "ArrowLeft"), ("epoch", "Home")):
        for _ in range(3):
            form.locator(f"[name={name}]").press(key)
        numbers, picture = state()
        told = dict(part.split("=") for part in page.url.partition("#")[2].split("&"))
        asked = (int(told["epoch"]), float(told["gamma"]), float(told["epsilon"]))
        assert numbers == pytest.approx(expected(modes, *asked), rel=0.06, abs=0.5e-2)
        pictures.append(picture)
        assert picture != before[1] and form.locator("input:focus").count() == 1
    assert len({str(picture) for picture in pictures}) == 3
    page.goto(page.url)
    page.reload()
    assert state() == (numbers, picture)  # the address keeps it
    assert page.url.endswith(f"#gamma={asked[1]:g}&epsilon={told['epsilon']}&epoch=0")


def test_without_a_script_the_figure_and_its_words_stay(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((PUBLISHED / MOVED).as_uri())
    figure = page.locator("figure[data-live]")
    assert figure.locator("img").first.is_visible() and figure.locator("figcaption").inner_text()
    assert page.locator("form").count() == 0
    context.close()


def stroke(page, *points):
    """Draw with the mouse through places of the pad, from 0 to 1."""
    box = page.locator("#pad").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def rgb(colour):
    """A colour #rrggbb as a browser says it."""
    return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


SEVEN = (0.1, 0.1), (0.4, 0.1), (0.25, 0.5)


def test_a_digit_is_drawn_read_row_by_row_and_emptied(visit, made):  # noqa: F811
    page = visit("draw.html", made[0])
    status, answers = page.get_by_role("status"), page.locator(".answers section")
    empty = status.inner_text()
    page.get_by_role("button", name="Clear").click()
    assert (status.inner_text(), answers.count()) == (empty, 0) and "no answer" in empty
    stroke(page, *SEVEN)
    answers.first.wait_for()
    assert answers.count() == len(drawing.scripts())
    whole = status.inner_text()
    assert whole.startswith("After 8 of 8 rows: ") and whole.count(" says ") == answers.count()
    for scheme, colour in (("light", lambda own: legible(own, LIGHT_PAGE, 3)), ("dark", dark)):
        page.emulate_media(color_scheme=scheme)
        bars = page.locator(".answers section .out")
        drawn = bars.evaluate_all("(all) => all.map((bar) => getComputedStyle(bar).fill)")
        cells = [model["cell"] for model in drawing.read(made[0])["models"]]
        assert set(drawn) == {rgb(colour(CELLS[cell].colour)) for cell in cells}
    shown = answers.first.inner_html()
    page.get_by_label("Rows read").press("Home")
    assert status.inner_text().startswith("After 1 of 8 rows: ")
    assert answers.first.inner_html() != shown
    page.get_by_role("button", name="Clear").click()
    assert status.inner_text() == empty and not page.locator(".answers").is_visible()
    assert page.evaluate("centred(document.querySelector('#pad'), 28)") is None

    for _ in range(2):
        page.get_by_role("button", name="Take a test image").click()
    page.get_by_label("Rows read").press("ArrowLeft")
    said = status.inner_text()
    assert said.startswith("Test image 2, a ") and "After 7 of 8 rows" in said
    assert page.url.endswith("#image=2&row=7")
    page.reload()
    answers.first.wait_for()
    page.wait_for_function("said => document.querySelector('[role=status]').textContent === said",
                           arg=said)  # fmt: skip
    assert not page.heard


def test_a_drawing_is_centred_as_those_of_mnist(visit, made):  # noqa: F811
    page = visit("draw.html", made[0])
    stroke(page, *SEVEN)
    pixels = np.reshape(page.evaluate("[...centred(document.querySelector('#pad'), 28)]"), (28, 28))
    rows, columns = np.nonzero(pixels > 0.5)
    assert np.ptp(rows) + 1 == pytest.approx(20, abs=1)  # taller than wide
    assert 8 < np.ptp(columns) + 1 < 20
    weights = pixels / pixels.sum()
    for axis in (0, 1):
        assert (weights.sum(axis) * (np.arange(28) + 0.5)).sum() == pytest.approx(14, abs=0.3)


def test_a_finger_draws_and_does_not_scroll(browser, made):  # noqa: F811
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 500})
    page = context.new_page()
    page.goto((made[0] / "draw.html").as_uri())
    box = page.locator("#pad").bounding_box()
    touch = context.new_cdp_session(page)
    for kind, y in (("Start", 0.8), *(("Move", 0.8 - 0.1 * i) for i in range(6)), ("End", None)):
        places = {"x": box["x"] + box["width"] / 2, "y": box["y"] + (y or 0) * box["height"]}
        points = [] if y is None else [places]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    page.locator(".answers section").first.wait_for()
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollHeight") > 1000
    context.close()


def agree(page, models, images):
    """Whether the page reads as torch does: scores within 1e-2, 99% of the answers."""
    page.evaluate("loadModels()")
    for number, model in enumerate(models):
        found = page.evaluate(
            "([n, images]) => images.map((x) => readImage(MODELS.models[n], Float64Array.from(x)))",
            [number, images.flatten(1).tolist()],
        )
        scores, norms, gradients = (
            torch.tensor([one[name] for one in found]) for name in ("scores", "norms", "gradients")
        )
        expected = reference(model, images)
        for ours, theirs in zip((scores, norms, gradients), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, atol=1e-2, rtol=1e-3)
        same = scores[:, -1].argmax(-1) == expected[0][:, -1].argmax(-1)
        assert len(same) == 100 and same.sum() >= 99


def test_scores_norms_and_gradients_are_torchs(visit, made):  # noqa: F811
    folder, runs = made
    images, _ = examples(runs[0], 100)
    agree(visit("draw.html", folder), drawing.read(folder)["models"], images.double())


def test_the_published_models_read_as_torchs_do(visit):
    models = drawing.read(PUBLISHED)["models"]
    try:
        images = download.load("mnist").test_images[:100]
    except download.FetchError:  # digits, blown up to the size
        images = torch.from_numpy(np.pad(
            np.kron(download.load("digits").test_images[:100], np.ones((1, 3, 3), np.uint8)),
            ((0, 0), (2, 2), (2, 2)),
        ))  # fmt: skip
    agree(visit("draw.html"), models, images.double() / 255)


@pytest.mark.parametrize(
    "name", ["index.html", "row_mnist/index.html", "row_mnist/pages/03_compare.html"]
)
def test_a_printed_page_has_every_cell_and_no_code(visit, name):
    page = visit(name)
    printed = PdfReader(io.BytesIO(page.pdf(format="A4")))
    text = normalize("NFKC", "".join(sheet.extract_text() for sheet in printed.pages))  # ligatures
    text = "".join(text.split())
    cells = page.evaluate("[...document.querySelectorAll('td, th')].map(cell => cell.innerText)")
    assert len(cells) > 20
    assert not [cell for cell in cells if "".join(cell.split()) not in text]
    page.emulate_media(media="print")
    assert page.locator(".code:visible").count() == 0


def test_every_address_of_a_question_scrolls_to_its_answer(visit):
    page = visit("index.html")
    for link in page.locator(".questions a").all():
        target = link.get_attribute("href")
        link.click()
        assert page.locator(target).first.is_visible(), target
