"""What a checkpoint knows of the statistics of its text: n-grams, induction, the logit lens.

Early in training a model's predictions are said to be first those of single tokens, then of pairs
(Belrose et al. 2024), until it learns to go on with what it has read before (Olsson et al. 2022).

- n-grams: counted on the rows that a run has read. p1 is add-one; order n backs off to order n-1,
  p_n(w) = (c(context, w) + a_n p_{n-1}(w)) / (c(context) + a_n). How near a model is to order n is
  KL(p_n || model) at places of held-out text.
- induction: the loss on a random sequence of tokens where it is read a second time, beside the loss
  the first time, and beside that after the same tokens in another order; and how much each head
  looks from a token to the one that followed its first occurrence (prefix matching).
- logit lens: KL(model || the same final norm and unembedding applied after an earlier layer).

Not here: when in training any of this happens (studies.phases).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pythia_core import evaluate, hooks
from pythia_core.config import stable_hash
from pythia_core.errors import DataError

if TYPE_CHECKING:
    from pythia_core.model import GPTNeoX
    from pythia_core.prepare import PreparedData

Arrays = dict[str, np.ndarray]

VERSION = 1
"""Part of the key under which results are kept: raise it when any number here would change."""
ORDERS = (1, 2, 3)
STRENGTHS = tuple(2.0**k for k in range(-4, 13))
"""Among which the strength of the backing off is chosen, on held-out rows used for nothing else."""
N_ROWS = 24
N_PLACES = 48
"""Held-out rows, and places in each at which predictions are compared."""
LENS_EVERY = 4
"""The lens looks at every fourth of them."""
N_SEQUENCES = 12
LONGEST_COPY = 64


# --- n-grams ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ngrams:
    """Counts of one, two and three tokens in a row, with the strengths a_2 and a_3."""

    vocab_size: int
    unigrams: np.ndarray
    """int64[V]"""
    keys: tuple[np.ndarray, np.ndarray]
    """Of orders 2 and 3: the n-grams there are as numbers in base V, ascending."""
    counts: tuple[np.ndarray, np.ndarray]
    strengths: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def count(cls, rows: np.ndarray, vocab_size: int) -> Ngrams:
        """Of the tokens that rows int[n, S+1] ask a model to predict.

        Raises:
            DataError: rows that are too short, or ids beyond the vocabulary.
        """
        rows = np.asarray(rows).astype(np.int64)
        if rows.ndim != 2 or rows.shape[1] < 3 or not len(rows):
            raise DataError(f"rows of shape {rows.shape}: three tokens in a row are needed")
        if rows.min() < 0 or rows.max() >= vocab_size:
            raise DataError(f"ids {rows.min()}..{rows.max()} are not within 0..{vocab_size - 1}")
        pairs = rows[:, :-1] * vocab_size + rows[:, 1:]
        triples = pairs[:, :-1] * vocab_size + rows[:, 2:]
        found = [np.unique(each, return_counts=True) for each in (pairs, triples)]
        keys, counts = zip(*found, strict=True)
        return cls(vocab_size, np.bincount(rows[:, 1:].ravel(), minlength=vocab_size), keys, counts)

    def tuned(self, rows: np.ndarray) -> Ngrams:
        """With the strengths under which rows int[n, S+1] are likeliest."""
        rows = np.asarray(rows).astype(np.int64)
        contexts, targets = _windows(rows, np.arange(1, rows.shape[1] - 1))
        best = self
        for order in (2, 3):
            tried = [best._with(order, a) for a in STRENGTHS]
            losses = [-np.log(t.probability(order, contexts, targets)).mean() for t in tried]
            best = tried[int(np.argmin(losses))]
        return best

    def _with(self, order: int, strength: float) -> Ngrams:
        changed = list(self.strengths)
        changed[order - 2] = strength
        return replace(self, strengths=tuple(changed))

    @cached_property
    def _first(self) -> np.ndarray:
        """float64[V]: p1."""
        return (self.unigrams + 1) / (self.unigrams.sum() + self.vocab_size)

    def probability(self, order: int, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """float64[n] of targets int[n] after the two tokens of contexts int[n, 2]."""
        p = self._first[targets]
        for n in range(2, order + 1):
            keys, counts, a = self.keys[n - 2], self.counts[n - 2], self.strengths[n - 2]
            low, high = self._range(n, contexts)
            wanted = self._number(n, contexts) * self.vocab_size + targets
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            hits = np.where(keys[at] == wanted, counts[at], 0)
            total = self._totals(n)
            p = (hits + a * p) / (total[high] - total[low] + a)
        return p

    def distribution(self, order: int, contexts: np.ndarray) -> np.ndarray:
        """float64[n, V] after contexts int[n, 2]."""
        p = np.tile(self._first, (len(contexts), 1))
        for n in range(2, order + 1):
            keys, counts, a = self.keys[n - 2], self.counts[n - 2], self.strengths[n - 2]
            p *= a
            for row, low, high in zip(p, *self._range(n, contexts), strict=True):
                row[keys[low:high] % self.vocab_size] += counts[low:high]
            p /= p.sum(1, keepdims=True)
        return p

    def _number(self, order: int, contexts: np.ndarray) -> np.ndarray:
        last = contexts[:, 1].astype(np.int64)
        return last if order == 2 else contexts[:, 0].astype(np.int64) * self.vocab_size + last

    def _range(self, order: int, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the n-grams that begin with each context lie in `keys`."""
        begin = self._number(order, contexts) * self.vocab_size
        keys = self.keys[order - 2]
        return np.searchsorted(keys, begin), np.searchsorted(keys, begin + self.vocab_size)

    def _totals(self, order: int) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts[order - 2])])


