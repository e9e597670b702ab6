"""Finds the attention heads that carry induction, and what is left of it without these heads.

An *induction head* attends from a token to the one that followed an earlier occurrence of the same
token, and a *previous-token head* attends to the token before. A head counts as one of these kinds
if it attends there at least TIMES_UNIFORM times as much as uniform attention would. (Olsson et al.
require that an induction head also copies; this is what the knock-out tests.) Heads are found on
one half of the sequences, and knocked out on the other half: their values are replaced by the mean
over all positions, so that they write the same vector everywhere (mean ablation).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    row_losses,
)
from pythia_book.studies.phases.transitions import KNOCKED_OUT
from pythia_core.config import stable_hash
from pythia_core.evaluation import hooks, scoring

if TYPE_CHECKING:
    from pythia_core.model import GPTNeoX

VERSION = 4
"""Part of the cache key of results. Increase it when new code changes any number."""
TIMES_UNIFORM = 5
"""How many times uniform attention a head must give to count as one of these two kinds."""
N_SEQUENCES, SEED = 64, 1
DRAWS = 8
"""Random choices of the other heads, over which their gain is averaged."""

Head = tuple[int, int]
"""(layer, number) of an attention head."""


@contextlib.contextmanager
def without_heads(model: GPTNeoX, heads: Sequence[Head]) -> Iterator[None]:
    """Knock out heads in the `with` block: their values become the mean over rows and positions."""
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
    """Measures the gain from order of repeated sequences, and losses, with heads knocked out.

    `heads`: float64[len(KNOCKED_OUT), 2 + len(rows)]: the number of heads knocked out; without
        them, the loss after a shuffled copy minus the loss after an exact copy, and the loss on
        each of `rows`, in nats per token.
    """

    copies: np.ndarray
    """int64[n, 2 L]: random sequences, each twice (see `probes.repeated_sequences`)."""
    shuffled: np.ndarray
    """int64[n, 2 L]: the sequences after a shuffled copy."""
    rows: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    """Maps a kind of text to its rows, and the number of targets that do not count in each."""
    name: str = "heads"

    @classmethod
    def like(
        cls, phases: PhasesMeasurement, rows: dict[str, tuple[np.ndarray, int]] | None = None
    ) -> HeadsMeasurement:
        """Return the measurement on N_SEQUENCES sequences of the text and length of `phases`."""
        length, unigrams = phases.probe().copies.shape[1] // 2, phases.ngrams().unigrams
        eod_id = phases.text.eod_id
        sequences = repeated_sequences(unigrams, length, N_SEQUENCES, SEED, eod_id)
        return cls(*sequences, rows or {})

    @cached_property
    def digest(self) -> str:
        """A hash of the sequences and the method."""
        texts = [self.copies.tolist(), self.shuffled.tolist()]
        texts += [[name, rows.tolist(), first] for name, (rows, first) in self.rows.items()]
        return stable_hash([VERSION, scoring.VERSION, TIMES_UNIFORM, *texts])

    @torch.no_grad()
    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        kinds = find_heads(model, self.copies[::2])
        every = [(i, j) for i in range(model.config.n_layers) for j in range(model.config.n_heads)]
        others = [head for head in every if not any(head in heads for heads in kinds)]
        rng = np.random.default_rng(SEED)
        rows = [[0, *self._scores(model, [])]]
        for heads in kinds:
            n = min(len(heads), len(others))
            drawn = [rng.choice(len(others), n, replace=False) for _ in range(DRAWS)]
            scores = [self._scores(model, [others[i] for i in draw]) for draw in drawn]
            rows += [[len(heads), *self._scores(model, heads)], [n, *np.mean(scores, axis=0)]]
        assert len(rows) == len(KNOCKED_OUT)
        return {"heads": np.array(rows, np.float64)}

    def _scores(self, model: GPTNeoX, heads: Sequence[Head]) -> list[float]:
        """Return the gain from order, on every second sequence, and the losses, without `heads`."""
        with without_heads(model, heads):
            (exact,) = half_losses(model, self.copies[1::2], (1,))
            (other,) = half_losses(model, self.shuffled[1::2], (1,))
            losses = [row_losses(model, rows, first).mean() for rows, first in self.rows.values()]
        return [float((other - exact).mean()), *map(float, losses)]


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
