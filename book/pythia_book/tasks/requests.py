"""Benchmark tasks scored without the harness, by its rules: for every checkpoint of a suite.

An answer is chosen by the total log-probability of its continuation (`acc`) or by that per
character of the answer (`acc_norm`); LAMBADA counts a greedy match. Context and continuation are
split as the harness does it: encoded together, cut where the encoded context ends. A prompt longer
than the model loses its beginning, as there; how many items fit whole is kept, and an item of
which not even a continuation fits is left out and counted.

Tests hold this to the harness on every item (pythia_book.tasks.harness_tasks). Not here: items and
prompts (pythia_book.tasks.tasks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pythia_book.tasks.tasks import Item, Prompt, load_items, task_named
from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError
from pythia_core.evaluation import scoring as evaluate
from pythia_core.evaluation.scoring import Request

DELIMITER = "\n\n"
"""Between the solved examples of a prompt, and before the question."""

Encode = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class BuiltTask:
    """One task at one number of shots, as requests for one tokenizer and model length."""

    task: str
    shots: int
    items: tuple[Item, ...]
    """The items that are scored; those that cannot be are left out."""
    examples: tuple[Item, ...]
    requests: tuple[Request, ...]
    """Every answer of every item, item by item."""
    first: np.ndarray
    """int64[items + 1]: where each item's requests begin."""
    lengths: np.ndarray
    """int64[requests]: characters of the answers."""
    gold: np.ndarray
    """int64[items]."""
    fits: np.ndarray
    """bool[items]: the whole prompt fits the model."""
    n_left_out: int

    @property
    def key(self) -> str:
        return f"{self.task}_{self.shots}"


def encode_pair(context: str, continuation: str, encode: Encode, eod_id: int = 0) -> Request:
    """Context and continuation as the harness splits them; for an empty context, EOD."""
    if not context:
        return Request((eod_id,), encode(continuation))
    bare = context.rstrip()
    whole = encode(bare + context[len(bare) :] + continuation)
    n = len(encode(bare))
    return Request(whole[:n], whole[n:])


def prompt_of(task: str, item: Item, examples: Sequence[Item]) -> Prompt:
    """The prompt of an item behind its solved examples."""
    ask = task_named(task).prompt
    prompt = ask(item)
    before = "".join(ask(example).solved + DELIMITER for example in examples)
    contexts = tuple(before + context for context in prompt.contexts)
    return Prompt(contexts, prompt.continuations, prompt.lengths, prompt.gold)


def build(
    task: str,
    items: Sequence[Item],
    examples: Sequence[Item],
    shots: int,
    encode: Encode,
    max_seq_len: int,
    eod_id: int = 0,
) -> BuiltTask:
    """Requests of a task whose answers are chosen.

    Raises:
        ConfigError: more shots than examples. DataError: unknown task.
    """
    if not 0 <= shots <= len(examples):
        raise ConfigError(f"shots={shots}: there are {len(examples)} solved examples of {task}")
    kept, requests, lengths, gold, fits, first = [], [], [], [], [], [0]
    for item in items:
        prompt = prompt_of(task, item, examples[:shots])
        pairs = zip(prompt.contexts, prompt.continuations, strict=True)
        mine = [encode_pair(*pair, encode, eod_id) for pair in pairs]
        if max(len(r.continuation) for r in mine) > max_seq_len:
            continue
        kept.append(item)
        requests += mine
        lengths += prompt.lengths
        gold.append(prompt.gold)
        longest = max(len(r.context) + len(r.continuation) for r in mine)
        fits.append(longest - 1 <= max_seq_len)  # the last token is never fed
        first.append(len(requests))
    return BuiltTask(
        task, shots, tuple(kept), tuple(examples[:shots]), tuple(requests),
        np.array(first, np.int64), np.array(lengths, np.int64), np.array(gold, np.int64),
        np.array(fits, bool), len(items) - len(kept),
    )  # fmt: skip


def build_all(
    tasks: Sequence[str],
    shots: Sequence[int],
    limit: int,
    tokenizer: Any,
    max_seq_len: int,
    folder: str | Path | None = None,
) -> list[BuiltTask]:
    """Every task at every number of shots.

    Raises:
        DataError, FetchError: see pythia_book.tasks.tasks.load_items.
    """
    encode = evaluate.encoder(tokenizer)
    built = []
    for name in tasks:
        items, examples = load_items(name, limit, folder)
        built += [build(name, items, examples, k, encode, max_seq_len) for k in shots]
    return built


def outcomes(built: BuiltTask, scores: evaluate.Scores) -> dict[str, np.ndarray]:
    """acc, acc_norm (acc where the task has none): bool[items]; logprob: float64[items], of the
    right answer, in nats."""
    found: dict[str, list] = {"acc": [], "acc_norm": [], "logprob": []}
    normalised = task_named(built.task).normalised
    for low, high, gold in zip(built.first, built.first[1:], built.gold, strict=False):
        logprob = scores.logprob[low:high]
        found["logprob"].append(logprob[gold])
        single = high - low == 1
        right = scores.greedy[low] if single else np.argmax(logprob) == gold
        found["acc"].append(right)
        per_character = np.argmax(logprob / built.lengths[low:high]) == gold
        found["acc_norm"].append(per_character if normalised else right)
    kinds = {"acc": bool, "acc_norm": bool, "logprob": np.float64}
    return {name: np.array(values, kinds[name]) for name, values in found.items()}


@dataclass(frozen=True)
class TaskMeasurement:
    """Several built tasks as a measurement (studies.measured): arrays "<task>_<shots>_<what>"."""

    built: tuple[BuiltTask, ...]
    max_seq_len: int
    name: str = "tasks"

    @cached_property
    def digest(self) -> str:
        parts = [
            [b.key, [(r.context, r.continuation) for r in b.requests], b.gold.tolist()]
            for b in self.built
        ]
        return stable_hash([evaluate.VERSION, self.max_seq_len, parts])

    def __call__(self, model: evaluate.Scorable, step: int) -> dict[str, np.ndarray]:
        found = {}
        for built in self.built:
            if built.requests:
                scores = evaluate.score(model, evaluate.pack(built.requests, self.max_seq_len))
                for what, values in outcomes(built, scores).items():
                    found[f"{built.key}_{what}"] = values
        return found
