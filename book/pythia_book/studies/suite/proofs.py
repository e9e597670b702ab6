"""Checks the suite's guarantees, and counts the cases and failures of each check.

- Data: models of all sizes read the same data in the same order.
- Resuming: a stopped run continues exactly.
- Checkpoints: all are there, and none is a copy of another. Copies that are planted for this check
  show that it would find copies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_core.data.order import batch_hash
from pythia_core.suite import DATA_ARMS
from pythia_core.training.checkpoint import duplicate_steps, weight_hashes
from pythia_core.training.metrics import read_metrics
from pythia_core.training.schedule import checkpoint_steps
from pythia_core.training.train import train

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.training.runs import Run

Suite = dict[tuple[str, str], "Run"]
"""Maps (size, arm) to a run; an arm is one of DATA_ARMS, the two texts."""


def proofs_table(suite: Suite, resume_steps: int) -> pd.DataFrame:
    """Run all checks of the suite, and return a table of the results.

    Columns: `check`, `what` (in words), and the numbers of `cases` and `failures`. `resume_steps`
    is the number of updates of the run that is stopped halfway and resumed.
    """
    import pandas as pd

    hashes = {cell: weight_hashes(run.checkpoints) for cell, run in suite.items()}
    due = checkpoint_steps(next(iter(suite.values())).config.train.steps)
    missing = sum(len(set(due) - set(of_run)) for of_run in hashes.values())
    groups = [group for of_run in hashes.values() for group in duplicate_steps(of_run)]
    expected = [{0, 1}]  # the first update runs at learning rate 0
    copies = sum(set(group) not in expected for group in groups)
    planted = dict(hashes[next(iter(hashes))])
    for step in due[2:-1:3]:  # as on the Hugging Face hub, where many steps have the last weights
        planted[step] = planted[due[-1]]
    caught = {s for group in duplicate_steps(planted) for s in group} >= set(due[2:-1:3])
    rows: list[tuple[str, str, int, int]] = [
        ("complete", "scheduled checkpoints are there", len(due) * len(suite), missing),
        (
            "distinct",
            "checkpoints differ from each other, except step 1 from 0",
            len(groups),
            copies,
        ),
        ("distinct", "planted copies of the last checkpoint are caught", 1, int(not caught)),
    ]
    sizes = list(dict.fromkeys(size for size, _ in suite))
    for arm in DATA_ARMS:
        logs = [[row["batch_hash"] for row in suite[size, arm].metrics()] for size in sizes]
        differing = sum(a != b for log in logs[1:] for a, b in zip(logs[0], log, strict=True))
        run = suite[sizes[0], arm]
        wrong = sum(batch_hash(run.batch(step)) != sha for step, sha in enumerate(logs[0]))
        rows += [
            ("same order", f"{arm}: batches equal those of the smallest model",
             sum(map(len, logs[1:])), differing),
            ("same order", f"{arm}: logged batches equal those of the recomputed order",
             len(logs[0]), wrong),
        ]  # fmt: skip
    unequal = sum(not start_equal([hashes[size, arm] for arm in DATA_ARMS]) for size in sizes)
    steps, differing, same = retrain_interrupted(suite[sizes[0], DATA_ARMS[0]], resume_steps)
    rows += [
        ("twins", "standard and deduplicated start from equal weights", len(sizes), unequal),
        ("resumed", "batches of an interrupted run equal the whole run's", steps, differing),
        ("resumed", "its weights equal the uninterrupted run's", 1, int(not same)),
    ]
    return pd.DataFrame(rows, columns=["check", "what", "cases", "failures"])


def start_equal(twins: Sequence[Mapping[int, str]]) -> bool:
    """Return whether all runs have a checkpoint at step 0, with the same weights.

    `twins` has, for each run, the hash of the weights at each step.
    """
    return len({hashes.get(0) for hashes in twins}) == 1 and 0 in twins[0]


def retrain_interrupted(run: Run, steps: int) -> tuple[int, int, bool]:
    """Repeat the first `steps` updates of a run twice: without a stop, and with a stop halfway.

    Returns:
        The number of updates, how many batches of the stopped training differ from the logged
        batches, and whether both trainings end in the same weights.
    """
    steps = min(steps, run.config.train.steps)
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        expected = train(run.config, run.batch, whole, stop_at=steps, progress=False)
        train(run.config, run.batch, broken, stop_at=steps // 2, progress=False)
        resumed = train(run.config, run.batch, broken, stop_at=steps, progress=False)
        ours = [row["batch_hash"] for row in read_metrics(broken / "metrics.jsonl")]
    logged = [row["batch_hash"] for row in run.metrics()][:steps]
    return steps, sum(a != b for a, b in zip(ours, logged, strict=True)), expected == resumed
