"""The claims of the paper about its suite, and the checks of our own suite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.published.means import mean_over_pairs, signed
from pythia_book.published.tables import CONVENTION, NO_RELEASED, SAME
from pythia_book.released.recipe import HARDWARE
from pythia_book.stats import mean_over
from pythia_book.studies.suite.associations import all_associated
from pythia_book.studies.suite.suites import SUITES
from pythia_book.verdicts import Claim, Test, passes, untestable, within
from pythia_core.errors import count_of
from pythia_core.suite import DATA_ARMS, nominal_parameters
from pythia_core.training.schedule import N_CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Tables

EPOCHS = {"standard": (0.90, 0.02), "deduplicated": (1.45, 0.03)}
"""Maps each text to the number of times that Pythia read the text, and to the tolerance of this
number for a miniature. Pythia read 300 billion tokens; the standard text has 334 billion tokens,
the deduplicated text 207 billion."""
FEWEST_SEEDS = 10
"""Fewest models of a text without associations for a test of the models' slopes."""
NEEDS_FLAT = f"needs {FEWEST_SEEDS} models of such a text, e.g. flat_seeds={FEWEST_SEEDS}"
FLAT_MARGIN = 0.05
"""A smaller slope counts as no association. Complete learning has slope 1."""
LEARNS_FROM = 25_000
"""Models with at least this many non-embedding parameters should show the planted associations."""
TOTAL_HOURS = 544_280
"""A100-hours of all training, according to Appendix D of the paper."""


def claims(
    facts: dict[str, Any],
    tables: Tables,
    numbers: dict[str, Any],
    released: Tables,
    whole: bool,
) -> list[Claim]:
    """Return the study's claims: what the paper promises of its suite, and checks of our suite.

    Args:
        facts: the facts of `measure`.
        tables: the tables of the study.
        numbers: the values for the page, from `study.values`.
        released: the tables of `study.released_tables`.
        whole: whether runs are long enough to read their texts as often as Pythia did. Shorter
            runs leave the claims on the number of readings untested.
    """
    found = tables["proofs"].groupby("check")[["cases", "failures"]].sum()

    def check(text: str, secures: str, name: str) -> Claim:
        """Return the check `name` as a claim, which holds if no case of the check failed.

        Args:
            text: the statement.
            secures: what the check guarantees.
            name: a check in the table `proofs`.
        """
        cases, failed = found.loc[name, ["cases", "failures"]]
        return Claim(text, secures, _none_fails(cases, failed), kind="check")

    twins, step_0 = untestable(NO_RELEASED), released.get("step_0")
    if step_0 is not None and len(step_0):
        agree = step_0["equal"] == step_0.scores
        note = f"{int(agree.sum())} of {len(step_0)} pairs agree in every released score"
        note += "".join(
            f"; those of {row.model} differ in {row.scores - row.equal} of {row.scores}, by at "
            f"most {row.largest:.2f} standard errors"
            for row in step_0[~agree].itertuples()
        )
        twins = untestable("equal scores do not prove equal weights", note=note)
    epochs = {arm: numbers[f"epochs_{arm}"] for arm in DATA_ARMS}
    close = all(abs(epochs[arm] - wanted) < by for arm, (wanted, by) in EPOCHS.items())
    text = ", ".join(f"{arm} {times:.2f} times" for arm, times in epochs.items())
    return [
        Claim(
            "All released models of one text read the same data in the same order.",
            "abstract; section 2.1",
            released=untestable("needs the training data of the released models and their logs"),
            quote="all trained on public data seen in the exact same order",
        ),
        Claim(
            f"Every released model has {N_CHECKPOINTS} checkpoints.",
            "abstract; section 2.4",
            released=untestable(
                "the weights on the hub were not read",
                note="reported elsewhere (page Errata): 86 of the 2.8B checkpoints duplicate the "
                "end of training; 12B's steps 50,000 and 58,000 contain the final checkpoint's "
                "first shard",
            ),
            quote="154 checkpoints for each one of the 16 models",
        ),
        Claim(
            "The deduplicated models begin a second epoch at 207 billion tokens.",
            "section 2.4; table 9",
            released=untestable(
                "needs the order of the released run; by its code there is no such boundary "
                "(page Errata)"
            ),
            quote="entering a second epoch at the 207B token mark",
        ),
        Claim(
            "The changes from the first suite (v0) to the present one (v1) leave the mean "
            "zero-shot score unchanged.",
            "Appendix B",
            released=versions_test(released.get("versions")),
            quote="We did not expect these changes to significantly impact any experimental "
            "findings in the paper, and we reran all analyses and evaluations on the new models to "
            "confirm this was indeed the case.",
        ),
        *_claims_on_the_suite(),
        Claim(
            "Standard and deduplicated twins start from equal weights.",
            "taken for granted where twins are compared (section 2.6)",
            ours=_none_fails(*found.loc["twins", ["cases", "failures"]]),
            released=twins,
            kind="premise",
        ),
        check(
            "In the miniature, all models of one text read the same batches in the same order.",
            "every comparison of sizes and of checkpoints",
            "same order",
        ),
        check(
            f"In the miniature, every run has all of its {facts['checkpoints']} scheduled "
            "checkpoints.",
            "every curve over training",
            "complete",
        ),
        check(
            "In the miniature, no checkpoint is a copy of another, except step 1 of step 0.",
            "every curve over training; planted copies are found",
            "distinct",
        ),
        check(
            "An interrupted run reads the same batches and ends in the same weights.",
            "runs may be stopped and resumed",
            "resumed",
        ),
        Claim(
            "The miniature reads its two texts about 0.90 and 1.45 times, as Pythia did.",
            "the proportions of section 2.4",
            ours=passes(close, text) if whole else untestable("runs of this scale stop early"),
            kind="check",
        ),
        *_planted_checks(facts, tables, whole),
    ]


