"""Stand-ins for the gender-bias study: made-up measurements, a toy model, runs and items."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pythia_book.corpora import occupations
from pythia_book.studies.gender_bias.measures import FEMININE, Items
from pythia_book.studies.gender_bias.params import ARMS, CONTROL, Params
from pythia_book.studies.gender_bias.study import SCORES
from pythia_book.study import Measurements, name_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pythia_core.config import RunConfig, stable_hash
from pythia_core.suite import scale_named

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
        tokens_folder=Path("tokens"),
        eod_id=0,
        fingerprint="f" * 64,
        heldout=SimpleNamespace(tokens=np.array(stream, np.uint16)),
        config=SimpleNamespace(seq_len=seq_len),
    )


def fake_find_or_train(folder: Path):
    """Return a stand-in for `find_or_train_all` that makes fake runs at once.

    Args:
        folder: the parent of the folders of the runs.
    """
    data = fake_data(64)

    def find_or_train(configs: dict[Any, RunConfig], progress: bool = True) -> dict[Any, FakeRun]:
        """Make a fake run for each config, and return the runs by the same keys."""
        runs = {key: FakeRun(config, folder, data) for key, config in configs.items()}
        for run in runs.values():
            run.folder = folder / run.id
        return runs

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
    for i in range(24):  # another beginning each, as `natural_frames` needs
        item = pronoun("nurse", "she", "he")
        item.sentence_pro, item.sentence_anti = (
            f"Guest {i} met the nurse because {word} was late." for word in ("she", "he")
        )
        winobias.append(item)
    contexts = [f"The {job} {verb} that" for job in JOBS for verb in ("said", "thought", "wrote")]
    pairs = [pair(job) for job in JOBS] * 5
    return Items(winobias, pairs, pairs[:10], contexts, JOBS)


# --- made-up measurements --------------------------------------------------------------------

FRAMES = {"planted": 16, "unseen": 12, "natural": 24}
"""The number of frames of each kind."""
RETAINED = {
    "swap_7": 0.5, "swap_21": 0.4, "mirror_7": 0.5, "mirror_21": 0.4, "shuffle_21": 0.1,
    "only_21": 0.35, "complement_21": 1.0, "absent_21": 0.7, "placebo_21": 1.0, "restored": 0.95,
}  # fmt: skip
"""What each arm retains, by default."""
SHIFTS = {
    "swap_7": 3.0, "swap_21": 4.0, "mirror_7": -2.0, "mirror_21": -3.0, "only_21": 1.0,
    "complement_21": 2.0,
}  # fmt: skip
"""By how much each arm shifts the prior, by default."""


def measurements(
    params: Params,
    rng: np.random.Generator,
    retained: dict[str, dict[str, float]] | None = None,
    association: float = 0.3,
    spread: float = 0.04,
    scores: dict[str, dict[str, float]] | None = None,
    flat: float = 0.0,
) -> Measurements:
    """Return measurements of models with known associations, priors and scores.

    Args:
        retained: maps a size to what its arms retain, if not as in RETAINED.
        association: slope of the controls; seeds vary by a tenth of it.
        spread: standard deviation, over seeds, of what an arm retains.
        scores: maps an arm to what it adds to scores, as fractions.
        flat: slope of the models whose text has no association.
    """
    nouns = occupations.stimuli().nouns
    intended = np.array([np.log(n.share / (1 - n.share)) for n in nouns])
    end = scale_named(params.scale).steps
    arrays, slope = {}, {}
    for seed in range(max(params.seeds, params.crossed_seeds)):
        read = intended + rng.normal(0, 0.05, len(nouns))
        arrays[name_of("read", seed)] = read.astype(np.float32)
    for name, seed, arm in params.cells():
        model = params.models[name]
        if arm == CONTROL:
            slope[name, seed] = flat if model.flat else association * (1 + rng.normal(0, 0.1))
        fraction = (retained or {}).get(name, {}).get(arm, RETAINED.get(arm, 1.0))
        fraction += rng.normal(0, spread) * (arm != CONTROL)
        x = intended if model.flat else arrays[name_of("read", seed)]
        prior = SHIFTS.get(arm, 0.0) + rng.normal(0, 0.1) - 0.5
        for step in params.steps(arm):
            noise = rng.normal(0, 0.02, (3, len(nouns)))
            odds = prior + fraction * slope[name, seed] * (x - x[:16].mean()) + noise
            arrays[name_of("log_odds", name, seed, arm, step)] = odds.astype(np.float32)
        if arm == CONTROL:
            for kind, n in FRAMES.items():
                of_frames = odds[0, :16] + rng.normal(0, 0.5, (n, 1))
                arrays[name_of("frames", name, seed, kind)] = of_frames.astype(np.float16)
        values = {s: 0.5 + rng.normal(0, 0.005) for s in SCORES} | {
            "loss": 5 + rng.normal(0, 0.001)
        }
        for score, change in (scores or {}).get(arm, {}).items():
            values[score] += change
        arrays[name_of("scores", name, seed, arm)] = np.array([*values.values()], np.float32)
    facts = {
        "nouns": [
            {"noun": n.name, "group": n.group, "log_odds": float(x)}
            for n, x in zip(nouns, intended, strict=True)
        ],
        "frames": FRAMES,
        "ledger": [
            {"model": name, "seed": seed, "arm": arm, "start": end - 40, "stop": end,
             "tokens_changed": 10, "share": 0.01, "misplaced": 0, "inside": 40, "outside": 0,
             "changed_inside": 40, "changed_outside": 0}
            for name, seed, arm in params.cells() if arm != CONTROL
        ],
        "examples": [
            {"arm": arm, "planted": True, "before": "The bravlet knew he was", "after": "..."}
            for arm in ARMS
        ],
    }  # fmt: skip
    return Measurements(arrays, facts)
