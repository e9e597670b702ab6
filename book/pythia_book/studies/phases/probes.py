"""Measures a checkpoint with three probes: n-grams, induction and the logit lens.

- n-grams: KL(p_n || model) on held-out text. Here p_n is the prediction of n-grams of order n,
  counted on training rows. Early in training, models resemble unigrams, then bigrams (Belrose et
  al. 2024).
- induction (Olsson et al. 2022): a model reads a random sequence twice. The loss on the second
  reading is compared with the loss on the first reading, and with the loss after a shuffled copy of
  the sequence. `prefix_matching` scores the attention heads.
- logit lens: KL(model || final norm and unembedding applied after an earlier layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from pythia_book.studies.phases.ngrams import ORDERS, STRENGTHS, Ngrams, windows
from pythia_core.config import stable_hash
from pythia_core.errors import DataError
from pythia_core.evaluation import hooks, scoring

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData
    from pythia_core.model import GPTNeoX

Arrays = dict[str, np.ndarray]

VERSION = 3
"""Part of the cache key of results. Increase it when new code changes any number."""
N_ROWS = 24
"""Number of held-out rows."""
N_POSITIONS = 48
"""Number of positions in each row at which predictions are compared."""
LENS_EVERY = 4
"""The logit lens uses one of every LENS_EVERY positions at which predictions are compared."""
N_SEQUENCES = 12
LONGEST_COPY = 64
"""Largest length, in tokens, of the N_SEQUENCES random sequences."""


# --- measures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """The data on which checkpoints are tested: held-out rows, n-grams and random sequences."""

    rows: np.ndarray
    """int64[n, S+1]: held-out rows."""
    positions: np.ndarray
    """int64[p]: positions in a row; the target of each is the next token."""
    expected: Tensor
    """float32[orders, n, p, V]: n-gram predictions of the token after each of `positions`."""
    entropy: Tensor
    """float64[orders, n, p]: entropy of the predictions in `expected`."""
    ngram_loss: np.ndarray
    """float64[orders, n]: loss of the n-grams, in nats per token."""
    copies: np.ndarray
    """int64[sequences, 2 L]: each random sequence, twice."""
    shuffled: np.ndarray
    """int64[sequences, 2 L]: `copies` with the tokens of the first half in another order."""

    @classmethod
    def of(cls, ngrams: Ngrams, rows: np.ndarray, positions: np.ndarray, copies: np.ndarray,
           shuffled: np.ndarray) -> Probe:  # fmt: skip
        """Build a probe, with n-gram predictions of the tokens after `positions` in `rows`."""
        rows = np.asarray(rows).astype(np.int64)
        contexts, targets = windows(rows, positions)
        shape = (len(rows), len(positions))
        expected = np.empty((len(ORDERS), *shape, ngrams.vocab_size), np.float32)
        entropy, losses = np.empty((len(ORDERS), *shape)), np.empty((len(ORDERS), len(rows)))
        for i, order in enumerate(ORDERS):
            p = ngrams.distribution(order, contexts)
            entropy[i] = -(p * np.log(p)).sum(1).reshape(shape)
            losses[i] = -np.log(p[np.arange(len(p)), targets]).reshape(shape).mean(1)
            expected[i] = p.reshape(*shape, -1)
        tensors = torch.from_numpy(expected), torch.from_numpy(entropy)
        return cls(rows, positions, *tensors, losses, copies, shuffled)


def repeated_sequences(
    unigrams: np.ndarray, length: int, n: int, seed: int, without: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `n` random sequences of `length` different tokens each.

    Args:
        unigrams: the count of each token, its weight in the draw.
        without: a token that is never drawn, e.g. the end-of-document token.

    Returns:
        Each sequence twice, and each sequence after a shuffled copy; both int[n, 2 * length].

    Raises:
        DataError: the text has fewer different tokens than `length`.
    """
    frequency = unigrams.astype(float)
    if without is not None:
        frequency[without] = 0
    if (n_tokens := np.count_nonzero(frequency)) < length:
        raise DataError(
            f"the text has {n_tokens} different tokens, but a random sequence needs {length}; use "
            "more text"
        )
    rng = np.random.default_rng(seed)
    ids, p = np.arange(len(frequency)), frequency / frequency.sum()
    drawn = np.stack([rng.choice(ids, length, replace=False, p=p) for _ in range(n)])
    other = rng.permuted(drawn, axis=1)
    return np.concatenate([drawn, drawn], 1), np.concatenate([other, drawn], 1)


