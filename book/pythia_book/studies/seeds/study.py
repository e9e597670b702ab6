"""Seeds (after PolyPythias, arXiv 2503.09543): what training again would have given.

PolyPythias trains five sizes with nine more seeds, each of which sets initial weights and data
order at once. Here one size is trained with every pair of an order seed and a weight seed on the
standard text, so that the two come apart, and with both varied together on the deduplicated text.
The suite's own runs are among them and are not trained again. All runs are measured on the same
held-out rows and items. Tables only; intervals over seeds are in studies.variance.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pythia_book.measurements import Measurement, measure_all
from pythia_book.studies.deduplication.study import CONTEXT, INDICES
from pythia_book.studies.gender_bias.measures import Battery, Items
from pythia_book.studies.held_out import LanguageMeasurement
from pythia_book.studies.seeds.claims import claims_table
from pythia_book.studies.seeds.tables import MEASURES, Cell, Found, stacked, tables_of
from pythia_book.study import StudyParams, StudyResult
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.evaluation.memorization import ExtractionOfRows
from pythia_core.suite import DATA_ARMS, scale_named, suite_configs
from pythia_core.training.runs import find_or_train_all
from pythia_core.training.schedule import checkpoint_steps
from pythia_core.util.machine import best_precision

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.training.runs import Run

STUDY = "seeds"
SUITE_SEED = 1234
DEFAULT_SIZES = {"smoke": "7k", "laptop": "25k", "gpu": "1.2m"}
EARLY = (1, 4, 16, 64)
"""Steps before and beside the evenly spaced ones. Step 1 has the initial weights."""


@dataclass(frozen=True)
class SeedsParams(StudyParams):
    """Parameters of the study; `sizes` holds one size."""

    seeds: int = 3
    """Seeds of each kind; the first is the suite's."""
    neighbour: str = ""
    """The size whose distance in loss the spread is compared with; empty: the next larger one."""
    bootstrap: int = 2000

    WHOLE: ClassVar = {"seeds": (0, 10), "bootstrap": (100, 1_000_000)}

    def check(self) -> None:
        if self.seeds < 2:
            raise ConfigError(
                f"seeds={self.seeds}: a band needs at least two seeds; give 2..10 "
                f"(the number of runs is their square)"
            )
        _ = self.neighbour_size

    @property
    def size_list(self) -> tuple[str, ...]:
        scale = scale_named(self.scale)
        sizes = scale.size_list(self.sizes, DEFAULT_SIZES.get(self.scale, ""))
        if len(sizes) != 1:
            raise ConfigError(
                f"sizes={self.sizes!r} names {len(sizes)} sizes, but this study trains one many "
                f'times; give one, e.g. "{sizes[0]}"'
            )
        return sizes

    @property
    def size(self) -> str:
        return self.size_list[0]

    @property
    def neighbour_size(self) -> str:
        """The next larger size of the ladder, of the largest the next smaller."""
        scale = scale_named(self.scale)
        if self.neighbour:
            sizes = scale.size_list(self.neighbour)
            if len(sizes) != 1 or sizes[0] == self.size:
                raise ConfigError(
                    f"neighbour={self.neighbour!r} must be one size other than {self.size!r}"
                )
            return sizes[0]
        ladder = scale.sizes
        if self.size not in ladder:
            raise ConfigError(
                f"{self.size!r} is not on the ladder of scale {self.scale!r} "
                f"({', '.join(ladder)}), so that no size is next to it; name a neighbour"
            )
        at = ladder.index(self.size)
        return ladder[at + 1] if at + 1 < len(ladder) else ladder[at - 1]

    @property
    def size_is_smaller(self) -> bool:
        """Whether the neighbour is the larger of the two."""
        both = scale_named(self.scale).size_list(f"{self.size},{self.neighbour_size}")
        return both[0] == self.size

    @property
    def seed_values(self) -> tuple[int, ...]:
        """1234, 1, 2, ..."""
        return (SUITE_SEED, *range(1, self.seeds))

    @property
    def cells(self) -> list[Cell]:
        """Every order seed with every weight seed, and the deduplicated twins of the diagonal."""
        grid = [(o, w, "standard") for o, w in product(self.seed_values, repeat=2)]
        return grid + [(s, s, "deduplicated") for s in self.seed_values]

    @property
    def steps(self) -> list[int]:
        """Where runs are measured."""
        scale = scale_named(self.scale)
        saved = set(checkpoint_steps(scale.steps))
        return sorted(({*EARLY, *map(scale.fork_step, INDICES)} & saved) - {0})

    def config(self, order_seed: int, weight_seed: int, arm: str) -> RunConfig:
        """The run of a cell."""
        return scale_named(self.scale).run(
            self.size,
            order_seed=order_seed,
            weight_seed=weight_seed,
            deduplicated=arm == "deduplicated",
            precision=best_precision(),
        )

    def members(self, kind: str) -> list[Cell]:
        """The standard runs among which only this kind of seed differs, in the order of seeds."""
        first = self.seed_values[0]
        pairs = {
            "order": [(s, first) for s in self.seed_values],
            "weights": [(first, s) for s in self.seed_values],
            "both": [(s, s) for s in self.seed_values],
        }[kind]
        return [(order, weights, "standard") for order, weights in pairs]


