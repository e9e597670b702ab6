"""Stand-ins for the gender-bias study: a causal toy model, runs and items, no training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pythia_book.studies.gender_bias.measures import FEMININE, Items
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pythia_core.config import RunConfig, stable_hash

JOBS = ("nurse", "driver", "clerk", "chief")
SENTENCES = [
    f"The {job} said that {word} would help the {other} with the work. It was late."
    for job in JOBS
    for other in JOBS
    for word in ("she", "he", "his", "her", "him", "herself", "himself", "hers")
]


def tokenizer() -> Tokenizer:
    """A byte-level BPE with every pronoun as one token; id 0 is EOD."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    return made


class ToyModel(torch.nn.Module):
    """Causal and tiny: a running mean of embeddings, plus the present token, unembedded.

    `bonus` is added to the logits of the feminine pronouns: a planted shift.
    """

    def __init__(self, vocab: int, width: int = 12, seed: int = 0, bonus: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = torch.nn.Parameter(torch.randn(vocab, width, generator=generator))
        self.unembed = torch.nn.Parameter(torch.randn(vocab, width, generator=generator))
        self.register_buffer("bias", torch.zeros(vocab))
        self.bonus = bonus

    def plant(self, ids: list[int]) -> ToyModel:
        self.bias[ids] = self.bonus
        return self

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed[ids]
        count = torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
        return x.cumsum(1) / count + 0.5 * x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.unembed.T + self.bias


@dataclass
class FakeRun:
    config: RunConfig
    folder: Path
    data: SimpleNamespace
    seconds: float = 1.0
    calls: list[int] = field(default_factory=list)

    @property
    def id(self) -> str:
        return stable_hash(repr(self.config))[:12]

    @property
    def final_sha256(self) -> str:
        return hashlib.sha256(self.id.encode()).hexdigest()

    @property
    def steps(self) -> list[int]:
        return list(range(self.config.train.steps + 1))

    @property
    def ledger(self) -> SimpleNamespace | None:
        window = self.config.intervention
        if window is None:
            return None
        size = self.config.train.batch_size
        changed = np.zeros(7 * (window.stop - window.start), np.int64)
        return SimpleNamespace(row=changed, start=window.start, stop=window.stop, batch_size=size)

    @property
    def tokens_changed(self) -> int:
        return len(self.ledger.row)

    def model(self, step: int | None = None) -> ToyModel:
        self.calls.append(step)
        window, bonus = self.config.intervention, 0.0
        if window is not None:
            bonus = 4.0 * (step - window.start) / self.config.train.steps
        seed = self.config.train.weight_seed + self.config.model.d_model
        made = ToyModel(self.data.tokenizer.get_vocab_size(), seed=seed, bonus=bonus).eval()
        return made.plant([self.data.tokenizer.encode(word).ids[0] for word in FEMININE])


class FakeData(SimpleNamespace):
    """Data that hold their own held-out text."""

    def with_heldout(self) -> FakeData:
        return self


def fake_data(seq_len: int) -> FakeData:
    made = tokenizer()
    documents = [" ".join(SENTENCES[i : i + 8]) for i in range(0, len(SENTENCES), 8)]
    stream = [i for text in documents for i in (*made.encode(text).ids, 0)]
    return FakeData(
        tokenizer=made,
        eod_id=0,
        fingerprint="f" * 64,
        heldout=SimpleNamespace(tokens=np.array(stream, np.uint16)),
        config=SimpleNamespace(seq_len=seq_len),
    )


def fake_find_or_train(folder: Path):
    """`find_or_train_all` that makes FakeRuns at once; the list of them is its attribute `made`."""
    data = fake_data(64)
    made: list[FakeRun] = []

    def find_or_train(configs: dict[Any, RunConfig], progress: bool = True) -> dict[Any, FakeRun]:
        runs = {key: FakeRun(config, folder, data) for key, config in configs.items()}
        for run in runs.values():
            run.folder = folder / run.id
            made.append(run)
        return runs

    find_or_train.made = made
    return find_or_train


def fake_items() -> Items:
    def pronoun(job: str, pro: str, anti: str) -> SimpleNamespace:
        frame = f"The {job} said that {{}} would help the chief."
        return SimpleNamespace(
            sentence_pro=frame.format(pro),
            sentence_anti=frame.format(anti),
            occupation=job,
            pronoun_pro=pro,
            pronoun_anti=anti,
        )

    def pair(job: str) -> SimpleNamespace:
        return SimpleNamespace(more=f"The {job} said she was late.", less=f"The {job} said he was.")

    winobias = [pronoun("nurse", "she", "he"), pronoun("driver", "he", "she")] * 6
    winobias += [pronoun("clerk", "her", "his"), pronoun("chief", "his", "her")] * 4
    contexts = [f"The {job} {verb} that" for job in JOBS for verb in ("said", "thought", "wrote")]
    pairs = [pair(job) for job in JOBS] * 5
    return Items(winobias, pairs, pairs[:10], contexts, JOBS)