@torch.no_grad()
def text_scores(model: GPTNeoX, probe: Probe) -> Arrays:
    """Measure the loss, the distance to n-grams and the logit lens on held-out rows.

    The results are means over positions in each row, in nats:
    `loss`: float64[n];
    `kl`: float64[orders, n], KL(n-grams || model);
    `lens`: float64[layers, n], KL(model || logit lens before each block).
    """
    device = scoring.device_of(model)
    ids, positions = (torch.from_numpy(a).to(device) for a in (probe.rows, probe.positions))
    expected, entropy = probe.expected.to(device), probe.entropy.to(device)
    before = ["embed_in", *(f"layers.{i}" for i in range(model.config.n_layers - 1))]
    at_once = max(1, scoring.TOKEN_BUDGET // (ids.shape[1] - 1))
    losses, kls, lenses = [], [], []
    for i, row in enumerate(ids):
        if i % at_once == 0:  # states of all layers take memory, so only a few rows
            with hooks.record(model, before) as states:
                hidden = model.hidden(ids[i : i + at_once, :-1])
        logp = _log_probabilities(model, hidden[i % at_once, positions])
        losses.append(-logp.gather(1, row[positions + 1, None]).double().mean())
        cross = -(expected[:, i] * logp).sum(-1).double()
        kls.append((cross - entropy[:, i]).mean(1))
        final = logp[::LENS_EVERY]
        for name in before:
            early = model.final_layer_norm(states[name][i % at_once, positions[::LENS_EVERY]])
            difference = final - _log_probabilities(model, early)
            lenses.append((final.exp() * difference).sum(-1).double().mean())
    return {
        "loss": torch.stack(losses).cpu().numpy(),
        "kl": torch.stack(kls, 1).cpu().numpy(),
        "lens": torch.stack(lenses).view(len(ids), -1).T.contiguous().cpu().numpy(),
    }


def _log_probabilities(model: scoring.Scorable, hidden: Tensor) -> Tensor:
    """Return the log-probabilities (..., V) of the next token, from states after the final norm."""
    return torch.log_softmax(model.logits(hidden).float(), -1)


@torch.no_grad()
def half_losses(
    model: scoring.Scorable, rows: np.ndarray, halves: Sequence[int] = (0, 1)
) -> np.ndarray:
    """Return the mean loss on each half of each row, float64[halves, n], in nats per token.

    The first token of a half does not count. `rows` are int[n, 2 L]; half 0 is the first.
    """
    ids = torch.from_numpy(rows).to(scoring.device_of(model))
    length = rows.shape[1] // 2
    hidden = model.hidden(ids[:, :-1])
    losses = np.empty((len(halves), len(rows)))
    for out, half in zip(losses, halves, strict=True):
        begin = half * length
        for i, row in enumerate(ids):
            logp = _log_probabilities(model, hidden[i, begin : begin + length - 1])
            targets = row[begin + 1 : begin + length, None]
            out[i] = -logp.gather(1, targets).double().mean()
    return losses


@torch.no_grad()
def row_losses(model: scoring.Scorable, rows: np.ndarray, first: int = 0) -> np.ndarray:
    """Return the mean loss on each row, float64[n], in nats per token.

    Args:
        rows: int[n, S + 1].
        first: number of targets at the start of a row that do not count.
    """
    ids = torch.from_numpy(rows).to(scoring.device_of(model))
    logp = _log_probabilities(model, model.hidden(ids[:, :-1])[:, first:])
    losses = -logp.gather(2, ids[:, 1 + first :, None])[..., 0]
    return losses.double().mean(1).cpu().numpy()


def prefix_matching(pattern: Tensor, length: int) -> Tensor:
    """Return the prefix matching of each attention head, (B, heads).

    Prefix matching is the attention from the second occurrence of a token to the token that
    followed the first occurrence, averaged over tokens. `pattern` is attention (B, heads, T, T) on
    rows that repeat after `length` tokens.
    """
    along = pattern.diagonal(1 - length, -2, -1)  # entry j: from position j + length - 1 to j
    return along[..., 1:].mean(-1)


def previous_token(pattern: Tensor) -> Tensor:
    """Return how much each head attends to the token before, (B, heads), averaged over tokens.

    `pattern` is attention (B, heads, T, T); the first token does not count.
    """
    return pattern.diagonal(-1, -2, -1).mean(-1)


@torch.no_grad()
def induction_scores(model: GPTNeoX, probe: Probe) -> Arrays:
    """Measure how well a model continues random sequences that it has read before.

    `copies`: float64[3, sequences], loss in nats per token on the first reading, on the second
        reading, and after a shuffled copy;
    `prefix`, `previous`: float64[layers, heads, sequences], see `prefix_matching` and
        `previous_token`.
    """
    with hooks.record_attention(model) as patterns:
        twice = half_losses(model, probe.copies)
    length = probe.copies.shape[1] // 2
    prefix = torch.stack([prefix_matching(p, length).T for p in patterns])
    previous = torch.stack([previous_token(p).T for p in patterns])
    other = half_losses(model, probe.shuffled, (1,))
    return {
        "copies": np.concatenate([twice, other]),
        "prefix": prefix.double().cpu().numpy(),
        "previous": previous.double().cpu().numpy(),
    }


def prefix_chance(length: int) -> float:
    """Return the prefix matching of a head that attends equally to all tokens read so far."""
    return float(np.mean(1 / (length + 1 + np.arange(length - 1))))


def previous_chance(length: int) -> float:
    """Return `previous_token` of a head that attends equally to all tokens up to its own.

    Rows have `length` tokens.
    """
    return float(np.mean(1 / np.arange(2, length + 1)))


# --- the measurement -------------------------------------------------------------------------


class ProbeText(Protocol):
    """A text on which n-grams are counted and models are tested. It can be pickled."""

    fingerprint: str
    n_read: int
    """Number of training rows on which n-grams are counted."""
    seq_len: int
    eod_id: int

    def read(self) -> np.ndarray:
        """Return the training rows, int[n_read, S+1]."""
        ...

    def heldout(self, n: int) -> np.ndarray:
        """Return at most `n` held-out rows, int[<= n, S+1]."""
        ...


@dataclass(frozen=True)
class RunText:
    """The text of our own runs: their training rows, and held-out rows."""

    data: PreparedData
    n_read: int

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    @property
    def seq_len(self) -> int:
        return self.data.config.seq_len

    @property
    def eod_id(self) -> int:
        return self.data.eod_id

    def read(self) -> np.ndarray:
        return self.data.rows.rows(0, self.n_read)

    def heldout(self, n: int) -> np.ndarray:
        return scoring.sample_windows(self.data.heldout.tokens, self.seq_len, n)


@dataclass(frozen=True)
class PhasesMeasurement:
    """A measurement that scores a checkpoint by `text_scores` and `induction_scores`."""

    text: ProbeText
    vocab_size: int
    """Vocabulary size of the model."""
    name: str = "phases"

    @property
    def digest(self) -> str:
        """A hash of the text and the settings, the key of cached results."""
        settings = [ORDERS, STRENGTHS, N_ROWS, N_POSITIONS, LENS_EVERY, N_SEQUENCES, LONGEST_COPY]
        text = [self.text.fingerprint, self.vocab_size, self.text.n_read]
        return stable_hash([VERSION, *text, *settings])

    def ngrams(self) -> Ngrams:
        """Return the n-gram model, with its back-off tuned on held-out rows outside the probe."""
        return _prepared(self)[0]

    def probe(self) -> Probe:
        """Return the data on which all checkpoints are tested."""
        return _prepared(self)[1]

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        """Return the arrays of `text_scores` and `induction_scores`."""
        return text_scores(model, self.probe()) | induction_scores(model, self.probe())


_cache: dict[str, tuple[Ngrams, Probe]] = {}
"""The n-grams and the probe of the latest measurement, by its digest."""


def _prepared(measurement: PhasesMeasurement) -> tuple[Ngrams, Probe]:
    """Return the n-grams and the probe of a measurement, from the cache or computed."""
    key, text = measurement.digest, measurement.text
    if key not in _cache:
        heldout = text.heldout(2 * N_ROWS)
        ngrams = Ngrams.count(text.read(), measurement.vocab_size)
        ngrams = ngrams.tuned(heldout[1::2] if len(heldout) > 1 else heldout)
        positions = np.unique(np.linspace(1, text.seq_len - 1, N_POSITIONS).astype(int))
        length = min(LONGEST_COPY, text.seq_len // 2)
        sequences = repeated_sequences(ngrams.unigrams, length, N_SEQUENCES, 0, text.eod_id)
        _cache.clear()
        _cache[key] = ngrams, Probe.of(ngrams, heldout[::2], positions, *sequences)
    return _cache[key]
