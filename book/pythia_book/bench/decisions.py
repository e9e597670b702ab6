"""Decides, by rules that were written before any measurement, which kernels stay.

Every rule compares times on one GPU: a Triton kernel with its formula under torch.compile, both
replayed from CUDA graphs, and an attention library with torch's default, all with deterministic
kernels. A decision is a row with the columns

    what      the file of a kernel, or attention at one head dim
    rule      the rule in words
    value     the measured number that the rule tests; None if there is none
    outcome   "keep", "delete", "use X" (a library) or "not measured"
    note      further numbers in words
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pythia_book.bench.rows import SKIPPED, Row
from pythia_core.kernels.attention_backends import DEFAULT

THRESHOLD = 1.05
"""How many times as fast a kernel or a library must be to be preferred to simpler code."""
MEMORY_THRESHOLD = 2.0
"""How many times the peak memory of the loss kernel the compiled loss must need."""
NOT_MEASURED = "not measured"
COMPILED = "torch.compile (inductor)"
KERNELS = {
    "linear_cross_entropy": "cross_entropy_triton",
    "split_rotated": "rotary_triton",
    "layer_norm_pair": "layer_norm_triton",
    "bias_gelu_tanh": "gelu_triton",
    "adamw": "adamw_triton",
}
"""Maps an operation, with the form of GELU that training uses, to the file of its Triton kernel."""
LOSS = "linear_cross_entropy"
OURS = "triton"
"""Our own attention kernel among the attention libraries."""
HEAD_DIMS = (32, 64, 80, 128, 256)
"""The head dims of the official sizes."""
SEQ_LEN = 2048


def decisions(operations: Sequence[Row], attention: Sequence[Row]) -> list[Row]:
    """Return the decision on every kernel and, per head dim, on the attention library.

    Args:
        operations: rows of the kind "operation".
        attention: rows of the kind "attention". All rows are of one GPU. If a measurement was
            repeated, its newest row counts.
    """
    return [*_kernels(operations), *_attention(attention)]


def _decision(what: str, rule: str, value: float | None, outcome: str, note: str = "") -> Row:
    """Return the row of a decision."""
    return {"kind": "decision", "what": what, "rule": rule, "value": value, "outcome": outcome,
            "note": note}  # fmt: skip


def format_decision(row: Row) -> str:
    """Format a decision as one line for a terminal."""
    value = "" if row["value"] is None else f" {row['value']:.3g}"
    note = f" ({row['note']})" if row["note"] else ""
    return f"{row['what']}: {row['outcome']}{value}{note} [{row['rule']}]"


# --- kernels -------------------------------------------------------------------------------------


def _kernels(operations: Sequence[Row]) -> Iterator[Row]:
    """Yield a decision for every Triton kernel but attention."""
    timed = {
        (row["kernel"], row["size"], row["implementation"]): row
        for row in operations
        if "ms" in row and row.get("graph")
    }
    for kernel, file in KERNELS.items():
        pairs = {
            size: (row, timed[kernel, size, COMPILED])
            for (name, size, implementation), row in timed.items()
            if (name, implementation) == (kernel, "ours") and (kernel, size, COMPILED) in timed
        }
        rule = f"keep if torch.compile takes >= {THRESHOLD:g} times as long"
        if kernel == LOSS:
            rule += f" or >= {MEMORY_THRESHOLD:g} times the memory"
        if not pairs:
            yield _decision(file, rule, None, NOT_MEASURED)
            continue
        ratios = {size: theirs["ms"] / ours["ms"] for size, (ours, theirs) in pairs.items()}
        value = _geometric_mean(list(ratios.values()))
        smallest = min(ratios, key=ratios.__getitem__)
        note = f"smallest {ratios[smallest]:.3g} at {smallest}, of {', '.join(ratios)}"
        keep = value >= THRESHOLD
        if kernel == LOSS:
            memory = _geometric_mean(
                [theirs["peak_bytes"] / ours["peak_bytes"] for ours, theirs in pairs.values()]
            )
            note += f"; memory {memory:.3g}"
            keep = keep or memory >= MEMORY_THRESHOLD
        yield _decision(file, rule, value, "keep" if keep else "delete", note)


def _geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


# --- attention -----------------------------------------------------------------------------------


def _attention(attention: Sequence[Row]) -> Iterator[Row]:
    """Yield a decision for the attention library of every head dim, and one for our own kernel."""
    newest = {
        (row["head_dim"], row["library"]): row
        for row in attention
        if row.get("deterministic") and row.get("seq_len") == SEQ_LEN
        and row.get("failed") != SKIPPED
    }  # fmt: skip
    gains: list[float] = []
    for dim in HEAD_DIMS:
        # a library that fails or does not repeat its bits is as good as infinitely slow
        ms = {
            library: row["ms"] if row.get("bits_repeat") and "ms" in row else math.inf
            for (head_dim, library), row in newest.items()
            if head_dim == dim
        }
        libraries = {library: time for library, time in ms.items() if library != OURS}
        rival = min(libraries.values(), default=math.inf)
        if OURS in ms and libraries:
            gains.append(0.0 if math.isinf(ms[OURS]) else rival / ms[OURS])
            if gains[-1] >= THRESHOLD:
                libraries[OURS] = ms[OURS]
        what = f"attention at head dim {dim}"
        rule = f"take the fastest repeatable library if >= {THRESHOLD:g} times as fast as {DEFAULT}"
        best = min(libraries, key=libraries.__getitem__, default="")
        if DEFAULT not in libraries or math.isinf(libraries[best]):
            yield _decision(what, rule, None, NOT_MEASURED)
            continue
        value = libraries[DEFAULT] / libraries[best]
        use = value >= THRESHOLD
        note = f"fastest: {best}, {libraries[best]:.3g} ms"
        finite = None if math.isinf(value) else value
        yield _decision(what, rule, finite, f"use {best}" if use else "keep", note)
    rule = f"keep if, at one head dim, >= {THRESHOLD:g} times as fast as every repeatable library"
    outcome, value = NOT_MEASURED, max(gains, default=None)
    if value is not None and value >= THRESHOLD:
        outcome = "keep"
    elif len(gains) == len(HEAD_DIMS):
        outcome = "delete"
    note = f"{len(gains)} of {len(HEAD_DIMS)} head dims" if gains else ""
    finite = None if value is None or math.isinf(value) else value
    yield _decision("attention_triton", rule, finite, outcome, note)
