"""Choose the rows and canaries whose traces are estimated, and measure their losses.

Rows are natural text, read at most once: rows with a token of a generated document, and rows that
share more than a few of their passages with any other row, are left out. The rule is the same for
rows that are read and for rows that are not, and looks at neither the order nor a model.

Two samples are drawn from the rest, evenly along training. The *paths* are the rows of short
cohorts (params.COHORTS), whose loss is followed over many checkpoints. The *ends* are rows from all
of training, with their loss at the start, on reaching the lowest learning rate, and at the end.
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
from pythia_book.studies.memorization.params import Params
from pythia_book.studies.memorization.profiles import NEVER
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
"""The largest numbers of tokens in the paths: of each cohort, and never read. Longer rows say more
each, so fewer are needed."""
END_TOKENS, FLOOR_TOKENS = 330_000, 130_000
"""About how many tokens the ends have that were read, evenly over training, and how many at most
that were read at the minimum learning rate."""
NEVER_PLANTED = 300
"""The number of canaries that are planted nowhere."""
OTHER = -2
"""Stands for the update that reads a canary which is read more than once, or in part."""


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
    """Return whether each of the rows 0, 1, ..., int[n, width], has no generated text, bool[n]."""
    named = {name for name, _ in data.manifest["tokens"]["train"]["domains"]}
    generated = sorted(name for name in named if not miniature.is_natural(name))
    return ~in_documents(data, len(rows), generated).any(1)


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

    paths: np.ndarray
    """int64[n]: the rows of the cohorts, then rows never read."""
    ends: np.ndarray
    """int64[m]: rows read after the first checkpoint of the ends, then rows never read."""
    even: np.ndarray
    """bool[m]: whether a row of the ends belongs to the sample that is even over all of training;
    the others were added to have more rows from the floor of the learning rate."""

    @classmethod
    def of(cls, params: Params, data: PreparedData, batch_size: int, last: int) -> ChosenRows:
        """Choose among the rows of the dataset; those from update `last` on are never read."""
        rows = data.rows.rows(0, data.rows.n_rows)
        (usable,) = np.nonzero(natural(data, rows) & (shared_passages(rows) <= MOST_SHARED))
        update, width = usable // batch_size, data.config.seq_len
        never = usable[update >= last]
        paths = [
            evenly(usable[(update >= start) & (update < stop)], COHORT_TOKENS // width)
            for start, stop in params.cohorts
        ]
        base, floor, _ = params.end_steps
        read = usable[(update >= base) & (update < last)]
        even = read[:: max(1, round(len(read) * width / END_TOKENS))]
        on_floor = evenly(read[read >= floor * batch_size], FLOOR_TOKENS // width)
        chosen, others = np.union1d(even, on_floor), evenly(never, 2 * NEVER_TOKENS // width)
        return cls(
            np.concatenate([*paths, evenly(never, NEVER_TOKENS // width)]),
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
    planted: np.ndarray
    """int16[n]: how often the corpus has the canary."""
    reads: np.ndarray
    """int16[n]: how often the run reads the whole canary."""
    read: np.ndarray
    """int32[n]: the update that reads a canary that is planted and read once; NEVER for one that
    is planted nowhere, OTHER for all others."""

    @classmethod
    def of(cls, data: PreparedData, batch_size: int, last: int) -> ChosenCanaries:
        """Find the canaries in the rows that the updates before `last` read."""
        config = data.config
        n_documents = miniature.document_counts(config.domains, config.corpus)["canaries"]
        planted = canaries.canary_counts(n_documents)
        others = dict.fromkeys((canaries.canary(f"none {i}") for i in range(NEVER_PLANTED)), 0)
        texts = planted | others
        encoded = [data.tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
        tokens = [tuple(ids) for ids in encoded]
        n = last * batch_size
        (holding,) = np.nonzero(in_documents(data, n, ["canaries"]).any(1))
        updates = canary_reads(data.rows.rows(0, n)[holding], holding // batch_size, tokens)
        times = np.array([*texts.values()], np.int16)
        reads = np.array([len(found) for found in updates], np.int16)
        first = np.array([found[0] if found else OTHER for found in updates])
        read = np.where(times == 0, NEVER, np.where((times == 1) & (reads == 1), first, OTHER))
        return cls(tokens, times, reads, read.astype(np.int32))


def canary_reads(
    rows: np.ndarray, updates: np.ndarray, tokens: Sequence[tuple[int, ...]]
) -> list[list[int]]:
    """Return the updates that read each canary, in ascending order.

    A canary that the end of a row cuts in two is not read there.

    Args:
        rows: int[n, width], in training order. updates: int[n], the update that reads each row.
        tokens: the token ids of each canary.
    """
    number = {ids: i for i, ids in enumerate(tokens)}
    reads: list[list[int]] = [[] for _ in tokens]
    for row, column, size in TokenMatcher(tokens)(rows):
        found = tuple(rows[row, column : column + size].tolist())
        reads[number[found]].append(int(updates[row]))
    return reads


@dataclass
class CanaryLoss(RequestMeasurement):
    """Measures the loss of canaries after an end of document, `loss` float32[canaries]."""

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
