"""The cost model: recomputed for one size, equal to the code where it counts the code's work."""

from __future__ import annotations

import math

import pytest
from pythia_book.bench import cost_model

from pythia_core.kernels import cross_entropy
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.metrics import flops_per_token

MODELS = {name: size.model() for name, size in OFFICIAL_SIZES.items()}


def test_every_part_of_a_step_recomputed_by_hand() -> None:
    """160M: 12 layers, width 768, 64 dims a head, 50,304 tokens; its products reach 72 %."""
    d, layers, vocab = 768, 12, 50_304
    scores = 2 * d * 2049 * layers
    expected = {
        "gemm": 72 * d**2 * layers / (0.72 * 798),
        "logits": 6 * d * vocab / (0.82 * 798),
        "attention": scores / 334 + 2.5 * scores / 249,
        "elementwise": (46 * layers + 58) * 2 * d / 2.4,
        "loss": 4 * vocab / 2.4,
        "gradients": (8 * 12 * d**2 * layers + (20 + 16 + 7 * 8) * d * vocab) / 32_768 / 3,
    }
    parts = cost_model.parts(MODELS["160m"], "ours")
    assert parts == pytest.approx({name: ps / 1e3 for name, ps in expected.items()})


@pytest.mark.parametrize("size", MODELS)
def test_ours_is_between_torch_compile_and_the_products_alone(size: str) -> None:
    model = MODELS[size]
    compiled, ours = (cost_model.parts(model, name) for name in ("compiled", "ours"))
    # torch.compile writes all logits at once and so adds one gradient of the unembedding, not seven
    assert all(ours[part] <= compiled[part] for part in ours if part != "gradients")
    least = flops_per_token(model, cost_model.SEQ_LEN) / cost_model.MATMUL / 1e3
    assert sum(compiled.values()) > sum(ours.values()) > least


def test_the_chunks_of_the_loss_are_those_of_the_code() -> None:
    vocab, tokens = 50_304, cost_model.MICRO_TOKENS
    assert cost_model.CHUNK_LOGITS == cross_entropy.CHUNK_ELEMENTS_CUDA
    chunks = math.ceil(tokens / cross_entropy.even_chunk(tokens, vocab))
    assert chunks == math.ceil(tokens * vocab / cost_model.CHUNK_LOGITS)


def test_small_micro_batches_cost_more_per_token() -> None:
    model = MODELS["2.8b"]
    small, large = (
        cost_model.parts(model, "ours", micro_tokens=tokens) for tokens in (4_096, 32_768)
    )
    gradients = small.pop("gradients"), large.pop("gradients")
    assert small == large and 6 < gradients[0] / gradients[1] <= 8


def test_peak_rates_come_from_data_sheets() -> None:
    peak = cost_model.peak_tflops("NVIDIA H100 80GB HBM3")
    assert peak == 989.4 and cost_model.peak_tflops("a CPU") is None
    assert cost_model.peak_tflops("NVIDIA H100 PCIe") < peak


def test_the_optimizer_matters_for_small_updates_only() -> None:
    model = MODELS["160m"]
    free = 1e9 / cost_model.ns_per_token(model, "ours")
    small, large = (cost_model.predicted_tokens_per_s(model, "ours", n) for n in (2**15, 2**21))
    assert small < 0.98 * free and large == pytest.approx(free, rel=1e-3)
    assert cost_model.optimizer_seconds(model) == pytest.approx(2.06e-3, rel=0.05)
