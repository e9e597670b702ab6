"""The gender-bias study: how much of an association survives an intervention on its data.

The paper (section 3.1) replaces masculine with feminine pronouns in the last 7 % or 21 % of
training. That changes two things at once: how often a model expects a feminine pronoun at all (the
prior), and what it reads about each noun (the association). Here, forks of one control change one
or the other (params.ARMS). Every size and seed has a control and all forks; seed i uses 1234 + i
for both the order of the data and the initial weights. Seeds are the units of every interval.

- log odds: log P(she) - log P(he) after a noun, mean over frames with a nominative slot.
- prior: mean of the log odds over the nouns of a group.
- association: slope of the model's log odds against those in the text that the control has read.
- retained: an arm's association as a fraction of its control's, both at the end of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.corpora import occupations
from pythia_book.records import number_text, value_text
from pythia_book.studies.gender_bias import checkpoints, coupling, evidence, released_numbers
from pythia_book.studies.gender_bias.associations import (
    FORK,
    GRADIENT,
    MIXTURE,
    PLANTED_FRAMES,
    Slopes,
    analyze_associations,
    excess_over,
    seed_mean,
)
from pythia_book.studies.gender_bias.claims import claims, detectable, detectable_released
from pythia_book.studies.gender_bias.estimates import units_of
from pythia_book.studies.gender_bias.params import (
    ARMS,
    CONTROL,
    LONGER,
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
    "winobias", "winobias_feminine", "winobias_masculine", "winobias_margin",
    "winobias_feminine_margin", "winobias_masculine_margin", "crows", "crows_margin", "stereoset",
    "stereoset_margin", "loss", "loss_rest", "last_word",
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
        find_or_train: finds or trains the run of every config, in place of `train_all`.
        published: released numbers; by default, from `PYTHIA_PUBLISHED_DIR` or the study's record.

    Raises:
        ConfigError: see `check`.
    """
    return conduct(
        STUDY,
        params,
        partial(measure, params, progress, items, find_or_train),
        partial(analyze, params),
        lambda results: released_numbers.select(results) | coupling.released(results),
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

    - "log_odds/MODEL/SEED/ARM/STEP": float32[kinds of frames, nouns], means over frames. Kinds and
      nouns are those of the facts.
    - "frames/MODEL/SEED/KIND": float16[frames, nouns of the first group], log odds of the control
      at the end, frame by frame.
    - "scores/MODEL/SEED/ARM": float32[SCORES], at the end.
    - "read/SEED": float32[nouns], log odds in the rows that the controls of a seed read; not for
      models whose text has nothing planted, or no association.
    - the arrays of `coupling.measure`.

    Files: those of `checkpoints.export`.

    Raises:
        ConfigError: see `check`.
        CheckpointError: a checkpoint cannot be measured.
    """
    from pythia_book.measurements import measure_each
    from pythia_book.studies.gender_bias import released
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
        PLANTED_FRAMES: [frame for frame in stimuli.trained if "{he}" in frame],
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
    for (folder, length, last), group in groups.items():
        text = texts[folder]
        measurements: list[Any] = [AssociationMeasurement.of(text, length, frames, nouns)]
        if last:
            tokenized = TokenizedItems(items, text, length)
            measurements.append(tokenized.measurement(full=True))
        measured, gaps = measure_each(
            [(trained[cell], step) for cell, step in group],
            measurements,
            "associations and scores" if last else "associations before the end",
            progress,
        )
        if gaps:
            gap = gaps[0]
            raise CheckpointError(f"cannot measure {gap.run_id}, step {gap.step}: {gap.reason}")
        for cell, step in group:
            odds, *scores = measured[trained[cell].id, step]
            means = np.stack([odds[kind].mean(axis=0) for kind in frames])
            arrays[name_of("log_odds", *cell, step)] = means.astype(np.float32)
            if last:
                arrays[name_of("scores", *cell)] = _scores(scores[0], tokenized)
            if last and cell[2] == CONTROL:
                primary = [noun.group == nouns[0].group for noun in nouns]
                for kind in frames:
                    name = name_of("frames", *cell[:2], kind)
                    arrays[name] = odds[kind][:, primary].astype(np.float16)
    largest = params.size_list[-1]
    if not scale.published:
        planted_text = {
            seed: trained[name, seed, CONTROL]
            for name, model in params.models.items()
            if not model.flat
            for seed in range(model.seeds)
        }
        for seed, run in planted_text.items():
            planted = evidence.planted_pronouns(run.data, PLANTED)
            read = evidence.read_log_odds(planted, run.data, scale.steps * scale.batch_size)
            arrays[name_of("read", seed)] = read.astype(np.float32)
    forks = [(cell, trained[cell]) for cell in cells if cell[2] != CONTROL]
    facts = {
        "nouns": [
            {"noun": n.name, "group": n.group, "log_odds": float(np.log(n.share / (1 - n.share)))}
            for n in nouns
        ],
        "frames": {kind: len(of_kind) for kind, of_kind in frames.items()},
        "ledger": [
            {
                "model": name,
                "seed": seed,
                "arm": arm,
                **_ledger_row(run, trained[name, seed, CONTROL]),
            }
            for (name, seed, arm), run in forks
        ],
        "examples": [
            {"arm": arm, **example}
            for (name, seed, arm), run in forks
            if (name, seed) == (largest, 0) and not scale.published
            for example in evidence.examples(run, PLANTED)
        ],
    }
    coupled, coupled_facts = coupling.measure(params, trained, progress, items)
    files, exported = checkpoints.export(params, Measurements(arrays, facts), trained)
    facts |= coupled_facts | {"checkpoints": exported}
    return Measurements(arrays | coupled, facts, list(trained.values()), files)


def _scores(measured: Mapping[str, np.ndarray], items: TokenizedItems) -> np.ndarray:
    """Return the SCORES of a model, float32[scores], from the measures of its items."""
    means = {}
    for name, values in measured.items():
        for units in units_of(name, values[None], items.sentences):
            means[units.measure] = units.values.mean()
    return np.array([means.get(name, np.nan) for name in SCORES], np.float32)


def _ledger_row(run: Run, control: Run) -> dict[str, Any]:
    """Return what a fork changed in its window of training, and whether it did nothing else.

    - `start`, `stop`: the window, in updates.
    - `tokens_changed`
    - `share`: the fraction of the window's tokens that is changed.
    - `inside`, `outside`: the number of the fork's updates inside and outside the window.
    - `changed_inside`, `changed_outside`: how many of these do not read the control's batch, by
      the hashes in the logs of both runs.
    - `misplaced`: changed tokens outside the domains that the arm declares.
    """
    ledger, domains = run.ledger, run.config.intervention and run.config.intervention.domains
    hashes = {row["step"]: row["batch_hash"] for row in control.metrics()}
    row = {"start": ledger.start, "stop": ledger.stop, "tokens_changed": run.tokens_changed}
    row |= {"share": evidence.share_changed(run), "misplaced": 0}
    row |= dict.fromkeys(("inside", "outside", "changed_inside", "changed_outside"), 0)
    for update in run.metrics():
        where = "inside" if ledger.start < update["step"] <= ledger.stop else "outside"
        row[where] += 1
        row[f"changed_{where}"] += hashes[update["step"]] != update["batch_hash"]
    if domains:
        order = run.data.order
        places = order.positions(order.places(ledger.row, ledger.column))
        row["misplaced"] = int((~run.data.in_domains(places, domains)).sum())
    return row


# --- analysis --------------------------------------------------------------------------------


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers alone."""
    import pandas as pd

    frames = analyze_associations(params, measured)
    slopes = Slopes(params, frames["associations"])
    frames["scores"] = scores_table(params, measured)
    frames["ledger"] = pd.DataFrame(measured.facts["ledger"])
    frames["examples"] = pd.DataFrame(measured.facts["examples"])
    coupled, more = coupling.analyze(params, measured.arrays, measured.facts, released)
    frames |= coupled
    rows = claims(params, measured, slopes, frames, released)
    numbers = values(params, measured, slopes, frames) | released_values(released) | more
    numbers |= {f"detectable_{name}": text for name, text in detectable_released(rows).items()}
    return frames, numbers, rows


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


def values(
    params: Params, measured: Measurements, slopes: Slopes, tables: Mapping[str, pd.DataFrame]
) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name.

    ARM is a key of params.ARMS, SIZE is "smallest" or "largest". With one seed, numbers have no
    interval; None means not measured. All are about made-up nouns in unseen frames, unless stated
    otherwise.

    - `retained_ARM_SIZE`, `shift_ARM_SIZE`; `retained_ARM`, `shift_ARM`: the mean over sizes.
    - `retained_difference`: under the longer swap, largest minus smallest size;
      `retained_difference_planted`: in planted frames.
    - `before_return`: mean over sizes of what the swap has left when "restored" gets its text back;
      `return_gain`: what "restored" retains at its end minus that.
    - `excess_SIZE`, `excess_difference`: what the longer swap retains beyond "mixture";
      `excess_difference_planted`: in planted frames;
      `excess`, `excess_FRAMES`, `excess_mirror`: the mean over sizes, in other frames, and of the
      longer mirror; `gradient`, `gradient_FRAMES`, `gradient_mirror`: beyond "gradient".
    - `absent_difference`: what `absent_21` retains, largest minus smallest size.
    - `control_since_fork`: the control's association at its end minus that at the earlier fork.
    - `planted_shift_ARM`: the shift of the prior in planted frames, mean over sizes;
      `planted_shift_SIZE`: of the longer swap.
    - `since_fork_ARM`: the association minus the control's at the fork, mean over sizes.
    - `occupations_ARM`, `definitional_ARM`: mean over sizes of what is retained for other nouns;
      `natural_ARM`: in natural contexts; `natural_shift_ARM`: the shift of the prior after
      occupations there.
    - `change_SCORE_ARM`: a score of SCORES, arm minus control, mean over sizes; in points or, for
      losses and margins, in nats.
    - `tokens_changed_ARM`, `share_changed_ARM`: means over the runs of the largest size.
    - `per_1000_ARM`: shift of the prior per 1,000 changed tokens, mean over sizes.
    - `detectable_unseen`, `detectable_planted`: see `claims.detectable`.
    - `weakest_control`: a text on the smallest association among the largest size's controls.
    - `crossed`: a text on what the swap leaves at one common learning rate.
    """
    sizes = {"smallest": params.size_list[0], "largest": params.size_list[-1]}
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list), **sizes, "seeds": params.seeds
    }  # fmt: skip

    def mean_of_sizes(units: list[np.ndarray | None]) -> Any:
        known = all(of_size is not None for of_size in units)
        return seed_mean(np.mean(units, axis=0) if known else None)

    def difference(units: list[np.ndarray | None]) -> Any:
        """Estimate the last of several values minus the first."""
        known = len(units) > 1 and units[0] is not None and units[-1] is not None
        return seed_mean(np.subtract(units[-1], units[0]) if known else None)

    def retained(arm: str, **options: Any) -> list[np.ndarray | None]:
        return [slopes.retained(size, arm, **options) for size in params.size_list]

    numbers["retained_difference"] = difference(retained(LONGER))
    numbers["retained_difference_planted"] = difference(retained(LONGER, frames=PLANTED_FRAMES))
    before = retained(LONGER, window=ARMS["restored"].until)
    numbers["before_return"] = mean_of_sizes(before)
    if "restored" in params.arms:
        known = all(units is not None for units in before)
        pairs = zip(retained("restored"), before, strict=True)
        numbers["return_gain"] = mean_of_sizes(
            [np.subtract(*pair) for pair in pairs] if known else [None]
        )

    def excess(arm: str, frames: str = UNSEEN, reference: str = MIXTURE) -> list[np.ndarray | None]:
        if arm not in params.arms:
            return [None]
        return [
            excess_over(reference, params, measured, slopes, size, arm, frames)
            for size in params.size_list
        ]

    unseen = excess(LONGER)
    for role, units in zip(sizes, (unseen[0], unseen[-1]), strict=True):
        numbers[f"excess_{role}"] = seed_mean(units)
    numbers["excess_difference"] = difference(unseen)
    numbers["excess_difference_planted"] = difference(excess(LONGER, PLANTED_FRAMES))
    for name, reference in (("excess", MIXTURE), ("gradient", GRADIENT)):
        for ending, arm, frames in (
            ("", LONGER, UNSEEN),
            ("_planted", LONGER, PLANTED_FRAMES),
            ("_natural", LONGER, NATURAL),
            ("_mirror", "mirror_21", UNSEEN),
        ):
            numbers[name + ending] = mean_of_sizes(excess(arm, frames, reference))
    if "absent_21" in params.arms:
        numbers["absent_difference"] = difference(retained("absent_21"))
    window = ARMS[LONGER].window
    numbers["control_since_fork"] = mean_of_sizes(
        [slopes.of(s, CONTROL) - slopes.of(s, CONTROL, window=window) for s in params.size_list]
    )
    for role, size in sizes.items():
        numbers[f"planted_shift_{role}"] = seed_mean(slopes.shift(size, LONGER, PLANTED_FRAMES))
    scores = tables["scores"].pivot_table("value", ["model", "seed"], ["arm", "score"])
    ledger = tables["ledger"]
    for arm in params.arms:
        for role, size in sizes.items():
            numbers[f"retained_{arm}_{role}"] = seed_mean(slopes.retained(size, arm))
            numbers[f"shift_{arm}_{role}"] = seed_mean(slopes.shift(size, arm))
        numbers[f"retained_{arm}"] = mean_of_sizes(retained(arm))
        numbers[f"shift_{arm}"] = mean_of_sizes([slopes.shift(s, arm) for s in params.size_list])
        numbers[f"planted_shift_{arm}"] = mean_of_sizes(
            [slopes.shift(size, arm, PLANTED_FRAMES) for size in params.size_list]
        )
        for group in ("occupations", "definitional"):
            numbers[f"{group}_{arm}"] = mean_of_sizes(retained(arm, group=group))
        numbers[f"natural_{arm}"] = mean_of_sizes(retained(arm, frames=NATURAL))
        numbers[f"natural_shift_{arm}"] = mean_of_sizes(
            [slopes.shift(size, arm, NATURAL, "occupations") for size in params.size_list]
        )
        numbers[f"since_fork_{arm}"] = mean_of_sizes(
            [slopes.difference(size, arm, FORK) for size in params.size_list]
        )
        for score in SCORES:
            change = (scores[arm, score] - scores[CONTROL, score]).loc[list(params.size_list)]
            factor = 1 if score.startswith("loss") or score.endswith("margin") else 100
            numbers[f"change_{score}_{arm}"] = seed_mean(
                factor * change.groupby("seed").mean().to_numpy()
            )
        forks = ledger[(ledger["model"] == sizes["largest"]) & (ledger.arm == arm)]
        changed = forks.sort_values("seed").tokens_changed.to_numpy()
        shifts = np.mean([slopes.shift(size, arm) for size in params.size_list], axis=0)
        numbers[f"tokens_changed_{arm}"] = round(changed.mean())
        numbers[f"share_changed_{arm}"] = 100 * float(forks.share.mean())
        numbers[f"per_1000_{arm}"] = seed_mean(1000 * shifts / changed)
    for frames in (UNSEEN, PLANTED_FRAMES):
        numbers[f"detectable_{frames}"] = detectable(frames, params.seeds)
    numbers["weakest_control"] = _weakest(slopes.of(sizes["largest"], CONTROL))
    numbers["crossed"] = _crossed(params, slopes)
    return numbers


def _weakest(slopes: np.ndarray) -> str:
    """Compare the smallest of the slopes of several seeds with the others, e.g. as a range."""
    if len(slopes) == 1:
        return "not known from a single seed"
    seed = int(slopes.argmin())
    others = np.delete(slopes, seed)
    low, high = (number_text(end, 2) for end in (others.min(), others.max()))
    return f"{number_text(slopes[seed], 2)} (seed {seed}; the others: {low} to {high})"


def _crossed(params: Params, slopes: Slopes) -> str:
    """Say what models that have another size's learning rate retain after the swap."""
    texts = []
    for name, model in params.models.items():
        if model.rate_of:
            kept = seed_mean(slopes.retained(name, LONGER))
            texts.append(
                f"{model.size} retains {value_text(kept)}"
                if kept is not None
                else f"for {model.size} this cannot be said, because over its {model.seeds} seeds "
                "the association of the controls is not shown to differ from 0"
            )
    return "; ".join(texts) or "this run has no such models"


def released_values(released: Tables) -> dict[str, str]:
    """Return the released numbers that the page quotes, by name, each as text or "not available".

    - `first_stand_for`, `first_refers_to`: see `released_numbers.first_swapped`.
    - `crows_rise_70m`: how many points the swapped 70M model is above its control on CrowS-Pairs
      for gender.
    - `lambada_change`: accuracy on LAMBADA, swap in the last 7 % minus control, in points; mean
      over models with its interval.
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
    table = released.get("lambada")
    change = None if table is None else released_numbers.at_end(table, "swap_7")
    e = None if change is None else released_numbers.mean_of_models(change)
    texts["lambada_change"] = value_text(e.interval()) if e else "not available"
    return texts
