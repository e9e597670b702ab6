"""Compute log-likelihoods of continuations and texts, held-out loss, and last-word accuracy.

Scores are defined as in the evaluation harness that computed the published scores of the released
models:

- The log-probability of a continuation is the *sum* of the log-probabilities of its tokens.
- A text without context is scored after one end-of-document token.
- A continuation is "greedy" if each of its tokens is the most likely one.

Requests are tokenized and packed into batches (`pack`) only once, for all checkpoints. Logits are
computed in fp32, and only at positions that predict a token of a continuation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from pythia_core.errors import ConfigError, DataError
from pythia_core.kernels import native
from pythia_core.kernels.attention import tree_attention
from pythia_core.kernels.cross_entropy import check_targets, target_log_probabilities
from pythia_core.model import GPTNeoX
from pythia_core.util.progress import bar as progress_bar

VERSION = 3
"""Part of the cache key: raise it when a change to this module alters results."""
TOKEN_BUDGET = 2048
"""Tokens per batch, with padding; small, to fit a CPU's caches. Results do not depend on it."""
TREE_TOKENS = 128
"""Longest row, in tokens, that several inputs may share. Results do not depend on it."""
MIN_PREFIX = 4
"""Shortest common prefix, in tokens, with which two inputs share a row."""
LOGIT_ROWS = 1024
"""Number of positions whose logits are in memory at a time, where no fused kernel is available."""


class Scorable(Protocol):
    """A model with the methods that scoring needs."""

    def hidden(self, ids: torch.Tensor) -> torch.Tensor: ...  # [B, T] -> [B, T, d]
    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...  # [..., d] -> [..., V]


def hidden_at(
    model: Scorable, ids: torch.Tensor, at: torch.Tensor, trees: PrefixTrees | None = None
) -> torch.Tensor:
    """Return the hidden states [n, d] of a model at some of the positions of `ids` [B, T].

    Args:
        at: int64[n], indices into the B * T positions.
        trees: computes attention if the rows of `ids` are trees of texts.
    """
    if isinstance(model, GPTNeoX):
        return model.hidden(ids, trees, at)
    if trees is None:
        return model.hidden(ids).flatten(0, 1)[at]
    states = []  # any other model reads the text of one position at a time
    for position in at.tolist():
        row, last = divmod(position, ids.shape[1])
        text = ids[row, : last + 1][trees.ends[row, : last + 1] > last]
        states.append(model.hidden(text[None])[0, -1])
    return torch.stack(states)


