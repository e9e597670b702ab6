"""Generate text token by token, with a cache of keys and values.

Prompts in a batch are padded on the right, so the index of a slot in the cache is the position of
its token. A new token overwrites a slot of padding, and attends only to the slots up to its own.

Decoding is greedy by default. Otherwise, temperature, top-k and top-p are applied in this order.
The random numbers depend only on the seed and on the index of the prompt, not on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pythia_core.errors import ConfigError, DataError
from pythia_core.kernels.rotary import rotary_reference
from pythia_core.util.progress import bar as progress_bar

if TYPE_CHECKING:
    from pythia_core.model import GPTNeoX

SLOT_BUDGET = 8192
"""Maximum number of cache slots of a batch, with padding. Results do not depend on it."""

Stop = Callable[[Sequence[int]], bool]
"""Returns whether to stop, given all new tokens of a prompt so far."""


@dataclass(frozen=True)
class Sampling:
    """A rule for choosing the next token. With temperature 0, the most likely token is chosen."""

    temperature: float = 0.0
    top_k: int = 0
    """Sample from this number of most likely tokens; 0: no limit."""
    top_p: float = 1.0
    """Sample from the fewest most likely tokens whose total probability is at least this."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ConfigError(
                f"{self} is invalid: temperature must be at least 0 (0: greedy), top_k at least 0 "
                "(0: no limit), and top_p above 0 and at most 1"
            )


GREEDY = Sampling()


