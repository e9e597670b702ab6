"""The page on batches: its drawings, its script and its words agree with the library."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import browser
import numpy as np
import pytest
import yaml
from places import ROOT
from pythia_book.pages import batch as draw

from pythia_core.data.order import RowOrder, batch_hash

PAGE = (ROOT / "book" / "batch.md").read_text(encoding="utf-8")
SHARED, SCRIPT, STYLE = (
    ROOT / "book" / "_static" / name for name in ("explorable.js", "batch.js", "batch.css")
)
in_node = partial(browser.in_node, SCRIPT)


@pytest.fixture
def no_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nothing was ever fetched."""
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    for function in (draw.real, draw.values):
        function.cache_clear()
    yield
    assert not (tmp_path / "cache").exists(), "building the page fetched or wrote something"
    for function in (draw.real, draw.values):
        function.cache_clear()


# --- drawings, data, numbers -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["follow", "shuffle"])
def test_drawings_are_deterministic_svg(name: str, no_wheels: None) -> None:
    first, second = getattr(draw, name)(), getattr(draw, name)()
    assert first.svg == second.svg
    root = ET.fromstring(first.svg)
    assert root.get("role") == "img" and root.get("aria-label") == first.description
    assert "batch.py" in " ".join(root.itertext())


def test_without_the_corpus_the_page_has_its_own_texts(no_wheels: None) -> None:
    assert draw.real() == draw.tiny() and draw.values()["example"] == "twelve short texts"
    texts = "".join(draw.tiny().pieces[t] for ids in draw.tiny().documents for t in ids)
    assert texts == "".join(draw.TEXTS), "the texts are there whole, none is from a corpus"


@pytest.mark.wheels
def test_the_rows_of_the_corpus_are_those_that_a_run_reads() -> None:
    from pythia_core.data.prepare import prepare
    from pythia_core.suite import scale_named

    scale = scale_named("smoke")
    data = prepare(scale.data, progress=False)
    draw.real.cache_clear()
    example, sent = draw.real(), draw.script_data("follow")
    assert example.name == "what a run at scale smoke reads" and example.steps == scale.steps
    for step in range(scale.steps):
        batch = data.batch(step, scale.batch_size)
        assert example.batch(step).tolist() == batch.tolist()
        assert sent["hashes"][step] == batch_hash(batch)
    text = "".join(example.pieces[t] for t in example.rows[0])
    assert text == data.tokenizer.decode(example.rows[0], skip_special_tokens=True)
    assert len(json.dumps(sent)) < 100_000


def test_spans_cover_the_tokens_of_a_row() -> None:
    example = draw.tiny()
    order = example.order
    for r, ids in enumerate(example.rows):
        parts = draw.spans(order, example.sizes, int(order.shuffle[r]))
        assert [t for d, a, b in parts for t in example.documents[d][a:b]] == ids


def test_the_row_to_show_has_several_documents() -> None:
    for example in (draw.tiny(), draw.real()):
        step, place = draw.row_to_show(example)
        number = int(example.order.shuffle[step * example.batch_size + place])
        parts = draw.spans(example.order, example.sizes, number)
        assert len(parts) > 1 and step < example.steps
        assert sum(stop - first for _, first, stop in parts) == example.seq_len + 1


def test_the_numbers_in_prose_match_the_order() -> None:
    values = draw.values()
    shares = [float(values[f"deduped_seen_{n}"].split()[0]) for n in range(3)]
    assert abs(sum(shares) - 100) < 0.2
    # the same on a corpus of the same proportions, counted instead of computed
    order = RowOrder(np.full(4000, 50), 20, epochs=2)
    used = float(values["deduped_share"].split()[0]) / 100
    counts, _ = order.read_counts(int(used * order.n_rows), 10**6)
    seen = 100 * np.bincount(counts, minlength=3) / len(counts)
    np.testing.assert_allclose(seen, shares, atol=1.0)
    assert values["batch_bytes"] == "4,196,352" and values["all_gigabytes"] == "600"


