"""The benchmarks of term counting and text generation; the speeds themselves are not tested."""

from __future__ import annotations

import pytest
from pythia_book.bench import generate as bench_generate
from pythia_book.bench import terms as bench_terms

from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError
from pythia_core.util.machine import device_info


@pytest.mark.wheels
def test_counting_terms_is_compared_with_splitting_into_words() -> None:
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


def test_generation_is_compared_on_equal_weights() -> None:
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
