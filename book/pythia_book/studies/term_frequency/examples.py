"""Shows what the largest model writes after sums, and in what way its wrong answers are wrong.

Which sums are shown is decided by a hash, separately for right and wrong answers and for the GROUPS
of first operands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.studies.term_frequency.tables import NumberScores, tenths
from pythia_core.config import stable_hash
from pythia_core.util.files import fraction

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.tasks.arithmetic import ArithmeticMeasurement
    from pythia_core.model import GPTNeoX

NO_NUMBER = -1
"""Stands for an answer that is not a number of at most MOST_DIGITS digits."""
MOST_DIGITS = 4
SHOWN = 2
"""How many sums are shown of each kind."""
GROUPS = ("most frequent tenth", "in between", "least frequent tenth")
_NUMBER = re.compile(rf" ?([0-9]{{1,{MOST_DIGITS}}})")


@dataclass(frozen=True)
class AnswerMeasurement:
    """Measures which number a model writes after each sum, `answer` int16[sums], or NO_NUMBER."""

    asked: ArithmeticMeasurement
    tokenizer: Any
    eod_id: int

    @property
    def name(self) -> str:
        """The name under which the array is stored, e.g. "answers_4_shot"."""
        return f"answers_{self.asked.shots}_shot"

    @cached_property
    def digest(self) -> str:
        """A hash of the sums, their prompts and the method."""
        return stable_hash([1, self.asked.digest])

    def __call__(self, model: GPTNeoX, step: int) -> dict[str, np.ndarray]:
        """Return `answer`, decoded greedily. The step is not used."""
        from pythia_core.evaluation.generate import generate_texts

        requests = self.asked.requests[:: len(self.asked.requests) // len(self.asked.questions)]
        longest = max(len(request.continuation) for request in requests)
        prompts = [request.context for request in requests]
        written = generate_texts(
            model, self.tokenizer, prompts, longest, self.eod_id, ("\n",), truncate=True
        )
        return {"answer": np.array([number(text) for text in written], np.int16)}


def number(text: str) -> int:
    """Return the number that a line of text consists of, or NO_NUMBER."""
    match = _NUMBER.fullmatch(text)
    return int(match[1]) if match else NO_NUMBER


def examples_table(scores: NumberScores, size: str, shots: int) -> pd.DataFrame:
    """Return sums with a model's final answers: up to SHOWN of each kind.

    `group`: how frequent the first operand is (GROUPS);
    `first`, `second`: the operands;
    `in_sums`: how often the first operand was read in sums;
    `answer`: what the model writes, or NO_NUMBER;
    `right`: whether this is the sum.
    """
    import pandas as pd

    rows = []
    for group, sums in _groups(scores, size, shots).items():
        for right in (True, False):
            kind = sums[sums.right == right]
            ranks = [fraction(f"shown {s.first} {s.second}") for s in kind.itertuples()]
            shown = kind.assign(rank=ranks).nsmallest(SHOWN, "rank").drop(columns="rank")
            rows.append(shown.assign(group=group))
    names = ["group", "first", "second", "in_sums", "answer", "right"]
    return pd.concat(rows)[names] if rows else pd.DataFrame(columns=names)


def answers_table(scores: NumberScores, size: str, shots: int) -> pd.DataFrame:
    """Return how a model's final answers are wrong, for all sums and for each of GROUPS.

    `group`: "all" or one of GROUPS;
    `n`, `right`: numbers of sums, and of right answers;
    `shuffled`: how many answers would be right, on average, if they were shuffled among the sums;
    `different`: the number of different answers;
    `common`, `common_share`: the most common answer and its share (NO_NUMBER counts as one);
    `median_error`: the median distance of the numbers written from the sums;
    `correlation`: the correlation of the numbers written with the sums; NaN if one does not vary.
    """
    import pandas as pd

    rows = []
    for group, sums in _groups(scores, size, shots, whole=True).items():
        total = sums["first"] + sums.second
        shares = sums.answer.value_counts(normalize=True)
        written = sums.answer != NO_NUMBER
        common = int(shares.index[0])
        vary = min(sums.answer[written].nunique(), total[written].nunique()) > 1
        rows.append(
            {"group": group, "n": len(sums), "right": int(sums.right.sum()),
             "shuffled": float(total.map(shares).fillna(0).sum()), "different": len(shares),
             "common": "no number" if common == NO_NUMBER else str(common),
             "common_share": float(shares.iloc[0]),
             "median_error": float((sums.answer - total)[written].abs().median()),
             "correlation": float(sums.answer[written].corr(total[written])) if vary else np.nan}
        )  # fmt: skip
    names = ["group", "n", "right", "shuffled", "different", "common", "common_share",
             "median_error", "correlation"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def _groups(
    scores: NumberScores, size: str, shots: int, whole: bool = False
) -> dict[str, pd.DataFrame]:
    """Map each group to its final answers; `whole` adds "all". If none were recorded, return {}."""
    import pandas as pd

    step, arrays = scores.steps[-1], scores.measured.arrays
    answer = scores.measured.get("answer", size, step, shots)
    if answer is None:  # not measured, or recorded by an earlier version of the study
        return {}
    times, second = scores.in_sums(step), arrays["second"].astype(int)
    sums = pd.DataFrame(
        {"first": scores.first, "second": second, "in_sums": times[scores.first],
         "answer": answer.astype(int), "right": answer == scores.first + second}
    )  # fmt: skip
    top, bottom = (np.isin(scores.first, members) for members in tenths(times))
    inside = zip(GROUPS, (top, ~(top | bottom), bottom), strict=True)
    return ({"all": sums} if whole else {}) | {group: sums[rows] for group, rows in inside}
