"""Explains terms of the glossary where pages use them: on hover, focus or tap.

The first use of a term in each section becomes a link to the glossary, without any markup by
the author. A page carries the definitions of its terms in a `<template>`, from which hover.js shows
them; without a script, the link leads to them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GLOSSARY = "glossary"
WITHOUT = (GLOSSARY, "bibliography")
"""Pages on which no term is marked."""
CLASS = "term"
APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
FORMS = {
    "association": r"(?<=[Tt]he )association",
    "canary": r"canar(?:y|ies)",
    "check": r"(?<=premises and )checks",
    "claim": r"(?<=each )claim|claims?(?= of (?:the|a) papers?)",
    "complement": r"(?<=[Tt]he )complement",
    "control": r"controls?(?= |[.,;:)])(?! domain| for)",
    "deduplicated": r"deduplicated (?:text|model|half|Pile|run|data|suite)s?",
    "held-out text": r"held-out (?:text|loss|rows?|documents?)",
    "Holm's correction": rf"Holm['{APOSTROPHE}]s(?: correction| procedure)?",
    "hypothesis": r"hypothes[ei]s",
    "log odds": r"log odds",
    "margin": r"(?<=our )margin|margins?(?= of \d)|(?<=within a )margin|(?<=within the )margin",
    "miniature": r"(?<!in )miniature",
    "planted text": r"(?<!We )(?<!we )planted (?:text|sentence)s?",
    "redraw": r"redrawn",
    "prior": r"(?<=[Tt]he )prior(?! work)",
    "record": r"(?<=[Aa] )record|(?<=from the )record",
    "row": r"(?:training|shuffled) rows?|rows?(?= of (?:training|tokens))",
    "scale": r"scale(?= (?:laptop|gpu|smoke|paper)|\s*$)",
    "shots": r"shots?|zero-shot|few-shot",
    "standard": r"standard (?:text|model|half|Pile|run|suite)s?",
    "step": r"steps?(?= \d)",
    "suite": r"(?<!test )suite",
    "trace": r"(?<=a )trace|(?<=the )trace|(?<=this )trace",
    "twins": r"twins?",
}
"""Patterns for terms whose name is also an ordinary word, or has irregular forms. All other terms
are found by their name, with or without a plural "s"."""
UNTOUCHED = (
    nodes.title,
    nodes.caption,
    nodes.table,
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.emphasis,
    nodes.math,
    nodes.raw,
    nodes.figure,
    addnodes.desc,
    addnodes.download_reference,
)
"""Where no term is marked."""


def note_glossary(app: Sphinx, doctree: nodes.document) -> None:
    """Have every page written again when the glossary changes."""
    app.env.note_dependency(str(Path(app.srcdir) / f"{GLOSSARY}.md"))


def definitions(doctree: nodes.document) -> dict[str, tuple[str, list[nodes.Element]]]:
    """Map each term of the glossary, as text, to its anchor and its definition."""
    by_name = {}
    for item in doctree.findall(nodes.definition_list_item):
        paragraphs = [each for part in item.findall(nodes.definition) for each in part.children]
        for term in item.findall(nodes.term):
            if term["ids"]:
                for name in term.astext().replace(APOSTROPHE, "'").split(", "):
                    by_name[name] = (term["ids"][0], paragraphs)
    return by_name


def pattern_of(names: list[str]) -> re.Pattern[str]:
    """Return a pattern that finds all of these terms, the term names[i] as the group `t<i>`."""
    parts = []
    for place, name in enumerate(names):
        words = FORMS.get(name)
        if words is None:
            words = r"\s+".join(map(re.escape, name.split())) + "s?"
        first = words[0]
        if first.isalpha() and first.islower():  # it may begin a sentence
            words = f"[{first}{first.upper()}]{words[1:]}"
        parts.append((len(name), rf"(?P<t{place}>{words})"))
    longest = [text for _, text in sorted(parts, key=lambda part: -part[0])]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(longest)})(?![\w-])")


def mark_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make the first use of each term in each section of a page a link to the glossary."""
    env = app.env
    if docname in WITHOUT or GLOSSARY not in env.found_docs or app.builder.format != "html":
        return
    known = definitions(env.get_doctree(GLOSSARY))
    names = list(known)
    pattern = pattern_of(names)
    base = app.builder.get_relative_uri(docname, GLOSSARY)
    seen: set[tuple[int, str]] = set()
    for text, section in list(_prose(doctree)):
        parts: list[nodes.Node] = []
        plain, at = text.astext(), 0
        for match in pattern.finditer(plain):
            anchor, _ = known[names[int((match.lastgroup or "t0")[1:])]]
            if (section, anchor) in seen:
                continue
            seen.add((section, anchor))
            link = nodes.reference(
                "", match[0], internal=True, refuri=f"{base}#{anchor}", classes=[CLASS]
            )
            parts += [nodes.Text(plain[at : match.start()]), link]
            at = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(plain[at:])])


