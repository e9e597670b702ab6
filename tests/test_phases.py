"""Phases: counts equal brute force, planted models score as what they are, claims can fail."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pythia_core import hooks, phases
from pythia_core.config import ModelConfig
from pythia_core.errors import DataError
from pythia_core.model import GPTNeoX

V = 12


def text(n: int = 60, length: int = 24, seed: int = 0) -> np.ndarray:
    """Rows of a Markov chain of order two, with peaks."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(99).dirichlet(np.full(V, 0.2), (V, V))
    rows = rng.integers(V, size=(n, length + 1))
    for t in range(2, length + 1):
        for row in rows:
            row[t] = rng.choice(V, p=table[row[t - 2], row[t - 1]])
    return rows


def probe_of(ngrams: phases.Ngrams, rows: np.ndarray) -> phases.Probe:
    copies, shuffled = phases.repeated(ngrams.unigrams, 8, 6, seed=0)
    return phases.Probe.of(ngrams, rows, np.arange(1, rows.shape[1] - 1), copies, shuffled)


# --- n-grams ---------------------------------------------------------------------------------


def test_counts_and_probabilities_equal_brute_force() -> None:
    rows = text()
    ngrams = phases.Ngrams.count(rows, V)._with(2, 0.5)._with(3, 3.0)
    lists = rows.tolist()
    one = Counter(w for row in lists for w in row[1:])
    two = Counter(pair for row in lists for pair in pairwise(row))
    three = Counter(t for row in lists for t in zip(row, row[1:], row[2:], strict=False))
    assert ngrams.unigrams.tolist() == [one[w] for w in range(V)]
    assert [len(keys) for keys in ngrams.keys] == [len(two), len(three)]

    def by_hand(order: int, u: int, v: int, w: int) -> float:
        if order == 1:
            return (one[w] + 1) / (sum(one.values()) + V)
        counts, context, a = (two, (v,), 0.5) if order == 2 else (three, (u, v), 3.0)
        total = sum(counts[(*context, x)] for x in range(V))
        return (counts[(*context, w)] + a * by_hand(order - 1, u, v, w)) / (total + a)

    contexts = np.array([(u, v) for u in range(V) for v in range(V)])
    for order in phases.ORDERS:
        dense = ngrams.distribution(order, contexts)
        np.testing.assert_allclose(dense.sum(1), 1)
        expected = [[by_hand(order, u, v, w) for w in range(V)] for u, v in contexts.tolist()]
        np.testing.assert_allclose(dense, expected)
        some = np.arange(len(contexts)) % V
        picked = ngrams.probability(order, contexts, some)
        np.testing.assert_allclose(picked, dense[np.arange(len(some)), some])


