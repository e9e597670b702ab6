"""Every Triton kernel compiles to good code for an H100 (sm_90); this needs no GPU.

The tools in Triton's wheel disassemble the machine code: nothing spills to local memory, the shared
memory of an SM suffices, global memory is accessed in 16-byte pieces where the layout allows it,
and attention, the only kernel that multiplies matrices, uses Hopper's warpgroup instructions.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pythia_core.suite import OFFICIAL_SIZES

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)


@dataclass(frozen=True)
class MachineCode:
    """The resources that a compiled kernel uses, and its machine code."""

    registers: int
    stack: int
    local: int
    shared: int
    sass: str = field(repr=False)

    def widths(self, instruction: str) -> set[int]:
        """The sizes in bytes of all accesses by an instruction, LDG or STG."""
        found = re.findall(rf"\b{instruction}\.E((?:\.[A-Z0-9]+)*)", self.sass)
        sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
        return {next((sizes[p] for p in f.split(".") if p in sizes), 4) for f in found}


def compiled(
    kernel: Callable[..., Any],
    types: dict[str, str],
    constants: dict[str, Any],
    warps: int,
    stages: int = 3,
    fuse: bool = True,
) -> MachineCode:
    """Compile for sm_90.

    Args:
        types: argument name -> type, for arguments that are not constants. Pointers, and integers
            marked "i32:16", are declared divisible by 16, as they are for the official shapes.
        fuse: whether the compiler may fuse products and sums (launch option enable_fp_fusion).
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: "constexpr" if name in constants else types[name].removesuffix(":16")
        for name in kernel.arg_names
    }
    even = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name not in constants and (types[name].startswith("*") or types[name].endswith(":16"))
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=even)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": fuse}
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin = Path(os.environ["CUBIN_DIR"]) / f"{kernel.__name__}.cubin"
    cubin.write_bytes(binary.asm["cubin"])

    command = [tool, "-res-usage", "-sass", cubin]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output))
    shared = binary.metadata.shared  # requested at launch, so not in the file
    return MachineCode(*(int(usage[k]) for k in ("REG", "STACK", "LOCAL")), shared, output)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBIN_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def check(machine: MachineCode, wide: bool = True) -> None:
    assert machine.stack == machine.local == 0, f"spills: {machine}"
    assert machine.shared <= 227 * 1024
    if wide:
        assert 16 in machine.widths("LDG") and 16 in machine.widths("STG")


@pytest.mark.parametrize("pointer", ["*bf16", "*fp16", "*fp32"])
def test_cross_entropy(pointer: str) -> None:
    from pythia_core.kernels.cross_entropy_triton import BLOCK, WARPS, cross_entropy_kernel

    types = {
        "logits_ptr": pointer,
        "targets_ptr": "*i64",
        "losses_ptr": "*fp32",
        "row_stride": "i32:16",
        "vocab": "i32:16",
    }
    check(compiled(cross_entropy_kernel, types, {"BLOCK": BLOCK}, WARPS))


