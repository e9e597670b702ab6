"""Models of a few layers, trained on the corpus "laboratory" until they copy from their context.

Half of this corpus has a fixed grammar, the other half repeats random sequences (see
pythia_book.corpora.laboratory). Every second checkpoint is measured with the probes of the study,
on new documents of the same language:

- the loss on what a document repeats, from the second repetition on;
- n-grams, induction and the logit lens, as for models of prose (phases.probes);
- at the end of training, what is left of induction without the heads that carry it (phases.heads).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pythia_book.corpora import VERSIONS
from pythia_book.corpora import laboratory as corpus
from pythia_book.measurements import Arrays, Gap, measure_all, measure_each
from pythia_book.stats import Estimate, mean_over_known
from pythia_book.studies.phases.heads import KNOCKED_OUT, HeadsMeasurement, counted
from pythia_book.studies.phases.params import Params, laboratory_runs
from pythia_book.studies.phases.probes import PhasesMeasurement
from pythia_book.studies.phases.tables import KL, reduced
from pythia_book.study import name_of
from pythia_book.verdicts import Claim, falls, rises, within
from pythia_core.config import stable_hash
from pythia_core.evaluation import scoring

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer

    from pythia_book.study import Measurements
    from pythia_core.model import GPTNeoX
    from pythia_core.training.runs import Run

MEASURES = ("repeats", "grammar", *KL.values(), "order_gain", "prefix", "previous")
"""What is measured at each checkpoint: float64[checkpoints], means over rows or sequences.

