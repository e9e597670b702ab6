"""Tile sizes, warps and pipeline stages of the Triton attention for each head dim.

The number of lanes in a Triton block is a power of two. So a head is split into one or two blocks:
80 dims become blocks of 64 and 16 lanes, because a single block of 128 would be 60 % more work.
With our tiles, all kernels compile for sm_90 without spilling registers and fit the shared memory
of an SM (tests/core/kernels/test_compiled.py). Whether other tiles are faster is not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """The launch settings of an attention kernel; a tile has `queries` queries and `keys` keys."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """The tiles of the forward kernel, the dq kernel, and the kernel that computes dk and dv.

    If `dv` is None, one launch with the tile `dk` computes dk and dv. Otherwise, dk and dv have a
    launch and a tile each.
    """

    forward: Tile
    dq: Tile
    dk: Tile
    dv: Tile | None = None


TILES = {
    32: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 4, 3), Tile(64, 128, 8, 2)),
    64: Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    80: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2)),
    # two 128 x 256 accumulators exceed the registers, so dk and dv have a launch each (5 products);
    # 64 queries for dv do not spill with Triton 3.7, but do with 3.6
    256: Tiles(Tile(128, 32, 8, 3), Tile(128, 32, 8, 2), Tile(32, 128, 8, 2), Tile(32, 128, 8, 2)),
}
"""Maps head dims to tiles for bf16 and fp16; other head dims take the next larger entry."""
TILES_FP32 = Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1))
"""Tiles for fp32, at any head dim. fp32 uses no tensor cores and serves only for comparison."""


def tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """Return the tiles for a head dim, which must be at most 256, and the dtype of q, k and v."""
    if dtype == torch.float32:
        return TILES_FP32
    return TILES[next(d for d in TILES if d >= head_dim)]


def lanes(head_dim: int) -> tuple[int, int]:
    """Return the widths of the two blocks of a head, e.g. (64, 16) for 80 dims.

    A width is a power of two and at least 16. The second width is 0 if one block is enough.
    """
    first = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest > 0 else 0


def constants(head_dim: int, dtype: torch.dtype) -> dict[str, int | str]:
    """Return the compile-time constants of the kernels, by name, without the tile sizes."""
    first, second = lanes(head_dim)
    precision = "ieee" if dtype == torch.float32 else "tf32"  # the latter has no effect in 16 bits
    return {"DIM": head_dim, "LANES1": first, "LANES2": second, "PRECISION": precision}
