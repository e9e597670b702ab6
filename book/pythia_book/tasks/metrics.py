"""Tasks asked of a checkpoint without the harness, by its rules: every metric of every item.

An answer is chosen by the total log-probability of its continuation (`acc`) or by that per
character of the answer (`acc_norm`); LAMBADA counts a greedy match, and has ppl of its last words
(kept as logprob, in nats). Pairs of sentences have pct_stereotype and likelihood_difference, and
pct_stereotype_per_token, the paper's words ("lower perplexity"): the two differ where the sentences
have different numbers of tokens. Names are those of the released results.

Context and continuation are split as the harness does it: encoded together, cut where the encoded
context ends. A prompt longer than the model loses its beginning, as there; the number of items that
fit whole is kept, and an item of which not even a continuation fits is left out and counted.
Prompts are tokenised once, whatever the number of checkpoints (pythia_book.tasks.sweep). Tests hold
this to the harness on every item (pythia_book.tasks.harness_offline).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import estimate
from pythia_book.tasks.benchmarks import TASKS, Item, Prompt, WrittenTask, load_items, task_named
from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError
from pythia_core.evaluation import scoring
from pythia_core.evaluation.generate import written
from pythia_core.evaluation.scoring import Request
from pythia_core.model import GPTNeoX

if TYPE_CHECKING:
    from pythia_core.training.runs import Run

# --- scoring by the rules of the harness -----------------------------------------------------

DELIMITER = "\n\n"
"""Between the solved examples of a prompt, and before the question."""

Encode = Callable[[str], tuple[int, ...]]
Arrays = dict[str, np.ndarray]


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
        DataError, FetchError: see pythia_book.tasks.benchmarks.load_items.
    """
    encode = scoring.encoder(tokenizer)
    built = []
    for name in tasks:
        items, examples = load_items(name, limit, folder)
        built += [build(name, items, examples, k, encode, max_seq_len) for k in shots]
    return built


def outcomes(built: BuiltTask, scores: scoring.Scores) -> dict[str, np.ndarray]:
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
    """Several built tasks as one measurement: arrays "<task>_<shots>_<what>"."""

    built: tuple[BuiltTask, ...]
    max_seq_len: int
    name: str = "tasks"

    @cached_property
    def digest(self) -> str:
        parts = [
            [b.key, [(r.context, r.continuation) for r in b.requests], b.gold.tolist()]
            for b in self.built
        ]
        return stable_hash([scoring.VERSION, self.max_seq_len, parts])

    def __call__(self, model: scoring.Scorable, step: int) -> dict[str, np.ndarray]:
        found = {}
        for built in self.built:
            if built.requests:
                scores = scoring.score(model, scoring.pack(built.requests, self.max_seq_len))
                for what, values in outcomes(built, scores).items():
                    found[f"{built.key}_{what}"] = values
        return found


# --- all tasks at once, as studies ask them --------------------------------------------------

SHOTS = (0, 1)
LIMIT = 150
"""Items of a task."""
LEAST_FITTING = 0.2
"""Below this share of items that fit the model whole, a cell is a gap."""


def share_fitting(built: BuiltTask) -> float:
    """Share of the items whose whole prompt fits the model."""
    return float(built.fits.mean()) if len(built.fits) else 0.0


def built_tasks(
    run: Run,
    tasks: Sequence[str] = tuple(TASKS),
    shots: Sequence[int] = SHOTS,
    limit: int = LIMIT,
) -> tuple[list[BuiltTask], TaskMeasurement]:
    """All cells, and the measurement of those that fit a run's model well enough."""
    length = run.config.model.max_seq_len
    built = build_all(tasks, shots, limit, run.data.tokenizer, length)
    fitting = tuple(each for each in built if share_fitting(each) >= LEAST_FITTING)
    return built, TaskMeasurement(fitting, length)


def twin_rows(
    size: str, tasks: TaskMeasurement, both: Sequence[Arrays], draws: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Accuracy of the second minus the first of two models, item by item: one row per task (size,
    task, shots, value, low, high, n), and the zero-shot differences by task."""
    rows, zero = [], {}
    for each in tasks.built:
        first, second = (arrays[f"{each.key}_acc"].astype(float) for arrays in both)
        change = second - first
        e = estimate(change[None], draws, change=True, exact=True)
        rows.append({"size": size, "task": each.task, "shots": each.shots, **e.interval(),
                     "n": e.n_items})  # fmt: skip
        if each.shots == 0:
            zero[each.task] = change
    return rows, zero


# --- a task as a measurement -----------------------------------------------------------------

VERSION = 1
"""Part of the key under which results are kept: raise it when any number here would change."""


@dataclass(frozen=True)
class ChosenTask:
    """A task whose answers are scored, as a measurement: arrays by metric."""

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
        return stable_hash([scoring.VERSION, VERSION, self.max_seq_len, made, answers])

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        scores = scoring.score(model, scoring.pack(self.built.requests, self.max_seq_len))
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
    """A task whose answers are generated, as a measurement: arrays by metric."""

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
        folder: read `<folder>/<task>.jsonl` instead of the items in the wheel.

    Raises:
        ConfigError: more shots than examples. DataError, FetchError: see tasks.load_items.
    """
    task = task_named(name)
    shots = task.shots if shots is None else shots
    items, examples = load_items(name, limit, folder)
    encode = scoring.encoder(tokenizer)
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
