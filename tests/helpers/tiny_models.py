"""Small random models, whether two are equal, and the same model as `transformers` has it."""

from __future__ import annotations

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pythia_core import hf
from pythia_core.config import ModelConfig
from pythia_core.model import GPTNeoX


def tiny(**overrides) -> ModelConfig:
    """Return the config of a tiny model, with some fields replaced."""
    shape = {"n_layers": 2, "d_model": 64, "n_heads": 2, "vocab_size": 97, "max_seq_len": 32}
    return ModelConfig(**{**shape, **overrides})


def random_model(config: ModelConfig, seed: int = 0) -> GPTNeoX:
    """Return a model with random weights, including biases and LayerNorms, without gradients."""
    model = GPTNeoX(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1, generator=generator)
    return model.eval().requires_grad_(False)


def assert_equal(ours: GPTNeoX, theirs: GPTNeoX) -> None:
    """Assert that two models have the same tensors, bit for bit."""
    expected = ours.state_dict()
    assert expected.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def peer_of(model: GPTNeoX) -> GPTNeoXForCausalLM:
    """Return the same model, with the same weights, as implemented by transformers."""
    config = GPTNeoXConfig(**hf.hf_config(model.config), attn_implementation="eager")
    peer = GPTNeoXForCausalLM(config)
    missing, unexpected = peer.load_state_dict(hf.to_hf_state(model.state_dict()), strict=False)
    assert not unexpected
    assert not [name for name in missing if "rotary" not in name]
    return peer
