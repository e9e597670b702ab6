"""Compares our speed of text generation with that of `generate` in `transformers`.

Both have the same weights, take turns in one process, and continue the same prompts greedily, in
fp32, by `NEW` tokens. `transformers` needs prompts padded on the left. It is measured with two
attention implementations, and the faster one counts. The weights are random. The unembedding is
scaled up, so that the most likely token is clearly ahead and both should write the same text.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

from pythia_core import hf
from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError
from pythia_core.evaluation.generate import generate
from pythia_core.model import GPTNeoX
from pythia_core.suite import scale_named
from pythia_core.util.machine import device_info
from pythia_core.util.progress import bar as progress_bar

PROMPT = (16, 48)
"""Lengths of the shortest and the longest prompt, in tokens."""
NEW = 64
BATCHES = (1, 16)
ATTENTION = ("eager", "sdpa")


def _model(config: ModelConfig) -> GPTNeoX:
    """Make a model with random weights and sharp predictions, ready to evaluate."""
    model = GPTNeoX(config)
    model.init_weights(0)
    with torch.no_grad():
        model.embed_out.weight *= 20
    return model.eval().requires_grad_(False)


def _baseline(model: GPTNeoX, attention: str) -> Callable[[list[list[int]]], list[list[int]]]:
    """Return a function that continues lists of token ids as `transformers` users would."""
    from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM

    settings = GPTNeoXConfig(**hf.hf_config(model.config), attn_implementation=attention)
    baseline = GPTNeoXForCausalLM(settings)
    baseline.load_state_dict(hf.to_hf_state(model.state_dict()))
    baseline.eval()
    options = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None
    )

    def continue_all(prompts: list[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = baseline.generate(input_ids=ids, attention_mask=mask, generation_config=options)
        return out[:, width:].tolist()

    return continue_all


def time_alternately(
    calls: dict[str, Callable[[], Any]], rounds: Iterable[Any]
) -> dict[str, float]:
    """Make each call once per round; return the median seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in rounds:
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def bench_size(
    config: ModelConfig, batch: int, rounds: int, progress: bool = True
) -> dict[str, Any]:
    """Measure how fast one model continues `batch` prompts.

    Returns:
        `non_embedding`: number of non-embedding parameters
        `batch`
        `tokens_per_s`: our speed
        `peer`: the fastest `transformers` implementation
        `peer_tokens_per_s`: speed of the peer
        `ratio`: our speed divided by the speed of the peer
        `equal_texts`: number of prompts that we and the peer continue with the same text
    """
    model = _model(config)
    rng = np.random.default_rng(batch)
    lengths = rng.integers(PROMPT[0], PROMPT[1] + 1, batch)
    prompts = [rng.integers(2, config.vocab_size, n).tolist() for n in lengths]
    implementations = {name: _baseline(model, name) for name in ATTENTION}
    implementations["ours"] = lambda prompts: generate(model, prompts, NEW)
    texts = {name: write(prompts) for name, write in implementations.items()}  # also warms up
    label = f"{config.n_params_non_embedding:,} params, {batch} texts"
    calls = {name: partial(write, prompts) for name, write in implementations.items()}
    seconds = time_alternately(calls, progress_bar(progress, iterable=range(rounds), desc=label))
    speed = {name: batch * NEW / median for name, median in seconds.items()}
    peer = max(ATTENTION, key=speed.__getitem__)
    same = sum(a == b for a, b in zip(texts["ours"], texts[peer], strict=True))
    return {
        "non_embedding": config.n_params_non_embedding,
        "batch": batch,
        "tokens_per_s": round(speed["ours"]),
        "peer": peer,
        "peer_tokens_per_s": round(speed[peer]),
        "ratio": round(speed["ours"] / speed[peer], 2),
        "equal_texts": same,
    }


def bench_generate(
    sizes: tuple[str, ...] = (), rounds: int = 5, progress: bool = True
) -> dict[str, Any]:
    """Measure the speed of text generation for each size, at each batch size in BATCHES.

    Args:
        sizes: sizes of the scale `laptop` (default: the smallest, the middle and the largest).
        rounds: how often each implementation is timed.

    Returns:
        `machine`
        `new_tokens`: tokens generated per prompt
        `prompt_tokens`: lengths of the shortest and the longest prompt
        `rows`: see `bench_size`

    Raises:
        ConfigError: fewer than 1 round.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    scale = scale_named("laptop")
    names = sizes or (scale.sizes[0], scale.sizes[len(scale.sizes) // 2], scale.sizes[-1])
    configs = {size: scale.run(size).model for size in names}
    rows = [
        {"size": size, **bench_size(config, batch, rounds, progress)}
        for size, config in configs.items()
        for batch in BATCHES
    ]
    return {"machine": device_info(), "new_tokens": NEW, "prompt_tokens": PROMPT, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """Format the result of `bench_generate` as a Markdown table."""
    machine = result["machine"]
    low, high = result["prompt_tokens"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, fp32; "
        f"prompts of {low} to {high} tokens, {result['new_tokens']} new ones each, greedy.",
        "",
        "| size | texts | ours, tokens/s | `transformers`' generate, tokens/s | ratio | equal |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['size']} | {r['batch']} | {r['tokens_per_s']:,} "
        f"| {r['peer_tokens_per_s']:,} ({r['peer']}) | **{r['ratio']:.2f}x** "
        f"| {r['equal_texts']} of {r['batch']} |"
        for r in result["rows"]
    ]
    return "\n".join(lines)
