"""The suite in miniature (paper section 2): sixteen models, their checkpoints, what they read.

The study trains every size of the scale on the standard and the deduplicated text. It describes
the models, checks the guarantees that all studies rely on (proofs), counts how often a token is
read (read_counts), and compares the suite with other public suites. The data of this comparison are
in suites.toml, with a source for every cell of the table.
"""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.published.tables import SAME, SAME_WHY, SEVEN, first_suite_table
from pythia_book.released.recipe import HARDWARE
from pythia_book.stats import mean_over
from pythia_book.studies.suite.params import STUDY, Params
from pythia_book.studies.suite.read_counts import OFFICIAL, pile_reads
from pythia_book.verdicts import Claim, Test, passes, untestable, within
from pythia_core.suite import DATA_ARMS, OFFICIAL_SIZES
from pythia_core.training.schedule import N_CHECKPOINTS, OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.study import Analysis, Measurements, Result, Tables

BINS = 143
"""Number of points on a loss curve."""
AT_END = 0.07
"""Share of the updates at the end over which the last loss is averaged."""
EPOCHS = {"standard": (0.90, 0.02), "deduplicated": (1.45, 0.03)}
"""How often a run should read its text, as Pythia did (300 of 334 and of 207 billion tokens), and
how far a miniature may be from that."""
TOTAL_HOURS = 544_280
"""A100-hours of all training, by Appendix D of the paper."""
MISTRAL = (
    "it depends on what counts as a suite: of Mistral, ten GPT-2 models that Appendix F.2 names, "
    '"Each model has 600 checkpoints" (github.com/stanford-crfm/mistral, README), some of which '
    "the hub dates to 2022 (huggingface.co/stanford-crfm/alias-gpt2-small-x21)"
)
"""Why the claim on the number of checkpoints gets no verdict."""


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, check its guarantees, and compare it with other public suites.

    Args:
        published: the released numbers; None: those in `PYTHIA_PUBLISHED_DIR`, or else those in a
            record of the study.
    """

    def measured() -> Measurements:
        """Measure the suite.

        The import is inside this function because it loads torch, which a redraw does not need.
        """
        from pythia_book.studies.suite.measure import measure

        return measure(params, progress)

    return conduct(STUDY, params, measured, partial(analyse, params), released_tables, published)


def released_tables(published: Published) -> Tables:
    """Return the tables `step_0` and `versions` of released benchmark scores.

    See `step_0_table` and `versions_table`.
    """
    return {"step_0": step_0_table(published), "versions": versions_table(published)}


def versions_table(published: Published) -> pd.DataFrame:
    """Compare the final accuracy of the released suite (v1) with the suite it replaced (v0).

    Columns: model, v0 and v1. v0 and v1 are zero-shot accuracies in percent, averaged over both
    texts and over the tasks SEVEN. Models that lack a score are left out.
    """
    keys = ["model", "deduped", "task"]

    def final(table: pd.DataFrame) -> pd.Series:
        """Return the accuracies at the end of training, in percent, by model, deduped and task."""
        rows = table[(table.step == OFFICIAL_STEPS) & (table.metric == "acc")]
        return 100 * rows[rows.task.isin(SEVEN)].set_index(keys).value.astype(float)

    benchmarks = published.benchmarks
    v1 = final(benchmarks[benchmarks.shots == 0])
    both = v1.rename("v1").to_frame().join(final(first_suite_table(published.path)).rename("v0"))
    means = both.groupby(level="model", sort=False)[["v0", "v1"]].agg(["mean", "count"])
    complete = (means.xs("count", axis=1, level=1) == 2 * len(SEVEN)).all(axis=1)
    return means.xs("mean", axis=1, level=1)[complete].reset_index()


def step_0_table(published: Published) -> pd.DataFrame:
    """Compare the released scores of twins (the models of one size on both texts) at step 0.

    Columns: model, scores (how many scores were compared) and equal (how many of them are the same
    for both twins). The table is empty if there are no released scores.
    """
    import pandas as pd

    columns = ["model", "scores", "equal"]
    raw = published.released_benchmarks
    if raw is None or raw.empty:
        return pd.DataFrame(columns=columns)
    first = raw[raw.step == 0].assign(deduped=lambda f: f.deduped.astype(bool))
    wide = first.pivot_table(
        index=["model", "shots", "task", "metric"], columns="deduped", values="value"
    ).reindex(columns=[False, True])
    wide = wide.dropna()
    same = (wide[False] == wide[True]).groupby(level="model", sort=False)
    return same.agg(scores="size", equal="sum").reset_index()[columns]


def analyse(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Turn the measurements into the study's tables, the values for its page, and its claims."""
    import pandas as pd

    facts = measured.facts
    suites, sources = suites_tables()
    tables = {
        "models": models_table(measured),
        "official": official_table(),
        "losses": losses_table(measured),
        "proofs": pd.DataFrame(facts["proofs"]),
        "reads": pd.DataFrame(facts["reads"]).assign(pile=_pile_shares(facts["reads"])),
        "rereads": pd.DataFrame(facts["rereads"]),
        "suites": suites,
        "suite_sources": sources,
    }
    numbers = values(params, facts, tables)
    whole = params.scale != "smoke"
    return tables, numbers, claims(facts, tables["proofs"], numbers, released, whole)


