"""Counts how often each token is read, from the data order.

GPT-NeoX v1.0 repeats the list of documents as often as training needs, and shuffles all repetitions
together (the policy "joint"). So a run on the deduplicated text has no boundary between epochs. The
paper, however, describes a second epoch after the first (the policy "separate").
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pythia_core.data.order import RowOrder, epochs_needed
from pythia_core.suite import DATA_ARMS
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.training.runs import Run

BLOCKS = 143
"""Number of intervals of training for which repeated reads are counted."""
OFFICIAL = {"batch": 1024, "seq_len": 2048, "standard": 334e9, "deduplicated": 207e9}
"""Rows per batch, tokens per row, tokens of the two Piles (paper, section 2)."""


def reading_tables(suite: dict[tuple[str, str], Run]) -> dict[str, pd.DataFrame]:
    """Count how often the runs of a suite read each token of their text.

    All sizes of an arm read the same rows, so only one size is counted. Both tables have the
    columns `arm` and `policy`. If a run needs only one epoch, only "joint" is listed.

    `reads`: `times` (0, 1, 2 or "3 or more"), `share` (the fraction of the text's tokens that are
        read this often).
    `rereads`: `percent` (of training, at the end of an interval), `share` (the fraction of the
        interval's input tokens that had been read before).
    """
    import pandas as pd

    reads, rereads = [], []
    for arm in DATA_ARMS:
        run = next(run for (_, a), run in suite.items() if a == arm)
        data, size = run.config.data, run.config.train.batch_size
        n_rows = run.config.train.steps * size
        for policy in ("joint", "separate") if data.epochs > 1 else ("joint",):
            order = run.data.order
            if policy != data.epoch_policy:
                order = RowOrder(
                    run.data.tokens.sizes, data.seq_len, data.order_seed, data.epochs, policy
                )
            block = size * max(1, run.config.train.steps // BLOCKS)
            counts, again = order.read_counts(n_rows, block)
            shares = np.bincount(np.minimum(counts, 3), minlength=4) / len(counts)
            for times, share in enumerate(shares):
                reads.append(
                    {"arm": arm, "policy": policy, "times": "3 or more" if times == 3 else times,
                     "share": float(share)}
                )  # fmt: skip
            for i, repeats in enumerate(again):
                rows = min(block, n_rows - i * block)
                rereads.append(
                    {"arm": arm, "policy": policy, "percent": 100 * (i * block + rows) / n_rows,
                     "share": repeats / (rows * data.seq_len)}
                )  # fmt: skip
    return {"reads": pd.DataFrame(reads), "rereads": pd.DataFrame(rereads)}


def pile_reads(arm: str, policy: str) -> tuple[float, float, float, float]:
    """Return the fractions of the Pile's tokens that Pythia read 0, 1, 2, and 3 or more times.

    GPT-NeoX makes as many copies of the document list as training needs (here 1 or 2). Training
    reads a fraction f of the rows of all copies.

    Args:
        arm: the text, "standard" or "deduplicated".
        policy: how the copies are shuffled. "joint": together; each copy of a token is read with
            probability f. "separate": each by itself; only the last copy is read in part.
    """
    rows = OFFICIAL_STEPS * OFFICIAL["batch"]
    requested = math.ceil(rows * 1.005)  # GPT-NeoX builds its index for a little more
    tokens = int(OFFICIAL[arm])
    epochs = epochs_needed(tokens, OFFICIAL["seq_len"], requested)
    share = rows / ((epochs * tokens - 1) // OFFICIAL["seq_len"])
    if policy == "joint":
        twice = [(1 - share) ** 2, 2 * share * (1 - share), share**2]
        shares = [1 - share, share] if epochs == 1 else twice
    else:
        last = share * epochs - (epochs - 1)
        shares = [0.0] * (epochs - 1) + [1 - last, last]
    return tuple([*shares, 0.0, 0.0, 0.0][:4])
