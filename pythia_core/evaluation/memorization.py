"""Find the training rows that a model has memorized, and count repetitions (paper section 3.2).

A row is (k, l)-memorized if greedy decoding from its first k tokens gives its next l tokens. The
paper uses k = l = 32 and tests every row that training has read so far.

The test generates no text. Until its first wrong token, greedy decoding reads the row's own tokens.
So a row is memorized if and only if, at each of the l positions, the row's own token is the model's
most likely one. Most rows fail early, so the test takes the first 2 positions, then 5, then all l.
Weights and activations are in fp32 (in the paper: fp16), so that ties are rare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError, DataError
from pythia_core.evaluation.generate import generate
from pythia_core.evaluation.scoring import Scorable, device_of, hidden_at

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData
    from pythia_core.model import GPTNeoX


VERSION = 2
"""Part of the cache key: raise it when a change to this module alters results."""
TOKEN_BUDGET = 4096
"""Number of tokens in a batch."""
STAGES = (2, 5)
"""How many positions the first rounds of the test take; the last round takes all."""


@dataclass(frozen=True)
class Extraction:
    """The result of `extract`. Each array has one entry per row."""

    memorized: np.ndarray
    """bool[n]: whether the row is memorized."""
    margin: np.ndarray
    """float32[n]: the logit of the correct token minus the largest other logit, at the position
    where this difference is smallest; NaN for rows that are not memorized."""


@torch.no_grad()
def extract(
    model: Scorable,
    rows: np.ndarray,
    context: int = 32,
    continuation: int = 32,
    token_budget: int = TOKEN_BUDGET,
) -> Extraction:
    """Test which rows (int[n, width]) the model has memorized.

    Args:
        context: k, the number of tokens from which decoding begins.
        continuation: l, the number of tokens that decoding must reproduce.
        token_budget: number of tokens in a batch.

    Raises:
        ConfigError: `context` or `continuation` is below 1, or their sum exceeds the row length.
    """
    if context < 1 or continuation < 1:
        raise ConfigError(
            f"context and continuation must each be at least 1, got context={context} and "
            f"continuation={continuation}"
        )
    distinct, group = distinct_windows(rows, context + continuation)
    distinct = distinct.astype(np.int64)
    margins = np.full(len(distinct), np.nan, np.float32)
    alive = np.arange(len(distinct))
    for positions in sorted({min(stage, continuation) for stage in (*STAGES, continuation)}):
        margin = np.full(len(alive), -1, np.float32)
        size = max(1, token_budget // (context + positions - 1))
        for start in range(0, len(alive), size):
            part = slice(start, start + size)
            batch = distinct[alive[part]]
            margin[part] = _logit_margins(model, batch, context, positions)
        correct = margin >= 0
        margins[alive] = np.where(correct, margin, np.nan)
        alive = alive[correct]
    return Extraction(~np.isnan(margins)[group], margins[group])


@torch.no_grad()
def recited(
    model: Scorable,
    rows: np.ndarray,
    context: int = 32,
    continuation: int = 32,
    token_budget: int = TOKEN_BUDGET,
) -> np.ndarray:
    """Return how many tokens of each row the model recites before its first error, int64[n].

    Greedy decoding begins after the first `context` tokens of a row (int[n, width]). A row is
    memorized if the model recites all `continuation` tokens after these.
    """
    distinct, group = distinct_windows(rows, context + continuation)
    distinct = distinct.astype(np.int64)
    counts, alive = np.zeros(len(distinct), np.int64), np.arange(len(distinct))
    for positions in sorted({min(stage, continuation) for stage in (*STAGES, continuation)}):
        size = max(1, token_budget // (context + positions - 1))
        for start in range(0, len(alive), size):
            part = alive[start : start + size]
            logits, target = _continuation_logits(model, distinct[part], context, positions)
            counts[part] = (logits.argmax(-1) == target).cumprod(1).sum(1).cpu().numpy()
        alive = alive[counts[alive] == positions]
    return counts[group]


def _continuation_logits(
    model: Scorable, rows: np.ndarray, context: int, positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits [n, positions, V] and the rows' tokens [n, positions] after the context."""
    ids = torch.from_numpy(rows[:, : context + positions]).to(device_of(model))
    inputs = ids[:, :-1]
    at = torch.arange(inputs.numel(), device=ids.device).view(inputs.shape)[:, context - 1 :]
    states = hidden_at(model, inputs, at.flatten())
    return model.logits(states).float().view(len(ids), positions, -1), ids[:, context:]


