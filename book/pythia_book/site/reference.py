"""The reference: `{pythia-commands}` from the argument parser, `{pythia-api}` from docstrings.

Both write MyST text with Sphinx's own directives for options and Python objects, so that every
entry can be linked to, and is in the index and the search. Code is parsed, not imported.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from pythia_book.site.staging import ROOT

WIDTH = 76
"""Maximum number of characters in a line of a command's usage."""
_SECTION = re.compile(r"^(Args|Attributes|Raises|Yields|Returns):$", re.MULTILINE)


def _parsed(directive: SphinxDirective, text: str, into: nodes.Element) -> nodes.Element:
    """Parse MyST text in the place of a directive, and append the result to an element."""
    source = f"<{directive.name}>"
    directive.state.nested_parse(StringList(text.splitlines(), source), 0, into)
    return into


# --- commands --------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of each command, in the order of `--help`, followed by its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield sub
                yield from commands(sub)


def plain(text: str) -> str:
    """Escape text for Markdown, except between backticks; options become code."""

    def shown(found: re.Match[str]) -> str:
        word = found[0]
        return word if word[0] == "`" else f"`{word}`" if word[0] == "-" else f"\\{word}"

    return re.sub(r"`[^`]*`|(?<![\w-])--[\w-]+|[\\*_\[\]<>{}$#|~&]", shown, text)


def command_text(parser: argparse.ArgumentParser, name: str) -> str:
    """Return the MyST text of a command: what it does, its usage, arguments and examples.

    Args:
        name: the command as the index lists it, e.g. "bench train".
    """
    shape = argparse.HelpFormatter(parser.prog, width=WIDTH)
    shape.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    usage = shape.format_help().removeprefix("usage: ").strip()
    about = (parser.description or "").strip()
    sentence = plain(about[:1].upper() + about[1:]).rstrip(".")
    lines = [sentence if sentence.endswith("?") else f"{sentence}.", ""]
    lines += ["```text", usage, "```", f":::{{program}} {name}", ":::"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        values = shape._format_args(action, shape._get_default_metavar_for_optional(action))
        names = [f"{name} {values}".strip() for name in action.option_strings] or [
            action.metavar if isinstance(action.metavar, str) else action.dest
        ]
        lines += [f":::{{option}} {', '.join(names)}", plain(shape._expand_help(action)), ":::"]
    if parser.epilog:
        lines += ["```text", parser.epilog.strip(), "```"]
    return "\n".join(lines)


class Commands(SphinxDirective):
    """A directive that describes every command of `python -m pythia_core`, a section for each."""

    def run(self) -> list[nodes.Node]:
        from pythia_core import __main__

        top = __main__.parser()
        sections = []
        for parser in commands(top):
            name = parser.prog.removeprefix(top.prog).strip()
            section = nodes.section(ids=[f"command-{nodes.make_id(name)}"])
            section += nodes.title("", "", nodes.literal("", name))
            sections.append(_parsed(self, command_text(parser, name), section))
        return sections


# --- the library -----------------------------------------------------------------------------


def api_text(module: str, names: Iterable[str]) -> str:
    """Return the MyST text that describes objects of a module of the library.

    Raises:
        ValueError: the module has no such object, or the object has no docstring.
    """
    path = _source(module)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    file = path.relative_to(ROOT).as_posix()
    texts = []
    for name in names:
        if (definition := _named(body, name)) is None:
            raise ValueError(f"{module} has no {name} with a docstring")
        node, doc = definition
        texts.append(_object_text(module, file, node, name, doc))
    return "\n\n".join(texts)


def _source(module: str) -> Path:
    """Return the path of a module or package of the library."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _named(body: list[ast.stmt], name: str) -> tuple[ast.stmt, str] | None:
    """Return the definition of a name and its docstring; None if there is no such pair."""
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            doc = ast.get_docstring(node)
            return (node, doc) if doc else None
        if name in _targets(node):
            doc = _comment(after)
            return (node, doc) if doc else None
    return None


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    return [ast.unparse(each) for each in node.targets] if isinstance(node, ast.Assign) else []


def _comment(node: ast.stmt | None) -> str:
    """Return the text of a bare string, such as one below a constant or a field; else ""."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    text = value.value if isinstance(value, ast.Constant) else None
    return ast.get_docstring(ast.Module([node], [])) or "" if isinstance(text, str) else ""


def _object_text(module: str, file: str, node: ast.stmt, name: str, doc: str) -> str:
    link = f"{{source}}`{file}#{_beginning(node, name)}`"
    if isinstance(node, ast.FunctionDef):
        return _directive(4, "function", f"{module}.{_signature(node)}", [markdown(doc), link])
    if not isinstance(node, ast.ClassDef):
        return _directive(4, "data", f"{module}.{name}", [markdown(doc), link])
    fields, methods = _members(node)
    start = next((m for m in node.body if getattr(m, "name", "") == "__init__"), None)
    shown = _signature(start, drop_self=True).removeprefix("__init__") if start else ""
    content = [markdown(doc), *fields, *methods, link]
    return _directive(4, "class", f"{module}.{name}{shown.partition(' -> ')[0]}", content)


def _beginning(node: ast.stmt, name: str) -> str:
    """Return the beginning of the line that defines a name, for the role `source`."""
    if isinstance(node, ast.FunctionDef):
        return f"def {name}("
    if isinstance(node, ast.ClassDef):
        return f"class {name}{'(' if node.bases else ':'}"
    return f"{name}:" if isinstance(node, ast.AnnAssign) else f"{name} ="


def _members(node: ast.ClassDef) -> tuple[list[str], list[str]]:
    """Return the texts of a class's fields, and of its methods and properties with docstrings."""
    fields, methods = [], []
    for member, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, ast.AnnAssign) and not _targets(member)[0].startswith("_"):
            options = [_option("type", member.annotation)]
            if member.value is not None:
                options.append(_option("value", member.value))
            fields.append(
                _directive(
                    3, "attribute", _targets(member)[0], [markdown(_comment(after))], options
                )
            )
        elif isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            if not (doc := ast.get_docstring(member)):
                continue
            kinds = {ast.unparse(each).split(".")[-1] for each in member.decorator_list}
            if kinds & {"property", "cached_property"}:
                options = [_option("type", member.returns)] if member.returns else []
                methods.append(_directive(3, "property", member.name, [markdown(doc)], options))
            else:
                options = [f":{kind}:" for kind in sorted(kinds & {"classmethod", "staticmethod"})]
                shown = _signature(member, drop_self="staticmethod" not in kinds)
                methods.append(_directive(3, "method", shown, [markdown(doc)], options))
    return fields, methods


