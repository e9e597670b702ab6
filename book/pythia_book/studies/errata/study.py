"""Measures the effect of each erratum with runs that differ from the suite in one setting.

A control is a run of the suite. Each entry of SWITCHES in errata.params changes one config field of
a control. The changed run and its control have the same seed and are scored on the same held-out
rows. Intervals are over seeds, for these rows only; with one seed, there are no intervals.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.stats import mean_over, negated
from pythia_book.studies.errata.catalog import ERRATA, STATUSES
from pythia_book.studies.errata.claims import INTERVAL, MARGIN, claims, estimate_of
from pythia_book.studies.errata.evidence import Evidence, released_tables
from pythia_book.studies.errata.params import LABELS, STUDY, Params, controls
from pythia_book.studies.suite.read_counts import pile_reads
from pythia_book.verdicts import ALPHA, NOT_MEASURED, holm
from pythia_core.suite import scale_named
from pythia_core.training.schedule import N_LINEAR

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.study import Analysis, Measurements, Result, Tables


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the runs, compare them with their controls, and compute the evidence.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """

    def measured() -> Measurements:
        from pythia_book.studies.errata.measure import measure

        return measure(params, progress)

    analyzing = partial(analyze, params)
    return conduct(STUDY, params, measured, analyzing, released_tables, published)


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released tables."""
    evidence = evidence_of(measured.facts, released)
    effects, losses = effects_table(params, measured), control_losses(params, measured)
    memorized = memorized_table(params, measured.facts["memorized"])
    from pythia_book.released.recipe import schedules

    tables = {
        "effects": effects,
        "memorized": memorized,
        "errata": errata_table(evidence),
        "schedule": schedules(N_LINEAR)[0],
        "passes": passes_table(),
    }
    last = effects[effects.step == scale_named(params.scale).steps]
    numbers = values(params, last, losses, memorized) | {"gaps": measured.facts["gaps"]}
    for each in evidence.values():
        numbers |= each.values
    return tables, numbers, claims(params, last, losses, memorized)


def evidence_of(facts: dict[str, Any], released: Tables) -> dict[str, Evidence]:
    """Map the name of each erratum to its evidence; `released` may be empty."""
    computed = facts["evidence"]
    return {e.name: e.from_values(computed.get(e.name, {}), released) for e in ERRATA}


# --- measurements ----------------------------------------------------------------------------


def effects_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Compare every variant (a model with one changed setting) with its control, step by step.

    The result has the mean over seeds of variant minus control, with the columns

    - `variant`
    - `measure`: "loss" in nats per token, or "last_word" in points.
    - `step`, `percent` of training.
    - `value`, `low`, `high`: a t-interval over seeds; NaN with one seed.
    - `n`: seeds.
    """
    import pandas as pd

    steps = scale_named(params.scale).steps
    rows = []
    for name, arm in controls(params).items():
        for measure, factor in (("loss", 1), ("last_word", 100)):
            for (at,), variant in measured.under(measure, name):
                reference = measured.get(measure, arm, at)
                if reference is None:
                    continue
                change = mean_over(factor * (_means(variant) - _means(reference)))
                rows.append({"variant": name, "measure": measure, "step": int(at),
                             "percent": 100 * int(at) / steps, **change.interval(),
                             "n": change.n_seeds})  # fmt: skip
    columns = ["variant", "measure", "step", "percent", *INTERVAL, "n"]
    return pd.DataFrame(rows, columns=columns)


def _means(scores: np.ndarray) -> np.ndarray:
    """Return the mean of [seeds, items] over items, float64[seeds]."""
    return scores.mean(axis=1, dtype=float)


def control_losses(params: Params, measured: Measurements) -> dict[str, np.ndarray]:
    """Map the training text of each control to its final held-out losses, float64[seeds]."""
    steps = scale_named(params.scale).steps
    at_end = {arm: measured.get("loss", arm, steps) for arm in controls(params).values()}
    return {arm: _means(loss) for arm, loss in at_end.items() if loss is not None}


def memorized_table(params: Params, counts: dict[str, list[list[int]]]) -> pd.DataFrame:
    """Compare the percentages of training rows that final models and controls have memorized.

    - `variant`
    - `control`, `share`: the percentages of the variant's control and of the variant, means over
      seeds.
    - `value`, `low`, `high`: their difference in points, with a t-interval over seeds; NaN with one
      seed.
    - `n`: seeds.

    Args:
        counts: see `measure.memorized_rows`.
    """
    import pandas as pd

    percent = {name: 100 * np.divide(*np.transpose(seeds)) for name, seeds in counts.items()}
    rows = [
        {"variant": name, "control": percent[arm].mean(), "share": percent[name].mean(),
         **mean_over(percent[name] - percent[arm]).interval(), "n": len(percent[name])}
        for name, arm in controls(params).items()
        if name in percent and arm in percent
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["variant", "control", "share", *INTERVAL, "n"])


