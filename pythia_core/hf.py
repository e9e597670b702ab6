"""Weights in and out of `transformers`' GPT-NeoX naming. The map is a table; layouts are equal."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pythia_core.config import ModelConfig
from pythia_core.errors import CheckpointError

HEAD_NAMES = ("embed_out.weight", "lm_head.weight")
"""The unembedding's name: before and after transformers 5.13."""
_IGNORED = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")


def from_hf_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A GPTNeoXForCausalLM state dict under our names.

    Raises:
        CheckpointError: keys that are not GPT-NeoX's, all of them listed.
    """
    ours, unknown = {}, []
    for name, tensor in state.items():
        if name in HEAD_NAMES:
            ours["embed_out.weight"] = tensor
        elif name.startswith("gpt_neox."):
            if not name.endswith(_IGNORED):
                ours[name.removeprefix("gpt_neox.")] = tensor
        else:
            unknown.append(name)
    if unknown or "embed_out.weight" not in ours:
        raise CheckpointError(
            f"not a GPT-NeoX language model: unknown keys {unknown[:5]}, unembedding "
            f"{'found' if 'embed_out.weight' in ours else 'missing'}"
        )
    return ours


def to_hf_state(state: dict[str, Tensor], head_name: str = "lm_head.weight") -> dict[str, Tensor]:
    """Our state dict under `transformers` names."""
    return {
        head_name if name == "embed_out.weight" else f"gpt_neox.{name}": tensor
        for name, tensor in state.items()
    }


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of `transformers.GPTNeoXConfig` for the same architecture."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": "gelu_new" if config.gelu == "tanh" else "gelu",
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_base,
        "max_position_embeddings": config.max_seq_len,
        "layer_norm_eps": config.layer_norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
