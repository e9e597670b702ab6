"""Large runs give up weights, never hashes; what studies ask for stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pythia_book.studies.all_runs import all_runs
from pythia_book.studies.deduplication import study as deduplication
from pythia_book.studies.errata import params as errata
from pythia_book.studies.gender_bias.study import ARMS, GenderBiasParams
from pythia_book.studies.memorization import params as memorization
from pythia_book.studies.repetition import study as repetition
from pythia_book.studies.scaling import study as scaling
from pythia_book.studies.seeds import params as seeds
from pythia_book.studies.term_frequency.study import INDICES as TERMS

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import CheckpointError
from pythia_core.suite import SCALES
from pythia_core.training import retention as thin
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder, weight_hashes
from pythia_core.training.runs import find_or_train, find_or_train_all
from pythia_core.training.schedule import linear_step

STEPS = 160


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
    monkeypatch.setattr(thin, "WHOLE_BYTES", 1e5)
    most, dropping = [], thin.drop_weights
    monkeypatch.setattr(
        thin, "drop_weights", lambda folder: (most.append(len(run_files())), dropping(folder))
    )

    def run_files() -> list[Path]:
        return list((other.parent).glob("*/checkpoints/*/model.safetensors"))

    other = whole.folder.rename(whole.folder.with_name("kept-elsewhere"))
    run = find_or_train(config, progress=False, whole=False)
    kept = thin.kept_steps(config)
    assert run.steps == sorted(kept & set(saved_steps(run.checkpoints)))
    assert max(most) <= 154 + len(kept) + 1, "weights are dropped while the run goes on"
    assert len(saved_steps(run.checkpoints)) == 154
    dropped = next(s for s in saved_steps(run.checkpoints) if s not in kept)
    theirs = weight_hashes(run.checkpoints)
    assert theirs == hashes, "the hashes of dropped weights stay"
    with pytest.raises(CheckpointError, match="dropped when its run ended, to save space"):
        load_checkpoint(step_folder(run.checkpoints, dropped))
    assert run.final_sha256 == final
    assert saved_steps(run.states) == []
    run._done.unlink()
    monkeypatch.setenv("PYTHIA_KEEP_ALL", "1")
    again = find_or_train_all({"it": config}, progress=False)["it"]
    assert weight_hashes(again.checkpoints) == hashes and len(again.steps) == 154


def test_forks_of_deduplicated_text_find_their_states(config: RunConfig, monkeypatch) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setattr(thin, "WHOLE_BYTES", 1e5)
    config = replace(config, data=replace(config.data, dedup="exact", epochs=2))
    run = find_or_train(config, progress=False, whole=False)
    assert saved_steps(run.states) == [linear_step(i, STEPS) for i in (113, 133)]
    swapped = config.fork("masculine_to_feminine", linear_step(133, STEPS))
    fork = find_or_train(swapped, progress=False, whole=False)
    assert fork.finished and saved_steps(fork.states) == []
    assert not (run.folder / "replays").exists()


def test_every_step_that_a_study_asks_for_is_kept() -> None:
    indices = {*scaling.OVER_TRAINING, *scaling.LOSS_AT, *memorization.CHECKPOINTS}
    indices |= {*deduplication.INDICES, *errata.INDICES, *memorization.DEDUPLICATED_AT}
    assert indices <= {*thin.EVERY_RUN}
    assert {*TERMS} <= {*thin.EVERY_RUN, *thin.DEDUPLICATED}
    assert {*repetition.INDICES} <= {*thin.REPEATED}
    assert {*seeds.EARLY} <= {*thin.EARLY}
    params = GenderBiasParams("gpu")
    for arm in ARMS:
        run = params.arm("4.7m", 0, arm)
        assert set(params.steps(arm)) <= thin.kept_steps(run), arm


def test_nothing_of_the_recorded_scales_is_large() -> None:
    for scale in ("smoke", "laptop"):
        for run in all_runs(scale):
            for precision in ("bf16", "fp32"):
                train = replace(run.train, precision=precision)
                assert not thin.is_large(replace(run, train=train))
    assert any(thin.is_large(run) for run in all_runs("gpu"))
    assert SCALES["gpu"].steps % 143 == 0
