"""Attention by every library: how fast it is, and whether its backward repeats every bit.

A run can be resumed exactly only if the same step gives the same bits, and a backward pass that
accumulates over tiles with atomics does not. So every library is timed at its fastest, and again
with deterministic kernels only; each time the gradients are recomputed and compared. Causal,
forward and backward, bf16, with queries, keys and values as views of one packed tensor, at every
head dim of the official sizes and two sequence lengths. Not here: which library the model uses
(pythia_core.kernels.attention_backends), other operations (kernels).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from pythia_book.bench.kernels import check_can_run, timing
from pythia_book.bench.rows import SKIPPED
from pythia_core.kernels.attention_backends import BACKENDS, backend_attention, missing
from pythia_core.util.machine import deterministic, device_info

Row = dict[str, Any]
HEAD_DIMS = (64, 128, 256, 80, 32)
SEQ_LENS = (2048, 512)
TOKENS, WIDTH = 32_768, 1024
MEASURED = tuple(library for library in BACKENDS if library != "math")
"""The plain formula holds all scores in memory; nobody would train with it."""
REPEATS = 4
"""How many times the gradients are recomputed."""


def bench_attention(dry_run: bool = False, budget: float = float("inf")) -> Iterator[Row]:
    """Rows as they are measured; the first describes the machine.

    Args:
        dry_run: tiny CPU tensors, to check that everything runs.
        budget: seconds after which nothing new starts; rows say what was left out.

    Raises:
        ConfigError: no CUDA device and no dry run.
    """
    check_can_run("attention", (), dry_run)
    deadline = time.monotonic() + budget
    cudnn = None if dry_run else torch.backends.cudnn.version()
    yield {**device_info(), "kind": "machine", "cudnn": cudnn, "dry_run": dry_run}
    for library in MEASURED:
        common: Row = {"kind": "attention", "library": library, "dry_run": dry_run}
        if why := missing(library):
            yield {**common, "failed": why}
            continue
        for seq_len in SEQ_LENS[-1:] if dry_run else SEQ_LENS:
            for head_dim in HEAD_DIMS[:2] if dry_run else HEAD_DIMS:
                for strict in (False, True):
                    row = {**common, "seq_len": seq_len, "head_dim": head_dim}
                    row |= {"deterministic": strict}
                    if time.monotonic() > deadline:
                        yield {**row, "failed": SKIPPED}
                        continue
                    try:
                        with deterministic(strict):
                            row |= _measured(library, seq_len, head_dim, dry_run)
                    except Exception as error:  # a head dim, no such kernel, a compiler
                        first = next(iter(str(error).strip().splitlines()), "")
                        row["failed"] = f"{type(error).__name__}: {first}"[:200]
                    yield row


def _measured(library: str, seq_len: int, head_dim: int, dry_run: bool) -> Row:
    device, tokens = ("cpu", seq_len) if dry_run else ("cuda", TOKENS)
    heads = 1 if dry_run else WIDTH // head_dim
    shape = (tokens // seq_len, seq_len, heads)
    made = torch.Generator(device).manual_seed(0)
    options = {"generator": made, "device": device, "dtype": torch.bfloat16}
    packed = torch.randn(*shape, 3, head_dim, **options)
    leaves = [part.requires_grad_() for part in packed.unbind(3)]
    upstream = torch.randn(*shape, head_dim, **options)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(backend_attention(*leaves, library), leaves, upstream)

    first = both()
    again = [all(map(torch.equal, first, both())) for _ in range(REPEATS)]
    found = timing(both, device, 0.0, 1 if dry_run else 5)
    flop = 7 * tokens * heads * (seq_len + 1) * head_dim  # scores are recomputed
    found |= {"bits_repeat": all(again), "tflops": flop / found["ms"] / 1e9}
    if library == "torch":
        found["chosen"] = _choice_of_torch(*leaves)
    return found


def _choice_of_torch(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The name of the kernel that torch chooses by itself."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return SDPBackend(torch._fused_sdp_choice(q, k, v, None, 0.0, True)).name
