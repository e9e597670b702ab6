"""The scorer agrees with a slow one on a toy model, and with scores worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gender_fakes import SENTENCES, ToyModel, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_model, tiny

from pythia_core.errors import ConfigError, DataError
from pythia_core.evaluation import scoring
from pythia_core.evaluation.scoring import Request
from pythia_core.kernels import native

VOCAB = 30
MODEL = ToyModel(VOCAB, seed=3).eval()


def slow_score(model: ToyModel, request: Request, max_seq_len: int) -> tuple[float, bool]:
    """(logprob, greedy) from the definition, one token at a time."""
    total, greedy = 0.0, True
    ids = list(request.context + request.continuation)
    first = max(0, len(ids) - 1 - max_seq_len)
    for at in range(len(request.context), len(ids)):
        fed = torch.tensor([ids[first:at]])
        row = torch.log_softmax(model.logits(model.hidden(fed))[0, -1].double(), -1)
        total += row[ids[at]].item()
        greedy &= int(row.argmax()) == ids[at]
    return total, greedy


def random_requests(count: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCAB, rng.integers(low, high)).tolist())

    return [Request(ids(1, 9), ids(1, 6)) for _ in range(count)]


@given(st.integers(0, 10_000), st.integers(1, 200), st.integers(6, 20))
@settings(max_examples=25, deadline=None)
def test_equals_the_definition_at_any_budget_and_truncation(seed, budget, max_seq_len):
    requests = random_requests(12, seed)
    requests += [Request(requests[0].context, (token,)) for token in range(VOCAB)]  # shared rows
    found = scoring.score(MODEL, scoring.pack(requests, max_seq_len, budget))
    for i, request in enumerate(requests):
        logprob, greedy = slow_score(MODEL, request, max_seq_len)
        assert found.logprob[i] == pytest.approx(logprob, abs=2e-4)
        assert found.greedy[i] == greedy
        assert found.n_tokens[i] == len(request.continuation)
    assert found.greedy[-VOCAB:].sum() == 1  # exactly one next token is the likeliest


def test_logits_in_chunks_give_the_same_scores(monkeypatch):
    requests = random_requests(40, 1)
    whole = scoring.score(MODEL, scoring.pack(requests, 32))
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 7)
    parts = scoring.score(MODEL, scoring.pack(requests, 32))
    np.testing.assert_allclose(parts.logprob, whole.logprob, atol=1e-5)
    np.testing.assert_array_equal(parts.greedy, whole.greedy)


def test_requests_with_one_context_share_a_row():
    packed = scoring.pack([Request((1, 2, 3), (token,)) for token in range(8)], 16)
    assert [batch.ids.shape for batch in packed.batches] == [(1, 3)]
    assert len(packed.batches[0].slots) == 1


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_inputs_that_begin_alike_are_read_once_and_scored_as_if_alone(
    parallel, compiled, monkeypatch
):
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    model = random_model(tiny(vocab_size=VOCAB, parallel_residual=parallel))
    rng = np.random.default_rng(1)
    start, middle = ((tuple(rng.integers(1, VOCAB, 7).tolist())) for _ in range(2))
    tails = [tuple(rng.integers(1, VOCAB, n).tolist()) for n in (1, 3, 2, 5)]
    requests = [Request(start, tail) for tail in tails]
    requests += [Request(start + middle, tail) for tail in tails]
    requests += [Request(start[:2], tail) for tail in tails]  # too short a common beginning
    requests += [Request(start * 4, tails[3])]  # its context is cut
    packed = scoring.pack(requests, 32)
    assert sum(len(batch.ids) for batch in packed.batches) == 7  # 2 trees; 5 inputs alone
    assert all((batch.positions < 32).all() for batch in packed.batches)
    found = scoring.score(model, packed)
    for i, request in enumerate(requests):
        logprob, greedy = slow_score(model, request, 32)
        assert found.logprob[i] == pytest.approx(logprob, abs=2e-5)
        assert found.greedy[i] == greedy


def test_budget_bounds_the_batches():
    packed = scoring.pack(random_requests(60, 2), 32, token_budget=40)
    assert len(packed.batches) > 5
    assert all(batch.ids.size <= 40 for batch in packed.batches)
    widths = [batch.ids.shape[1] for batch in packed.batches]
    assert widths == sorted(widths, reverse=True)


class Uniform(torch.nn.Module):
    """The same probabilities for every next token, whatever the input."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(probabilities).log())

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.table.expand(*hidden.shape[:-1], -1) + hidden


