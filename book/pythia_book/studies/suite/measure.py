"""Find or train the suite, check its guarantees, and count what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.studies.registry import train_all
from pythia_book.studies.suite.params import Params
from pythia_book.studies.suite.proofs import proofs_table
from pythia_book.studies.suite.read_counts import reading_tables
from pythia_book.study import Measurements, name_of
from pythia_core.suite import DATA_ARMS, suite_configs
from pythia_core.training.checkpoint import weight_hashes

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the suite; collect its losses, run all checks, and count how often tokens are
    read.

    Arrays: loss/SIZE/ARM (float32[updates], nats per token). Facts: models (maps a size to its
    shape and training parameters), tokens (number in each text), heldout (see heldout_share),
    checkpoints (the smallest number that a run has), and the rows of the tables proofs, reads and
    rereads.
    """
    suite = train_all(
        params, suite_configs(params.scale, params.size_list, seed=params.seed), progress
    )
    arrays = {
        name_of("loss", size, arm): np.array([row["loss"] for row in run.metrics()], np.float32)
        for (size, arm), run in suite.items()
    }
    models = {}
    for size in params.size_list:
        config = suite[size, DATA_ARMS[0]].config
        model, train = config.model, config.train
        models[size] = {
            "layers": model.n_layers, "width": model.d_model, "heads": model.n_heads,
            "head_dim": model.head_dim, "non_embedding": model.n_params_non_embedding,
            "total": model.n_params, "lr_max": train.lr_max, "steps": train.steps,
            "batch_tokens": train.batch_size * config.data.seq_len,
        }  # fmt: skip
    facts = {
        "models": models,
        "tokens": {arm: suite[params.size_list[0], arm].data.tokens.n_tokens for arm in DATA_ARMS},
        "heldout": heldout_share(suite[params.size_list[0], DATA_ARMS[0]].data),
        "checkpoints": min(len(weight_hashes(run.checkpoints)) for run in suite.values()),
        "proofs": proofs_table(suite, params.resume_steps).to_dict("records"),
    }
    facts |= {name: t.to_dict("records") for name, t in reading_tables(suite).items()}
    return Measurements(arrays, facts, list(suite.values()))


def heldout_share(data: PreparedData) -> dict[str, float]:
    """Return the number of held-out documents, and their percentage of all documents and tokens."""
    out, rest = data.heldout, data.tokens
    return {
        "documents": out.n_documents,
        "documents_percent": 100 * out.n_documents / (out.n_documents + rest.n_documents),
        "tokens_percent": 100 * out.n_tokens / (out.n_tokens + rest.n_tokens),
    }
