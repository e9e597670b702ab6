"""The gender-bias intervention (paper section 3.1): training continues with swapped pronouns.

Each size and seed has a control run and two forks. A fork reads the same batches as its control,
but masculine pronouns are replaced by feminine ones (or the reverse) in the last 7 % or 21 % of
training. As in the paper, these forks start at the 133rd and at the 113th of the 143 evenly spaced
checkpoints. Seed i uses 1234 + i for both data order and initial weights.

Fork and control are compared item by item. studies.gender_bias.estimates says what the intervals
cover.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.studies.gender_bias import coupling, released_numbers
from pythia_book.studies.gender_bias.claims import claims, coupling_claims
from pythia_book.studies.gender_bias.estimates import Sentences, Units, is_choice, units_of
from pythia_book.studies.gender_bias.params import ARMS, BRANCH, STUDY, Params, coupled_runs
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.errors import CheckpointError
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.studies.gender_bias.measures import Items, Measured
    from pythia_core.training.runs import Run


Cell = tuple[str, str, int]
"""(size, arm, step)."""
Final = dict[str, Units]
"""Maps a measure to its values by unit."""
OVER_TRAINING = ("feminine_share", "crows")
OVER_BRANCH = (*OVER_TRAINING, "winobias", "loss")
"""Measures to keep at steps from the first fork on. OVER_TRAINING has those to keep at every step.
At the last step, all measures are kept."""


def check(params: Params) -> None:
    """Raise a ConfigError that lists missing models and data for `paper`, if any are missing."""
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
    """Find or train every run, measure controls and swaps, and compare them.

    Args:
        items: the evaluation items; by default, those in the pinned wheels.
        find_or_train: gets the run of every config, instead of `train_all`.
        published: released numbers; by default, from `PYTHIA_PUBLISHED_DIR` or the study's record.

    Raises:
        ConfigError: see `check`.
    """
    return conduct(
        STUDY,
        params,
        partial(measure, params, progress, items, find_or_train),
        partial(analyse, params),
        lambda found: released_numbers.select(found) | coupling.released(found),
        published,
    )


# --- measuring -------------------------------------------------------------------------------


def measure(
    params: Params,
    progress: bool = True,
    items: Items | None = None,
    find_or_train: Callable[..., dict[Any, Run]] | None = None,
) -> Measurements:
    """Find or train every run and measure its checkpoints.

    Arrays:

    - "MEASURE/SIZE/ARM/STEP": [seeds, items]; present only if all seeds were measured.
    - "winobias_occupation": for each WinoBias sentence, the index of its occupation.
    - "winobias_feminine": for each WinoBias sentence, whether the stereotype is feminine.
    - the arrays of `coupling.measure`.

    Raises:
        ConfigError: see `check`.
        CheckpointError: the last checkpoint of a run cannot be measured.
    """
    from pythia_book.measurements import measure_all
    from pythia_book.studies.gender_bias import released
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
    from pythia_book.studies.registry import train_all

    check(params)
    items, scale = items or Items.load(), scale_named(params.scale)
    cells = [
        (size, i, arm) for size in params.size_list for i in range(params.seeds) for arm in ARMS
    ]
    if scale.published:
        trained = released.find_or_continue_arms(params, progress)
    else:
        train = find_or_train or partial(train_all, params)
        arms = {cell: params.arm(*cell) for cell in cells}
        trained = train(arms | coupled_runs(params), progress)
    runs = list(trained.values())
    texts = {run.id: run.data.with_heldout() for run in runs}
    tokenized: dict[str, TokenizedItems] = {}  # by fingerprint of the text
    for run in runs:
        text = texts[run.id]
        if text.fingerprint not in tokenized:
            tokenized[text.fingerprint] = TokenizedItems(items, text, run.config.model.max_seq_len)
    battery = tokenized[texts[runs[0].id].fingerprint]
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
        raise CheckpointError(f"cannot measure the last checkpoint of a run: {reason}")
    measured: dict[Cell, list[Measured]] = {}
    for (size, _, arm), run, step in checkpoints:
        if (run.id, step) in arrays_at:
            measured.setdefault((size, arm, step), []).append(arrays_at[run.id, step])
    arrays = {
        name_of(name, *cell): array
        for cell, seeds in measured.items()
        if len(seeds) == params.seeds
        for name, array in _stacked(seeds, cell[2], params).items()
    }
    arrays["winobias_occupation"] = battery.sentences.occupation.astype(np.uint8)
    arrays["winobias_feminine"] = battery.sentences.feminine
    jobs, job_of = items.jobs()
    stereotypes = items.stereotypes()
    facts = {
        "occupations": jobs,
        "contexts": np.bincount(job_of).tolist(),
        "stereotypes": [int(stereotypes.get(job, -1)) for job in jobs],
        "ledger": [
            {"size": size, "seed": i, "arm": arm, **_ledger_row(trained[size, i, arm])}
            for size, i, arm in cells
            if ARMS[arm] is not None
        ],
        "too_long": sum(battery.too_long.values()),
        "gaps": [f"{gap.run_id}, step {gap.step}: {gap.reason}" for gap in gaps],
    }
    coupled, coupled_facts = coupling.measure(params, trained, progress, items)
    return Measurements(arrays | coupled, facts | coupled_facts, runs)


def _stacked(seeds: list[Measured], step: int, params: Params) -> dict[str, np.ndarray]:
    """Map each measure that is kept at `step` to the results of all seeds, [seeds, items]."""
    scale = scale_named(params.scale)
    kept = OVER_BRANCH if step >= scale.fork_step(BRANCH[0]) else OVER_TRAINING
    names = kept if step != scale.steps else seeds[0]
    return {
        name: np.stack([seed[name] for seed in seeds]).astype(
            bool if is_choice(name) else np.float32
        )
        for name in names
    }


def _ledger_row(run: Run) -> dict[str, Any]:
    """Return how many tokens a fork changed in its window of training.

    - `start`, `stop`: the window, in updates.
    - `tokens_in_window`, `tokens_changed`
    - `share`: the fraction of tokens changed.
    """
    ledger = run.ledger
    window = (ledger.stop - ledger.start) * ledger.batch_size * run.config.data.seq_len
    return {
        "start": ledger.start,
        "stop": ledger.stop,
        "tokens_in_window": window,
        "tokens_changed": run.tokens_changed,
        "share": run.tokens_changed / window,
    }


# --- analysis --------------------------------------------------------------------------------


def analyse(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers alone."""
    sentences = Sentences(*(measured.arrays[f"winobias_{n}"] for n in ("occupation", "feminine")))
    cells: dict[Cell, Final] = {}
    for name, array in measured.arrays.items():
        if name.count("/") == 3:
            measure, size, arm, step = name.split("/")
            units = {u.measure: u for u in units_of(measure, array, sentences)}
            cells.setdefault((size, arm, int(step)), {}).update(units)
    frames = tables(params, cells, measured.facts)
    end = scale_named(params.scale).steps
    final = {(size, arm): cells[size, arm, end] for size in params.size_list for arm in ARMS}
    stereotypes = np.array(measured.facts["stereotypes"])
    rows = claims(params, final, released, stereotypes)
    numbers = values(params, measured, frames) | released_values(released)
    coupled, more = coupling.analyse(params, measured.arrays, measured.facts, released)
    rows += coupling_claims(params, coupled["coupling"])
    return frames | coupled, numbers | more, rows


