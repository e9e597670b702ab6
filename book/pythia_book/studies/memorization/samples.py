"""Chooses the rows and canaries whose traces are estimated, and measures their losses.

Rows are natural text, read at most once: rows with a token of a generated document, and rows that
share more than a few of their passages with any other row, are left out. The rule is the same for
rows that are read and for rows that are not, and looks at neither the order nor a model.

Two samples are drawn from the rest, evenly over training. The *cohorts* are rows that are read
within a few updates (params.COHORTS), and their loss is followed over many checkpoints. The *final*
sample has rows from all of training, with their loss at the start, on reaching the minimum learning
rate, and at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import canaries, miniature
from pythia_book.measurements import Arrays, RequestMeasurement
from pythia_book.search import TokenMatcher
from pythia_book.studies.memorization.panel import NEVER
from pythia_book.studies.memorization.params import Params
from pythia_core.config import stable_hash
from pythia_core.evaluation import scoring
from pythia_core.evaluation.memorization import window_hashes

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData

PASSAGE = 16
"""Tokens in a passage. Two rows that have one in common share text."""
MOST_SHARED = 0.02
"""The largest share of a row's passages that may occur in other rows."""
COHORT_TOKENS, NEVER_TOKENS = 8_000, 50_000
"""The largest numbers of tokens of a cohort, and of the rows never read that it is compared with.
Each longer row says more, so fewer are needed."""
FINAL_TOKENS, FLOOR_TOKENS = 330_000, 130_000
"""About how many tokens of the final sample were read, evenly over training, and how many at most
were read at the minimum learning rate."""
NEVER_PLANTED = 300
"""The number of canaries that are planted nowhere."""
OTHER = -2
"""Stands in for the update of a canary that is never read, read more than once, or read in part."""
CUT = -1
"""Replaces the number of readings of a canary if some row has only a part of it."""


# --- rows ------------------------------------------------------------------------------------


def shared_passages(rows: np.ndarray) -> np.ndarray:
    """Return the share of each row's passages that also occur in another row, float64[n].

    `rows` is int[n, width], and a passage is any PASSAGE successive tokens.
    """
    hashes = np.sort(window_hashes(rows, PASSAGE), axis=1)
    first = np.ones(hashes.shape, bool)  # a passage that a row repeats counts once
    first[:, 1:] = hashes[:, 1:] != hashes[:, :-1]
    values, index = np.unique(hashes, return_inverse=True)
    in_rows = np.bincount(index.ravel(), first.ravel(), len(values))
    return (in_rows[index].reshape(hashes.shape) > 1).mean(1)


def natural(data: PreparedData, rows: np.ndarray) -> np.ndarray:
    """Return which of the rows 0, 1, ..., int[n, width], are free of generated text, bool[n]."""
    named = {name for name, _ in data.manifest["tokens"]["train"]["domains"]}
    generated = sorted(name for name in named if not miniature.is_natural(name))
    return ~in_documents(data, len(rows), generated).any(1)


def own_text(data: PreparedData, rows: np.ndarray) -> np.ndarray:
    """Return whether each of the rows 0, 1, ... is natural text that hardly any other row shares.

    `rows` is int[n, width], all rows of the data. The result is bool[n].
    """
    return natural(data, rows) & (shared_passages(rows) <= MOST_SHARED)


def in_documents(data: PreparedData, n: int, domains: Sequence[str]) -> np.ndarray:
    """Return which tokens of the first `n` rows are from documents of `domains`, bool[n, width]."""
    stream, valid = data.order.stream(np.arange(n))
    if not domains:
        return np.zeros(stream.shape, bool)
    return data.in_domains(data.order.positions(stream), domains) & valid


