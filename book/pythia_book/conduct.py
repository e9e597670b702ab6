"""Conducts a study: obtains its measurements and analyzes them.

`measure` trains or finds models and returns `Measurements`. `analyze` turns measurements and
released numbers into tables, values and claims, and needs no model. A record contains both inputs
of `analyze`, so pythia_book.redraw can repeat the analysis without training or measuring.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from pythia_book import records, seed_spread, verdicts
from pythia_book.published.results import Published, find
from pythia_book.study import Analysis, Measurements, Result, Tables
from pythia_core.errors import DataError


def conduct(
    study: str,
    params: Any,
    measure: Callable[[], Measurements],
    analyze: Callable[[Measurements, Tables], Analysis],
    released: Callable[[Published], Tables] | None = None,
    published: Published | None = None,
    seed_bands: bool = False,
) -> Result:
    """Measure a study (or read what was recorded, in a redraw), analyze it, and judge its claims.

    Args:
        params: the parameters of the study, a dataclass.
        measure: trains or finds models, and measures them.
        analyze: turns measurements and released tables into tables, values and claims.
        released: selects the released tables that the study shows; None: no tables.
        published: the released results; None: the results in `PYTHIA_PUBLISHED_DIR` or, if this is
            not set, the released tables in a record of the study.
        seed_bands: whether figures draw `style.seed_band`; if so, the table
            `seed_spread.TABLE` is added to the study's tables.

    Raises:
        DataError: the record to redraw is damaged, was made by an older version of the study, or
            has parameters that differ from `params`.
    """
    started = time.time()
    source = records.redraw_source()
    if source:
        measured = records.read_measurements(source, study, asdict(params))
    else:
        measured = measure()
        measured = replace(measured, facts=records.facts_as_recorded(measured.facts))
    numbers: Tables = {}
    if released is not None:
        published = published or find()
        if published is not None:
            numbers = records.as_recorded(released(published))
        else:
            numbers = records.read_released(source or records.recorded_folder(study))
    try:
        tables, values, claims = analyze(measured, numbers)
    except KeyError as error:
        if source is None:
            raise
        raise DataError(
            f"the record of {study} at scale {params.scale} has no {error}: an older version of "
            "the study made it; run the study again"
        ) from error
    if seed_bands:
        tables = {**tables, seed_spread.TABLE: seed_spread.find(params.scale, source)}
    judged = verdicts.judge(claims)
    return Result(study, params, tables, values, judged, measured, numbers, started)
