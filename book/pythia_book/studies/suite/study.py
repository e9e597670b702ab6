"""The suite in miniature (paper section 2): sixteen models, their checkpoints, what they read.

The study trains models of every size, on the standard and on the deduplicated text. It describes
the models, shows what they write and read (`examples`), checks the guarantees that all studies rely
on (`proofs`), counts how often each token is read (`read_counts`), and compares Pythia with other
public suites of models (`suites`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.corpora.occupations import INVENTED
from pythia_book.published.means import mean_over_tasks
from pythia_book.published.tables import SEVEN, first_suite_table
from pythia_book.studies.suite.associations import associations_table, flat_table
from pythia_book.studies.suite.claims import claims
from pythia_book.studies.suite.params import STUDY, Params
from pythia_book.studies.suite.read_counts import OFFICIAL, pile_reads
from pythia_book.studies.suite.suites import READ, suites_tables
from pythia_book.tasks.associations import UNSEEN
from pythia_book.verdicts import ALPHA
from pythia_core.suite import DATA_ARMS, OFFICIAL_SIZES
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.study import Analysis, Measurements, Result, Tables

BINS = 143
"""Number of points on a loss curve."""
WRITING = ["prompt", "step", "size", "text"]
AT_END = 0.07
"""The final loss is the mean over this fraction of the updates, at the end of training."""


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, check its guarantees, and compare it with other public suites.

    Args:
        published: the released numbers; None: the numbers in `PYTHIA_PUBLISHED_DIR` or, if this
            variable is not set, in a record of the study.
    """

    def measured() -> Measurements:
        """Measure the suite.

        The import is inside this function because it loads torch, which a redraw does not need.
        """
        from pythia_book.studies.suite.measure import measure

        return measure(params, progress)

    analyzing = partial(analyze, params)
    return conduct(STUDY, params, measured, analyzing, released_tables, published, seed_bands=True)


def released_tables(published: Published) -> Tables:
    """Return the tables `step_0` and `versions` of released benchmark scores.

    See `step_0_table` and `versions_table`.
    """
    return {"step_0": step_0_table(published), "versions": versions_table(published)}


def versions_table(published: Published) -> pd.DataFrame:
    """Compare the final accuracy of the released suite (v1) and of the suite it replaced (v0).

    Columns: model, v0, v1, stderr. v0 and v1 are zero-shot accuracies in percent, averaged over
    both texts and over the tasks SEVEN. stderr is the standard error of v1 - v0 from the choice of
    items. The two models of one size (one per text) answer the same items, so the standard error of
    the mean of the two models is taken to be the mean of the two standard errors. Sizes that lack a
    score are left out.
    """
    keys = ["model", "deduped", "task"]

    def final(table: pd.DataFrame) -> pd.DataFrame:
        """Return the accuracies on the seven tasks at the end of training, in percent."""
        rows = table[(table.step == OFFICIAL_STEPS) & (table.metric == "acc")]
        rows = rows[rows.task.isin(SEVEN)]
        return rows[keys].join(100 * rows[["value", "stderr"]].astype(float))

    benchmarks = published.benchmarks
    v1, v0 = final(benchmarks[benchmarks.shots == 0]), final(first_suite_table(published.path))
    both = v1.merge(v0, on=keys, suffixes=("_v1", "_v0"))
    texts = both.drop(columns="deduped").groupby(["model", "task"], sort=False)
    tasks = texts.mean()[texts.size() == len(DATA_ARMS)].reset_index()
    tasks = tasks.rename(columns={"value_v1": "v1", "value_v0": "v0"})
    tasks["value"] = tasks.v1 - tasks.v0
    tasks["stderr"] = np.hypot(tasks.stderr_v1, tasks.stderr_v0)
    changes = mean_over_tasks(tasks, ["model"], len(SEVEN))
    means = tasks.groupby("model")[["v0", "v1"]].mean()
    return changes.join(means, on="model")[["model", "v0", "v1", "stderr"]]


def step_0_table(published: Published) -> pd.DataFrame:
    """Compare the released scores of twins (the models of one size on both texts) at step 0.

    Columns: model, scores (how many scores were compared), equal (how many of them are the same for
    both twins) and largest (the largest difference, in standard errors of the standard twin's
    score). The table is empty if there are no released scores.
    """
    import pandas as pd

    columns = ["model", "scores", "equal", "largest"]
    raw = published.released_benchmarks
    if raw is None or raw.empty:
        return pd.DataFrame(columns=columns)
    first = raw[raw.step == 0].assign(deduped=lambda f: f.deduped.astype(bool))
    keys = ["model", "shots", "task", "metric"]
    twins = first[~first.deduped].merge(first[first.deduped], on=keys).dropna(subset="value_y")
    apart = (twins.value_x - twins.value_y).abs()
    twins = twins.assign(same=apart == 0, errors=(apart / twins.stderr_x).where(apart > 0, 0))
    by_model = twins.groupby("model", sort=False)
    found = by_model.agg(scores=("same", "size"), equal=("same", "sum"), largest=("errors", "max"))
    return found.reset_index()[columns]


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
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
        "planted": pd.DataFrame(facts["planted"]),
        "nouns": pd.DataFrame(facts["nouns"]),
        "associations": associations_table(measured),
        "flat": flat_table(measured),
        "writing": pd.DataFrame(facts.get("writing", []), columns=WRITING),
        "batch": pd.DataFrame(facts.get("batch", {}).get("passages", [])),
        "suites": suites,
        "suite_sources": sources,
    }
    numbers = values(params, facts, tables)
    whole = params.scale != "smoke"
    return tables, numbers, claims(facts, tables, numbers, released, whole)


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
        row |= {"tokens": tokens, "tokens_per_parameter": tokens / shape["total"]}
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
             "tokens_per_parameter": tokens / model.n_params}
        )  # fmt: skip
    return pd.DataFrame(rows)


