"""Planted laws are recovered from their losses, and optimal sizes are optimal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pythia_book.studies.scaling import laws as scaling_laws
from pythia_book.studies.scaling.laws import BESIROGLU, Law, bootstrap_laws, fit_law, interval

from pythia_core.errors import DataError
from pythia_core.suite import OFFICIAL_SIZES

N = np.array([7e3, 1.4e4, 2.5e4, 4e4, 8.5e4, 1.5e5, 4.5e5, 8e5])
TRUE = Law(E=4.0, A=20.0, alpha=0.3, B=3000.0, beta=0.6)


def grid() -> tuple[np.ndarray, np.ndarray]:
    d = np.geomspace(2e5, 2.4e6, 9)
    return np.repeat(N, len(d)), np.tile(d, len(N))


def test_a_law_of_size_is_recovered() -> None:
    true = Law(E=4.5, A=10.0, alpha=0.25)
    found = fit_law(N, true.loss(N) - true.B)
    for name in ("E", "A", "alpha"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3)


def test_a_law_of_size_and_tokens_is_recovered_even_with_an_outlier() -> None:
    n, d = grid()
    loss = TRUE.loss(n, d)
    found = fit_law(n, loss, d)
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=2e-2)
    spoiled = loss.copy()
    spoiled[5] *= 1.3  # the Huber loss limits its influence
    robust = fit_law(n, spoiled, d)
    assert robust.loss(n, d) == pytest.approx(loss, rel=5e-3)


def test_intervals_contain_the_truth_and_are_reproducible() -> None:
    rng = np.random.default_rng(0)
    true = Law(E=4.5, A=10.0, alpha=0.25)
    of_rows = rng.normal(0, 0.5, 300)  # rows differ much more than models do
    rows = (true.loss(N) - true.B)[:, None] + of_rows + rng.normal(0, 0.05, (8, 300))
    rows -= of_rows.mean()
    law, draws = bootstrap_laws(N, rows, None, 60)
    value, low, high = interval(law.alpha, [x.alpha for x in draws])
    assert low < value < high
    assert low - 0.02 < 0.25 < high + 0.02
    again, others = bootstrap_laws(N, rows, None, 60)
    assert (law, draws) == (again, others)


@pytest.mark.parametrize(
    ("n", "d"),
    [(N[:2], None), (N[:3].repeat(2)[:4], N[:4]), (np.repeat(N[:2], 8), np.tile(N, 2))],
)
def test_too_few_sizes_determine_no_law(n: np.ndarray, d: np.ndarray | None) -> None:
    with pytest.raises(DataError, match="cannot determine"):
        fit_law(n, np.full(len(n), 5.0), d)


def test_the_compute_optimum_is_optimal() -> None:
    for flops in (1e11, 1e13):
        n, d = TRUE.compute_optimal(flops)
        assert 6 * n * d == pytest.approx(flops)
        best = TRUE.loss(n, d)
        assert best <= min(TRUE.loss(n * k, d / k) for k in (0.5, 0.9, 1.1, 2))
        assert TRUE.optimal_tokens(n) == pytest.approx(d, rel=0.02)  # sizes are searched on a grid
        assert TRUE.break_even_inference_tokens(n, TRUE.optimal_tokens(n)) == pytest.approx(
            0, abs=1
        )


def test_the_more_a_model_is_used_the_smaller_it_should_be() -> None:
    target = float(TRUE.loss(1e5, 1e7))
    sizes = []
    for generated in (0.0, 1e7, 1e9):
        n, d = TRUE.inference_optimal(target, generated)
        sizes.append(n)
        assert TRUE.loss(n, d) == pytest.approx(target)
        cost = 6 * n * d + 2 * n * generated
        for k in (0.8, 1.25):
            other = 6 * n * k * TRUE.tokens_for(target, n * k) + 2 * n * k * generated
            assert cost <= other
        # the closed form recovers the generated tokens
        assert TRUE.break_even_inference_tokens(n, d) == pytest.approx(generated, rel=0.05, abs=2e5)
    assert sizes[0] > sizes[1] > sizes[2]
    assert not np.isfinite(TRUE.tokens_for(3.9, 1e9))
    with pytest.raises(DataError, match=r"no size reaches a loss of 3\.9"):
        TRUE.inference_optimal(3.9, 0.0)


def test_the_published_law_gives_twenty_tokens_per_parameter() -> None:
    """A known rule of thumb, which the constants must give for large models."""
    assert 15 < BESIROGLU.optimal_tokens(70e9) / 70e9 < 25


def test_released_sizes_are_past_their_optimum() -> None:
    official = scaling_laws._official().set_index("size")
    assert list(official.index) == list(OFFICIAL_SIZES)
    assert official.tokens_per_parameter["70m"] == pytest.approx(299_892_736_000 / 70_426_624)
    assert official.tokens_per_non_embedding["70m"] == pytest.approx(299_892_736_000 / 18_915_328)
    assert (official.cheapest_at.diff().dropna() < 0).all()
    assert (official.cheapest_at > 0).all()  # even 12B read more tokens than its optimum


def planted_losses(n_sizes: int, break_last: float = 1.0) -> tuple[pd.DataFrame, dict]:
    """Losses of TRUE at six checkpoints: the study's table, and the losses per row."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 80)
    rows, table = {}, []
    for i, n in enumerate(N[:n_sizes]):
        for step in (2, 60, 120, 240, 400, 572):
            d = 4096.0 * step
            loss = float(TRUE.loss(n, d)) * (break_last if i == n_sizes - 1 else 1)
            size = f"s{i}"
            rows[size, step] = loss + noise - noise.mean()
            table.append({"size": size, "step": step, "n_params": n,
                          "tokens": d, "flops": 6 * n * d, "value": loss})  # fmt: skip
    return pd.DataFrame(table), rows


def test_tables_of_laws(monkeypatch) -> None:
    monkeypatch.setattr(scaling_laws, "DRAWS", 10)
    tables = scaling_laws.laws_tables(*planted_losses(8))
    laws = tables["laws"].set_index(["law", "parameter"]).value
    assert laws["both", "alpha"] == pytest.approx(0.3, rel=0.05)
    optimal = tables["optimal"]
    assert (optimal[optimal.kind == "compute"].n_params.diff().dropna() > 0).all()
    assert (optimal[optimal.kind == "inference"].n_params.diff().dropna() < 0).all()
    errors = tables["prediction"].pivot(index="size", columns="rule", values="error").abs()
    assert list(errors.index) == ["s4", "s5", "s6", "s7"]  # from four, ..., seven smaller sizes
    assert errors.law.max() < 0.3
    assert (errors[["power", "line", "same"]].mean() > 0.5).all()
    broken = scaling_laws.laws_tables(*planted_losses(8, break_last=1.1))["prediction"]
    assert broken[(broken["size"] == "s7") & (broken.rule == "law")].error.iloc[0] > 5

    two = scaling_laws.laws_tables(*planted_losses(2))
    assert two["laws"].empty
    assert two["optimal"].empty
    assert two["prediction"].empty
    assert len(two["official_sizes"]) == 10
