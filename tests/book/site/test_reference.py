"""The reference describes every command and option, and the objects of the library."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from places import ROOT
from pythia_book.site import reference

from pythia_core.__main__ import parser


def test_a_command_has_its_usage_arguments_and_examples() -> None:
    top = argparse.ArgumentParser(prog="p")
    sub = top.add_subparsers().add_parser("go", description="go on", epilog="examples:\n  p go 3")
    sub.add_argument("where", metavar="PLACE", help="*a* place, see `p --x`")
    sub.add_argument("-n", "--number", type=int, default=3, help="of 100 %% (default: %(default)s)")
    (found,) = reference.commands(top)
    text = reference.command_text(found, "go")
    assert (
        ":::{program} go\n" in text
        and text.startswith("Go on.\n")
        and "p go [-h] [-n NUMBER] PLACE" in text
    )
    assert ":::{option} PLACE\n\\*a\\* place, see `p --x`\n:::" in text
    assert ":::{option} -n NUMBER, --number NUMBER\nof 100 % (default: 3)\n:::" in text
    assert text.endswith("```text\nexamples:\n  p go 3\n```") and "--help" not in text


def test_plain_text_stays_text_and_options_are_code() -> None:
    assert reference.plain("a_b [c] need --on and `--off`") == r"a\_b \[c\] need `--on` and `--off`"
    assert reference.plain("what `inspect --data` takes") == "what `inspect --data` takes"
    assert reference.plain("--data, not `a --b c`") == "`--data`, not `a --b c`"


def test_a_command_that_asks_a_question_gets_no_period() -> None:
    asking = argparse.ArgumentParser(prog="p check", description="is all well?")
    assert reference.command_text(asking, "check").startswith("Is all well?\n")


def test_a_docstring_becomes_markdown_with_fields() -> None:
    doc = "Do it.\n\n- one\n\nArgs:\n    a: what\n        it is.\n    b: more: of it.\n\n"
    doc += "Attributes:\n    c: one.\n\nRaises:\n    KeyError: never."
    assert reference.markdown(doc) == (
        "Do it.\n\n- one\n\n- `c`: one.\n\n"
        ":param a: what it is.\n:param b: more: of it.\n:raises KeyError: never."
    )


def test_objects_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "module.py").write_text(
        'LIMIT = 3\n"""At most."""\nOTHER = 4\n'
        'class Thing:\n    """A thing."""\n    size: int = 1\n    """How large."""\n'
        '    def __init__(self, size: int = 2) -> None: ...\n    def hidden(self): ...\n'
        '    @property\n    def double(self) -> str | None:\n        """Twice."""\n'
        '    def grow(self, by: int) -> int:\n        """Grow."""\n'
    )  # fmt: skip
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    text = reference.api_text("some.module", ["LIMIT", "Thing"])
    assert "{py:data} some.module.LIMIT\n\nAt most.\n\n{source}`some/module.py#LIMIT =`" in text
    assert "{py:class} some.module.Thing(size: int=2)\n" in text and "hidden" not in text
    assert '{py:attribute} size\n:type: "int"\n:value: "1"' in text and "How large." in text
    assert '{py:property} double\n:type: "str | None"' in text
    assert "{py:method} grow(by: int) -> int" in text
    for missing in ("OTHER", "Nothing"):
        with pytest.raises(ValueError, match=f"no {missing} with a docstring"):
            reference.api_text("some.module", [missing])


def test_the_page_names_objects_that_exist() -> None:
    page = (ROOT / "book" / "reference" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r":::\{pythia-api\} (\S+)\n(.*?)\n:::", page, re.DOTALL)
    assert len(blocks) > 10
    for module, names in blocks:
        assert all(name in reference.api_text(module, names.split()) for name in names.split())


@pytest.mark.commands
def test_every_command_and_option_is_on_the_page(fresh: Path) -> None:
    text = (fresh / "reference" / "commands.html").read_text(encoding="utf-8")
    for command in reference.commands(parser()):
        name = command.prog.split("pythia_core ")[-1]
        assert f'id="command-{name.replace(" ", "-").replace("_", "-")}"' in text, name
        for action in command._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or option in text, f"{name} {option}"