def losses_table(measured: Measurements) -> pd.DataFrame:
    """Return the training losses, averaged within each of at most `BINS` intervals of training.

    The columns are size, arm ("standard" or "deduplicated"), step and tokens (updates made and
    tokens read by the end of the interval) and loss (nats per token).
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
    """Return, for each row of `reads`, the fraction of the Pile that Pythia read `times` times.

    `times` is a column of the row.
    """
    times = {"3 or more": 3}
    return [
        pile_reads(row["arm"], row["policy"])[times.get(row["times"], row["times"])]
        for row in reads
    ]


# --- values ----------------------------------------------------------------------------------


def values(params: Params, facts: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """Return the numbers that the page quotes in its text, by name."""
    sizes, reads, proofs = params.size_list, tables["reads"], tables["proofs"]
    shape = facts["models"][sizes[-1]]
    tokens = shape["steps"] * shape["batch_tokens"]
    years = tables["suites"].year.astype(int)
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
        "suites_first": str(min(years)),
        "suites_last": str(max(years)),
        "suites_read": READ,
        **{
            f"batch_{name}": value
            for name, value in facts.get("batch", {}).items()
            if name != "passages"
        },
    }
    ends = {"smallest": sizes[0], "largest": sizes[-1]}
    models, official = (tables[name].set_index("size") for name in ("models", "official"))
    for end, size in ends.items():
        numbers[f"tokens_per_parameter_{end}"] = models.tokens_per_parameter[size]
    for size in ("70m", "12b"):
        numbers[f"tokens_per_parameter_{size}"] = official.tokens_per_parameter[size]
    for arm in DATA_ARMS:
        numbers[f"tokens_{arm}"] = facts["tokens"][arm]
        numbers[f"epochs_{arm}"] = tokens / facts["tokens"][arm]
        for end, size in ends.items():
            numbers[f"loss_{end}_{arm}"] = models[f"loss_{arm}"][size]
    numbers["removed_percent"] = 100 * _removed(facts["tokens"])
    numbers["pile_removed_percent"] = 100 * _removed(OFFICIAL)
    again = tables["rereads"]
    again = again[(again.arm == "deduplicated") & (again.policy == "joint")].share
    numbers |= {"reread_first": 100 * again.iloc[0], "reread_last": 100 * again.iloc[-1]}
    slopes = tables["associations"]
    slopes = slopes[(slopes.group == INVENTED) & (slopes.frames == UNSEEN)]
    for arm, rows in slopes.dropna(subset=["value"]).groupby("arm"):
        steepest = rows.loc[rows.value.idxmax()]
        numbers[f"steepest_size_{arm}"] = steepest["size"]
        numbers[f"steepest_{arm}"] = {key: steepest[key] for key in ("value", "low", "high")}
    for row in slopes[slopes["size"] == sizes[-1]].itertuples():
        numbers[f"slope_{row.arm}"] = {"value": row.value, "low": row.low, "high": row.high}
    planted = tables["planted"]
    for row in planted.itertuples():
        numbers[f"planted_{row.domain}_{row.arm}_percent"] = 100 * row.share
    for arm, share in planted[planted.domain != "copies"].groupby("arm").share.sum().items():
        numbers[f"planted_{arm}_percent"] = 100 * share
    flat = tables["flat"].dropna(subset="p")
    numbers |= {"n_flat": len(flat), "n_flat_below": int((flat.p < ALPHA).sum())}
    numbers |= {
        "flat_seeds": flat.seed.nunique(), "flat_sizes": " and ".join(flat["size"].unique())
    }  # fmt: skip
    for row in reads[reads.arm == "deduplicated"].itertuples():
        name = str(row.times).split(" ")[0]
        numbers[f"read_{name}_{row.policy}_percent"] = 100 * row.share
        numbers[f"pile_read_{name}_{row.policy}_percent"] = 100 * row.pile
    return numbers


def _removed(tokens: Mapping[str, float]) -> float:
    """Return the fraction of the standard text that deduplication removes."""
    standard, deduplicated = DATA_ARMS
    return 1 - tokens[deduplicated] / tokens[standard]
