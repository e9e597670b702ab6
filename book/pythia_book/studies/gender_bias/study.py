"""The gender-bias study: how much of an association survives an intervention on its data.

The paper (section 3.1) replaces masculine by feminine pronouns in the last 7 % or 21 % of training.
That changes two things at once: how often a model expects a feminine pronoun at all (the prior),
and what it reads about each noun (the association). Here, forks of one control change one or the
other (params.ARMS). Every size and seed has a control and all forks; seed i uses 1234 + i for both
the order of the data and the initial weights. Seeds are the units of every interval.

- log odds: log P(she) - log P(he) after a noun, mean over frames with a nominative slot.
- prior: mean of the log odds over the nouns of a group.
- association: slope of the log odds on those that the control has read about the nouns.
- retained: an arm's association as a fraction of its control's, both at the end of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.corpora import occupations
from pythia_book.stats import mean_over
from pythia_book.studies.gender_bias import coupling, released_numbers
from pythia_book.studies.gender_bias.associations import Slopes, analyse_associations
from pythia_book.studies.gender_bias.claims import LONGER, claims, detectable
from pythia_book.studies.gender_bias.estimates import units_of
from pythia_book.studies.gender_bias.params import (
    CONTROL,
    PLANTED,
    STUDY,
    Cell,
    Params,
)
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_book.tasks.associations import NATURAL, UNSEEN
from pythia_core.errors import CheckpointError
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import Arrays
    from pythia_book.published.results import Published
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
    from pythia_core.training.runs import Run

SCORES = (
    "winobias", "winobias_feminine", "winobias_masculine", "winobias_margin", "crows",
    "crows_margin", "stereoset", "stereoset_margin", "loss", "last_word",
)  # fmt: skip
"""The scores of a model at its end: means over items (WinoBias: over occupations) of the measures
in `measures`."""


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
    """Find or train every run, measure controls and forks, and compare them.

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

    - "log_odds/MODEL/SEED/ARM/STEP": float32[tiers, nouns], means over frames. Tiers and nouns are
      those of the facts.
    - "scores/MODEL/SEED/ARM": float32[SCORES], at the end.
    - "read/SEED": float32[nouns], log odds in the rows that the controls of a seed read; not for
      models whose text has nothing planted, or no association.
    - the arrays of `coupling.measure`.

    Raises:
        ConfigError: see `check`.
        CheckpointError: a checkpoint cannot be measured.
    """
    from pythia_book.measurements import measure_each
    from pythia_book.studies.gender_bias import evidence, released
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
    from pythia_book.studies.registry import train_all
    from pythia_book.tasks.associations import AssociationMeasurement
    from pythia_book.tasks.bias_items import natural_frames

    check(params)
    items, scale = items or Items.load(), scale_named(params.scale)
    cells = list(params.cells())
    if scale.published:
        trained = released.find_or_continue_arms(params, progress)
    else:
        train = find_or_train or partial(train_all, params)
        trained = train({cell: params.config(*cell) for cell in cells}, progress)
    stimuli = occupations.stimuli()
    nouns = [n for n in stimuli.nouns if not scale.published or n.group != occupations.INVENTED]
    frames = {
        "trained": [frame for frame in stimuli.trained if "{he}" in frame],
        UNSEEN: [frame for frame in stimuli.unseen if "{he}" in frame],
        NATURAL: natural_frames(items.winobias),
    }
    groups: dict[Any, list[tuple[Cell, int]]] = {}  # by text and by whether the run ends there
    texts = {}
    for cell in cells:
        text = trained[cell].data.with_heldout()
        texts[text.tokens_folder] = text
        for step in params.steps(cell[2]):
            key = (text.tokens_folder, trained[cell].config.model.max_seq_len, step == scale.steps)
            groups.setdefault(key, []).append((cell, step))
    arrays: Arrays = {}
    batteries: dict[Any, TokenizedItems] = {}
    for (folder, length, last), group in groups.items():
        text = texts[folder]
        battery = batteries.setdefault((folder, length), TokenizedItems(items, text, length))
        association = AssociationMeasurement.of(text, length, frames, nouns)
        measured, gaps = measure_each(
            [(trained[cell], step) for cell, step in group],
            [association, battery.measurement(full=True)][: 1 + last],
            "associations and scores" if last else "associations at the forks",
            progress,
        )
        if gaps:
            raise CheckpointError(f"cannot measure step {gaps[0].step}: {gaps[0].reason}")
        for cell, step in group:
            odds, *full = measured[trained[cell].id, step]
            means = np.stack([odds[tier].mean(axis=0) for tier in frames])
            arrays[name_of("log_odds", *cell, step)] = means.astype(np.float32)
            if last:
                arrays[name_of("scores", *cell)] = _scores(full[0], battery)
    largest = params.size_list[-1]
    if not scale.published:
        for seed in range(params.seeds):
            run = trained[largest, seed, CONTROL]
            planted = evidence.planted_pronouns(run.data, PLANTED)
            read = evidence.read_log_odds(planted, run.data, scale.steps * scale.batch_size)
            arrays[name_of("read", seed)] = read.astype(np.float32)
    forks = [(cell, trained[cell]) for cell in cells if cell[2] != CONTROL]
    facts = {
        "nouns": [
            {"noun": n.name, "group": n.group, "log_odds": float(np.log(n.share / (1 - n.share)))}
            for n in nouns
        ],
        "tiers": {tier: len(of_tier) for tier, of_tier in frames.items()},
        "ledger": [
            {"model": name, "seed": seed, "arm": arm, **_ledger_row(run)}
            for (name, seed, arm), run in forks
        ],
        "examples": [
            {"arm": arm, **example}
            for (name, seed, arm), run in forks
            if (name, seed) == (largest, 0) and not scale.published
            for example in evidence.examples(run, PLANTED)
        ],
        "too_long": sum(next(iter(batteries.values())).too_long.values()),
    }
    coupled, coupled_facts = coupling.measure(params, trained, progress, items)
    return Measurements(arrays | coupled, facts | coupled_facts, list(trained.values()))


def _scores(measured: Mapping[str, np.ndarray], battery: TokenizedItems) -> np.ndarray:
    """Return the SCORES of a model, float32[scores], from the measures of its items."""
    means = {}
    for name, values in measured.items():
        for units in units_of(name, values[None], battery.sentences):
            means[units.measure] = units.values.mean()
    return np.array([means.get(name, np.nan) for name in SCORES], np.float32)


def _ledger_row(run: Run) -> dict[str, Any]:
    """Return what a fork changed in its window of training.

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
    import pandas as pd

    frames = analyse_associations(params, measured)
    slopes = Slopes(params, frames["associations"])
    frames["scores"] = scores_table(params, measured)
    frames["ledger"] = pd.DataFrame(measured.facts["ledger"])
    frames["examples"] = pd.DataFrame(measured.facts["examples"])
    coupled, more = coupling.analyse(params, measured.arrays, measured.facts, released)
    frames |= coupled
    rows = claims(params, measured, slopes, frames, released)
    return frames, values(params, slopes, frames) | released_values(released) | more, rows


