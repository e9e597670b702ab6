"""The claims of the gender-bias study and how they are tested.

Intervals of released numbers are over models. Intervals of our numbers are over seeds. With a
single seed they are over sizes and there is no verdict, because an effect can differ more between
two seeds than between all sizes of one seed.

A claim about our runs has a premise: the controls have something that the swap could reduce (a
stereotype, a score above chance, or correct last words). Premises are about these controls only, so
their intervals are over occupations or items. A claim is tested only if its premise "holds" and the
swap replaces masculine pronouns by feminine ones, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.records import number_text, value_text
from pythia_book.stats import Estimate, difference, estimate, mean_over
from pythia_book.studies.gender_bias import released_numbers as numbers
from pythia_book.studies.gender_bias.coupling import KINDS, TESTED_WINDOW, UNCOUPLED, unit_z
from pythia_book.studies.gender_bias.estimates import Units
from pythia_book.studies.gender_bias.params import PAPER_SWAP
from pythia_book.studies.gender_bias.released_numbers import NO_NUMBERS
from pythia_book.verdicts import HOLDS, Claim, Test, falls, judge, rises, untestable

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.gender_bias.params import Params

MARGINAL = 2.0
"""A drop of LAMBADA accuracy by less than this, in points, is marginal. The two neighbouring
released sizes with the closest accuracies (6.9B and 12B, deduplicated) differ by 2.1."""
CHANCE = 50.0
"""The score of a model without preference on WinoBias and CrowS-Pairs, in percent."""
WINDOWS = {"swap_7": 7, "swap_21": 21}
"""Maps an arm to the length of its swap in percent of training."""

FILES = "evals/ of EleutherAI/pythia at commit a19eecb"
"""Cited as the source of premises about released numbers; no paper states these premises."""
ONE_SEED = "one seed: training again with another one was not measured"
REVERSE = "the paper replaced masculine pronouns, this run feminine ones"
NO_METRIC = "the raw results of the paper's WinoBias metric were not released"
OTHER_METRIC = f"{NO_METRIC}; the released answers, another metric, are tested as premises"
CONTROLS_TAKEN = (
    '"these results" are those of the swapped models; the statement is about models in general, '
    "and here tested on the controls"
)
SWAP_NOT_SHOWN = "that the pronouns of these models were swapped is not shown; without a swap"
"""The first words of a reason for no verdict: the result would arise without a swap, too."""
TOO_FEW = "too few checkpoints of our own forks at this scale"
FISHER = "(Fisher's z)"
"""The unit of differences in coupling."""

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

Final = Mapping[tuple[str, str], Mapping[str, Units]]
"""Maps (size, arm) to {measure: its `Units` at the end of training}."""


def claims(
    params: Params, final: Final, released: Mapping[str, pd.DataFrame], feminine: np.ndarray
) -> list[Claim]:
    """Return all claims of the study and their premises, each with its tests.

    Args:
        released: the tables of `released_numbers.select`; empty without released numbers.
        feminine: int[occupations], stereotype by occupation: 1 feminine, 0 masculine, -1 unknown.
    """
    ours, theirs = _Ours(params, final), _Released(released)
    premises, others = ours.premises(feminine), theirs.premises()
    missing = _missing(params, premises, others)
    winobias = missing("winobias", "association")
    crows = missing("crows")
    rows = []
    for arm, window in WINDOWS.items():
        rows.append(
            Claim(
                f"The swap in the last {window} % of training lowers stereotype accuracy on "
                "WinoBias.",
                "section 3.1, Figure 2",
                ours.test(ours.change(arm, "winobias"), falls, winobias),
                untestable(OTHER_METRIC),
                QUOTES["winobias"],
            )
        )
    one_size = "" if len(params.size_list) > 1 else "a single size was trained"
    rows += [
        Claim(
            "The swap turns the largest model from pro- to anti-stereotypical on WinoBias.",
            "section 3.1, Figure 2",
            ours.test(
                ours.level("swap_7", "winobias")[:, -1:],
                partial(falls, bound=CHANCE),
                winobias,
                params.size_list[-1],
                f"{CHANCE:g} % is no preference",
                "%",
            ),
            untestable(OTHER_METRIC),
            QUOTES["turned"],
        ),
        Claim(
            "The larger models are less pro-stereotypical on WinoBias (a hypothesis of the paper).",
            "section 3.1",
            ours.test(
                _across(ours.level("control", "winobias")), falls, winobias or one_size, ACROSS,
                CONTROLS_TAKEN,
            ),
            untestable(NO_METRIC),
            QUOTES["winobias_by_size"],
        ),
        Claim(
            "The swap lowers stereotype accuracy on WinoBias most in the larger models (a "
            "hypothesis of the paper).",
            "section 3.1",
            ours.test(
                _across(ours.change("swap_7", "winobias")), falls, winobias or one_size, ACROSS
            ),
            untestable(NO_METRIC),
            QUOTES["winobias_contrast"],
        ),
    ]  # fmt: skip
    for arm, window in WINDOWS.items():
        rows.append(
            Claim(
                f"The swap in the last {window} % of training lowers the CrowS-Pairs gender bias.",
                "section 3.1, Figure 1",
                ours.test(ours.change(arm, "crows"), falls, crows),
                theirs.change("crows", arm, falls, "320 pairs"),
                QUOTES["crows"],
            )
        )
    rows += [
        Claim(
            "The swap lowers the CrowS-Pairs gender bias most in the larger models.",
            "section 3.1, Figure 1",
            ours.test(_across(ours.change("swap_7", "crows")), falls, crows or one_size, ACROSS),
            theirs.slope("crows", "change", falls),
            QUOTES["contrast"],
        ),
        Claim(
            "The larger models have more CrowS-Pairs gender bias before the swap.",
            "section 3.1, Figure 1",
            ours.test(_across(ours.level("control", "crows")), rises, crows or one_size, ACROSS),
            theirs.slope("crows", "control", rises, theirs.over_all_sizes()),
            QUOTES["by_size"],
        ),
    ]
    for arm, window in WINDOWS.items():
        note = theirs.perplexity(arm)
        rows.append(
            Claim(
                f"The swap in the last {window} % of training lowers LAMBADA accuracy only "
                "marginally.",
                "section 3.1, Appendix C.1, Figure 6",
                ours.test(
                    -ours.change(arm, "last_word"), partial(falls, bound=MARGINAL),
                    missing("last_word"),
                    note="ours: last words of held-out sentences",
                ),
                theirs.change("lambada", arm, _no_cost, "5,153 passages", sign=-1, note=note),
                QUOTES["cost"],
            )
        )  # fmt: skip
    return rows + list(premises.values()) + others


def _no_cost(e: Estimate | None, unit: str, units: str, note: str = "") -> Test:
    """Return a test that shows a loss of accuracy without a verdict; arguments are as in `falls`.

    A small loss could also mean that the released models were never trained on swapped text.
    """
    return untestable(f"{SWAP_NOT_SHOWN} there is no cost either", e, unit, units, note)


def _across(values: np.ndarray) -> np.ndarray:
    """Return values of the largest size minus the smallest: float[seeds, sizes] to [seeds, 1]."""
    return values[:, -1:] - values[:, :1]


def _missing(params: Params, premises: dict[str, Claim], others: list[Claim]) -> Callable[..., str]:
    """Return a function that says why a claim is untestable, given the names of its premises.

    `premises` and `others` are judged together, so that the correction for multiple tests covers
    all claims.
    """
    judged = judge([*premises.values(), *others])[: len(premises)]
    verdicts = {n: row["ours"]["verdict"] for n, row in zip(premises, judged, strict=True)}

    def missing(*names: str) -> str:
        """Return why a claim with these premises is untestable; "" if it is testable."""
        if params.swap != PAPER_SWAP:
            return REVERSE
        return next((LACKING[name] for name in names if verdicts[name] != HOLDS), "")

    return missing


LACKING = {
    "association": "the controls are not shown to have an occupational stereotype that the swap "
    "could reduce",
    "winobias": "the controls are not shown to be above chance on WinoBias",
    "crows": "the controls are not shown to prefer the stereotyping sentences of CrowS-Pairs",
    "last_word": f"the controls are not shown to predict more than {MARGINAL:g} % of the last "
    "words, so they may have too few to lose",
}
"""Maps a premise to the reason why a claim is untestable if the premise does not hold."""

# --- our runs --------------------------------------------------------------------------------


class _Ours:
    """The scores of our runs, the effects of swaps on these scores, and tests of such effects."""

    def __init__(self, params: Params, final: Final) -> None:
        self.params, self.final, self.sizes = params, final, params.size_list

    def level(self, arm: str, measure: str) -> np.ndarray:
        """Return the mean of a measure over items for one arm, in percent, float[seeds, sizes]."""
        columns = [self.final[size, arm][measure].values.mean(1) for size in self.sizes]
        return 100 * np.stack(columns, axis=1)

    def change(self, arm: str, measure: str, base: str = "control") -> np.ndarray:
        """Return `level` in `arm` minus `level` in `base`, in points, float[seeds, sizes]."""
        return self.level(arm, measure) - self.level(base, measure)

    def test(
        self,
        effects: np.ndarray,
        make: Callable[..., Test],
        missing: str = "",
        of: str = "",
        note: str = "",
        unit: str = "points",
    ) -> Test:
        """Test the mean effect, with an interval over seeds; one seed gives no verdict.

        Args:
            effects: float[seeds, sizes], in `unit`.
            missing: why the claim is untestable; "" if it is testable.
            of: says what the effect of a seed is averaged over; by default, the number of sizes.
        """
        seeds, n = effects.shape
        of = of or (f"{n} sizes" if n > 1 else "1 size")
        if seeds > 1:
            e, units = mean_over(effects.mean(1)), f"{seeds} seeds; {of}"
        else:
            e, units = mean_over(effects[0]), f"{of}, one run of each arm"
        if reason := missing or (ONE_SEED if seeds == 1 else ""):
            return untestable(reason, e, unit, units, note)
        return make(e, unit, units, note=note)

    def premises(self, feminine: np.ndarray) -> dict[str, Claim]:
        """Map names to the premises about our runs, with tests; `feminine` is as in `claims`."""
        raises, direction = ("raises", rises), ("lowers", falls)
        word, moves = raises if self.params.swap == PAPER_SWAP else direction
        seeds = "" if self.params.seeds == 1 else f", {self.params.seeds} seeds"
        sizes = len(self.sizes)
        of = f"mean of the controls of {sizes} size{'s' if sizes > 1 else ''}{seeds}"

        def units(measure: str) -> Units:
            """Return the units of a measure, averaged over all controls."""
            cells = [self.final[size, "control"][measure] for size in self.sizes]
            values = np.mean([cell.values.mean(0) for cell in cells], axis=0)
            return Units(measure, values[None], cells[0].strata)

        def above(measure: str, bound: float, items: str, text: str) -> Claim:
            """Return the premise `text`: in the controls, a measure's mean is above `bound` %."""
            chosen = units(measure)
            e = estimate(100 * chosen.values, self.params.bootstrap, 0, chosen.strata)
            counts = f"{e.n_items} {items}, {of}"
            return Claim(f"{text}.", SETUP, rises(e, "%", counts, bound), kind="premise")

        n = int((feminine >= 0).sum())
        return {
            "shift": Claim(
                f"The swap in the last 7 % of training {word} the feminine share of the pronouns "
                "expected after occupations.",
                SETUP,
                self.test(self.change("swap_7", "feminine_share"), moves),
                kind="premise",
            ),
            "longer": Claim(
                f"The swap in the last 21 % of training {word} the feminine share of the pronouns "
                "expected after occupations more than the swap in the last 7 %.",
                SETUP,
                self.test(self.change("swap_21", "feminine_share", "swap_7"), moves),
                kind="premise",
            ),
            "association": Claim(
                "The controls expect more feminine pronouns after occupations with a feminine "
                "stereotype than after those with a masculine one.",
                SETUP,
                rises(self._association(feminine), "logits", f"{n} occupations, {of}"),
                kind="premise",
            ),
            "winobias": above(
                "winobias", CHANCE, "occupations",
                "The controls prefer the stereotypical pronoun on WinoBias",
            ),
            "crows": above(
                "crows", CHANCE, "pairs",
                "The controls prefer the stereotyping sentences of CrowS-Pairs (gender)",
            ),
            "last_word": above(
                "last_word", MARGINAL, "last words",
                f"The controls predict more than {MARGINAL:g} % of the last words",
            ),
        }  # fmt: skip

    def _association(self, feminine: np.ndarray) -> Estimate | None:
        """Estimate how much more the controls expect feminine pronouns after feminine occupations.

        The estimate is the mean logit of the feminine share over occupations with a feminine
        stereotype, minus the mean over those with a masculine one. It is None if either group has
        fewer than two occupations.
        """
        shares = [self.final[size, "control"]["feminine_share"].values for size in self.sizes]
        share = np.clip(np.stack(shares), 1e-6, 1 - 1e-6)
        logits = np.log(share / (1 - share)).mean((0, 1))
        groups = [logits[feminine == stereotype] for stereotype in (1, 0)]
        if min(map(len, groups)) < 2:
            return None
        return difference(*map(mean_over, groups))


