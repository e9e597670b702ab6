"""Decides, by rules that were written before any measurement, which kernels stay.

Every rule compares two times on one GPU. Rules on kernels compare a Triton kernel with the same
formula under torch.compile, both replayed from CUDA graphs. Rules on attention compare a library
with torch's default, both in deterministic mode. A decision is a row with the columns

    subject   the file of a kernel, or attention at one head dim
    rule      the rule in words
    value     the measured number that the rule tests; None if there is none
    outcome   "keep", "delete", "use X" (a library) or NOT_MEASURED
    note      further numbers, as text
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pythia_book.bench.cost_model import ATTENTION_TFLOPS, SEQ_LEN
from pythia_book.bench.rows import COMPILED, SKIPPED, Row
from pythia_book.verdicts import NOT_MEASURED
from pythia_core.kernels.attention_backends import DEFAULT

THRESHOLD = 1.05
"""How many times as fast a kernel or a library must be to be preferred to simpler code."""
MEMORY_THRESHOLD = 2.0
"""The loss kernel also stays if the compiled loss needs this many times its peak memory."""
TRITON_FILES = {
    "linear_cross_entropy": "cross_entropy_triton",
    "split_rotated": "rotary_triton",
    "layer_norm_pair": "layer_norm_triton",
    "bias_gelu_tanh": "gelu_triton",
    "adamw": "adamw_triton",
}
"""Maps each operation to the file of its Triton kernel; of GELU, only the form used in training."""
LOSS = "linear_cross_entropy"
OURS = "triton"
"""The name of our own attention kernel among the attention libraries."""
HEAD_DIMS = tuple(ATTENTION_TFLOPS)
"""The head dims of the official sizes."""


def decisions(operations: Sequence[Row], attention: Sequence[Row]) -> list[Row]:
    """Return the decision on every kernel and, per head dim, on the attention library.

    All rows must be from one GPU. If a measurement was repeated, the newest row counts.

    Args:
        operations: rows of the kind "operation".
        attention: rows of the kind "attention".
    """
    return [*_kernels(operations), *_attention(attention)]


def _decision(subject: str, rule: str, value: float | None, outcome: str, note: str = "") -> Row:
    """Return the row of a decision; an infinite value, of a rival that failed, becomes None."""
    value = None if value is None or math.isinf(value) else value
    return {"kind": "decision", "subject": subject, "rule": rule, "value": value,
            "outcome": outcome, "note": note}  # fmt: skip


def format_decision(row: Row) -> str:
    """Format a decision as one line for a terminal."""
    note = f"; {row['note']}" if row["note"] else ""
    return f"{row['subject']}: {row['outcome']}{note}. Rule: {row['rule']}"


# --- kernels -------------------------------------------------------------------------------------


def _kernels(operations: Sequence[Row]) -> Iterator[Row]:
    """Yield a decision for every Triton kernel but attention."""
    timed = {
        (row["kernel"], row["size"], row["implementation"]): row
        for row in operations
        if "ms" in row and row.get("graph")
    }
    for kernel, file in TRITON_FILES.items():
        pairs = {
            size: (row, timed[kernel, size, COMPILED])
            for (name, size, implementation), row in timed.items()
            if (name, implementation) == (kernel, "ours") and (kernel, size, COMPILED) in timed
        }
        rule = f"keep if torch.compile takes at least {THRESHOLD:g} times as long"
        if kernel == LOSS:
            rule += f" or {MEMORY_THRESHOLD:g} times the memory"
        if not pairs:
            yield _decision(file, rule, None, NOT_MEASURED)
            continue
        ratios = {size: theirs["ms"] / ours["ms"] for size, (ours, theirs) in pairs.items()}
        value = _geometric_mean(list(ratios.values()))
        sizes = ", ".join(f"{size} {ratio:.3g}" for size, ratio in ratios.items())
        note = f"torch.compile takes {value:.3g} times as long ({sizes})"
        keep = value >= THRESHOLD
        if kernel == LOSS:
            memory = _geometric_mean(
                [theirs["peak_bytes"] / ours["peak_bytes"] for ours, theirs in pairs.values()]
            )
            note += f" and {memory:.3g} times the memory"
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
        subject = f"attention at head dim {dim}"
        rule = (
            f"use the fastest deterministic library if it is at least {THRESHOLD:g} times as fast "
            f"as {DEFAULT}"
        )
        best = min(libraries, key=libraries.__getitem__, default="")
        if DEFAULT not in libraries or math.isinf(libraries[best]):
            yield _decision(subject, rule, None, NOT_MEASURED)
            continue
        value = libraries[DEFAULT] / libraries[best]
        note = f"fastest: {best}, {libraries[best]:.3g} ms"
        library = best if value >= THRESHOLD else DEFAULT
        yield _decision(subject, rule, value, f"use {library}", note)
    rule = (
        f"keep if, at some head dim, it is at least {THRESHOLD:g} times as fast as every other "
        "deterministic library"
    )
    outcome, value = NOT_MEASURED, max(gains, default=None)
    if value is not None and value >= THRESHOLD:
        outcome = "keep"
    elif len(gains) == len(HEAD_DIMS):
        outcome = "delete"
    note = f"{len(gains)} of {len(HEAD_DIMS)} head dims" if gains else ""
    yield _decision("attention_triton", rule, value, outcome, note)
