"""Our scorer and the evaluation harness agree on every item of every task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_tasks import MADE, made

from pythia_core import evaluate
from pythia_core.benchmarks import (
    TaskMeasurement,
    build,
    build_all,
    encode_pair,
    outcomes,
    prompt_of,
)
from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError
from pythia_core.model import GPTNeoX
from pythia_core.tasks import TASKS
from pythia_core.tokenizer import train_bpe

lm_eval = pytest.importorskip("lm_eval", reason="the evaluation harness is not installed")

LENGTH = 56


@pytest.fixture(scope="module")
def tokenizer():
    texts = [str(item) for task in MADE for item in made(task, 30)]
    return train_bpe(iter(texts), 420)


@pytest.fixture(scope="module")
def model() -> GPTNeoX:
    """Random, and sharp enough for answers to differ clearly."""
    made = GPTNeoX(ModelConfig(2, 32, 2, 512, max_seq_len=LENGTH))
    made.init_weights(5)
    with torch.no_grad():
        made.embed_out.weight *= 6
    return made.eval().requires_grad_(False)


def compare(model: GPTNeoX, tokenizer, built: list) -> None:
    from pythia_core.harness import adapter
    from pythia_core.harness_tasks import evaluate_with_harness

    found = evaluate_with_harness(adapter(model, tokenizer, 0, model.config.max_seq_len), built)
    assert set(found) == {each.key for each in built}
    ours = TaskMeasurement(tuple(built), model.config.max_seq_len)(model, 0)
    for each in built:
        theirs = found[each.key]
        scores = evaluate.score(model, evaluate.pack(each.requests, model.config.max_seq_len))
        np.testing.assert_allclose(np.concatenate(theirs.logprob), scores.logprob, atol=1e-4)
        np.testing.assert_array_equal(theirs.acc, ours[f"{each.key}_acc"])
        np.testing.assert_array_equal(theirs.acc_norm, ours[f"{each.key}_acc_norm"])
        assert theirs.metrics["acc"] == pytest.approx(ours[f"{each.key}_acc"].mean())


def test_every_task_and_item_zero_and_few_shot(model: GPTNeoX, tokenizer) -> None:
    encode = evaluate.encoder(tokenizer)
    built = [
        build(task, made(task, 30)[:12], made(task, 30)[12:], shots, encode, LENGTH)
        for task in TASKS
        for shots in (0, 2)
    ]
    assert any(not each.fits.all() for each in built)  # cut prompts are compared as well
    assert any(each.fits.all() for each in built)
    compare(model, tokenizer, built)


@pytest.mark.wheels
@pytest.mark.slow
def test_real_items(model: GPTNeoX, tokenizer) -> None:
    compare(model, tokenizer, build_all(list(TASKS), (0, 1), 12, tokenizer, LENGTH))


def test_outcomes_by_hand(tokenizer) -> None:
    built = build("arc_easy", made("arc_easy", 2), [], 0, evaluate.encoder(tokenizer), LENGTH)
    logprob = np.array([-4.0, -4.5, -9.0, -1.0, -8.0, -2.0])  # gold is the second of three
    scores = evaluate.Scores(logprob, np.ones(6, int), np.zeros(6, bool))
    found = outcomes(built, scores)
    assert found["acc"].tolist() == [False, False]
    assert found["acc_norm"].tolist() == [True, False]  # -4.5 / 5 characters beats -4 / 4
    assert found["logprob"].tolist() == [-4.5, -8.0]


def test_what_does_not_fit_is_counted_or_left_out(tokenizer) -> None:
    items = made("piqa", 6)
    items[0]["sol1"] = "word " * 200
    items[1]["goal"] = "word " * 200
    built = build("piqa", items, [], 0, evaluate.encoder(tokenizer), LENGTH)
    assert built.n_left_out == 1
    assert built.items == tuple(items[1:])
    assert built.fits.tolist() == [False, True, True, True, True]
    with pytest.raises(ConfigError, match="shots=1: there are 0 solved examples"):
        build("piqa", items, [], 1, evaluate.encoder(tokenizer), LENGTH)


def test_context_and_continuation_are_split_as_in_the_harness(tokenizer) -> None:
    encode = evaluate.encoder(tokenizer)
    for context, continuation in (("Question: a\nAnswer:", " yes"), ("ends in spaces  ", "x")):
        request = encode_pair(context, continuation, encode)
        assert request.context + request.continuation == encode(context + continuation)
        assert request.context == encode(context.rstrip())
    prompt = prompt_of("piqa", made("piqa", 1)[0], made("piqa", 3)[1:])
    assert prompt.contexts[0].count("Question:") == 3
    assert prompt.contexts[0].count("\n\n") == 2


def test_the_digest_follows_the_requests(tokenizer, tmp_path: Path) -> None:
    encode = evaluate.encoder(tokenizer)
    one = build("piqa", made("piqa", 4), [], 0, encode, LENGTH)
    other = build("piqa", made("piqa", 5), [], 0, encode, LENGTH)
    digests = {TaskMeasurement(b, LENGTH).digest for b in ((one,), (other,), (one, other))}
    assert len(digests) == 3
    assert TaskMeasurement((one,), LENGTH).digest in digests
