"""Dates the transitions of the laboratory's models, and tests what these dates depend on.

A transition is the step at which a measure changes fastest per doubling of the step number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import Estimate, mean_over_known, quoted
from pythia_book.studies.phases.tables import KL
from pythia_book.study import name_of
from pythia_book.verdicts import Claim, rises, untestable, within
from pythia_core.errors import count_of

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import Arrays
    from pythia_book.study import Measurements

LABORATORY_MEASURES = (
    "repeats", "grammar", *KL.values(), "gain", "order_gain", "prefix", "previous",
)  # fmt: skip
"""What is measured at each checkpoint: float64[checkpoints], means over rows or sequences.

`repeats`: loss on repeated text from the tenth syllable on. `grammar`: loss on the grammar. The
others are those of `tables.MEASURES`, on the grammar."""
KNOCKED_OUT = (
    "intact", "induction", "induction control", "previous-token", "previous-token control",
)  # fmt: skip
"""Rows of what `heads.HeadsMeasurement` returns: no head is knocked out, all heads of a kind are,
or, as a control, as many heads that are of neither kind (all of them if there are fewer)."""


@dataclass(frozen=True)
class KnockOut:
    """What is left of a model without some heads; losses in nats per token, NaN for prose."""

    heads: int
    """Number of heads that are knocked out."""
    gain: float
    repeats: float = np.nan
    grammar: float = np.nan


def knock_outs(measured: np.ndarray) -> dict[str, KnockOut]:
    """Map each of KNOCKED_OUT to what is left of a model without these heads.

    Args:
        measured: the array `heads` of a `HeadsMeasurement`.
    """
    rows = zip(KNOCKED_OUT, measured.tolist(), strict=True)
    return {kind: KnockOut(round(n), *scores) for kind, (n, *scores) in rows}


def depth_name(layers: int) -> str:
    """Return the name of a depth, e.g. "2 layers"."""
    return count_of(layers, "layer")


WINDOW = 0.25
"""The slope at a step is taken over this many doublings of the step number around it."""
EVENTS = {
    "loss": "repeats",
    "gain": "order_gain",
    "prefix": "prefix",
    "previous": "previous",
}
"""Maps each transition to the measure that changes fastest there."""


@dataclass(frozen=True)
class Model:
    """The measurements of one model of the laboratory."""

    layers: int
    seed: int
    steps: np.ndarray
    """int64[checkpoints], ascending."""
    curves: Arrays
    """Maps each of LABORATORY_MEASURES to float64[checkpoints]."""
    without: dict[str, KnockOut]
    """What is left without each of KNOCKED_OUT; empty if the last checkpoint was not measured."""

    def step_of(self, event: str) -> float:
        """Return the step of a transition (a key of EVENTS), or of the least divergence in KL."""
        if event in KL.values():
            return float(max(1, self.steps[self.curves[event].argmin()]))
        return steepest(self.steps, self.curves[EVENTS[event]])

    @property
    def rise(self) -> float:
        """How long the gain takes from a tenth to nine tenths of its final value, in doublings.

        The final value is the median of the last five checkpoints. NaN if there is no gain, or if
        checkpoints are missing.
        """
        gain, steps = self.curves["order_gain"], np.maximum(self.steps, 1)
        final = np.median(gain[-5:])
        if final < NO_GAIN:
            return np.nan
        start, end = ((gain >= share * final).argmax() for share in (0.1, 0.9))
        apart = np.diff(np.log2(steps))[max(start - 1, 0) : end]
        whole = len(apart) and apart.max() <= WINDOW
        return float(np.log2(steps[end] / steps[start])) if whole else np.nan

    @property
    def finished(self) -> bool:
        """Whether the last checkpoint was measured."""
        return bool(self.without)

    def cost(self, kind: str) -> float:
        """Return how much more a knock-out raises the loss on repeated text than on the grammar."""
        if not self.finished:
            return np.nan
        intact, without = self.without["intact"], self.without[kind]
        return without.repeats - intact.repeats - (without.grammar - intact.grammar)


def models_of(measured: Measurements) -> list[Model]:
    """Return the measured models, in ascending order of layers and seeds."""
    models = []
    for (layers, seed), steps in measured.under("laboratory", "steps"):
        key = (layers, seed)
        if not len(steps):
            continue
        curves = {
            name: measured.arrays[name_of("laboratory", name, *key)].astype(np.float64)
            for name in LABORATORY_MEASURES
        }
        heads = measured.get("laboratory", "heads", *key)
        kinds = {} if heads is None else knock_outs(heads)
        models.append(Model(int(layers), int(seed), steps, curves, kinds))
    return sorted(models, key=lambda model: (model.layers, model.seed))


def steepest(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the step at which `values` change fastest per doubling of the step number.

    The slope is taken over WINDOW doublings, on values interpolated between checkpoints. Step 0,
    which has the weights of step 1, is left out.

    The result is NaN if checkpoints near this step are too sparse: two successive ones are more
    than WINDOW doublings apart.

    Args:
        steps: int64[checkpoints], ascending.
        values: float64[checkpoints].
    """
    later = steps > 0
    at, values = np.log2(steps[later]), values[later]
    grid = np.arange(at[0] + WINDOW / 2, at[-1] - WINDOW / 2, 1 / 64)
    if not len(grid):
        return np.nan
    ends = [np.interp(grid + side * WINDOW / 2, at, values) for side in (-1, 1)]
    place = grid[np.abs(ends[1] - ends[0]).argmax()]
    near = (at[1:] > place - WINDOW / 2) & (at[:-1] < place + WINDOW / 2)
    return float(2**place) if np.diff(at)[near].max() <= WINDOW else np.nan