`repeats`: loss from the second repetition on. `grammar`: loss on the grammar. The others are those
of `tables.MEASURES`, on the grammar."""
GRAMMAR_SEED, REPEATS_SEED = 3, 4
"""Seeds of the new documents; no training document has the same."""
N_READ, N_HELDOUT, N_REPEATS = 16_000, 64, 200


@dataclass(frozen=True)
class GrammarText:
    """A text of the grammar, which counts n-grams and tests models (see `probes.ProbeText`)."""

    ids: tuple[int, ...]
    """The token of each of `corpus.SYLLABLES`."""
    eod_id: int
    n_read: int = N_READ
    seq_len: int = 2 * corpus.LENGTH

    @classmethod
    def of(cls, tokenizer: Tokenizer, eod_id: int) -> GrammarText:
        """Return the text in the tokens of a tokenizer, which has one for each syllable."""
        return cls(tuple(tokenizer.encode(f" {s}").ids[0] for s in corpus.SYLLABLES), eod_id)

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

    @torch.no_grad()
    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        ids = torch.from_numpy(self.rows).to(scoring.device_of(model))
        first = max(corpus.PERIODS)  # from here on, every syllable has been read before
        logp = torch.log_softmax(model.logits(model.hidden(ids[:, :-1])[:, first:]).float(), -1)
        losses = -logp.gather(2, ids[:, 1 + first :, None])[..., 0]
        return {"repeats": losses.double().mean(1).cpu().numpy()}


def measure(
    runs: dict[tuple[int, int], Run], progress: bool
) -> tuple[Arrays, dict[str, Any], list[Gap]]:
    """Measure every second checkpoint of the runs, by (layers, seed).

    The arrays, where c is the number of measured checkpoints of a run:
    `laboratory/steps/<layers>/<seed>`: [c];
    `laboratory/<measure>/<layers>/<seed>`: [c], for each of MEASURES;
    `laboratory/heads/<layers>/<seed>`: see `HeadsMeasurement`, at the last step.
    """
    if not runs:
        return {}, {}, []
    first = next(iter(runs.values()))
    text = GrammarText.of(first.data.tokenizer, first.data.eod_id)
    phases = PhasesMeasurement(text, first.config.model.vocab_size)
    cells = [(run, step) for run in runs.values() for step in _steps(run)]
    each = [phases, RepeatsMeasurement.of(text)]
    measured, gaps = measure_each(cells, each, "the laboratory", progress)
    last = [(run, run.scheduled_steps[-1]) for run in runs.values()]
    heads, more = measure_all(last, HeadsMeasurement.like(phases), progress)
    arrays: Arrays = {}
    for key, run in runs.items():
        steps = [step for step in _steps(run) if (run.id, step) in measured]
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
    return arrays, facts, gaps + more


def _steps(run: Run) -> list[int]:
    """Return every second scheduled step, the last included."""
    return run.scheduled_steps[::-2][::-1]


def _example() -> np.ndarray:
    """Return a document of the domain "repeats", int[1, LENGTH]."""
    return corpus.documents("repeats", 1, REPEATS_SEED)


def curves_of(checkpoints: Sequence[list[Arrays]]) -> Arrays:
    """Return the mean of each of MEASURES at each checkpoint, float64[checkpoints].

    Args:
        checkpoints: for each, the arrays of `PhasesMeasurement` and of `RepeatsMeasurement`.
    """
    curves = reduced([phases for phases, _ in checkpoints])
    rows = curves | {"grammar": curves.get("loss", np.empty((0, 1)))}
    rows["repeats"] = np.array([repeats["repeats"] for _, repeats in checkpoints]).reshape(
        len(checkpoints), -1
    )
    return {name: rows[name].mean(1) for name in MEASURES} if checkpoints else {}


def train(params: Params, progress: bool) -> dict[tuple[int, int], Run]:
    """Find or train the runs of the laboratory, by (layers, seed)."""
    from pythia_book.studies.registry import train_all

    return train_all(params, laboratory_runs(params), progress)


# --- analysis --------------------------------------------------------------------------------


def depth_name(layers: int) -> str:
    """Return the name of a depth, e.g. "2 layers"."""
    return f"{layers} layer{'s' if layers > 1 else ''}"


WINDOW = 0.25
"""The slope at a step is taken over this many doublings of the step number around it."""
EVENTS = {"loss": "repeats", "gain": "order_gain", "prefix": "prefix", "previous": "previous"}
"""Maps each turn in the table `turns` to the measure that changes fastest there."""


@dataclass(frozen=True)
class Model:
    """The measurements of one model of the laboratory."""

    layers: int
    seed: int
    steps: np.ndarray
    """int64[checkpoints], ascending."""
    curves: Arrays
    """Maps each of MEASURES to float64[checkpoints]."""
    heads: dict[str, tuple[int, float]]
    """Maps each of `heads.KNOCKED_OUT` to the number of heads and the gain without them; empty if
    the last checkpoint was not measured."""

    def turn(self, event: str) -> float:
        """Return the step of a turn, a key of EVENTS, or of "nearest" checkpoints (a key of KL)."""
        if event in KL.values():
            return float(max(1, self.steps[self.curves[event].argmin()]))
        return steepest(self.steps, self.curves[EVENTS[event]])

    @property
    def rise(self) -> float:
        """How long the gain takes from a tenth to nine tenths of its final value, in doublings.

        The final value is the median of the last five checkpoints. NaN if it is not positive.
        """
        gain = self.curves["order_gain"]
        final = np.median(gain[-5:])
        if not final > 0:
            return np.nan
        start, end = (self.steps[(gain >= share * final).argmax()] for share in (0.1, 0.9))
        return float(np.log2(end / max(1, start)))

    @property
    def finished(self) -> bool:
        """Whether the last checkpoint was measured."""
        return bool(self.heads)

    def left(self, kind: str) -> float:
        """Return the share of the gain that is left without the heads of a kind; NaN if unknown."""
        intact = self.heads["intact"][1] if self.finished else 0.0
        return self.heads[kind][1] / intact if intact else np.nan


def models_of(measured: Measurements) -> list[Model]:
    """Return the measured models, in ascending order of layers and seeds."""
    models = []
    for (layers, seed), steps in measured.under("laboratory", "steps"):
        key = (layers, seed)
        if not len(steps):
            continue
        curves = {
            name: measured.arrays[name_of("laboratory", name, *key)].astype(np.float64)
            for name in MEASURES
        }
        heads = measured.get("laboratory", "heads", *key)
        kinds = {} if heads is None else counted(heads)
        models.append(Model(int(layers), int(seed), steps, curves, kinds))
    return sorted(models, key=lambda model: (model.layers, model.seed))


def steepest(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the step at which `values` change fastest per doubling of the step number.

    The slope is taken over WINDOW doublings, on values interpolated between checkpoints. Step 0,
    which has the weights of step 1, is left out.

    Args:
        steps: int64[checkpoints], ascending. values: float64[checkpoints].
    """
    later = steps > 0
    at, values = np.log2(steps[later]), values[later]
    grid = np.arange(at[0] + WINDOW / 2, at[-1] - WINDOW / 2, 1 / 64)
    if not len(grid):
        return np.nan
    ends = [np.interp(grid + side * WINDOW / 2, at, values) for side in (-1, 1)]
    return float(2 ** grid[np.abs(ends[1] - ends[0]).argmax()])


def tables(models: Sequence[Model]) -> dict[str, pd.DataFrame]:
    """Return the tables of the laboratory, by name.

    `laboratory`: `layers`, `seed`, `step`, `measure` (one of MEASURES), `value`.
    `turns`: `layers`, `seed`, `event` (a key of EVENTS, or `kl_<order>` for the checkpoint nearest
        to n-grams), `step`.
    """
    import pandas as pd

    levels, turns = [], []
    for model in models:
        key = (model.layers, model.seed)
        for name, values in model.curves.items():
            points = zip(model.steps.tolist(), values.tolist(), strict=True)
            levels += [(*key, step, name, value) for step, value in points]
        turns += [(*key, event, model.turn(event)) for event in (*KL.values(), *EVENTS)]
    return {
        "laboratory": pd.DataFrame(levels, columns=["layers", "seed", "step", "measure", "value"]),
        "turns": pd.DataFrame(turns, columns=["layers", "seed", "event", "step"]),
    }


