"""The page in a browser: in light and dark, on a wide screen and on a phone's."""

import functools
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.tools.html_report.explained import FRAMES, KEPT, ROWS, SIDE, VISUAL, explanation, white

sync_api = pytest.importorskip("playwright.sync_api")

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 780}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # As root, as in most containers, Chromium has no sandbox; the page is our own.
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens the page of an explanation; afterwards nothing may have been fetched, and nothing gone wrong."""
    wrong, contexts = [], []

    def open_page(viewport=WIDE, scheme="light", **named):
        explanation().to_html(tmp_path / "page.html", **named)
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def pixels(part):
    return np.asarray(Image.open(io.BytesIO(part.screenshot())).convert("L")).astype(float)


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(visit, viewport, scheme):
    page = visit(viewport, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("figure").count() == ROWS * FRAMES
    sizes = "[...document.querySelectorAll('p, td, th, figcaption')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(page.evaluate(sizes)) >= 12
    paper, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    paper, ink = (np.mean([int(part) for part in colour[4:-1].split(",")]) for colour in (paper, ink))
    assert (paper > 200 and ink < 60) if scheme == "light" else (paper < 60 and ink > 200)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dropped_tokens_are_dim_and_the_kept_ones_are_not(visit, scheme):
    page = visit(WIDE, scheme, frames=white())
    seen = pixels(page.locator(".tile").first)  # the first frame's picture: half of its tokens are kept
    height, width = seen.shape
    centre = [(int((cell + 0.5) * height / SIDE), int((cell + 0.5) * width / SIDE)) for cell in range(SIDE)]
    shown = np.array([[seen[row, column] for _, column in centre] for row, _ in centre]).flatten()
    assert np.all(shown[:KEPT] > 240) and np.all(shown[KEPT:] < 120)


def test_scores_show_as_heat(visit):
    page = visit()
    heat = [pixels(page.locator("figure").nth(frame).locator(".tile").nth(1)).mean() for frame in range(FRAMES)]
    assert heat == sorted(heat, reverse=True), "scores fall from frame to frame, and so does the brightness"


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_slider_shows_what_another_share_would_keep(visit, viewport):
    """Scores fall from the first token on: a quarter is the first of four frames, a half the first two."""
    page = visit(viewport, frames=white())
    slider, told = page.locator(".slider input").first, page.locator("output").first
    counts = page.locator(".count")
    tile = page.locator(".tile").first
    dim = pixels(tile).mean()

    def kept():
        return [int(counts.nth(number).inner_text()) for number in range(ROWS * FRAMES)]

    as_it_ran = [KEPT, 0, 0, 0] * ROWS
    assert kept() == as_it_ran and told.inner_text() == f"{KEPT} of {VISUAL} tokens, as it ran"
    for share, frames in ((25, [SIDE**2, 0, 0, 0]), (50, [SIDE**2, SIDE**2, 0, 0]), (2, [3, 0, 0, 0])):
        slider.fill(str(share))
        assert kept() == frames + as_it_ran[FRAMES:], "the other row has a slider of its own"
        assert told.inner_text() == f"{sum(frames)} of {VISUAL} tokens, {share} %"
        assert (pixels(tile).mean() > dim) == (sum(frames) > KEPT)
    left = page.evaluate("document.querySelector('.scale i').style.left")
    assert float(left.removesuffix("%")) == pytest.approx(100 - 100 * 3 / VISUAL)
    slider.fill("12")
    assert kept() == as_it_ran and pixels(tile).mean() == dim
    assert page.locator(".shade").count() == FRAMES


def test_graphs_fold(visit):
    page = visit()
    reason = page.get_by_text("is not understood").first
    assert not reason.is_visible()
    page.locator("summary").click()
    assert reason.is_visible()


def test_a_token_tells_its_score_when_it_is_pointed_at(visit):
    page = visit()
    tile = page.locator(".tile").first
    box = tile.bounding_box()
    at = functools.partial(dict, x=box["width"] / SIDE / 2)
    told = page.locator("#told")
    assert not told.is_visible()
    tile.hover(position=at(y=box["height"] / SIDE / 2))
    assert told.inner_text() == "row 0, column 0: score 1, rank 1, kept"
    tile.hover(position=at(y=box["height"] * (1 - 1 / SIDE / 2)))
    assert told.inner_text().startswith(f"row {SIDE - 1}, column 0:") and told.inner_text().endswith("dropped")
    page.mouse.move(0, 0)
    assert not told.is_visible()
