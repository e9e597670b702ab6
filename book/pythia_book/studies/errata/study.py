"""What the errata cost: models that differ from the suite's in one setting, measured beside it.

Each switch of pythia_book.studies.errata.catalogue that is a field of a config gives one run, equal
to the suite's run of that size in all but this field; both are scored on the same held-out rows, so
that differences are paired. One run with another seed, which changes initial weights and order, is
the yardstick. There is one run of each: intervals speak about the items, not about training again.
Tables only; training is find-or-train.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pythia_book.measurements import Arrays, LanguageMeasurement, measure_all
from pythia_book.published.results import find as find_published
from pythia_book.released.recipe import schedules
from pythia_book.stats import (
    NOT_TESTABLE,
    Estimate,
    as_premise,
    close_verdict,
    difference,
    estimate,
)
from pythia_book.studies.errata.catalogue import ERRATA
from pythia_book.studies.errata.evidence import Evidence
from pythia_book.studies.errata.params import (
    INDICES,
    LABELS,
    READ,
    SEED,
    STUDY,
    ErrataParams,
    run_configs,
)
from pythia_book.studies.registry import train_all
from pythia_book.studies.suite.reading import pile_reads
from pythia_book.study import StudyResult
from pythia_core.config import stable_hash
from pythia_core.evaluation.memorization import ExtractionOfRows
from pythia_core.evaluation.scoring import device_of
from pythia_core.model import GPTNeoX
from pythia_core.suite import scale_named
from pythia_core.training.schedule import N_LINEAR

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run

MARGIN = 1.0
"""Percent of the control's loss that still counts as no change."""
NOT_MEASURED = "not measured"


# --- measurements ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadWithGelu:
    """A trained model measured with the other form of GELU, as converted models are read."""

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
    params: ErrataParams, runs: dict[str, Run], progress: bool
) -> tuple[pd.DataFrame, dict[str, float], int]:
    """effects: variant, measure, step, percent, value, low, high, n: paired differences from the
    control, loss in nats a token and last words in points. Also the controls' final losses by arm,
    and the number of checkpoints that could not be measured.
    """
    import pandas as pd

    scale = scale_named(params.scale)
    steps = sorted({scale.fork_step(index) for index in INDICES} - {0})
    control = runs["standard"]
    what = LanguageMeasurement.of(control.data, control.config.model.max_seq_len)
    found, gaps = measure_all([(r, s) for r in runs.values() for s in steps], what, progress)
    measured = {(name, s): found.get((runs[name].id, s)) for name in runs for s in steps}
    switches = {s.name: s for s in params.switch_list}
    if "gelu" in switches:
        read = ReadWithGelu(what, switches["gelu"].value)
        more, more_gaps = measure_all([(control, s) for s in steps], read, progress)
        measured |= {(READ, s): more.get((control.id, s)) for s in steps}
        gaps = gaps + more_gaps
    rows = []
    for name, arm in _compared(params).items():
        for step in steps:
            both = measured[name, step], measured[arm, step]
            if both[0] is None or both[1] is None:
                continue
            for measure, factor in (("loss", 1), ("last_word", 100)):
                change = both[0][measure].astype(float) - both[1][measure]
                e = estimate(
                    change[None], params.bootstrap, change=True, exact=measure == "last_word"
                )
                shown = {key: factor * value for key, value in e.interval().items()}
                rows.append({"variant": name, "measure": measure, "step": step,
                             "percent": 100 * step / scale.steps, **shown,
                             "n": e.n_items})  # fmt: skip
    columns = ["variant", "measure", "step", "percent", "value", "low", "high", "n"]
    losses = {
        arm: float(arrays["loss"].mean())
        for arm in ("standard", "deduplicated")
        if (arrays := measured.get((arm, steps[-1]))) is not None
    }
    return pd.DataFrame(rows, columns=columns), losses, len(gaps)


def memorized_table(
    params: ErrataParams, runs: dict[str, Run], progress: bool
) -> tuple[pd.DataFrame, int]:
    """variant, control, share (percent of the rows read that the final models have memorized),
    value, low, high (their difference in points), n; and the number of gaps. Rows of different
    orders are different rows, hence not paired.
    """
    import pandas as pd
    from scipy.stats import binomtest

    last = scale_named(params.scale).steps
    found: dict[str, Estimate] = {}
    n_gaps = 0
    for data in {run.data.fingerprint: run.data for run in runs.values()}.values():
        mine = {n: r for n, r in runs.items() if r.data.fingerprint == data.fingerprint}
        some = next(iter(mine.values())).config.train
        what = ExtractionOfRows(data, some.batch_size, some.steps)
        arrays, gaps = measure_all([(run, last) for run in mine.values()], what, progress)
        n_gaps += len(gaps)
        for name, run in mine.items():
            if (run.id, last) not in arrays:
                continue
            memorized = arrays[run.id, last]["memorized"]
            test = binomtest(int(memorized.sum()), len(memorized))
            low, high = test.proportion_ci(method="wilson")
            share = [100 * v for v in (test.statistic, low, high)]
            found[name] = Estimate(*share, len(memorized), 1)
    rows = []
    for name, arm in [*((s.name, s.arm) for s in params.switch_list), (SEED, "standard")]:
        if name in found and arm in found:
            e = difference(found[name], found[arm])
            rows.append({"variant": name, "control": found[arm].value, "share": found[name].value,
                         **e.interval(), "n": found[name].n_items})  # fmt: skip
    columns = ["variant", "control", "share", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns), n_gaps


