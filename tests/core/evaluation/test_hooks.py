"""Hooks record the model's outputs, change only those of the given modules, and are removed."""

from __future__ import annotations

import pytest
import torch

from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError
from pythia_core.evaluation import hooks
from pythia_core.model import GPTNeoX


def model_of(**shape: object) -> GPTNeoX:
    given = {"n_layers": 3, "d_model": 48, "n_heads": 3, "vocab_size": 64, "max_seq_len": 24}
    model = GPTNeoX(ModelConfig(**{**given, **shape})).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        p.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.15, generator=generator)
    return model


IDS = torch.randint(64, (4, 20), generator=torch.Generator().manual_seed(1))
OTHER = torch.randint(64, (4, 20), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("parallel", [True, False])
def test_the_residual_is_the_sum_of_all_outputs_added_to_it(parallel: bool) -> None:
    model = model_of(parallel_residual=parallel)
    with hooks.record(model, ["embed_in", "layers.*", "layers.*.attention", "layers.*.mlp"]) as s:
        hidden = model.hidden(IDS)
    assert next(iter(s)) == "embed_in" and len(s) == 1 + 3 * 3
    x = s["embed_in"]
    for layer in range(3):
        assert s[f"layers.{layer}.mlp"].shape == (4, 20, 48)
        x = x + s[f"layers.{layer}.attention"] + s[f"layers.{layer}.mlp"]
        torch.testing.assert_close(x, s[f"layers.{layer}"])
    torch.testing.assert_close(model.final_layer_norm(x.flatten(0, 1)).view(4, 20, -1), hidden)


@pytest.mark.parametrize("shape", [{}, {"rotary_fraction": 1.0}, {"n_heads": 6, "n_layers": 1}])
def test_attention_patterns_are_those_the_model_uses(shape: dict) -> None:
    model = model_of(**shape)
    names = ["layers.*.attention", "layers.*.attention.query_key_value"]
    with hooks.record(model, names) as seen, hooks.record_attention(model) as patterns:
        model.hidden(OTHER)
        model.hidden(IDS)  # only the last pass is recorded
    c = model.config
    assert len(patterns) == c.n_layers
    for layer, pattern in enumerate(patterns):
        assert pattern.shape == (4, c.n_heads, 20, 20)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(4, c.n_heads, 20))
        assert (pattern.triu(1) == 0).all()
        qkv = seen[f"layers.{layer}.attention.query_key_value"]
        v = qkv.view(4, 20, c.n_heads, 3, c.head_dim)[:, :, :, 2].transpose(1, 2)
        mixed = (pattern @ v).transpose(1, 2).flatten(2).flatten(0, 1)
        written = model.layers[layer].attention.dense(mixed).view(4, 20, -1)
        torch.testing.assert_close(written, seen[f"layers.{layer}.attention"])


def with_first_positions_of(clean: torch.Tensor, n: int) -> hooks.PatchFunction:
    """A patch that replaces the first n positions with those of `clean`."""
    return lambda out: torch.cat([clean[:, :n], out[:, n:]], 1)


def plus(vector: torch.Tensor) -> hooks.PatchFunction:
    return lambda out: out + vector


@pytest.mark.parametrize("layer", [0, 2])
def test_patching_in_the_residual_stream_restores_the_logits(layer: int) -> None:
    model = model_of()
    clean, module = model(IDS), f"layers.{layer}"
    assert not torch.allclose(clean, model(OTHER), atol=0.1)
    with hooks.record(model, [module]) as seen:
        model(IDS)
    with hooks.patch(model, module, with_first_positions_of(seen[module], 20)):
        assert model(OTHER).equal(clean)
    half = with_first_positions_of(seen[module], 10)
    with hooks.patch(model, module, half):
        patched = model(OTHER)
    torch.testing.assert_close(patched[:, :10], clean[:, :10])  # later positions have no influence
    assert not torch.allclose(patched[:, 10:], clean[:, 10:], atol=0.1)


def test_an_added_vector_changes_only_later_layers() -> None:
    model = model_of()
    clean = model(IDS)
    direction = torch.randn(48, generator=torch.Generator().manual_seed(3))
    with hooks.patch(model, "layers.*", plus(torch.zeros(48))):
        assert model(IDS).equal(clean)
    with hooks.record(model, ["layers.*"]) as before:
        model(IDS)
    steered = hooks.patch(model, "layers.1", plus(2.0 * direction))
    with steered, hooks.record(model, ["layers.*"]) as after:
        assert not model(IDS).allclose(clean)
    assert after["layers.0"].equal(before["layers.0"])
    torch.testing.assert_close(after["layers.1"], before["layers.1"] + 2 * direction)
    assert model(IDS).equal(clean)  # the patch is gone


def test_hooks_are_removed_even_after_an_error() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match=r"a tensor \(4, 20, 1\) .* for layers\.0\.mlp"):
        with hooks.patch(model, "layers.0.mlp", lambda out: out[..., :1]):
            model(IDS)
    with hooks.record(model, ["layers.*"]), hooks.record_attention(model):
        pass
    modules = list(model.modules())
    assert not [m for m in modules if m._forward_hooks or m._forward_pre_hooks]


def test_unknown_modules_are_refused_and_the_known_ones_listed() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match=r"unknown module 'blocks\.\*'.*layers\.\*\.attention"):
        hooks.match_modules(model, ["layers.0", "blocks.*"])
    assert hooks.match_modules(model, ["layers.*"]) == ["layers.0", "layers.1", "layers.2"]
    assert hooks.match_modules(model, ["layers.1.mlp", "embed_in"]) == ["embed_in", "layers.1.mlp"]


def test_attention_patterns_need_a_pass_without_a_cache() -> None:
    from pythia_core.evaluation.generate import generate

    model = model_of()
    with pytest.raises(ConfigError, match="without a cache"), hooks.record_attention(model):
        generate(model, [[1, 2, 3]], 2)


def test_gradients_flow_through_recorded_outputs() -> None:
    model = model_of().requires_grad_(True)
    with hooks.record(model, ["layers.0"]) as seen:
        loss = model.loss(IDS)
    (gradient,) = torch.autograd.grad(loss, seen["layers.0"])
    assert gradient.shape == (4, 19, 48) and gradient.abs().max() > 0
