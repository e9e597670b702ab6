"""Conducts a study: obtains its measurements and analyses them.

A study has two functions. `measure` trains or finds models and returns `Measurements`. `analyse`
turns the measurements and the released numbers into tables, values and claims, and needs no model.
A record contains the measurements and the released numbers. So verdicts, values and figures can be
computed again from a record, without training or measuring (pythia_book.redraw).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from pythia_book import records, verdicts
from pythia_book.published.results import Published, find
from pythia_book.study import Analysis, Measurements, Result, Tables
from pythia_core.errors import DataError


def conduct(
    study: str,
    params: Any,
    measure: Callable[[], Measurements],
    analyse: Callable[[Measurements, Tables], Analysis],
    released: Callable[[Published], Tables] | None = None,
    published: Published | None = None,
) -> Result:
    """Obtain the measurements of a study, analyse them, judge the claims, and return the result.

    In a redraw (a new analysis of an old record), the measurements are read from the record. In
    any other run, `measure` makes the measurements.

    Args:
        params: the parameters of the study, a dataclass.
        measure: a function that trains or finds models, and measures these models.
        analyse: a function that turns measurements and released tables into tables, values and
            claims.
        released: a function that selects from the released results the tables that the study
            shows; None: the study shows no released results.
        published: the released results; None: the results in `PYTHIA_PUBLISHED_DIR`. If this
            variable is not set, the released tables are read from a record of the study.

    Raises:
        DataError: the record to redraw is damaged, was made by an older version of the study, or
            has other parameters than `params`.
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
        tables, values, claims = analyse(measured, numbers)
    except KeyError as error:
        if source is None:
            raise
        raise DataError(
            f"the record of {study} at scale {params.scale} has no {error}: an older version of "
            "the study made it; run the study again"
        ) from error
    judged = verdicts.judge(claims)
    return Result(study, params, tables, values, judged, measured, numbers, started)
