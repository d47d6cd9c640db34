"""The report as a browser shows it: at the size of a phone and of a desk, light, dark and in print."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from browser import Browser, find_browser
from fake_run import fake_run
from transprune.reports.report import write_report

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed (Debian: chromium)")

SIZES = [390, 1280]

OVERLAPS = """
(() => {
  const owner = node => node.nodeType === 3 ? node.parentElement : node;
  const clip = node => {  // what a scrolled box shows of its contents
    let box = {left: -1e9, top: -1e9, right: 1e9, bottom: 1e9};
    for (let up = owner(node); up; up = up.parentElement)
      if (up.matches(".scroll, pre")) {
        const own = up.getBoundingClientRect();
        box = {left: Math.max(box.left, own.left), top: Math.max(box.top, own.top),
               right: Math.min(box.right, own.right), bottom: Math.min(box.bottom, own.bottom)};
      }
    return box;
  };
  const found = [];
  const add = (what, node, rect) => {
    const box = clip(node);
    const shown = {what, left: Math.max(rect.left, box.left), top: Math.max(rect.top, box.top),
                   right: Math.min(rect.right, box.right), bottom: Math.min(rect.bottom, box.bottom)};
    if (shown.right - shown.left > 1 && shown.bottom - shown.top > 1) found.push(shown);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode;
    if (!node.data.trim() || !owner(node).checkVisibility()) continue;  // not what is folded away
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {  // lines are taller than their letters
      const slack = rect.height * 0.2;
      add(node.data.trim().slice(0, 40), node, {left: rect.left, right: rect.right,
                                               top: rect.top + slack, bottom: rect.bottom - slack});
    }
  }
  for (const image of document.querySelectorAll("img")) add(image.alt, image, image.getBoundingClientRect());
  const bad = [];
  for (let i = 0; i < found.length; i++)
    for (let j = i + 1; j < found.length; j++) {
      const a = found[i], b = found[j];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1.5 && high > 1.5) bad.push(`${a.what} | ${b.what}`);
    }
  return bad;
})()
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(fake_run(tmp_path_factory.mktemp("runs") / "run", epochs=12))


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_the_page_opens_without_complaint_request_or_overlap_and_fits(browser, report, width, is_dark):
    page = browser.open(report, width=width, is_dark=is_dark)
    assert page.run("innerWidth") == width
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(OVERLAPS) == []
    assert page.complaints() == []
    assert [address for address in page.requests() if not address.startswith("data:")] == [report.resolve().as_uri()]


@pytest.mark.parametrize("width", SIZES)
def test_nothing_overlaps_with_all_details_unfolded(browser, report, width):
    page = browser.open(report, width=width)
    page.run('document.querySelectorAll("details").forEach(each => { each.open = true })')
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(OVERLAPS) == []


def test_nothing_overlaps_in_print(browser, report):
    page = browser.open(report, width=720, media="print")
    assert page.run(OVERLAPS) == []


def test_the_check_for_overlaps_sees_one(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text('<body><p>below</p><p style="margin-top:-2.2em">above it</p><p>apart</p></body>')
    assert browser.open(file, width=390).run(OVERLAPS) == ["below | above it"]


def test_text_stands_out_from_the_page_in_light_and_dark(browser, report):
    luminance = """
    (colour => colour.match(/[\\d.]+/g).slice(0, 3).map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
      .reduce((sum, value, place) => sum + [0.2126, 0.7152, 0.0722][place] * value, 0))
    """
    for is_dark in (False, True):
        page = browser.open(report, width=1280, is_dark=is_dark)
        ground = page.run(f"{luminance}(getComputedStyle(document.body).backgroundColor)")
        assert (ground < 0.1) == is_dark
        for selector in ("h1", ".note, .meta", "caption", "td", "svg text", "figcaption p", "pre code"):
            element = f"document.querySelector('{selector}')"
            # letters in drawings take their colour from `fill`
            style = "fill" if selector == "svg text" else "color"
            letters = page.run(f"{luminance}(getComputedStyle({element}).{style})")
            lighter, darker = max(ground, letters), min(ground, letters)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, selector  # WCAG 2.1, level AA


def test_an_edge_is_shaded_where_there_is_more_behind_it(browser, report, tmp_path):
    page = browser.open(report, width=390)
    left, right, middle = page.run(
        "(() => { const box = document.querySelector('figure.wide .scroll'); box.id = 'drawing';"
        "box.firstElementChild.style.visibility = 'hidden'; box.scrollIntoView({block: 'center'});"
        "const {left, right, top, bottom} = box.getBoundingClientRect(); return [left, right, (top + bottom) / 2]; })()"
    )

    def edges() -> list[int]:
        with Image.open(page.screenshot(tmp_path / "page.png", is_whole=False)) as shown:
            return [shown.convert("L").getpixel((round(x), round(middle))) for x in (left + 2, right - 3)]

    assert edges()[0] > edges()[1] + 20
    page.run("(document.getElementById('drawing').scrollLeft = 1e6)")
    assert edges()[1] > edges()[0] + 20


def test_the_keyboard_reaches_what_folds_and_what_scrolls(browser, report):
    page = browser.open(report, width=390)
    wanted = page.run('document.querySelectorAll("summary").length')
    assert wanted
    reached = set()
    for _ in range(60):
        page.press("Tab")
        reached.add(page.run('document.activeElement.tagName + "," + document.activeElement.className'))
        if page.run('document.activeElement.tagName === "SUMMARY"'):
            break
    was_open = page.run("document.activeElement.parentElement.open")
    page.press("Enter")
    assert page.run("document.activeElement.parentElement.open") is not was_open
    assert "DIV,scroll" in reached
