"""GPT-NeoX, the architecture of Pythia (paper section 2.3; GPT-NeoX v1.0).

GPT-NeoX differs from a plain GPT in five ways:

- Attention and MLP read the same residual stream in parallel, each through its own LayerNorm.
- The first quarter of each query and key head has a rotary position embedding.
- Embedding and unembedding are not tied, and the unembedding has no bias.
- There is no dropout.
- Attention crosses the ends of documents.

In shapes, B is the batch size, T the number of tokens per row and d the width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError
from pythia_core.kernels import FAST, Ops, rotary_tables

Rotary = tuple[Tensor, Tensor]
"""cos and sin of the angle of every position and rotated pair, each (T, rotary_dims / 2), fp32."""
Attend = Callable[..., Tensor]
"""Maps (qkv, cos, sin), and optionally a buffer for the gradient of qkv's bias, to the output of
attention (see kernels.attention)."""
Initializer = Callable[[str, Tensor, torch.Generator], None]
"""Fills a parameter in place, given (name, parameter, generator)."""
Branches = tuple[()] | tuple[Tensor, Tensor]
"""The outputs of a block's attention and MLP, each (B*T, d), not yet added to the residual stream;
() if there are none to add."""


class Cache(Protocol):
    """Replaces the model's attention. KVCache (evaluation.generate) also attends to earlier tokens;
    PrefixTrees (evaluation.scoring) attends within trees of texts."""

    @property
    def n_slots(self) -> int: ...

    def attend(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...


class Linear(nn.Module):
    """A linear map with bias that computes with `weight_c` and `bias_c`, in the compute dtype.

    In fp32, `weight_c` and `bias_c` are the parameters. In half precision, the optimizer sets
    `weight_c` and `bias_c` to copies (pythia_core.training.optimizer.FlatParameters).

    Attributes:
        grads: buffers that receive the gradients (see kernels.linear); () to use autograd's.
    """

    def __init__(self, d_in: int, d_out: int, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.copies: dict[str, Tensor] = {}
        self.grads: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, fused: bool = False) -> Tensor:
        """Compute the map; with `fused`, the next operation adds the bias's gradient to `grads`."""
        grads = self.grads[:1] if fused else self.grads
        return self.ops.linear(x, self.weight, self.bias, self.weight_c, self.bias_c, grads)

    @property
    def weight_c(self) -> Tensor:
        """The weight in the compute dtype."""
        return self.copies.get("weight", self.weight)

    @property
    def bias_c(self) -> Tensor:
        """The bias in the compute dtype."""
        return self.copies.get("bias", self.bias)


class Attention(nn.Module):
    """A block's attention, with the projections before and after it."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.heads, self.head_dim = config.n_heads, config.head_dim
        self.query_key_value = Linear(config.d_model, 3 * config.d_model, ops)
        self.dense = Linear(config.d_model, config.d_model, ops)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        batch: int,
        attend: Attend,
        at: Tensor | None = None,
        fused: bool = False,
    ) -> Tensor:
        """Compute attention and its projections.

        Args:
            x: the block's input after LayerNorm, (B*T, d).
            at: rows of the output to return, int64[n]; default: all B*T rows.
            fused: whether `attend` also computes the gradient of qkv's bias, if it has a buffer.
        """
        qkv = self.query_key_value(x, fused)  # (B*T, 3*d), grouped per head as [q | k | v]
        qkv = qkv.view(batch, -1, self.heads, 3, self.head_dim)
        bias_grad = self.query_key_value.grads[1:] if fused and torch.is_grad_enabled() else ()
        out = attend(qkv, *rotary, *bias_grad).flatten(0, 1)  # (B*T, d)
        return self.dense(out if at is None else out[at])


class MLP(nn.Module):
    """A block's MLP: a linear map, GELU, and another linear map."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.gelu_form = config.gelu
        self.dense_h_to_4h = Linear(config.d_model, config.d_ff, ops)
        self.dense_4h_to_h = Linear(config.d_ff, config.d_model, ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.ops.gelu(self.dense_h_to_4h(x), self.gelu_form))  # (B*T, d)

    def fused(self, x: Tensor) -> Tensor:
        """Compute `forward` with one kernel for bias and GELU; call no hooks of `dense_h_to_4h`."""
        up = self.dense_h_to_4h
        product = self.ops.linear(x, up.weight, None, up.weight_c, None, up.grads)
        hidden = self.ops.bias_gelu(product, up.bias, self.gelu_form, up.bias_c)
        return self.dense_4h_to_h(hidden)