def scores_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the scores of every model, seed and arm at the end of training.

    Columns: `model`, `seed`, `arm`, `score`, `value` (shares and losses as measured).
    """
    import pandas as pd

    rows = [
        {"model": name, "seed": seed, "arm": arm, "score": score, "value": float(value)}
        for name, seed, arm in params.cells()
        for score, value in zip(
            SCORES, measured.arrays[name_of("scores", name, seed, arm)], strict=True
        )
    ]
    return pd.DataFrame(rows)


def values(params: Params, slopes: Slopes, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name.

    ARM is a key of params.ARMS or "control", SIZE is "smallest" or "largest". A number without an
    interval over seeds comes without one.

    - `retained_ARM_SIZE`, `shift_ARM_SIZE`: made-up nouns in unseen frames.
    - `retained_ARM`: the mean over sizes; `trained_ARM`, `natural_ARM`: the same in other frames.
    - `association_SIZE`, `prior_SIZE`: of the control.
    - `change_SCORE_ARM`: a score of SCORES, arm minus control, mean over sizes; in points or, for
      `loss`, in nats per token.
    - `tokens_changed_ARM`, `share_changed_ARM`: in one run of the largest size.
    - `per_1000_ARM`: shift of the prior per 1,000 changed tokens, mean over sizes.
    - `detectable_unseen`, `detectable_trained`: see `claims.detectable`.
    - `crossed_SIZE`, `crossed_difference`: what the swap leaves of the association at one common
      learning rate, and largest minus smallest size; None if not trained.
    """
    sizes = {"smallest": params.size_list[0], "largest": params.size_list[-1]}
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list), **sizes, "seeds": params.seeds,
        "crossed_seeds": params.crossed_seeds, "flat_seeds": params.flat_seeds,
        "n_sizes": len(params.size_list),
    }  # fmt: skip
    for role, size in sizes.items():
        control = slopes.rows(size, CONTROL)
        numbers[f"association_{role}"] = shown(control.slope)
        numbers[f"prior_{role}"] = shown(control.prior)
    scores = tables["scores"].pivot_table("value", ["model", "seed"], ["arm", "score"])
    for arm in params.arms:
        for role, size in sizes.items():
            units = slopes.retained(size, arm)
            numbers[f"retained_{arm}_{role}"] = shown(units)
            numbers[f"shift_{arm}_{role}"] = shown(slopes.shift(size, arm))
        for tier, name in ((UNSEEN, "retained"), ("trained", "trained"), (NATURAL, "natural")):
            of_sizes = [slopes.retained(size, arm, tier) for size in params.size_list]
            known = all(units is not None for units in of_sizes)
            numbers[f"{name}_{arm}"] = shown(np.mean(of_sizes, axis=0) if known else None)
        for score in SCORES:
            difference = (scores[arm, score] - scores[CONTROL, score]).loc[list(params.size_list)]
            factor = 1 if score == "loss" or score.endswith("margin") else 100
            numbers[f"change_{score}_{arm}"] = shown(
                factor * difference.groupby("seed").mean().to_numpy()
            )
    ledger = tables["ledger"]
    for arm in params.arms:
        forks = ledger[(ledger["model"] == sizes["largest"]) & (ledger.arm == arm)]
        numbers[f"tokens_changed_{arm}"] = round(forks.tokens_changed.mean())
        shifts = np.mean([slopes.shift(size, arm) for size in params.size_list], axis=0)
        changed = forks.sort_values("seed").tokens_changed.to_numpy()
        numbers[f"per_1000_{arm}"] = shown(1000 * shifts / changed)
        numbers[f"share_changed_{arm}"] = 100 * float(forks.share.mean())
    for tier in (UNSEEN, "trained"):
        numbers[f"detectable_{tier}"] = detectable(tier, params.seeds)
    crossed = {
        model.size: slopes.retained(name, LONGER)
        for name, model in params.models.items()
        if model.rate_of
    }
    ends = [crossed.get(size) for size in sizes.values()]
    for role, units in zip(sizes, ends, strict=True):
        numbers[f"crossed_{role}"] = shown(units)
    known = all(units is not None for units in ends)
    numbers["crossed_difference"] = shown(np.subtract(*ends[::-1])) if known else None
    return numbers


def shown(units: Any) -> Any:
    """Return the mean over seeds with its interval, or alone if there is one seed; None if None."""
    if units is None:
        return None
    e = mean_over(np.asarray(units))
    return e.interval() if e.n_items > 1 else e.value


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
