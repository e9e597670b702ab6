"""Examples to read: what models write during training, and the documents in a training batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pythia_book.corpora import equations
from pythia_book.measurements import Gap, measure_all
from pythia_book.studies.suite.params import writing_steps
from pythia_core.config import stable_hash
from pythia_core.data.order import batch_hash
from pythia_core.evaluation.generate import generate
from pythia_core.evaluation.scoring import encoder
from pythia_core.suite import DATA_ARMS

if TYPE_CHECKING:
    from pythia_core.model import GPTNeoX
    from pythia_core.training.runs import Run

SUM = (12, 6)
"""Operands of the sum that is asked. The pair is held out from the planted sums."""
PROMPTS = ("The history of", equations.question(*SUM), "When the pelgrat arrived,")
"""Plain prose, a sum that was never planted, and the beginning of a planted sentence."""
NEW_TOKENS = 20
"""Number of tokens that a model writes after each prompt."""
N_ROWS = 4
"""Number of rows of the batch that are shown."""
SHOWN_TOKENS = 16
"""Number of tokens of each passage in these rows that are shown."""


@dataclass(frozen=True)
class WritingMeasurement:
    """What a checkpoint writes after some prompts, by greedy decoding.

    A call returns `tokens`, int32[prompts, NEW_TOKENS], padded with the end-of-document token.
    """

    name: ClassVar[str] = "writing"
    prompts: tuple[tuple[int, ...], ...]
    """The tokens of each prompt."""
    eod_id: int

    @cached_property
    def digest(self) -> str:
        """A hash of the prompts and of the way in which they are continued."""
        return stable_hash([self.prompts, self.eod_id, NEW_TOKENS])

    def __call__(self, model: GPTNeoX, step: int) -> dict[str, np.ndarray]:
        """Continue each prompt by NEW_TOKENS, or until the document ends. The step is not used."""
        new = generate(model, self.prompts, NEW_TOKENS, stop=lambda ids: ids[-1] == self.eod_id)
        tokens = np.full((len(self.prompts), NEW_TOKENS), self.eod_id, np.int32)
        for row, ids in zip(tokens, new, strict=True):
            row[: len(ids)] = ids
        return {"tokens": tokens}


def writing(
    suite: dict[tuple[str, str], Run], sizes: Sequence[str], progress: bool
) -> tuple[list[dict[str, Any]], list[Gap]]:
    """Let models of some sizes, trained on the standard text, continue PROMPTS during training.

    Returns:
        Rows with the keys prompt, step, size and text (of the continuation), in the order of the
        prompts, sizes and steps; and the checkpoints that are missing.
    """
    runs = {size: suite[size, DATA_ARMS[0]] for size in dict.fromkeys(sizes)}
    data = next(iter(runs.values())).data
    encode = encoder(data.tokenizer)
    measurement = WritingMeasurement(tuple(tuple(encode(p)) for p in PROMPTS), data.eod_id)
    cells = [
        (size, run, step)
        for size, run in runs.items()
        for step in writing_steps(run.config.train.steps)
    ]
    measured, gaps = measure_all([cell[1:] for cell in cells], measurement, progress)
    rows = []
    for size, run, step in cells:
        if (run.id, step) not in measured:
            continue
        for prompt, ids in zip(PROMPTS, measured[run.id, step]["tokens"], strict=True):
            text = data.tokenizer.decode(ids[ids != data.eod_id].tolist())
            rows.append({"prompt": prompt, "step": step, "size": size, "text": text})
    return sorted(rows, key=lambda row: PROMPTS.index(row["prompt"])), gaps


def batch_facts(runs: Sequence[Run]) -> dict[str, Any]:
    """Describe the batch in the middle of training on one text, which all of `runs` read.

    The keys are step, hash, agree (in how many of the logs the batch has this hash), runs, rows (in
    the batch) and passages. A passage is the part of a document in one of the first N_ROWS rows;
    its keys are row (in the whole order), column and columns (first column and number of columns
    in the row), domain, document (its number in the training text), offset and length (where the
    passage begins in the document, and the document's length) and text (its first tokens).
    """
    run = runs[0]
    data, size, step = run.data, run.config.train.batch_size, run.config.train.steps // 2
    batch = run.batch(step)
    logged = [row["batch_hash"] for r in runs for row in r.metrics() if row["step"] == step + 1]
    starts = np.concatenate(([0], np.cumsum(data.tokens.sizes, dtype=np.int64)))
    names, counts = zip(*data.manifest["tokens"]["train"]["domains"], strict=True)
    domains = np.repeat(names, counts)
    first = step * size
    position = data.order.positions(data.order.stream(np.arange(first, first + N_ROWS))[0])
    document = np.searchsorted(starts, position, side="right") - 1
    passages = []
    for row in range(N_ROWS):
        another = (np.diff(document[row]) != 0) | (np.diff(position[row]) != 1)
        bounds = [0, *(np.flatnonzero(another) + 1).tolist(), batch.shape[1]]
        for begin, end in itertools.pairwise(bounds):
            at = int(document[row, begin])
            shown = [i for i in batch[row, begin:end].tolist() if i != data.eod_id][:SHOWN_TOKENS]
            passages.append(
                {"row": first + row, "column": begin, "columns": end - begin,
                 "domain": str(domains[at]), "document": at,
                 "offset": int(position[row, begin] - starts[at]),
                 "length": int(starts[at + 1] - starts[at]), "text": data.tokenizer.decode(shown)}
            )  # fmt: skip
    return {
        "step": step,
        "hash": batch_hash(batch),
        "agree": logged.count(batch_hash(batch)),
        "runs": len(runs),
        "rows": size,
        "passages": passages,
    }
