"""Preparation in stages: what it makes is, byte for byte, what one process makes in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pythia_core.config import DEDUP_RECIPES, DataConfig
from pythia_core.data import sharded
from pythia_core.data.prepare import prepare
from pythia_core.data.stages import Engine, Local

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e .[dedup]")

Prepare = Callable[[DataConfig, Engine | None], dict[str, bytes]]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """A function that prepares data in a new cache, and returns the content of every file."""

    def files(data: DataConfig, engine: Engine | None) -> dict[str, bytes]:
        cache = tmp_path / ("stages" if engine else "memory")
        shutil.rmtree(cache, ignore_errors=True)
        monkeypatch.setenv("PYTHIA_CACHE", str(cache))
        prepare(data, progress=False, engine=engine)
        folder = cache / "data"
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    return files


def corpus(folder: Path, files: dict[str, Sequence[str]]) -> str:
    """Write texts as .jsonl files."""
    for name, texts in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / name).write_text(lines)
    return str(folder)


def random_words(rng: np.random.Generator, n: int) -> list[str]:
    letters = rng.integers(97, 123, (n, 6)).astype(np.uint8)
    return [bytes(row).decode() for row in letters]


def texts_with_copies(seed: int, n: int) -> list[str]:
    """Texts that are copies and edited copies of each other, some in chains; some are short."""
    rng = np.random.default_rng(seed)
    texts = [random_words(rng, 120) for _ in range(8)] + [["short", "text"], ["a"]]
    while len(texts) < n:
        words = list(texts[rng.integers(len(texts))])
        for position in rng.integers(0, len(words), rng.integers(0, 3)):
            words[position] = random_words(rng, 1)[0]
        texts.append(words)
    return [" ".join(texts[i]) for i in rng.permutation(n)]


def small_shards(monkeypatch: pytest.MonkeyPatch, size: int = 4000) -> None:
    """Let shards begin with `size` bytes; in this process only, so with one worker."""
    monkeypatch.setattr(sharded, "FIRST_SHARD_BYTES", size)


@pytest.mark.parametrize("dedup", DEDUP_RECIPES)
def test_every_file_is_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepare, dedup: str
) -> None:
    """Copies and near-copies lie in different shards, files and domains."""
    small_shards(monkeypatch)
    texts = texts_with_copies(0, 120)
    parts = {"b/x.jsonl": texts[:70], "a.jsonl": texts[70:], "b/empty.jsonl": [" ", "\n"]}
    data = DataConfig(
        corpus(tmp_path / "c", parts),
        tokenizer="bpe-300",
        seq_len=16,
        heldout_fraction=0.1,
        dedup=dedup,
    )
    expected, found = prepared(data, None), prepared(data, Local(1))
    assert list(found) == list(expected)
    assert {name for name in found if found[name] != expected[name]} == set()
    manifest = next(json.loads(v) for k, v in found.items() if k.endswith("manifest.json"))
    tokens = manifest.get("tokens", manifest)
    if dedup != "none":
        assert tokens["dedup"]["removed"]["exact"] > 5
    if dedup == "jaccard-0.87":
        assert tokens["dedup"]["removed"]["near"] > 5
        assert tokens["dedup"]["pairs"]["compared"] > 10
