"""Finds the attention heads that carry induction, and measures what is left of it without them.

An *induction head* attends from a token to the token that followed its earlier occurrence, and a
*previous-token head* to the token before. A head counts as either if it does so TIMES_UNIFORM times
as much as uniform attention would. Heads are found on one half of the sequences, and knocked out on
the other half: their values are replaced by the mean over all positions, so that they write the
same vector everywhere (mean ablation).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pythia_book.studies.phases.probes import (
    Arrays,
    PhasesMeasurement,
    half_losses,
    prefix_chance,
    prefix_matching,
    previous_chance,
    previous_token,
    repeated_sequences,
)
from pythia_core.config import stable_hash
from pythia_core.evaluation import hooks, scoring

if TYPE_CHECKING:
    from pythia_core.model import GPTNeoX

VERSION = 2
"""Part of the cache key of results. Increase it when new code changes any number."""
TIMES_UNIFORM = 5
N_SEQUENCES, SEED = 64, 1
KNOCKED_OUT = ("intact", "induction", "previous-token", "other")
"""The rows of `HeadsMeasurement`: no head is knocked out, or all heads of a kind, or as many other
heads as there are induction heads (or, if there are fewer others, all of them)."""
DRAWS = 8
"""Random choices of the other heads, over which their gain is averaged."""

Head = tuple[int, int]
"""(layer, number) of an attention head."""


@contextlib.contextmanager
def without_heads(model: GPTNeoX, heads: Sequence[Head]) -> Iterator[None]:
    """Knock out heads inside the block: their values become the mean over rows and positions."""
    width, n_heads = model.config.head_dim, model.config.n_heads
    with contextlib.ExitStack() as stack:
        for layer in sorted({layer for layer, _ in heads}):
            numbers = [number for other, number in heads if other == layer]

            def knock_out(qkv: Tensor, numbers: list[int] = numbers) -> Tensor:
                new = qkv.clone()
                values = new.view(*qkv.shape[:2], n_heads, 3, width)[:, :, numbers, 2]
                mean = values.mean((0, 1), keepdim=True).expand_as(values)
                new.view(*qkv.shape[:2], n_heads, 3, width)[:, :, numbers, 2] = mean
                return new

            name = f"layers.{layer}.attention.query_key_value"
            stack.enter_context(hooks.patch(model, name, knock_out))
        yield


@dataclass(frozen=True)
class HeadsMeasurement:
    """Measures the gain from order of repeated sequences, with heads knocked out.

    `heads`: float64[len(KNOCKED_OUT), 2]: the number of heads of the kind, and the loss after a
    shuffled copy minus the loss after an exact copy (nats per token) without them.
    """

    copies: np.ndarray
    """int64[n, 2 L]: random sequences, each twice (see `probes.repeated_sequences`)."""
    shuffled: np.ndarray
    """int64[n, 2 L]: the sequences after a shuffled copy."""
    name: str = "heads"

    @classmethod
    def like(cls, phases: PhasesMeasurement) -> HeadsMeasurement:
        """Return the measurement on N_SEQUENCES sequences of the text and length of `phases`."""
        length, unigrams = phases.probe().copies.shape[1] // 2, phases.ngrams().unigrams
        eod_id = phases.text.eod_id
        return cls(*repeated_sequences(unigrams, length, N_SEQUENCES, SEED, eod_id))

    @cached_property
    def digest(self) -> str:
        """A hash of the sequences and the method."""
        texts = [self.copies.tolist(), self.shuffled.tolist()]
        return stable_hash([VERSION, scoring.VERSION, TIMES_UNIFORM, *texts])

    @torch.no_grad()
    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        kinds = find_heads(model, self.copies[::2])
        every = [(i, j) for i in range(model.config.n_layers) for j in range(model.config.n_heads)]
        others = [head for head in every if not any(head in heads for heads in kinds)]
        rows = [(len(heads), self._gain(model, heads)) for heads in ([], *kinds)]
        rng, n = np.random.default_rng(SEED), min(len(kinds[0]), len(others))
        chosen = [rng.choice(len(others), n, replace=False) for _ in range(DRAWS if n else 0)]
        gains = [self._gain(model, [others[i] for i in draw]) for draw in chosen]
        rows.append((n, float(np.mean(gains)) if gains else rows[0][1]))
        return {"heads": np.array(rows, np.float64)}

    def _gain(self, model: GPTNeoX, heads: Sequence[Head]) -> float:
        """Return the gain from order without some heads, on every second sequence."""
        with without_heads(model, heads):
            (exact,) = half_losses(model, self.copies[1::2], (1,))
            (other,) = half_losses(model, self.shuffled[1::2], (1,))
        return float((other - exact).mean())


def counted(measured: np.ndarray) -> dict[str, tuple[int, float]]:
    """Map each of KNOCKED_OUT to the number of heads and the gain without them.

    Args:
        measured: the array `heads` of a `HeadsMeasurement`.
    """
    rows = zip(KNOCKED_OUT, measured.tolist(), strict=True)
    return {kind: (round(n), gain) for kind, (n, gain) in rows}


def find_heads(model: GPTNeoX, copies: np.ndarray) -> tuple[list[Head], list[Head]]:
    """Return the induction heads and the previous-token heads of a model.

    Args:
        copies: int[n, 2 L], random sequences, each twice.
    """
    length = copies.shape[1] // 2
    ids = torch.from_numpy(copies).to(scoring.device_of(model))
    with hooks.record_attention(model) as patterns:
        model.hidden(ids[:, :-1])
    scores = (
        [prefix_matching(pattern, length).mean(0) for pattern in patterns],
        [previous_token(pattern).mean(0) for pattern in patterns],
    )
    least = (prefix_chance(length), previous_chance(2 * length - 1))
    induction, previous = (
        [
            (layer, head)
            for layer, of_layer in enumerate(kind)
            for head, score in enumerate(of_layer.tolist())
            if score >= TIMES_UNIFORM * chance
        ]
        for kind, chance in zip(scores, least, strict=True)
    )
    return induction, previous
