"""Phases of early training: from single tokens to pairs to induction, over all 154 checkpoints.

For a few sizes of the suite, on the standard text: when a model is nearest to what unigrams,
bigrams and trigrams of its training text predict, when its loss falls below theirs (Belrose et al.
2024, arXiv:2402.04362), whether it learns to go on with a sequence it has read before (Olsson et
al. 2022, arXiv:2209.11895), and when the logit lens of a layer comes close to the final prediction.
How it is measured is in pythia_core.phases. A step has an interval like any estimate: rows are
resampled and it is found again. Tables only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from pythia_core.phases import PhasesMeasurement, prefix_chance
from pythia_core.runs import find_or_train_all
from pythia_core.scales import scale_named
from pythia_core.schedule import checkpoint_steps
from pythia_core.studies.measured import measure_all
from pythia_core.studies.phases_claims import claims_table, values_of
from pythia_core.studies.phases_tables import tables_of
from pythia_core.studies.study import StudyParams, StudyResult
from pythia_core.suite import suite_configs

STUDY = "phases"
DEFAULT_SIZES = {"smoke": "7k", "laptop": "25k,150k,600k"}


@dataclass(frozen=True)
class PhasesParams(StudyParams):
    """Parameters of the study."""

    seed: int = 1234
    bootstrap: int = 2000

    WHOLE: ClassVar = {"seed": (0, 2**32 - 1), "bootstrap": (100, 1_000_000)}

    @property
    def size_list(self) -> tuple[str, ...]:
        return scale_named(self.scale).size_list(self.sizes, DEFAULT_SIZES.get(self.scale, ""))


Params = PhasesParams
"""Under this name a study's parameters are checked before its notebook runs."""


def run(params: PhasesParams, progress: bool = True) -> StudyResult:
    """Find or train the sizes, measure every checkpoint, find the steps."""
    started = time.time()
    configs = suite_configs(params.scale, params.size_list, ("standard",), params.seed)
    runs = {size: r for (size, _), r in find_or_train_all(configs, progress).items()}
    some = next(iter(runs.values()))
    train = some.config.train
    what = PhasesMeasurement(
        some.data, some.config.model.vocab_size, train.steps * train.batch_size
    )
    steps = checkpoint_steps(train.steps)
    cells = [(r, step) for r in runs.values() for step in steps]
    found, gaps = measure_all(cells, what, progress)
    kept = {
        size: {step: found[r.id, step] for step in steps if (r.id, step) in found}
        for size, r in runs.items()
    }
    tables = tables_of(params.bootstrap, kept, what.ngrams(), what.probe())
    claims = claims_table(params, kept, prefix_chance(what.probe().copies.shape[1] // 2))
    values = values_of(params, kept, what.probe()) | {
        "gaps": len(gaps),
        "n_checkpoints": len(steps),
        "tokens_read": what.n_read * some.data.config.seq_len,
        "strength_2": what.ngrams().strengths[0],
        "strength_3": what.ngrams().strengths[1],
    }
    return StudyResult(STUDY, params, tables, values, claims, list(runs.values()), started)