class KVCache:
    """The keys (after rotary) and values of every layer, for rows of different lengths.

    The first forward pass reads whole prompts. Every later pass adds one token to each row.

    Args:
        lengths: number of tokens of each prompt, without padding.
        n_slots: number of tokens for which every row has space.
    """

    def __init__(self, lengths: Sequence[int], n_slots: int) -> None:
        self.n_slots = n_slots
        self._lengths = list(lengths)
        self._layers: list[Tensor] = []  # per layer: (2, rows, heads, slots, head_dim)
        self._slots: Tensor | None = None  # slot of each row's new token; None in the first pass
        self._mask: Tensor | None = None  # (rows, 1, 1, slots); None: rows attend to all slots

    def next_token(self, device: torch.device) -> None:
        """Prepare the cache for a forward pass that adds one token to each row."""
        self._slots = torch.tensor(self._lengths, device=device)
        self._lengths = [n + 1 for n in self._lengths]
        self._rows = torch.arange(len(self._lengths), device=device)
        self._used = max(self._lengths)
        self._mask = None
        if min(self._lengths) < self._used:
            slots = torch.arange(self._used, device=device)
            self._mask = (slots <= self._slots[:, None])[:, None, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows except those with the indices `rows`."""
        self._lengths = [self._lengths[row] for row in rows]
        index = torch.tensor(rows, device=self._layers[0].device)
        self._layers = [layer.index_select(1, index) for layer in self._layers]

    def attend(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add the keys and values of new tokens to one layer's cache, and compute attention.

        Args:
            qkv: (rows, new tokens, heads, 3, head_dim), before the rotation.
            cos, sin: rotary tables, (slots, rotary_dims / 2).

        Returns:
            (rows, new tokens, heads * head_dim)
        """
        if self._slots is None:
            return self._read_prompts(qkv, cos, sin)
        q, k, v = qkv[:, 0].unbind(2)  # each (rows, heads, head_dim)
        angles = cos[self._slots][:, None], sin[self._slots][:, None]
        q, k = rotary_reference(q, *angles), rotary_reference(k, *angles)
        keys, values = self._layers[layer]
        keys[self._rows, :, self._slots], values[self._rows, :, self._slots] = k, v
        used = slice(None), slice(None), slice(self._used)
        out = scaled_dot_product_attention(
            q[:, :, None], keys[used], values[used], attn_mask=self._mask
        )
        return out.transpose(1, 2).flatten(2)

    def _read_prompts(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Do the work of `attend` in the first pass, in which the new tokens are whole prompts."""
        rows, width, heads, _, dim = qkv.shape
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
        angles = cos[:width], sin[:width]
        q, k = rotary_reference(q, *angles), rotary_reference(k, *angles)
        layer = qkv.new_zeros(2, rows, heads, self.n_slots, dim)
        layer[0, :, :, :width], layer[1, :, :, :width] = k, v
        self._layers.append(layer)
        # padding is on the right, so the causal mask hides it from every prompt
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def sample_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Choose the next token of every row of `logits` (n, vocab_size); return int64[n].

    Args:
        uniforms: float[n], random numbers in [0, 1), unused if temperature is 0.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = (logits.double() / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    probabilities = scaled.values.softmax(-1)
    if sampling.top_k:
        probabilities[:, sampling.top_k :] = 0
    probabilities /= probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= sampling.top_p] = 0
    cumulative = probabilities.cumsum(-1)
    targets = uniforms[:, None] * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, targets, right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # rounding could go past it
    return scaled.indices.gather(-1, rank.minimum(last))[:, 0]


@torch.inference_mode()
def generate(
    model: GPTNeoX,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    sampling: Sampling = GREEDY,
    stop: Stop | None = None,
    truncate: bool = False,
    slot_budget: int = SLOT_BUDGET,
    progress: bool = False,
) -> list[list[int]]:
    """Return the token ids of a continuation of at most `max_new` tokens for every prompt.

    Args:
        prompts: the token ids of each prompt.
        stop: called after each new token with all new tokens of the prompt; if it returns True, the
            continuation of this prompt ends.
        truncate: drop the beginning of a prompt that is too long.
        slot_budget: maximum number of tokens in a batch, with padding, to bound the memory.

    Raises:
        DataError: a prompt is empty, or is too long and `truncate` is false.
        ConfigError: the model's context is too short for `max_new` tokens.
    """
    longest = model.config.max_seq_len - max_new
    if max_new < 1 or longest < 1:
        raise ConfigError(
            f"max_new={max_new} is not between 1 and {model.config.max_seq_len - 1}: with this "
            "model, a prompt and its continuation may together have at most "
            f"{model.config.max_seq_len} tokens"
        )
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(
                f"prompt {number} is empty; to generate text without a prompt, pass the list with "
                "only the end-of-document token, [eod_id]"
            )
        if len(prompt) > longest and not truncate:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens, but may have at most {longest} if "
                f"max_new={max_new}; shorten the prompt, lower max_new (--tokens), or, in "
                "Python, pass truncate=True"
            )
    rows = [list(prompt)[-longest:] for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    continuations: list[list[int]] = [[] for _ in rows]
    with progress_bar(progress, total=len(rows), desc="generating", unit="text") as bar:
        while order:
            n = max(1, slot_budget // (len(rows[order[0]]) + max_new))
            batch, order = order[:n], order[n:]
            new = _batch(model, [rows[i] for i in batch], batch, max_new, sampling, stop)
            for index, tokens in zip(batch, new, strict=True):
                continuations[index] = tokens
            bar.update(len(batch))
    return continuations


def _batch(
    model: GPTNeoX,
    prompts: list[list[int]],
    indices: list[int],
    max_new: int,
    sampling: Sampling,
    stop: Stop | None,
) -> list[list[int]]:
    """Generate the new tokens of a batch of prompts, which are sorted by descending length.

    `indices` are the positions of the prompts in the whole list. The random numbers of a prompt are
    seeded with its position.
    """
    device = next(model.parameters()).device
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), lengths[0], dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    uniforms = np.zeros((len(prompts), max_new))
    if sampling.temperature:
        streams = (np.random.default_rng([sampling.seed, index]) for index in indices)
        uniforms = np.stack([stream.random(max_new) for stream in streams])
    cache = KVCache(lengths, lengths[0] + max_new)
    states = model.hidden(ids.to(device), cache)
    states = states[torch.arange(len(prompts)), torch.tensor(lengths) - 1]
    new: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))  # active[i]: the prompt in row i of the cache
    unfinished = set(active)
    for step in range(max_new):
        column = torch.from_numpy(uniforms[active, step]).to(device)
        tokens = sample_tokens(model.logits(states), sampling, column)
        for row, token in zip(active, tokens.tolist(), strict=True):
            if row in unfinished:
                new[row].append(token)
                if stop and stop(new[row]):
                    unfinished.remove(row)
        if not unfinished or step == max_new - 1:
            break
        if 2 * len(unfinished) <= len(active):  # compacting takes time, so not after every token
            rows = [i for i, row in enumerate(active) if row in unfinished]
            cache.keep(rows)
            tokens, active = tokens[rows], [active[i] for i in rows]
        cache.next_token(device)
        states = model.hidden(tokens[:, None], cache)[:, 0]
    return new


def generate_texts(
    model: GPTNeoX,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    max_new: int,
    eod_id: int,
    until: Sequence[str] = (),
    sampling: Sampling = GREEDY,
    truncate: bool = False,
    progress: bool = False,
) -> list[str]:
    """Generate a continuation of each prompt, and return it as text.

    A continuation ends before the end-of-document token, before the first occurrence of any string
    in `until`, or after `max_new` tokens.

    Args:
        prompts: texts or token ids; an empty text means the beginning of a document.

    Raises:
        DataError, ConfigError: as in `generate`.
    """
    ids = [
        tokenizer.encode(prompt, add_special_tokens=False).ids or [eod_id]
        if isinstance(prompt, str)
        else prompt
        for prompt in prompts
    ]
    ends = [end for end in until if end]
    # tokens in which a new end can be: one per byte, and four more to begin at a whole character
    tail = max((len(end.encode()) for end in ends), default=0) + 4

    def stop(tokens: Sequence[int]) -> bool:
        """Return whether the document has ended or a string of `until` has been generated."""
        if tokens[-1] == eod_id:
            return True
        text = tokenizer.decode(tokens[-tail:]) if ends else ""
        return any(end in text for end in ends)

    new = generate(model, ids, max_new, sampling, stop, truncate, progress=progress)
    return [cut_at(tokenizer.decode([t for t in row if t != eod_id]), ends) for row in new]


def cut_at(text: str, ends: Sequence[str]) -> str:
    """Cut the text before the first occurrence of any string in `ends`, if there is one."""
    return text[: min((text.index(end) for end in ends if end in text), default=len(text))]