def test_numbers_worked_out_by_hand():
    model = Uniform([0.5, 0.25, 0.125, 0.125])
    requests = [Request((3,), (0, 0)), Request((3,), (0, 1, 2)), Request((2, 2), (1,))]
    found = scoring.score(model, scoring.pack(requests, 8))
    expected = [math.log(1 / 4), math.log(1 / 64), math.log(1 / 4)]
    np.testing.assert_allclose(found.logprob, expected, rtol=1e-6)
    np.testing.assert_allclose(found.per_token, np.array(expected) / [2, 3, 1], rtol=1e-6)
    assert found.greedy.tolist() == [True, False, False]
    rows = np.array([[0, 0, 1], [2, 3, 0]])
    losses = scoring.score_rows(model, rows).losses
    np.testing.assert_allclose(losses, [math.log(8) / 2, math.log(16) / 2], rtol=1e-6)


def test_scores_of_rows_do_not_depend_on_the_budget():
    rows = np.random.default_rng(0).integers(0, VOCAB, (9, 12)).astype(np.uint16)
    whole = scoring.score_rows(MODEL, rows)
    parts = scoring.score_rows(MODEL, rows, token_budget=11)
    np.testing.assert_allclose(parts.logprob, whole.logprob, atol=1e-5)
    assert whole.losses.shape == (9,)


def test_words_in_rows_are_scored_as_requests() -> None:
    rows = np.random.default_rng(0).integers(0, VOCAB, (9, 12))
    words = np.array([(0, 1, 2), (4, 3, 6), (4, 9, 12), (7, 5, 6)])
    for model in (MODEL, random_model(tiny(vocab_size=VOCAB))):
        requests = [Request(tuple(rows[r, :a]), tuple(rows[r, a:b])) for r, a, b in words]
        expected = scoring.score(model, scoring.pack(requests, 32))
        whole = scoring.score_rows(model, rows).of_words(words)
        for scores in (whole, scoring.score_words(model, rows, words)):
            np.testing.assert_allclose(scores.logprob, expected.logprob, atol=1e-5)
            np.testing.assert_array_equal(scores.greedy, expected.greedy)
            assert scores.n_tokens.tolist() == [1, 3, 3, 1]


@pytest.mark.parametrize("word", [(0, 0, 2), (0, 3, 3), (0, 3, 13), (9, 1, 2)])
def test_words_outside_of_their_rows_are_refused(word: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match=r"1 <= start < stop <= 12; got row="):
        scoring.score_words(MODEL, np.zeros((9, 12), np.int64), np.array([word]))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("token", [-1, VOCAB])
