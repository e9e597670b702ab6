"""The kernels against the operations they replace: predictions, and `bench kernels` as tables.

Predictions count, by hand from the formulas and with the official widths, the bytes of one token
through all layers, forward and backward, for a kernel and for what torch.compile makes of the same
formula: it fuses neighbouring passes too, so the difference is what it cannot do. Time is bytes at
the rate of a copy. Measurements are, for every kernel and official size: time forward, backward and
both, rate, share of what a copy or a matrix product reaches on the same card in the same run, error
against fp64, and peak memory; and which attention is fastest by head dim. Nothing is measured here,
and no number of a dry run on a CPU is kept: its rows show that everything runs. Not a claim of the
Pythia paper.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pythia_book.bench.cost_model import COPY, MATMUL, SEQ_LEN
from pythia_book.stats import NOT_TESTABLE, Estimate, claim_row, premise_verdict
from pythia_book.studies.kernels.params import STUDY, KernelsParams
from pythia_book.study import StudyResult
from pythia_core.config import ModelConfig
from pythia_core.kernels.attention_backends import BACKENDS, DEFAULT, FASTEST
from pythia_core.kernels.attention_tiles import tiles
from pythia_core.suite import OFFICIAL_SIZES, size_named
from pythia_core.training.metrics import flops_per_token

if TYPE_CHECKING:
    import pandas as pd


# --- predictions -----------------------------------------------------------------------------

COPY_GB_PER_S, MATMUL_TFLOP_PER_S = 1e3 * COPY, MATMUL
"""Ceilings of one H100 that predictions use: what a copy and a bf16 product are known to reach."""
LOW, FP32 = 2, 4
"""Bytes of an element."""


@dataclass(frozen=True)
class Prediction:
    """One kernel; `compiled` and `ours` are bytes a token of a config."""

    kernel: str
    fuses: str
    cannot: str
    """What of it a compiler does not do."""
    compiled: Callable[[ModelConfig], float]
    ours: Callable[[ModelConfig], float]


def _rotated(c: ModelConfig) -> float:
    """Elements of q and k that are turned, a token and layer."""
    return 2 * c.n_heads * c.rotary_dims


PREDICTIONS = (
    Prediction(
        "linear_cross_entropy",
        "unembedding, softmax, loss and their gradients, in chunks of rows",
        "keep the logits out of memory: they are read once more",
        lambda c: 3 * LOW * c.vocab_size,
        lambda c: 2 * LOW * c.vocab_size,
    ),
    Prediction(
        "split_rotated",
        "rotation of queries and keys where they lie, and one packed gradient",
        "work in place: it writes new queries and keys, and joins three gradients",
        lambda c: c.n_layers * LOW * (4 * c.d_model + 6 * c.d_model),
        lambda c: c.n_layers * LOW * (2 * _rotated(c) + 6 * c.d_model),
    ),
    Prediction(
        "attention (packed)",
        "the same with an attention that leaves dq, dk and dv side by side",
        "as above; here nothing is joined, and the gradient is turned back in place",
        lambda c: c.n_layers * LOW * (4 * c.d_model + 6 * c.d_model),
        lambda c: c.n_layers * LOW * 4 * _rotated(c),
    ),
    Prediction(
        "layer_norm_pair",
        "the sum of the block before, two LayerNorms of it, and their four parameter gradients",
        "sum the parameter gradients in the pass that makes dx: it reads three tensors again",
        lambda c: c.n_layers * c.d_model * (5 * FP32 + 7 * LOW + FP32 + 2 * LOW),
        lambda c: c.n_layers * c.d_model * (5 * FP32 + 7 * LOW),
    ),
    Prediction(
        "bias_gelu",
        "bias and GELU, their backward, and the gradient of the bias",
        "sum the bias gradient in the pass that makes dx: it reads dx again",
        lambda c: c.n_layers * 4 * c.d_model * LOW * 6,
        lambda c: c.n_layers * 4 * c.d_model * LOW * 5,
    ),
)


def executed_products(head_dim: int) -> tuple[int, int]:
    """Products of queries and keys that our attention does for the backward's least five: seven,
    since two kernels compute scores and dp each; one more where dk and dv are apart."""
    import torch

    split = tiles(head_dim, torch.bfloat16).dv is not None
    return 5, 8 if split else 7


def predictions(sizes: tuple[str, ...], copy_gb_per_s: float = COPY_GB_PER_S) -> pd.DataFrame:
    """size, kernel, compiled and ours (bytes a token), saved, ns a token, and its share of the
    least time of a step (causal FLOP at the rate of a matrix product)."""
    import pandas as pd

    rows = []
    for size in sizes:
        config = size_named(size).model()
        floor = flops_per_token(config, SEQ_LEN) / MATMUL_TFLOP_PER_S / 1e3
        for p in PREDICTIONS:
            compiled, ours = p.compiled(config), p.ours(config)
            ns = (compiled - ours) / copy_gb_per_s
            rows.append(
                {
                    "size": size,
                    "kernel": p.kernel,
                    "compiled_bytes": compiled,
                    "ours_bytes": ours,
                    "saved_bytes": compiled - ours,
                    "saved_ns": ns,
                    "share_of_floor": ns / floor,
                }
            )
    return pd.DataFrame(rows)


def logits_gigabytes(size: str, tokens: int) -> float:
    """What bf16 logits of so many tokens occupy: what the chunked loss never holds."""
    return LOW * size_named(size).model().vocab_size * tokens / 1e9


# --- tables ----------------------------------------------------------------------------------

NOT_MEASURED = "not yet measured: dry run on a CPU"
MEASURED = ("ms", "ms_low", "ms_high", "rate", "share", "relative_error", "peak_bytes")
COMPILED = "torch.compile (inductor)"
ROWS = dict[str, Any]


def measurements(rows: list[ROWS], measured: bool) -> pd.DataFrame:
    """A row a measurement; without numbers unless they were measured on a card."""
    import pandas as pd

    kept = []
    for row in rows[1:]:
        shape = row["shape"]
        tokens = shape.get("tokens") or shape.get("batch", 0) * shape.get("seq", 0)
        columns = ("size", "kernel", "contender", "direction", "unit", "formula", "failed")
        found = {
            **{name: row.get(name) for name in columns},
            "tokens": tokens or None,  # none in an update of the weights
            "head_dim": shape.get("head_dim"),
            **{name: row.get(name) if measured else None for name in MEASURED},
        }
        if not measured:
            found["tokens"] = None
            found["failed"] = NOT_MEASURED
        kept.append(found)
    return pd.DataFrame(kept)


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """By head dim the fastest attention, both directions, and what is taken now."""
    import pandas as pd

    rows = []
    libraries = frame[(frame.kernel == "attention") & frame.contender.isin(BACKENDS)]
    for dim, mine in libraries[libraries.direction == "both"].groupby("head_dim"):
        taken = FASTEST.get(int(dim), DEFAULT)
        timed = mine.dropna(subset=["ms"]).sort_values("ms")
        best = timed.iloc[0] if len(timed) else None
        now = timed[timed.contender == taken]
        gain = float(now.ms.iloc[0] / best.ms) - 1 if best is not None and len(now) else None
        rows.append(
            {
                "head_dim": int(dim),
                "fastest": best.contender if best is not None else None,
                "rate": best.rate if best is not None else None,
                "taken": taken,
                "gain": gain,
                "measured": ", ".join(timed.contender),
            }
        )
    return pd.DataFrame(rows, columns=["head_dim", "fastest", "rate", "taken", "gain", "measured"])


def outcomes(predicted: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Predictions with what was measured: how many ns a token torch.compile takes more, all layers.

    The packed attention has no counterpart of its own: it is measured with attention as a whole.
    """
    both = frame[frame.direction == "both"]

    def measured(row: Any) -> float | None:
        kernel = "bias_gelu_tanh" if row.kernel == "bias_gelu" else row.kernel
        mine = both[(both["size"] == row.model) & (both.kernel == kernel)].set_index("contender")
        if not {"ours", COMPILED} <= set(mine.dropna(subset=["ms"]).index):
            return None
        layers = 1 if kernel == "linear_cross_entropy" else OFFICIAL_SIZES[row.model].n_layers
        apart = mine.ms[COMPILED] - mine.ms["ours"]
        return float(apart * 1e6 / mine.tokens["ours"] * layers)

    rows = predicted.rename(columns={"size": "model"}).itertuples()
    return predicted.assign(measured_ns=[measured(row) for row in rows])