def _windows(rows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(contexts int[n * p, 2], targets int[n * p]): what stands before and after the places."""
    contexts = np.stack([rows[:, places - 1], rows[:, places]], -1).reshape(-1, 2)
    return contexts, rows[:, places + 1].ravel()


# --- measures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """What every checkpoint is asked; made once for many."""

    rows: np.ndarray
    """int64[n, S+1], held out."""
    places: np.ndarray
    """int64[p]: positions of a row, each with two tokens before its target."""
    expected: Tensor
    """float32[orders, n, p, V]: what n-grams predict there."""
    entropy: Tensor
    """float64[orders, n, p]: of these."""
    ngram_loss: np.ndarray
    """float64[orders, n]: nats a token."""
    copies: np.ndarray
    """int64[sequences, 2 L]: a random sequence, twice."""
    shuffled: np.ndarray
    """int64[sequences, 2 L]: the same second half after the first in another order."""

    @classmethod
    def of(cls, ngrams: Ngrams, rows: np.ndarray, places: np.ndarray, copies: np.ndarray,
           shuffled: np.ndarray) -> Probe:  # fmt: skip
        """On rows, with what n-grams say of them."""
        rows = np.asarray(rows).astype(np.int64)
        contexts, targets = _windows(rows, places)
        shape = (len(rows), len(places))
        expected = np.empty((len(ORDERS), *shape, ngrams.vocab_size), np.float32)
        entropy, losses = np.empty((len(ORDERS), *shape)), np.empty((len(ORDERS), len(rows)))
        for i, order in enumerate(ORDERS):
            p = ngrams.distribution(order, contexts)
            entropy[i] = -(p * np.log(p)).sum(1).reshape(shape)
            losses[i] = -np.log(p[np.arange(len(p)), targets]).reshape(shape).mean(1)
            expected[i] = p.reshape(*shape, -1)
        made = torch.from_numpy(expected), torch.from_numpy(entropy)
        return cls(rows, places, *made, losses, copies, shuffled)


def repeated(
    unigrams: np.ndarray, length: int, n: int, seed: int, without: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(copies, shuffled) of a Probe: tokens drawn by their frequency, none twice in a sequence.

    Args:
        without: a token never to draw, e.g. the one that ends documents.

    Raises:
        DataError: fewer different tokens than `length`.
    """
    frequency = unigrams.astype(float)
    if without is not None:
        frequency[without] = 0
    if (there := np.count_nonzero(frequency)) < length:
        raise DataError(f"the text has {there} different tokens, a sequence needs {length}")
    rng = np.random.default_rng(seed)
    ids, p = np.arange(len(frequency)), frequency / frequency.sum()
    drawn = np.stack([rng.choice(ids, length, replace=False, p=p) for _ in range(n)])
    other = rng.permuted(drawn, axis=1)
    return np.concatenate([drawn, drawn], 1), np.concatenate([other, drawn], 1)


@torch.no_grad()
def text_scores(model: GPTNeoX, probe: Probe) -> Arrays:
    """Means over the places of each row.

    Returns:
        loss float64[n]; kl float64[orders, n], KL(n-gram || model); lens float64[layers, n],
        KL(model || lens before each block).
    """
    ids, places = torch.from_numpy(probe.rows), torch.from_numpy(probe.places)
    before = ["embed_in", *(f"layers.{i}" for i in range(model.config.n_layers - 1))]
    with hooks.record(model, before) as seen:
        hidden = model.hidden(ids[:, :-1])
    losses, kls, lenses = [], [], []
    for i, row in enumerate(ids):
        logp = _log_probabilities(model, hidden[i, places])
        losses.append(-logp.gather(1, row[places + 1, None]).double().mean())
        cross = -(probe.expected[:, i] * logp).sum(-1).double()
        kls.append((cross - probe.entropy[:, i]).mean(1))
        final = logp[::LENS_EVERY]
        for name in before:
            early = model.final_layer_norm(seen[name][i, places[::LENS_EVERY]])
            apart = final - _log_probabilities(model, early)
            lenses.append((final.exp() * apart).sum(-1).double().mean())
    return {
        "loss": torch.stack(losses).numpy(),
        "kl": torch.stack(kls, 1).numpy(),
        "lens": torch.stack(lenses).view(len(ids), -1).T.contiguous().numpy(),
    }


def _log_probabilities(model: evaluate.Scorable, hidden: Tensor) -> Tensor:
    return torch.log_softmax(model.logits(hidden).float(), -1)


@torch.no_grad()
def half_losses(
    model: evaluate.Scorable, rows: np.ndarray, halves: Sequence[int] = (0, 1)
) -> np.ndarray:
    """float64[halves, n]: mean loss of each half of rows int[n, 2 L], all but its first token."""
    ids = torch.from_numpy(rows)
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
    the second occurrence of a token looks at the token after the first, a mean over tokens."""
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
    return {"copies": np.concatenate([twice, other]), "prefix": prefix.double().numpy()}


def prefix_chance(length: int) -> float:
    """Prefix matching of a head that looks at everything before it alike."""
    return float(np.mean(1 / (length + 1 + np.arange(length - 1))))


# --- the measurement -------------------------------------------------------------------------


@dataclass(frozen=True)
class PhasesMeasurement:
    """`text_scores` and `induction_scores` of a checkpoint (studies.measured)."""

    data: PreparedData
    vocab_size: int
    """Of the model."""
    n_read: int
    """Rows that the run reads: n-grams are counted on these."""
    name: str = "phases"

    @property
    def digest(self) -> str:
        settings = [ORDERS, STRENGTHS, N_ROWS, N_PLACES, LENS_EVERY, N_SEQUENCES, LONGEST_COPY]
        what = [VERSION, self.data.fingerprint, self.vocab_size, self.n_read, *settings]
        return stable_hash(what)

    def ngrams(self) -> Ngrams:
        """Of what was read; smoothed as suits the held-out rows that are not measured."""
        return _asked(self)[0]

    def probe(self) -> Probe:
        """What a checkpoint is asked."""
        return _asked(self)[1]

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        return text_scores(model, self.probe()) | induction_scores(model, self.probe())


_kept: dict[str, tuple[Ngrams, Probe]] = {}
"""By digest, the last one only: each process counts once, not once a checkpoint."""


def _asked(what: PhasesMeasurement) -> tuple[Ngrams, Probe]:
    key = what.digest
    if key not in _kept:
        data, seq_len = what.data, what.data.config.seq_len
        heldout = evaluate.stream_rows(data.heldout.tokens, seq_len, 2 * N_ROWS)
        ngrams = Ngrams.count(data.rows.rows(0, what.n_read), what.vocab_size)
        ngrams = ngrams.tuned(heldout[1::2] if len(heldout) > 1 else heldout)
        places = np.unique(np.linspace(1, seq_len - 1, N_PLACES).astype(int))
        length = min(LONGEST_COPY, seq_len // 2)
        sequences = repeated(ngrams.unigrams, length, N_SEQUENCES, 0, data.eod_id)
        _kept.clear()
        _kept[key] = ngrams, Probe.of(ngrams, heldout[::2], places, *sequences)
    return _kept[key]