# --- what the models are ---------------------------------------------------------------------


def models_table(measured: Measurements) -> pd.DataFrame:
    """Return a table of our sizes: shape, training parameters and losses.

    The columns loss_standard and loss_deduplicated have the mean training loss over the last 7 % of
    the updates, in nats per token.
    """
    import pandas as pd

    rows = []
    for size, shape in measured.facts["models"].items():
        tokens = shape["steps"] * shape["batch_tokens"]
        row = {"size": size, **{k: v for k, v in shape.items() if k != "steps"}}
        row |= {"tokens": tokens, "tokens_per_parameter": tokens / shape["non_embedding"]}
        for arm in DATA_ARMS:
            losses = measured.get("loss", size, arm)
            if losses is not None:
                last = losses[-max(1, int(len(losses) * AT_END)) :]
                row[f"loss_{arm}"] = float(last.mean(dtype=float))
        rows.append(row)
    return pd.DataFrame(rows)


def official_table() -> pd.DataFrame:
    """Return a table of the released sizes: the columns of `models_table` without the losses."""
    import pandas as pd

    batch_tokens = OFFICIAL["batch"] * OFFICIAL["seq_len"]
    tokens = OFFICIAL_STEPS * batch_tokens
    rows = []
    for name, size in OFFICIAL_SIZES.items():
        model = size.model()
        rows.append(
            {"size": name, "layers": model.n_layers, "width": model.d_model,
             "heads": model.n_heads, "head_dim": model.head_dim,
             "non_embedding": model.n_params_non_embedding, "total": model.n_params,
             "lr_max": size.lr_max, "batch_tokens": batch_tokens, "tokens": tokens,
             "tokens_per_parameter": tokens / model.n_params_non_embedding}
        )  # fmt: skip
    return pd.DataFrame(rows)


def losses_table(measured: Measurements) -> pd.DataFrame:
    """Return the training losses, averaged within each of at most 143 intervals of training.

    Columns: size, arm (the text), step and tokens (updates done and tokens read by the end of the
    interval), loss (nats per token).
    """
    import pandas as pd

    frames = []
    for (size, arm), losses in measured.under("loss"):
        parts = np.array_split(np.arange(len(losses)), min(BINS, len(losses)))
        steps = [int(part[-1]) + 1 for part in parts]
        frame = pd.DataFrame(
            {"step": steps, "loss": [losses[part].mean(dtype=float) for part in parts]}
        )
        per_step = measured.facts["models"][size]["batch_tokens"]
        frames.append(frame.assign(size=size, arm=arm, tokens=frame.step * per_step))
    return pd.concat(frames, ignore_index=True)[["size", "arm", "step", "tokens", "loss"]]


def _pile_shares(reads: list[dict[str, Any]]) -> list[float]:
    """Return a fraction of the Pile's tokens for each row of the table `reads`.

    It is the fraction that Pythia read as often as the column `times` says in that row.
    """
    times = {"3 or more": 3}
    return [
        pile_reads(row["arm"], row["policy"])[times.get(row["times"], row["times"])]
        for row in reads
    ]


# --- claims and values -----------------------------------------------------------------------


