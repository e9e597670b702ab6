"""Models of a few layers, trained on the corpus "laboratory" until they copy from their context.

Half of this corpus has a fixed grammar, the other half repeats random sequences (see
pythia_book.corpora.laboratory). Every second checkpoint is measured with the probes of the study,
on new documents of the same language:

- the loss on what a document repeats, from the tenth syllable on;
- n-grams, induction and the logit lens, as for models of prose (phases.probes);
- at the end of training, what is left of induction without the heads that carry it (phases.heads).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora import VERSIONS
from pythia_book.corpora import laboratory as corpus
from pythia_book.measurements import Arrays, Gap, measure_all, measure_each
from pythia_book.studies.phases.heads import HeadsMeasurement
from pythia_book.studies.phases.params import Params, laboratory_runs, laboratory_steps
from pythia_book.studies.phases.probes import PhasesMeasurement, row_losses
from pythia_book.studies.phases.tables import reduced
from pythia_book.studies.phases.transitions import LABORATORY_MEASURES
from pythia_book.study import name_of
from pythia_core.config import stable_hash
from pythia_core.evaluation import scoring

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pythia_core.model import GPTNeoX
    from pythia_core.training.runs import Run

GRAMMAR_SEED, REPEATS_SEED = 3, 4
"""Seeds of the new documents; they differ from those of the corpus."""
N_READ, N_HELDOUT, N_REPEATS = 16_000, 64, 200
"""Rows for counting n-grams, held-out rows, and documents that repeat."""
PREDICTABLE = max(corpus.PERIODS) + 1
"""Number of syllables after which a repeating document can be predicted from its own text."""


@dataclass(frozen=True)
class GrammarText:
    """A text of the grammar, to count n-grams and test models on (see `probes.ProbeText`)."""

    ids: tuple[int, ...]
    """The token of each of `corpus.SYLLABLES`."""
    eod_id: int
    n_read: int = N_READ
    seq_len: int = 2 * corpus.LENGTH

    @classmethod
    def of(cls, tokenizer: Tokenizer, eod_id: int) -> GrammarText:
        """Return the text in the tokens of a tokenizer, which has one for each syllable."""
        tokens = [tokenizer.encode(f" {syllable}").ids for syllable in corpus.SYLLABLES]
        assert all(len(ids) == 1 for ids in tokens)
        return cls(tuple(ids[0] for ids in tokens), eod_id)

    @property
    def fingerprint(self) -> str:
        return stable_hash([VERSIONS["laboratory"], GRAMMAR_SEED, self.ids, self.eod_id])

    def rows(self, documents: np.ndarray) -> np.ndarray:
        """Return the tokens of documents, each after an end-of-document token, int64[n, 1 + L]."""
        return np.insert(np.array(self.ids)[documents], 0, self.eod_id, axis=1)

    def read(self) -> np.ndarray:
        return _rows(self)[: self.n_read]

    def heldout(self, n: int) -> np.ndarray:
        return _rows(self)[self.n_read :][:n]


@cache  # not in the text, which is sent to worker processes
def _rows(text: GrammarText) -> np.ndarray:
    """Return rows of two documents, the second without its last syllable, int64[n, S + 1]."""
    n = text.n_read + N_HELDOUT
    drawn = corpus.documents("grammar", 2 * n, GRAMMAR_SEED)
    return text.rows(drawn).reshape(n, -1)[:, : text.seq_len + 1]


@dataclass(frozen=True)
class RepeatsMeasurement:
    """Measures the loss on documents that repeat a sequence: `repeats`, float64[documents]."""

    rows: np.ndarray
    """int64[documents, 1 + LENGTH], an end-of-document token before each document."""
    name: str = "repeats"

    @classmethod
    def of(cls, text: GrammarText) -> RepeatsMeasurement:
        """Return the measurement on new documents in the tokens of a text."""
        return cls(text.rows(corpus.documents("repeats", N_REPEATS, REPEATS_SEED)))

    @cached_property
    def digest(self) -> str:
        """A hash of the documents and the method."""
        return stable_hash([scoring.VERSION, self.rows.tolist()])

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        return {"repeats": row_losses(model, self.rows, PREDICTABLE)}


def measure(
    runs: dict[tuple[int, int], Run], progress: bool
) -> tuple[Arrays, dict[str, Any], list[Gap]]:
    """Measure every second checkpoint of the runs, by (layers, seed).

    The arrays, where c is the number of measured checkpoints of a run:
    `laboratory/steps/<layers>/<seed>`: [c];
    `laboratory/<measure>/<layers>/<seed>`: [c], for each of LABORATORY_MEASURES;
    `laboratory/heads/<layers>/<seed>`: see `HeadsMeasurement`, at the last step.
    """
    if not runs:
        return {}, {}, []
    first = next(iter(runs.values()))
    text = GrammarText.of(first.data.tokenizer, first.data.eod_id)
    phases = PhasesMeasurement(text, first.config.model.vocab_size)
    cells = [(run, step) for run in runs.values() for step in laboratory_steps(run.config)]
    repeats = RepeatsMeasurement.of(text)
    measured, gaps = measure_each(cells, [phases, repeats], "the laboratory", progress)
    last = [(run, run.scheduled_steps[-1]) for run in runs.values()]
    rows = {"repeats": (repeats.rows, PREDICTABLE), "grammar": (text.heldout(N_HELDOUT), 0)}
    heads, _ = measure_all(last, HeadsMeasurement.like(phases, rows), progress)
    arrays: Arrays = {}
    for key, run in runs.items():
        steps = [step for step in laboratory_steps(run.config) if (run.id, step) in measured]
        curves = curves_of([measured[run.id, step] for step in steps])
        arrays[name_of("laboratory", "steps", *key)] = np.array(steps, np.int64)
        for name, values in curves.items():
            arrays[name_of("laboratory", name, *key)] = values.astype(np.float32)
        if scores := heads.get((run.id, run.scheduled_steps[-1])):
            arrays[name_of("laboratory", "heads", *key)] = scores["heads"].astype(np.float32)
    facts = {
        "laboratory_tokens": first.config.train.steps
        * first.config.train.batch_size
        * first.config.data.seq_len,
        "laboratory_updates": first.config.train.steps,
        "laboratory_width": first.config.model.d_model,
        "laboratory_heads": first.config.model.n_heads,
        "laboratory_example": first.data.tokenizer.decode(text.rows(_example())[0, 1:].tolist()),
    }
    return arrays, facts, gaps


def _example() -> np.ndarray:
    """Return a document of the domain "repeats", int[1, LENGTH]."""
    return corpus.documents("repeats", 1, REPEATS_SEED)


def curves_of(checkpoints: Sequence[list[Arrays]]) -> Arrays:
    """Return the mean of each of LABORATORY_MEASURES at each checkpoint, float64[checkpoints].

    Args:
        checkpoints: for each, the arrays of `PhasesMeasurement` and of `RepeatsMeasurement`.
    """
    curves = reduced([phases for phases, _ in checkpoints])
    rows = curves | {"grammar": curves.get("loss", np.empty((0, 1)))}
    rows["repeats"] = np.array([repeats["repeats"] for _, repeats in checkpoints]).reshape(
        len(checkpoints), -1
    )
    return {name: rows[name].mean(1) for name in LABORATORY_MEASURES} if checkpoints else {}


def train(params: Params, progress: bool) -> dict[tuple[int, int], Run]:
    """Find or train the runs of the laboratory, by (layers, seed)."""
    from pythia_book.studies.registry import train_all

    return train_all(params, laboratory_runs(params), progress)
