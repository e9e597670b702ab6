"""Estimate the device memory of training and evaluation, and the largest micro-batch that fits.

A parameter takes memory for a master weight, two moments and a gradient in fp32, and a copy in the
compute dtype. A token takes memory for what autograd saves in every block, and for the block that
is being differentiated. Logits are never in memory all at once (kernels.cross_entropy).

If n processes share one copy of the state, each has 1/n of it in fp32. In addition, each process
holds the gathered parameters of the current block and of the next block, and the whole
gradient of a block until it has been summed. The same holds for embedding and unembedding.

The estimates assume the fused kernels on a CUDA device. They were compared with the tensors that
autograd saves (tests/core/kernels/triton_bodies/model.py), but not yet measured on a GPU.
"""

from __future__ import annotations

from pythia_core.config import ModelConfig, RunConfig
from pythia_core.training.execution import EAGER, Execution

GIB = 2**30
CONTEXT_BYTES = 1.0e9
"""Device memory of a process before its first tensor: context, libraries, workspaces."""
RESERVE = 2 * GIB
"""Allowance for the CUDA context, library workspaces, one chunk of logits, and rounding."""
RESIDUAL_BYTES = 4
"""Bytes per element of the fp32 residual stream."""
INFERENCE_BYTES = 2.0e9
"""Bytes of the activations during the evaluation of a checkpoint."""
INFERENCE_LOGIT_ROWS = 8192
"""Tokens whose fp32 logits, with copies, are in memory at a time during evaluation."""


def state_bytes(model: ModelConfig, precision: str, processes: int = 1) -> int:
    """Return the bytes of a model's weights, gradients, moments and copies during training.

    Args:
        processes: number of processes that share the state; each then has this many bytes.
    """
    if processes > 1:  # FSDP makes the copies when it gathers the parameters
        return -(-16 * model.n_params // processes)
    return model.n_params * (16 if precision == "fp32" else 18)


def gathered_bytes(model: ModelConfig, precision: str) -> int:
    """Return the bytes of parameters and gradients that are not sharded, at their peak."""
    size, embedding = _size(precision), model.vocab_size * model.d_model
    block = model.n_params_non_embedding // model.n_layers
    blocks = block * (2 * size + size + 4)  # this one, the next, a gradient, and its fp32 copy
    # the unembedding stays from the forward to the backward; then its gradient, or the
    # embedding's, which is in fp32
    return blocks + embedding * (size + max(size + 4, 12))


def saved_activation_bytes(model: ModelConfig, execution: Execution, precision: str) -> int:
    """Return the bytes per token that all blocks together save for the backward pass."""
    stream = RESIDUAL_BYTES * model.d_model
    layer = stream if execution.recompute else stream + _block_bytes(model, precision)
    return model.n_layers * layer


def _block_bytes(model: ModelConfig, precision: str) -> int:
    """Return the bytes per token that a block saves for the backward pass, without its input."""
    # two norms; q, k, v; attention; the hidden layer of the MLP before and after the activation
    return _size(precision) * model.d_model * (2 + 3 + 1 + 4 + 4)


def _size(precision: str) -> int:
    """Return the bytes per element of a tensor in the compute dtype."""
    return 4 if precision == "fp32" else 2


def activation_bytes_per_token(model: ModelConfig, execution: Execution, precision: str) -> int:
    """Return the peak memory of activations and gradients, in bytes per token."""
    size, d = _size(precision), model.d_model
    again = _block_bytes(model, precision) if execution.recompute else 0
    # gradients of the residual stream, of the branches, and of the MLP's hidden layer before and
    # after GELU, at a time when only one of its two values is still in memory
    gradients = RESIDUAL_BYTES * d + size * d * (1 + 4)
    return saved_activation_bytes(model, execution, precision) + again + gradients


def training_bytes(
    model: ModelConfig, tokens: int, execution: Execution, precision: str, processes: int = 1
) -> int:
    """Return the estimated device memory of training, in bytes, with `tokens` per micro-batch.

    Args:
        processes: number of processes, with a device each, that share the state.
    """
    unembedding = 4 * model.vocab_size * model.d_model  # its gradient before it is added
    whole = unembedding if processes == 1 else gathered_bytes(model, precision)
    activations = tokens * activation_bytes_per_token(model, execution, precision)
    return RESERVE + state_bytes(model, precision, processes) + whole + activations


def smallest_training_bytes(config: RunConfig, execution: Execution, processes: int = 1) -> int:
    """Return the least device memory that a run needs, with micro-batches of one row."""
    return training_bytes(
        config.model, config.data.seq_len, execution, config.train.precision, processes
    )


def smallest_world(
    config: RunConfig, device_bytes: float, execution: Execution = EAGER
) -> int | None:
    """Return the smallest number of processes with which a run fits devices of `device_bytes`.

    It divides the batch size. None: not even one process per row is enough.
    """
    batch = config.train.batch_size
    worlds = (n for n in range(1, batch + 1) if batch % n == 0)
    fits = (n for n in worlds if smallest_training_bytes(config, execution, n) <= device_bytes)
    return next(fits, None)


def largest_micro_batch(
    model: ModelConfig,
    seq_len: int,
    bytes_free: int,
    execution: Execution,
    precision: str,
    processes: int = 1,
) -> int:
    """Return how many rows of `seq_len` tokens fit into one micro-batch; 0 if no row fits.

    `bytes_free` is the device memory that is free before the model is allocated, and `processes`
    the number of processes that share the state.
    """
    left = bytes_free - training_bytes(model, 0, execution, precision, processes)
    return max(0, left // (seq_len * activation_bytes_per_token(model, execution, precision)))


def run_bytes(config: RunConfig, execution: Execution) -> int:
    """Return the estimated device memory of training a run, in bytes."""
    rows = config.train.micro_batch or config.train.batch_size
    tokens = rows * config.data.seq_len
    return training_bytes(config.model, tokens, execution, config.train.precision)


def inference_bytes(model: ModelConfig) -> float:
    """Return the estimated device memory of evaluating a checkpoint, in bytes."""
    logits = 12 * INFERENCE_LOGIT_ROWS * model.vocab_size
    return CONTEXT_BYTES + 8 * model.n_params + logits + INFERENCE_BYTES