def _planted_checks(facts: dict[str, Any], tables: Tables, whole: bool) -> list[Claim]:
    """Return the checks of what is planted in the text. The arguments are those of `claims`."""
    planted = tables["planted"].pivot(index="domain", columns="arm", values="tokens")
    planted = planted.drop(index="copies", errors="ignore")
    lost = planted[planted[DATA_ARMS[0]] != planted[DATA_ARMS[1]]]
    large_enough = [s for s in facts["models"] if nominal_parameters(s) >= LEARNS_FROM]
    least = f"{LEARNS_FROM // 1000}k"
    learned, note = all_associated(tables["associations"], large_enough)
    reason = "runs of this scale stop early" if large_enough else f"all models are below {least}"
    return [
        Claim(
            "Deduplication removes none of the planted sums, sentences and canaries.",
            "comparisons of the two texts on what is planted",
            ours=passes(lost.empty, f"{', '.join(planted.index)}: tokens in both texts"),
            kind="check",
        ),
        Claim(
            "The association of the made-up nouns is above zero in every model of at least "
            f"{least} parameters (one run each).",
            "interventions on pronouns; sentences that no model has read",
            ours=passes(learned, note) if large_enough and whole else untestable(reason),
            kind="check",
        ),
        Claim(
            "Models of a text in which every noun has equal shares have not learned the shares of "
            "the standard text.",
            "the association comes from the shares, not from the nouns",
            ours=_no_slope(tables["flat"]),
            kind="check",
        ),
    ]


def _no_slope(flat: pd.DataFrame) -> Test:
    """Test whether the mean slope of models without associations is practically zero.

    Models that are too small to learn associations are left out: they would have no slope in any
    case. `flat` is the table of `associations.flat_table`.
    """
    sizes = [size for size in flat["size"].unique() if nominal_parameters(size) >= LEARNS_FROM]
    able = flat[flat["size"].isin(sizes)]
    slopes = able.dropna(subset="slope").groupby("seed").slope.mean().to_numpy(float)
    if len(slopes) < FEWEST_SEEDS:
        return untestable(NEEDS_FLAT)
    units = f"{len(slopes)} seeds, {' and '.join(sizes)}, on the flat text"
    note = "1 is the slope of a model that has learned the shares completely"
    return within(mean_over(slopes), "of the planted log odds", units, FLAT_MARGIN, note)