def _prose(doctree: nodes.document) -> Iterator[tuple[nodes.Text, int]]:
    """Yield the texts in which terms are marked, each with the number of its section."""
    numbers: dict[int, int] = {}
    for text in doctree.findall(nodes.Text):
        above, section, prose = text.parent, 0, False
        while above is not None and not isinstance(above, UNTOUCHED):
            prose = prose or isinstance(above, nodes.paragraph)
            if isinstance(above, nodes.section) and isinstance(above.parent, nodes.section):
                section = numbers.setdefault(id(above), len(numbers) + 1)
            above = above.parent
        if above is None and prose:
            yield text, section


def add_definitions(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Add to a page the definitions of the terms that it uses."""
    if doctree is None or not context.get("body"):
        return
    used = {
        link["refuri"].partition("#")[2]
        for link in doctree.findall(nodes.reference)
        if CLASS in link["classes"]
    }
    if not used:
        return
    names: dict[str, list[str]] = {}
    texts = {}
    for name, (anchor, paragraphs) in definitions(app.env.get_doctree(GLOSSARY)).items():
        if anchor in used:
            names.setdefault(anchor, []).append(name)
            texts[anchor] = paragraphs
    parts = []
    for anchor, paragraphs in texts.items():
        text = " ".join(_partial(app, paragraph) for paragraph in paragraphs)
        name = html.escape(", ".join(names[anchor]))
        parts.append(f'<div data-term="{anchor}"><b>{name}</b> {text}</div>')
    context["body"] += f'<template id="definitions">{"".join(parts)}</template>'


def _partial(app: Sphinx, paragraph: nodes.Element) -> str:
    """Return a paragraph as HTML, with the words of its links instead of the links.

    Citations are left out, with the space before them: a box on hover has no room for them.
    """
    inside = paragraph.deepcopy()
    links = (nodes.reference, addnodes.pending_xref, nodes.target)
    for link in list(inside.findall(lambda node: isinstance(node, links))):
        before = link.parent.children[: link.parent.index(link)]
        if link.get("refdomain") == "cite" and before and isinstance(before[-1], nodes.Text):
            link.parent.replace(before[-1], nodes.Text(before[-1].rstrip()))
        link.parent.replace(link, nodes.Text(_words(app, link)))
    line = nodes.inline("", "", *inside.children)
    return str(app.builder.render_partial(line)["fragment"])


def _words(app: Sphinx, link: nodes.Element) -> str:
    """Return the words of a link: its own, or the title of the section that it leads to."""
    if link.get("refdomain") == "cite":
        return ""
    if link.get("reftype") == "ref" and not link.get("refexplicit"):
        labels = app.env.domaindata["std"]["labels"]
        if link["reftarget"] in labels:  # otherwise, Sphinx warns
            return str(labels[link["reftarget"]][2])
    return link.astext()
