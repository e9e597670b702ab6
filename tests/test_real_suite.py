"""The page on the released models says what the configs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pythia_core import figures_real_suite as draw
from pythia_core import real_suite
from pythia_core.__main__ import parser
from pythia_core.recipe import HARDWARE
from pythia_core.scales import OFFICIAL_SIZES

PAGE = (Path(__file__).resolve().parent.parent / "book" / "real_suite.md").read_text("utf-8")


@pytest.mark.parametrize("name", OFFICIAL_SIZES)
def test_the_padding_rule_gives_the_released_vocabularies(name: str) -> None:
    padded = real_suite.padded_vocabulary(HARDWARE[name].tensor_parallel)
    assert padded == OFFICIAL_SIZES[name].vocab_size


def test_what_was_done() -> None:
    frame = real_suite.fidelity_table().set_index("size")
    assert list(frame.index) == list(OFFICIAL_SIZES)
    assert frame.precision.value_counts().to_dict() == {"fp16": 9, "bf16": 1}
    assert set(frame.index[frame.init == "normal_scaled"]) == {"6.9b", "12b"}
    assert frame.head_dim.to_dict()["2.8b"] == 80 and frame.head_dim.to_dict()["1b"] == 256


def test_sizes_follow_from_the_parameters() -> None:
    frame = real_suite.reading_table().set_index("size")
    assert frame.stored["70m"] == 2 * 70_426_624
    assert frame.memory["12b"] == 4 * 11_846_072_320
    assert draw.reading().frame["One step"].tolist()[2] == "141\N{NO-BREAK SPACE}MB"
    training = real_suite.training_table().set_index("size")
    assert training.fits["2.8b"] and not training.fits["6.9b"]


def test_the_page_shows_every_table_and_commands_that_parse() -> None:
    drawn = re.findall(r"^```\{drawing\} real_suite\.(\w+)$", PAGE, flags=re.MULTILINE)
    assert sorted(drawn) == ["fidelity", "reading", "training"]
    for name in drawn:
        assert len(getattr(draw, name)().frame) == len(OFFICIAL_SIZES)
    commands = re.findall(r"^python -m pythia_core (.+?)(?: +#.*)?$", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 5
    for line in commands:
        parser().parse_args(line.split())
