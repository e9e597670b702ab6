"""Finds or trains the runs of the errata study and their unchanged controls, and scores them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.measurements import Arrays, LanguageMeasurement, measure_all
from pythia_book.studies.errata.evidence import COMPUTED
from pythia_book.studies.errata.params import GELU_AFTER_TRAINING, INDICES, Params, run_configs
from pythia_book.studies.registry import train_all
from pythia_book.studies.seeds.params import seed_values
from pythia_book.study import Measurements, name_of
from pythia_core.config import stable_hash
from pythia_core.evaluation.memorization import ExtractionMeasurement
from pythia_core.evaluation.scoring import device_of
from pythia_core.model import GPTNeoX
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    from pythia_core.training.runs import Run


@dataclass(frozen=True)
class OtherGeluMeasurement:
    """A measurement of models after their GELU is replaced by the form `gelu`.

    `transformers` makes this replacement when it loads the models on the hub.
    """

    language: LanguageMeasurement
    gelu: str
    name: str = "language_other_gelu"

    @property
    def digest(self) -> str:
        """A hash of the settings, the key of cached results."""
        return stable_hash([self.language.digest, self.gelu])

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        """Return what `language` measures on a copy of `model` with the GELU replaced."""
        other = GPTNeoX(replace(model.config, gelu=self.gelu))
        other.load_state_dict(model.state_dict())
        other.to(device_of(model))
        return self.language(other.eval().requires_grad_(False), step)


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the runs, measure their checkpoints, and compute the evidence.

    Arrays. NAME is a name in `params.run_configs` or GELU_AFTER_TRAINING. A step that was not
    measured for every seed is left out.

    - loss/NAME/STEP: float32[seeds, rows], held-out loss of each row in nats per token.
    - last_word/NAME/STEP: bool[seeds, words], whether each last word was predicted.

    Facts:

    - "evidence": maps each erratum in COMPUTED to its numbers.
    - "memorized": see `memorized_rows`.
    - "gaps": the number of unmeasured checkpoints.
    """
    runs = train_all(params, run_configs(params), progress)
    scale = scale_named(params.scale)
    steps = sorted({scale.fork_step(index) for index in INDICES} - {0})
    seeds = seed_values(params.seeds)
    language = LanguageMeasurement.of(runs["standard", seeds[0]].data)
    scored, gaps = measure_all([(r, s) for r in runs.values() for s in steps], language, progress)
    scores = {
        (name, seed, s): scored.get((r.id, s)) for (name, seed), r in runs.items() for s in steps
    }
    switches = {s.name: s for s in params.switch_list}
    if "gelu" in switches:
        other_gelu = OtherGeluMeasurement(language, switches["gelu"].value)
        controls = {seed: runs["standard", seed] for seed in seeds}
        checkpoints = [(run, s) for run in controls.values() for s in steps]
        scored, more = measure_all(checkpoints, other_gelu, progress)
        scores |= {
            (GELU_AFTER_TRAINING, seed, s): scored.get((run.id, s))
            for seed, run in controls.items()
            for s in steps
        }
        gaps = gaps + more
    arrays = {}
    for name, step in dict.fromkeys((name, step) for name, _, step in scores):
        results = [r for seed in seeds if (r := scores[name, seed, step]) is not None]
        if len(results) == len(seeds):
            for measure, kind in (("loss", np.float32), ("last_word", bool)):
                stacked = np.stack([r[measure] for r in results]).astype(kind)
                arrays[name_of(measure, name, step)] = stacked
    memorized, n_more = memorized_rows(runs, scale.steps, progress)
    facts = {
        "evidence": {name: compute() for name, compute in COMPUTED.items()},
        "memorized": memorized,
        "gaps": len(gaps) + n_more,
    }
    return Measurements(arrays, facts, list(runs.values()))


def memorized_rows(
    runs: dict[tuple[str, int], Run], last: int, progress: bool
) -> tuple[dict[str, list[list[int]]], int]:
    """Count the rows that each run has memorized at step `last`.

    Returns:
        {name: [[n memorized, n read] of each seed]} for the names of `runs` that were measured for
        every seed, and the number of gaps.
    """
    parts: dict[str, list[list[int]]] = {name: [] for name, _ in runs}
    n_gaps = 0
    for data in {run.data.fingerprint: run.data for run in runs.values()}.values():
        same_data = {n: r for n, r in runs.items() if r.data.fingerprint == data.fingerprint}
        train = next(iter(same_data.values())).config.train
        extraction = ExtractionMeasurement(data, train.batch_size, train.steps)
        arrays, gaps = measure_all([(r, last) for r in same_data.values()], extraction, progress)
        n_gaps += len(gaps)
        for (name, _), run in same_data.items():
            if (run.id, last) in arrays:
                memorized = arrays[run.id, last]["memorized"]
                parts[name].append([int(memorized.sum()), len(memorized)])
    n_seeds = len({seed for _, seed in runs})
    return {name: part for name, part in parts.items() if len(part) == n_seeds}, n_gaps
