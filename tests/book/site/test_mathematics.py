"""Formulas become MathML."""

from __future__ import annotations

import pytest
from pythia_book.site.mathematics import mathml


def test_formulas_become_mathml() -> None:
    assert mathml("x_1").startswith("<math") and "<msub>" in mathml("x_1")
    assert 'display="block"' in mathml(r"\frac{a}{b}", display=True)
    for lines in ("a &= b \\\\[2pt]\n c &= d", r"\begin{aligned} a &= b \\ c &= d \end{aligned}"):
        assert "<mtable" in mathml(lines, display=True) and ">&<" not in mathml(lines)


def test_functions_have_space_around_their_names() -> None:
    assert mathml(r"a \cos b").count("<mspace") == 2
    assert "<mspace" not in mathml(r"\cos(b)")


@pytest.mark.parametrize(
    ("latex", "named"),
    [(r"\nosuchcommand x", "nosuchcommand"), (r"\frac{a", "brace"), ("a & b", "&")],
)
def test_a_formula_that_cannot_be_shown_is_named(latex: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        mathml(latex)
