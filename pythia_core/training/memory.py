"""Device memory: what training and measuring take, counted, and how many rows fit.

Per parameter: master, two moments and gradient in fp32, and a copy in the compute dtype. Per token:
what autograd keeps of every block, and what one block needs on top while it is differentiated. The
loss never holds all logits (kernels.cross_entropy). The counts are those of the fused path on a
CUDA device, checked against what autograd saves (tests/core/kernels/triton_bodies/model.py), but
not yet measured on a card.
"""

from __future__ import annotations

from pythia_core.config import ModelConfig, RunConfig
from pythia_core.training.execution import Execution

GIB = 2**30
CONTEXT_BYTES = 1.0e9
"""What a process takes on the device before its first tensor: context, libraries, workspaces."""
RESERVE = 2 * GIB
"""For the CUDA context, workspaces of libraries, the chunk of logits and rounding."""
RESIDUAL_BYTES = 4
"""Bytes per element of the residual stream, which is fp32."""
MEASURING_BYTES = 2.0e9
"""Activations while a checkpoint is measured."""
MEASURING_LOGIT_ROWS = 8192
"""Tokens whose logits are held while a checkpoint is measured: in fp32, its copies included."""


def state_bytes(model: ModelConfig, precision: str) -> int:
    """Masters, moments, gradients and compute copies: 18 bytes per parameter, 16 in fp32."""
    return model.n_params * (16 if precision == "fp32" else 18)


def kept_bytes(model: ModelConfig, execution: Execution, precision: str) -> int:
    """Bytes per token that the blocks keep for the backward."""
    stream = RESIDUAL_BYTES * model.d_model
    layer = stream if execution.recompute else stream + _inside(model, precision)
    return model.n_layers * layer


def _inside(model: ModelConfig, precision: str) -> int:
    """Of one block: both norms; q, k, v; the attention's output; the MLP's two hidden layers."""
    return _size(precision) * model.d_model * (2 + 3 + 1 + 4 + 4)


def _size(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def token_bytes(model: ModelConfig, execution: Execution, precision: str) -> int:
    """Bytes per token of the micro-batch at the peak: early in the backward of a block."""
    size, d = _size(precision), model.d_model
    again = _inside(model, precision) if execution.recompute else 0
    # beyond what is kept: gradients of the stream, of the branches, and of the MLP's hidden layer
    # both before and after GELU, while of the values only one is left
    gradients = RESIDUAL_BYTES * d + size * d * (1 + 4)
    return kept_bytes(model, execution, precision) + again + gradients


def training_bytes(model: ModelConfig, tokens: int, execution: Execution, precision: str) -> int:
    """Everything that training takes with micro-batches of `tokens` tokens."""
    unembedding = 4 * model.vocab_size * model.d_model  # its gradient before it is added
    activations = tokens * token_bytes(model, execution, precision)
    return RESERVE + state_bytes(model, precision) + unembedding + activations


def largest_micro_batch(
    model: ModelConfig, seq_len: int, bytes_free: int, execution: Execution, precision: str
) -> int:
    """Most rows of `seq_len` tokens whose forward and backward fit into the bytes that are free
    before the model is there; 0 if not even one does."""
    left = bytes_free - training_bytes(model, 0, execution, precision)
    return max(0, left // (seq_len * token_bytes(model, execution, precision)))


def run_bytes(config: RunConfig, execution: Execution) -> int:
    """Everything that training a run takes."""
    rows = config.train.micro_batch or config.train.batch_size
    tokens = rows * config.data.seq_len
    return training_bytes(config.model, tokens, execution, config.train.precision)


def measuring_bytes(model: ModelConfig) -> float:
    """Everything that measuring a checkpoint takes: fp32 weights twice, logits, activations."""
    logits = 12 * MEASURING_LOGIT_ROWS * model.vocab_size
    return CONTEXT_BYTES + 8 * model.n_params + logits + MEASURING_BYTES
