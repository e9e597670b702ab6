"""How much memory of a device training takes, counted, and the rows that fit into it.

Per parameter: master, two moments and gradient in fp32, and a copy in the compute dtype. Per token:
what autograd keeps of every block, and what one block needs more while it is differentiated. The
loss never holds all logits (kernels.cross_entropy). Counts are of the fused path on a CUDA device;
an allocator's rounding comes on top, hence the reserve.

Checked against what autograd really saves (tests/core/kernels/triton_bodies/model.py); on a card
not yet measured.
"""

from __future__ import annotations

from pythia_core.config import ModelConfig
from pythia_core.training.execution import Execution

GIB = 2**30
RESERVE = 2 * GIB
"""For the CUDA context, workspaces of libraries, the chunk of logits and rounding."""
RESIDUAL_BYTES = 4
"""Of an element of the residual stream, which is fp32."""


def state_bytes(model: ModelConfig, precision: str) -> int:
    """Masters, moments, gradients and compute copies: 18 bytes a parameter, 16 in fp32."""
    return model.n_params * (16 if precision == "fp32" else 18)


def kept_bytes(
    model: ModelConfig, execution: Execution, precision: str, residual_bytes: int = RESIDUAL_BYTES
) -> int:
    """Bytes a token that the blocks keep for the backward."""
    stream = residual_bytes * model.d_model
    layer = stream if execution.recompute else stream + _inside(model, precision)
    return model.n_layers * layer


def _inside(model: ModelConfig, precision: str) -> int:
    """Of one block: both norms; q, k, v; what attention made of them; the MLP's two middles."""
    return _size(precision) * model.d_model * (2 + 3 + 1 + 4 + 4)


def _size(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def token_bytes(
    model: ModelConfig, execution: Execution, precision: str, residual_bytes: int = RESIDUAL_BYTES
) -> int:
    """Bytes a token of the micro-batch takes at the peak: early in the backward of a block."""
    size, d = _size(precision), model.d_model
    again = _inside(model, precision) if execution.recompute else 0
    # beyond what is kept: gradients of the stream, of the branches, and of the MLP's middle both
    # before and after GELU, while of the values only one is left
    gradients = residual_bytes * d + size * d * (1 + 4)
    return kept_bytes(model, execution, precision, residual_bytes) + again + gradients


def largest_micro_batch(
    model: ModelConfig,
    seq_len: int,
    bytes_free: int,
    execution: Execution,
    precision: str,
    residual_bytes: int = RESIDUAL_BYTES,
) -> int:
    """Most rows of `seq_len` tokens that a forward and backward fits; 0 if not even one does.

    Args:
        bytes_free: on the device before the model is there.
    """
    left = bytes_free - RESERVE - state_bytes(model, precision)
    left -= 4 * model.vocab_size * model.d_model  # the unembedding's gradient before it is added
    row = seq_len * token_bytes(model, execution, precision, residual_bytes)
    return max(0, left // row)
