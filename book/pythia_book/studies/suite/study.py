"""The suite in miniature (paper section 2): sixteen models, their checkpoints, what they read.

Trains every size of the scale on the standard and the deduplicated text, describes the models,
checks the guarantees that the studies rely on (proofs), counts how often a token is read
(read_counts) and compares the suite with other public ones. That comparison has the columns of the
paper's table (section 2.1). Because that table was not machine-readable, the entries come from
general knowledge (certainty "from memory"), except Pythia's, which come from its released configs
("checked").
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.studies.registry import train_all
from pythia_book.studies.suite.params import STUDY, Params
from pythia_book.studies.suite.proofs import Suite, checkpoints_table, proofs_table
from pythia_book.studies.suite.read_counts import OFFICIAL, reading_tables
from pythia_book.study import Result
from pythia_core.suite import DATA_ARMS, OFFICIAL_SIZES, suite_configs
from pythia_core.training.schedule import N_CHECKPOINTS, OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.config import ModelConfig

BINS = 143
"""Number of points on a loss curve."""


def run(params: Params, progress: bool = True) -> Result:
    """Find or train the suite, then count and compare."""
    started = time.time()
    suite = train_all(
        params, suite_configs(params.scale, params.size_list, seed=params.seed), progress
    )
    tables = {
        "models": models_table(suite),
        "official": official_table(),
        "losses": losses_table(suite),
        "checkpoints": checkpoints_table(suite),
        "proofs": proofs_table(suite, params.resume_steps),
        **reading_tables(suite),
        "suites": suites_table(),
    }
    numbers = values(params, suite, tables)
    rows = claims(tables, numbers)
    return Result(STUDY, params, tables, numbers, rows, list(suite.values()), started)


# --- what the models are ---------------------------------------------------------------------


def models_table(suite: Suite) -> pd.DataFrame:
    """One row per size: its shape, and its mean loss over the last 7 % of steps on both texts."""
    import pandas as pd

    rows = []
    for size in dict.fromkeys(size for size, _ in suite):
        config = suite[size, DATA_ARMS[0]].config
        batch_tokens = config.train.batch_size * config.data.seq_len
        shape = _shape(size, config.model, config.train.lr_max, batch_tokens, config.train.steps)
        for arm in DATA_ARMS:
            losses = [row["loss"] for row in suite[size, arm].metrics()]
            shape[f"loss_{arm}"] = float(np.mean(losses[-max(1, len(losses) * 7 // 100) :]))
        rows.append(shape)
    return pd.DataFrame(rows)


def official_table() -> pd.DataFrame:
    """The ten released sizes in the same columns, from their configs; no losses were released."""
    import pandas as pd

    batch_tokens = OFFICIAL["batch"] * OFFICIAL["seq_len"]
    return pd.DataFrame(
        [
            _shape(name, size.model(), size.lr_max, batch_tokens, OFFICIAL_STEPS)
            for name, size in OFFICIAL_SIZES.items()
        ]
    )


def _shape(
    name: str, model: ModelConfig, lr_max: float, batch_tokens: int, steps: int
) -> dict[str, Any]:
    """A table row for a size: its shape and its training."""
    return {
        "size": name,
        "layers": model.n_layers,
        "width": model.d_model,
        "heads": model.n_heads,
        "head_dim": model.head_dim,
        "non_embedding": model.n_params_non_embedding,
        "total": model.n_params,
        "lr_max": lr_max,
        "batch_tokens": batch_tokens,
        "tokens": steps * batch_tokens,
        "tokens_per_parameter": steps * batch_tokens / model.n_params_non_embedding,
    }


def losses_table(suite: Suite) -> pd.DataFrame:
    """Training loss, averaged over at most 143 intervals: size, arm, step, tokens, loss."""
    import pandas as pd

    frames = []
    for (size, arm), run in suite.items():
        losses = np.array([row["loss"] for row in run.metrics()])
        parts = np.array_split(np.arange(len(losses)), min(BINS, len(losses)))
        steps = [int(part[-1]) + 1 for part in parts]
        per_step = run.config.train.batch_size * run.config.data.seq_len
        frame = pd.DataFrame({"step": steps, "loss": [losses[part].mean() for part in parts]})
        frames.append(frame.assign(size=size, arm=arm, tokens=frame.step * per_step))
    return pd.concat(frames, ignore_index=True)[["size", "arm", "step", "tokens", "loss"]]


# --- claims and values -----------------------------------------------------------------------


def values(params: Params, suite: Suite, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Names and numbers quoted in the page's text."""
    sizes, reads, proofs = params.size_list, tables["reads"], tables["proofs"]
    config = suite[sizes[-1], "standard"].config
    numbers: dict[str, Any] = {
        "n_models": len(suite),
        "sizes": ", ".join(sizes),
        "largest": sizes[-1],
        "smallest": sizes[0],
        "steps": config.train.steps,
        "tokens": config.train.steps * config.train.batch_size * config.data.seq_len,
        "n_checkpoints": len(tables["checkpoints"]),
        "n_proofs": int(proofs.cases.sum()),
        "n_failures": int(proofs.failures.sum()),
    }
    for arm in DATA_ARMS:
        run = suite[sizes[0], arm]
        n_rows = run.config.train.steps * run.config.train.batch_size
        numbers[f"tokens_{arm}"] = run.data.tokens.n_tokens
        numbers[f"epochs_{arm}"] = n_rows * run.config.data.seq_len / run.data.tokens.n_tokens
    for row in reads[reads.arm == "deduplicated"].itertuples():
        name = str(row.times).split(" ")[0]
        numbers[f"read_{name}_{row.policy}_percent"] = 100 * row.share
        numbers[f"pile_read_{name}_{row.policy}_percent"] = 100 * row.pile
    return numbers


