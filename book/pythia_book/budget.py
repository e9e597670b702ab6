"""Predicts the tokens, FLOP, seconds and bytes of all training runs at a scale, on one H100.

Every number is a prediction, from the estimated rates in pythia_book.bench.cost_model. `python -m
pythia_core gpu-check` measures these rates on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pythia_book.bench.cost_model import ns_per_token, optimizer_seconds
from pythia_book.measurements import N_ROWS
from pythia_book.studies.registry import STUDIES, keep, params_of, runs_of
from pythia_core.config import RunConfig
from pythia_core.suite import scale_named, size_name
from pythia_core.training.retention import checkpoint_bytes, effective_keep, saved_state_bytes
from pythia_core.training.runs import run_flops
from pythia_core.training.schedule import PAPER_FORKS, checkpoint_steps

if TYPE_CHECKING:
    import pandas as pd

WRITE_RATE = 1.0e9
"""Bytes per second of hashing and writing checkpoints: a guess, the least certain number here."""
MEASURING_SLOWDOWN = 3.0
"""Factor by which a forward pass in TF32 and small batches is slower than in bf16 training."""


def gpu_runs(study: str, scale: str) -> list[RunConfig]:
    """Return the configurations of a study's runs at a scale, with bf16 as the precision."""
    runs = runs_of(study, scale)
    return [replace(run, train=replace(run.train, precision="bf16")) for run in runs]


def measuring_seconds(study: str, config: RunConfig) -> float:
    """Predict roughly the seconds that a study takes to measure all checkpoints of a run."""
    cost, seq_len = params_of(study).MEASURING, config.data.seq_len
    tokens = cost.heldout * N_ROWS * seq_len
    tokens += cost.rows * 33 * run_tokens(config) / seq_len
    training = 1e-9 * ns_per_token(config.model, "ours", seq_len)
    forward = training / 3  # seconds per token
    return MEASURING_SLOWDOWN * forward * tokens


def run_tokens(config: RunConfig) -> int:
    """Return the number of tokens that a run trains on; for a fork, from the fork step on."""
    return len(config.updates) * config.train.batch_size * config.data.seq_len


def run_seconds(config: RunConfig) -> float:
    """Predict the seconds to train a run on one H100, excluding the writing of checkpoints."""
    rows, seq_len = config.train.micro_batch or config.train.batch_size, config.data.seq_len
    per_token = 1e-9 * ns_per_token(config.model, "ours", seq_len, rows * seq_len)
    per_update = optimizer_seconds(config.model)
    return per_token * run_tokens(config) + per_update * len(config.updates)


def written_steps(config: RunConfig) -> list[int]:
    """Return the steps at which a run writes its weights."""
    return [s for s in checkpoint_steps(config.train.steps) if s >= config.updates.start]


def written_bytes(config: RunConfig) -> float:
    """Return the bytes of all checkpoints that a run writes, including those deleted later."""
    return float(len(written_steps(config)) * checkpoint_bytes(config))


def kept_bytes(scale: str, config: RunConfig) -> float:
    """Predict the bytes of weights and optimizer states that a finished run keeps on disk."""
    retained = effective_keep(config, keep(scale, config))
    weights = sum(retained is None or s in retained.weights for s in written_steps(config))
    states = len(PAPER_FORKS) + 1 if retained is None else len(retained.states)
    return weights * checkpoint_bytes(config) + states * saved_state_bytes(config)


def sizes_table(scale: str) -> pd.DataFrame:
    """Predict the cost of the study `suite` at a scale, one row per model size.

    Columns about a single run of the size:
    `size`, `parameters`, `non_embedding`: the model
    `tokens`, `flop`, `tokens_per_s`: the training

    Columns summed over all runs of a size:
    `seconds`: training time
    `written_gb`: all checkpoints written
    `kept_gb`: checkpoints and states left on disk
    """
    import pandas as pd

    suite = gpu_runs("suite", scale)
    rows = []
    for size in scale_named(scale).sizes:
        runs = [run for run in suite if size_name(run.model) == size]
        seconds = run_seconds(runs[0])
        rows.append(
            {
                "size": size,
                "parameters": runs[0].model.n_params,
                "non_embedding": runs[0].model.n_params_non_embedding,
                "tokens": run_tokens(runs[0]),
                "flop": run_flops(runs[0]),
                "tokens_per_s": run_tokens(runs[0]) / seconds,
                "seconds": sum(run_seconds(run) for run in runs),
                "written_gb": sum(map(written_bytes, runs)) / 1e9,
                "kept_gb": sum(kept_bytes(scale, run) for run in runs) / 1e9,
            }
        )
    return pd.DataFrame(rows)


def studies_table(scale: str, studies: Sequence[str] = STUDIES) -> pd.DataFrame:
    """Predict the cost of each study, one row per study, if all runs train one after another.

    Columns:
    `study`: name
    `runs`, `tokens`: number of runs, number of training tokens
    `training_s`, `writing_s`, `measuring_s`, `total_s`: seconds, and their sum
    `kept_gb`: disk space

    A run that several studies share counts for the first study only, except in `measuring_s`.
    """
    import pandas as pd

    counted: set[RunConfig] = set()
    rows = []
    for study in studies:
        runs = gpu_runs(study, scale)
        new = [run for run in runs if run not in counted]
        counted |= set(new)
        rows.append(
            {
                "study": study,
                "runs": len(new),
                "tokens": sum(map(run_tokens, new)),
                "training_s": sum(run_seconds(run) for run in new),
                "writing_s": sum(map(written_bytes, new)) / WRITE_RATE,
                "measuring_s": sum(measuring_seconds(study, run) for run in runs),
                "kept_gb": sum(kept_bytes(scale, run) for run in new) / 1e9,
            }
        )
    table = pd.DataFrame(rows)
    parts = table[["training_s", "writing_s", "measuring_s"]]
    table.insert(list(table).index("kept_gb"), "total_s", parts.sum(axis=1))
    return table


def report(scale: str, studies: Sequence[str] = STUDIES) -> str:
    """Return the predicted cost of a scale as text: `sizes_table`, `studies_table` and the totals.

    Without the study `suite`, there is no table of sizes.

    Raises:
        ConfigError: the cost model has no estimate for a head dimension of the scale.
    """
    formats = {"parameters": "{:,}".format, "non_embedding": "{:,}".format, "flop": "{:.1e}".format}
    formats |= {"tokens": "{:,}".format}

    def text(table: pd.DataFrame) -> str:
        return table.to_string(index=False, formatters=formats, float_format="{:,.1f}".format)

    table = studies_table(scale, studies)
    times = table[["training_s", "writing_s", "measuring_s", "total_s"]].sum() / 60
    return "\n".join(
        [
            f"Predicted, not measured: the scale {scale} on one H100.\n",
            *([text(sizes_table(scale)), ""] if "suite" in studies else []),
            text(table),
            "",
            f"{times.total_s:.1f} min in total: training {times.training_s:.1f}, writing "
            f"{times.writing_s:.1f}, measuring {times.measuring_s:.1f}; the runs keep "
            f"{table.kept_gb.sum():.0f} GB on disk",
        ]
    )