# --- what needs no training ------------------------------------------------------------------


def errata_table(evidence: dict[str, Evidence]) -> pd.DataFrame:
    """name, title, told, certainty, source, evidence, switch; without what released scores say."""
    import pandas as pd

    rows = [
        {"name": e.name, "title": e.title, "told": e.told, "certainty": e.certainty,
         "source": e.source, "evidence": evidence[e.name].text, "switch": e.switch}
        for e in ERRATA
    ]  # fmt: skip
    return pd.DataFrame(rows)


def passes_table() -> pd.DataFrame:
    """policy, times, percent: of the deduplicated Pile's tokens, read so often by the run."""
    import pandas as pd

    rows = [
        {"policy": policy, "times": times, "percent": 100 * share}
        for policy in ("joint", "separate")
        for times, share in enumerate(pile_reads("deduplicated", policy)[:3])
    ]
    return pd.DataFrame(rows)


# --- the whole -------------------------------------------------------------------------------


def run(
    params: ErrataParams, progress: bool = True, published: Published | None = None
) -> StudyResult:
    """Find or train the runs, measure them beside their controls, compute the evidence.

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
    claims = claims_table(params, last, losses)
    values = _values(params, last, losses, memorized) | {"gaps": gaps + more_gaps}
    for found in evidence.values():
        values |= found.values
    return StudyResult(
        STUDY, params, tables, values, claims, list(runs.values()), started, evidence
    )


def claims_table(
    params: ErrataParams, last: pd.DataFrame, losses: dict[str, float]
) -> list[dict[str, Any]]:
    """One claim a variant on the final held-out loss; `last`: the effects of the last step."""
    (size,) = params.size_list
    loss = last[last.measure == "loss"].set_index("variant")
    rows = []
    for name, arm in _compared(params).items():
        claim = {
            "claim": f"{LABELS[name]} changes held-out loss by less than {MARGIN:g} % "
            f"({size}, nats a token)",
            "paper": NOT_MEASURED,
            "published": None,
            **dict.fromkeys(("ours", "low", "high")),
            "verdict": NOT_TESTABLE,
        }
        if name in loss.index and arm in losses:
            value, low, high = loss.loc[name, ["value", "low", "high"]].astype(float)
            verdict = as_premise(close_verdict(low, high, 0, losses[arm] * MARGIN / 100))
            claim |= {"ours": value, "low": low, "high": high, "verdict": verdict}
        claim["claim"] = claim["claim"][0].upper() + claim["claim"][1:]
        rows.append(claim)
    return rows


def _compared(params: ErrataParams) -> dict[str, str]:
    """Every row of the comparison, with the arm of its control."""
    rows = {s.name: s.arm for s in params.switch_list}
    return rows | ({READ: "standard"} if "gelu" in rows else {}) | {SEED: "standard"}


def _values(
    params: ErrataParams, last: pd.DataFrame, losses: dict[str, float], memorized: pd.DataFrame
) -> dict[str, Any]:
    (size,) = params.size_list
    values: dict[str, Any] = {
        "size": size,
        "n_errata": len(ERRATA),
        "margin_percent": MARGIN,
        "loss_standard": losses.get("standard", NOT_MEASURED),
        "loss_deduplicated": losses.get("deduplicated", NOT_MEASURED),
    }
    compared = _compared(params)
    for name in LABELS:  # a page names them all, whichever were asked for
        for measure in ("loss", "last_word"):
            row = last[(last.variant == name) & (last.measure == measure)]
            values[f"{name}_{measure}_change"] = _interval(row)
        change = values[f"{name}_loss_change"]
        measured = isinstance(change, dict) and compared.get(name) in losses
        values[f"{name}_loss_percent"] = (
            100 * change["value"] / losses[compared[name]] if measured else NOT_MEASURED
        )
        values[f"{name}_memorized_change"] = _interval(memorized[memorized.variant == name])
    return values


def _interval(row: pd.DataFrame) -> dict[str, float] | str:
    if row.empty:
        return NOT_MEASURED
    return {key: float(row[key].iloc[0]) for key in ("value", "low", "high")}