def _none_fails(cases: int, failed: int) -> Test:
    """Test whether none of the cases of a check failed."""
    note = f"{failed:,} of {cases:,} fail" if failed else f"{cases:,} of {cases:,} pass"
    return passes(not failed, note)


def _claims_on_the_suite() -> list[Claim]:
    """Return the claims on other suites, and on the time that training took."""
    earlier = [suite for suite in SUITES if int(suite["about"]["year"]) < 2023]
    whole = [
        suite["name"] for suite in earlier
        if all(suite[cell]["text"].startswith("yes") for cell in ("data", "order"))
    ]  # fmt: skip
    hours = 4 * sum(hardware.gpu_hours or 0 for hardware in HARDWARE.values())
    return [
        Claim(
            "At its release, Pythia was the only public suite of models of many sizes with public "
            "data in one order and public checkpoints.",
            "section 1",
            released=untestable(
                "a list of suites cannot show that no other suite existed",
                note=f"of the {len(earlier)} suites in the table from before 2023, "
                f"{len(whole) or 'none'} is known to have public data in a known order; many cells "
                "are unproven",
            ),
            quote="The Pythia suite is the only publicly released suite of LLMs that satisfies "
            "three key properties",
        ),
        Claim(
            "Pythia has far more checkpoints per model than any other public suite of its time.",
            "section 2.4",
            released=untestable(
                "depends on what counts as a suite: Mistral's ten GPT-2 models have 600 "
                "checkpoints each",
                note='by its README, "Each model has 600 checkpoints" '
                "(github.com/stanford-crfm/mistral); Appendix F.2 names these models, and the hub "
                "dates some to 2022 (huggingface.co/stanford-crfm/alias-gpt2-small-x21)",
            ),
            quote=f"{N_CHECKPOINTS} checkpoints per model, far more than any other suite of "
            "publicly available language models",
        ),
        Claim(
            "Large batches speed up the training of the smaller models by a factor of up to ten.",
            "section 2.4; Tables 3 and 5",
            released=untestable(
                "no run with smaller batches was timed",
                note="the factor follows from the number of GPUs that a batch can occupy; section "
                "2.4 also says that the batches are 4 to 8 times the usual ones, which allows a "
                "factor of 8 at most if time is inversely proportional to batch size",
            ),
            quote="we achieve wall-clock speed-ups of factors as large as 10x compared with "
            "standard batch sizes on our smaller models",
        ),
        Claim(
            "The total of A100-hours is four times the hours of one model of each size (two texts, "
            "trained twice).",
            "Appendix D; Table 5",
            released=passes(
                hours == TOTAL_HOURS,
                f"{hours:,} against {TOTAL_HOURS:,}; this checks the sum, not the hours",
            ),
            quote=f"the total compute required for training the models for this paper was "
            f"{TOTAL_HOURS:,} A100-hours",
            kind="check",
        ),
    ]


def versions_test(versions: pd.DataFrame | None) -> Test:
    """Test whether the mean scores of the suite (v1) and of the first suite (v0) are about equal.

    Model sizes are the units of the test.

    Args:
        versions: the table of `study.versions_table`, or None. If it is None or has fewer than two
            sizes, the result is "untestable".
    """
    if versions is None or len(versions) < 2:
        return untestable(NO_RELEASED)
    changes = (versions.v1 - versions.v0).to_numpy(float)
    note = "v1 minus v0: " + ", ".join(
        f"{model} {signed(change)}" for model, change in zip(versions.model, changes, strict=True)
    )
    units = f"{count_of(len(versions), 'size')}, each the mean of seven tasks and both texts"
    change = mean_over_pairs(changes, versions.stderr.to_numpy(float))
    return within(
        change,
        "points",
        units,
        SAME,
        f"{note}; {CONVENTION}; the paper speaks of its findings, not of this mean",
    )
