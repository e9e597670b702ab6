"""Estimated memory: compared with the plan, and consistent where it is used."""

from __future__ import annotations

import pytest

from pythia_core.suite import OFFICIAL_SIZES, scale_named
from pythia_core.training import memory
from pythia_core.training.execution import Execution
from pythia_core.training.memory import (
    GIB,
    activation_bytes_per_token,
    largest_micro_batch,
    run_bytes,
    state_bytes,
)

KEPT, AGAIN = Execution(), Execution(recompute=True)
H100 = 78 * GIB
PLANNED = {
    # state in GiB; micro-batch of 2,048-token rows, without and with recomputation
    "70m": (1.2, 357, None),
    "160m": (2.7, 119, 855),
    "410m": (6.8, 42, 428),
    "1b": (17.0, 27, 226),
    "1.4b": (23.7, 16, 161),
    "2.8b": (46.5, 5, 60),
}
"""These values assume a bf16 residual stream (2 bytes); ours is fp32."""


@pytest.mark.parametrize("size", PLANNED)
def test_estimates_agree_with_the_plan(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "RESIDUAL_BYTES", 2)
    model = OFFICIAL_SIZES[size].model()
    state, kept, again = PLANNED[size]
    assert state_bytes(model, "bf16") / GIB == pytest.approx(state, abs=0.06)
    fits = largest_micro_batch(model, 2048, H100, KEPT, "bf16")
    assert fits == pytest.approx(kept, rel=0.15, abs=1)
    if again is not None:
        fits = largest_micro_batch(model, 2048, H100, AGAIN, "bf16")
        assert fits == pytest.approx(again, rel=0.15)


def test_too_large_models_and_batches_do_not_fit() -> None:
    model = OFFICIAL_SIZES["12b"].model()
    assert largest_micro_batch(model, 2048, H100, AGAIN, "bf16") == 0
    small = OFFICIAL_SIZES["160m"].model()
    fits = largest_micro_batch(small, 2048, H100, KEPT, "bf16")
    row = 2048 * activation_bytes_per_token(small, KEPT, "bf16")
    assert largest_micro_batch(small, 2048, H100 - row, KEPT, "bf16") == fits - 1


def test_recomputation_takes_less_and_fp32_more() -> None:
    model = OFFICIAL_SIZES["410m"].model()
    assert (
        activation_bytes_per_token(model, AGAIN, "bf16")
        < activation_bytes_per_token(model, KEPT, "bf16") / 4
    )
    assert activation_bytes_per_token(model, KEPT, "bf16") == activation_bytes_per_token(
        model, KEPT, "fp16"
    )
    assert activation_bytes_per_token(model, KEPT, "fp32") > 1.7 * activation_bytes_per_token(
        model, KEPT, "bf16"
    )


@pytest.mark.parametrize("execution", [KEPT, AGAIN])
def test_a_run_fits_if_its_micro_batch_does(execution: Execution) -> None:
    """GPU sharing (run_bytes) and the advice after an out-of-memory error agree."""
    run = scale_named("gpu").run("19m", precision="bf16")
    needs, t = run_bytes(run, execution), run.train
    for free, fits in ((needs, True), (needs - 1, False)):
        rows = largest_micro_batch(run.model, run.data.seq_len, free, execution, t.precision)
        assert (rows >= t.batch_size) is fits
