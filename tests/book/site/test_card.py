"""The image of link previews, with and without a record."""

from __future__ import annotations

import io
import struct

from pythia_book.site import card


def pixels(values: dict) -> tuple[int, int]:
    stream = io.BytesIO()
    card.figure("The book", values).savefig(stream, dpi=100, format="png")
    return struct.unpack(">II", stream.getvalue()[16:24])


def test_the_card_has_the_size_that_previews_expect() -> None:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    full = {f"retained_{arm}": interval for arm in card.ARMS}
    assert pixels(full) == pixels({}) == (1200, 630)
    assert len(card.figure("The book", full).axes) == 1
    assert not card.figure("The book", {}).axes


def test_the_icon_is_an_icon() -> None:
    assert card.icon(16)[:8] == struct.pack("<HHHBB", 0, 1, 1, 16, 16)
