"""Models survive a round trip through transformers; damaged folders are reported, never loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pythia_book.released import download
from safetensors.torch import load_file, save_file
from tiny_models import assert_equal, random_model, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from pythia_core import hf
from pythia_core.config import ModelConfig
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import CheckpointError, ConfigError
from pythia_core.evaluation.generate import generate
from pythia_core.model import GPTNeoX
from pythia_core.suite import OFFICIAL_SIZES, Size


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change) -> None:
    """Pass the tensors of a single-file folder through `change`."""
    path = folder / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    save_file(change(dict(tensors)), path, {"format": "pt"})


def without_hashes(folder: Path) -> Path:
    """Save a single-file folder's weights as other tools do, which write no hashes."""
    rewrite(folder, dict)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model in a folder of another tool."""
    return without_hashes(hf.save(random_model(tiny()), tmp_path / "model"))


# --- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d_model", "heads", "vocab"),
    [
        *((2 * dim, 2, 97) for dim in (32, 64, 80, 128, 256)),
        *((16, 2, vocab) for vocab in (50_304, 50_432, 50_688)),
    ],
)
def test_ours_to_transformers_and_back(
    d_model: int, heads: int, vocab: int, tmp_path: Path
) -> None:
    model = random_model(tiny(n_layers=1, d_model=d_model, n_heads=heads, vocab_size=vocab))
    peer, report = GPTNeoXForCausalLM.from_pretrained(
        hf.save(model, tmp_path / "ours"), output_loading_info=True
    )
    assert not any(report.values()), report
    ids = torch.randint(0, vocab, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids), peer(input_ids=ids).logits, atol=1e-5, rtol=0)
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    written = peer.generate(ids, **how)[:, ids.shape[1] :].tolist()
    assert generate(model, ids.tolist(), 8) == written
    peer.save_pretrained(tmp_path / "theirs")
    back, info = hf.load(tmp_path / "theirs")
    assert_equal(model, back)
    assert back.config == model.config
    assert info.stored == ("F32",)


def test_the_same_text_is_generated(tmp_path: Path) -> None:
    tokenizer = train_bpe(["the cat sat on the mat and the dog on the log"] * 50, 300)
    model = random_model(tiny(vocab_size=384, gelu="erf"))
    folder = hf.save(model, tmp_path / "model", tokenizer=tokenizer)
    peer = AutoModelForCausalLM.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    ids = words("the cat", return_tensors="pt").input_ids
    assert ids[0].tolist() == tokenizer.encode("the cat").ids
    theirs = peer.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=1)
    ours = ids
    while ours.shape[1] < theirs.shape[1]:
        ours = torch.cat([ours, model(ours)[:, -1:].argmax(-1)], 1)
    assert tokenizer.decode(ours[0].tolist()) == words.decode(theirs[0])
    assert words.eos_token_id == peer.generation_config.eos_token_id == 0


@pytest.mark.parametrize("shard_bytes", [20_000, 100_000])
def test_sharded_folders(shard_bytes: int, tmp_path: Path) -> None:
    model = random_model(tiny())
    folder = hf.save(model, tmp_path / "model", shard_bytes=shard_bytes)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(p.stat().st_size < 1.1 * max(shard_bytes, 4 * 64 * 256) for p in shards)
    assert_equal(model, hf.load(folder)[0])
    assert_equal(model, _from_peer(GPTNeoXForCausalLM.from_pretrained(folder), model.config))


def _from_peer(peer: GPTNeoXForCausalLM, config: ModelConfig) -> GPTNeoX:
    model = GPTNeoX(config)
    model.load_state_dict({hf.our_name(n): tensor for n, tensor in peer.state_dict().items()})
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_or_preserved(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(tiny())
    folder = hf.save(model, tmp_path / "half", dtype=dtype)
    full, info = hf.load(folder)
    assert info.stored == ({torch.float16: "F16", torch.bfloat16: "BF16"}[dtype],)
    assert_equal(full, hf.load(folder, dtype=None)[0].to(dtype).float())
    for name, p in full.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, model.state_dict()[name].to(dtype).float())
    again = hf.save(hf.load(folder, dtype=None)[0], tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_old_buffers_and_both_unembedding_names_are_accepted(saved: Path) -> None:
    """Old files also contain the causal mask and the rotary frequencies."""
    expected = hf.load(saved)[0]

    def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
        tensors["gpt_neox.layers.1.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        tensors["gpt_neox.layers.1.attention.masked_bias"] = torch.tensor(-1e9)
        tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
        return tensors

    rewrite(saved, older)
    assert_equal(expected, hf.load(saved)[0])


def test_a_revision_is_a_subfolder(tmp_path: Path) -> None:
    models = {step: random_model(tiny(), step) for step in (0, 3000)}
    for step, model in models.items():
        hf.save(model, tmp_path / f"step{step}")
    model, info = hf.load(tmp_path, "step3000")
    assert_equal(model, models[3000])
    assert info.step == 3000 and hf.load(tmp_path / "step0")[1].step == 0
    assert info.sha256() != hf.load(tmp_path, "step0")[1].sha256()
    with pytest.raises(CheckpointError, match=r"no config\.json for revision 'step7'.*step0"):
        hf.load(tmp_path, "step7")
    with pytest.raises(CheckpointError, match="revision 'step5'"):
        hf.load(tmp_path / "step0", "step5")


# --- as declared and as trained --------------------------------------------------------------


def released(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a model of an official size as released: the config declares "gelu", and no more."""
    monkeypatch.setitem(OFFICIAL_SIZES, "tiny", Size("tiny", 2, 64, 2, 1e-3, 97))
    saved = without_hashes(hf.save(random_model(tiny(max_seq_len=2048)), folder))
    declared = json.loads((saved / "config.json").read_text())
    del declared["trained_gelu"], declared["trained_init"]
    (saved / "config.json").write_text(json.dumps({**declared, "hidden_act": "gelu"}))
    return saved


