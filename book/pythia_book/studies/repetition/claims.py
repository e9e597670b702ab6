"""The claims of the repetition study, and the numbers that the page quotes.

None of the claims is from the Pythia paper. Those of Muennighoff et al. name no model size, so we
test them at our size, and a note gives the size of their models. Each arm was trained once:
intervals cover the choice of held-out rows, but not the variation between training runs.
"""

from __future__ import annotations

from typing import Any

from pythia_book.stats import Estimate
from pythia_book.studies.repetition import law
from pythia_book.studies.repetition.tables import Arms, tokens_read
from pythia_book.verdicts import Claim, Test, rises, untestable, within

PAPER = "Muennighoff et al. 2023"
NEGLIGIBLE = 0.5
"""A change of the loss by less than this, in percent of the fresh arm's loss, is negligible. The
authors' example is a run of four epochs "with only 0.5% higher validation loss" (section 6)."""
THEIRS = "the source's models have up to 8.7 billion parameters (section 4)"


def claims(arms: Arms) -> list[Claim]:
    """Return the claims of the repetition study, all of which are tested on our runs only."""
    params = arms.params
    sizes, most = params.size_list, params.epoch_list[-1]
    fresh = arms.loss(sizes[-1], 1)
    rows = 0 if fresh is None else len(fresh)
    runs = f"one run of each arm ({', '.join(sizes)})"
    units = f"{runs}; {rows} held-out rows"
    nats = "nats per token"
    return [
        Claim(
            "Four epochs change the loss negligibly, compared with as much fresh data.",
            f"{PAPER}, abstract",
            within(
                arms.pooled([arms.cost(size, 4, percent=True) for size in sizes]),
                "% of the loss",
                units,
                NEGLIGIBLE,
                "the margin is the source's example of a negligible difference; "
                f"{_tested_at(arms)}",
            ),
            quote="training with up to 4 epochs of repeated data yields negligible changes to loss "
            "compared to having unique data",
        ),
        Claim(
            "Sixteen epochs give a higher loss than four, at equal compute.",
            f"{PAPER}, section 6",
            rises(
                arms.pooled([arms.cost(size, 16, base=4) for size in sizes]),
                nats,
                units,
                note=_tested_at(arms),
            ),
            quote="models trained on less unique data (and, correspondingly, more epochs) have "
            "consistently higher loss",
        ),
        Claim(
            "The law predicts how much fresh data repeated data are worth.",
            f"{PAPER}, section 3.1 and appendix A",
            _law(arms, units),
        ),
        Claim(
            f"With {most} epochs, the held-out loss rises again before the end of training.",
            f"{PAPER}, Figure 4, of up to 44 epochs",
            rises(
                arms.pooled([arms.turn(size, most) for size in sizes]),
                nats,
                f"{runs}; {rows // 2} held-out rows",
                note="the end minus the best earlier checkpoint, which was chosen on the other "
                "half of the rows",
            ),
            quote="Models trained on data that is repeated for multiple epochs have consistently "
            "worse loss and diverge if too many epochs are used.",
        ),
        Claim(
            "The gap between held-out and training loss grows with repetition.",
            f"{PAPER}, section 4",
            rises(arms.gap_growth(most), nats, units, note=f"{most} epochs against one"),
            quote="repeating data can result in extreme overfitting",
        ),
        Claim(
            "Rows that are read more often are memorized more often.",
            "Carlini et al. 2022, abstract",
            _memorized(arms, runs),
            quote="Memorization significantly grows as we increase [...] (2) the number of times "
            "an example has been duplicated",
        ),
    ]


def _tested_at(arms: Arms) -> str:
    """Say how large our largest model is and how much it reads, next to the source's models."""
    count = arms.measured.facts["parameters"][arms.params.size_list[-1]]["all"]
    tokens = tokens_read(arms) / 1e6
    return f"tested at {count:,} parameters and {tokens:.1f} million tokens, while {THEIRS}"


def _law(arms: Arms, units: str) -> Test:
    """Return the measured worth of four epochs, as a test of the law without a verdict.

    The law is untestable here, because it was fitted to models of other sizes than ours.
    """
    size = arms.params.size_list[-1]
    counts, fresh = arms.measured.facts["parameters"][size], arms.loss(size, 1)
    reason = f"the law was fitted to {law.FITTED}"
    if fresh is not None:
        tokens = tokens_read(arms)
        predicted = law.loss(counts["all"], tokens, tokens)
        reason += (
            f"; extrapolated to {counts['all']:,}, it predicts a loss of {predicted:.1f} nats for "
            f"fresh data, where {fresh.mean():.1f} were measured"
        )
    e = arms.worth(size, 4)
    return untestable(
        reason, e, "% of the same number of fresh tokens", units, "four epochs, at the end"
    )


def _memorized(arms: Arms, units: str) -> Test:
    """Test whether the arm with the most epochs has memorized more rows than the fresh arm."""
    most = arms.params.epoch_list[-1]
    e = arms.memorized_change(most)
    if e is None:
        return rises(None, "points", units)
    units = f"{units}; {e.n_items} rows"
    if not arms.memorizes():
        return untestable("no arm has memorized any row", e.times(100), "points", units)
    return rises(e.times(100), "points", units, note=f"{most} epochs against one")


def values(arms: Arms) -> dict[str, Any]:
    """Return the numbers and texts that the page quotes, by name.

    Most numbers are for the largest size. A number is None if a run that it needs was not measured.
    """
    params = arms.params
    size, most = params.size_list[-1], params.epoch_list[-1]
    counts, tokens = arms.measured.facts["parameters"][size], tokens_read(arms)

    def interval(e: Estimate | None, factor: float = 1) -> dict[str, float] | None:
        """Return value, low and high of an estimate, each times `factor`; None if `e` is None."""
        return e.times(factor).interval() if e else None

    fresh = arms.loss(size, 1)
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": size,
        "epochs": ", ".join(map(str, params.epoch_list)),
        "most": most,
        "steps": params.n_steps,
        "rows": params.rows(),
        "rows_least": params.rows(most),
        "tokens": tokens,
        "parameters": counts["all"],
        "negligible": NEGLIGIBLE,
        "n_rows": None if fresh is None else len(fresh),
        "fresh_loss": interval(arms.estimate(fresh)),
        "law_loss": law.loss(counts["all"], tokens, tokens),
        "gap_growth": interval(arms.gap_growth(most)),
        "memorized_change": interval(arms.memorized_change(most), 100),
        "gaps": arms.measured.facts["gaps"],
    }
    for r in (2, 4, 8, 16):
        best, turn = arms.best_step(size, r), arms.turn(size, r)
        numbers |= {
            f"excess_{r}": interval(arms.estimate(arms.cost(size, r, percent=True))),
            f"worth_{r}": interval(arms.worth(size, r)),
            f"best_{r}": interval(arms.worth(size, r, best=True)),
            f"best_percent_{r}": None if best is None else 100 * best / params.n_steps,
            f"turn_{r}": interval(arms.estimate(turn)),
            f"data_term_{r}": 100 * law.data_share(r),
            f"law_excess_{r}": law.excess(counts["non_embedding"], tokens, r),
            f"law_excess_all_{r}": law.excess(counts["all"], tokens, r),
        }
    return numbers
