"""Text by how often it occurs in the training text, and held-out text that shares none of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from pythia_book.corpora import miniature
from pythia_book.measurements import N_ROWS, LanguageMeasurement
from pythia_book.studies.deduplication.params import Params
from pythia_book.studies.deduplication.slices import (
    GROUPS,
    CopiesMeasurement,
    heldout_once,
    natural_documents,
    read_slices,
    unshared,
)

from pythia_core.data.prepare import PreparedData, prepare
from pythia_core.evaluation import scoring
from pythia_core.suite import DATA_ARMS, SUITE_SEED

pytestmark = pytest.mark.wheels


@pytest.fixture(scope="module")
def texts() -> tuple[PreparedData, PreparedData]:
    """The standard and the deduplicated text at scale smoke, with copies as in the Pile."""
    configs = Params("smoke").configs()
    standard, deduplicated = (
        prepare(configs["7k", arm, SUITE_SEED].data, progress=False) for arm in DATA_ARMS
    )
    return standard, deduplicated


def test_occurrences_account_for_the_whole_text(texts) -> None:
    standard, deduplicated = texts
    documents, times = natural_documents(standard, deduplicated)
    tokens = np.array([len(ids) for ids in documents])
    assert set(times) == {1, 2}
    natural = standard.manifest["tokens"]["corpus"]["biographies"]["train_tokens"]
    assert (tokens * times).sum() == pytest.approx(natural, rel=0.01)  # edited copies differ
    for ids, n in zip(documents[:40], times[:40], strict=True):
        text = standard.tokenizer.decode(ids[:-1].tolist())
        assert n == 1 + len(miniature.pile_copies_of(text))


def test_a_slice_has_one_copy_fewer_than_the_text(texts) -> None:
    standard, deduplicated = texts
    documents, times = natural_documents(standard, deduplicated)
    slices = read_slices(standard, deduplicated)
    assert sum(slices.shares.values()) == pytest.approx(1)
    assert sum(slices.slice_shares.values()) == pytest.approx(1)
    assert slices.slice_shares["unread"] == pytest.approx(slices.shares["once"])
    assert slices.slice_shares["once"] == pytest.approx(slices.shares["twice"], abs=0.05)
    for group, rows in slices.rows.items():
        low, high = GROUPS[group]
        own = [d for d, n in zip(documents, times, strict=True) if low <= n <= high]
        stream = np.concatenate(own)
        assert (rows[0] == stream[: rows.shape[1]]).all()
        assert rows.shape[1] == standard.config.seq_len + 1


def test_each_held_out_document_counts_once(texts) -> None:
    """As at scale laptop, where one of the held-out documents occurs eight times."""
    standard, _ = texts
    own = [standard.heldout.document(i) for i in range(standard.heldout.n_documents)]
    several = [own[0]] * 3 + [own[2]] * 8 + own
    repeated = SimpleNamespace(
        heldout=SimpleNamespace(document=several.__getitem__, n_documents=len(several)),
        tokenizer=standard.tokenizer, config=standard.config, eod_id=standard.eod_id,
    )  # fmt: skip
    order = [own[0], own[2], own[1], *own[3:]]
    once = SimpleNamespace(
        heldout=SimpleNamespace(document=order.__getitem__, n_documents=len(order)),
        tokenizer=standard.tokenizer, config=standard.config, eod_id=standard.eod_id,
    )  # fmt: skip
    assert heldout_once(repeated).digest == heldout_once(once).digest
    stream = np.concatenate(own)
    expected = scoring.sample_windows(stream, standard.config.seq_len, N_ROWS)
    assert (heldout_once(standard).rows == expected).all(), "without repeats, as in the suite"


def test_rows_that_share_text_are_found(texts) -> None:
    standard, _ = texts
    rows = LanguageMeasurement.of(standard).rows[:4].copy()
    assert unshared(rows, standard).any(), "held-out text is not read"
    read = standard.rows.rows(0, 2).astype(rows.dtype)
    rows[1, 5:40] = read[0, 10:45]
    rows[2, 5:20] = read[1, 10:25]  # too short to count
    kept = unshared(LanguageMeasurement.of(standard).rows[:4], standard)
    assert list(unshared(rows, standard)) == [kept[0], False, kept[2], kept[3]]
    assert not unshared(read, standard).any()


def test_the_digest_depends_on_rows_and_prompt(texts) -> None:
    rows = texts[0].rows.rows(0, 2).astype(np.int64)
    digests = {
        CopiesMeasurement(rows, 32).digest,
        CopiesMeasurement(rows[:1], 32).digest,
        CopiesMeasurement(rows, 16).digest,
    }
    assert len(digests) == 3
