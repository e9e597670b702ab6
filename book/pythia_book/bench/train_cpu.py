"""How fast a training step is, against the library a user would otherwise pick, in one run.

`bench_train` alternates our step with that of `transformers`' GPT-NeoX + torch's fused AdamW (its
fastest of eager / sdpa and fp32 / bf16 autocast, each measured) on the same sizes and real token
rows, so that a machine whose speed drifts slows both. Speeds are reported as tokens/s, FLOP/s by a
named convention, and shares of a matrix-product rate measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pythia_book.bench.implementations import transformers_step
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import scale_named
from pythia_core.training.metrics import flops_per_token
from pythia_core.training.trainer import Trainer
from pythia_core.util.machine import best_precision, device_info, keep_freed_memory
from pythia_core.util.progress import bar as progress_bar

PEERS = [(attention, bf16) for attention in ("eager", "sdpa") for bf16 in (False, True)]


def matmul_flops(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Best FLOP/s of a 2048^3 matrix product, of repeats over `seconds`."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def _time(step: Callable[[np.ndarray], Any], batches: list[np.ndarray]) -> list[float]:
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - started)
    return seconds


def bench_size(config: RunConfig, rows: np.ndarray, rounds: int, progress: bool) -> dict[str, Any]:
    """One row of the table: our step and every peer's, alternating `rounds` times.

    Args:
        rows: real token rows (n, S+1), cut into batches.
        rounds: repeats of two steps of each contender; the median over all of them counts.
    """
    size = config.train.batch_size
    batches = [rows[i * size : (i + 1) * size] for i in range(len(rows) // size)]
    trainer = Trainer(config, torch.device("cpu"))
    trainer.step = config.train.steps // 10  # past the warm-up
    contenders: dict[str, Callable] = {"ours": trainer.update}
    for attention, bf16 in PEERS:
        if bf16 and config.train.precision != "bf16":
            continue
        name = f"{attention} {'bf16' if bf16 else 'fp32'}"
        contenders[name] = transformers_step(config, torch.device("cpu"), attention, bf16)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    label = f"{config.model.n_params_non_embedding:,} params"
    for number in progress_bar(progress, iterable=range(rounds + 1), desc=label):
        for name, step in contenders.items():
            measured = _time(step, [batches[(2 * number + i) % len(batches)] for i in range(2)])
            if number:  # round 0 is the warm-up
                times[name] += measured
    tokens = size * config.data.seq_len
    speed = {name: tokens / statistics.median(seconds) for name, seconds in times.items()}
    peer = max((n for n in speed if n != "ours"), key=speed.__getitem__)
    flops = flops_per_token(config.model, config.data.seq_len)
    return {
        "non_embedding": config.model.n_params_non_embedding,
        "precision": config.train.precision,
        "tokens_per_s": round(speed["ours"]),
        "gflops_per_s": round(speed["ours"] * flops / 1e9, 1),
        "peer": peer,
        "peer_tokens_per_s": round(speed[peer]),
        "ratio": round(speed["ours"] / speed[peer], 2),
        "all_tokens_per_s": {name: round(value) for name, value in speed.items()},
        "steps_timed": 2 * rounds,
    }


def bench_train(
    sizes: tuple[str, ...] = (), rounds: int = 10, precision: str = "", progress: bool = True
) -> dict[str, Any]:
    """The table over `sizes` (default: the laptop ladder) with the machine and its ceilings."""
    from pythia_core.data.prepare import prepare

    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    keep_freed_memory()
    scale = scale_named("laptop")
    precision = precision or best_precision()
    configs = {size: scale.run(size, precision=precision) for size in sizes or scale.sizes}
    data = prepare(scale.data, progress=progress)
    rows = np.concatenate([data.batch(step, scale.batch_size) for step in range(8)])
    ceiling = {
        name: matmul_flops(dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    table = []
    for size, config in configs.items():
        row = bench_size(config, rows, rounds, progress)
        row["matmul_share"] = round(row["gflops_per_s"] * 1e9 / ceiling[precision], 3)
        table.append({"size": size, **row})
    return {
        "machine": device_info(),
        "matmul_gflops_per_s": {name: round(value / 1e9) for name, value in ceiling.items()},
        "flop_convention": "6 x (matrix parameters + unembedding) + causal attention, no recompute",
        "tokens_per_step": scale.batch_size * scale.data.seq_len,
        "rows": table,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as the README's table."""
    machine, ceiling = result["machine"], result["matmul_gflops_per_s"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}; measured "
        f"matrix products: {ceiling['fp32']} GFLOP/s fp32, {ceiling['bf16']} bf16. FLOP: "
        f"{result['flop_convention']}. {result['tokens_per_step']:,} tokens per step.",
        "",
        "| size | precision | ours, tokens/s | GFLOP/s | of matmul rate "
        "| `transformers`' fastest, tokens/s | ratio |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for r in result["rows"]:
        lines.append(
            f"| {r['size']} | {r['precision']} | {r['tokens_per_s']:,} | {r['gflops_per_s']:,} "
            f"| {r['matmul_share']:.0%} | {r['peer_tokens_per_s']:,} ({r['peer']}) "
            f"| **{r['ratio']:.2f}x** |"
        )
    return "\n".join(lines)
