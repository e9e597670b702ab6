"""The hypotheses and claims of the gender-bias study, and how they are tested.

Hypotheses are ours and were written down before the recorded seeds were trained (LOG.md,
2026-11-29). They are about made-up nouns in unseen frames. Intervals of our numbers are over seeds,
paired where arms or sizes share them; with a single seed there is no interval and no verdict.
Intervals of released numbers are over models.

The paper's claims about WinoBias are tested on associations of the same forty occupations, because
our controls have not been shown to be above chance on WinoBias itself (see the premises). Of the
scores of our models, only the response of CrowS-Pairs to `complement_21` is tested: it shows
whether the prior alone moves this score. It was already known that the prior alone moves the scores
of the two halves of WinoBias.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.records import number_text, value_text
from pythia_book.stats import Estimate, difference, mean_over
from pythia_book.studies.gender_bias import released_numbers as numbers
from pythia_book.studies.gender_bias.associations import (
    MIXTURE,
    PLANTED_FRAMES,
    excess_over,
    seed_mean,
)
from pythia_book.studies.gender_bias.coupling import (
    PLACEBO_WINDOW,
    TESTED_WINDOW,
    compared_z,
    unit_z,
)
from pythia_book.studies.gender_bias.params import CONTROL, LONGER
from pythia_book.studies.gender_bias.released_numbers import NO_NUMBERS
from pythia_book.tasks.associations import UNSEEN
from pythia_book.verdicts import (
    Claim,
    Test,
    falls,
    passes,
    rises,
    smallest_seen,
    untestable,
    within,
)

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.gender_bias.associations import Slopes
    from pythia_book.studies.gender_bias.params import Params
    from pythia_book.study import Measurements

MARGIN = 0.15
"""A retained association counts as unchanged within this distance of 1. It is half of what was lost
in the pilot when the planted sentences were absent."""
FLAT_MARGIN = 0.03
"""A slope counts as zero within this, a tenth of what the controls of the pilot learned."""
SHIFT_MARGIN = 0.4
"""A prior counts as unchanged within this, in logits. It is a tenth of what the swap shifted the
prior by in the pilot."""
PILOT_SD = {UNSEEN: 0.297, PLANTED_FRAMES: 0.061}
"""Standard deviation, over three pilot seeds, of what 600k retains under the swap minus what 25k
retains, by kind of frame (LOG.md, 2026-11-29)."""
CHANCE = 0.5
"""The score of a model without preference on WinoBias and CrowS-Pairs."""
SHORTER = "swap_7"

STATED = "this book, stated after a pilot"
FILES = "evals/ of EleutherAI/pythia at commit a19eecb"
"""Cited as the source of premises about released numbers; no paper states these premises."""
SETUP = "assumed in section 3.1"
ASSUMED = "assumed by the hypotheses"
ONE_SEED = "one seed: the variation between seeds was not measured"
ONE_SIZE = "a single size was trained"
NOT_TRAINED = "this arm was not trained"
NO_REVERSE = (
    "no swapped text has the reverse association, so whatever is left of the association is above "
    "0; for the halves of WinoBias, see the premises"
)
HALVES_KNOWN = (
    "known when it was written: an earlier record of three of the seeds had shown it, and a shift "
    "of the prior must move the halves apart"
)
OTHER_METRIC = (
    "the raw results of the paper's WinoBias metric were not released; the released answers, "
    "another metric, are tested as premises"
)
ASSOCIATION = (
    "the forty occupations in sentence frames that were never planted: slope of log P(she) - "
    'log P(he) against the log odds of "she" in what was read about an occupation; for WinoBias '
    "itself see the premises"
)
SWAP_NOT_SHOWN = "it is not shown that the pronouns of these models were swapped; without a swap,"
"""The first words of a reason for no verdict: the result would arise without a swap, too."""
COST_KNOWN = 'a margin for "little" was set only when the losses of an earlier run were known'
TOO_FEW = "too few checkpoints of our own forks at this scale"
FISHER = "(Fisher's z)"
"""The unit of differences in coupling."""
CROWS_CLAIM = "The swap in the last {} % of training lowers the CrowS-Pairs gender bias."
LEAD_PREMISE = (
    f'In the released answers to the WinoBias prompt "{numbers.COMPARABLE}", the swap narrows the '
    "lead of stereotypical over anti-stereotypical sentences"
)
RETAINED, SLOPE = "of the association", "logits per logit read"
"""The units of retained associations and of associations, which are slopes."""

QUOTES = {
    "winobias": "a decrease in stereotypical accuracy for each intervention and across model scale",
    "turned": "successfully changes the model throughout training on the intervention from a "
    "pro-stereotypical bias to an anti-stereotypical one",
    "winobias_by_size": "We hypothesize that these results indicate that larger capacity models "
    "show less pro-stereotypical bias due to their ability to learn more complex relationships "
    "between occupation and pronouns",
    "winobias_contrast": "We hypothesize that these results indicate [...] that the intervention "
    "effect size increases across scale for similar reasons",
    "crows": "a reduction in the bias as a result of swapping the gendered pronouns in the last 7% "
    "or 21% of the training for all model sizes",
    "contrast": "but most prominently for the larger ones",
    "by_size": "although these are also more biased to begin with",
    "cost": "the interventions only lead to a marginal decrease in the model perplexity on LAMBADA "
    "[...] swapping gendered pronouns does not lead to major dips in accuracy",
}


def claims(
    params: Params,
    measured: Measurements,
    slopes: Slopes,
    tables: Mapping[str, pd.DataFrame],
    released: Mapping[str, pd.DataFrame],
) -> list[Claim]:
    """Return the hypotheses, the paper's claims and the premises, each with its tests.

    Args:
        tables: the study's tables; `scores` and `coupling` are used.
        released: the tables of `released_numbers.select`; empty without released numbers.
    """
    ours, theirs = _Ours(params, measured, slopes, tables["scores"]), _Released(released)
    return [
        *ours.hypotheses(),
        *_paper_claims(ours, theirs),
        *ours.premises(),
        contract(tables["ledger"]),
        *theirs.premises(),
        *coupling_claims(tables["coupling"]),
    ]


def _paper_claims(ours: _Ours, theirs: _Released) -> list[Claim]:
    """Return the claims of section 3.1, tested on our runs and on the released models."""
    rows = []
    for arm, window in ((SHORTER, 7), (LONGER, 21)):
        rows.append(
            Claim(
                f"The swap in the last {window} % of training lowers the association between "
                'occupations and pronouns: the log odds of "she" after an occupation depend less '
                'on how often "she" was read about it (mean over sizes).',
                "section 3.1, Figure 2",
                ours.association(arm, falls),
                untestable(OTHER_METRIC),
                QUOTES["winobias"],
            )
        )
    rows += [
        Claim(
            "The swap turns the largest model from pro- to anti-stereotypical.",
            "section 3.1, Figure 2",
            ours.turned(),
            quote=QUOTES["turned"],
        ),
        Claim(
            "The largest model has less of the association than the smallest (a hypothesis of the "
            "paper, on larger models).",
            "section 3.1",
            ours.largest_is_less_biased(),
            quote=QUOTES["winobias_by_size"],
        ),
        Claim(
            "The swap in the last 21 % of training leaves a smaller part of the association in "
            "the largest model than in the smallest (a hypothesis of the paper, on larger "
            "models).",
            "section 3.1",
            ours.effect_by_size(),
            quote=QUOTES["winobias_contrast"],
        ),
    ]
    for arm, window in ((SHORTER, 7), (LONGER, 21)):
        rows.append(
            Claim(
                CROWS_CLAIM.format(window),
                "section 3.1, Figure 1",
                released=theirs.change("crows", arm, falls, "320 pairs"),
                quote=QUOTES["crows"],
            )
        )
    rows += [
        Claim(
            "The swap lowers the CrowS-Pairs gender bias most in the larger models.",
            "section 3.1, Figure 1",
            released=theirs.slope("crows", "change", falls),
            quote=QUOTES["contrast"],
        ),
        Claim(
            "The larger models have more CrowS-Pairs gender bias before the swap.",
            "section 3.1, Figure 1",
            released=theirs.slope("crows", "control", rises, theirs.over_all_sizes()),
            quote=QUOTES["by_size"],
        ),
    ]
    for arm, window in ((SHORTER, 7), (LONGER, 21)):
        note = theirs.perplexity(arm)
        rows.append(
            Claim(
                f"The swap in the last {window} % of training costs little in language modeling.",
                "section 3.1, Appendix C.1, Figure 6",
                ours.cost(arm),
                theirs.change("lambada", arm, _no_cost, "5,153 passages", sign=-1, note=note),
                QUOTES["cost"],
            )
        )
    return rows


def _no_cost(e: Estimate | None, unit: str, units: str, note: str = "") -> Test:
    """Return a test that shows a loss of accuracy without a verdict; arguments are as in `falls`.

    A small loss could also mean that the released models were never trained on swapped text.
    """
    reason = f"{SWAP_NOT_SHOWN} there is no cost either"
    return untestable(reason, e, f"{unit} of accuracy lost", units, note)


# --- our runs --------------------------------------------------------------------------------


class _Ours:
    """Tests on our own runs. Units are seeds; sizes are averaged within a seed, or compared."""

    def __init__(
        self, params: Params, measured: Measurements, slopes: Slopes, scores: pd.DataFrame
    ) -> None:
        self.params, self.measured, self.slopes = params, measured, slopes
        self.sizes = params.size_list
        keys = ["model", "arm", "score"]
        self._scores = {
            key: rows.sort_values("seed").value.to_numpy()
            for key, rows in scores.groupby(keys, sort=False)
        }

    def hypotheses(self) -> list[Claim]:
        """Return the hypotheses about what survives, and about what benchmark scores respond to."""
        unchanged = partial(within, margin=MARGIN)
        minus_one = "retained, minus 1"
        tests = [
            (
                "Under the swap in the last 21 % of training, the largest size retains more of "
                "the association than the smallest.",
                self._test(
                    self._between_sizes(),
                    rises,
                    self._largest_minus_smallest(),
                    note=self._shifts(),
                ),
            ),
            (
                "In planted frames, the largest size retains more of the association under the "
                "swap than the smallest.",
                self._test(
                    self._between_sizes(PLANTED_FRAMES),
                    rises,
                    self._largest_minus_smallest(),
                    note=f"{self._shifts(PLANTED_FRAMES)}{self._apart_beyond_reference()}",
                ),
            ),
            (
                "In unseen frames, the swap leaves more of the association than if every noun's "
                "probability of a feminine pronoun moved the same fraction of the way to 1.",
                self._mean(self._excess(), rises, "beyond the reference at a seed's shift"),
            ),
            (
                "The shuffle, which keeps the prior, leaves less of the association than the swap.",
                self._difference("shuffle_21", LONGER, falls),
            ),
            (
                "Swapping the planted sentences alone leaves less of the association than "
                "replacing them by prose.",
                self._difference("only_21", "absent_21", falls),
            ),
            (
                "Swapping everything but the planted sentences leaves the association unchanged, "
                f"within {100 * MARGIN:g} % of the control's.",
                self._mean(self._minus_one("complement_21"), unchanged, minus_one),
            ),
            (
                "Swapping about as many prepositions (a placebo) leaves the association unchanged, "
                f"within {100 * MARGIN:g} % of the control's.",
                self._mean(self._minus_one("placebo_21"), unchanged, minus_one),
            ),
            (
                "After the original text returns for the last 7 % of training, more of the "
                "association is retained than when the swap runs to the end.",
                self._difference("restored", LONGER, rises),
            ),
            (
                "Swapping everything but the planted sentences lowers the CrowS-Pairs score for "
                "gender.",
                self._score(self._change("crows"), falls),
            ),
        ]
        return [Claim(text, STATED, test, kind="hypothesis") for text, test in tests]

    def _largest_minus_smallest(self) -> str:
        return f"{self.sizes[-1]} minus {self.sizes[0]}"

    def _shifts(self, frames: str = UNSEEN) -> str:
        """Say how far the swap has shifted the prior of the smallest and of the largest size."""
        ends = dict.fromkeys((self.sizes[0], self.sizes[-1]))
        shifts = (
            f"{s} {number_text(self.slopes.shift(s, LONGER, frames).mean(), 2)}" for s in ends
        )
        return f"shift of the prior: {', '.join(shifts)} logits"

    def _apart_beyond_reference(self) -> str:
        """Say how far the largest and smallest size differ beyond "mixture", in planted frames."""
        beyond = self._excess(PLANTED_FRAMES)
        if isinstance(beyond, str) or len(self.sizes) == 1:
            return ""
        apart = value_text(seed_mean(beyond[:, -1] - beyond[:, 0]))
        return f"; beyond the reference, each at its own shift: {apart}"

    def _test(
        self,
        effect: np.ndarray | str,
        make: Callable[..., Test],
        of: str,
        unit: str = RETAINED,
        note: str = "",
    ) -> Test:
        """Test the mean of `effect`, float64[seeds]; a text instead says why there is none.

        Args:
            of: says what was measured, as part of the units.
        """
        if isinstance(effect, str):
            return untestable(effect)
        units = f"{len(effect)} seeds; {of}" if len(effect) > 1 else f"one seed; {of}"
        e = mean_over(effect)
        if len(effect) == 1:
            return untestable(ONE_SEED, e, unit, units, note)
        return make(e, unit, units, note=note)

    def _retained(self, arm: str, frames: str = UNSEEN) -> np.ndarray | str:
        """Return what an arm retains, float64[seeds, sizes], or why that cannot be said."""
        if arm not in self.params.arms:
            return NOT_TRAINED
        columns = [self.slopes.retained(size, arm, frames) for size in self.sizes]
        missing = [s for s, column in zip(self.sizes, columns, strict=True) if column is None]
        if missing:
            return f"the controls of {', '.join(missing)} are not shown to have the association"
        return np.stack([column for column in columns if column is not None], axis=1)

    def _between_sizes(self, frames: str = UNSEEN) -> np.ndarray | str:
        retained = self._retained(LONGER, frames)
        if isinstance(retained, str):
            return retained
        return ONE_SIZE if len(self.sizes) == 1 else retained[:, -1] - retained[:, 0]

    def _minus_one(self, arm: str) -> np.ndarray | str:
        retained = self._retained(arm)
        return retained if isinstance(retained, str) else retained - 1

    def _mean(self, effect: np.ndarray | str, make: Callable[..., Test], of: str) -> Test:
        """Test the mean over sizes of an effect, float64[seeds, sizes], and list the sizes."""
        if isinstance(effect, str):
            return untestable(effect)
        return self._test(
            effect.mean(1), make, f"{self._over_sizes()}; {of}", note=self._by_size(effect)
        )

    def _by_size(self, *effects: np.ndarray, digits: int = 2) -> str:
        """List the mean over seeds of effects, float64[seeds, sizes], for every size."""
        means = zip(self.sizes, *(effect.mean(0) for effect in effects), strict=True)
        return ", ".join(
            f"{s} {' and '.join(number_text(v, digits) for v in row)}" for s, *row in means
        )

    def _difference(self, arm: str, other: str, make: Callable[..., Test]) -> Test:
        """Test the difference between what two arms retain, averaged over sizes."""
        first, second = self._retained(arm), self._retained(other)
        if isinstance(first, str) or isinstance(second, str):
            return untestable(first if isinstance(first, str) else str(second))
        note = self._by_size(first, second)
        return self._test((first - second).mean(1), make, self._over_sizes(), note=note)

    def _over_sizes(self) -> str:
        return f"mean of {len(self.sizes)} sizes" if len(self.sizes) > 1 else self.sizes[0]

    def _excess(self, frames: str = UNSEEN) -> np.ndarray | str:
        """Return the swap's excess over "mixture", float64[seeds, sizes], or why it is unknown."""
        retained = self._retained(LONGER, frames)
        if isinstance(retained, str):
            return retained
        columns = [
            excess_over(MIXTURE, self.params, self.measured, self.slopes, size, LONGER, frames)
            for size in self.sizes
        ]
        return np.stack(columns, axis=1)

    def score(self, arm: str, score: str) -> np.ndarray:
        """Return a score of an arm, float64[seeds, sizes]; see `study.SCORES`."""
        return np.stack([self._scores[size, arm, score] for size in self.sizes], axis=1)

    def _change(self, score: str) -> np.ndarray | str:
        """Return what the complement does to a score, in points, float64[seeds, sizes]."""
        if "complement_21" not in self.params.arms:
            return NOT_TRAINED
        return 100 * (self.score("complement_21", score) - self.score(CONTROL, score))

    def _score(self, change: np.ndarray | str, make: Callable[..., Test]) -> Test:
        """Test a result of `_change`, averaged over sizes."""
        if isinstance(change, str):
            return untestable(change)
        retained = [
            self.slopes.retained(s, "complement_21", group="occupations") for s in self.sizes
        ]
        kept = [units for units in retained if units is not None]
        note = self._by_size(change)
        if len(kept) == len(self.sizes):
            note += (
                f"; of the occupations' association, {number_text(np.mean(kept), 2)} is retained"
            )
        return self._test(change.mean(1), make, self._over_sizes(), "points", note)

    # --- the paper's claims ---

    def _occupations(self, arm: str) -> np.ndarray:
        """Return the slopes of an arm for the occupations, float64[seeds, sizes]."""
        return np.stack(
            [self.slopes.of(size, arm, group="occupations") for size in self.sizes], axis=1
        )

    def _missing(self) -> str:
        """Return why the paper's claims about associations cannot be tested; "" if they can."""
        missing = [s for s in self.sizes if not self.slopes.learned(s, group="occupations")]
        names = ", ".join(missing)
        return names and f"the controls of {names} are not shown to have the association"

    def association(self, arm: str, make: Callable[..., Test]) -> Test:
        """Test how a swap changes the association of the occupations, averaged over sizes."""
        before, after = self._occupations(CONTROL), self._occupations(arm)
        note = ", ".join(
            f"{size} {number_text(a, 3)} to {number_text(b, 3)}"
            for size, a, b in zip(self.sizes, before.mean(0), after.mean(0), strict=True)
        )
        effect = self._missing() or (after - before).mean(1)
        return self._test(effect, make, self._over_sizes(), SLOPE, f"{ASSOCIATION}; {note}")

    def turned(self) -> Test:
        """Show, without a verdict, the association of the largest size after the longer swap."""
        effect = self._missing() or self._occupations(LONGER)[:, -1]
        of = f"{self.sizes[-1]}, swap in the last 21 %"
        test = self._test(effect, falls, of, SLOPE, f"{ASSOCIATION}; below 0 is anti-stereotypical")
        return untestable(
            test.reason or NO_REVERSE, test.estimate, test.unit, test.units, test.note
        )

    def largest_is_less_biased(self) -> Test:
        """Test the controls' association at the largest size minus that at the smallest."""
        values = self._occupations(CONTROL)
        single = ONE_SIZE if len(self.sizes) == 1 else ""
        effect = single or self._missing() or values[:, -1] - values[:, 0]
        return self._test(effect, falls, self._largest_minus_smallest(), SLOPE, ASSOCIATION)

    def effect_by_size(self) -> Test:
        """Test what the swap leaves of the occupations' association, largest minus smallest size.

        Fractions are compared, because at equal fractions the larger association loses more.
        """
        ends = [
            self.slopes.retained(size, LONGER, group="occupations")
            for size in (self.sizes[0], self.sizes[-1])
        ]
        single = ONE_SIZE if len(self.sizes) == 1 else ""
        missing = single or self._missing()
        effect = missing or np.subtract(*ends[::-1])
        return self._test(
            effect, falls, self._largest_minus_smallest(), note=f"{ASSOCIATION}; fraction retained"
        )

    def cost(self, arm: str) -> Test:
        """Show, without a verdict, by how much a swap raises the held-out loss.

        Gendered pronouns are left out as targets: expecting others there is the aim, not the cost.
        """
        change = self.score(arm, "loss_rest") - self.score(CONTROL, "loss_rest")
        note = f"held-out loss without gendered pronouns; {self._by_size(change, digits=4)}"
        test = self._test(change.mean(1), falls, self._over_sizes(), "nats per token", note)
        return untestable(COST_KNOWN, test.estimate, test.unit, test.units, test.note)

    # --- premises ---

    def premises(self) -> list[Claim]:
        """Return what the tests assume about our runs."""
        rows = []
        for size in self.sizes:
            test = self._test(
                self.slopes.of(size, CONTROL), rises, "made-up nouns, unseen frames", SLOPE
            )
            text = f"The controls of {size} have the association."
            rows.append(Claim(text, ASSUMED, test, kind="premise"))
        same = partial(within, margin=SHIFT_MARGIN)
        shifts = {
            "The swap in the last 7 % of training raises the prior of feminine pronouns.": (
                SETUP, SHORTER, rises,
            ),
            "The swap in the last 21 % of training raises the prior of feminine pronouns.": (
                SETUP, LONGER, rises,
            ),
            "The mirror in the last 21 % of training lowers the prior of feminine pronouns.": (
                ASSUMED, "mirror_21", falls,
            ),
            "Swapping all but the planted sentences raises the prior of feminine pronouns.": (
                ASSUMED, "complement_21", rises,
            ),
            "The shuffle leaves the prior of feminine pronouns unchanged, within "
            f"{SHIFT_MARGIN:g} logits.": (ASSUMED, "shuffle_21", same),
        }  # fmt: skip
        for text, (source, arm, make) in shifts.items():
            effect: np.ndarray | str = NOT_TRAINED
            if arm in self.params.arms:
                effect = np.stack([self.slopes.shift(size, arm) for size in self.sizes], 1).mean(1)
            test = self._test(effect, make, self._over_sizes(), "logits")
            rows.append(Claim(text, source, test, kind="premise"))
        for score, name in (("winobias", "WinoBias"), ("crows", "CrowS-Pairs (gender)")):
            above = partial(rises, bound=100 * CHANCE)
            values = 100 * self.score(CONTROL, score).mean(1)
            test = self._test(values, above, self._over_sizes(), "%")
            text = f"The controls prefer the stereotypical side of {name}."
            rows.append(Claim(text, SETUP, test, kind="premise"))
        return [*rows, self._halves(), *self._flat()]

    def _halves(self) -> Claim:
        """Show, without a verdict, how far the complement moves the halves of WinoBias apart."""
        halves = [self._change(f"winobias_{half}") for half in ("feminine", "masculine")]
        apart = halves[0] if isinstance(halves[0], str) else np.subtract(*halves)
        test = self._score(apart, rises)
        return Claim(
            "Swapping everything but the planted sentences raises WinoBias accuracy on feminine "
            "stereotypes and lowers it on masculine ones.",
            "this book; a prior that shifts has this effect",
            untestable(
                test.reason or HALVES_KNOWN,
                test.estimate,
                test.unit,
                test.units
                and f"{test.units}; change of the feminine minus that of the masculine half",
                test.note,
            ),
            kind="premise",
        )

    def _flat(self) -> list[Claim]:
        """Return the check of models without association, if any; the worst case counts."""
        rows = []
        for name, model in self.params.models.items():
            if model.flat:
                slopes = [
                    self.slopes.of(name, arm, group=group)
                    for arm in (CONTROL, *model.arms)
                    for group in ("invented", "occupations")
                ]
                worst = max(slopes, key=lambda s: max(map(abs, _ends(s))))
                test = self._test(
                    worst,
                    partial(within, margin=FLAT_MARGIN),
                    f"the one furthest from 0 of {len(slopes)} pairs of arm and group of nouns",
                    SLOPE,
                )
                text = (
                    "Models whose text has no association have none in any arm, within "
                    f"{FLAT_MARGIN:g}."
                )
                rows.append(Claim(text, "guards against bias of the slopes", test, kind="check"))
        return rows


