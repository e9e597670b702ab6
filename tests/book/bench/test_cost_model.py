"""The cost model reproduces the table of its derivation, and its bounds hold."""

from __future__ import annotations

import pytest
from pythia_book.bench import cost_model

from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.metrics import flops_per_token

MODELS = {name: size.model() for name, size in OFFICIAL_SIZES.items()}
COMPILED = {  # ns per token: gemm, logits, attention, elementwise, loss, their sum
    "14m": (30, 193, 76, 33, 121, 453),
    "31m": (79, 193, 153, 67, 121, 612),
    "70m": (229, 269, 164, 133, 121, 916),
    "160m": (887, 354, 492, 399, 121, 2_254),
    "410m": (2_911, 440, 1_313, 1_065, 121, 5_850),
    "1b": (6_881, 880, 2_298, 1_420, 121, 11_599),
    "1.4b": (10_321, 880, 2_135, 2_130, 121, 15_587),
    "2.8b": (21_502, 1_100, 4_849, 3_550, 121, 31_122),
    "6.9b": (52_652, 1_765, 5_693, 5_680, 121, 65_910),
    "12b": (92_552, 2_217, 8_006, 7_987, 122, 110_883),
}
OURS = {
    "14m": 366, "31m": 501, "70m": 769, "160m": 1_924, "410m": 5_048, "1b": 9_589,
    "1.4b": 13_684, "2.8b": 27_944, "6.9b": 61_858, "12b": 105_017,
}  # fmt: skip


@pytest.mark.parametrize("size", COMPILED)
def test_every_part_of_the_compiled_step_equals_the_table(size: str) -> None:
    parts = list(cost_model.parts(MODELS[size], "compiled").values())
    assert [*parts, sum(parts)] == pytest.approx(COMPILED[size], abs=1.0, rel=1e-4)


@pytest.mark.parametrize("size", OURS)
def test_the_totals_of_our_step_equal_the_table(size: str) -> None:
    total = cost_model.ns_per_token(MODELS[size], "ours")
    assert total == pytest.approx(OURS[size], abs=1.0, rel=2e-4)


@pytest.mark.parametrize("size", MODELS)
def test_ours_is_faster_than_compiled_and_slower_than_its_matrix_products(size: str) -> None:
    ns = {way: cost_model.ns_per_token(MODELS[size], way) for way in cost_model.PROFILES}
    assert ns["compiled"] > ns["ours"]
    assert ns["ours"] > flops_per_token(MODELS[size], cost_model.SEQ_LEN) / cost_model.MATMUL / 1e3


def test_peak_rates_come_from_data_sheets() -> None:
    peak = cost_model.peak_tflops("NVIDIA H100 80GB HBM3")
    assert peak == 989.4 and cost_model.peak_tflops("a CPU") is None
    assert cost_model.peak_tflops("NVIDIA H100 PCIe") < peak


def test_the_optimizer_matters_for_small_updates_only() -> None:
    model = MODELS["160m"]
    free = 1e9 / cost_model.ns_per_token(model, "ours")
    small, large = (cost_model.predicted_tokens_per_s(model, "ours", n) for n in (2**15, 2**21))
    assert small < 0.98 * free and large == pytest.approx(free, rel=1e-3)
    assert cost_model.optimizer_seconds(model) == pytest.approx(1.6e-3, rel=0.05)