SHALLOW, DEEP = 1, 2
"""The depths that claims compare."""
TOGETHER_MARGIN = 0.25
"""Two turns coincide if they are this close, in doublings of the step number: 19 % of the steps."""
NO_GAIN = 0.25
"""A gain below this is none, in nats per token. A model that copies perfectly gains 4."""
MOST_LEFT = 0.5
"""Heads carry the gain if less than this share is left without them."""
INDUCTION = "Olsson et al. 2022"
TOGETHER = (
    "During this phase change, the majority of in-context learning ability [...] is acquired, and "
    "simultaneously induction heads form within the model"
)


def claims(models: Sequence[Model]) -> list[Claim]:
    """Return the claims and hypotheses about the models of the laboratory, with their tests.

    All margins were set after pilot runs with other seeds and before the runs of the record.
    """
    of_depth = {
        depth: [m for m in models if m.layers == depth and m.finished] for depth in (SHALLOW, DEEP)
    }
    deep, shallow = of_depth[DEEP], of_depth[SHALLOW]
    units = f"{len(deep)} models of {DEEP} layers"

    def over(values: Iterable[float]) -> Estimate | None:
        """Return the mean over models; None if no value is known."""
        return mean_over_known(list(values))

    def between(first: str, second: str) -> Estimate | None:
        """Return by how many doublings of the step number a turn comes after another."""
        return over(np.log2(m.turn(second) / m.turn(first)) for m in deep)

    def after(first: str, second: str, text: str) -> Claim:
        """Return the hypothesis that a turn comes after another."""
        test = rises(between(first, second), "doublings of training", units)
        return Claim(text, "the order in Hoogland et al. 2024", test, kind="hypothesis")

    order = list(KL.values())
    return [
        Claim(
            "In models of two layers, the loss on repeated text falls when induction heads form.",
            f"{INDUCTION}, introduction",
            within(between("prefix", "loss"), "doublings of training", units, TOGETHER_MARGIN,
                   "the steepest fall of the loss, after the steepest rise of prefix matching"),
            quote=TOGETHER,
        ),
        Claim(
            "A model of two layers learns to use the order of what it has read before.",
            f"{INDUCTION}, Induction Heads",
            rises(over(m.curves["order_gain"][-1] for m in deep), "nats per token", units, NO_GAIN),
            quote="the two heads working together cause the sequence ...[A][B]...[A] to be more "
            "likely to be completed with [B]",
        ),
        Claim(
            "A model of one layer does not.",
            f"{INDUCTION}, Induction Heads",
            within(over(m.curves["order_gain"][-1] for m in shallow), "nats per token",
                   f"{len(shallow)} models of {SHALLOW} layer", NO_GAIN),
            quote="these heads occur in 2-layer attention-only models (but not 1-layer models)",
        ),
        Claim(
            "Without its induction heads, a model of two layers loses most of this gain.",
            f"{INDUCTION}, Argument 3",
            falls(over(m.left("induction") for m in deep), "of the gain left", units, MOST_LEFT),
            quote='When we directly "knock out" induction heads at test-time in small models, the '
            "amount of in-context learning greatly decreases.",
        ),
        Claim(
            "Without the heads that attend to the previous token, it loses most of it too.",
            f"{INDUCTION}, Induction Heads",
            falls(over(m.left("previous-token") for m in deep), "of the gain left", units,
                  MOST_LEFT),
            quote="The first attention head copies information from the previous token into each "
            "token.",
        ),
        after(order[0], order[1], "Two-layer models are nearest to bigrams after unigrams."),
        after(order[1], order[2], "Two-layer models are nearest to trigrams after bigrams."),
        after(order[2], "prefix", "Induction heads form after the model is nearest to trigrams."),
    ]  # fmt: skip


def values(models: Sequence[Model], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers about the laboratory that the page quotes, by name."""
    numbers: dict[str, Any] = {name: x for name, x in facts.items() if "laboratory_" in name}
    numbers |= {"together_margin": TOGETHER_MARGIN, "no_gain": NO_GAIN, "most_left": MOST_LEFT}
    numbers["depths"] = ", ".join(map(str, sorted({model.layers for model in models})))
    for depth in (SHALLOW, DEEP):
        same = [model for model in models if model.layers == depth]
        quoted = {
            "seeds": len(same),
            **{
                name: [m.curves[name][-1] if m.finished else np.nan for m in same]
                for name in ("order_gain", "prefix", "previous", "repeats")
            },
            "rise": [m.rise for m in same],
            **{f"turn_{event}": [m.turn(event) for m in same] for event in EVENTS},
            **{f"nearest_{name}": [m.turn(name) for m in same] for name in KL.values()},
            **{
                f"left_{kind.replace('-', '_')}": [100 * m.left(kind) for m in same]
                for kind in KNOCKED_OUT[1:]
            },
        }
        for name, found in quoted.items():
            numbers[f"{name}_{depth}"] = found if isinstance(found, int) else _interval(found)
    return numbers


def _interval(found: list[float]) -> dict[str, float] | float | None:
    """Return the mean over models with its interval; the value alone of a single model."""
    e = mean_over_known(found)
    return None if e is None else e.value if e.n_items == 1 else e.interval()