def faster(frame: pd.DataFrame, kernel: str, ours: str, than: str) -> Estimate | None:
    """Time of another over ours, minus 1, both directions: the middle of the sizes, and the range
    that sizes and repeats span together."""
    both = frame[(frame.kernel == kernel) & (frame.direction == "both")].dropna(subset=["ms"])
    ratios = []
    for _, mine in both.groupby("size"):
        mine = mine.set_index("contender")
        if {ours, than} <= set(mine.index):
            a, b = mine.loc[ours], mine.loc[than]
            ratios.append((b.ms / a.ms, b.ms_low / a.ms_high, b.ms_high / a.ms_low))
    if not ratios:
        return None
    middle = sorted(r[0] for r in ratios)[len(ratios) // 2]
    low, high = min(r[1] for r in ratios), max(r[2] for r in ratios)
    return Estimate(middle - 1, low - 1, high - 1, len(ratios), 1)


def claims(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """That every kernel is faster than the compiled formula, and our attention than torch's."""
    rows = []
    kernels = [k for k in dict.fromkeys(frame.kernel) if k != "attention"]
    for kernel, ours, than, expected in (
        *((k, "ours", COMPILED, "expected from the bytes counted") for k in kernels),
        ("attention", "triton", DEFAULT, "not expected: a library written for this card is there"),
    ):
        e = faster(frame, kernel, ours, than)
        words = f"{kernel} by {ours}" if kernel == "attention" else kernel
        rows.append(
            claim_row(
                f"{words} is faster than {than} (its time over ours, minus 1, both directions)",
                expected,
                e,
                premise_verdict(e.low, e.high, 1) if e else NOT_TESTABLE,
            )
        )
    return rows


def run(params: KernelsParams, rows: list[ROWS]) -> StudyResult:
    """Tables of the rows of one run of `bench kernels`, its first row included."""
    started = time.time()
    head = rows[0]
    measured = not head["dry_run"]
    frame = measurements(rows, measured)
    copy = head["copy_gb_per_s"] if measured else COPY_GB_PER_S
    predicted = predictions(params.size_list, copy)
    tables = {
        "measurements": frame,
        "choices": choices(frame),
        "predictions": outcomes(predicted, frame),
    }
    largest = params.size_list[-1]
    values = {
        "sizes": ", ".join(params.size_list),
        "largest": largest,
        "card": head["device"] if measured else NOT_MEASURED,
        "copy": head["copy_gb_per_s"] if measured else NOT_MEASURED,
        "matmul": head["matmul_tflop_per_s"] if measured else NOT_MEASURED,
        "method": head["method"],
        "rows": len(rows) - 1,
        "logits": logits_gigabytes(largest, 16 * 2048),
    }
    return StudyResult(STUDY, params, tables, values, claims(frame), [], started)