# --- tables that need no training ------------------------------------------------------------


def errata_table(evidence: dict[str, Evidence]) -> pd.DataFrame:
    """Return the table of the errata with their evidence.

    - `name`, `title`, `status`, `source`, `evidence`
    - `claim`: the claim as usually made.
    - `links`: separated by spaces.
    - `released`: what released scores show.
    - `switch`: the setting of this library that reproduces or corrects the error.
    """
    import pandas as pd

    rows = [
        {"name": e.name, "title": e.title, "claim": e.claim, "status": e.status,
         "source": e.source, "links": " ".join(e.links), "evidence": evidence[e.name].text,
         "released": evidence[e.name].released or None, "switch": e.switch}
        for e in ERRATA
    ]  # fmt: skip
    return pd.DataFrame(rows)


def passes_table() -> pd.DataFrame:
    """Return the percentage of the deduplicated Pile's tokens that are read 0, 1 or 2 times.

    Columns: `policy` ("joint" or "separate" epochs), `times`, `percent`.
    """
    import pandas as pd

    rows = [
        {"policy": policy, "times": times, "percent": 100 * share}
        for policy in ("joint", "separate")
        for times, share in enumerate(pile_reads("deduplicated", policy)[:3])
    ]
    return pd.DataFrame(rows)


# --- values ----------------------------------------------------------------------------------


def values(
    params: Params, last: pd.DataFrame, losses: dict[str, np.ndarray], memorized: pd.DataFrame
) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name; a missing number is NOT_MEASURED.

    `memorized_differing` has the variants whose share of memorized rows differs from the control's,
    by intervals over seeds and after Holm's correction.
    """
    (size,) = params.size_list
    numbers: dict[str, Any] = {
        "size": size,
        "n_errata": len(ERRATA),
        **{f"n_{status}": sum(e.status == status for e in ERRATA) for status in STATUSES},
        "margin_percent": MARGIN,
        "margin_nats": NOT_MEASURED,
        "n_seeds": params.seeds,
        **{f"loss_{arm}": NOT_MEASURED for arm in ("standard", "deduplicated")},
        **{f"loss_{arm}": float(each.mean()) for arm, each in losses.items()},
        "seed_sd_percent": NOT_MEASURED,
        "memorized_differing": NOT_MEASURED,
    }
    if "standard" in losses:
        numbers["margin_nats"] = MARGIN / 100 * numbers["loss_standard"]
    if params.seeds > 1 and "standard" in losses:
        each = losses["standard"]
        numbers["seed_sd_percent"] = 100 * float(each.std(ddof=1) / each.mean())
    if params.seeds > 1 and len(memorized):
        changes = {r.variant: estimate_of(r) for r in memorized.itertuples()}
        p = holm({name: e.p_value() for name, e in changes.items() if e.low < e.high})
        differing = [LABELS[name] for name in changes if p.get(name, 1.0) <= ALPHA]
        numbers["memorized_differing"] = ", ".join(differing) or "none"
    texts = controls(params)
    for name in LABELS:  # the pages refer to all of them, measured or not
        for measure in ("loss", "last_word"):
            row = last[(last.variant == name) & (last.measure == measure)]
            numbers[f"{name}_{measure}_change"] = _interval(row)
        row = last[(last.variant == name) & (last.measure == "loss")]
        if not row.empty:
            row = row.assign(**100 * row[INTERVAL] / losses[texts[name]].mean())
        numbers[f"{name}_loss_percent"] = _interval(row)
        if isinstance(percent := numbers[f"{name}_loss_percent"], dict):
            numbers[f"{name}_lowers_percent"] = negated(percent)
        else:
            numbers[f"{name}_lowers_percent"] = percent if row.empty else -percent
        numbers[f"{name}_memorized_change"] = _interval(memorized[memorized.variant == name])
    return numbers


def _interval(row: pd.DataFrame) -> dict[str, float] | float | str:
    """Return value, low and high of a table with one row.

    Without an interval, return the value alone; NOT_MEASURED if the table is empty.
    """
    if row.empty:
        return NOT_MEASURED
    numbers = {key: float(row[key].iloc[0]) for key in INTERVAL}
    return numbers if np.isfinite(numbers["low"]) else numbers["value"]