def test_targets_outside_of_the_vocabulary_are_refused(
    compiled: bool, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    model = random_model(tiny(vocab_size=VOCAB))
    with pytest.raises(DataError, match=f"target tokens must be in 0..{VOCAB - 1}, got"):
        scoring.score(model, scoring.pack([Request((1, 2), (3, token))], 8))


def test_sum_and_per_token_can_disagree():
    """A longer text can have a lower sum but a higher mean, so both are reported."""
    model = Uniform([0.5, 0.1, 0.2, 0.2])
    found = scoring.score(model, scoring.pack([Request((3,), (0,) * 4), Request((3,), (1,))], 8))
    assert found.logprob[0] < found.logprob[1]
    assert found.per_token[0] > found.per_token[1]


def test_texts_are_scored_after_one_eod():
    made = tokenizer()
    encode = scoring.encoder(made)
    model = ToyModel(made.get_vocab_size(), seed=1).eval()
    requests = scoring.text_requests(SENTENCES[:5], encode, 0)
    found = scoring.score(model, scoring.pack(requests, 128))
    for i, text in enumerate(SENTENCES[:5]):
        ids = encode(text)
        assert found.n_tokens[i] == len(ids)
        expected, _ = slow_score(model, Request((0,), ids), 128)
        assert found.logprob[i] == pytest.approx(expected, abs=1e-3)


def test_candidates_after_a_context_sum_below_one_and_follow_the_model():
    made = tokenizer()
    encode = scoring.encoder(made)
    model = ToyModel(made.get_vocab_size(), seed=1).eval()
    words = [" she", " he", " she would"]
    requests = scoring.continuation_requests(["The nurse said that"], words, encode, 0)
    logprob = scoring.score(model, scoring.pack(requests, 64)).logprob
    assert logprob.shape == (3,)
    she = Request((0, *encode("The nurse said that")), encode(" she"))
    assert logprob[0] == pytest.approx(slow_score(model, she, 64)[0], abs=1e-4)
    assert logprob[2] < logprob[0]  # all tokens of a longer candidate count
    assert np.exp(logprob[:2]).sum() < 1


def test_last_words_are_cut_as_documented():
    made = tokenizer()
    encode = scoring.encoder(made)
    text = "The nurse said that she would help the driver with the work! It was drivers? The"
    other = encode("It was late.")
    row = np.array([*other, 0, *encode(text)])
    words = scoring.last_words(np.array([[0] * len(row), row]), made, eod_id=0, min_context=4)
    assert words[:, 0].tolist() == [1, 1]  # the first document is too short
    assert [made.decode(row[a:b].tolist()) for _, a, b in words] == [" work", " drivers"]
    assert (words[:, 2] - words[:, 1]).tolist() == [1, 4]
    assert scoring.last_words(row[None], made, eod_id=0, min_context=60).shape == (0, 3)
    assert not len(scoring.last_words(np.array([encode("no sentence ends here")]), made, 0, 1))


def test_sampled_windows_share_one_token_and_spread_over_the_stream():
    stream = np.arange(101)
    rows = scoring.sample_windows(stream, 10, 99)
    assert rows.shape == (10, 11)
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])
    few = scoring.sample_windows(stream, 10, 3)
    assert few[:, 0].tolist() == [0, 40, 90]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: scoring.pack([Request((1,), ())], 8), DataError, "empty continuation"),
        (lambda: scoring.pack([Request((), (1,))], 8), DataError, "end-of-document"),
        (lambda: scoring.pack([Request((1,), (2,) * 9)], 8), DataError, "at most max_seq_len=8"),
        (lambda: scoring.pack([], 8, token_budget=0), ConfigError, "at least 1"),
        (lambda: scoring.sample_windows(np.arange(5), 10, 3), DataError, "held-out tokens"),
        (lambda: scoring.text_requests([""], lambda t: (), 0), DataError, "no tokens"),
        (
            lambda: scoring.continuation_requests(["He "], [" is"], lambda t: (1,), 0),
            DataError,
            "white space",
        ),
    ],
)
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_continuation_of_max_seq_len_tokens_fits():
    found = scoring.score(MODEL, scoring.pack([Request((1, 2, 3), (4,) * 8)], 8))
    expected, _ = slow_score(MODEL, Request((3,), (4,) * 8), 8)
    assert found.logprob[0] == pytest.approx(expected, abs=1e-4)


def test_scoring_leaves_no_trace_in_the_model():
    before = [p.clone() for p in MODEL.parameters()]
    scoring.score(MODEL, scoring.pack(random_requests(5, 5), 16))
    assert all(p.grad is None for p in MODEL.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, MODEL.parameters(), strict=True))