def tables(
    params: Params, cells: dict[Cell, Final], facts: dict[str, Any]
) -> dict[str, pd.DataFrame]:
    """Return the tables of the study, except for those of coupling.

    - `levels`: `size`, `arm`, `measure`, `value`, `low`, `high`, `n`, `seeds`, for the final
      weights. `n` counts items or, for WinoBias and the feminine share, occupations.
    - `effects`: the columns of `levels`. The values are paired differences, arm minus control.
    - `branch`: the columns of `levels`, `step` and `percent` of training, for every measured step.
      A fork begins with its control's values at the fork.
    - `branch_effects`: the columns of `branch`, with differences as in `effects`.
    - `occupations`: `size`, `arm`, `occupation`, `value` (feminine share), `n` (contexts).
    - `ledger`: `size`, `seed`, `arm` and the keys of `_ledger_row`.
    """
    import pandas as pd

    scale, cells = scale_named(params.scale), dict(cells)
    for size in params.size_list:  # a fork's first point is the control's at the fork
        for arm, index in ARMS.items():
            if index is not None:
                step = scale.fork_step(index)
                cells[size, arm, step] = cells[size, "control", step]

    def summary(units: Units, change: bool, exact: bool = True) -> dict[str, Any]:
        """Return value, low, high, n and seeds of a table's row."""
        e = units.interval(params.bootstrap, change, exact)
        return {**e.interval(), "n": units.values.shape[1], "seeds": len(units.values)}

    branch, branch_effects, levels, effects, occupations = [], [], [], [], []
    for (size, arm, step), measures in sorted(cells.items(), key=lambda cell: cell[0][2]):
        keys = {"size": size, "arm": arm}
        percent = {"step": step, "percent": 100 * step / scale.steps}
        for name, units in measures.items():
            level = summary(units, change=False)
            branch.append({**keys, "measure": name, **percent, **level})
            if step == scale.steps:
                levels.append({**keys, "measure": name, **level})
            if arm != "control":
                difference = units.minus(cells[size, "control", step][name])
                forked = step != scale.fork_step(ARMS[arm])  # at the fork both are the same model
                change = summary(difference, change=True, exact=forked)
                branch_effects.append({**keys, "measure": name, **percent, **change})
                if step == scale.steps:
                    effects.append({**keys, "measure": name, **change})
        if step != scale.steps:
            continue
        share = measures["feminine_share"].values.mean(0)
        for job, value, n in zip(facts["occupations"], share, facts["contexts"], strict=True):
            occupations.append({**keys, "occupation": job, "value": value, "n": n})
    frames = {
        "levels": pd.DataFrame(levels),
        "effects": pd.DataFrame(effects),
        "branch": pd.DataFrame(branch),
        "branch_effects": pd.DataFrame(branch_effects),
        "occupations": pd.DataFrame(occupations),
        "ledger": pd.DataFrame(facts["ledger"]),
    }
    ranks = {name: rank for names in (params.size_list, ARMS) for rank, name in enumerate(names)}
    return {
        name: frame.sort_values(
            ["size", "arm"], key=lambda c: c.map(ranks), kind="stable", ignore_index=True
        )
        for name, frame in frames.items()
    }