def _logit_margins(model: Scorable, rows: np.ndarray, context: int, positions: int) -> np.ndarray:
    """Return each row's smallest margin at the `positions` after the context, float32[n].

    A margin is negative if another token is more likely.
    """
    logits, target = _continuation_logits(model, rows, context, positions)
    target = target[..., None]
    correct = logits.gather(-1, target)
    margin = (correct - logits.amax(-1, keepdim=True)).flatten(1).amin(1)
    alive = margin == 0  # all tokens are the most likely ones; by how much?
    logits, target, correct = logits[alive], target[alive], correct[alive]
    best_other = logits.scatter_(-1, target, -torch.inf).amax(-1, keepdim=True)
    margin[alive] = (correct - best_other).flatten(1).amin(1)
    return margin.cpu().numpy()


def check_by_generation(
    model: GPTNeoX,
    rows: np.ndarray,
    extraction: Extraction,
    context: int = 32,
    continuation: int = 32,
    sample: int = 64,
) -> tuple[int, int]:
    """Check an extraction by generating the continuations of a sample of the rows.

    If possible, half of the sampled rows are memorized according to `extraction`.

    Returns:
        The number of checked rows, and the number of disagreements.

    Raises:
        DataError: `rows` and `extraction` do not have the same length.
        ConfigError: the model's context is shorter than `context` + `continuation` tokens.
    """
    memorized = extraction.memorized
    if len(rows) != len(memorized):
        raise DataError(
            f"there are {len(rows)} rows, but extraction has the results of {len(memorized)}; "
            "pass the same rows as to `extract`"
        )
    (yes,), (no,) = np.nonzero(memorized), np.nonzero(~memorized)
    yes = yes[np.unique(np.linspace(0, len(yes) - 1, min(sample // 2, len(yes))).astype(int))]
    rest = min(sample - len(yes), len(no))
    no = no[np.unique(np.linspace(0, len(no) - 1, rest).astype(int))]
    sampled = np.concatenate([yes, no])
    if not len(sampled):
        return 0, 0
    begin = np.asarray(rows)[sampled, : context + continuation].astype(np.int64)
    generated = generate(model, begin[:, :context].tolist(), continuation)
    same = (np.array(generated) == begin[:, context:]).all(1)
    return len(sampled), int((same != memorized[sampled]).sum())


@dataclass(frozen=True)
class ExtractionMeasurement:
    """Measures which training rows a checkpoint has memorized.

    The rows are those that training has read up to the checkpoint (see `unread`). A call returns
    `memorized` bool[n] and `margin` float32[n] (see Extraction), and `checked` int64[2] (see
    `check_by_generation`).
    """

    data: PreparedData
    batch_size: int
    steps: int
    context: int = 32
    continuation: int = 32
    unread: bool = False
    """Whether to also test the rows that the run reads after the checkpoint."""

    @property
    def name(self) -> str:
        """The name under which the arrays are stored."""
        return "extraction_of_all" if self.unread else "extraction"

    @property
    def digest(self) -> str:
        """A hash of all that determines the result, except the weights and the step."""
        settings = [self.batch_size, self.steps, self.context, self.continuation, self.unread]
        return stable_hash([VERSION, self.data.fingerprint, *settings])

    def __call__(self, model: GPTNeoX, step: int) -> dict[str, np.ndarray]:
        """Return the arrays for the checkpoint at `step`."""
        rows = self.data.rows.rows(0, self.batch_size * (self.steps if self.unread else step))
        extraction = extract(model, rows, self.context, self.continuation)
        checked = check_by_generation(model, rows, extraction, self.context, self.continuation)
        return {
            "memorized": extraction.memorized,
            "margin": extraction.margin,
            "checked": np.array(checked, np.int64),
        }


# --- repetition counts -----------------------------------------------------------------------

MULTIPLIER = 0x9E3779B97F4A7C15
_CHUNK = 1 << 16


def repetition_counts(rows: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Count how often each window (a sequence of tokens) occurs in the rows, at any offset.

    To count how often training taught a continuation, pass windows without the context: a copy of a
    text can teach the same continuation even if the tokens before it differ. An occurrence that
    crosses the end of a row does not count, because training never read it whole. Near-duplicates
    do not count either.

    Args:
        rows: int[rows, tokens], the rows read in training.
        windows: int[n, width].

    Returns:
        int64[n], one count per window.

    Raises:
        ConfigError: the windows are longer than the rows.
    """
    width = np.asarray(windows).shape[-1]
    rows = _checked(rows, width)
    distinct, group = distinct_windows(windows, width)
    targets = window_hashes(distinct, width)[:, 0]
    by_hash = np.argsort(targets, kind="stable")
    ordered = targets[by_hash]
    counts = np.zeros(len(distinct), np.int64)
    if not len(distinct):
        return counts
    occurrences = np.lib.stride_tricks.sliding_window_view(rows, width, axis=1)
    for start in range(0, len(rows), _CHUNK // 8):
        block = occurrences[start : start + _CHUNK // 8]
        hashes = window_hashes(rows[start : start + len(block)], width)
        first = np.searchsorted(ordered, hashes.ravel())
        first[first == len(ordered)] = 0
        (hits,) = np.nonzero(ordered[first] == hashes.ravel())
        row, offset = np.divmod(hits, hashes.shape[1])
        slot = first[hits]
        while len(hits):  # a second round only if different windows share a hash
            for low in range(0, len(hits), _CHUNK):
                part = slice(low, low + _CHUNK)
                match = by_hash[slot[part]]
                same = (block[row[part], offset[part]] == distinct[match]).all(1)
                counts += np.bincount(match[same], minlength=len(counts))
            more = (slot + 1 < len(ordered)) & (
                ordered[np.minimum(slot + 1, len(ordered) - 1)] == ordered[slot]
            )
            hits, row, offset, slot = hits[more], row[more], offset[more], slot[more] + 1
    return counts[group]


def distinct_windows(rows: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct beginnings (the first `window` tokens) of rows.

    Returns:
        The distinct beginnings, int[d, window], and the index of each row's beginning, int64[n].
    """
    begin = np.ascontiguousarray(_checked(rows, window)[:, :window])
    if not len(begin):
        return begin, np.zeros(0, np.int64)
    whole = begin.view(np.dtype((np.void, begin.dtype.itemsize * window))).ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    return begin[first], group.ravel()


def window_hashes(rows: np.ndarray, window: int) -> np.ndarray:
    """Return the hash of every sequence of `window` tokens in each row.

    For rows int[n, width], the result is uint64[n, width - window + 1]. The hash is a polynomial
    modulo 2**64.
    """
    tokens = _checked(rows, window).astype(np.uint64) + np.uint64(1)
    hashes, length = tokens, 1
    for bit in bin(window)[3:]:
        power = np.uint64(pow(MULTIPLIER, length, 2**64))
        hashes = hashes[:, :-length] * power + hashes[:, length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:, :-1] * np.uint64(MULTIPLIER) + tokens[:, length:]
            length += 1
    return hashes


def _checked(rows: np.ndarray, window: int) -> np.ndarray:
    """Return `rows` as an array; raise an error unless it is 2-d and `window` fits into a row."""
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise DataError(
            f"rows must be an array of two dimensions (rows, tokens), got shape {rows.shape}"
        )
    if not 1 <= window <= rows.shape[1]:
        raise ConfigError(
            f"a window of {window} tokens does not fit in rows of {rows.shape[1]} tokens; choose "
            f"a window of 1 to {rows.shape[1]} tokens, or pass longer rows"
        )
    return rows