def contract(ledger: pd.DataFrame) -> Claim:
    """Return the check that forks read their controls' batches, except for their arms' changes."""
    total = ledger[["inside", "outside", "changed_inside", "changed_outside", "misplaced"]].sum()
    idle = int((ledger.changed_inside == 0).sum())
    note = (
        f"{len(ledger)} forks: {total.changed_outside} of {total.outside} batches after the "
        f"windows (of the forks whose text returns) and {total.changed_inside} of {total.inside} "
        "inside differ from the control's; "
        f"{total.misplaced} changed tokens outside the declared domains"
    )
    passed = total.changed_outside == 0 and total.misplaced == 0 and idle == 0
    return Claim(
        "Every fork reads its control's batches, except for the changes that its arm declares, "
        "which lie in its window.",
        "the contract of interventions",
        passes(bool(passed), note),
        kind="check",
    )


def detectable(frames: str, seeds: int) -> float | None:
    """Return the difference between sizes that would be found with 80 % power; None for one seed.

    It is a difference in what is retained, tested by itself, without Holm's correction.
    """
    if seeds < 2:
        return None
    unit = np.arange(seeds) - (seeds - 1) / 2
    return smallest_seen(mean_over(unit / unit.std(ddof=1) * PILOT_SD[frames]))


def detectable_released(rows: Sequence[Claim]) -> dict[str, str]:
    """Return the effects on released scores, in points, that would be found with 80 % power.

    The keys are "crows_7" and "crows_21", the arms of the claims about CrowS-Pairs, and "winobias",
    the lead in the answers to the comparable prompt. Holm's correction is allowed for, as in
    verdicts. Without a test, the value is "not available".
    """

    def estimate(test: Test | None) -> Estimate | None:
        e = test.estimate if test and test.form else None
        return e if e and e.df >= 1 else None

    tested = Counter(
        row.kind == "claim"
        for row in rows
        for test in (row.ours, row.released)
        if row.kind != "hypothesis" and estimate(test)
    )
    named = {
        "crows_7": CROWS_CLAIM.format(7),
        "crows_21": CROWS_CLAIM.format(21),
        "winobias": f"{LEAD_PREMISE}.",
    }
    texts = dict.fromkeys(named, "not available")
    for row in rows:
        for name, text in named.items():
            e = estimate(row.released)
            if row.text == text and e:
                effect = smallest_seen(e, tested[row.kind == "claim"])
                texts[name] = f"{float(f'{effect:.2g}'):g}"
    return texts


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval over seeds; for one seed, the value."""
    e = mean_over(values)
    return (e.low, e.high) if len(values) > 1 else (e.value, e.value)


# --- released models -------------------------------------------------------------------------


class _Released:
    """Tests on the released models. A test without its released table has no verdict."""

    def __init__(self, tables: Mapping[str, pd.DataFrame]) -> None:
        self.tables = {name: table for name, table in tables.items() if len(table)}

    def change(
        self,
        name: str,
        arm: str,
        make: Callable[..., Test],
        items: str,
        sign: int = 1,
        note: str = "",
    ) -> Test:
        """Test the change, in percentage points, of the scores in the table `name` under the swap.

        `items` says in words what was scored. If `sign` is -1, the decrease is tested.
        """
        if name not in self.tables:
            return untestable(NO_NUMBERS)
        return self._test(numbers.at_end(self.tables[name], arm), make, items, sign, note)

    def _test(
        self,
        frame: pd.DataFrame,
        make: Callable[..., Test],
        items: str,
        sign: int = 1,
        note: str = "",
    ) -> Test:
        """Test the change in `frame`, a result of `at_end`, averaged over models; see `change`."""
        if frame.empty:
            return untestable("no released numbers of both arms at one checkpoint")
        e = numbers.mean_of_models(frame.assign(change=sign * frame.change))
        by_model = ", ".join(
            f"{row.size} {number_text(row.control, 1)} to {number_text(row.swapped, 1)}"
            for row in frame.itertuples()
        )
        units = numbers.units_of_models(frame, items)
        return make(e, "points", units, note="; ".join(filter(None, (by_model, note))))

    def slope(self, name: str, column: str, make: Callable[..., Test], more: str = "") -> Test:
        """Test how a column of `at_end` changes with size, in points per tenfold nominal size."""
        if name not in self.tables:
            return untestable(NO_NUMBERS)
        frame = numbers.at_end(self.tables[name], "swap_7")
        e = numbers.per_tenfold(frame["size"], frame[column])
        note = "; ".join(filter(None, (_by_size(frame["size"], frame[column]), more)))
        return make(e, PER_TENFOLD, f"{len(frame)} models", note=note)

    def over_all_sizes(self) -> str:
        """Say how much CrowS-Pairs gender bias grows with size in each half of the suite."""
        found = ", ".join(
            f"{value_text(e.interval())} over the {e.n_items} {half} models"
            for half, name in AFTER_TRAINING.items()
            if (e := self._growth(name))
        )
        return found and f"{PER_TENFOLD} after training: {found}"

    def _growth(self, name: str) -> Estimate | None:
        """Estimate how much a score grows per tenfold size; None without the released table."""
        table = self.tables.get(name)
        return None if table is None else numbers.per_tenfold(table["size"], 100 * table.value)

    def perplexity(self, arm: str) -> str:
        """List each model's LAMBADA perplexity, control and swap; "" if not available."""
        table = self.tables.get("lambada")
        if table is None or table.perplexity.isna().all():
            return ""
        values = table.assign(value=table.perplexity / 100)
        frame = numbers.at_end(values[values.value.notna()], arm)
        return "perplexity: " + ", ".join(
            f"{row.size} {number_text(row.control)} to {number_text(row.swapped)}"
            for row in frame.itertuples()
        )

    def premises(self) -> list[Claim]:
        """Return the premises about released numbers that follow from the paper's claims."""
        tests = {
            LEAD_PREMISE: self._lead("v1", (numbers.COMPARABLE,)),
            "In the WinoBias answers released with the first suite (v0), to both prompts, the swap "
            "narrows the lead of stereotypical over anti-stereotypical sentences": self._lead(
                "v0", numbers.PROMPTS
            ),
            "After the swap, the lead of stereotypical over anti-stereotypical sentences is below "
            f'zero in the released 6.9B model (WinoBias prompt "{numbers.COMPARABLE}")': (
                self._turned()
            ),
            "The CrowS-Pairs gender bias grows with size over all eight deduplicated models": (
                self._all_sizes()
            ),
            "The swap lowers the CrowS-Pairs score for gender by more than those for the other "
            "eight biases": self._gender_alone(),
            "The swap leaves the CrowS-Pairs scores for the other eight biases unchanged": (
                self._others()
            ),
        }
        return [
            Claim(f"{text}.", FILES, released=test, kind="premise") for text, test in tests.items()
        ]

    def _leads(self, suite: str, prompts: tuple[str, ...]) -> pd.DataFrame | None:
        """Return the leads (see `released_numbers.leads`); None if there are no WinoBias scores."""
        table = self.tables.get("winobias")
        return None if table is None else numbers.leads(table, suite, prompts)

    def _lead(self, suite: str, prompts: tuple[str, ...]) -> Test:
        """Test that the swap narrows the lead of stereotypical sentences (see `_leads`)."""
        leads = self._leads(suite, prompts)
        if leads is None:
            return untestable(NO_NUMBERS)
        return self._test(numbers.at_end(leads, "swap_7"), falls, "1,584 sentences", note=EXACT)

    def _turned(self) -> Test:
        """Test that the swapped 6.9B is better on anti- than on pro-stereotypical sentences."""
        leads = self._leads("v1", (numbers.COMPARABLE,))
        if leads is None:
            return untestable(NO_NUMBERS)
        late = numbers.at_end(leads[leads["size"] == "6.9b"], "swap_7")
        if late.empty:
            return untestable(NO_NUMBERS)
        swapped = leads[(leads["size"] == "6.9b") & (leads.arm == "swap_7")]
        error = 100 * float(np.sqrt((swapped.stderr**2).mean()))
        e = numbers.mean_of_models(late.assign(change=late.swapped, stderr=error))
        return falls(e, "points", "1 model; 1,584 sentences as if independent", note=EXACT)

    def _all_sizes(self) -> Test:
        """Test that the CrowS-Pairs gender bias of the deduplicated models grows with size."""
        table = self.tables.get("crows_sizes")
        if table is None:
            return untestable(NO_NUMBERS)
        note = _by_size(table["size"], 100 * table.value)
        e = self._growth("crows_sizes")
        return rises(e, PER_TENFOLD, f"{len(table)} models after training", note=note)

    @cached_property
    def _biases(self) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Return two tables of how the swap changes CrowS-Pairs scores, in the format of `at_end`.

        The column `change` is in points: in the first table, for gender minus other biases; in the
        second, for other biases. The result is None without released numbers.
        """
        table = self.tables.get("crows_biases")
        if table is None:
            return None
        ends = numbers.at_end(table, "swap_7", ("bias",))
        gender = ends[ends.bias == "gender"].set_index("size")
        others = gender.assign(**numbers.other_biases(ends).reindex(gender.index))
        error = np.hypot(gender.stderr, others.stderr)
        alone = gender.assign(change=gender.change - others.change, stderr=error)
        return alone.reset_index(), others.reset_index()

    def _gender_alone(self) -> Test:
        """Test that the swap lowers CrowS-Pairs scores more for gender than for other biases."""
        if self._biases is None or len(self._biases[0]) < 2:
            return untestable(NO_NUMBERS)
        frame, _ = self._biases
        units = numbers.units_of_models(frame, "pairs")
        return falls(numbers.mean_of_models(frame), "points", units, note="gender minus others")

    def _others(self) -> Test:
        """Show, without a verdict, how the swap changes CrowS-Pairs scores for other biases."""
        if self._biases is None or len(self._biases[1]) < 2:
            return untestable(NO_NUMBERS)
        _, frame = self._biases
        reason = f"{SWAP_NOT_SHOWN} these scores stay as they are, too"
        units = numbers.units_of_models(frame, "1,346 pairs")
        return untestable(reason, numbers.mean_of_models(frame), "points", units)


PER_TENFOLD = "points per tenfold nominal size"
AFTER_TRAINING = {"deduplicated": "crows_sizes", "standard": "crows_standard"}
"""Maps each half of the suite to its table of CrowS-Pairs scores after training."""
EXACT = "exact match of the generated answer, a different metric from the paper's"


def _by_size(sizes: pd.Series, values: pd.Series) -> str:
    """List each model with its value, e.g. "70m 54.7, 410m 60.5"."""
    return ", ".join(f"{s} {number_text(v, 1)}" for s, v in zip(sizes, values, strict=True))


# --- coupling --------------------------------------------------------------------------------


def coupling_claims(table: pd.DataFrame) -> list[Claim]:
    """Return two premises on how closely forks follow their controls, from the table `coupling`."""
    swaps, placebos = (
        unit_z(table, "ours", kind, (PLACEBO_WINDOW,)) for kind in ("swap", "placebo")
    )
    loosened = (placebos - swaps).dropna()
    return [
        Claim(
            "The released swapped models are less tightly coupled to their controls than our real "
            "swaps are to theirs.",
            "section 3.1, where the swap is assumed",
            kind="premise",
            released=_excess_coupling(table),
        ),
        Claim(
            "Swapping pronouns decouples a model from its control more than swapping equally many "
            "prepositions.",
            "assumed when scores of released models are compared with those of their controls",
            kind="premise",
            ours=rises(
                mean_over(loosened),
                FISHER,
                f"{len(loosened)} pairs of forks (sizes and seeds)",
                note="mean over three scores; positive: less coupled",
            )
            if len(loosened)
            else untestable(TOO_FEW),
        ),
    ]


def _excess_coupling(table: pd.DataFrame) -> Test:
    """Test that released swapped models follow their controls less tightly than our swaps do.

    A failed test is evidence that the released models were not swapped. A passed one shows nothing.
    """
    theirs, ours = compared_z(table)
    if theirs.empty:
        return untestable(NO_NUMBERS)
    if ours.empty:
        return untestable(TOO_FEW)
    r = [number_text(math.tanh(z.mean()), 2) for z in (theirs, ours)]
    return falls(
        difference(mean_over(theirs), mean_over(ours)),
        FISHER,
        f"{len(theirs)} released models, {len(ours)} of our forks",
        note=f"released r = {r[0]}, our real swaps r = {r[1]}, each from the mean Fisher's z over "
        f"three scores in the last {TESTED_WINDOW} % of training",
    )
