"""A tiny control run on a made-up corpus, and runs as older versions left them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.training.completion import read_done
from pythia_core.training.runs import Run

SENTENCES = (
    "The nurse said that he would come, and his friend saw him.",
    "She gave her book to the farmer; he thanked her himself.",
    "History helps the other children in the theatre.",
    'He\'s late, and his "horse" threw him. They laughed.',
)


def control(folder: Path) -> RunConfig:
    """Write a made-up corpus into a folder, and return the config of a tiny run on this corpus.

    The run has no intervention. The caller must set the folders for results and cache.
    """
    random = np.random.default_rng(0)
    corpus = folder / "corpus.jsonl"
    texts = [" ".join(random.choice(SENTENCES, 12)) for _ in range(60)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return RunConfig(
        model=ModelConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=384, max_seq_len=16),
        data=DataConfig(corpus=str(corpus), tokenizer="bpe-384", seq_len=16),
        train=TrainConfig(steps=20, batch_size=4, lr_max=1e-2),
    )


def remove_hashes(run: Run) -> None:
    """Make done.json one of the version that did not hash the files of a run."""
    done = read_done(run.folder)
    kept = {name: done[name] for name in ("final_sha256", "machine")}
    (run.folder / "done.json").write_text(json.dumps(kept))
