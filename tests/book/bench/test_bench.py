"""The benchmark measures every contender and computes what it prints; how fast is not tested."""

from __future__ import annotations

import numpy as np
import pytest
from pythia_book.bench import generate as bench_generate
from pythia_book.bench import terms as bench_terms
from pythia_book.bench import train_cpu

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import ConfigError
from pythia_core.training.metrics import flops_per_token
from pythia_core.util.machine import device_info


@pytest.fixture(scope="module")
def row() -> dict:
    config = RunConfig(
        ModelConfig(1, 16, 2, 128, max_seq_len=16),
        DataConfig(seq_len=16),
        TrainConfig(steps=50, batch_size=4, lr_max=1e-3, precision="bf16"),
    )
    rows = np.random.default_rng(0).integers(0, 128, (16, 17)).astype(np.uint16)
    return train_cpu.bench_size(config, rows, rounds=2, progress=False)


def test_every_contender_is_timed(row: dict) -> None:
    assert set(row["all_tokens_per_s"]) == {
        "ours",
        *("eager fp32", "eager bf16", "sdpa fp32", "sdpa bf16"),
    }
    assert row["steps_timed"] == 4


def test_the_ratio_is_to_the_fastest_peer(row: dict) -> None:
    speeds = dict(row["all_tokens_per_s"])
    ours = speeds.pop("ours")
    assert row["peer"] == max(speeds, key=speeds.get)
    assert row["ratio"] == pytest.approx(ours / max(speeds.values()), abs=0.02)
    flops = flops_per_token(ModelConfig(1, 16, 2, 128), 16)
    assert row["gflops_per_s"] == pytest.approx(ours * flops / 1e9, abs=0.1)


def test_the_table_names_machine_and_convention(row: dict) -> None:
    result = {
        "machine": device_info(),
        "matmul_gflops_per_s": {"fp32": 300, "bf16": 2000},
        "flop_convention": "a convention",
        "tokens_per_step": 64,
        "rows": [{"size": "tiny", **row, "matmul_share": 0.5}],
    }
    text = train_cpu.markdown(result)
    assert device_info()["device"] in text
    assert "a convention" in text
    assert f"**{row['ratio']:.2f}x**" in text


@pytest.mark.wheels
def test_counting_is_compared_with_the_plain_way() -> None:
    result = bench_terms.bench_terms(n_terms=50, rounds=1, progress=False)
    speed = result["tokens_per_s"]
    assert result["terms"] == 50 and set(speed) == {
        "surface terms", "decode, split, count"
    }  # fmt: skip
    expected = speed["surface terms"] / speed["decode, split, count"]
    assert result["ratio"] == pytest.approx(expected, abs=0.1)
    assert "50 terms" in bench_terms.markdown(result)
    with pytest.raises(ConfigError, match="at least 10 terms"):
        bench_terms.bench_terms(n_terms=3)


def test_writing_is_compared_on_equal_weights() -> None:
    pytest.importorskip("transformers")
    config = ModelConfig(1, 32, 2, 128, max_seq_len=128)
    row = bench_generate.bench_size(config, batch=3, rounds=1, progress=False)
    assert row["equal_texts"] == row["batch"] == 3
    assert row["ratio"] == pytest.approx(row["tokens_per_s"] / row["peer_tokens_per_s"], rel=0.05)
    result = {"machine": device_info(), "new_tokens": 64, "prompt_tokens": (16, 48),
              "rows": [{"size": "tiny", **row}]}  # fmt: skip
    assert f"**{row['ratio']:.2f}x** | 3 of 3 |" in bench_generate.markdown(result)
    with pytest.raises(ConfigError, match="rounds must be at least 1"):
        bench_generate.bench_generate(rounds=0)
