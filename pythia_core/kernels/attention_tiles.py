"""Tile sizes, warps and pipeline stages of the Triton attention for each head dim.

A head is split into one or two runs of lanes, since Triton needs powers of two: 80 is 64 + 16,
because padding it to 128 would be 60 % more work. All tiles compile for sm_90 without spilling
registers and fit an SM's shared memory (tests/core/kernels/test_compiled.py); which of them is
fastest is not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """Rows of queries and keys per tile, warps per program, pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """Tiles of the three kernels; `dv` is None if one launch writes dk and dv together."""

    forward: Tile
    dq: Tile
    dk: Tile
    dv: Tile | None = None


TILES = {
    32: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 4, 3), Tile(64, 128, 8, 2)),
    64: Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    80: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2)),
    # two 128 x 256 accumulators exceed the registers, so dk and dv have a launch each (5 products)
    256: Tiles(Tile(128, 32, 8, 3), Tile(128, 32, 8, 2), Tile(32, 128, 8, 2), Tile(64, 128, 8, 2)),
}
"""Head dim -> tiles for bf16 and fp16; a head dim in between takes those of the next larger."""
TILES_FP32 = Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1))
"""Tiles for fp32, any head dim. It has no tensor-core product and is for comparison only."""


def tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """The tiles for a head dim of at most 256."""
    if dtype == torch.float32:
        return TILES_FP32
    return TILES[next(d for d in TILES if d >= head_dim)]


def lanes(head_dim: int) -> tuple[int, int]:
    """Widths of a head's two runs of lanes, padded to powers of two >= 16; the second may be 0."""
    first = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest > 0 else 0


def constants(head_dim: int, dtype: torch.dtype) -> dict[str, int | str]:
    """The compile-time constants of the kernels, except tile sizes."""
    first, second = lanes(head_dim)
    precision = "ieee" if dtype == torch.float32 else "tf32"  # the latter has no effect in 16 bits
    return {"DIM": head_dim, "LANES1": first, "LANES2": second, "PRECISION": precision}
