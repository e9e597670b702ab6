"""Names and settings of `transformers`' GPT-NeoX: the map of weights as a table, config.json.

Tensors have the same layout on both sides, QKV per head included, so that nothing is permuted. What
the config.json of a released model says and what was trained differ in the form of GELU; see
`model_config`.

Not here: files (hf).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pythia_core.config import INITS, ModelConfig
from pythia_core.errors import CheckpointError, ConfigError, one_of, raise_all
from pythia_core.hub import CONFIG
from pythia_core.scales import OFFICIAL_SIZES

PARTS = (
    "input_layernorm",
    "post_attention_layernorm",
    "attention.query_key_value",
    "attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)
"""Modules of a layer with a weight and a bias: named alike here, in transformers and GPT-NeoX."""
LAYER_NAMES = tuple(f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias"))
WEIGHT_MAP: dict[str, str | None] = {
    "gpt_neox.embed_in.weight": "embed_in.weight",
    **{f"gpt_neox.layers.{{}}.{name}": f"layers.{{}}.{name}" for name in LAYER_NAMES},
    "gpt_neox.layers.{}.attention.bias": None,  # the causal mask, stored by old versions
    "gpt_neox.layers.{}.attention.masked_bias": None,
    "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": None,
    "gpt_neox.final_layer_norm.weight": "final_layer_norm.weight",
    "gpt_neox.final_layer_norm.bias": "final_layer_norm.bias",
    "lm_head.weight": "embed_out.weight",  # its name in memory since transformers 5.13
    "embed_out.weight": "embed_out.weight",  # its name in files
}
"""transformers' name -> ours, `{}` for the layer; None: computed from the config, not read."""
_INVERSE = {ours: theirs for theirs, ours in WEIGHT_MAP.items() if ours}
_LAYER = re.compile(r"(?<=\blayers\.)\d+")

GELU_FORMS = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""transformers' `hidden_act` -> ModelConfig.gelu."""
GELU_CHOICES = ("as_trained", "as_declared")


def our_name(theirs: str) -> str | None:
    """Our name of a tensor of GPTNeoXForCausalLM; None for one that is computed.

    Raises:
        KeyError: not a tensor of that model.
    """
    layer = _LAYER.search(theirs)
    name = WEIGHT_MAP[_LAYER.sub("{}", theirs)]
    return name.format(layer[0]) if name and layer else name


def from_hf_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A GPTNeoXForCausalLM state dict under our names.

    Raises:
        CheckpointError: keys that are not GPT-NeoX's.
    """
    ours, unknown = {}, []
    for theirs, tensor in state.items():
        try:
            name = our_name(theirs)
        except KeyError:
            unknown.append(theirs)
            continue
        if name:
            ours[name] = tensor
    if unknown or "embed_out.weight" not in ours:
        raise CheckpointError(
            f"not a GPT-NeoX language model: unknown keys {unknown[:5]}, unembedding "
            f"{'found' if 'embed_out.weight' in ours else 'missing'}"
        )
    return ours


def to_hf_state(state: Mapping[str, Tensor], head_name: str = "lm_head.weight") -> dict[str, Any]:
    """Our state dict under `transformers` names."""

    def theirs(name: str) -> str:
        layer = _LAYER.search(name)
        pattern = _INVERSE[_LAYER.sub("{}", name)]
        return pattern.format(layer[0]) if layer else pattern

    return {
        head_name if name == "embed_out.weight" else theirs(name): tensor
        for name, tensor in state.items()
    }


# --- configs ---------------------------------------------------------------------------------


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


def model_config(declared: dict[str, Any], gelu: str = "as_trained") -> ModelConfig:
    """The architecture that a config.json declares.

    Args:
        gelu: "as_trained": the tanh form where the config says "gelu", unless we wrote it and say
            otherwise; or "as_declared".

    Raises:
        CheckpointError: another architecture, or a setting that our model does not have.
        ConfigError: an unknown value of `gelu`.
    """
    if gelu not in GELU_CHOICES:
        raise ConfigError(one_of(gelu, GELU_CHOICES, "gelu"))
    kind = declared.get("model_type")
    if kind != "gpt_neox" or "GPTNeoXForCausalLM" not in declared.get("architectures", ()):
        raise CheckpointError(
            f"this is a {kind!r} with architectures {declared.get('architectures')}, accepted is "
            "'gpt_neox' with GPTNeoXForCausalLM: only models of Pythia's architecture can be read"
        )
    rope = declared.get("rope_parameters") or {}
    problems = [
        f"{key}={declared[key]!r}, accepted: {only!r}"
        for key, only in {
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_scaling": None,
            "intermediate_size": 4 * (declared.get("hidden_size") or 0),
        }.items()
        if declared.get(key, only) != only
    ]
    if rope.get("rope_type", "default") != "default":
        problems.append(f"rope_type={rope['rope_type']!r}, accepted: 'default'")
    act = declared.get("hidden_act", "gelu")
    if act not in GELU_FORMS:
        problems.append(one_of(act, GELU_FORMS, "hidden_act"))
    shape = {
        ours: declared.get(theirs)
        for ours, theirs in {
            "n_layers": "num_hidden_layers",
            "d_model": "hidden_size",
            "n_heads": "num_attention_heads",
            "vocab_size": "vocab_size",
            "max_seq_len": "max_position_embeddings",
        }.items()
    }
    problems += [f"no whole number {n} (got {v!r})" for n, v in shape.items() if type(v) is not int]
    raise_all(CheckpointError, problems, CONFIG)
    form = GELU_FORMS[act]
    if form == "erf" and gelu == "as_trained":
        form = declared.get("trained_gelu", "tanh")
    twin = [s for s in OFFICIAL_SIZES.values() if (s.n_layers, s.d_model, s.n_heads) ==
            (shape["n_layers"], shape["d_model"], shape["n_heads"])]  # fmt: skip
    init = declared.get("trained_init", twin[0].init if twin else INITS[0])
    try:
        return ModelConfig(
            **shape,
            rotary_fraction=rope.get("partial_rotary_factor", declared.get("rotary_pct", 0.25)),
            rotary_base=rope.get("rope_theta", declared.get("rotary_emb_base", 10_000.0)),
            parallel_residual=declared.get("use_parallel_residual", True),
            layer_norm_eps=declared.get("layer_norm_eps", 1e-5),
            gelu=form,
            init=init,
        )
    except ConfigError as error:
        raise CheckpointError(f"{CONFIG}: {error}") from error


def declared_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What config.json says of a model: hf_config, and what only training knew."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        **hf_config(config),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "trained_gelu": config.gelu,
        "trained_init": config.init,
    }