class LayerNorm(nn.Module):
    """A LayerNorm of the fp32 residual stream; the caller chooses the dtype of the result."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.eps = config.layer_norm_eps
        self.weight = nn.Parameter(torch.empty(config.d_model))
        self.bias = nn.Parameter(torch.empty(config.d_model))

    def forward(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps, dtype)


class Block(nn.Module):
    r"""One layer of the model, with attention and MLP in parallel or in sequence.

    parallel (Pythia):  x --+--> LN --> attention --+--> out = x + attention(LN1 x) + mlp(LN2 x)
                            +--> LN --> MLP --------+
                            +-----------------------+

    sequential:         x = x + attention(LN1 x);  out = x + mlp(LN2 x)
    """

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.parallel = config.parallel_residual
        self.input_layernorm = LayerNorm(config, ops)
        self.post_attention_layernorm = LayerNorm(config, ops)
        self.attention = Attention(config, ops)
        self.mlp = MLP(config, ops)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        batch: int,
        dtype: torch.dtype,
        attend: Attend,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return the block's output (B*T, d) for the residual stream `x` (B*T, d).

        Args:
            dtype: dtype of the LayerNorms' results.
            at: rows of the output to compute, int64[n]; default: all rows.
        """
        attended = self.attention(self.input_layernorm(x, dtype), rotary, batch, attend, at=at)
        x = x if at is None else x[at]
        if self.parallel:
            return x + (attended + self.mlp(self.post_attention_layernorm(x, dtype)))
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x, dtype))

    def fused(
        self,
        x: Tensor,
        branches: Branches,
        rotary: Rotary,
        batch: int,
        dtype: torch.dtype,
        attend: Attend,
    ) -> tuple[Tensor, Branches]:
        """Compute a parallel block in fewer kernels than `forward`.

        The block's input is x + (branches[0] + branches[1]), or `x` without branches.

        Returns:
            The block's input, and the block's branches, which are not yet added.
        """
        norm1, norm2 = self.input_layernorm, self.post_attention_layernorm
        norms = (norm1.weight, norm1.bias, norm2.weight, norm2.bias)
        x, y1, y2 = self.ops.layer_norm_pair(x, branches, norms, norm1.eps, dtype)
        attended = self.attention(y1, rotary, batch, attend, fused=True)
        return x, (attended, self.mlp.fused(y2))


SHAPE_6_9B = (4096, 32)
"""Width and layers of the 6.9B model."""


def init_deviations(rule: str, d: int, n_layers: int) -> tuple[float, float]:
    """Return the standard deviations of initial weights (see `pythia_init`) for width `d`.

    Returns:
        The deviation of most matrices, and the deviation of the output maps of attention and MLP.
    """
    if rule == "normal_scaled":
        return 0.02, 0.02 / math.sqrt(2 * n_layers)
    std, std_output = math.sqrt(2 / (5 * d)), 2 / (n_layers * math.sqrt(d))
    if rule == "like_6.9b":
        used, usual = (init_deviations(r, *SHAPE_6_9B) for r in ("normal_scaled", "small_wang"))
        std, std_output = std * used[0] / usual[0], std_output * used[1] / usual[1]
    return std, std_output


def pythia_init(config: ModelConfig) -> Initializer:
    """Return the initializer for the rule `config.init`.

    Every rule sets biases to 0, LayerNorm weights to 1, and matrices to normal values of mean 0.
    The output maps (attention output, MLP down) and the other matrices (embeddings, QKV, MLP up)
    have different standard deviations. For width d and L layers:

    - small_wang (released 14M to 2.8B): output maps 2/(L sqrt(d)), others sqrt(2/(5d)).
    - normal_scaled (released 6.9B and 12B): output maps 0.02/sqrt(2L), others 0.02. The configs of
      6.9B and 12B name no rule, so GPT-NeoX's default applies.
    - like_6.9b (for small models): small_wang times 2.56 for output maps and 2.02 for others. The
      factors are normal_scaled / small_wang at the shape of 6.9B.
    """
    std, std_output = init_deviations(config.init, config.d_model, config.n_layers)

    def init(name: str, p: Tensor, generator: torch.Generator) -> None:
        """Fill the parameter `p` with its initial values in place."""
        if name.endswith("bias"):
            p.zero_()
        elif "layernorm" in name or "layer_norm" in name:
            p.fill_(1.0)
        else:
            output = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            p.normal_(0.0, std_output if output else std, generator=generator)

    return init


