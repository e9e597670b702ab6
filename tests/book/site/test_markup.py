"""Corrections of the HTML of pages."""

from __future__ import annotations

from pythia_book.site.markup import aligned, boxed, coded


def table(*rows: tuple[str, ...]) -> str:
    head = "".join(f"<th>{name}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def test_columns_of_numbers_are_marked() -> None:
    marked = aligned(
        table(
            ("size", "loss", "change", "note"),
            ("7k", "3.90", "\N{MINUS SIGN}0.5 [\N{MINUS SIGN}1, 2]", "1 of 2"),
            ("13k", "\N{EN DASH}", "1,024", "fine"),
        )
    )
    assert '<th>size</th><th class="number">loss</th>' in marked
    assert '<th class="number interval">change</th><th>note</th>' in marked
    assert marked.count("<td>") == 4 and marked.count('<td class="number">') == 2


def test_tables_with_merged_cells_stay_as_they_are() -> None:
    merged = '<table><tr><td colspan="2">1</td><td>2</td></tr></table>'
    assert aligned(merged) == merged


def test_each_outermost_table_has_one_box() -> None:
    inner = "<table><tr><td><table></table></td></tr></table>"
    assert (
        boxed(f"<p>a</p>{inner}<p>b</p>") == f'<p>a</p><div class="scrolls">{inner}</div><p>b</p>'
    )
    has_one = f'<div class="pst-scrollable-table-container">{inner}</div>'
    assert boxed(has_one) == has_one
    assert boxed(inner + inner).count('class="scrolls"') == 2


def test_words_between_backticks_are_code_wherever_they_are_text() -> None:
    code = '<code class="docutils literal notranslate">a &lt; b</code>'
    for frame in ("<caption>{}</caption>", "<td><p>see {} here</p></td>", '<p title="`x`">{}</p>'):
        assert coded(frame.format("`a &lt; b`")) == frame.format(code)


def test_backticks_in_code_and_alone_stay_as_they_are() -> None:
    for text in (
        "<pre><b>`ls`</b></pre>",
        "<code>`ls`</code>",
        "<p>a ` b</p>",
        "<p>`a<b>b`</b></p>",
    ):
        assert coded(text) == text
    assert coded("<pre>`a`</pre><p>`b`</p>").endswith(
        '<p><code class="docutils literal notranslate">b</code></p>'
    )
