"""Corrections of the HTML of pages."""

from __future__ import annotations

from pythia_book.site.markup import aligned, boxed


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
