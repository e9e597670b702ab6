"""Every page in a browser: wide and on a phone, light and dark, served and from a file.

Nothing fails to load or asks another host, nothing is clipped or wider than the screen, and axe
finds no barrier.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import browser as tools
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.commands,
    pytest.mark.slow,
    pytest.mark.skipif(tools.BROWSER is None, reason="no Chromium is installed"),
]
WEIGHT = 300_000
"""The most bytes that the front page may transfer, compressed."""
UNFOLD = "document.querySelectorAll('.bd-article details').forEach(each => { each.open = true; })"
STRUCTURE = """() => {
  const wrong = [], count = selector => document.querySelectorAll(selector).length;
  for (const selector of ['head > title', 'h1', 'main', 'meta[name=description]',
                          'meta[name=viewport]', 'meta[property="og:title"]',
                          'meta[name=citation_author]']) {
    if (count(selector) !== 1) wrong.push(`${count(selector)} times ${selector}`);
  }
  const ids = [...document.querySelectorAll('[id]')].map(each => each.id);
  for (const id of new Set(ids.filter((id, place) => ids.indexOf(id) !== place))) {
    wrong.push(`id ${id} is not unique`);
  }
  let level = 0;
  for (const heading of document.querySelectorAll('.bd-article :is(h1, h2, h3, h4, h5, h6)')) {
    const next = Number(heading.tagName[1]);
    if (next > level + 1) wrong.push(`h${level} is followed by h${next}: ${heading.textContent}`);
    level = next;
  }
  const said = document.querySelector('meta[name=description]')?.content ?? '';
  if (said.length < 20 || said.length > 160) wrong.push(`description: ${said}`);
  return wrong;
}"""
OVERFLOW = """() => {
  const root = document.documentElement, wrong = [];
  if (root.scrollWidth > root.clientWidth) wrong.push(`page scrolls: ${root.scrollWidth}`);
  for (const box of document.querySelectorAll('.bd-main *')) {
    const looks = getComputedStyle(box);
    if (!box.checkVisibility() || box.clientWidth < 2 || looks.display === 'inline') continue;
    if (box.closest('math, svg')) continue;
    const name = `${box.tagName}.${box.className?.baseVal ?? box.className}`;
    const more = box.scrollWidth - box.clientWidth;
    const hides = ['hidden', 'clip'].includes(looks.overflowX) && !box.closest('.batch');
    if (hides && more > 1) wrong.push(`clipped: ${name}`);
    if (['auto', 'scroll'].includes(looks.overflowX) && more > 1) {
      if (innerWidth > 1000 && !box.closest('pre, .highlight')) wrong.push(`scrolls: ${name}`);
      if (box.tabIndex < 0) wrong.push(`scrolls without a keyboard: ${name}`);
      const unnamed = box.querySelector('table') && !(box.role && box.ariaLabel);
      if (unnamed) wrong.push(`unnamed: ${name}`);
    }
  }
  return [...new Set(wrong)];
}"""


FIGURES = """() => {
  // on a phone, text of at least 11 px, and nothing to move sideways
  const wrong = new Set();
  for (const drawing of document.querySelectorAll('.pythia-figure .drawing')) {
    const name = drawing.ariaLabel.slice(0, 60);
    if (drawing.scrollWidth > drawing.clientWidth + 1) wrong.add(`scrolls: ${name}`);
    for (const shape of drawing.querySelectorAll('svg')) {
      if (!shape.checkVisibility()) continue;
      const scale = shape.getBoundingClientRect().width / shape.viewBox.baseVal.width;
      for (const text of shape.querySelectorAll('text')) {
        const size = parseFloat(getComputedStyle(text).fontSize) * scale;
        if (size < 10.9) wrong.add(`text of ${size.toFixed(1)} px: ${text.textContent}: ${name}`);
      }
    }
  }
  return [...wrong];
}"""
CONTRAST = """() => {
  // as WCAG has it: 4.5 to 1, for large text 3 to 1; axe's own rule takes seconds per page.
  // Not of text that lies over another element, such as a bar of a drawing.
  const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
  const grounds = new Map();
  const ground = box => {
    if (!box) return [255, 255, 255];
    if (!grounds.has(box)) {
      const own = parse(getComputedStyle(box).backgroundColor);
      grounds.set(box, over(own, ground(box.parentElement)));
    }
    return grounds.get(box);
  };
  const wrong = new Set(), seen = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const box = texts.currentNode.parentElement;
    const empty = !texts.currentNode.data.trim() || box.closest('svg, script, style, .bar');
    if (empty || seen.has(box)) continue;
    seen.add(box);
    if (!box.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const looks = getComputedStyle(box), size = parseFloat(looks.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(looks.fontWeight) >= 700);
    const below = ground(box), pair = [light(over(parse(looks.color), below)), light(below)];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < (large ? 3 : 4.5)) {
      wrong.add(`contrast ${ratio.toFixed(2)}: ${box.tagName}.${box.className} ${looks.color}`);
    }
  }
  return [...wrong];
}"""
SLOW_RULES = ("color-contrast",)  # checked by CONTRAST


def names(site: Path) -> list[str]:
    paths = (path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html")))
    return [name for name in paths if not name.startswith("_")]


def faults(seen: tools.Visit) -> list[str]:
    """What is wrong with a page, in each window and each set of colors."""
    found = seen.page.evaluate(STRUCTURE)
    found += tools.axe(seen.page, without=SLOW_RULES)
    seen.page.evaluate(UNFOLD)
    for size in (tools.WIDE, tools.PHONE):
        for theme in tools.THEMES:
            seen.look(theme, size)
            found += [f"{theme}, {size[0]}: {each}" for each in seen.page.evaluate(CONTRAST)]
        found += [f"{size[0]}: {each}" for each in seen.page.evaluate(OVERFLOW)]
        found += [f"{size[0]}: {each}" for each in seen.page.evaluate(FIGURES)]
    return [*found, *seen.problems]


@pytest.mark.timeout(300)
def test_pages_fit_and_have_no_barriers(fresh: Path, address: str, chromium: Browser) -> None:
    wrong = []
    for name in names(fresh):
        with tools.visit(chromium, address + name) as seen:
            wrong += [f"{name}: {each}" for each in faults(seen)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("theme", tools.THEMES)
def test_axe_agrees_on_contrast_and_on_the_phone(
    theme: str, address: str, chromium: Browser
) -> None:
    with tools.visit(chromium, f"{address}reproduce.html", tools.PHONE) as seen:
        seen.look(theme, tools.PHONE)
        assert tools.axe(seen.page) == []


def test_pages_work_as_files(fresh: Path, chromium: Browser) -> None:
    wrong = {}
    for name in names(fresh):
        with tools.visit(chromium, (fresh / name).as_uri(), tools.PHONE) as seen:
            if seen.problems:
                wrong[name] = seen.problems
    assert not wrong


def test_the_front_page_is_light(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}index.html") as seen:
        assert 20_000 < seen.transferred <= WEIGHT, seen.transferred


def test_pages_can_be_read_without_scripts(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, address, tools.PHONE, java_script_enabled=False) as seen:
        assert seen.page.locator("h1").is_visible()
        assert not seen.page.locator(".theme-switch-button").is_visible()


def test_buttons_above_a_page(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}method.html") as seen:
        page = seen.page
        page.get_by_label("Download this page").click()
        menu = page.locator(".page-menu-items")
        assert menu.is_visible() and menu.get_by_text("Download source file").is_visible()
        page.keyboard.press("Escape")
        assert not menu.is_visible()
        shown = page.locator("html").get_attribute("data-theme")
        page.get_by_label("Color mode").click()
        assert page.locator("html").get_attribute("data-theme") != shown
        page.keyboard.press("Control+k")
        page.keyboard.type("swap")
        page.keyboard.press("Enter")
        page.wait_for_selector("#search-results li a")
        assert seen.problems == []


def test_the_tools_of_a_figure(fresh: Path, chromium: Browser) -> None:
    url = (fresh / "studies" / "gender_bias.html").as_uri()
    with tools.visit(chromium, url) as seen:
        first = seen.page.locator(".figure-tools").first
        assert not seen.page.locator(".page-code pre").first.is_visible()
        first.get_by_role("link", name="Code of this figure").click()
        cell = seen.page.locator(seen.page.evaluate("location.hash"))
        assert cell.is_visible() and "draw." in cell.inner_text()
        for name in ("Data:", "This figure as an SVG file"):
            target = first.get_by_role("link", name=name).first.get_attribute("href")
            assert target and (fresh / "studies" / target).is_file()
        button = first.locator("button.command")
        button.click()
        command = button.get_attribute("data-command") or ""
        assert command.startswith("papermill notebooks/gender_bias.ipynb")
        shown = first.inner_text()
        assert "Copied" in shown or command in shown, "without permission, the command is shown"
        assert seen.problems == []


@pytest.mark.parametrize("size", [tools.WIDE, tools.PHONE])
def test_a_figure_shows_the_values_behind_it(
    size: tuple[int, int], fresh: Path, chromium: Browser
) -> None:
    url = (fresh / "studies" / "gender_bias.html").as_uri()
    with tools.visit(chromium, url, size) as seen:
        figure = seen.page.locator(".pythia-figure").first
        figure.scroll_into_view_if_needed()
        x, y = figure.evaluate(
            """figure => {
              const layouts = [...figure.querySelectorAll('.drawing > svg')];
              const svg = layouts.find((each) => each.getClientRects().length);
              const box = svg.getBoundingClientRect();
              const scale = box.width / svg.viewBox.baseVal.width;
              const [whole, shown] = [layouts[0], svg].map((each) =>
                JSON.parse(each.querySelector('.panel').dataset.values));
              const [[left], [top]] = whole.series[0][3];
              const [a, b, c, d] = shown.moved || [1, 0, 1, 0];
              return [box.left + (a * left / 10 + b) * scale, box.top + (c * top / 10 + d) * scale];
            }"""
        )
        seen.page.mouse.move(x, y)
        tip = figure.locator(".value-tip")
        tip.wait_for(state="visible")
        assert any(digit in tip.inner_text() for digit in "0123456789")
        seen.page.keyboard.press("Escape")
        assert not tip.is_visible() and seen.problems == []


def test_a_phone_opens_the_contents(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}method.html", tools.PHONE, has_touch=True) as seen:
        seen.page.locator(".primary-toggle").tap()
        contents = seen.page.locator("#pst-primary-sidebar-modal")
        contents.wait_for(state="visible")
        assert contents.get_by_role("link", name="Glossary").is_visible()
        assert seen.problems == []


def test_print_clips_nothing(fresh: Path, address: str, chromium: Browser) -> None:
    wrong = []
    for name in names(fresh):
        with tools.visit(chromium, address + name) as seen:
            seen.page.emulate_media(media="print", color_scheme="light")
            seen.page.set_viewport_size({"width": 643, "height": 900})  # A4 between its margins
            wide = seen.page.evaluate(
                """() => [...document.querySelectorAll('.bd-main :is(table, img, pre, svg, math)')]
                  .filter(each => each.checkVisibility())
                  .map(each => Math.round(each.getBoundingClientRect().right))
                  .filter(right => right > 643)"""
            )
            wrong += [f"{name}: {each}" for each in wide]
            wrong += [] if seen.page.locator("h1").is_visible() else [f"{name}: no heading"]
    assert not wrong, "\n".join(wrong)
