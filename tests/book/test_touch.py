"""Figures that readers drag and click, terms and citations that explain themselves: in a browser.

What a reader has chosen is in the address, and an address brings it back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import browser as tools
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [
    pytest.mark.commands,
    pytest.mark.slow,
    pytest.mark.skipif(tools.BROWSER is None, reason="no Chromium is installed"),
]


def said(page: Page, figure: str) -> str:
    return page.locator(f"{figure} output").inner_text()


def middle(part: Locator) -> tuple[float, float]:
    part.scroll_into_view_if_needed()
    box = part.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*((a + b) / 2 for a, b in zip(start, end, strict=True)))
    page.mouse.move(*end)
    page.mouse.up()


def query_of(page: Page) -> str:
    page.wait_for_timeout(400)  # the address follows a moment later
    return str(page.evaluate("location.search"))


# --- rotary ----------------------------------------------------------------------------------

TURNING = "[data-rotary=turning]"


@pytest.mark.parametrize("size", [tools.WIDE, tools.PHONE])
def test_tokens_and_hands_can_be_dragged(
    size: tuple[int, int], address: str, chromium: Browser
) -> None:
    with tools.visit(chromium, f"{address}rotary.html", size) as seen:
        page = seen.page
        start = said(page, TURNING)
        assert start.startswith("m = 20, n = 12: distance 8, ")
        x, y = middle(page.locator(f"{TURNING} [data-handle=m] .hit"))
        drag(page, (x, y), (x + 60, y))
        found = re.match(r"m = (\d+), n = 12: distance", said(page, TURNING))
        assert found and int(found[1]) > 20, "the query follows the pointer, the key stays"
        score = re.search(r"score (\S+?)[.;] ", said(page, TURNING))
        x, y = middle(page.locator(f"{TURNING} [data-handle=both]"))
        drag(page, (x, y), (x + 40, y))
        assert "n = 12:" not in said(page, TURNING), "both move"
        again = re.search(r"score (\S+?)[.;] ", said(page, TURNING))
        assert score and again and score[1] == again[1], "only the distance matters"
        page.locator(f"{TURNING} .dials [data-pair='3']").click()
        assert "Pair 3: " in said(page, TURNING)
        x, y = middle(page.locator(f"{TURNING} .dial.big circle").first)
        drag(page, (x, y - 20), (x - 50, y))
        assert page.locator(f"{TURNING} [data-set=phi]").input_value() != "0"
        assert seen.problems == []


def test_an_address_brings_a_figure_back(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}rotary.html") as seen:
        page = seen.page
        page.locator(f"{TURNING} [data-set=m]").focus()
        for key in ("ArrowRight", "ArrowRight", "PageUp"):
            page.keyboard.press(key)
        x, y = middle(page.locator("[data-rotary=precision] [data-grab=error]"))
        page.mouse.click(x, y)
        page.locator(f"{TURNING} [data-set=phi]").fill("-45")
        before = [said(page, TURNING), said(page, "[data-rotary=precision]")]
        assert query_of(page)
        page.reload()
        assert [said(page, TURNING), said(page, "[data-rotary=precision]")] == before
        page.locator(f"{TURNING} button").click()
        assert said(page, TURNING).startswith("m = 20, n = 12: ")
        assert "m=" not in query_of(page) and "learned" not in query_of(page)
        assert seen.problems == []


@pytest.mark.parametrize(
    "query", ["m=1e9&n=-3&dims=7&pair=x&learned=9.9.9_1.999.-1&position=NaN", "m=<b>&learned=_._"]
)
def test_a_nonsense_address_does_no_harm(query: str, address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}rotary.html?{query}") as seen:
        assert re.match(r"m = \d+, n = \d+: distance", said(seen.page, TURNING))
        assert "NaN" not in seen.page.locator("article").inner_html()
        assert seen.problems == []


# --- batch -----------------------------------------------------------------------------------

SHUFFLE = "[data-batch=shuffle]"


@pytest.mark.parametrize("size", [tools.WIDE, tools.PHONE])
def test_every_part_of_the_batch_can_be_clicked(
    size: tuple[int, int], address: str, chromium: Browser
) -> None:
    with tools.visit(chromium, f"{address}batch.html", size) as seen:
        page = seen.page
        path = page.locator(f"{SHUFFLE} .path")
        page.locator(f"{SHUFFLE} [data-cell='5 2']").click()
        assert said(page, SHUFFLE).startswith("Batch 5: ")
        assert "row 2 of batch 5" in path.inner_text()
        page.locator(f"{SHUFFLE} [data-row='1']").click()
        assert "row 1 of batch 5" in path.inner_text()
        page.locator(f"{SHUFFLE} [data-token='4']").click()
        text = path.inner_text()
        assert "How token 4 of row 1 came here" in text
        sums = re.search(r"(\d+) = (\d+) . 8 \+ 4: token 4", text)
        assert sums and int(sums[1]) == 8 * int(sums[2]) + 4
        page.locator(f"{SHUFFLE} [data-document='4']").first.click()
        assert page.locator(f"{SHUFFLE} [data-set=document]").input_value() == "4"
        assert "of document 4." in path.inner_text()
        x, y = middle(page.locator(f"{SHUFFLE} [data-grab=stream]"))
        before = path.inner_text()
        drag(page, (x, y), (x + 60, y))
        assert path.inner_text() != before
        stored, text = query_of(page), path.inner_text()
        assert "shuffle.token=" in stored
        page.reload()
        assert path.inner_text() == text
        assert seen.problems == []


def test_a_document_that_is_not_on_the_page_says_where_it_is(
    address: str, chromium: Browser
) -> None:
    with tools.visit(chromium, f"{address}batch.html") as seen:
        page = seen.page
        row, epochs = (page.locator(f"{SHUFFLE} [data-set={name}]") for name in ("row", "epochs"))
        row.focus()
        page.keyboard.press("End")
        assert "Row 3 of it" in said(page, SHUFFLE)
        epochs.select_option("2")
        page.locator(f"{SHUFFLE} [data-set=document]").fill("8")
        assert "of document 8." in page.locator(f"{SHUFFLE} .path").inner_text()
        last = page.locator("[data-batch=follow] [data-set=document]")
        for number in range(12):  # with a cached corpus, most documents are not on the page
            last.fill(str(number))
            text = page.locator("[data-batch=follow] .path").inner_text()
            assert f"ocument {number}" in text
        assert seen.problems == []


# --- recipe ----------------------------------------------------------------------------------


def test_the_calculator_comes_back(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}recipe.html", tools.PHONE) as seen:
        page, figure = seen.page, "[data-recipe=calculator]"
        page.locator(f"{figure} [data-set=size]").select_option("6.9b")
        page.locator(f"{figure} [data-set=layers]").fill("40")
        page.locator(f"{figure} [data-set=gpus]").select_option("64")
        text = said(page, figure)
        assert re.match(r"8,\d{3},\d{3},\d{3} parameters: ", text)
        assert "layers=40" in query_of(page)
        page.reload()
        assert said(page, figure) == text
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == tools.PHONE[0] and seen.problems == []


# --- all three -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotary", "batch", "recipe"])
def test_static_figures_take_their_place(name: str, address: str, chromium: Browser) -> None:
    live, static = f".explorable-live > .{name}", f"figure:has(> .{name}) > .pythia-figure"
    with tools.visit(chromium, f"{address}{name}.html") as seen:
        assert seen.page.locator(live).first.is_visible()
        assert not seen.page.locator(static).first.is_visible()
        seen.page.emulate_media(media="print")
        assert not seen.page.locator(live).first.is_visible()
        assert seen.page.locator(static).first.is_visible()
    with tools.visit(chromium, f"{address}{name}.html", java_script_enabled=False) as seen:
        assert seen.page.locator(static).first.is_visible()
        assert seen.page.locator("details.answer").count() >= 3
        assert seen.problems == []


@pytest.mark.parametrize("name", ["rotary", "batch", "recipe"])
def test_pages_work_from_a_file(name: str, fresh: Path, chromium: Browser) -> None:
    with tools.visit(chromium, (fresh / f"{name}.html").as_uri(), tools.PHONE) as seen:
        slider = seen.page.locator("[data-set]").first
        before = slider.input_value()
        slider.focus()
        seen.page.keyboard.press("ArrowUp")
        assert slider.input_value() != before and query_of(seen.page)
        assert seen.problems == []


# --- terms and citations ---------------------------------------------------------------------


def test_a_term_is_explained_on_hover_and_on_focus(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}studies/gender_bias.html") as seen:
        page, tip = seen.page, seen.page.locator("#explanation")
        term = page.locator("a.term", has_text="fork").first
        middle(term)
        term.hover()
        tip.wait_for(state="visible")
        assert "starts from a checkpoint" in tip.inner_text()
        assert term.get_attribute("aria-describedby") == "explanation"
        box = tip.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= tools.WIDE[0]
        tip.hover()
        page.wait_for_timeout(400)
        assert tip.is_visible(), "the pointer may move onto it"
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        page.mouse.move(1, 1)
        term.focus()
        assert tip.is_visible()
        page.keyboard.press("Tab")
        assert "starts from a checkpoint" not in (tip.inner_text() if tip.is_visible() else "")
        assert tools.axe(page, without=("color-contrast",)) == []
        assert seen.problems == []


def test_a_citation_is_explained_instead_of_its_title(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}rotary.html") as seen:
        citation, tip = (
            seen.page.locator(".bibtex-citation a").first,
            seen.page.locator("#explanation"),
        )
        citation.hover()
        tip.wait_for(state="visible")
        assert "RoFormer" in tip.inner_text() and not citation.get_attribute("title")


def test_the_first_tap_explains_and_the_second_follows(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}method.html", tools.PHONE, has_touch=True) as seen:
        page, tip = seen.page, seen.page.locator("#explanation")
        term = page.locator("a.term").first
        term.tap()
        assert tip.is_visible() and page.url.endswith("method.html")
        box = tip.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= tools.PHONE[0]
        page.locator("h1").tap()
        assert not tip.is_visible()
        term.tap()
        term.tap()
        page.wait_for_url("**/glossary.html#term-*")


def test_without_scripts_a_term_leads_to_the_glossary(address: str, chromium: Browser) -> None:
    with tools.visit(chromium, f"{address}method.html", java_script_enabled=False) as seen:
        seen.page.locator("a.term").first.click()
        seen.page.wait_for_url("**/glossary.html#term-*")