SETUP = "assumed in section 3.1"

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
            f'In the released answers to the WinoBias prompt "{numbers.COMPARABLE}", the swap '
            "narrows the lead of stereotypical over anti-stereotypical sentences": self._lead(
                "v1", (numbers.COMPARABLE,)
            ),
            "In the WinoBias answers released with the first suite (v0), to both prompts, the swap "
            "narrows the lead of stereotypical over anti-stereotypical sentences": self._lead(
                "v0", numbers.PROMPTS
            ),
            "After the swap, the released 6.9B model answers anti-stereotypical sentences better "
            f'than stereotypical ones (WinoBias prompt "{numbers.COMPARABLE}")': self._turned(),
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
        """Test that swapped 6.9B is better on anti-stereotypical than on stereotypical WinoBias."""
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


ACROSS = "largest minus smallest size"
PER_TENFOLD = "points per tenfold nominal size"
AFTER_TRAINING = {"deduplicated": "crows_sizes", "standard": "crows_standard"}
"""Maps each half of the suite to its table of CrowS-Pairs scores after training."""
EXACT = "exact match of the generated answer, another metric than the paper's"


def _by_size(sizes: pd.Series, values: pd.Series) -> str:
    """List each model with its value, e.g. "70m 54.7, 410m 60.5"."""
    return ", ".join(f"{s} {number_text(v, 1)}" for s, v in zip(sizes, values, strict=True))