Params = SeedsParams
"""Under this name a study's parameters are checked before its notebook runs."""


def run(params: SeedsParams, progress: bool = True) -> StudyResult:
    """Find or train every run, measure, take the spread apart."""
    started = time.time()
    configs: dict[Any, RunConfig] = {cell: params.config(*cell) for cell in params.cells}
    next_to = suite_configs(params.scale, [params.neighbour_size], ["standard"])
    trained = find_or_train_all(configs | next_to, progress)
    beside = trained[params.neighbour_size, "standard"]
    runs = {cell: trained[cell] for cell in params.cells}
    found, gaps = measure(params, runs, progress)
    tables = tables_of(params, found)
    other, more = neighbour_loss(params, beside, progress)
    last = scale_named(params.scale).steps
    shares = stacked(found, params.members("both"), last, "feminine_share")
    claims = claims_table(params, tables, other, shares)
    values = _values(params, tables, other) | {"gaps": gaps + more}
    return StudyResult(STUDY, params, tables, values, claims, [*runs.values(), beside], started)


# --- measuring -------------------------------------------------------------------------------


def measure(params: SeedsParams, runs: dict[Cell, Run], progress: bool = True) -> tuple[Found, int]:
    """Every measure of every run, and the number of measurements that could not be made."""
    some = runs[params.cells[0]]
    length, last = some.config.model.max_seq_len, some.config.train.steps
    found: Found = {}
    n_gaps = 0

    def add(what: Measurement, cells: list[Cell], steps: list[int], *names: str) -> None:
        nonlocal n_gaps
        arrays, gaps = measure_all([(runs[c], s) for c in cells for s in steps], what, progress)
        n_gaps += len(gaps)
        for cell, step in product(cells, steps):
            at = arrays.get((runs[cell].id, step), {})
            found.update({(cell, step, n): at[n].astype(np.float64) for n in names if n in at})

    # Held-out documents and tokenizer are the same whatever the order and the text.
    language = LanguageMeasurement.of(some.data, length)
    add(language, params.cells, params.steps, "loss", "last_word")
    gender = Battery(Items.load(), some.data, length).measurement(full=False)
    add(gender, params.cells, params.steps, "feminine_share")
    for order, arm in product(params.seed_values, DATA_ARMS):  # the rows read depend on these
        cells = [cell for cell in params.cells if cell[::2] == (order, arm)]
        t = runs[cells[0]].config.train
        rows = ExtractionOfRows(runs[cells[0]].data, t.batch_size, t.steps, CONTEXT, CONTEXT)
        add(rows, cells, [last], "memorized")
    return found, n_gaps


def neighbour_loss(
    params: SeedsParams, beside: Run, progress: bool = True
) -> tuple[float | None, int]:
    """Final held-out loss of the size next to ours; None and 1 where it cannot be measured."""
    what = LanguageMeasurement.of(beside.data, beside.config.model.max_seq_len)
    place = (beside.id, beside.config.train.steps)
    arrays, gaps = measure_all([(beside, place[1])], what, progress)
    return (float(arrays[place]["loss"].mean()) if place in arrays else None), len(gaps)


# --- for prose -------------------------------------------------------------------------------


def _values(
    params: SeedsParams, tables: dict[str, pd.DataFrame], other: float | None
) -> dict[str, Any]:
    """Names and numbers that prose may quote; shares in percent and points, null for a gap."""
    values: dict[str, Any] = {
        "size": params.size,
        "neighbour": params.neighbour_size,
        "n_seeds": params.seeds,
        "n_grid": params.seeds**2,
        "n_runs": len(params.cells),
        "loss_gap": None,
    }
    kinds = ("sd_order", "sd_weights", "sd_rest", "sd_both", "sd_items", "mean", "change")
    values |= {f"{measure}_{kind}": None for measure in MEASURES for kind in kinds}
    for row in tables["components"].itertuples():
        factor = MEASURES[row.measure]
        ends = {"value": row.value, "low": row.low, "high": row.high}
        values[f"{row.measure}_sd_{row.kind}"] = {k: factor * v for k, v in ends.items()}
    bands = tables["bands"]
    for row in bands[bands.percent == 100].itertuples():
        values[f"{row.measure}_mean"] = MEASURES[row.measure] * row.mean
        if row.measure == "loss" and other is not None:
            values["loss_gap"] = abs(row.mean - other)
    effects = tables["effects"]
    for row in effects[(effects.percent == 100) & (effects.seed == "mean")].dropna().itertuples():
        ends = {"value": row.value, "low": row.low, "high": row.high}
        factor = MEASURES[row.measure]
        values[f"{row.measure}_change"] = {k: factor * v for k, v in ends.items()}
    return values