def values(params: Params, facts: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """Return the numbers that the page quotes in its text, by name."""
    sizes, reads, proofs = params.size_list, tables["reads"], tables["proofs"]
    shape = facts["models"][sizes[-1]]
    tokens = shape["steps"] * shape["batch_tokens"]
    numbers: dict[str, Any] = {
        "n_models": len(sizes) * len(DATA_ARMS),
        "sizes": ", ".join(sizes),
        "largest": sizes[-1],
        "smallest": sizes[0],
        "steps": shape["steps"],
        "tokens": tokens,
        "n_checkpoints": facts["checkpoints"],
        "n_proofs": int(proofs.cases.sum()),
        "n_failures": int(proofs.failures.sum()),
        **{f"heldout_{name}": value for name, value in facts["heldout"].items()},
        "n_suites": len(tables["suites"]),
        "suites_read": READ,
    }
    for arm in DATA_ARMS:
        numbers[f"tokens_{arm}"] = facts["tokens"][arm]
        numbers[f"epochs_{arm}"] = tokens / facts["tokens"][arm]
    for row in reads[reads.arm == "deduplicated"].itertuples():
        name = str(row.times).split(" ")[0]
        numbers[f"read_{name}_{row.policy}_percent"] = 100 * row.share
        numbers[f"pile_read_{name}_{row.policy}_percent"] = 100 * row.pile
    return numbers


def claims(
    facts: dict[str, Any],
    proofs: pd.DataFrame,
    numbers: dict[str, Any],
    released: Tables,
    whole: bool,
) -> list[Claim]:
    """Return the claims about what the paper promises of its suite, and the checks of our suite.

    Args:
        facts: the facts of `measure`.
        proofs: the table of all checks, from `proofs_table`.
        numbers: the result of `values`.
        released: the tables of `released_tables`.
        whole: whether runs are long enough to read their texts as often as Pythia did. If false,
            the claim about how often texts are read is not tested.
    """
    found = proofs.groupby("check")[["cases", "failures"]].sum()

    def check(text: str, secures: str, name: str) -> Claim:
        """Return the check `name` as a claim, which holds if none of its cases failed.

        Args:
            text: the statement. secures: what the check guarantees.
        """
        cases, failed = found.loc[name, ["cases", "failures"]]
        return Claim(text, secures, passes(not failed, f"{failed:,} of {cases:,} fail"),
                     kind="check")  # fmt: skip

    twins, step_0 = NO_SCORES, released.get("step_0")
    if step_0 is not None and len(step_0):
        agree = step_0["equal"] == step_0.scores
        twins = "equal scores do not prove equal weights"
        note = f"{int(agree.sum())} of {len(step_0)} pairs agree in every released score"
    failed = int(found.failures["twins"])
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
                "needs the weights on the hub, which were not read; others report that 86 of those "
                "of 2.8B repeat the end of training, and that two of 12B (steps 50,000 and 58,000) "
                "have the first shard of the final one (page Errata)"
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
            ours=passes(not failed, f"{failed} of {found.cases['twins']} fail"),
            released=untestable(twins, note=note if step_0 is not None and len(step_0) else ""),
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
    ]


NO_SCORES = "needs the released scores"


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
                "that no other suite existed cannot be shown by a list of suites",
                note=f"of the {len(earlier)} suites in the table from before 2023, "
                f"{len(whole) or 'none'} is shown to have public data in a known order; many cells "
                "are unproven",
            ),
            quote="The Pythia suite is the only publicly released suite of LLMs that satisfies "
            "three key properties",
        ),
        Claim(
            "Pythia has far more checkpoints per model than any other public suite of its time.",
            "section 2.4",
            released=untestable(MISTRAL),
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
                "factor of 8 at most if time shrinks as batches grow",
            ),
            quote="we achieve wall-clock speed-ups of factors as large as 10x compared with "
            "standard batch sizes on our smaller models",
        ),
        Claim(
            f"The GPU-hours of all sizes add up to {TOTAL_HOURS:,} A100-hours.",
            "Appendix D; Table 5",
            released=passes(
                hours == TOTAL_HOURS,
                "four times the hours of one model of each size (two texts, trained twice): "
                f"{hours:,}; this checks the sum, not the hours",
            ),
            quote=f"the total compute required for training the models for this paper was "
            f"{TOTAL_HOURS:,} A100-hours",
        ),
    ]


def versions_test(versions: pd.DataFrame | None) -> Test:
    """Test whether the suite (v1) and the first suite (v0) have practically equal mean scores.

    Model sizes are the units of the test.

    Args:
        versions: the table of `versions_table`, or None. If it is None or has fewer than two sizes,
            the result is "untestable".
    """
    if versions is None or len(versions) < 2:
        return untestable(NO_SCORES)
    changes = (versions.v1 - versions.v0).to_numpy(float)
    note = "v1 minus v0: " + ", ".join(
        f"{model} {change:+.1f}" for model, change in zip(versions.model, changes, strict=True)
    )
    units = f"{len(versions)} sizes, each the mean of seven tasks and both texts"
    return within(mean_over(changes), "points", units, SAME, f"{note}; {SAME_WHY}")


# --- other public suites ---------------------------------------------------------------------

CELLS = ("data", "order", "checkpoints", "optimizer", "seeds", "licence")
"""The properties by which suites are compared."""


def _read_suites() -> tuple[list[dict[str, Any]], str]:
    """Return the public suites in suites.toml, and the day on which their sources were read."""
    content = tomllib.loads(Path(__file__).with_name("suites.toml").read_text("utf-8"))
    return content["suite"], content["read"]


SUITES, READ = _read_suites()
"""Public suites of models with their sources, and when the sources were read."""


def suites_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a table of public suites of models, and a table of the sources of its cells.

    The first table has the columns suite, year, sizes, models, and CELLS. The second has the
    columns suite, cell, url and quote, where cell is the column of the first table that the source
    supports: one of CELLS, or "about" for year, sizes and models together.
    """
    import pandas as pd

    rows, sources = [], []
    for suite in SUITES:
        about = suite["about"]
        row = {"suite": suite["name"]} | {k: about[k] for k in ("year", "sizes", "models")}
        rows.append(row | {cell: suite[cell]["text"] for cell in CELLS})
        for cell in ("about", *CELLS):
            sources += [{"suite": suite["name"], "cell": cell, **s} for s in suite[cell]["sources"]]
    return pd.DataFrame(rows), pd.DataFrame(sources)
