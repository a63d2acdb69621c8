"""The page in a real browser: drawn in light and in dark, on a wide page and on a phone, without any request.

Needs Chromium or Chrome on PATH, and playwright of the extra [interop].
"""

import io
import shutil

import pytest

from gemma3_jax.report import page
from tests.report import run_directories

pytestmark = pytest.mark.interop
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
# Elements that extend beyond the page; what scrolls inside an element may be wider.
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const node of document.querySelectorAll('body *')) {
    if (node.closest('.scroll') || node.closest('.config') || node.closest('details:not([open])')) continue;
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1)) found.push(node.tagName + ' ' + node.textContent);
  }
  return found;
}"""
OVERLAPS = """() => {
  const found = [];
  for (const drawing of document.querySelectorAll('.drawing svg')) {
    const boxes = [...drawing.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (a.width && b.width && across > 1 && down > 4) found.push(one + ' | ' + other);
    }));
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser on the path: {', '.join(BROWSERS)}")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["one", "three"])
def report(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    wide = run_directories.write(directory / "wide", num_steps=400)
    others = []
    if request.param == "three":
        others.append(run_directories.write(directory / "a-name-that-goes-on-and-on-as-names-of-runs-do", better=0.2))
        others.append(run_directories.write(directory / "<plain> & 訓練", distilled=False, num_steps=60))
    runs = page.read(wide, others)
    file = directory / "report.html"
    file.write_bytes(page.render(runs, page.sections(runs)))
    return file


@pytest.fixture
def visit(browser, report):
    """Opens the page; after the test, it has requested nothing but itself, and the console is empty."""
    requests, messages, contexts = [], [], []

    def go(width, scheme):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.goto(report.as_uri())
        return tab

    yield go
    for context in contexts:
        context.close()
    assert messages == [] and set(requests) == {report.as_uri()}


def colors(tab) -> dict[tuple[int, ...], int]:
    """The number of pixels of the whole page by color."""
    from PIL import Image

    with Image.open(io.BytesIO(tab.screenshot(full_page=True))) as image:
        counted = image.convert("RGB").getcolors(1 << 24)
    return {color: count for count, color in counted}


def test_the_page_is_drawn_in_light_and_in_dark(visit):
    light, dark = (colors(visit(1_200, scheme)) for scheme in ("light", "dark"))
    commonest = [max(pixels, key=pixels.get) for pixels in (light, dark)]
    assert min(commonest[0]) > 200 and max(commonest[1]) < 60
    for pixels in (light, dark):
        assert len(pixels) > 500  # 1 if it were blank; letters and lines have shades
    assert (0x24, 0x63, 0xC4) in light and (0x74, 0xA9, 0xFF) in dark  # the first run's line


@pytest.mark.parametrize("width", [1_200, 800, 390])
def test_every_section_and_drawing_is_visible_and_nothing_extends_beyond_the_page(visit, width):
    tab = visit(width, "light")
    for name in ("section", "figure", "figcaption", "h2"):
        assert tab.locator(name).count() >= 10
        assert all(
            element.is_visible() and element.bounding_box()["height"] > 10 for element in tab.locator(name).all()
        )
    drawn = [element for element in tab.locator(".drawing").all() if element.is_visible()]
    assert len(drawn) == tab.locator("figure").count()  # of each figure the one for this width
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.evaluate(OVERFLOW) == []


@pytest.mark.parametrize("width", [1_200, 390])
def test_texts_of_a_drawing_do_not_overlap(visit, width):
    assert visit(width, "light").evaluate(OVERLAPS) == []


def test_expanded_details_fit_too(visit):
    tab = visit(390, "dark")
    tab.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.evaluate(OVERFLOW) == []


def test_links_lead_to_sections(visit):
    tab = visit(1_200, "light")
    tab.locator("nav a", has_text="Provenance").click()
    assert tab.url.endswith("#provenance") and tab.locator("#provenance h2").is_visible()


def test_the_page_prints_on_white(visit):
    tab = visit(1_200, "dark")
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(27, 32, 39)"