def values(
    params: Params, measured: Measurements, tables: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name.

    Measures are of the largest model; shares are fractions, and loss is in nats per token.
    """
    largest = params.size_list[-1]
    levels, effects = (
        frame[frame["size"] == largest].set_index(["measure", "arm"])
        for frame in (tables["levels"], tables["effects"])
    )
    feminine = measured.arrays["winobias_feminine"]
    end = (largest, "control", scale_named(params.scale).steps)
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": largest,
        "seeds": params.seeds,
        "n_contexts": sum(measured.facts["contexts"]),
        "n_winobias_feminine": int(feminine.sum()),
        "n_winobias_masculine": int((~feminine).sum()),
        "n_too_long": measured.facts["too_long"],
        "gaps": len(measured.facts["gaps"]),
    }
    interval = ["value", "low", "high"]
    halves = [f"winobias_{half}" for half in ("feminine", "masculine")]
    for name in ("winobias", *halves, "crows", "stereoset", "feminine_share", "loss", "last_word"):
        if (name, "control") not in levels.index:  # this half has no items
            continue
        if name not in halves:
            numbers[f"n_{name}"] = measured.arrays[name_of(name, *end)].shape[1]
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


def released_values(released: Tables) -> dict[str, str]:
    """Return the released numbers that the page quotes, by name, each as text or "not available".

    - `first_stand_for`, `first_refers_to`: see `released_numbers.first_swapped`.
    - `crows_rise_70m`: how many points the swapped 70M model is above its control on CrowS-Pairs
      for gender.
    """
    texts = {}
    table = released.get("winobias")
    for prompt, name in zip(
        released_numbers.PROMPTS, ("first_stand_for", "first_refers_to"), strict=True
    ):
        steps = [] if table is None else released_numbers.first_swapped(table, prompt)
        texts[name] = ", ".join(steps) or "not available"
    table = released.get("crows")
    ends = None if table is None else released_numbers.at_end(table, "swap_7").set_index("size")
    known = ends is not None and "70m" in ends.index
    texts["crows_rise_70m"] = f"{ends.change['70m']:.1f}" if known else "not available"
    return texts