class GPTNeoX(nn.Module):
    """A Pythia model. The weights are undefined until they are loaded or set by `init_weights`.

    Args:
        ops: the model's operations (pythia_core.kernels).
        init: the initializer; default: `pythia_init(config)`.
    """

    def __init__(
        self, config: ModelConfig, ops: Ops = FAST, init: Initializer | None = None
    ) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.init = init or pythia_init(config)
        self.compute_dtype = torch.float32
        self.recompute = False  # see pythia_core.training.execution
        self.embed_in = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, ops) for _ in range(config.n_layers))
        self.final_layer_norm = LayerNorm(config, ops)
        self.embed_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.embed_out_copy: Tensor | None = None
        self.embed_out_grad: Tensor | None = None
        self._tables: dict[tuple[int, torch.device], Rotary] = {}

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initialize all parameters from one seed, in the order of `named_parameters`."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            self.init(name, p, generator)

    def rotary(self, seq_len: int, device: torch.device) -> Rotary:
        """Return cos and sin of the rotary angles for the first `seq_len` positions."""
        key = (seq_len, device)
        if key not in self._tables:
            c = self.config
            self._tables = {key: rotary_tables(seq_len, c.rotary_dims, c.rotary_base, device)}
        return self._tables[key]

    def hidden(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        at: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the hidden states after the final LayerNorm, (B, T, d), for token ids (B, T).

        Args:
            cache: replaces the attention, e.g. to also attend to preceding tokens (see Cache).
            at: indices into the B*T positions, int64[n]. The result is then (n, d), and the last
                block computes little more than these positions.
            dtype: dtype of the result.

        Raises:
            ConfigError: the rows are longer than `max_seq_len`.
        """
        batch, seq_len = ids.shape
        if seq_len > self.config.max_seq_len:
            raise ConfigError(
                f"rows of {seq_len} tokens are too long for this model: they may have at most "
                f"max_seq_len={self.config.max_seq_len} tokens"
            )
        rotary = self.rotary(cache.n_slots if cache else seq_len, ids.device)
        x = self.embed_in(ids).flatten(0, 1).to(self.compute_dtype).float()
        # (B*T, d): embeddings are rounded to the compute dtype; the residual stream stays fp32
        fused = self._fused(x)
        branches: Branches = ()
        for number, layer in enumerate(cast("list[Block]", self.layers)):
            attend = partial(cache.attend, number) if cache else self.ops.attention
            if at is not None and number == self.config.n_layers - 1:
                x = _residual_add(x, branches)
                x = layer(x, rotary, batch, self.compute_dtype, attend, at)
                return self.final_layer_norm(x, dtype)
            if self.recompute and torch.is_grad_enabled():
                run = partial(_finish_block, layer) if fused else layer
                x = checkpoint(
                    run, x, rotary, batch, self.compute_dtype, attend,
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
            elif fused:
                x, branches = layer.fused(x, branches, rotary, batch, self.compute_dtype, attend)
            else:
                x = layer(x, rotary, batch, self.compute_dtype, attend)
        x = self.final_layer_norm(_residual_add(x, branches), dtype)
        return x.view(batch, seq_len, -1)

    def _fused(self, x: Tensor) -> bool:
        """Return whether to compute the blocks with `Block.fused`.

        Fused blocks skip the hooks of some modules, so a model with hooks is not fused.
        """
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.layers.modules())
        return self.ops.fuses(x) and self.config.parallel_residual and not hooked

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., vocab_size), in fp32, for hidden states (..., d)."""
        return self.embed_out(hidden).float()

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, vocab_size), in fp32, for token ids (B, T)."""
        return self.logits(self.hidden(ids))

    def loss(self, rows: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next token, in nats, over all positions of `rows`.

        Args:
            rows: token ids, (B, T + 1) int64; the last token of a row is only a target.
        """
        hidden = self.hidden(rows[:, :-1], dtype=self.compute_dtype).flatten(0, 1)
        weight = self.embed_out.weight
        weight_c = weight if self.embed_out_copy is None else self.embed_out_copy
        targets = rows[:, 1:].flatten()
        return self.ops.linear_cross_entropy(hidden, weight, targets, weight_c, self.embed_out_grad)


def _residual_add(x: Tensor, branches: Branches) -> Tensor:
    """Return `x` plus the branches, if there are any, in fp32."""
    return x + (branches[0].float() + branches[1]) if branches else x


def _finish_block(layer: Block, x: Tensor, *rest: Any) -> Tensor:
    """Compute `layer` with `Block.fused`, and return the residual stream after the block."""
    return _residual_add(*layer.fused(x, (), *rest))