def _signature(node: ast.FunctionDef, drop_self: bool = False) -> str:
    given = node.args
    if drop_self:
        first, rest = (given.posonlyargs, given.args[1:]) if given.args else ([], [])
        given = ast.arguments(
            first, rest, given.vararg, given.kwonlyargs, given.kw_defaults, given.kwarg,
            given.defaults[-len(rest):] if rest else [],
        )  # fmt: skip
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(given)}){result}"


def _option(name: str, node: ast.expr) -> str:
    """Return an option of a directive whose value is code."""
    return f":{name}: {json.dumps(ast.unparse(node))}"  # quoted, because options are YAML


def _directive(
    colons: int, kind: str, argument: str, content: list[str], options: Iterable[str] = ()
) -> str:
    fence = ":" * colons
    options = [*options, *([":no-contents-entry:"] if colons == 3 else [])]
    parts = [f"{fence}{{py:{kind}}} {argument}", *options, "", "\n\n".join(filter(None, content))]
    return "\n".join([*parts, fence])


def markdown(doc: str) -> str:
    """Return a docstring with its sections (Args, Raises, ...) as a list of fields."""
    head, *rest = _SECTION.split(doc)
    items, fields = [], []
    for kind, body in zip(rest[::2], rest[1::2], strict=True):
        if kind in ("Yields", "Returns"):
            fields.append(f":{kind.lower()}: {' '.join(body.split())}")
            continue
        for entry in re.split(r"\n(?=    \S)", body.strip("\n")):
            name, _, meaning = " ".join(entry.split()).partition(": ")
            if kind == "Attributes":
                items.append(f"- `{name}`: {meaning}")
            elif kind == "Args":  # a field with several names would be read as a type and a name
                fields += [f":param {each}: {meaning}" for each in name.split(", ")]
            else:
                fields.append(f":raises {name}: {meaning}")
    return "\n\n".join(filter(None, [head.strip(), "\n".join(items), "\n".join(fields)]))


class Api(SphinxDirective):
    """A directive that describes those objects of a module that its content names."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        names = " ".join(self.content).split()
        self.env.note_dependency(str(_source(module)))
        try:
            text = api_text(module, names)
        except (OSError, ValueError) as error:
            return [self.state.document.reporter.error(str(error), line=self.lineno)]
        return _parsed(self, text, nodes.container(classes=["api"])).children


def register(app: Any) -> None:
    """Add both directives."""
    app.add_directive("pythia-commands", Commands)
    app.add_directive("pythia-api", Api)
