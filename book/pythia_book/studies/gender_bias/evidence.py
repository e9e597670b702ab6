"""Finds what a run reads about each noun: planted sentences, and changed passages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora import occupations
from pythia_core.data.tokenizer import token_bytes
from pythia_core.errors import DataError

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData
    from pythia_core.training.runs import Run


@dataclass(frozen=True)
class PlantedPronouns:
    """The pronoun of every planted sentence in a text.

    Attributes:
        position: int64[sentences], position of the pronoun in the file of training tokens.
        noun: int64[sentences], index of the sentence's noun in `occupations.stimuli().nouns`.
        feminine: bool[sentences].
    """

    position: np.ndarray
    noun: np.ndarray
    feminine: np.ndarray


def planted_pronouns(data: PreparedData, domain: str) -> PlantedPronouns:
    """Find the planted sentences in the training documents of a domain.

    Raises:
        DataError: a line is not a planted sentence, or the domain has no documents.
    """
    stimuli = occupations.stimuli()
    known = {}
    for at, noun in enumerate(stimuli.nouns):
        for frame in stimuli.trained:
            before = occupations.prompt(frame, noun.name)[0]
            for feminine in (False, True):
                text = occupations.filled(frame, noun.name, feminine)
                known[text] = (at, feminine, len(before) + 1)
    table = token_bytes(data.tokenizer)
    ends = np.cumsum(data.tokens.sizes, dtype=np.int64)
    starts = ends - data.tokens.sizes
    (numbers,) = np.nonzero(data.in_domains(starts, [domain]))
    rows = []
    for number in numbers:
        raw = [table[i] or b"" for i in data.tokens.document(int(number))]
        upto, offset = np.cumsum([len(piece) for piece in raw]), 0
        for line in b"".join(raw).decode("utf-8").split("\n"):
            if line.strip():
                if line.strip() not in known:
                    raise DataError(f"the domain {domain} has a line that is not planted: {line!r}")
                at, feminine, place = known[line.strip()]
                place += offset + line.index(line.strip())
                token = int(np.searchsorted(upto, place, side="right"))
                rows.append((int(starts[number]) + token, at, feminine))
            offset += len(line) + 1
    position, noun, feminine = zip(*rows, strict=True)
    return PlantedPronouns(np.array(position), np.array(noun), np.array(feminine))


def read_log_odds(planted: PlantedPronouns, data: PreparedData, n_rows: int) -> np.ndarray:
    """Return the log odds of a feminine pronoun for each noun in the rows read, float64[nouns].

    Every reading of a sentence counts. Half a reading is added to both counts, so that the log odds
    of a noun without feminine (or masculine) readings are finite.

    Args:
        n_rows: number of rows read in the order of training.
    """
    reads = data.order.read_counts(n_rows, 4096)[0][planted.position].astype(np.float64)
    n = len(occupations.stimuli().nouns)
    feminine = np.bincount(planted.noun, reads * planted.feminine, n)
    masculine = np.bincount(planted.noun, reads * ~planted.feminine, n)
    return np.log((feminine + 0.5) / (masculine + 0.5))


def share_changed(run: Run) -> float:
    """Return the fraction of tokens that a fork changes in its window."""
    ledger = run.ledger
    assert ledger is not None
    rows = (ledger.stop - ledger.start) * ledger.batch_size
    return run.tokens_changed / (rows * run.config.data.seq_len)


N_EXAMPLES = 2
"""Number of changed passages to show per arm and kind of text."""
AROUND = 12
"""Number of tokens to show before and after a change."""


def examples(run: Run, domain: str) -> list[dict[str, Any]]:
    """Return passages that a fork changes, according to its ledger, before and after.

    The keys of each are `planted` (whether it belongs to `domain`), `before` and `after`. The
    passages are the first in the ledger that are long enough.
    """
    data, ledger = run.data, run.ledger
    order, width = data.order, run.config.data.seq_len
    position = order.positions(order.places(ledger.row, ledger.column))
    inside = data.in_domains(position, [domain])
    passages: list[dict[str, Any]] = []
    for planted in (True, False):
        rows_used: set[int] = set()
        for at in np.flatnonzero(inside == planted):
            row, column = int(ledger.row[at]), int(ledger.column[at])
            if row in rows_used or not AROUND <= column <= width - AROUND:
                continue
            rows_used.add(row)
            batch = data.rows.rows(row, row + 1)
            pair = [rows[0] for rows in (batch, ledger.apply(batch, row))]
            low, high = column - AROUND, column + AROUND + 1
            if data.eod_id in pair[0][low:high]:
                continue
            before, after = (data.tokenizer.decode(ids[low:high].tolist()) for ids in pair)
            passages.append({"planted": planted, "before": before, "after": after})
            if sum(one["planted"] == planted for one in passages) == N_EXAMPLES:
                break
    return passages
