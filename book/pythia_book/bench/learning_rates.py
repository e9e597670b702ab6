"""Trains every size of the laptop's ladder at several peak learning rates, to choose one for each.

Every run is the suite's control on the standard text with one seed; only the peak differs. The page
Method has the table that the rates of pythia_core.suite.LAPTOP_SIZES were read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pythia_core.suite import LAPTOP_SIZES, scale_named
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep
from pythia_core.training.runs import find_or_train_all
from pythia_core.util.machine import device_info

RATES = (5e-3, 1e-2, 2e-2, 4e-2)
"""Peak learning rates to try."""


def sweep_learning_rates(
    sizes: Sequence[str] = (), rates: Sequence[float] = RATES, scale: str = "laptop"
) -> dict[str, Any]:
    """Train each size at each rate and measure the held-out loss at the end.

    Args:
        sizes: names of sizes; default: all sizes of the scale.

    Returns:
        The machine, the precision, and a row for each run: `size`, `lr_max` and `loss` (nats per
        token, on the held-out rows of the studies).
    """
    from pythia_book.measurements import LanguageMeasurement
    from pythia_core.evaluation.scoring import row_losses

    chosen, precision = scale_named(scale), best_precision()
    cells = [(size, rate) for size in sizes or tuple(LAPTOP_SIZES) for rate in rates]
    configs = {
        (size, rate): chosen.run(size, precision=precision, lr_max=rate) for size, rate in cells
    }
    runs = find_or_train_all(configs, keep=lambda _: Keep())
    rows = []
    for (size, rate), run in runs.items():
        heldout = LanguageMeasurement.of(run.data, run.config.model.max_seq_len).rows
        loss = float(row_losses(run.model(chosen.steps), heldout).mean())
        rows.append({"size": size, "lr_max": rate, "loss": loss})
    return {**device_info(), "scale": scale, "precision": precision, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """Format the sweep as a table with a row for each size and a column for each rate."""
    rates = sorted({row["lr_max"] for row in result["rows"]})
    losses = {(row["size"], row["lr_max"]): row["loss"] for row in result["rows"]}
    lines = [
        f"{result['device']}, {result['precision']}; held-out loss in nats per token.",
        "",
        "| size | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "|---|" + "--:|" * len(rates),
    ]
    for size in dict.fromkeys(size for size, _ in losses):
        best = min(rates, key=lambda rate, s=size: losses[s, rate])
        cells = [
            f"**{losses[size, r]:.3f}**" if r == best else f"{losses[size, r]:.3f}" for r in rates
        ]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
