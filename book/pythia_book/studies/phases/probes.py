"""Probes of a checkpoint: n-grams, induction, the logit lens.

Early in training a model's predictions are said to follow first single tokens, then pairs (Belrose
et al. 2024), until it learns to continue what it has read before (Olsson et al. 2022).

- n-grams (ngrams.py), counted on training rows. The distance of a model to order n is
  KL(p_n || model) at positions in held-out text.
- induction: the loss on a random sequence of tokens when it is read a second time, compared with
  the loss the first time and with the loss after the same tokens in another order; and how much
  each head attends from a token to the one that followed its first occurrence (prefix matching).
- logit lens: KL(model || the same final norm and unembedding applied after an earlier layer).
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

VERSION = 1
"""Part of the cache key of results: raise it when any number would change."""
N_ROWS = 24
N_PLACES = 48
"""Held-out rows, and positions in each at which predictions are compared."""
LENS_EVERY = 4
"""The lens uses every fourth of these positions."""
N_SEQUENCES = 12
LONGEST_COPY = 64


# --- measures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """The test data of every checkpoint."""

    rows: np.ndarray
    """int64[n, S+1], held out."""
    places: np.ndarray
    """int64[p]: positions of a row, each with two tokens before its target."""
    expected: Tensor
    """float32[orders, n, p, V]: n-gram predictions at these positions."""
    entropy: Tensor
    """float64[orders, n, p]: of these predictions."""
    ngram_loss: np.ndarray
    """float64[orders, n]: nats per token."""
    copies: np.ndarray
    """int64[sequences, 2 L]: a random sequence, twice."""
    shuffled: np.ndarray
    """int64[sequences, 2 L]: the same second half after the first in another order."""

    @classmethod
    def of(cls, ngrams: Ngrams, rows: np.ndarray, places: np.ndarray, copies: np.ndarray,
           shuffled: np.ndarray) -> Probe:  # fmt: skip
        """A probe on rows int[n, S+1], with the predictions of n-grams."""
        rows = np.asarray(rows).astype(np.int64)
        contexts, targets = windows(rows, places)
        shape = (len(rows), len(places))
        expected = np.empty((len(ORDERS), *shape, ngrams.vocab_size), np.float32)
        entropy, losses = np.empty((len(ORDERS), *shape)), np.empty((len(ORDERS), len(rows)))
        for i, order in enumerate(ORDERS):
            p = ngrams.distribution(order, contexts)
            entropy[i] = -(p * np.log(p)).sum(1).reshape(shape)
            losses[i] = -np.log(p[np.arange(len(p)), targets]).reshape(shape).mean(1)
            expected[i] = p.reshape(*shape, -1)
        tensors = torch.from_numpy(expected), torch.from_numpy(entropy)
        return cls(rows, places, *tensors, losses, copies, shuffled)


def repeated(
    unigrams: np.ndarray, length: int, n: int, seed: int, without: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(copies, shuffled) of a Probe: tokens drawn by frequency, all different in a sequence, and
    never the token `without`, e.g. the one that ends documents.

    Raises:
        DataError: fewer different tokens than `length`.
    """
    frequency = unigrams.astype(float)
    if without is not None:
        frequency[without] = 0
    if (n_tokens := np.count_nonzero(frequency)) < length:
        raise DataError(f"the text has {n_tokens} different tokens, but a sequence needs {length}")
    rng = np.random.default_rng(seed)
    ids, p = np.arange(len(frequency)), frequency / frequency.sum()
    drawn = np.stack([rng.choice(ids, length, replace=False, p=p) for _ in range(n)])
    other = rng.permuted(drawn, axis=1)
    return np.concatenate([drawn, drawn], 1), np.concatenate([other, drawn], 1)


