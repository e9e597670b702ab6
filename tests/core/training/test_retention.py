"""Large runs delete weights, but neither hashes nor the requested checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import CheckpointError
from pythia_core.training import checkpoint, retention
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder, weight_hashes
from pythia_core.training.retention import Keep
from pythia_core.training.runs import find_or_train, find_or_train_all
from pythia_core.training.schedule import linear_step, linear_steps

STEPS = 160


def keep(config: RunConfig) -> Keep:
    """Some weights and, for controls, the states where forks start."""
    weights = linear_steps((3, 13, 93, 143), config.train.steps) | {0, 1, 4, 16}
    forked = config.data.dedup != "none" and not config.intervention
    return Keep(weights, linear_steps((113, 133) if forked else (), config.train.steps))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    corpus = tmp_path / "corpus.jsonl"
    words = [" ".join(random.choice(["he", "she", "came", "saw", "it"], 40)) for _ in range(80)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    return RunConfig(
        model=ModelConfig(n_layers=1, d_model=8, n_heads=1, vocab_size=384, max_seq_len=8),
        data=DataConfig(corpus=str(corpus), tokenizer="bpe-384", seq_len=8),
        train=TrainConfig(steps=STEPS, batch_size=1, lr_max=1e-2),
    )


def test_a_large_run_keeps_every_hash_and_some_weights(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find_or_train(config, progress=False)
    hashes, final = weight_hashes(whole.checkpoints), whole.final_sha256
    assert len(whole.steps) == 154
    monkeypatch.setattr(retention, "KEEP_ALL_BYTES", 1e5)
    most, dropping = [], checkpoint.drop_weights
    monkeypatch.setattr(
        checkpoint, "drop_weights", lambda folder: (most.append(len(run_files())), dropping(folder))
    )

    def run_files() -> list[Path]:
        return list((other.parent).glob("*/checkpoints/*/model.safetensors"))

    other = whole.folder.rename(whole.folder.with_name("kept-elsewhere"))
    kept = keep(config).weights
    run = find_or_train(config, progress=False, keep=keep(config))
    assert run.steps == sorted(kept & set(saved_steps(run.checkpoints)))
    assert max(most) <= 154 + len(kept) + 1, "weights are deleted during training"
    assert len(saved_steps(run.checkpoints)) == 154
    dropped = next(s for s in saved_steps(run.checkpoints) if s not in kept)
    theirs = weight_hashes(run.checkpoints)
    assert theirs == hashes, "the hashes of deleted weights are kept"
    with pytest.raises(CheckpointError, match="deleted during training, to save space"):
        load_checkpoint(step_folder(run.checkpoints, dropped))
    assert run.final_sha256 == final
    assert saved_steps(run.states) == []
    run._done.unlink()
    monkeypatch.setenv("PYTHIA_KEEP_ALL", "1")
    again = find_or_train_all({"it": config}, False, keep)["it"]
    assert weight_hashes(again.checkpoints) == hashes and len(again.steps) == 154


def test_forks_on_deduplicated_text_find_their_states(config: RunConfig, monkeypatch) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setattr(retention, "KEEP_ALL_BYTES", 1e5)
    config = replace(config, data=replace(config.data, dedup="exact", epochs=2))
    run = find_or_train(config, progress=False, keep=keep(config))
    assert saved_steps(run.states) == [linear_step(i, STEPS) for i in (113, 133)]
    swapped = config.fork("masculine_to_feminine", linear_step(133, STEPS))
    fork = find_or_train(swapped, progress=False, keep=keep(swapped))
    assert fork.finished and saved_steps(fork.states) == []
    assert not (run.folder / "replays").exists()


def test_small_runs_keep_the_requested_states_too(config: RunConfig) -> None:
    run = find_or_train(config, progress=False, keep=Keep(states=frozenset({45})))
    assert len(run.steps) == 154, "a small run keeps all weights"
    assert saved_steps(run.states) == sorted({45, *linear_steps((113, 133), STEPS), STEPS})


def test_a_study_of_many_small_runs_keeps_only_what_it_reads(config: RunConfig) -> None:
    asked = Keep(frozenset({45}), prune_small=True)
    assert (Keep() | asked).prune_small and (asked | Keep()).prune_small
    run = find_or_train(config, progress=False, keep=Keep() | asked)
    assert run.steps == [45, STEPS] and saved_steps(run.states) == []
    assert len(saved_steps(run.checkpoints)) == 154, "the hashes stay"


def test_the_last_weights_are_always_kept(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "KEEP_ALL_BYTES", 1e5)
    assert find_or_train(config, progress=False, keep=Keep()).steps == [STEPS]