OFFICIAL_HEAD_DIMS = sorted({s.d_model // s.n_heads for s in OFFICIAL_SIZES.values()})
HEAD_DIMS = pytest.mark.parametrize("head_dim", OFFICIAL_HEAD_DIMS)
ATTENTION = [*(("bf16", dim) for dim in OFFICIAL_HEAD_DIMS), ("fp32", 256)]
"""fp16 compiles like bf16; in fp32, smaller heads need less than 256."""


@HEAD_DIMS
def test_rotation(head_dim: int) -> None:
    from pythia_core.kernels import rotary_triton as t

    rows, lanes = t.tile(head_dim // 8)
    constants = {"BACK": False, "HALF": head_dim // 8, "LANES": lanes, "ROWS": rows}
    types = {
        "qkv_ptr": "*bf16",
        "cos_ptr": "*fp32",
        "sin_ptr": "*fp32",
        **dict.fromkeys(("n_rows", "seq"), "i32:16"),
        "heads": "i32",
        **dict.fromkeys(("stride_batch", "stride_seq", "stride_head", "stride_part"), "i32:16"),
    }
    machine = compiled(t.rotate_kernel, types, constants, t.WARPS)
    # half the lanes of 32 are 8 bytes; those of 80 (10 lanes) never start on 16 bytes
    check(machine, wide=head_dim in (64, 128, 256))
    if head_dim == 32:
        assert 8 in machine.widths("STG")


@HEAD_DIMS
def test_packing_of_gradients(head_dim: int) -> None:
    from pythia_core.kernels import rotary_triton as t

    half, rest = head_dim // 8, head_dim - head_dim // 4
    rows, lanes = t.tile(half)
    constants = {
        "DIM": head_dim,
        "DIM_LANES": triton.next_power_of_2(head_dim),
        "HALF": half,
        "LANES": lanes,
        "REST": rest,
        "REST_LANES": triton.next_power_of_2(rest),
        "ROWS": rows,
        "PARTIALS": t.PARTIALS,
    }
    types = {
        **dict.fromkeys(("dq_ptr", "dk_ptr", "dv_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("cos_ptr", "sin_ptr", "partial_ptr"), "*fp32"),
        **dict.fromkeys(("n_tokens", "seq"), "i32:16"),
        "heads": "i32",
        **{f"{g}_{s}": "i32:16" for g in ("dq", "dk", "dv") for s in ("batch", "seq", "head")},
    }
    check(compiled(t.pack_kernel, types, constants, t.WARPS))


OFFICIAL_WIDTHS = sorted({s.d_model for s in OFFICIAL_SIZES.values()})
WIDTHS = pytest.mark.parametrize(
    ("d", "residual"), [*((d, True) for d in OFFICIAL_WIDTHS), (768, False), (5120, False)]
)


@pytest.mark.parametrize(
    ("d", "residual"), [(128, True), (2560, True), (5120, True), (5120, False)]
)
def test_layer_norm_pair(d: int, residual: bool) -> None:
    from pythia_core.kernels.layer_norm_triton import pair_kernel, tile

    rows, lanes, warps = tile(d)
    types = {
        **dict.fromkeys(("x_ptr", "z_ptr", "mean_ptr", "rstd_ptr"), "*fp32"),
        **dict.fromkeys(("a_ptr", "b_ptr", "y1_ptr", "y2_ptr"), "*bf16"),
        **{f"{kind}{i}_ptr": "*fp32" for kind in ("weight", "bias") for i in (1, 2)},
        "n": "i32:16",
        "d": "i32:16",
        "eps": "fp32",
    }
    constants = {"RESIDUAL": residual, "ROWS": rows, "LANES": lanes}
    check(compiled(pair_kernel, types, constants, warps))


@WIDTHS
def test_layer_norm_pair_backward(d: int, residual: bool) -> None:
    from pythia_core.kernels.layer_norm_triton import PARTIALS, backward_tile, pair_backward_kernel

    rows, lanes, more, warps = backward_tile(d)
    types = {
        **dict.fromkeys(("z_ptr", "dz_ptr", "dx_ptr", "mean_ptr", "rstd_ptr"), "*fp32"),
        **dict.fromkeys(("dy1_ptr", "dy2_ptr", "dbranch_ptr"), "*bf16"),
        **dict.fromkeys(("weight1_ptr", "weight2_ptr", "partial_ptr"), "*fp32"),
        "n": "i32:16",
        "d": "i32:16",
    }
    constants = {"RESIDUAL": residual, "PARTIALS": PARTIALS, "ROWS": rows}
    constants |= {"LANES1": lanes, "LANES2": more}
    machine = compiled(pair_backward_kernel, types, constants, warps, fuse=False)
    check(machine)
    assert not re.search(r"\bFFMA", machine.sass), "recomputation rounds where this would not"


@pytest.mark.parametrize("tanh", [True, False], ids=["tanh", "erf"])
def test_bias_gelu(tanh: bool) -> None:
    from pythia_core.kernels import gelu_triton as t

    types = {
        **dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), "*bf16"),
        **dict.fromkeys(("bias_ptr", "partial_ptr"), "*fp32"),
        "n": "i32:16",
        "d": "i32:16",
    }
    constants = {"TANH": tanh, "ROWS": t.ROWS, "LANES": t.LANES}
    check(compiled(t.bias_gelu_kernel, types, constants, t.WARPS))
    constants["PARTIALS"] = t.PARTIALS
    check(compiled(t.bias_gelu_backward_kernel, types, constants, t.WARPS))


@pytest.mark.parametrize("pointer", ["*bf16", "*fp32"])
def test_adamw(pointer: str) -> None:
    from pythia_core.kernels.adamw_triton import BLOCK, WARPS, adamw_kernel

    masters = ("params_ptr", "grad_ptr", "exp_avg_ptr", "exp_avg_sq_ptr")
    types = {
        **dict.fromkeys(masters, "*fp32"),
        "copy_ptr": pointer,
        **dict.fromkeys(("factor_ptr", "skip_ptr"), "*fp32"),
        **dict.fromkeys(("n", "n_decayed"), "i64:16"),  # 12B needs more than 31 bits
        **dict.fromkeys(("keep", "rate", "root", "new1", "new2", "eps"), "fp32"),
    }
    machine = compiled(adamw_kernel, types, {"COPY": pointer != "*fp32", "BLOCK": BLOCK}, WARPS)
    check(machine)
    assert machine.widths("STG") == {16} and machine.widths("LDG") == {4, 16}  # 4: factor and skip


@pytest.mark.parametrize(("kind", "head_dim"), ATTENTION)
def test_attention(kind: str, head_dim: int) -> None:
    """Every launch for a head dim: forward, dk and dv (separate at 256), dq."""
    from pythia_core.kernels import attention_triton as backward
    from pythia_core.kernels.attention_tiles import constants, tiles
    from pythia_core.kernels.attention_triton import forward_kernel

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    parts = ("q", "k", "v", "out", "dout", "dqkv")
    types = {
        **{f"{part}_ptr": f"*{kind}" for part in parts},
        **dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32"),
        **dict.fromkeys(("seq", "stride_batch", "stride_seq", "stride_head"), "i32:16"),
        "heads": "i32",
        "scale": "fp32",
    }
    found = tiles(head_dim, dtype)
    launches = [
        (forward_kernel, found.forward, {}),
        (backward.dkv_kernel, found.dk, {"DK": True, "DV": found.dv is None}),
        (backward.dq_kernel, found.dq, {}),
    ]
    if found.dv:
        launches.append((backward.dkv_kernel, found.dv, {"DK": False, "DV": True}))
    for kernel, tile, more in launches:
        all_constants = constants(head_dim, dtype) | {"QUERIES": tile.queries, "KEYS": tile.keys}
        machine = compiled(kernel, types, all_constants | more, tile.warps, tile.stages)
        check(machine, wide=False)
        if kind == "fp32":
            continue
        assert "HGMMA" in machine.sass and not re.search(r"\bHMMA", machine.sass)
        assert "LDGSTS.E.BYPASS.128" in machine.sass or "LDGSTS.E.128" in machine.sass


@pytest.mark.parametrize("head_dim", [80, 256])
def test_attention_delta(head_dim: int) -> None:
    from pythia_core.kernels.attention_triton import delta_kernel

    lanes = triton.next_power_of_2(head_dim)
    types = {
        **dict.fromkeys(("out_ptr", "dout_ptr"), "*bf16"),
        "delta_ptr": "*fp32",
        **dict.fromkeys(("n_rows", "seq"), "i32:16"),
        "heads": "i32",
    }
    constants = {"DIM": head_dim, "LANES": lanes, "ROWS": 4096 // lanes}
    machine = compiled(delta_kernel, types, constants, 4)
    check(machine, wide=False)
    assert 16 in machine.widths("LDG")