def tables(models: Sequence[Model]) -> dict[str, pd.DataFrame]:
    """Return the tables of the laboratory, by name.

    `laboratory`: `layers`, `seed`, `step`, `measure` (one of LABORATORY_MEASURES), `value`.
    `transitions`: `layers`, `seed`, `event` (a key of EVENTS, or `kl_<order>` for the checkpoint
        nearest to n-grams), `step`.
    """
    import pandas as pd

    levels, dates = [], []
    for model in models:
        key = (model.layers, model.seed)
        for name, values in model.curves.items():
            points = zip(model.steps.tolist(), values.tolist(), strict=True)
            levels += [(*key, step, name, value) for step, value in points]
        dates += [(*key, event, model.step_of(event)) for event in (*KL.values(), *EVENTS)]
    return {
        "laboratory": pd.DataFrame(levels, columns=["layers", "seed", "step", "measure", "value"]),
        "transitions": pd.DataFrame(dates, columns=["layers", "seed", "event", "step"]),
    }


SHALLOW, DEEP, DEEPER = 1, 2, 4
"""The depths that claims compare, and a third that the page describes."""
TOGETHER_MARGIN = 0.25
"""Two transitions coincide if they are this close, in doublings of the step number (19 %)."""
NO_GAIN = 0.25
"""A gain below this counts as none, in nats per token."""
WHOLE_LAYER = "in every model these are all heads of the second layer, and one layer cannot copy"
OLSSON, BELROSE = "Olsson et al. 2022", "Belrose et al. 2024, abstract"
INCREASING = (
    "The distributional simplicity bias (DSB) posits that neural networks learn "
    "low-order moments of the data distribution first, before moving on to "
    "higher-order correlations. [...] We also extend the DSB to "
    "discrete domains by proving an equivalence between token n-gram frequencies and "
    "the moments of embedding vectors, and by finding empirical evidence for the bias "
    "in LLMs."
)
TOGETHER = (
    "During this phase change, the majority of in-context learning ability [...] is acquired, and "
    "simultaneously induction heads form within the model"
)


