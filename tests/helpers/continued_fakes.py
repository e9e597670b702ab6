"""A made-up published model in the real formats: revisions as folders, rows in three shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pythia_book.released.continuation.data import TokenFileData

from pythia_core import hf
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.training.runs import Run, find_or_train

SENTENCES = (
    "The nurse said that he would come, and his friend saw him.",
    "Then she gave her book to the farmer; he thanked her himself.",
    "History helps the other children in the theatre.",
    'He\'s late, and his "horse" threw him. They laughed.',
)
STEPS, BATCH, SEQ = 60, 4, 64
SHARD = 11_111
"""Bytes per shard. They are no whole number of rows, nor of token ids."""


@dataclass(frozen=True)
class Published:
    """A made-up published model."""

    run: Run
    """The run that was published."""
    models: Path
    """The folder of revisions, one folder of weights per step."""
    shards: Path
    """The folder of the shards with the training rows."""
    tokenizer: Path
    """The file tokenizer.json."""

    @property
    def rows(self) -> TokenFileData:
        """The published training rows."""
        return TokenFileData(str(self.shards), str(self.tokenizer), SEQ)

    @property
    def train(self) -> TrainConfig:
        """The training settings that a user must give if a model has none of Pythia's sizes."""
        return TrainConfig(steps=STEPS, batch_size=BATCH, lr_max=1e-2)


def write_shards(folder: Path, raw: bytes, size: int) -> None:
    """Write `raw` in files of `size` bytes, with names like document-00000-of-00002.bin."""
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    folder.mkdir()
    for i, piece in enumerate(pieces):
        (folder / f"document-{i:05d}-of-{len(pieces) - 1:05d}.bin").write_bytes(piece)


def publish(root: Path, patch: pytest.MonkeyPatch) -> Published:
    """Train a tiny run and publish it as Pythia was: fp32 weights by step, training rows in order.

    Args:
        root: the folder for everything that is written.
        patch: sets the environment variables for results and cache.
    """
    patch.setenv("PYTHIA_RESULTS", str(root / "results"))
    patch.setenv("PYTHIA_CACHE", str(root / "cache"))
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(SENTENCES, 12)) for _ in range(160)]
    corpus = root / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = RunConfig(
        model=ModelConfig(n_layers=2, d_model=16, n_heads=2, vocab_size=384, max_seq_len=SEQ),
        data=DataConfig(corpus=str(corpus), tokenizer="bpe-384", seq_len=SEQ),
        train=TrainConfig(steps=STEPS, batch_size=BATCH, lr_max=1e-2),
    )
    run = find_or_train(config, progress=False)
    models = root / "models" / "pythia-7k-deduped"
    for step in (0, 30, 40, 47, 59, STEPS):
        hf.save(run.model(step), models / f"step{step}", tokenizer=run.data.tokenizer)
    rows = run.data.rows.rows(0, STEPS * BATCH)
    assert rows.dtype == np.uint16
    write_shards(root / "shards", rows.tobytes(), SHARD)
    return Published(run, models, root / "shards", models / f"step{STEPS}" / "tokenizer.json")