def test_gelu_as_trained_and_as_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = released(tmp_path / "pythia", monkeypatch)
    trained, declared_model = hf.load(saved)[0], hf.load(saved, gelu="as_declared")[0]
    assert (trained.config.gelu, declared_model.config.gelu) == ("tanh", "erf")
    ids = torch.arange(9)[None]
    peer = GPTNeoXForCausalLM.from_pretrained(saved)(input_ids=ids).logits
    torch.testing.assert_close(declared_model(ids), peer, atol=1e-5, rtol=0)
    assert (trained(ids) - peer).abs().max() > 1e-5
    with pytest.raises(ConfigError, match="unknown gelu 'tanh'; accepted: as_trained"):
        hf.load(saved, gelu="tanh")


@pytest.mark.parametrize(
    "change",
    [{"rotary_pct": 0.5}, {"max_position_embeddings": 32}, {"use_parallel_residual": False}],
)
def test_only_models_of_pythia_get_the_tanh_form_unasked(
    change: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = released(tmp_path / "mine", monkeypatch)
    edit(saved, **change)
    model = hf.load(saved)[0]
    assert model.config.gelu == "erf"
    ids = torch.arange(9)[None]
    peer = GPTNeoXForCausalLM.from_pretrained(saved)(input_ids=ids).logits
    torch.testing.assert_close(model(ids), peer, atol=1e-5, rtol=0)
    edit(saved, trained_gelu="tanh")
    assert hf.load(saved)[0].config.gelu == "tanh"


def test_sizes_and_names_of_the_official_models() -> None:
    """All ten sizes have the tanh form, and no size with another vocabulary."""
    for size in OFFICIAL_SIZES.values():
        declared = {**hf.declared_config(size.model()), "hidden_act": "gelu"}
        del declared["trained_gelu"]
        assert hf.model_config(declared) == size.model()
        assert hf.model_config({**declared, "vocab_size": 32_000}).gelu == "erf"


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_saved_folders_record_the_gelu_and_init_of_training(gelu: str, tmp_path: Path) -> None:
    config = tiny(gelu=gelu, init="normal_scaled")
    folder = hf.save(random_model(config), tmp_path / "model")
    assert hf.load(folder)[0].config == hf.load(folder, gelu="as_declared")[0].config == config


def test_rotary_as_trained_rounds_phases(tmp_path: Path) -> None:
    model = random_model(tiny(d_model=128, max_seq_len=2048))
    saved = hf.save(model, tmp_path / "model")
    exact, rounded = hf.load(saved)[0], hf.load(saved, rotary="as_trained")[0]
    device = torch.device("cpu")
    cos, rounded_cos = exact.rotary(2048, device)[0], rounded.rotary(2048, device)[0]
    assert cos.shape == rounded_cos.shape and rounded_cos.dtype == torch.float32
    far = (cos - rounded_cos).abs().amax(1)
    assert far[:16].max() < 0.01 and far[1024:].max() > 0.3
    ids = torch.arange(20)[None]
    torch.testing.assert_close(exact(ids), rounded(ids), atol=0.02, rtol=0)
    assert not torch.equal(exact(ids), rounded(ids)), "the forward reads these tables"
    with pytest.raises(ConfigError, match="unknown rotary 'fp16'"):
        hf.load(saved, rotary="fp16")


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' .*only models of Pythia's architecture"),
        (
            {"architectures": ["GPTNeoXForSequenceClassification"]},
            "architectures .'GPTNeoXForSequenceClassification'.;",
        ),
        ({"tie_word_embeddings": True, "attention_bias": False}, "2 problems"),
        ({"intermediate_size": 100}, "intermediate_size=100, expected 256"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"hidden_act": "relu"}, "unknown hidden_act 'relu'"),
        ({"num_hidden_layers": None}, "n_layers must be an integer"),
        ({"num_attention_heads": 5}, "n_heads=5 does not divide"),
        ({"architectures": None}, "model_type 'gpt_neox' and architectures None; only"),
        ({"architectures": "GPTNeoXForCausalLM"}, "architectures GPTNeoXForCausalLM; only"),
        ({"rotary_pct": "0.25"}, "rotary_pct must be a number, got '0.25'"),
        ({"rotary_emb_base": float("inf")}, "rotary_emb_base must be a number, got inf"),
        ({"rope_parameters": [1]}, r"rope_parameters=.1., expected an object"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rotary_emb_base must be a number, got 'x'"),
        ({"hidden_size": {}}, "hidden_size must be an integer, got {}"),
        ({"hidden_act": ["gelu"]}, "unknown hidden_act .'gelu'.;"),
        ({"use_parallel_residual": "no"}, "use_parallel_residual must be true or false, got 'no'"),
        ({"num_hidden_layers": 10**9}, "declares 1000000000 layers, but there are 28 tensors"),
        ({"hidden_size": 10**12, "intermediate_size": 4 * 10**12}, "declares impossible sizes"),
        ({"vocab_size": 10**12}, r"embed_in.weight has shape \(97, 64\), but the config needs"),
    ],
)
def test_other_architectures_are_refused(saved: Path, changes: dict, message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        hf.load(saved)


def test_null_in_the_config_means_the_default(saved: Path) -> None:
    """As transformers and other tools write it."""
    expected = hf.load(saved)[0]
    declared = json.loads((saved / "config.json").read_text())
    optional = ("hidden_act", "rotary_pct", "rotary_emb_base", "use_parallel_residual")
    optional += ("layer_norm_eps", "intermediate_size", "tie_word_embeddings", "trained_init")
    for key in (*optional, "rope_parameters", "rope_scaling", "attention_bias"):
        edit(saved, **{**declared, key: None})
        assert_equal(expected, hf.load(saved)[0])
    edit(saved, **declared, rope_parameters={"rope_type": None, "rope_theta": None})
    assert_equal(expected, hf.load(saved)[0])


@pytest.mark.parametrize("value", [None, 5, -1, 0.5, 1e300, "x", [], [1], {}, {"a": 1}, True])
def test_any_value_in_the_config_gives_a_model_or_a_named_error(saved: Path, value: Any) -> None:
    declared = json.loads((saved / "config.json").read_text())
    for key in (*declared, "rope_parameters", "rope_scaling", "attention_bias"):
        edit(saved, **{**declared, key: value})
        try:
            assert hf.load(saved)[0].config
        except CheckpointError as error:
            assert "config" in str(error) or "tensor" in str(error)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b"\xff\xfe{", b"[" * 100_000, '{"a": "\u00e9"}'.encode("latin-1")]
)
def test_a_damaged_config(saved: Path, raw: bytes) -> None:
    (saved / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hf.load(saved)


def test_a_manifest_of_another_tool_is_not_read(saved: Path) -> None:
    expected = hf.load(saved)[0]
    (saved / "manifest.json").write_text('{"models": []}')
    assert_equal(expected, hf.load(saved)[0])
    assert list(hf.read_settings(saved)) == ["config.json", "generation_config.json"]


def test_a_config_in_utf_8_with_a_byte_order_mark(saved: Path) -> None:
    raw = (saved / "config.json").read_bytes()
    expected = hf.load(saved)[0]
    (saved / "config.json").write_bytes(b"\xef\xbb\xbf" + raw)
    assert_equal(expected, hf.load(saved)[0])


def test_every_changed_bit_of_a_safetensors_header_gives_the_model_or_an_error(
    saved: Path,
) -> None:
    """Bits of the tensors themselves are covered by hashes (of the hub, a manifest or `save`)."""
    path = saved / "model.safetensors"
    expected, good = hf.load(saved)[0], path.read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.choice(8 * length, 150, replace=False).tolist():
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            assert_equal(expected, hf.load(saved)[0])
        except CheckpointError as error:
            refused += "model.safetensors" in str(error) or "tensor" in str(error)
    assert refused > 135  # the metadata is not read
    for cut in (0, 1, 7, 8, 9, length - 1, length, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            hf.load(saved)
    path.write_bytes((2**62).to_bytes(8, "little") + good[8:])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        hf.load(saved)


@pytest.mark.parametrize("shard_bytes", [50_000, hf.SHARD_BYTES])
def test_every_changed_bit_of_a_saved_folder_gives_the_model_or_names_the_file(
    shard_bytes: int, tmp_path: Path
) -> None:
    tokenizer = train_bpe(["some words to train on"] * 9, 270)
    model = random_model(tiny(vocab_size=384))
    folder = hf.save(model, tmp_path / "model", shard_bytes=shard_bytes, tokenizer=tokenizer)
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for _ in range(20):
            bad = bytearray(good)
            bad[rng.integers(len(good))] ^= 1 << rng.integers(8)
            path.write_bytes(bad)
            try:
                assert_equal(model, hf.load(folder)[0])
            except CheckpointError as error:
                assert path.name in str(error)
            else:
                assert path.suffix == ".safetensors", "only the metadata may change"
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")):
            hf.load(folder)
        path.write_bytes(good)
    assert_equal(model, hf.load(folder)[0])


def test_hashes_are_the_same_in_every_copy_and_gone_when_transformers_saves(tmp_path: Path) -> None:
    model = random_model(tiny())
    first = hf.save(model, tmp_path / "0") / "model.safetensors"
    for copy in "12345678":
        again = hf.save(model, tmp_path / copy) / "model.safetensors"
        assert again.read_bytes() == first.read_bytes()
    edit(tmp_path / "1", layer_norm_eps=0.5)
    with pytest.raises(
        CheckpointError, match=r"config\.json is missing, or was changed or damaged"
    ):
        hf.load(tmp_path / "1")
    GPTNeoXForCausalLM.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "1")
    assert hf.load(tmp_path / "1")[0].config.layer_norm_eps == 0.5


def test_all_mismatches_are_reported_at_once(saved: Path) -> None:
    edit(saved, vocab_size=98)

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"]
        tensors["gpt_neox.layers.7.attention.dense.bias"] = torch.zeros(64)
        norm = "gpt_neox.final_layer_norm.weight"
        tensors[norm] = tensors[norm].to(torch.int8)
        return tensors

    rewrite(saved, spoil)
    with pytest.raises(CheckpointError, match="has 5 problems") as caught:
        hf.load(saved)
    for part in (
        "layers.1.mlp.dense_h_to_4h.bias is missing",
        "layers.7.attention.dense.bias belongs to no layer",
        "embed_in.weight has shape (97, 64), but the config needs (98, 64)",
        "embed_out.weight has shape",
        "final_layer_norm.weight is stored as I8",
    ):
        assert part in str(caught.value)


def test_unknown_and_repeated_keys(saved: Path) -> None:
    rewrite(
        saved,
        lambda t: {**t, "lm_head.weight": torch.zeros(97, 64), "transformer.wte": torch.zeros(1)},
    )
    with pytest.raises(CheckpointError, match="2 problems") as caught:
        hf.load(saved)
    assert "has a tensor transformer.wte" in str(caught.value)
    assert "lm_head.weight is in model.safetensors and again" in str(caught.value)


def test_missing_and_truncated_shards(tmp_path: Path) -> None:
    folder = hf.save(random_model(tiny()), tmp_path / "model", shard_bytes=50_000)
    first, second, third, *_ = sorted(folder.glob("model-*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    third.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    with pytest.raises(CheckpointError, match="3 problems") as caught:
        hf.load(folder)
    for part in (f"{first.name} is missing", f"{second.name} (", "git lfs pull"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 100_000, '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": "../b.bin"}}', '{"weight_map": {"a": "/etc/x.safetensors"}}'],
)  # fmt: skip
def test_damaged_index(text: str, tmp_path: Path) -> None:
    folder = hf.save(random_model(tiny()), tmp_path / "model", shard_bytes=50_000)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        hf.load(folder)


def test_an_index_with_a_tensor_that_is_not_in_its_shard(tmp_path: Path) -> None:
    folder = hf.save(random_model(tiny()), tmp_path / "model", shard_bytes=50_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["gpt_neox.layers.0.attention.bias"] = next(
        iter(index["weight_map"].values())
    )
    path.write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"lacks the tensor gpt_neox\.layers\.0\.attention\.bias"
    ):
        hf.load(folder)


def test_pickled_weights_are_refused_with_instructions(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"(?s)pytorch_model\.bin.*save_pretrained"):
        hf.load(saved)
    (saved / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no weights to read"):
        hf.load(saved)


def test_a_tokenizer_with_more_entries_than_the_model(saved: Path) -> None:
    train_bpe(["some words to train on"] * 9, 270).save(str(saved / "tokenizer.json"))
    with pytest.raises(
        CheckpointError,
        match=r"tokenizer\.json has ids up to \d+, but vocab_size in config\.json is only 97",
    ):
        hf.load(saved)


def test_save_refuses_existing_folders_and_overflow(saved: Path, tmp_path: Path) -> None:
    model = random_model(tiny())
    with pytest.raises(CheckpointError, match="exists; choose a new folder"):
        hf.save(model, saved)
    model.embed_in.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"gpt_neox\.embed_in\.weight has values beyond"):
        hf.save(model, tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()


def test_saved_files_are_readable_by_everyone(tmp_path: Path) -> None:
    saved = hf.save(random_model(tiny()), tmp_path / "model")
    assert {p.stat().st_mode & 0o444 for p in saved.iterdir()} == {0o444}


def test_neither_folder_nor_repository() -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor the name of a repository"):
        download.load("pythia")
