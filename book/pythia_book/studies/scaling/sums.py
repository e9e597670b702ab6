"""Tests every checkpoint on sums, and keeps a mean score per first operand.

The sums have pairs of operands that were never planted in the training text. Most of the wrong
answers to choose from are answers of planted sums with the same first operand, so a model that only
memorizes which answers go with an operand chooses the right one less often than one time in four.
Questions about the same first operand are not independent, so operands are the units. Operands
count equally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import equations
from pythia_book.studies.scaling.params import sum_steps
from pythia_book.study import Measurements, name_of
from pythia_core.suite import Cell

if TYPE_CHECKING:
    from pythia_core.training.runs import Run


@dataclass(frozen=True)
class Measure:
    """A score of sums: what claims and panels call it, and how it is shown."""

    name: str
    title: str
    unit: str
    factor: int
    """Multiplies the score for display; a share becomes points or percent."""


MEASURES = {
    "choice": Measure("choices among four", "chosen among four", "points", 100),
    "exact": Measure("exact answers", "written exactly", "points", 100),
    "logprob": Measure(
        "the log-probability of the right answer", "log-probability of the answer", "nats", 1
    ),
    "margin": Measure("the margin", "its margin over wrong ones", "nats", 1),
}
"""`choice`: share of sums whose right answer is likelier than three wrong ones; `exact`: share of
sums answered right by greedy decoding; `logprob`: log-probability of the right answer, nats;
`margin`: this minus the mean log-probability of the wrong answers, nats."""
SHARES = ("choice", "exact")
PRODUCT = "product"
"""Mean probability of the right answer, the product of the probabilities of its tokens."""
STORED = (*MEASURES, PRODUCT)


def measure_sums(suite: dict[Cell, Run], progress: bool) -> tuple[dict[str, np.ndarray], int]:
    """Test the runs on both texts on sums, at every checkpoint that they keep.

    Returns:
        The arrays, and the number of checkpoints that are missing or corrupt:
        `sums/count`: uint8[operands], the number of sums with each first operand;
        `sums/steps/SIZE/ARM`: int32[checkpoints], their steps;
        `sums/MEASURE/SIZE/ARM`: [checkpoints, operands]: for choice and exact, uint8 numbers of
        right answers; for logprob and margin, float16 means over the sums of an operand, nats; for
        PRODUCT, float32 means of the probability.
    """
    from pythia_book.measurements import measure_all
    from pythia_book.tasks.arithmetic import ArithmeticMeasurement, margin

    first = next(iter(suite.values()))
    length = first.config.model.max_seq_len
    measurement = ArithmeticMeasurement.of(first.data, 0, length, planted=False)
    operands = np.array([q.first for q in measurement.questions])
    n = len(equations.FIRST)
    count = np.bincount(operands, minlength=n)
    arrays = {"sums/count": count.astype(np.uint8)}
    cells = [(run, step) for run in suite.values() for step in sum_steps(run.config)]
    scored, gaps = measure_all(cells, measurement, progress)
    for (size, arm), run in suite.items():
        steps = [step for each, step in cells if each is run and (run.id, step) in scored]
        arrays[name_of("sums/steps", size, arm)] = np.array(steps, np.int32)
        columns: dict[str, list[np.ndarray]] = {measure: [] for measure in STORED}
        for step in steps:
            scores = scored[run.id, step]
            values = {
                "choice": scores["choice"],
                "exact": scores["exact"],
                "logprob": scores["logprob"],
                "margin": margin(scores),
                PRODUCT: np.exp(scores["logprob"].astype(np.float64)),
            }
            for measure, items in values.items():
                total = np.bincount(operands, items.astype(np.float64), n)
                columns[measure].append(total)
        for measure, rows in columns.items():
            table = np.array(rows).reshape(len(steps), n)
            kind = np.float32 if measure == PRODUCT else np.float16
            arrays[name_of("sums", measure, size, arm)] = (
                table.astype(np.uint8)
                if measure in SHARES
                else (table / np.maximum(count, 1)).astype(kind)
            )
    return arrays, len(gaps)


def sum_curves(measured: Measurements, measure: str, run: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps, int[checkpoints], and means, float64[checkpoints, operands].

    Shares are from 0 to 1. Operands without sums are left out.
    """
    size, arm = run
    steps = measured.arrays[name_of("sums/steps", size, arm)].astype(int)
    table = measured.arrays[name_of("sums", measure, size, arm)].astype(np.float64)
    count = measured.arrays["sums/count"].astype(int)
    table = table[:, count > 0]
    return steps, table / count[count > 0] if measure in SHARES else table
