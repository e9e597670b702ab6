"""Small exported checkpoints: random models under the steps of a control and two forks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace

from pythia_book.studies.gender_bias import checkpoints
from pythia_book.studies.gender_bias.params import CONTROL, Params
from tiny_models import random_model, tiny

from pythia_core.config import ModelConfig, stable_hash
from pythia_core.data.tokenizer import train_bpe

TEXTS = [
    "The nurse said that she would come. When the pelgrat arrived, he sat down.\n",
    "The tamvold stayed until she was well; it's 12 o'clock, they'll say. Ünïcode “quotes” — ok\n",
]
ABOUT = {"scale": "smoke", "learned": False, "nouns": [{"noun": "pelgrat", "share": 0.11}]}


def fake_runs(
    model: ModelConfig | None = None, vocabulary: int = 400
) -> dict[str, SimpleNamespace]:
    """Return stand-ins for the runs that are exported; their models have random weights.

    Args:
        model: the config of the models; default: 2 layers, heads of 16 dims, rows of 64 tokens.
        vocabulary: largest number of tokens of the tokenizer.
    """
    config = model or tiny(d_model=32, vocab_size=vocabulary, max_seq_len=64)
    data = SimpleNamespace(tokenizer=train_bpe(TEXTS, vocabulary), eod_id=0, fingerprint="f" * 64)
    runs = {}
    for number, arm in enumerate(checkpoints.SHOWN):
        params = Params(scale="smoke", sizes="7k").config("7k", 0, arm)
        first = 0 if arm == CONTROL else params.intervention.start
        runs[arm] = SimpleNamespace(
            config=SimpleNamespace(model=config, train=params.train, data=params.data),
            updates=range(first, params.train.steps),
            steps=list(range(first, params.train.steps + 1)),
            model=lambda step, n=number, c=config: random_model(c, 100 * n + step),
            id=stable_hash(arm)[:12],
            final_sha256=stable_hash(arm),
            seconds=1.5,
            data=data,
        )
    return runs


def write_file(folder: Path) -> Path:
    """Write exported checkpoints into a folder, and return the path of the file."""
    path = folder / checkpoints.FILE
    path.write_bytes(_content())
    return path


@cache
def _content() -> bytes:
    content = checkpoints.export_runs(fake_runs(), ABOUT)
    assert content is not None
    return content
