"""The pages in a browser: accessible, quiet, narrow, short and alive, from files alone."""

import shutil

import numpy as np
import pytest
import torch
from test_drawing import digits, made  # noqa: F401 (a fixture)

from rnnbench_nb.files import PROJECT
from rnnbench_nb.site import drawing

sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("no Chromium is installed", allow_module_level=True)

PUBLISHED = PROJECT / "reports/published"
KINDS = [
    "index.html",
    "withdrawn.html",
    "study.html",
    "draw.html",
    "row_mnist/index.html",
    "row_mnist/pages/03_compare.html",
]
OTHERS = [
    "row_mnist/pages/01_data.html",
    "noise_tuned/pages/04_eigenvalues.html",
    "precision/pages/05_speed.html",
    "ablation/pages/06_ablation.html",
    "noise_tuned/pages/07_gradients.html",
    "noise_tuned/pages/08_memory.html",
    "study_noise/index.html",
]
SEVEN = (0.1, 0.1), (0.4, 0.1), (0.25, 0.5)


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page; what it logs, and what it asks for beyond files, is kept in `heard`."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on(
        "request",
        lambda request: (
            page.heard.append(request.url)
            if not request.url.startswith(("file:", "data:"))
            else None
        ),
    )

    def visit(name, folder=PUBLISHED):
        page.goto((folder / name).as_uri())
        return page

    yield visit
    page.close()


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_every_kind_of_page_is_accessible_quiet_and_narrow(name, visit):
    check(visit(name))


def test_the_page_on_which_one_draws_is_too_while_it_reads(visit, made):  # noqa: F811
    page = visit("draw.html", made[0])
    page.get_by_role("button", name="Take a test image").click()
    check(page)


def check(page):
    """It has no finding by axe, logs and fetches nothing, and fits into 320 px."""
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    for width, scheme in ((390, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page, options={"iframes": False})
        assert not found.response["violations"], (width, scheme, found.generate_report())
    page.set_viewport_size({"width": 320, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert not page.heard


def test_the_front_page_is_short_for_eyes_and_keys(visit):
    page = visit("index.html")
    assert len(page.locator("main").inner_text().split()) <= 900
    stops = page.locator("a[href], button, input, summary, [tabindex]")
    focus = "[...document.querySelectorAll('*')].indexOf(document.activeElement)"
    reached = set()
    for _ in range(count := stops.count()):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focus))
    assert len(reached) == count < 120
    for width, most in ((1280, 4500), (375, 8000)):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollHeight") <= most


def test_one_switch_hides_the_code(visit):
    page = visit("row_mnist/pages/03_compare.html")
    assert page.locator(".code:visible").count() > 5
    page.locator("#hide-code").press("Space")
    assert page.locator(".code:visible").count() == 0


def test_no_code_is_printed(visit):
    page = visit("row_mnist/pages/03_compare.html")
    page.emulate_media(media="print")
    assert page.locator(".code:visible").count() == 0


def stroke(page, *points):
    """Draw with the mouse through places of the pad, from 0 to 1."""
    box = page.locator("#pad").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_a_digit_is_drawn_read_row_by_row_and_emptied(visit, made):  # noqa: F811
    page = visit("draw.html", made[0])
    status, answers = page.get_by_role("status"), page.locator("#draw section")
    empty = status.inner_text()
    assert "Draw a digit" in empty and answers.count() == 0
    stroke(page, *SEVEN)
    whole = status.inner_text()
    assert whole.startswith("After 28 of 28 rows: ") and whole.count(" says ") == 3
    shown = answers.first.inner_html()
    page.get_by_label("Rows read").press("Home")
    assert status.inner_text().startswith("After 1 of 28 rows: ")
    assert answers.first.inner_html() != shown
    page.get_by_role("button", name="Clear").click()
    assert status.inner_text() == empty and not page.locator("#draw .charts").is_visible()
    assert page.evaluate("centred(document.querySelector('#pad'), 28)") is None

    for _ in range(2):
        page.get_by_role("button", name="Take a test image").click()
    page.get_by_label("Rows read").press("ArrowLeft")
    said = status.inner_text()
    assert said.startswith("Test image 2, a ") and "After 27 of 28 rows" in said
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
    page.locator("#draw section").first.wait_for()
    assert page.evaluate("scrollY") == 0
    context.close()


def test_the_page_reads_as_torch_does(visit, made):  # noqa: F811
    page, images = visit("draw.html", made[0]), digits()[0][:20]
    for number, run in enumerate(made[1]):
        found = page.evaluate(
            "([n, all]) => all.map((x) => readImage(MODELS.models[n], Float64Array.from(x)))"
            ".map(({scores, norms}) => ({scores: scores.map((s) => [...s]), norm: norms.at(-1)}))",
            [number, images.reshape(20, -1).tolist()],
        )
        model = drawing.load_model(run)
        prepared = [tensor.detach().half().float() for tensor in model.cell.prepare()]
        model = model.half().float()  # weights as in the script, which rounds what is prepared
        model.cell.prepare = lambda prepared=prepared: prepared
        with torch.no_grad():
            outputs, last = model.cell(images)
            scores = model.head(outputs)  # (B, T, K)
        last = torch.cat(last, 2) if isinstance(last, tuple) else last  # (1, B, n)
        near = {"rtol": 0, "atol": 1e-4 * scores.abs().max()}
        np.testing.assert_allclose([one["scores"] for one in found], scores, **near)
        np.testing.assert_allclose([one["norm"] for one in found], last[0].norm(dim=1), rtol=1e-3)
        without = "([n, x]) => withoutRows(MODELS.models[n], Float64Array.from(x), 3)"
        shares = page.evaluate(without, [number, images[0].flatten().tolist()])
        empty = images[0] * (1 - torch.eye(28))[:, :, None]  # (28, T, D), a row less in each
        with torch.no_grad():
            want = 100 * model(empty).softmax(1)[:, 3]
        np.testing.assert_allclose(shares, want, rtol=0.05, atol=0.1)


def test_without_a_script_the_drawing_page_says_so(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((PUBLISHED / "draw.html").as_uri())
    assert page.locator("noscript .warning").is_visible()
    assert page.get_by_role("button").count() == 0
    context.close()
