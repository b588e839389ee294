"""Makes the README's pictures again from the published pages: `python tests/screenshots.py`."""

import io
import shutil

from PIL import Image
from playwright.sync_api import sync_playwright

from rnnbench_nb.files import PROJECT, write_file

PUBLISHED = PROJECT / "reports/published"
PICTURES = {"front": "index.html", "draw": "draw.html#image=1&row=22"}


def main() -> None:
    """Write PUBLISHED/pictures/NAME.png, of 64 colours, 1000 by 760 pixels."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, page in PICTURES.items():
            view = browser.new_page(viewport={"width": 1000, "height": 760})
            view.goto(f"{PUBLISHED.as_uri()}/{page}")
            small = io.BytesIO()
            picture = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
            picture.quantize(64).save(small, format="png", optimize=True)
            write_file(PUBLISHED / f"pictures/{name}.png", small.getvalue())


if __name__ == "__main__":
    main()