# --- coupling --------------------------------------------------------------------------------


def coupling_claims(params: Params, table: pd.DataFrame) -> list[Claim]:
    """Return two premises on how closely forks follow their controls, from the table `coupling`."""
    swaps, placebos = (unit_z(table, "ours", kind, tuple(WINDOWS.values())) for kind in KINDS)
    loosened = (placebos - swaps).dropna()
    return [
        Claim(
            "The released swapped models are not more tightly coupled to their controls than our "
            "real swaps are to theirs.",
            "section 3.1, where the swap is assumed",
            kind="premise",
            released=_excess_coupling(params, table),
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
                note="mean over both windows and three scores; positive: less coupled",
            )
            if len(loosened)
            else untestable(TOO_FEW),
        ),
    ]


def _excess_coupling(params: Params, table: pd.DataFrame) -> Test:
    """Test that released swapped models follow their controls no more tightly than our swaps do.

    A failed test is evidence that the released models were not swapped. A passed one shows nothing.
    """
    theirs, ours = (unit_z(table, s, "swap", (TESTED_WINDOW,)) for s in ("released", "ours"))
    if theirs.empty:
        return untestable(NO_NUMBERS)
    if ours.empty or params.swap != PAPER_SWAP:
        return untestable(TOO_FEW if ours.empty else "our forks have another swap than the paper's")
    apart = (table.model == UNCOUPLED).any()
    without = f" (without {UNCOUPLED}, which does not follow its control)" if apart else ""
    r = [number_text(math.tanh(z.mean()), 2) for z in (theirs, ours)]
    return falls(
        difference(mean_over(theirs), mean_over(ours)),
        FISHER,
        f"{len(theirs)} released models{without}, {len(ours)} of our forks",
        note=f"released r = {r[0]}, our real swaps r = {r[1]}, each from the mean Fisher's z over "
        f"three scores in the last {TESTED_WINDOW} % of training",
    )