def evenly(indices: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the indices, evenly spaced."""
    if len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).round().astype(int)]


@dataclass(frozen=True)
class ChosenRows:
    """The rows of a run whose traces are estimated, as row numbers in training order."""

    cohorts: np.ndarray
    """int64[n]: the rows of the cohorts, then rows never read."""
    final: np.ndarray
    """int64[m]: rows read after the first checkpoint of this sample, then rows never read."""
    even: np.ndarray
    """bool[m]: whether a row of the final sample belongs to the part that is even over training;
    the others were added to have more rows read at the minimum learning rate."""

    @classmethod
    def of(cls, params: Params, data: PreparedData, batch_size: int, last: int) -> ChosenRows:
        """Choose among the rows of the dataset; those from update `last` on are never read."""
        rows = data.rows.rows(0, data.rows.n_rows)
        (usable,) = np.nonzero(own_text(data, rows))
        update, width = usable // batch_size, data.config.seq_len
        never = usable[update >= last]
        cohorts = [
            evenly(usable[(update >= start) & (update < stop)], COHORT_TOKENS // width)
            for start, stop in params.cohorts
        ]
        base, floor, _ = params.final_steps
        read = usable[(update >= base) & (update < last)]
        even = read[:: max(1, round(len(read) * width / FINAL_TOKENS))]
        on_floor = evenly(read[read >= floor * batch_size], FLOOR_TOKENS // width)
        chosen, others = np.union1d(even, on_floor), evenly(never, 2 * NEVER_TOKENS // width)
        return cls(
            np.concatenate([*cohorts, evenly(never, NEVER_TOKENS // width)]),
            np.concatenate([chosen, others]),
            np.append(np.isin(chosen, even), np.ones(len(others), bool)),
        )


def read_by(rows: np.ndarray, batch_size: int, last: int) -> np.ndarray:
    """Return the update that reads each row, or NEVER if this is not before `last`, int32[n]."""
    update = rows // batch_size
    return np.where(update < last, update, NEVER).astype(np.int32)


@dataclass(frozen=True)
class RowLoss:
    """Measures the mean loss of each row, `loss` float32[rows], in nats per token."""

    rows: np.ndarray
    """int64[n, S + 1], token ids."""
    name: str = "row_loss"

    @cached_property
    def digest(self) -> str:
        """A hash of the rows and the method."""
        return stable_hash([scoring.VERSION, self.rows.tolist()])

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        """Return `loss`. The step is not used."""
        return {"loss": scoring.score_rows(model, self.rows).losses.astype(np.float32)}


# --- canaries --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChosenCanaries:
    """All planted canaries of a run, and canaries that are planted nowhere."""

    tokens: list[tuple[int, ...]]
    reads: np.ndarray
    """int16[n]: how often the run reads the canary; CUT if it also reads a part of it."""
    read: np.ndarray
    """int32[n]: the update that reads a canary which is read once, in whole; NEVER for one that is
    planted nowhere, OTHER for all others."""

    @classmethod
    def of(cls, data: PreparedData, batch_size: int, last: int) -> ChosenCanaries:
        """Find the canaries in the rows that the updates before `last` read."""
        config = data.config
        n_documents = miniature.document_counts(config.domains, config.corpus)["canaries"]
        planted = canaries.canary_counts(n_documents)
        others = [canaries.canary(f"none {i}") for i in range(NEVER_PLANTED)]
        encoded = data.tokenizer.encode_batch([*planted, *others], add_special_tokens=False)
        tokens = [tuple(text.ids) for text in encoded]
        inside = in_documents(data, data.rows.n_rows, ["canaries"])
        (holding,) = np.nonzero(inside.any(1))
        positions = data.order.positions(data.order.stream(holding)[0])
        whole, cut = canary_reads(
            data.rows.rows(0, data.rows.n_rows)[holding],
            np.where(inside[holding], positions, -1),
            read_by(holding, batch_size, last),
            tokens,
        )
        reads = np.where(cut, CUT, [len(updates) for updates in whole])
        once = [updates[0] if n == 1 else OTHER for updates, n in zip(whole, reads, strict=True)]
        read = np.append(once[: len(planted)], np.full(len(others), NEVER))
        return cls(tokens, reads.astype(np.int16), read.astype(np.int32))


def canary_reads(
    rows: np.ndarray, positions: np.ndarray, updates: np.ndarray, tokens: Sequence[tuple[int, ...]]
) -> tuple[list[list[int]], np.ndarray]:
    """Find the updates that read each canary in whole, and whether a row has only a part of it.

    Args:
        rows: int[n, width], all rows with a token of a canary, in training order.
        positions: int[n, width], where their tokens are in the file of tokens, or -1 for a token of
            another text. The file has each copy of a canary in whole.
        updates: int[n], the update that reads each row, or NEVER.
        tokens: the token ids of each canary.

    Returns:
        The updates that read each canary in whole, ascending; and bool[canaries], whether some row
        that is read has only a part of it, because the row begins or ends within the canary.
    """
    number = {ids: i for i, ids in enumerate(tokens)}
    whole: list[list[int]] = [[] for _ in tokens]
    cut = np.zeros(len(tokens), bool)
    in_file, first, index = np.unique(positions, return_index=True, return_inverse=True)
    text = rows.ravel()[first]
    copies: list[int] = []  # the canary of each copy
    copy_of = np.full(len(text), -1)
    for _, start, size in TokenMatcher(tokens)(text[None]):
        stop = start + size
        if in_file[start] >= 0 and in_file[stop - 1] - in_file[start] == size - 1:
            copy_of[start:stop] = len(copies)
            copies.append(number[tuple(text[start:stop].tolist())])
    for copy_in_row, update in zip(copy_of[index.reshape(positions.shape)], updates, strict=True):
        for copy, count in zip(*np.unique(copy_in_row, return_counts=True), strict=True):
            if copy < 0 or update == NEVER:
                continue
            canary = copies[copy]
            if count == len(tokens[canary]):
                whole[canary].append(int(update))
            else:
                cut[canary] = True
    return whole, cut


@dataclass
class CanaryLoss(RequestMeasurement):
    """Measures the loss of canaries after an end-of-document token, `loss` float32[canaries]."""

    requests: Sequence[scoring.Request]
    max_seq_len: int
    name: str = "canary_loss"

    @classmethod
    def of(cls, chosen: ChosenCanaries, data: PreparedData, max_seq_len: int) -> CanaryLoss:
        """Create the measurement of all canaries in `chosen`."""
        requests = [scoring.Request((data.eod_id,), ids) for ids in chosen.tokens]
        return cls(requests, max_seq_len)

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        """Return `loss`, in nats per token. The step is not used."""
        per_token = scoring.score(model, self.packed).per_token
        return {"loss": -per_token.astype(np.float32)}