@dataclass(frozen=True)
class PrefixTrees:
    """Rows that are trees of tokens, in depth-first order. Texts with a common beginning share it.

    `GPTNeoX.hidden` accepts a PrefixTrees as its `cache`.
    """

    positions: torch.Tensor
    """int64[B, T]: the position of every token in its text."""
    ends: torch.Tensor
    """int64[B, T]: for each token, the index after its last descendant."""

    @property
    def n_slots(self) -> int:
        """One more than the largest position."""
        return int(self.positions.max()) + 1

    def attend(
        self, layer: int, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Compute kernels.attention.tree_attention. Row i of `cos` and `sin` is for position i."""
        return tree_attention(qkv, cos[self.positions], sin[self.positions], self.ends)


@dataclass(frozen=True)
class Request:
    """A request for the log-probability of a continuation after a context.

    Context and continuation are token ids, and neither may be empty.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """The result of `score`. Each array has one entry per request, in the order of the requests."""

    logprob: np.ndarray
    """float64[n], nats: the log-probability of the continuation, summed over its tokens."""
    n_tokens: np.ndarray
    """int64[n]: number of tokens in the continuation."""
    greedy: np.ndarray
    """bool[n]: whether every token of the continuation is the most likely one at its position."""

    @property
    def per_token(self) -> np.ndarray:
        """The mean log-probability per token of each continuation, float64[n] in nats per token.

        This is minus the logarithm of the perplexity, by which the paper compares sentences.
        """
        return self.logprob / self.n_tokens


@dataclass(frozen=True)
class _Batch:
    """A padded batch of requests: its inputs, and which positions predict which target tokens."""

    ids: np.ndarray  # int64[B, T], padded on the right with 0
    positions: np.ndarray  # int64[B, T]: see PrefixTrees
    ends: np.ndarray  # int64[B, T]: see PrefixTrees
    slots: np.ndarray  # int64[p]: distinct flat positions in `ids` at which to compute logits
    slot_of: np.ndarray  # int64[q]: index into `slots` for every target, ascending
    targets: np.ndarray  # int64[q]: tokens of the continuations
    request_index: np.ndarray  # int64[q]: request of every target


@dataclass(frozen=True)
class PackedRequests:
    """A list of requests, packed into padded batches by `pack`, with the longest requests first."""

    batches: tuple[_Batch, ...]
    n_tokens: np.ndarray
    """int64[n]: number of tokens in the continuation of each request, in the original order."""

    def __len__(self) -> int:
        return len(self.n_tokens)


def pack(
    requests: Sequence[Request], max_seq_len: int, token_budget: int = TOKEN_BUDGET
) -> PackedRequests:
    """Sort requests by length and pack them into padded batches of at most `token_budget` tokens.

    Requests with the same inputs, e.g. one context with several one-token continuations, are scored
    together. Inputs with a common prefix share a row, which has the prefix only once (see
    PrefixTrees). If a request is longer than `max_seq_len`, the beginning of its context is
    dropped. A row longer than `token_budget` has a batch of its own.

    Raises:
        DataError: a context or continuation is empty, or a continuation is longer than
            `max_seq_len`.
        ConfigError: `token_budget` is below 1.
    """
    if token_budget < 1:
        raise ConfigError(f"token_budget must be at least 1, got {token_budget}")
    rows: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        size = len(request.continuation)
        if not request.context or not size:
            problem = (
                "context; pass the end-of-document token as its context"
                if size
                else "continuation; leave this request out"
            )
            raise DataError(f"request {index} has an empty {problem}")
        if size > max_seq_len:
            raise DataError(
                f"the continuation of request {index} has {size} tokens, but may have at most "
                f"max_seq_len={max_seq_len}; shorten the continuation or raise max_seq_len"
            )
        inputs = (request.context + request.continuation)[:-1][-max_seq_len:]
        rows.setdefault(inputs, []).append(index)
    trees = _merge_prefixes(rows, min(max_seq_len, TREE_TOKENS))
    trees.sort(key=lambda tree: len(tree.ids), reverse=True)
    batches, start = [], 0
    while start < len(trees):
        width = len(trees[start].ids)
        stop = start + max(1, token_budget // width)
        batches.append(_lay_out(trees[start:stop], width, requests))
        start = stop
    n_tokens = np.array([len(request.continuation) for request in requests], np.int64)
    return PackedRequests(tuple(batches), n_tokens)


@dataclass
class _PrefixTree:
    """The inputs of requests, with common beginnings only once, in depth-first order."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    requests: list[tuple[int, list[int]]] = field(default_factory=list)
    """The index of every request, and the indices in `ids` of its inputs."""


def _merge_prefixes(rows: dict[tuple[int, ...], list[int]], n_tokens: int) -> list[_PrefixTree]:
    """Put inputs that begin with the same tokens into trees.

    Args:
        rows: maps inputs to the indices of the requests with these inputs.
        n_tokens: maximum number of tokens of a tree with more than one input.
    """
    trees: list[_PrefixTree] = []
    before: tuple[int, ...] = ()
    path: list[int] = []
    for inputs in sorted(rows):
        pairs = enumerate(zip(before, inputs, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(before), len(inputs)))
        if shared < MIN_PREFIX or len(trees[-1].ids) + len(inputs) - shared > n_tokens:
            trees.append(_PrefixTree())
            shared = 0
        tree = trees[-1]
        begin = len(tree.ids)
        stop = begin + len(inputs) - shared
        path = path[:shared] + list(range(begin, stop))
        tree.ids += inputs[shared:]
        tree.positions += range(shared, len(inputs))
        tree.ends += [0] * (stop - begin)
        for node in path:
            tree.ends[node] = stop
        tree.requests += [(index, path) for index in rows[inputs]]
        before = inputs
    return trees


def _lay_out(trees: list[_PrefixTree], width: int, requests: Sequence[Request]) -> _Batch:
    """Make one padded batch of trees, with rows of `width` tokens.

    Args:
        requests: the list of requests to which the indices in the trees refer.
    """
    ids = np.zeros((len(trees), width), np.int64)
    positions = np.tile(np.arange(width), (len(trees), 1))
    ends = np.full((len(trees), width), width)
    where: list[int] = []
    targets: list[int] = []
    request_index: list[int] = []
    for r, tree in enumerate(trees):
        size = len(tree.ids)
        ids[r, :size], positions[r, :size], ends[r, :size] = tree.ids, tree.positions, tree.ends
        for index, path in tree.requests:
            continuation = requests[index].continuation
            where += [r * width + node for node in path[-len(continuation) :]]
            targets += continuation
            request_index += [index] * len(continuation)
    order = np.argsort(where, kind="stable")
    slots, slot_of = np.unique(np.array(where, np.int64)[order], return_inverse=True)
    each = (np.array(x, np.int64)[order] for x in (targets, request_index))
    return _Batch(ids, positions, ends, slots, slot_of, *each)


@torch.no_grad()
def score(model: Scorable, packed: PackedRequests, progress: bool = False) -> Scores:
    """Score every request with a model.

    The result has the log-probability of each continuation, and whether the continuation is greedy.
    """
    device = device_of(model)
    logprob = np.zeros(len(packed), np.float64)
    greedy = np.ones(len(packed), bool)
    for batch in progress_bar(progress, iterable=packed.batches, desc="scoring", unit="batch"):
        ids, positions, ends, slots, slot_of, targets = (
            torch.from_numpy(a).to(device)
            for a in (batch.ids, batch.positions, batch.ends, batch.slots, batch.slot_of,
                      batch.targets)
        )  # fmt: skip
        plain = (batch.positions == np.arange(batch.ids.shape[1])).all()
        states = hidden_at(model, ids, slots, None if plain else PrefixTrees(positions, ends))
        logp, best = _log_probabilities(model, states, slot_of, targets)
        np.add.at(logprob, batch.request_index, logp.double().cpu().numpy())
        np.logical_and.at(greedy, batch.request_index, best.cpu().numpy())
    return Scores(logprob, packed.n_tokens, greedy)


def _log_probabilities(
    model: Scorable, states: torch.Tensor, index: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each target, and whether it is the most likely token.

    Args:
        states: [n, d], hidden states.
        index: int64[q], the state that predicts each target, ascending.
        targets: int64[q], token ids.

    Returns:
        float32[q], in nats, and bool[q].
    """
    if isinstance(model, GPTNeoX) and _is_plain(model.embed_out) and native.available(states):
        return target_log_probabilities(states, model.embed_out.weight, index, targets)
    begins = torch.arange(0, len(states) + LOGIT_ROWS, LOGIT_ROWS, device=states.device)
    bounds = torch.searchsorted(index, begins).tolist()
    parts = []
    for begin, (low, high) in zip(begins.tolist(), itertools.pairwise(bounds), strict=False):
        logits = model.logits(states[begin : begin + LOGIT_ROWS]).float()
        check_targets(targets[low:high], logits.shape[-1])
        row = index[low:high] - begin
        at_target = logits[row, targets[low:high]]
        parts.append((at_target - logits.logsumexp(-1)[row], at_target >= logits.amax(-1)[row]))
    logp, best = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(best)


def _is_plain(unembedding: torch.nn.Linear) -> bool:
    """Return whether the unembedding is in fp32 and has no hooks, so that C code may compute it."""
    hooked = unembedding._forward_hooks or unembedding._forward_pre_hooks
    return unembedding.weight.dtype == torch.float32 and not hooked


def device_of(model: Any) -> torch.device:
    """Return the device of a model's parameters; the CPU if the model has no parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


# --- texts -----------------------------------------------------------------------------------


def encoder(tokenizer: Any) -> Callable[[str], tuple[int, ...]]:
    """Make a function that returns the token ids of a text, without special tokens."""
    return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def text_requests(
    texts: Sequence[str], encode: Callable[[str], tuple[int, ...]], eod_id: int
) -> list[Request]:
    """Make one request per text, to score the whole text after one end-of-document token.

    The evaluation harness scores CrowS-Pairs in this way.

    Args:
        encode: a function that returns the token ids of a text.

    Raises:
        DataError: a text has no tokens.
    """
    requests = []
    for text in texts:
        ids = encode(text)
        if not ids:
            raise DataError(f"the text {text!r} has no tokens; remove empty texts")
        requests.append(Request((eod_id,), ids))
    return requests


def continuation_requests(
    contexts: Sequence[str],
    candidates: Sequence[str],
    encode: Callable[[str], tuple[int, ...]],
    eod_id: int,
) -> list[Request]:
    """Make a request for every candidate after every context, ordered by context, then candidate.

    An end-of-document token precedes each context.

    Args:
        candidates: the possible continuations, each with a leading space.
        encode: a function that returns the token ids of a text.

    Raises:
        DataError: a context ends in white space (which belongs to the candidate).
    """
    for context in contexts:
        if context != context.rstrip():
            raise DataError(
                f"the context {context!r} ends in white space; move the white space to the "
                "beginning of the candidates"
            )
    heads = [(eod_id, *encode(context)) for context in contexts]
    tails = [encode(candidate) for candidate in candidates]
    return [Request(head, tail) for head in heads for tail in tails]


# --- rows of tokens --------------------------------------------------------------------------


def sample_windows(tokens: np.ndarray, seq_len: int, n_rows: int) -> np.ndarray:
    """Select up to `n_rows` rows of seq_len + 1 tokens, spread evenly over a stream of tokens.

    No token is a target in two rows. Adjacent rows share one token, as in training.

    Args:
        tokens: one flat array of token ids.

    Returns:
        The rows, [n, seq_len + 1], in the order of the stream.

    Raises:
        DataError: the stream is shorter than one row.
    """
    available = (len(tokens) - 1) // seq_len
    if available < 1:
        raise DataError(
            f"{len(tokens)} held-out tokens do not fill one row of {seq_len + 1} tokens; "
            "raise heldout_fraction or lower seq_len"
        )
    picks = np.linspace(0, available - 1, min(n_rows, available)).round().astype(int)
    return np.stack([np.asarray(tokens[i * seq_len : i * seq_len + seq_len + 1]) for i in picks])


@dataclass(frozen=True)
class RowScores:
    """The result of `score_rows`, for the S tokens that follow the first one of each row."""

    logprob: np.ndarray
    """float32[n, S], nats: the log-probability of each token."""
    greedy: np.ndarray
    """bool[n, S]: whether the token is the most likely one."""

    @property
    def losses(self) -> np.ndarray:
        """The mean loss of each row, float64[n] in nats per token."""
        return -self.logprob.mean(1, dtype=np.float64)

    def of_words(self, words: np.ndarray) -> Scores:
        """Return the scores of `words`, int[n, 3], given as `last_words` returns them."""
        parts = [(row, slice(start - 1, stop - 1)) for row, start, stop in words.tolist()]
        logprob = [self.logprob[part].sum(dtype=np.float64) for part in parts]
        greedy = [self.greedy[part].all() for part in parts]
        return Scores(np.array(logprob), words[:, 2] - words[:, 1], np.array(greedy, bool))


def score_rows(model: Scorable, rows: np.ndarray, token_budget: int = TOKEN_BUDGET) -> RowScores:
    """Score every token of a row except the first, each given all tokens before it in the row.

    Args:
        rows: int[n, S + 1], token ids.
        token_budget: number of tokens in a batch.
    """
    return _score_where(model, rows, np.ones((len(rows), rows.shape[1] - 1), bool), token_budget)


def score_words(
    model: Scorable, rows: np.ndarray, words: np.ndarray, token_budget: int = TOKEN_BUDGET
) -> Scores:
    """Score words in rows, each given all tokens before it in its row.

    Args:
        rows: int[n, S + 1], token ids.
        words: int[words, 3], as `last_words` returns them.
        token_budget: number of tokens in a batch.

    Raises:
        DataError: a word is empty, reaches beyond its row, or includes a row's first token.
    """
    for row, start, stop in words.tolist():
        if not (0 <= row < len(rows) and 1 <= start < stop <= rows.shape[1]):
            raise DataError(
                f"a word needs a row in 0..{len(rows) - 1} and 1 <= start < stop <= "
                f"{rows.shape[1]}; got row={row}, start={start}, stop={stop}"
            )
    wanted = np.zeros((len(rows), rows.shape[1] - 1), bool)
    for row, start, stop in words.tolist():
        wanted[row, start - 1 : stop - 1] = True
    return _score_where(model, rows, wanted, token_budget).of_words(words)


@torch.no_grad()
def _score_where(
    model: Scorable, rows: np.ndarray, wanted: np.ndarray, token_budget: int
) -> RowScores:
    """Compute `score_rows` only where `wanted`, bool[n, S], is true."""
    device = device_of(model)
    rows = np.asarray(rows).astype(np.int64)
    scores = RowScores(np.full(wanted.shape, np.nan, np.float32), np.zeros(wanted.shape, bool))
    (used,) = np.nonzero(wanted.any(1))
    step = max(1, token_budget // wanted.shape[1])
    for start in range(0, len(used), step):
        part = used[start : start + step]
        ids, mask = (torch.from_numpy(a[part]).to(device) for a in (rows, wanted))
        if mask.all():
            states = model.hidden(ids[:, :-1]).flatten(0, 1)
        else:
            states = hidden_at(model, ids[:, :-1], mask.flatten().nonzero()[:, 0])
        each = torch.arange(len(states), device=device)
        logp, best = _log_probabilities(model, states, each, ids[:, 1:][mask])
        row, token = np.nonzero(wanted[part])
        scores.logprob[part[row], token] = logp.cpu().numpy()
        scores.greedy[part[row], token] = best.cpu().numpy()
    return scores


def last_words(rows: np.ndarray, tokenizer: Any, eod_id: int, min_context: int = 24) -> np.ndarray:
    """Find the last word of every sentence in held-out rows.

    Predicting these words is like LAMBADA, but they need not depend on a long context, and names
    and function words are included. A last word is directly followed by a token starting with ".",
    "!" or "?". A word is a space and letters in one token, plus the letters-only tokens after it.
    Words at the very start of a row are left out, as are words with fewer than `min_context`
    tokens of their document before them in the row.

    Args:
        rows: int[n, S + 1], token ids.

    Returns:
        int64[words, 3]: the row, and the indices in the row of the word's first token and of the
        token after its last.
    """
    texts = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    begins = np.array([bool(re.fullmatch(r" [^\W\d_]+", t)) for t in texts])
    goes_on = np.array([bool(re.fullmatch(r"[^\W\d_]+", t)) for t in texts])
    ends = np.array([t[:1] in (".", "!", "?") for t in texts])
    words = []
    for number, row in enumerate(np.asarray(rows).astype(np.int64)):
        for stop in np.flatnonzero(ends[row]):
            start = stop - 1
            while start > 0 and goes_on[row[start]]:
                start -= 1
            if start < 1 or not begins[row[start]]:
                continue
            breaks = np.flatnonzero(row[:start] == eod_id)
            if start - (breaks[-1] + 1 if len(breaks) else 0) >= min_context:
                words.append((number, start, stop))
    return np.array(words, np.int64).reshape(-1, 3)
