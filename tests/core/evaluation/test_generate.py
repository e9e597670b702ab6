"""Generation with a cache equals full recomputation, however prompts are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pythia_core.config import ModelConfig
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import ConfigError, DataError
from pythia_core.evaluation.generate import (
    GREEDY,
    Sampling,
    cut_at,
    generate,
    generate_texts,
    sample_tokens,
)
from pythia_core.model import GPTNeoX

SHAPES = {32: (2, 64, 2), 64: (2, 128, 2), 80: (1, 160, 2)}
"""Head dimension -> (layers, width, heads)."""


def random_model(shape: tuple[int, int, int], **changes: object) -> GPTNeoX:
    """A random model with large weights, so that the most likely token is clear."""
    model = GPTNeoX(ModelConfig(*shape, 384, max_seq_len=48, **changes))
    model.init_weights(3)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.query_key_value.weight *= 6
        model.embed_out.weight *= 20
    return model.eval().requires_grad_(False)


def prompts_of(*lengths: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 384, n).tolist() for n in lengths]


def generate_slowly(model: GPTNeoX, prompt: list[int], max_new: int) -> list[int]:
    """Greedy decoding that reads the whole prefix again for every token."""
    tokens = list(prompt)
    for _ in range(max_new):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("head_dim", SHAPES)
@pytest.mark.parametrize("parallel", [True, False])
def test_greedy_equals_full_recomputation(head_dim: int, parallel: bool) -> None:
    model = random_model(SHAPES[head_dim], parallel_residual=parallel)
    assert model.config.head_dim == head_dim
    prompts = prompts_of(5, 1, 28, 12, 12)
    found = generate(model, prompts, 20)
    assert found == [generate_slowly(model, prompt, 20) for prompt in prompts]
    assert len({token for tokens in found for token in tokens}) > 20, "the model repeats itself"


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 50, 0.9, seed=7)])
def test_results_do_not_depend_on_the_batch(budget: int, sampling: Sampling) -> None:
    model = random_model(SHAPES[32])
    prompts = prompts_of(3, 9, 4, 20)
    alone = generate(model, prompts, 12, sampling, slot_budget=1)
    assert generate(model, prompts, 12, sampling, slot_budget=budget) == alone


def test_rows_that_end_do_not_change_the_others() -> None:
    model = random_model(SHAPES[32])
    prompts = prompts_of(6, 3, 11, 8, 2)
    whole = generate(model, prompts, 16)
    ends = {tokens[k] for tokens, k in zip(whole, (0, 2, 5, 9, 15), strict=True)}
    stopped = generate(model, prompts, 16, stop=lambda tokens: tokens[-1] in ends)
    for tokens, all_tokens in zip(stopped, whole, strict=True):
        first = next(i for i, token in enumerate(all_tokens) if token in ends)
        assert tokens == all_tokens[: first + 1]
    assert len({len(tokens) for tokens in stopped}) > 2


def test_the_cache_gives_the_logits_of_a_full_pass() -> None:
    from pythia_core.evaluation.generate import KVCache

    model = random_model(SHAPES[64])
    ids = torch.tensor(prompts_of(10, 10))
    cache = KVCache([4, 4], 10)
    model.hidden(ids[:, :4], cache)
    for step in range(4, 10):
        cache.next_token(ids.device)
        states = model.hidden(ids[:, step : step + 1], cache)[:, 0]
        torch.testing.assert_close(states, model.hidden(ids)[:, step], atol=2e-5, rtol=2e-5)


def test_sampling_draws_from_the_tokens_that_transformers_would_keep() -> None:
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    torch.manual_seed(0)
    logits = torch.randn(1, 40) * 2
    for t, k, p in ((0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.6), (0.8, 12, 0.8)):
        left = logits / t
        if k:
            left = logits_process.TopKLogitsWarper(k)(None, left)
        if p < 1:
            left = logits_process.TopPLogitsWarper(p)(None, left)
        expected = left.softmax(-1)[0]
        n = 20_000
        uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        drawn = sample_tokens(logits.expand(n, -1), Sampling(t, k, p), uniforms)
        shares = torch.bincount(drawn, minlength=40) / n
        torch.testing.assert_close(shares, expected, atol=2e-4, rtol=0)
        assert set(drawn.tolist()) <= set(expected.nonzero()[:, 0].tolist())


def test_samples_depend_on_the_seed_and_the_index() -> None:
    model = random_model(SHAPES[32])
    prompts = prompts_of(4, 4)
    one, again, other = (generate(model, prompts, 20, Sampling(1.5, seed=s)) for s in (1, 1, 2))
    assert one == again != other
    same = generate(model, [prompts[0]] * 2, 20, Sampling(1.5, seed=1))
    assert same[0] != same[1], "equal prompts must draw different numbers"


def test_a_prompt_that_is_too_long_is_an_error_or_truncated() -> None:
    model = random_model(SHAPES[32])
    prompts = prompts_of(45)
    with pytest.raises(
        DataError,
        match=r"prompt 0 has 45 tokens, but may have at most 38 if max_new=10; .*\(--tokens\)",
    ):
        generate(model, prompts, 10)
    assert generate(model, prompts, 10, truncate=True) == generate(model, [prompts[0][-38:]], 10)
    with pytest.raises(ConfigError, match="max_new=48 is not between 1 and 47"):
        generate(model, prompts, 48)
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generate(model, [[1], []], 4)
    with pytest.raises(ConfigError, match="top_p above 0 and at most 1"):
        Sampling(1.0, top_p=0)
    assert generate(model, [], 4) == []


def test_texts_are_cut_at_the_first_stop_string() -> None:
    tokenizer = train_bpe(iter(["a tale of two cities, in two parts\n"] * 40), 384)
    model = random_model(SHAPES[32])
    texts = ["a tale", "", "two cities,", "parts"]
    free = generate_texts(model, tokenizer, texts, 24, 0)
    ends = [free[0][5:7], free[2][9:10]]
    found = generate_texts(model, tokenizer, texts, 24, 0, until=["", *ends])
    assert found == [cut_at(text, ends) for text in free]
    assert found != free
    assert cut_at("one\ntwo. three", [". ", "\n"]) == "one"


def test_without_a_cache_the_attention_kernel_is_called_as_before() -> None:
    """hidden() without a cache equals calling the attention kernel and the MLP by hand."""
    model = random_model(SHAPES[32])
    ids = torch.tensor(prompts_of(12))
    from pythia_core import kernels

    x = model.embed_in(ids).flatten(0, 1)
    rotary = model.rotary(12, ids.device)
    for layer in model.layers:
        qkv = layer.attention.query_key_value(layer.input_layernorm(x)).view(1, 12, 2, 3, 32)
        attended = layer.attention.dense(kernels.attention(qkv, *rotary).flatten(0, 1))
        x = x + (attended + layer.mlp(layer.post_attention_layernorm(x)))
    assert torch.equal(model.final_layer_norm(x).view(1, 12, -1), model.hidden(ids))