# --- the script --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 9, 1234, 2**32 - 1])
def test_the_script_reproduces_numpys_generator(seed: int) -> None:
    rng = np.random.RandomState(seed)
    expected = []
    for size in (1, 2, 3, 700, 5000):
        one = np.arange(size)
        rng.shuffle(one)
        expected.append(one.tolist())
    shuffled = "[1, 2, 3, 700, 5000].map((n) => r.shuffle([...Array(n).keys()]))"
    assert in_node(
        f"(() => {{ const r = new page.RandomState({seed}); return {shuffled}; }})()"
    ) == (expected)


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("seed", [1234, 5])
def test_the_script_reproduces_the_librarys_order(seed: int, epochs: int) -> None:
    sizes = [0, 7, 30, 0, 1, 19, 8, 44, 0]
    order = RowOrder(sizes, 8, seed, epochs)
    found = in_node(f"page.rowOrder(sizes, 8, {seed}, {epochs})", sizes=sizes)
    assert found["documents"] == order.documents.tolist()
    assert found["rows"] == order.shuffle.tolist()
    parts = in_node(
        f"(() => {{ const o = page.rowOrder(sizes, 8, {seed}, {epochs});"
        "return o.rows.map((row) => page.spans(o, row).map((part) => part.slice(0, 3))); })()",
        sizes=sizes,
    )
    expected = [draw.spans(order, sizes, row) for row in order.shuffle.tolist()]
    assert parts == [[list(part) for part in row] for row in expected]


def test_the_script_shows_the_rows_of_the_order() -> None:
    example, data = draw.tiny(), draw.script_data("shuffle")
    shown = in_node(
        "(() => { const f = page.figureOf('shuffle', data); const all = [];"
        "for (let s = 0; s < data.steps; s++) for (let r = 0; r < data.batchSize; r++) {"
        "f.change('step', s); f.change('row', r); const c = page.chosen(f);"
        "all.push(page.idsOf(f, c.number, c.first + r)); } return all; })()",
        data=data,
    )
    assert shown == example.rows


@pytest.mark.parametrize(("typed", "step"), [("3", 3), ("999", 10), ("-4", 0), ("", 0), ("2.7", 2)])
def test_the_script_parses_a_typed_step(typed: str, step: int) -> None:
    data = draw.script_data("shuffle")
    shown = in_node(
        f"(() => {{ const f = page.figureOf('shuffle', data); f.change('step', {typed!r});"
        "return page.says(f); })()",
        data=data,
    )
    assert shown.startswith(f"Batch {step}: rows {4 * step}")
    assert shown.endswith(f"Hash of the batch: {data['hashes'][step]}.")


def test_another_seed_has_no_hash_of_the_first() -> None:
    said = "(f => { f.change(KEY, 2); return page.says(f); })(page.figureOf('shuffle', data))"
    for key in ("seed", "epochs"):
        assert "Hash" not in in_node(said, data=draw.script_data("shuffle"), KEY=key)


def test_an_address_brings_a_choice_back() -> None:
    code = """cases.map((values) => {
      const figure = page.figureOf("shuffle", data), again = page.figureOf("shuffle", data);
      page.restore(figure, values);
      const kept = Object.entries(page.kept(figure)).filter(([, value]) => value !== null);
      page.restore(again, Object.fromEntries(kept.map(([name, value]) => [name, String(value)])));
      return [figure.state, again.state, page.path(again)];
    })"""
    cases: list[dict[str, str]] = [
        {},
        {"shuffle.seed": "7", "shuffle.epochs": "2", "shuffle.step": "5", "shuffle.token": "8"},
        {"shuffle.document": "4"},
        {
            "shuffle.seed": "x",
            "shuffle.epochs": "99",
            "shuffle.row": "-1",
            "shuffle.document": "<b>",
        },
    ]
    found = in_node(code, data=draw.script_data("shuffle"), cases=cases)
    assert all(first == again and sentences for first, again, sentences in found)
    moved, apart, odd = (first for first, _, _ in found[1:])
    assert (moved["seed"], moved["epochs"], moved["step"], moved["token"]) == (7, 2, 5, 8)
    assert apart["document"] == 4 and (odd["seed"], odd["epochs"], odd["row"]) == (1234, 3, 0)


def test_the_path_of_a_token_ends_at_the_token() -> None:
    """Every number that the path states is that of the library's order."""
    example, data = draw.tiny(), draw.script_data("shuffle")
    code = """(() => { const f = page.figureOf('shuffle', data), all = [];
      for (let s = 0; s < data.steps; s++) for (let r = 0; r < 4; r++) for (const t of [0, 5, 8]) {
        f.change('step', s); f.change('row', r); f.change('token', t); all.push(page.path(f)); }
      return all; })()"""
    order = example.order
    ends = np.cumsum(np.array(example.sizes)[order.documents])
    for sentences, (r, t) in zip(
        in_node(code, data=data),
        ((r, t) for r in range(len(example.rows)) for t in (0, 5, 8)),
        strict=True,
    ):
        position = int(order.shuffle[r]) * example.seq_len + t
        place = int(np.searchsorted(ends, position, "right"))
        document = int(order.documents[place])
        before = int(ends[place]) - example.sizes[document]
        token = example.documents[document][position - before]
        assert f" {token}, " in sentences[0]
        assert sentences[0].endswith(f"is token {position - before} of document {document}.")
        assert f"at place {place} of 0" in sentences[1] and f"number {position}." in sentences[1]
        assert f"row {r % 4} of batch {r // 4}." in sentences[3]