@torch.no_grad()
def text_scores(model: GPTNeoX, probe: Probe) -> Arrays:
    """Means over the positions of each row: loss float64[n]; kl float64[orders, n], KL(n-gram ||
    model); lens float64[layers, n], KL(model || lens before each block)."""
    device = scoring.device_of(model)
    ids, places = (torch.from_numpy(a).to(device) for a in (probe.rows, probe.places))
    expected, entropy = probe.expected.to(device), probe.entropy.to(device)
    before = ["embed_in", *(f"layers.{i}" for i in range(model.config.n_layers - 1))]
    at_once = max(1, scoring.TOKEN_BUDGET // (ids.shape[1] - 1))
    losses, kls, lenses = [], [], []
    for i, row in enumerate(ids):
        if i % at_once == 0:  # states of all layers are kept: a few long rows at a time
            with hooks.record(model, before) as seen:
                hidden = model.hidden(ids[i : i + at_once, :-1])
        logp = _log_probabilities(model, hidden[i % at_once, places])
        losses.append(-logp.gather(1, row[places + 1, None]).double().mean())
        cross = -(expected[:, i] * logp).sum(-1).double()
        kls.append((cross - entropy[:, i]).mean(1))
        final = logp[::LENS_EVERY]
        for name in before:
            early = model.final_layer_norm(seen[name][i % at_once, places[::LENS_EVERY]])
            difference = final - _log_probabilities(model, early)
            lenses.append((final.exp() * difference).sum(-1).double().mean())
    return {
        "loss": torch.stack(losses).cpu().numpy(),
        "kl": torch.stack(kls, 1).cpu().numpy(),
        "lens": torch.stack(lenses).view(len(ids), -1).T.contiguous().cpu().numpy(),
    }


def _log_probabilities(model: scoring.Scorable, hidden: Tensor) -> Tensor:
    return torch.log_softmax(model.logits(hidden).float(), -1)


@torch.no_grad()
def half_losses(
    model: scoring.Scorable, rows: np.ndarray, halves: Sequence[int] = (0, 1)
) -> np.ndarray:
    """float64[halves, n]: mean loss of each half of rows int[n, 2 L], all but its first token."""
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


def prefix_matching(pattern: Tensor, length: int) -> Tensor:
    """(B, heads) of patterns (B, heads, T, T) over rows that repeat after `length` tokens: how much
    the second occurrence of a token attends to the token after the first, a mean over tokens."""
    along = pattern.diagonal(1 - length, -2, -1)  # entry j: from position j + length - 1 to j
    return along[..., 1:].mean(-1)


@torch.no_grad()
def induction_scores(model: GPTNeoX, probe: Probe) -> Arrays:
    """copies float64[3, sequences]: loss the first time, the second time, and after the same tokens
    in another order; prefix float64[layers, heads, sequences]: prefix matching."""
    with hooks.record_attention(model) as patterns:
        twice = half_losses(model, probe.copies)
    length = probe.copies.shape[1] // 2
    prefix = torch.stack([prefix_matching(p, length).T for p in patterns])
    other = half_losses(model, probe.shuffled, (1,))
    return {"copies": np.concatenate([twice, other]), "prefix": prefix.double().cpu().numpy()}


def prefix_chance(length: int) -> float:
    """Prefix matching of a head that attends uniformly to all preceding tokens."""
    return float(np.mean(1 / (length + 1 + np.arange(length - 1))))


# --- the measurement -------------------------------------------------------------------------


class ProbeText(Protocol):
    """The text for n-gram counts and tests; pickled to worker processes."""

    fingerprint: str
    n_read: int
    """Number of rows that are counted."""
    seq_len: int
    eod_id: int

    def read(self) -> np.ndarray:
        """int[n_read, S+1]: training rows."""
        ...

    def heldout(self, n: int) -> np.ndarray:
        """int[<= n, S+1]: held-out rows."""
        ...


@dataclass(frozen=True)
class RunText:
    """The text of our own runs: all rows read, and held-out rows."""

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
    """`text_scores` and `induction_scores` of a checkpoint (pythia_book.measurements)."""

    text: ProbeText
    vocab_size: int
    """Vocabulary size of the model."""
    name: str = "phases"

    @property
    def digest(self) -> str:
        settings = [ORDERS, STRENGTHS, N_ROWS, N_PLACES, LENS_EVERY, N_SEQUENCES, LONGEST_COPY]
        text = [self.text.fingerprint, self.vocab_size, self.text.n_read]
        return stable_hash([VERSION, *text, *settings])

    def ngrams(self) -> Ngrams:
        """Counts of the training rows, smoothed on held-out rows that are not measured."""
        return _prepared(self)[0]

    def probe(self) -> Probe:
        """The test data."""
        return _prepared(self)[1]

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        return text_scores(model, self.probe()) | induction_scores(model, self.probe())


_kept: dict[str, tuple[Ngrams, Probe]] = {}
"""By digest, only the last one: each process counts once, not once per checkpoint."""


def _prepared(measurement: PhasesMeasurement) -> tuple[Ngrams, Probe]:
    key, text = measurement.digest, measurement.text
    if key not in _kept:
        heldout = text.heldout(2 * N_ROWS)
        ngrams = Ngrams.count(text.read(), measurement.vocab_size)
        ngrams = ngrams.tuned(heldout[1::2] if len(heldout) > 1 else heldout)
        places = np.unique(np.linspace(1, text.seq_len - 1, N_PLACES).astype(int))
        length = min(LONGEST_COPY, text.seq_len // 2)
        sequences = repeated(ngrams.unigrams, length, N_SEQUENCES, 0, text.eod_id)
        _kept.clear()
        _kept[key] = ngrams, Probe.of(ngrams, heldout[::2], places, *sequences)
    return _kept[key]