def claims(tables: dict[str, pd.DataFrame], numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims about the suite's guarantees and its training."""
    proofs = tables["proofs"].groupby("check")[["cases", "failures"]].sum()

    def row(
        claim: str, paper: str, ours: str, holds: bool, published: str | None = None
    ) -> dict[str, Any]:
        verdict = "reproduced" if holds else "not reproduced"
        return {"claim": claim, "paper": paper, "published": published, "ours": ours,
                "low": None, "high": None, "verdict": verdict}  # fmt: skip

    def proof(claim: str, paper: str, check: str, published: str | None = None) -> dict[str, Any]:
        cases, failed = proofs.loc[check, ["cases", "failures"]]
        return row(claim, paper, f"{failed} of {cases} fail", not failed, published)

    losses = tables["models"].filter(like="loss_")
    falling = bool((losses.diff().dropna() < 0).all().all())
    both = [numbers[f"epochs_{arm}"] for arm in DATA_ARMS]
    return [
        proof("All models read the same data in the same order (batches compared)",
              "yes, at every step", "same order"),
        proof(f"Every model has {N_CHECKPOINTS} checkpoints (compared with the schedule)",
              "154 each", "complete"),
        proof("No checkpoint is a copy of another (weights compared by hash)", "not checked",
              "distinct",
              "86 of 154 branches of the 2.8B model served weights of the end of training"),
        proof("Standard and deduplicated twins start from equal weights", "not stated", "twins",
              "equal scores at step 0"),
        proof("A resumed run equals the uninterrupted one (batches and weights)", "not stated",
              "resumed"),
        row("The standard text is read 0.90 times, the deduplicated 1.45 times",
            "about one and one and a half epochs", f"{both[0]:.2f} and {both[1]:.2f} times",
            abs(both[0] - 0.9) < 0.02 and abs(both[1] - 1.45) < 0.03),
        row("Training loss falls with every step in size", "not stated",
            "yes" if falling else "not at every step", falling),
    ]  # fmt: skip


# --- other public suites ---------------------------------------------------------------------

COLUMNS = ("suite", "models", "smallest", "largest", "checkpoints", "public models", "public data",
           "known order", "same order for all", "certainty")  # fmt: skip
_OTHERS = (
    # the number of checkpoints is that of the suite's model with the fewest
    ("GPT-2", 4, "124M", "1.5B", 1, "yes", "no", "no", "no", "from memory"),
    ("GPT-3", 4, "Ada", "DaVinci", 1, "paid access", "no", "no", "no", "from memory"),
    ("GPT-Neo", 6, "125M", "20B", 30, "yes", "yes", "yes", "no", "from memory"),
    ("OPT", 9, "125M", "175B", 2, "yes", "no", "no", "no", "from memory"),
    ("T5", 5, "60M", "11B", 1, "yes", "yes", "no", "no", "from memory"),
    ("BLOOM", 5, "560M", "176B", 8, "yes", "on request", "yes", "mostly", "from memory"),
)
IN_PAPER = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
"""The sizes in the paper; 14M and 31M were released later."""


def suites_table() -> pd.DataFrame:
    """One row per suite; Pythia's is the last."""
    import pandas as pd

    sizes = [name.upper() for name in OFFICIAL_SIZES if name in IN_PAPER]
    pythia = ("Pythia", len(sizes), sizes[0], sizes[-1], N_CHECKPOINTS, *["yes"] * 4, "checked")
    return pd.DataFrame([*_OTHERS, pythia], columns=list(COLUMNS))