def test_text_stays_text() -> None:
    data = draw.script_data("shuffle")
    evil = '<img src=x onerror="alert(1)">&amp;'
    data["pieces"] = {i: evil if piece else "" for i, piece in data["pieces"].items()}
    markup = in_node("page.batchList(page.figureOf('shuffle', data))", data=data)
    assert "<img" not in markup and "&#60;img src=x onerror=&#34;" in markup


def test_the_script_and_the_style_make_no_requests() -> None:
    browser.assert_self_contained(SCRIPT, STYLE)


THEN = """
  const set = (figure, name, value) => {
    const input = document.querySelector(`[data-batch=${figure}] [data-set=${name}]`);
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    return document.querySelector(`[data-batch=${figure}] output`).textContent;
  };
  result.first = [...document.querySelectorAll("output")].map((o) => o.textContent);
  result.step = set("follow", "step", 5);
  result.far = set("follow", "step", 5000);
  result.seed = set("shuffle", "seed", 7);
  result.epochs = set("shuffle", "epochs", 3);
  result.row = set("shuffle", "row", 3);
  result.rows = document.querySelectorAll("[data-batch=shuffle] .rows li").length;
  result.tokens = document.querySelectorAll("[data-batch=shuffle] .token").length;
"""


@pytest.mark.slow
@browser.needed
def test_in_a_browser(tmp_path: Path) -> None:
    data = {name: draw.script_data(name) for name in ("follow", "shuffle")}
    figures = [
        f'<figure><div class="explorable batch" data-batch="{name}" '
        f'data-values="{html.escape(json.dumps(values))}"></div>'
        '<div class="pythia-figure"></div></figure>'
        for name, values in data.items()
    ]
    seen = browser.run_page((SHARED, SCRIPT), STYLE, "".join(figures), THEN, tmp_path)
    last = data["follow"]["steps"] - 1
    shown = data["follow"]["first"][0]
    for said, step in ((seen["first"][0], shown), (seen["step"], 5), (seen["far"], last)):
        assert said.startswith(f"Batch {step}: ")
        assert said.endswith(f"Hash of the batch: {data['follow']['hashes'][step]}.")
    step, place = data["shuffle"]["first"]
    row = RowOrder(draw.tiny().sizes, 8, 7).shuffle[4 * step + place]
    assert f"is row {row} of the stream" in seen["seed"]
    row = RowOrder(draw.tiny().sizes, 8, 7, 3).shuffle[4 * step + 3]
    assert f"Row 3 of it is row {row} of the stream" in seen["row"] and seen["epochs"]
    assert seen["rows"] == 4 and seen["tokens"] == 9


# --- the page ----------------------------------------------------------------------------------


def test_every_drawing_value_and_line_exists() -> None:
    drawn = re.findall(r"^:::\{drawing\} batch\.(\w+)$", PAGE, flags=re.MULTILINE)
    assert drawn == ["follow", "shuffle"]
    names = set(re.findall(r"\{value\}`batch\.(\w+)`", PAGE))
    assert names and names <= draw.values().keys()
    order = (ROOT / "pythia_core" / "data" / "order.py").read_text(encoding="utf-8")
    for words in re.findall(r"^:(?:start|end)-at: (.+)$", PAGE, flags=re.MULTILINE):
        assert order.count(words) == 1, words
    for name, words in re.findall(r"\{source\}`([^`#]+)#([^`]+)`", PAGE):
        assert words in (ROOT / name).read_text(encoding="utf-8")


def test_the_commands_of_the_page_are_known() -> None:
    from pythia_core.__main__ import parser

    commands = re.findall(r"^python -m pythia_core (.+)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        parser().parse_args(re.findall(r'"[^"]*"|\S+', command))


def test_the_page_is_in_the_book() -> None:
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    explained = next(part for part in parts if part["caption"] == "Explained")
    assert {"file": "batch"} in explained["chapters"]
