"""Every format converts to the others, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from neox_files import write_native
from pythia_book.released.convert import convert, from_checkpoint
from safetensors.torch import load_file
from tiny_models import assert_equal, random_model, tiny
from tiny_runs import control
from transformers import AutoModelForCausalLM, AutoTokenizer

from pythia_core import hf
from pythia_core.__main__ import main
from pythia_core.config import RunConfig
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import CheckpointError, ConfigError
from pythia_core.suite import OFFICIAL_SIZES, Size
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, sha256_tensors
from pythia_core.training.runs import find_or_train


def test_transformers_to_ours_and_back(tmp_path: Path) -> None:
    model = random_model(tiny(vocab_size=384, gelu="erf", init="normal_scaled"))
    tokenizer = train_bpe(["some words to train a tokenizer on"] * 9, 300)
    hf.save(model, tmp_path / "repository" / "step3000", dtype=torch.float16, tokenizer=tokenizer)
    ours = convert(str(tmp_path / "repository"), tmp_path / "ours", revision="step3000")
    assert ours == tmp_path / "ours" / "step-003000"
    assert saved_steps(tmp_path / "ours") == [3000]
    files, meta = load_checkpoint(ours)
    assert meta["kind"] == "weights only" and meta["source"]["revision"] == "step3000"
    assert meta["source"]["sha256"] == sha256_tensors(files["model"])
    loaded, _ = from_checkpoint(ours)
    assert loaded.config == model.config
    assert_equal(model.half(), loaded)
    back = convert(str(ours), tmp_path / "back")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        original = tmp_path / "repository" / "step3000" / name
        assert (back / name).read_bytes() == original.read_bytes(), name


@pytest.fixture
def run_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A tiny control run, with results and cache of its own."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    return control(tmp_path)


def test_a_run_to_transformers(run_config: RunConfig, tmp_path: Path, capsys) -> None:
    run = find_or_train(run_config, progress=False)
    target = tmp_path / "exported"
    assert main(["convert", run.id[:8], str(target), "--step", "10"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    peer = AutoModelForCausalLM.from_pretrained(target)
    ids = torch.from_numpy(run.batch(0)[:, :-1].astype("int64"))
    ours = run.model(10)
    torch.testing.assert_close(peer(input_ids=ids).logits, ours(ids), atol=1e-5, rtol=0)
    words = AutoTokenizer.from_pretrained(target)
    text = "The nurse said that he would come."
    assert words(text).input_ids == run.data.tokenizer.encode(text).ids
    assert main(["convert", str(run.folder), str(tmp_path / "x"), "--step", "99"]) == 1
    assert "no checkpoint of step 99" in capsys.readouterr().err
    inside = run.checkpoints / "step-000010"
    assert main(["convert", str(inside), str(tmp_path / "x")]) == 1
    assert "belongs to a run" in capsys.readouterr().err


def test_native_files_of_an_official_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size("tiny", 2, 64, 4, 1e-3, 128)
    monkeypatch.setitem(OFFICIAL_SIZES, "tiny", size)
    model = random_model(size.model())
    write_native(model, tmp_path / "global_step143000", 2)
    folder = convert(str(tmp_path / "global_step143000"), tmp_path / "hf", dtype="fp32")
    ids = torch.arange(9)[None]
    torch.testing.assert_close(hf.load(folder)[0](ids), model(ids), atol=2e-5, rtol=0)
    ours = convert(str(tmp_path / "global_step143000"), tmp_path / "ours", "pythia")
    assert ours.name == "step-143000"


def test_dtypes(tmp_path: Path) -> None:
    model = random_model(tiny())
    hf.save(model, tmp_path / "step0")
    half = convert(str(tmp_path / "step0"), tmp_path / "half", "hf", dtype="bf16")
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    ours = convert(str(tmp_path / "step0"), tmp_path / "ours", dtype="fp16")
    assert from_checkpoint(ours)[0].embed_in.weight.dtype == torch.float16


def test_invalid_conversions_are_refused(tmp_path: Path) -> None:
    folder = str(hf.save(random_model(tiny()), tmp_path / "model"))
    with pytest.raises(
        ConfigError, match=r"the step of the model is neither in the name .*; pass --step"
    ):
        convert(folder, tmp_path / "ours")
    ours = convert(folder, tmp_path / "ours", step=5)
    with pytest.raises(CheckpointError, match="step-000005 already exists"):
        convert(folder, tmp_path / "ours", step=5)
    with pytest.raises(ConfigError, match="already in the format pythia"):
        convert(str(ours), tmp_path / "again", "pythia")
    with pytest.raises(CheckpointError, match="exists; choose a new folder"):
        convert(str(ours), folder)
    with pytest.raises(ConfigError, match="unknown format 'gguf'; accepted: hf, pythia"):
        convert(folder, tmp_path / "x", "gguf")
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        convert(folder, tmp_path / "x", dtype="int8")
