"""The model equals transformers' GPT-NeoX; sizes and initialization are the official ones."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import peer_of, tiny

from pythia_core import hf
from pythia_core.config import ModelConfig, TrainConfig
from pythia_core.errors import ConfigError
from pythia_core.model import SHAPE_6_9B, GPTNeoX, init_deviations
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.optimizer import FlatAdamW, FlatParameters, clip_factor, is_decayed

TOTALS = {  # total and non-embedding parameters of the released models
    "14m": (14_067_712, 1_189_888),
    "31m": (30_494_720, 4_739_072),
    "70m": (70_426_624, 18_915_328),
    "160m": (162_322_944, 85_056_000),
    "410m": (405_334_016, 302_311_424),
    "1b": (1_011_781_632, 805_736_448),
    "1.4b": (1_414_647_808, 1_208_602_624),
    "2.8b": (2_775_208_960, 2_517_652_480),
    "6.9b": (6_857_302_016, 6_444_163_072),
    "12b": (11_846_072_320, 11_327_027_200),
}


def random_model(config: ModelConfig, seed: int = 0) -> GPTNeoX:
    """A model with random LayerNorms and biases too, so that every term of the forward matters."""
    model = GPTNeoX(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("gelu", ["tanh", "erf"])
@pytest.mark.parametrize(("heads", "rotary"), [(2, 0.25), (2, 1.0), (4, 0.5), (8, 0.25), (1, 0.25)])
def test_logits_and_gradients_equal_transformers(
    parallel: bool, gelu: str, heads: int, rotary: float
) -> None:
    config = tiny(n_heads=heads, rotary_fraction=rotary, parallel_residual=parallel, gelu=gelu)
    model = random_model(config)
    peer = peer_of(model)
    rows = torch.randint(0, 97, (3, 18), generator=torch.Generator().manual_seed(1))
    ours, theirs = model(rows[:, :-1]), peer(input_ids=rows[:, :-1]).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    model.loss(rows).backward()
    targets = rows[:, 1:].flatten()
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), targets).backward()
    expected = {hf.our_name(n): p.grad for n, p in peer.named_parameters()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 256])
def test_official_head_dims_equal_transformers(head_dim: int) -> None:
    model = random_model(tiny(n_layers=1, d_model=head_dim, n_heads=1))
    ids = torch.randint(0, 97, (2, 9))
    torch.testing.assert_close(model(ids), peer_of(model)(input_ids=ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", sorted(TOTALS))
def test_parameter_counts_of_the_official_sizes(size: str) -> None:
    config = OFFICIAL_SIZES[size].model()
    with torch.device("meta"):
        model = GPTNeoX(config)
    total = sum(p.numel() for p in model.parameters())
    embeddings = model.embed_in.weight.numel() + model.embed_out.weight.numel()
    assert (total, total - embeddings) == TOTALS[size]
    assert (config.n_params, config.n_params_non_embedding) == TOTALS[size]


@pytest.mark.parametrize("init", ["small_wang", "normal_scaled", "like_6.9b"])
def test_initialization_rules(init: str) -> None:
    config = tiny(n_layers=4, d_model=256, n_heads=4, vocab_size=2048, init=init)
    model = GPTNeoX(config)
    model.init_weights(seed=7)
    small, output = math.sqrt(2 / (5 * 256)), 2 / (4 * math.sqrt(256))
    if init == "normal_scaled":
        small, output = 0.02, 0.02 / math.sqrt(8)
    elif init == "like_6.9b":  # by the released shape and weights (EleutherAI/pythia#135)
        small, output = small * 0.02 / 0.009882, output * 0.0025 / 0.00097656
    layer = model.layers[1]
    for weight, std in (
        (model.embed_in.weight, small),
        (model.embed_out.weight, small),
        (layer.attention.query_key_value.weight, small),
        (layer.mlp.dense_h_to_4h.weight, small),
        (layer.attention.dense.weight, output),
        (layer.mlp.dense_4h_to_h.weight, output),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert layer.mlp.dense_4h_to_h.bias.abs().max() == 0
    assert layer.input_layernorm.weight.eq(1).all()
    twin = GPTNeoX(config)
    twin.init_weights(seed=7)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_enlarged_initialization_is_that_of_6_9b_at_its_shape() -> None:
    size = OFFICIAL_SIZES["6.9b"]
    assert (size.d_model, size.n_layers) == SHAPE_6_9B
    used = init_deviations(size.init, *SHAPE_6_9B)
    assert init_deviations("like_6.9b", *SHAPE_6_9B) == pytest.approx(used)


def test_future_tokens_do_not_change_the_past() -> None:
    model = random_model(tiny())
    ids = torch.randint(0, 97, (1, 12))
    changed = ids.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 97
    torch.testing.assert_close(model(ids)[0, :8], model(changed)[0, :8])


@pytest.mark.parametrize("parallel", [True, False])
def test_states_at_some_positions_are_those_of_all_positions(parallel: bool) -> None:
    model = random_model(tiny(parallel_residual=parallel))
    ids = torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(1))
    at = torch.tensor([59, 0, 21, 21])
    expected = model.hidden(ids).flatten(0, 1)[at]
    torch.testing.assert_close(model.hidden(ids, at=at), expected, atol=1e-5, rtol=1e-5)


def test_bf16_copies_are_used_and_close() -> None:
    config = tiny(vocab_size=256)
    wide, narrow = random_model(config), random_model(config)
    FlatParameters(narrow, torch.bfloat16)
    rows = torch.randint(0, 256, (4, 17))
    exact, rounded = wide.loss(rows), narrow.loss(rows)
    assert exact.item() != rounded.item()
    assert rounded.item() == pytest.approx(exact.item(), abs=0.02)


def test_one_update_equals_adamw_on_the_named_groups() -> None:
    model, peer = random_model(tiny()), random_model(tiny())
    eps = 1e-4  # above the rounding noise of gradients that are zero by symmetry (key biases)
    train = TrainConfig(steps=10, batch_size=2, lr_max=1e-2, eps=eps)
    flat = FlatParameters(model, torch.float32)
    optimizer = FlatAdamW(flat, train)
    named = dict(peer.named_parameters())
    decayed = [p for n, p in named.items() if is_decayed(n)]
    rest = [p for n, p in named.items() if not is_decayed(n)]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=eps,
    )
    for step in range(3):
        rows = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(step))
        flat.grad.zero_()
        reference.zero_grad()
        model.loss(rows).backward()
        peer.loss(rows).backward()
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
        assert flat.norm().item() == pytest.approx(norm.item(), rel=1e-5)
        optimizer.step(1e-2, step + 1, clip_factor(flat.norm(), 0.5))
        reference.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, named[name], atol=1e-6, rtol=1e-5, msg=name)


def test_biases_and_layer_norms_are_not_decayed() -> None:
    undecayed = {n for n, _ in random_model(tiny()).named_parameters() if not is_decayed(n)}
    assert {n.split(".")[-1] for n in undecayed if "norm" not in n} == {"bias"}
    assert "final_layer_norm.weight" in undecayed
    assert is_decayed("embed_in.weight")
    assert is_decayed("embed_out.weight")


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="n_heads=5 does not divide d_model=64"):
        tiny(n_heads=5)
    with pytest.raises(ConfigError, match="2 problems"):
        tiny(gelu="relu", init="zeros")
    with pytest.raises(ConfigError, match="at most max_seq_len=32"):
        random_model(tiny())(torch.zeros(1, 33, dtype=torch.int64))
