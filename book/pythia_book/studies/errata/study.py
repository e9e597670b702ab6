"""Measure the effect of each erratum with runs that differ from the suite in one setting.

Each switch of errata.params defines one run, whose config equals that of the suite's run of that
size in all but one field. Both are scored on the same held-out rows, so differences are paired. A
run with another seed shows how large seed noise is. There is only one run per setting, so intervals
cover the sampling of items but not the variation between training runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pythia_book.measurements import Arrays, LanguageMeasurement, measure_all
from pythia_book.published.results import find as find_published
from pythia_book.released.recipe import schedules
from pythia_book.stats import (
    Estimate,
    as_premise,
    claim_row,
    difference,
    equivalence_verdict,
    estimate,
    wilson,
)
from pythia_book.studies.errata.catalogue import ERRATA
from pythia_book.studies.errata.evidence import Evidence
from pythia_book.studies.errata.params import (
    GELU_AFTER_TRAINING,
    INDICES,
    LABELS,
    OTHER_SEED,
    STUDY,
    Params,
    run_configs,
)
from pythia_book.studies.registry import train_all
from pythia_book.studies.suite.read_counts import pile_reads
from pythia_book.study import Result
from pythia_core.config import stable_hash
from pythia_core.evaluation.memorization import ExtractionMeasurement
from pythia_core.evaluation.scoring import device_of
from pythia_core.model import GPTNeoX
from pythia_core.suite import scale_named
from pythia_core.training.schedule import N_LINEAR

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run

MARGIN = 1.0
"""Changes of the loss up to this percentage of the control's count as none."""
NOT_MEASURED = "not measured"
INTERVAL = ["value", "low", "high"]


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the runs, compare them with their controls, compute the evidence.

    Args:
        published: the released numbers; default: from `PYTHIA_PUBLISHED_DIR`, or none.
    """
    published = published or find_published()
    started = time.time()
    runs = train_all(params, run_configs(params), progress)
    evidence = {erratum.name: erratum.compute(published) for erratum in ERRATA}
    effects, losses, gaps = language_table(params, runs, progress)
    memorized, more_gaps = memorized_table(params, runs, progress)
    tables = {
        "effects": effects,
        "memorized": memorized,
        "errata": errata_table(evidence),
        "schedule": schedules(N_LINEAR)[0],
        "passes": passes_table(),
    }
    last = effects[effects.step == scale_named(params.scale).steps]
    rows = claims(params, last, losses)
    numbers = values(params, last, losses, memorized) | {"gaps": gaps + more_gaps}
    for each in evidence.values():
        numbers |= each.values
    return Result(STUDY, params, tables, numbers, rows, list(runs.values()), started, evidence)


# --- measurements ----------------------------------------------------------------------------


@dataclass(frozen=True)
class OtherGeluMeasurement:
    """Measure a trained model with the other form of GELU, as `transformers` would run it."""

    language: LanguageMeasurement
    gelu: str
    name: str = "language_other_gelu"

    @property
    def digest(self) -> str:
        return stable_hash([self.language.digest, self.gelu])

    def __call__(self, model: GPTNeoX, step: int) -> Arrays:
        other = GPTNeoX(replace(model.config, gelu=self.gelu))
        other.load_state_dict(model.state_dict())
        other.to(device_of(model))
        return self.language(other.eval().requires_grad_(False), step)


def language_table(
    params: Params, runs: dict[str, Run], progress: bool
) -> tuple[pd.DataFrame, dict[str, float], int]:
    """Paired differences from the control, final losses of the controls by arm, number of gaps.

    Columns: variant, measure ("loss": nats per token; "last_word": points), step, percent, value,
    low, high, n.
    """
    import pandas as pd

    scale = scale_named(params.scale)
    steps = sorted({scale.fork_step(index) for index in INDICES} - {0})
    control = runs["standard"]
    language = LanguageMeasurement.of(control.data, control.config.model.max_seq_len)
    arrays, gaps = measure_all([(r, s) for r in runs.values() for s in steps], language, progress)
    measured = {(name, s): arrays.get((runs[name].id, s)) for name in runs for s in steps}
    switches = {s.name: s for s in params.switch_list}
    if "gelu" in switches:
        other_gelu = OtherGeluMeasurement(language, switches["gelu"].value)
        arrays, more_gaps = measure_all([(control, s) for s in steps], other_gelu, progress)
        measured |= {(GELU_AFTER_TRAINING, s): arrays.get((control.id, s)) for s in steps}
        gaps = gaps + more_gaps
    rows = []
    for name, arm in _controls(params).items():
        for step in steps:
            variant, reference = measured[name, step], measured[arm, step]
            if variant is None or reference is None:
                continue
            for measure, factor in (("loss", 1), ("last_word", 100)):
                change = variant[measure].astype(float) - reference[measure]
                e = estimate(
                    change[None], params.bootstrap, change=True, exact=measure == "last_word"
                )
                scaled = {key: factor * value for key, value in e.interval().items()}
                rows.append({"variant": name, "measure": measure, "step": step,
                             "percent": 100 * step / scale.steps, **scaled,
                             "n": e.n_items})  # fmt: skip
    losses = {
        arm: float(at_end["loss"].mean())
        for arm in ("standard", "deduplicated")
        if (at_end := measured.get((arm, steps[-1]))) is not None
    }
    columns = ["variant", "measure", "step", "percent", *INTERVAL, "n"]
    return pd.DataFrame(rows, columns=columns), losses, len(gaps)


def memorized_table(
    params: Params, runs: dict[str, Run], progress: bool
) -> tuple[pd.DataFrame, int]:
    """Share of its training rows that each final model has memorized, and the number of gaps.

    Columns: variant, control and share (percent memorized by the control and by the variant),
    value, low, high (difference in points), n. Differences are unpaired, because runs with
    different data orders read different rows.
    """
    import pandas as pd

    last = scale_named(params.scale).steps
    shares: dict[str, Estimate] = {}
    n_gaps = 0
    for data in {run.data.fingerprint: run.data for run in runs.values()}.values():
        same_data = {n: r for n, r in runs.items() if r.data.fingerprint == data.fingerprint}
        train = next(iter(same_data.values())).config.train
        extraction = ExtractionMeasurement(data, train.batch_size, train.steps)
        arrays, gaps = measure_all([(r, last) for r in same_data.values()], extraction, progress)
        n_gaps += len(gaps)
        for name, run in same_data.items():
            if (run.id, last) in arrays:
                memorized = arrays[run.id, last]["memorized"]
                shares[name] = wilson(int(memorized.sum()), len(memorized)).times(100)
    rows = []
    for name, arm in _controls(params).items():
        if name in shares and arm in shares:
            e = difference(shares[name], shares[arm])
            rows.append({"variant": name, "control": shares[arm].value,
                         "share": shares[name].value, **e.interval(),
                         "n": shares[name].n_items})  # fmt: skip
    return pd.DataFrame(rows, columns=["variant", "control", "share", *INTERVAL, "n"]), n_gaps


def _controls(params: Params) -> dict[str, str]:
    """Variant -> the arm of its control."""
    arms = {s.name: s.arm for s in params.switch_list}
    return (
        arms
        | ({GELU_AFTER_TRAINING: "standard"} if "gelu" in arms else {})
        | {OTHER_SEED: "standard"}
    )


# --- tables that need no training ------------------------------------------------------------


def errata_table(evidence: dict[str, Evidence]) -> pd.DataFrame:
    """The errata without released scores.

    Columns: name, title, told (the claim as usually made), certainty, source, evidence, switch.
    """
    import pandas as pd

    rows = [
        {"name": e.name, "title": e.title, "told": e.claim, "certainty": e.certainty,
         "source": e.source, "evidence": evidence[e.name].text, "switch": e.switch}
        for e in ERRATA
    ]  # fmt: skip
    return pd.DataFrame(rows)


def passes_table() -> pd.DataFrame:
    """Percentage of the deduplicated Pile's tokens that the run reads never, once and twice.

    Columns: policy, times, percent.
    """
    import pandas as pd

    rows = [
        {"policy": policy, "times": times, "percent": 100 * share}
        for policy in ("joint", "separate")
        for times, share in enumerate(pile_reads("deduplicated", policy)[:3])
    ]
    return pd.DataFrame(rows)


# --- claims and values -----------------------------------------------------------------------


def claims(params: Params, last: pd.DataFrame, losses: dict[str, float]) -> list[dict[str, Any]]:
    """One claim per variant on the final held-out loss; `last`: the effects at the last step."""
    (size,) = params.size_list
    loss = last[last.measure == "loss"].set_index("variant")
    rows = []
    for name, arm in _controls(params).items():
        text = f"{LABELS[name]} changes held-out loss by less than {MARGIN:g} % "
        text = f"{text[0].upper()}{text[1:]}({size}, nats per token)"
        change, verdict = None, ""
        if name in loss.index and arm in losses:
            change = Estimate(*loss.loc[name, INTERVAL].astype(float), 0, 1)
            margin = losses[arm] * MARGIN / 100
            verdict = as_premise(equivalence_verdict(change.low, change.high, 0, margin))
        rows.append(claim_row(text, NOT_MEASURED, change, verdict))
    return rows


def values(
    params: Params, last: pd.DataFrame, losses: dict[str, float], memorized: pd.DataFrame
) -> dict[str, Any]:
    """Name -> number, for prose."""
    (size,) = params.size_list
    numbers: dict[str, Any] = {
        "size": size,
        "n_errata": len(ERRATA),
        "margin_percent": MARGIN,
        "loss_standard": losses.get("standard", NOT_MEASURED),
        "loss_deduplicated": losses.get("deduplicated", NOT_MEASURED),
    }
    controls = _controls(params)
    for name in LABELS:  # the pages refer to all of them, measured or not
        for measure in ("loss", "last_word"):
            row = last[(last.variant == name) & (last.measure == measure)]
            numbers[f"{name}_{measure}_change"] = _interval(row)
        change = numbers[f"{name}_loss_change"]
        measured = isinstance(change, dict) and controls.get(name) in losses
        numbers[f"{name}_loss_percent"] = (
            100 * change["value"] / losses[controls[name]] if measured else NOT_MEASURED
        )
        numbers[f"{name}_memorized_change"] = _interval(memorized[memorized.variant == name])
    return numbers


def _interval(row: pd.DataFrame) -> dict[str, float] | str:
    """The estimate in a table with one row; NOT_MEASURED if it is empty."""
    if row.empty:
        return NOT_MEASURED
    return {key: float(row[key].iloc[0]) for key in INTERVAL}
