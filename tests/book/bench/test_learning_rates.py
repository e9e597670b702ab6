"""The sweep over learning rates: what it trains and measures, and the table it makes of that."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pythia_book import measurements
from pythia_book.bench import learning_rates
from pythia_book.bench.learning_rates import FACTORS, markdown, sweep_learning_rates

from pythia_core.config import RunConfig, config_dict, config_differences
from pythia_core.errors import ConfigError
from pythia_core.evaluation import scoring
from pythia_core.suite import DATA_ARMS, LAPTOP_SIZES, scale_named, suite_configs
from pythia_core.training.retention import Keep


@dataclass
class Trained:
    """What the sweep asked for."""

    configs: dict[tuple[str, float], RunConfig] = field(default_factory=dict)
    kept: list[Keep | None] = field(default_factory=list)
    steps: set[int] = field(default_factory=set)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Train nothing; the loss of a run is that of `loss_of`, with two values for two rows."""
    seen = Trained()

    def model(config: RunConfig, step: int) -> float:
        seen.steps.add(step)
        return loss_of(config)

    def find_or_train_all(configs: dict[Any, RunConfig], keep: Any) -> dict[Any, SimpleNamespace]:
        seen.configs |= configs
        seen.kept += [keep(config) for config in configs.values()]
        return {
            key: SimpleNamespace(
                config=config,
                data=SimpleNamespace(
                    config=config.data, heldout=SimpleNamespace(tokens="held out")
                ),
                model=lambda step, c=config: model(c, step),
            )
            for key, config in configs.items()
        }

    def sample_windows(tokens: str, seq_len: int, n_rows: int) -> np.ndarray:
        assert (tokens, seq_len) == ("held out", scale_named("laptop").data.seq_len)
        assert n_rows == measurements.N_ROWS
        return np.array([-0.25, 0.25])

    monkeypatch.setattr(learning_rates, "find_or_train_all", find_or_train_all)
    monkeypatch.setattr(scoring, "sample_windows", sample_windows)
    monkeypatch.setattr(
        scoring, "score_rows", lambda loss, rows: SimpleNamespace(losses=loss + rows)
    )
    return seen


def loss_of(config: RunConfig) -> float:
    return 3 + 10 * config.train.lr_max + 0.5 * config.model.n_layers


def test_each_size_is_trained_at_each_rate_and_measured_at_the_end(trained: Trained) -> None:
    result = sweep_learning_rates(["7k", "600k"])
    rates = {size: [f * LAPTOP_SIZES[size].lr_max for f in FACTORS] for size in ("7k", "600k")}
    assert [*trained.configs] == [(size, rate) for size, own in rates.items() for rate in own]
    assert (result["scale"], result["precision"]) == ("laptop", "fp32") and result["device"]
    assert [(row["size"], row["lr_max"]) for row in result["rows"]] == [*trained.configs]
    for row, config in zip(result["rows"], trained.configs.values(), strict=True):
        assert row["loss"] == pytest.approx(loss_of(config))
    assert trained.steps == {scale_named("laptop").steps}
    assert trained.kept == [Keep()] * 6, "of a checkpoint on the way, nothing is read"


def test_its_runs_are_the_controls_of_the_suite_with_another_peak(trained: Trained) -> None:
    sweep_learning_rates(["25k"])
    own = suite_configs("laptop", ["25k"], DATA_ARMS[:1])["25k", DATA_ARMS[0]]
    lower, same, higher = trained.configs.values()
    assert same == own, "the suite's run is found, not trained again"
    for config in (lower, higher):
        (line,) = config_differences(config_dict(own), config_dict(config))
        assert line.startswith("train.lr_max")
    assert lower.train.lr_max < own.train.lr_max < higher.train.lr_max


def test_by_default_all_sizes_are_swept(trained: Trained) -> None:
    rows = sweep_learning_rates()["rows"]
    assert [*dict.fromkeys(row["size"] for row in rows)] == [*LAPTOP_SIZES]
    assert len(rows) == len(LAPTOP_SIZES) * len(FACTORS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((["9k"],), "unknown size '9k'"), (((), "laptob"), "Did you mean 'laptop'")],
)
def test_unknown_sizes_and_scales_are_refused(
    arguments: tuple, message: str, trained: Trained
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_learning_rates(*arguments)
    assert not trained.configs


def test_the_table_has_a_cell_for_each_rate_that_a_size_was_trained_at() -> None:
    losses = {("7k", 0.008): 5.25, ("7k", 0.004): 5.5, ("25k", 0.002): 4.0, ("25k", 0.004): 4.125}
    rows = [{"size": s, "lr_max": rate, "loss": loss} for (s, rate), loss in losses.items()]
    shown = markdown({"device": "a CPU", "precision": "bf16", "rows": rows})
    assert shown.splitlines() == [
        "a CPU, bf16; held-out loss in nats per token, by peak learning rate.",
        "",
        "| size | 0.002 | 0.004 | 0.008 |",
        "|---|--:|--:|--:|",
        "| 7k |  | 5.500 | **5.250** |",
        "| 25k | **4.000** | 4.125 |  |",
    ]
