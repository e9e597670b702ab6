"""The gender-bias intervention (paper section 3.1): training continues with swapped pronouns.

For each size and seed there is a control run, and two forks that read exactly the same batches,
but with masculine pronouns replaced by feminine ones (or the reverse) in the last 7 % or the last
21 % of training. They fork at the 133rd and 113th of the 143 evenly spaced checkpoints, as in the
paper. Seed i uses 1234 + i for both data order and initial weights.

Arms are compared from the first fork to the end (gender_bias.measures). Every effect is a paired
difference with a bootstrap interval (stats).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import measure_all
from pythia_book.published.results import find as find_published
from pythia_book.stats import estimate
from pythia_book.studies.gender_bias.claims import claims
from pythia_book.studies.gender_bias.measures import (
    STRATIFIED,
    Items,
    Measured,
    TokenizedItems,
    is_choice,
)
from pythia_book.studies.gender_bias.params import ARMS, BRANCH, STUDY, Params
from pythia_book.studies.registry import train_all
from pythia_book.study import Result
from pythia_core.errors import CheckpointError
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run


Key = tuple[str, str, int]
"""(size, arm, step)."""
Strata = dict[str, np.ndarray]
"""Measure -> stratum of each item, for measures that are resampled within strata."""


def check(params: Params) -> None:
    """Check that the models and data that scale paper needs are available.

    Raises:
        ConfigError: lists what is missing, with sizes and hours.
    """
    if scale_named(params.scale).published:
        from pythia_book.studies.gender_bias import released

        released.check(params)


def run(
    params: Params,
    progress: bool = True,
    items: Items | None = None,
    find_or_train: Callable[..., dict[Any, Run]] | None = None,
    published: Published | None = None,
) -> Result:
    """Find or train every run, measure the arms and compare them.

    Args:
        items: the evaluation items; default: those in the pinned wheels.
        find_or_train: returns the runs of configs; default: `train_all`.
        published: the released numbers; default: from `PYTHIA_PUBLISHED_DIR`, or none.

    Raises:
        ConfigError: see `check`.
    """
    from pythia_book.studies.gender_bias import released

    check(params)
    find_or_train = find_or_train or partial(train_all, params)
    published = published or find_published()
    started = time.time()
    items = items or Items.load()
    scale = scale_named(params.scale)
    cells = [
        (size, i, arm) for size in params.size_list for i in range(params.seeds) for arm in ARMS
    ]
    if scale.published:
        trained = released.find_or_continue_arms(params, progress)
    else:
        trained = find_or_train({cell: params.arm(*cell) for cell in cells}, progress)
    runs = list(trained.values())
    texts = {run.id: run.data.with_heldout() for run in runs}
    tokenized: dict[str, TokenizedItems] = {}  # by fingerprint of the text
    for run in runs:
        text = texts[run.id]
        if text.fingerprint not in tokenized:
            tokenized[text.fingerprint] = TokenizedItems(items, text, run.config.model.max_seq_len)
    first_items = tokenized[texts[runs[0].id].fingerprint]
    checkpoints = [(cell, trained[cell], step) for cell in cells for step in params.steps(cell[2])]
    arrays_at, gaps = {}, []
    for full in (False, True):
        for fingerprint, items_of_text in tokenized.items():
            group = [
                (run, step)
                for _, run, step in checkpoints
                if (step >= scale.fork_step(BRANCH[0])) == full
                and texts[run.id].fingerprint == fingerprint
            ]
            arrays, missing = measure_all(group, items_of_text.measurement(full), progress)
            arrays_at |= arrays
            gaps += missing
    if final_gaps := [gap for gap in gaps if gap.step == scale.steps]:
        reason = final_gaps[0].reason
        raise CheckpointError(f"the last checkpoint of a run cannot be measured: {reason}")
    measured: dict[Key, list[Measured]] = {}
    for (size, _, arm), run, step in checkpoints:
        if (run.id, step) in arrays_at:
            measured.setdefault((size, arm, step), []).append(arrays_at[run.id, step])
    arrays = {key: _stack(seeds) for key, seeds in measured.items() if len(seeds) == params.seeds}
    ledgers = [
        {"size": size, "seed": i, "arm": arm, **_ledger_row(trained[size, i, arm])}
        for size, i, arm in cells
        if ARMS[arm] is not None
    ]
    halves = {name: first_items.feminine_job for name in STRATIFIED}
    frames = tables(params, items, arrays, ledgers, halves)
    final = {(s, a): arrays[s, a, scale.steps] for s in params.size_list for a in ARMS}
    rows = claims(params, final, published, halves)
    numbers = values(params, items, frames)
    numbers["n_too_long"] = sum(first_items.too_long.values())
    numbers["gaps"] = len(gaps)
    return Result(STUDY, params, frames, numbers, rows, runs, started, published)


def _ledger_row(run: Run) -> dict[str, Any]:
    ledger = run.ledger
    window = (ledger.stop - ledger.start) * ledger.batch_size * run.config.data.seq_len
    return {
        "start": ledger.start,
        "stop": ledger.stop,
        "tokens_in_window": window,
        "tokens_changed": run.tokens_changed,
        "share": run.tokens_changed / window,
    }


# --- tables ----------------------------------------------------------------------------------


def _stack(measures: list[Measured]) -> dict[str, np.ndarray]:
    """Measure -> float[seeds, items], for the measures that all seeds have."""
    names = [n for n in measures[0] if all(n in other for other in measures)]
    return {name: np.stack([other[name] for other in measures]) for name in names}


def tables(
    params: Params,
    items: Items,
    arrays: dict[Key, dict[str, np.ndarray]],
    ledgers: list[dict],
    halves: Strata,
) -> dict[str, pd.DataFrame]:
    """All tables of the study.

    levels: size arm measure value low high n seeds, for the final weights.
    effects: the same with value = arm - control, paired.
    branch: levels at every measured step (before the first fork, TRACKED_MEASURES only) and
        percent = 100 step / steps; the first point of a fork is that of its parent.
    branch_effects: branch with value = arm - control, paired.
    occupations: size arm occupation value n (contexts).
    ledger: the tokens that each fork changed.
    """
    import pandas as pd

    scale, arrays = scale_named(params.scale), dict(arrays)
    for size in params.size_list:  # a fork's first point is the control's at the fork
        for arm, index in ARMS.items():
            if index is not None:
                step = scale.fork_step(index)
                arrays[size, arm, step] = arrays[size, "control", step]

    def summary(name: str, values: np.ndarray, change: bool, exact: bool) -> dict[str, Any]:
        e = estimate(values, params.bootstrap, 0, halves.get(name), change, exact)
        return {**e.interval(), "n": e.n_items, "seeds": e.n_seeds}

    branch, branch_effects, levels, effects, occupations = [], [], [], [], []
    jobs, job_of = items.jobs()
    contexts = np.bincount(job_of, minlength=len(jobs))
    for (size, arm, step), measures in sorted(arrays.items(), key=lambda cell: cell[0][2]):
        keys = {"size": size, "arm": arm}
        percent = {"step": step, "percent": 100 * step / scale.steps}
        for name, values in measures.items():
            level = summary(name, values, change=False, exact=is_choice(name))
            branch.append({**keys, "measure": name, **percent, **level})
            if step == scale.steps:
                levels.append({**keys, "measure": name, **level})
            if arm != "control":
                difference = values - arrays[size, "control", step][name]
                forked = step != scale.fork_step(ARMS[arm])  # at the fork both are the same model
                change = summary(name, difference, change=True, exact=forked and is_choice(name))
                branch_effects.append({**keys, "measure": name, **percent, **change})
                if step == scale.steps:
                    effects.append({**keys, "measure": name, **change})
        if step != scale.steps:
            continue
        share = measures["feminine_share"].mean(0)
        for job, value, n in zip(jobs, share, contexts, strict=True):
            occupations.append({**keys, "occupation": job, "value": value, "n": n})
    frames = {
        "levels": pd.DataFrame(levels),
        "effects": pd.DataFrame(effects),
        "branch": pd.DataFrame(branch),
        "branch_effects": pd.DataFrame(branch_effects),
        "occupations": pd.DataFrame(occupations),
        "ledger": pd.DataFrame(ledgers),
    }
    ranks = {name: rank for names in (params.size_list, ARMS) for rank, name in enumerate(names)}
    return {
        name: frame.sort_values(
            ["size", "arm"], key=lambda c: c.map(ranks), kind="stable", ignore_index=True
        )
        for name, frame in frames.items()
    }


def values(params: Params, items: Items, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Name -> number, for prose; measures are those of the largest size."""
    largest = params.size_list[-1]
    levels, effects = (
        frame[frame["size"] == largest].set_index(["measure", "arm"])
        for frame in (tables["levels"], tables["effects"])
    )
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": largest,
        "seeds": params.seeds,
        "n_contexts": len(items.contexts),
    }
    interval = ["value", "low", "high"]
    halves = [f"winobias_{half}" for half in ("feminine", "masculine")]
    for name in ("winobias", *halves, "crows", "stereoset", "feminine_share", "loss", "last_word"):
        if (name, "control") not in levels.index:  # this half has no items
            continue
        numbers[f"n_{name}"] = int(levels.n[name, "control"])
        for arm in ARMS:
            numbers[f"{name}_{arm}"] = levels.loc[(name, arm), interval].to_dict()
            if arm != "control":
                numbers[f"{name}_change_{arm}"] = effects.loc[(name, arm), interval].to_dict()
    ledger = tables["ledger"]
    for arm in ("swap_7", "swap_21"):
        forks = ledger[(ledger["size"] == largest) & (ledger.arm == arm)]
        numbers[f"tokens_changed_{arm}"] = round(forks.tokens_changed.mean())
        numbers[f"share_changed_{arm}"] = float(forks.share.mean())
    return numbers
