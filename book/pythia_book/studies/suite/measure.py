"""Finds or trains the suite, checks what studies assume of it, and counts readings of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import measure_all
from pythia_book.studies.registry import train_all
from pythia_book.studies.suite.examples import batch_facts, writing
from pythia_book.studies.suite.params import Params
from pythia_book.studies.suite.planted import noun_facts, planted_facts
from pythia_book.studies.suite.proofs import proofs_table
from pythia_book.studies.suite.read_counts import reading_tables
from pythia_book.study import Measurements, name_of
from pythia_book.tasks.associations import AssociationMeasurement
from pythia_core.data.prepare import prepare
from pythia_core.suite import DATA_ARMS, suite_configs
from pythia_core.training.checkpoint import weight_hashes

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the suite, run all checks, and count how often tokens are read.

    Arrays, where ARM is the text, "standard" or "deduplicated":

    - loss/SIZE/ARM: float32[updates], the training loss in nats per token.
    - association/SIZE/ARM/FRAMES: float32[nouns], the log odds of a feminine pronoun at the last
      step, a mean over the "trained" or "unseen" frames.
    - flat/SIZE/SEED/FRAMES: the same log odds by models of the text with flat shares, in which
      every noun has as many feminine as masculine pronouns.

    Facts: models (maps each size to its shape and training parameters), tokens (maps each arm to
    the number of tokens of its text), heldout (see `heldout_share`), checkpoints (the smallest
    number of checkpoints of any run), proofs, reads and rereads (the rows of the tables of
    `proofs_table` and `reading_tables`), planted (see `planted_facts`), nouns (see `noun_facts`),
    writing (see `writing`; of the smallest and the largest size), batch (see `batch_facts`) and
    gaps (checkpoints that could not be measured).
    """
    suite_runs = suite_configs(params.scale, params.size_list, seed=params.seed)
    flat_runs = params.flat_configs()
    # before training, because a tokenizer may not suit the measurement
    associations = {
        data: AssociationMeasurement.of(prepare(data, progress), data.seq_len)
        for data in (run.data for run in (*suite_runs.values(), *flat_runs.values()))
    }
    suite = train_all(params, suite_runs, progress)
    flat = train_all(params, flat_runs, progress)
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
    texts = {arm: suite[params.size_list[0], arm].data for arm in DATA_ARMS}
    facts["planted"] = planted_facts(texts)
    facts["nouns"] = noun_facts(texts[DATA_ARMS[0]].config)
    facts["batch"] = batch_facts([suite[size, DATA_ARMS[0]] for size in params.size_list])
    facts["writing"], gaps = writing(suite, params.writing_sizes, progress)
    measured: dict[Any, Any] = {}
    finished = {("association", *cell): run for cell, run in suite.items()}
    finished |= {("flat", *cell): run for cell, run in flat.items()}
    last = {cell: (run, run.config.train.steps) for cell, run in finished.items()}
    for data, association in associations.items():
        of_text = [(run, step) for run, step in last.values() if run.config.data == data]
        of_models, missing = measure_all(of_text, association, progress)
        measured |= of_models
        gaps += missing
    facts["gaps"] = [f"{gap.run_id}, step {gap.step}: {gap.reason}" for gap in gaps]
    for cell, (run, step) in last.items():
        for frames, odds in measured.get((run.id, step), {}).items():
            arrays[name_of(*cell, frames)] = odds.mean(0).astype(np.float32)
    return Measurements(arrays, facts, list(finished.values()))


def heldout_share(data: PreparedData) -> dict[str, float]:
    """Return how much text is held out from training.

    The keys are documents (number of held-out documents), documents_percent (their percentage of
    all documents) and tokens_percent (the percentage of all tokens that is held out).
    """
    out, rest = data.heldout, data.tokens
    return {
        "documents": out.n_documents,
        "documents_percent": 100 * out.n_documents / (out.n_documents + rest.n_documents),
        "tokens_percent": 100 * out.n_tokens / (out.n_tokens + rest.n_tokens),
    }
