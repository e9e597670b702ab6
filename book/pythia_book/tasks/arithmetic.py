"""Arithmetic questions, asked with and without solved examples in the prompt (paper section 3.3).

The questions are the paper's, "Q:What is 12 plus 7? A:", with first operands 0 to 99 and second
operands 1 to 50. pythia_book.corpora.equations plants sums in the training corpus.

    exact    the paper's measure: greedy decoding gives the right answer
    choice   the right answer is likelier than three wrong ones (chance is one in four); for models
             too small to generate answers
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import equations
from pythia_book.measurements import RequestMeasurement
from pythia_core.errors import ConfigError
from pythia_core.evaluation import scoring

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData

WRONG = equations.CHOICES - 1
"""Number of wrong answers to choose from."""
Encode = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class Question:
    """A sum of two numbers that a model is asked to solve."""

    first: int
    second: int
    held_out: bool
    """Whether this sum was never planted in the training text."""


def questions() -> list[Question]:
    """Return the sums to ask, in a fixed order.

    These are all sums that were never planted in the training text and, for each first operand,
    as many planted sums.
    """
    chosen = []
    for first in equations.FIRST:
        pairs = [Question(first, b, equations.held_out(first, b)) for b in equations.SECOND]
        held_out = [q for q in pairs if q.held_out]
        others = sorted((q for q in pairs if not q.held_out), key=_rank)
        chosen += held_out + sorted(others[: len(held_out)], key=lambda q: q.second)
    return chosen


def _rank(question: Question, salt: str = "ask") -> str:
    """Return a hash of a question, to sort questions in an order that looks random."""
    text = f"{salt} {question.first} {question.second}"
    return hashlib.sha256(text.encode()).hexdigest()


def prompt(question: Question, shots: int) -> str:
    """Return the text of a prompt: `shots` solved examples, then the question.

    The first operand of an example is never that of the question, and an example is never a sum
    that models are tested on.
    """
    lines = []
    while len(lines) < shots:
        text = f"example {question.first} {question.second} {len(lines)} "
        for attempt in range(1000):
            digest = hashlib.sha256(f"{text}{attempt}".encode()).digest()
            first = equations.FIRST[digest[0] * len(equations.FIRST) // 256]
            second = equations.SECOND[digest[1] * len(equations.SECOND) // 256]
            if first != question.first and not equations.held_out(first, second):
                lines.append(equations.equation(first, second))
                break
    return "".join(lines) + equations.question(question.first, question.second)


def answers(question: Question) -> list[str]:
    """Return the right answer, then three wrong answers: sums with the same first operand.

    Every answer ends in a newline: without the newline, " 6" would be the beginning of " 62".
    """
    others = [
        Question(question.first, second, False)
        for second in equations.SECOND
        if second != question.second
    ]
    others.sort(key=lambda other: _rank(other, f"wrong {question.second}"))
    seconds = [question.second, *(other.second for other in others[:WRONG])]
    return [f" {question.first + second}\n" for second in seconds]


def requests(
    chosen: Sequence[Question], shots: int, encode: Encode, eod_id: int, max_seq_len: int
) -> list[scoring.Request]:
    """Return the requests that score the answers to each question, question by question.

    Wrong answers are requested only if `shots` is 0.

    Raises:
        ConfigError: a question with its examples does not fit into the context.
    """
    all_requests = []
    for question in chosen:
        context = (eod_id, *encode(prompt(question, shots)))
        choices = answers(question)[: 1 if shots else None]
        all_requests += [scoring.Request(context, encode(answer)) for answer in choices]
    longest = max(len(r.context) + len(r.continuation) - 1 for r in all_requests)
    if longest > max_seq_len:
        each = (longest - 1) // (shots + 1)
        raise ConfigError(
            f"shots={shots}: a question with its examples has {longest} tokens, but the model "
            f"reads {max_seq_len}; set shots to at most {max(0, (max_seq_len - 1) // each - 1)}"
        )
    return all_requests


def margin(scores: dict[str, np.ndarray]) -> np.ndarray:
    """Return, in nats, the log-probability of each right answer minus the mean over its wrong ones.

    Args:
        scores: what a zero-shot `ArithmeticMeasurement` returns.
    """
    return scores["logprob"] - scores["wrong"].mean(1)


@dataclass(frozen=True)
class ArithmeticMeasurement(RequestMeasurement):
    """A measurement of how well a model solves n sums.

    `exact`: bool[n], whether greedy decoding gives the right answer;
    `logprob`: float32[n], the log-probability of the right answer, in nats;
    `choice`: bool[n], whether the right answer is likelier than all wrong ones; only zero-shot;
    `wrong`: float32[n, WRONG], the log-probabilities of the wrong answers; only zero-shot.
    """

    questions: tuple[Question, ...]
    requests: tuple[scoring.Request, ...]
    shots: int
    max_seq_len: int

    @classmethod
    def of(
        cls, data: PreparedData, shots: int, max_seq_len: int, planted: bool = True
    ) -> ArithmeticMeasurement:
        """Create the measurement that puts `shots` solved examples before each sum.

        With examples or without `planted`, only the sums that were never planted are asked, to save
        time.

        Raises:
            ConfigError: a question with its examples does not fit into the context.
        """
        chosen = [q for q in questions() if q.held_out or (planted and not shots)]
        encode = scoring.encoder(data.tokenizer)
        texts = requests(chosen, shots, encode, data.eod_id, max_seq_len)
        return cls(tuple(chosen), tuple(texts), shots, max_seq_len)

    @property
    def name(self) -> str:
        """The name of the measurement in the cache, e.g. "sums_4_shot"."""
        return f"sums_{self.shots}_shot"

    def __call__(self, model: scoring.Scorable, step: int) -> dict[str, np.ndarray]:
        """Measure `model`, and return the arrays that the class describes."""
        result = scoring.score(model, self.packed)
        each = 1 if self.shots else 1 + WRONG
        logprob = result.logprob.reshape(-1, each)
        scores = {
            "exact": result.greedy.reshape(-1, each)[:, 0],
            "logprob": logprob[:, 0].astype(np.float32),
        }
        if each > 1:
            scores["choice"] = logprob[:, 0] > logprob[:, 1:].max(1)
            scores["wrong"] = logprob[:, 1:].astype(np.float32)
        return scores
