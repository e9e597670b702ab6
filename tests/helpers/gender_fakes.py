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
    """Train a byte-level BPE tokenizer. Every pronoun is one token, and id 0 ends documents."""
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
    """A tiny causal language model with random weights.

    Its hidden state is the mean of the embeddings so far plus half the embedding of the present
    token.

    Args:
        vocab: number of tokens. width: dimensions of an embedding.
        bonus: what `plant` adds to the logits of chosen tokens.
    """

    def __init__(self, vocab: int, width: int = 12, seed: int = 0, bonus: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = torch.nn.Parameter(torch.randn(vocab, width, generator=generator))
        self.unembed = torch.nn.Parameter(torch.randn(vocab, width, generator=generator))
        self.register_buffer("bias", torch.zeros(vocab))
        self.bonus = bonus

    def plant(self, ids: list[int]) -> ToyModel:
        """Make tokens likelier: add `bonus` to their logits from now on. Return the model."""
        self.bias[ids] = self.bonus
        return self

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of token ids, float[batch, tokens, width]."""
        x = self.embed[ids]
        count = torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
        return x.cumsum(1) / count + 0.5 * x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token for hidden states, float[..., vocab]."""
        return hidden @ self.unembed.T + self.bias


@dataclass
class FakeRun:
    """A stand-in for a training run. It makes a toy model for a step instead of loading one."""

    config: RunConfig
    folder: Path
    data: SimpleNamespace
    seconds: float = 1.0
    calls: list[int] = field(default_factory=list)
    """The steps of the models that were asked for."""

    @property
    def id(self) -> str:
        """A hash of the config."""
        return stable_hash(repr(self.config))[:12]

    @property
    def final_sha256(self) -> str:
        """A made-up hash of the last weights, different for every config."""
        return hashlib.sha256(self.id.encode()).hexdigest()

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints: all steps of the run."""
        return list(range(self.config.train.steps + 1))

    @property
    def ledger(self) -> SimpleNamespace | None:
        """A record of seven changed tokens per update of the intervention; None without one."""
        window = self.config.intervention
        if window is None:
            return None
        size = self.config.train.batch_size
        changed = np.zeros(7 * (window.stop - window.start), np.int64)
        return SimpleNamespace(row=changed, start=window.start, stop=window.stop, batch_size=size)

    @property
    def tokens_changed(self) -> int:
        """The number of tokens that the intervention changed."""
        return len(self.ledger.row)

    def model(self, step: int | None = None) -> ToyModel:
        """Return the model at a step. During an intervention, feminine pronouns become likelier."""
        self.calls.append(step)
        window, bonus = self.config.intervention, 0.0
        if window is not None:
            bonus = 4.0 * (step - window.start) / self.config.train.steps
        seed = self.config.train.weight_seed + self.config.model.d_model
        made = ToyModel(self.data.tokenizer.get_vocab_size(), seed=seed, bonus=bonus).eval()
        return made.plant([self.data.tokenizer.encode(word).ids[0] for word in FEMININE])


class FakeData(SimpleNamespace):
    """A stand-in for prepared data that includes the held-out text."""

    def with_heldout(self) -> FakeData:
        """Return the data themselves, because they have held-out text already."""
        return self


def fake_data(seq_len: int) -> FakeData:
    """Return data with SENTENCES as held-out text, eight sentences per document."""
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
    """Return a stand-in for `find_or_train_all` that makes fake runs at once.

    Its attribute `made` is the list of all runs that it has made so far.

    Args:
        folder: the parent of the folders of the runs.
    """
    data = fake_data(64)
    made: list[FakeRun] = []

    def find_or_train(configs: dict[Any, RunConfig], progress: bool = True) -> dict[Any, FakeRun]:
        """Make a fake run for each config, and return the runs by the same keys."""
        runs = {key: FakeRun(config, folder, data) for key, config in configs.items()}
        for run in runs.values():
            run.folder = folder / run.id
            made.append(run)
        return runs

    find_or_train.made = made
    return find_or_train


def fake_items() -> Items:
    """Return made-up items of all kinds that the gender-bias study measures."""

    def pronoun(job: str, pro: str, anti: str) -> SimpleNamespace:
        """Return a WinoBias item with a pro- and an anti-stereotypical pronoun for a job."""
        frame = f"The {job} said that {{}} would help the chief."
        return SimpleNamespace(
            sentence_pro=frame.format(pro),
            sentence_anti=frame.format(anti),
            occupation=job,
            pronoun_pro=pro,
            pronoun_anti=anti,
        )

    def pair(job: str) -> SimpleNamespace:
        """Return a CrowS-Pairs item: the sentence with "she" and the sentence with "he"."""
        return SimpleNamespace(more=f"The {job} said she was late.", less=f"The {job} said he was.")

    winobias = [pronoun("nurse", "she", "he"), pronoun("driver", "he", "she")] * 6
    winobias += [pronoun("clerk", "her", "his"), pronoun("chief", "his", "her")] * 4
    contexts = [f"The {job} {verb} that" for job in JOBS for verb in ("said", "thought", "wrote")]
    pairs = [pair(job) for job in JOBS] * 5
    return Items(winobias, pairs, pairs[:10], contexts, JOBS)
