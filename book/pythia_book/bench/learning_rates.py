"""Trains every size of the scale `laptop` at several peak learning rates, to choose the best.

Every run is the suite's control on the standard text with one seed; only the peak rate differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pythia_core.suite import scale_named, size_named
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep
from pythia_core.training.runs import find_or_train_all
from pythia_core.util.machine import device_info

FACTORS = (0.5, 1.0, 2.0)
"""Peak learning rates to try for a size, as multiples of the size's usual peak learning rate."""


def sweep_learning_rates(sizes: Sequence[str] = (), scale: str = "laptop") -> dict[str, Any]:
    """Train each size at several peak learning rates and measure the held-out loss at the end.

    Args:
        sizes: names of sizes; default: all sizes of the scale.

    Returns:
        The machine, the precision, and a row for each run: `size`, `lr_max` and `loss` (nats per
        token, on the held-out rows of the studies).

    Raises:
        ConfigError: unknown size or scale.
    """
    from pythia_book.measurements import N_ROWS
    from pythia_core.evaluation.scoring import sample_windows, score_rows

    of_scale, precision = scale_named(scale), best_precision()
    configs = {}
    for size in sizes or of_scale.sizes:
        for factor in FACTORS:
            rate = factor * size_named(size).lr_max
            configs[size, rate] = of_scale.run(size, precision=precision, lr_max=rate)
    runs = find_or_train_all(configs, keep=lambda _: Keep())
    rows = []
    for (size, rate), run in runs.items():
        heldout = sample_windows(run.data.heldout.tokens, run.data.config.seq_len, N_ROWS)
        loss = float(score_rows(run.model(of_scale.steps), heldout).losses.mean())
        rows.append({"size": size, "lr_max": rate, "loss": loss})
    return {**device_info(), "scale": scale, "precision": precision, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """Format the sweep as a table with a row for each size and a column for each rate."""
    rates = sorted({row["lr_max"] for row in result["rows"]})
    losses = {(row["size"], row["lr_max"]): row["loss"] for row in result["rows"]}
    lines = [
        f"{result['device']}, {result['precision']}; held-out loss in nats per token, "
        "by peak learning rate.",
        "",
        "| size | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "|---|" + "--:|" * len(rates),
    ]
    for size in dict.fromkeys(size for size, _ in losses):
        best = min(loss for (name, _), loss in losses.items() if name == size)
        cells = []
        for rate in rates:
            loss = losses.get((size, rate))
            text = "" if loss is None else f"{loss:.3f}"
            cells.append(f"**{text}**" if loss == best else text)
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