def test_higher_orders_predict_a_text_that_has_them_better() -> None:
    ngrams = phases.Ngrams.count(text(400), V).tuned(text(20, seed=1))
    losses = probe_of(ngrams, text(20, seed=2)).ngram_loss.mean(1)
    assert losses[0] > losses[1] > losses[2]
    assert ngrams.strengths[1] < max(phases.STRENGTHS)
    noise = np.random.default_rng(0).integers(V, size=(400, 25))
    worthless = phases.Ngrams.count(noise, V).tuned(
        np.random.default_rng(1).integers(V, size=(20, 25))
    )
    assert worthless.strengths[1] > 50 * ngrams.strengths[1]  # backs off at once


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((3, 2), int), "three tokens"),
        (np.full((3, 9), V), f"within 0..{V - 1}"),
        (np.zeros((0, 9), int), "three tokens"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(rows: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        phases.Ngrams.count(rows, V)


# --- models that are known -------------------------------------------------------------------


class TableModel(torch.nn.Module):
    """Predicts from the present token by a table, or uniformly; no layers between."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.config = SimpleNamespace(n_layers=1)
        self.embed_in = torch.nn.Embedding.from_pretrained(torch.eye(V))
        self.final_layer_norm = torch.nn.Identity()
        self.table = torch.from_numpy(np.log(table)).float()

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed_in(ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.table


@pytest.mark.parametrize("order", [1, 2])
def test_a_model_that_is_an_ngram_table_is_found_out(order: int) -> None:
    ngrams = phases.Ngrams.count(text(), V)
    probe = probe_of(ngrams, text(5, seed=3))
    contexts = np.stack([np.zeros(V, int), np.arange(V)], 1)
    found = phases.text_scores(TableModel(ngrams.distribution(order, contexts)), probe)
    distance = found["kl"].mean(1)
    assert distance[order - 1] == pytest.approx(0, abs=1e-5)
    assert np.delete(distance, order - 1).min() > 0.05
    np.testing.assert_allclose(found["loss"], probe.ngram_loss[order - 1], rtol=1e-5)
    np.testing.assert_allclose(found["lens"], 0, atol=1e-6)  # before its only layer it is finished
    uniform = phases.text_scores(TableModel(np.full((V, V), 1 / V)), probe)
    np.testing.assert_allclose(uniform["loss"], np.log(V), rtol=1e-5)
    entropy = probe.entropy.mean(-1).numpy()
    np.testing.assert_allclose(uniform["kl"], np.log(V) - entropy, rtol=1e-4)


class Copier:
    """Expects what followed the last occurrence of the present token; else any token alike."""

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*ids.shape, V)
        for row, logits in zip(ids.tolist(), out, strict=True):
            for t, token in enumerate(row):
                before = [s for s in range(t) if row[s] == token]
                if before:
                    logits[t, row[before[-1] + 1]] = 9.0
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_a_copying_model_gains_from_the_order_and_a_bigram_model_does_not() -> None:
    copies, shuffled = phases.repeated(np.arange(1, V + 1), 8, 6, seed=0, without=3)
    assert not (copies == 3).any()
    assert all(len(set(row[:8])) == 8 for row in copies.tolist())
    np.testing.assert_array_equal(copies[:, :8], copies[:, 8:])
    np.testing.assert_array_equal(shuffled[:, 8:], copies[:, 8:])
    np.testing.assert_array_equal(np.sort(shuffled[:, :8]), np.sort(copies[:, :8]))
    first, second = phases.half_losses(Copier(), copies)
    (other,) = phases.half_losses(Copier(), shuffled, (1,))
    np.testing.assert_allclose(first, np.log(V), rtol=1e-5)
    assert second.max() < 0.01 and other.min() > 2
    table = TableModel(np.random.default_rng(0).dirichlet(np.ones(V), V))
    one, two = phases.half_losses(table, copies)
    np.testing.assert_allclose(one, two)
    np.testing.assert_allclose(two, phases.half_losses(table, shuffled, (1,))[0])


def test_too_few_tokens_for_a_sequence_are_refused() -> None:
    with pytest.raises(DataError, match="has 3 different tokens, a sequence needs 8"):
        phases.repeated(np.array([0, 5, 5, 5, 0]), 8, 2, seed=0)


def test_prefix_matching_by_hand() -> None:
    """Head 0 looks from each second occurrence to the token after the first, head 1 to the first
    itself, head 2 at everything before alike."""
    length, t = 5, 9
    pattern = torch.zeros(2, 3, t, t)
    for i in range(length, t):
        pattern[:, 0, i, i - length + 1] = 1
        pattern[:, 1, i, i - length] = 1
    pattern[:, 2] = torch.tril(torch.ones(t, t)) / torch.arange(1, t + 1)[:, None]
    found = phases.prefix_matching(pattern, length)
    np.testing.assert_allclose(found, [[1, 0, phases.prefix_chance(length)]] * 2, rtol=1e-6)


def test_a_real_model_is_measured_by_layer_and_head() -> None:
    config = ModelConfig(n_layers=3, d_model=24, n_heads=3, vocab_size=V, max_seq_len=24)
    model = GPTNeoX(config).requires_grad_(False)
    model.init_weights(0)
    ngrams = phases.Ngrams.count(text(), V)
    probe = probe_of(ngrams, text(5, seed=3))
    found = phases.text_scores(model, probe) | phases.induction_scores(model, probe)
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {
        "loss": (5,), "kl": (3, 5), "lens": (3, 5), "copies": (3, 6), "prefix": (3, 3, 6)
    }  # fmt: skip
    # the lens before the last block is the model without that block
    ids = torch.from_numpy(probe.rows)[:, :-1]
    with hooks.patch(model, "layers.2.attention", torch.zeros_like):
        with hooks.patch(model, "layers.2.mlp", torch.zeros_like):
            early = torch.log_softmax(model(ids), -1)
    final = torch.log_softmax(model(ids), -1)
    places = probe.places[:: phases.LENS_EVERY]
    apart = (final.exp() * (final - early)).sum(-1)[:, places].mean(1)
    np.testing.assert_allclose(found["lens"][2], apart, rtol=1e-3)
    assert (found["lens"] > 0).all()
    chance = phases.prefix_chance(8)
    np.testing.assert_allclose(found["prefix"].mean(-1), chance, rtol=0.1)  # untrained
