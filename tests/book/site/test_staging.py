"""A notebook becomes a page: numbered tables, no code in the text, all of it in one fold."""

from __future__ import annotations

from typing import Any

import nbformat
import pandas as pd
import pytest
from pythia_book.style import TABLE_TYPE, Table

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from pythia_book.site import staging, studies


def a_notebook() -> Any:
    v4 = nbformat.v4
    shown = v4.new_output("display_data", data=Table(pd.DataFrame({"a": [1]}))._repr_mimebundle_())
    drawn = v4.new_output(
        "display_data", data={"image/svg+xml": "<svg/>", "text/plain": "What it shows"}
    )
    figure = {"mystnb": {"figure": {"caption": "C", "name": "fig-x"}}, "tags": ["hide-input"]}
    return v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Title\n\n**Abstract.** A.\n\n## One\n\nText.", id="title"),
            v4.new_code_cell('scale: str = "laptop"', metadata={"tags": ["parameters"]}, id="p"),
            v4.new_code_cell("draw.a_table(result)", outputs=[shown], id="a-table"),
            v4.new_code_cell("draw.x(result)", outputs=[drawn], metadata=figure, id="x"),
        ]
    )


def test_a_page_has_its_results_in_the_text_and_its_code_at_the_end() -> None:
    page = staging.as_page(a_notebook(), "phases", reported=True)
    sources = [cell.source for cell in page.cells]
    assert sources[:3] == [
        "# Title\n\n**Abstract.** A.",
        ":::{pythia-run} phases\n:::",
        "## One\n\nText.",
    ]
    assert ":::{pythia-table} phases/a-table\n:name: tab-phases-a-table\n:::" in sources
    assert sources[-3:] == [
        "## Your run and ours",
        ":::{pythia-report} phases\n:::",
        ":::{pythia-code} phases\n:::",
    ]
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code] == ["p", "x"]
    assert all(
        "remove-input" in c.metadata.tags and "hide-input" not in c.metadata.tags for c in code
    )
    ids = [cell.id for cell in page.cells]
    assert len(set(ids)) == len(ids)


def test_prose_about_a_table_without_output_says_that_there_is_none() -> None:
    notebook = a_notebook()
    both = "{numref}`tab-phases-a-table`, {numref}`tab-phases-b`"
    notebook.cells[0].source = f"See {both}, {{numref}}`fig-x`."
    page = staging.as_page(notebook, "phases", reported=False)
    said = "See {numref}`tab-phases-a-table`, *a table that this run lacks*, {numref}`fig-x`."
    assert page.cells[0].source == said


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/html", "<script>alert(1)</script>"),
        ("text/html", '<b>1</b><IMG src="x"\nonerror = alert(1)>'),
        ("text/html", "<svg/onload=alert(1)>"),
        ("text/html", '<a href="JavaScript:alert(1)">a</a>'),
        ("text/html", ["<scr", "ipt src=x>"]),  # files store a long output in parts
        ("text/html", "<iframe src=x>"),
        ("text/markdown", "[a](javascript:alert)"),
        ("application/javascript", "alert(1)"),
        ("application/vnd.jupyter.widget-view+json", {}),
    ],
)
def test_an_output_that_could_run_code_is_shown_as_its_text(kind: str, content: Any) -> None:
    data = {kind: content, "text/plain": "x", "text/latex": "$x$"}
    cell = nbformat.v4.new_code_cell(
        outputs=[nbformat.v4.new_output("display_data", data=data)], id="a"
    )
    staging.sanitize_outputs(cell)
    assert sorted(cell.outputs[0].data) == ["text/latex", "text/plain"]


def test_other_outputs_stay() -> None:
    html = "<table><tr><td>depends on = 3, &lt;script&gt;</td></tr></table>"
    data = {"text/html": html, "text/plain": "x", "image/png": "AA=="}
    cell = nbformat.v4.new_code_cell(
        outputs=[
            nbformat.v4.new_output("display_data", data=data),
            nbformat.v4.new_output("stream", text="printed"),
        ]
    )
    staging.sanitize_outputs(cell)
    assert cell.outputs[0].data == data and cell.outputs[1].text == "printed"


def test_an_unexecuted_notebook_keeps_the_targets_of_references() -> None:
    notebook = a_notebook()
    for cell in notebook.cells[1:]:
        cell["outputs"] = []
    staging.add_placeholders(notebook)
    page = staging.as_page(notebook, "phases", reported=False)
    assert any("tab-phases-a-table" in cell.source for cell in page.cells)
    assert notebook.cells[-2].outputs[0].data["text/plain"] == "not run yet"


def test_a_table_on_a_page_shows_the_cells_as_texts() -> None:
    frame = pd.DataFrame({"name": ["<b>x</b>", "y"], "n": [1.5, None], "code": ["f()", "g()"]})
    content = Table(frame, "A <caption>", ("code",), {"name": [[(3, 4)], []]}).content
    node = studies.numbered_table(content)
    assert node[0].astext() == "A <caption>"
    cells = [entry.astext() for entry in node.findall(studies.nodes.entry)]
    assert cells == ["name", "n", "code", "<b>x</b>", "1.5", "f()", "y", "\N{EN DASH}", "g()"]
    strong = [each.astext() for each in node.findall(studies.nodes.strong)]
    assert strong == ["x"]
    assert TABLE_TYPE in Table(frame)._repr_mimebundle_()