def claims(models: Sequence[Model], heads: int) -> list[Claim]:
    """Return the claims about the models of the laboratory, with `heads` per layer.

    All claims and margins were written before the runs of the record, when only other seeds were
    known: those of pilot runs, and of a first record with the seeds 1234 to 1238.
    """
    of_depth = {
        depth: [m for m in models if m.layers == depth and m.finished] for depth in (SHALLOW, DEEP)
    }
    deep, shallow = of_depth[DEEP], of_depth[SHALLOW]
    units = f"{count_of(len(deep), 'seed')}, {depth_name(DEEP)}"

    def over(values: Iterable[float]) -> Estimate | None:
        """Return the mean over models; None if no value is known."""
        return mean_over_known(list(values))

    def between(first: str, second: str) -> Estimate | None:
        """Return by how many doublings of the step number an event comes after another."""
        return over(np.log2(m.step_of(second) / m.step_of(first)) for m in deep)

    def dated(e: Estimate | None) -> str:
        """Return `units`, and how many of them have dates, if some lack checkpoints."""
        n = e.n_seeds if e else 0
        return units if n == len(deep) else f"{units}; {n} of them with both dates"

    short = sum(
        m.without["previous-token control"].heads < m.without["previous-token"].heads for m in deep
    )
    fewer = (
        f"in {short} of {len(deep)} models, there are fewer other heads, and all are knocked out"
    )
    fewer *= bool(short)
    uni, bi, _ = KL.values()
    together, order = between("prefix", "loss"), between(uni, bi)
    without = over(m.cost("induction") for m in deep)
    return [
        Claim(
            "In models of two layers, the loss on repeated text falls when induction heads form.",
            f"{OLSSON}, introduction",
            within(together, "doublings of training", dated(together), TOGETHER_MARGIN,
                   "the steepest fall of the loss, after the steepest rise of prefix matching"),
            quote=TOGETHER,
        ),
        Claim(
            "A model of two layers learns to use the order of what it has read before.",
            f"{OLSSON}, Induction Heads",
            rises(over(m.curves["order_gain"][-1] for m in deep), "nats per token", units, NO_GAIN),
            kind="premise",
            quote="the two heads working together cause the sequence ...[A][B]...[A] to be more "
            "likely to be completed with [B]",
        ),
        Claim(
            "A model of one layer does not learn to use this order.",
            f"the gain from order shows induction, which takes two layers ({OLSSON}, Argument 1)",
            within(over(m.curves["order_gain"][-1] for m in shallow), "nats per token",
                   f"{count_of(len(shallow), 'seed')}, {depth_name(SHALLOW)}", NO_GAIN),
            kind="check",
            quote="The exception is the one-layer model, where induction heads never form "
            "\N{EN DASH} just as in-context learning never substantially develops for the "
            "one-layer model.",
        ),
        Claim(
            "Without its induction heads, a model of two layers predicts repeated text worse, and "
            "more so than text of the grammar.",
            f"{OLSSON}, Argument 3",
            untestable(WHOLE_LAYER, without, "nats per token", units)
            if deep and all(m.without["induction"].heads == heads for m in deep)
            else rises(without, "nats per token", units),
            quote='When we directly "knock out" induction heads at test-time in small models, the '
            "amount of in-context learning greatly decreases.",
        ),
        Claim(
            "Without its previous-token heads, a model of two layers predicts repeated text worse, "
            "relative to text of the grammar, than without as many other heads.",
            f"{OLSSON}, Induction Heads",
            rises(
                over(m.cost("previous-token") - m.cost("previous-token control") for m in deep),
                "nats per token", units, note=fewer,
            ),
            quote="The first attention head copies information from the previous token into each "
            "token.",
        ),
        Claim(
            "On the grammar, models of two layers come nearest to bigrams later than to unigrams.",
            BELROSE, rises(order, "doublings of training", dated(order)),
            quote=INCREASING,
        ),
    ]  # fmt: skip


def values(models: Sequence[Model], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers about the laboratory that the page quotes, by name."""
    numbers: dict[str, Any] = {name: x for name, x in facts.items() if "laboratory_" in name}
    numbers |= {"together_margin": TOGETHER_MARGIN, "no_gain": NO_GAIN}
    uni, bi, _ = KL.values()
    for depth in (SHALLOW, DEEP, DEEPER):
        same = [model for model in models if model.layers == depth]
        by_name = {
            name: [m.curves[name][-1] if m.finished else np.nan for m in same]
            for name in ("gain", "order_gain", "repeats")
        }
        if depth == DEEP:
            by_name["rise"] = [m.rise for m in same]
            by_name["missed"] = [100 * np.maximum(0, 1 - m.rise) for m in same]
            by_name |= {f"nearest_{name}": [m.step_of(name) for m in same] for name in (uni, bi)}
        if depth > SHALLOW:
            by_name |= {f"transition_{event}": [m.step_of(event) for m in same] for event in EVENTS}
            by_name["lag"] = [np.log2(m.step_of("gain") / m.step_of("loss")) for m in same]
            by_name["repeats_without_induction"] = [
                m.without["induction"].repeats if m.finished else np.nan for m in same
            ]
            for kind in KNOCKED_OUT:
                name = kind.replace("-", "_").replace(" ", "_")
                if kind != "intact":
                    by_name[f"cost_{name}"] = [m.cost(kind) for m in same]
                by_name[f"gain_{name}"] = [
                    m.without[kind].gain if m.finished else np.nan for m in same
                ]
        for name, each in by_name.items():
            numbers[f"{name}_{depth}"] = quoted(mean_over_known(each))
    return numbers
