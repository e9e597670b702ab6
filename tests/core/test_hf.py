"""Models survive a round trip through transformers; damaged folders are reported, never loaded."""

from __future__ import annotations

import json
from pathlib import Path

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


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change) -> None:
    """Pass the tensors of a single-file folder through `change`."""
    path = folder / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    save_file(change(dict(tensors)), path, {"format": "pt"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return hf.save(random_model(tiny()), tmp_path / "model")


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


def test_gelu_as_trained_and_as_declared(saved: Path) -> None:
    """A released config declares "gelu" and does not say how the model was trained."""
    declared = json.loads((saved / "config.json").read_text())
    del declared["trained_gelu"], declared["trained_init"]
    (saved / "config.json").write_text(json.dumps({**declared, "hidden_act": "gelu"}))
    trained, declared_model = hf.load(saved)[0], hf.load(saved, gelu="as_declared")[0]
    assert (trained.config.gelu, declared_model.config.gelu) == ("tanh", "erf")
    ids = torch.arange(9)[None]
    peer = GPTNeoXForCausalLM.from_pretrained(saved)(input_ids=ids).logits
    torch.testing.assert_close(declared_model(ids), peer, atol=1e-5, rtol=0)
    assert (trained(ids) - peer).abs().max() > 1e-5
    with pytest.raises(ConfigError, match="unknown gelu 'tanh'; accepted: as_trained"):
        hf.load(saved, gelu="tanh")


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
    ],
)
def test_other_architectures_are_refused(saved: Path, changes: dict, message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        hf.load(saved)


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
    assert "has the tensor transformer.wte" in str(caught.value)
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


@pytest.mark.parametrize("text", ["{", '{"weight_map": {}}', '{"weight_map": {"a": "../b.bin"}}'])
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


def test_saved_files_are_readable_by_everyone(saved: Path) -> None:
    assert {p.stat().st_mode & 0o444 for p in saved.iterdir()} == {0o444}


def test_neither_folder_nor_repository() -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor the name of a repository"):
        download.load("pythia")
