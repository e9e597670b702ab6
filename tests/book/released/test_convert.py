"""Every format converts to the others, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from neox_files import write_native
from pythia_book.released.continuation.start import find_source
from pythia_book.released.convert import convert, read
from pythia_book.released.resolve import find_model
from pythia_book.tasks.harness import NamedCheckpointLM
from safetensors.torch import load_file
from task_items import fake_items
from tiny_models import assert_equal, random_model, tiny
from tiny_runs import control
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

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
    folder = tmp_path / "repository" / "step3000"
    hf.save(model, folder, dtype=torch.float16, tokenizer=tokenizer, step=3000)
    ours = convert(str(tmp_path / "repository"), tmp_path / "ours", revision="step3000")
    assert ours == tmp_path / "ours" / "step-003000"
    assert saved_steps(tmp_path / "ours") == [3000]
    files, meta = load_checkpoint(ours)
    assert meta["kind"] == "weights only" and meta["source"]["revision"] == "step3000"
    assert meta["source"]["sha256"] == sha256_tensors(files["model"])
    loaded, info = hf.load(ours, dtype=None)
    assert loaded.config == model.config and info.sha256() == meta["source"]["sha256"]
    assert_equal(model.half(), loaded)
    back = convert(str(ours), tmp_path / "back")
    names = {path.name for path in back.iterdir()}
    assert names == {path.name for path in (tmp_path / "repository" / "step3000").iterdir()}
    for name in names:
        original = tmp_path / "repository" / "step3000" / name
        assert (back / name).read_bytes() == original.read_bytes(), name


def of_transformers(folder: Path) -> Path:
    """Save a model that is no Pythia, with what transformers writes beside it."""
    config = GPTNeoXConfig(
        vocab_size=384, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=256, max_position_embeddings=64, hidden_act="gelu", bos_token_id=1,
        eos_token_id=2, rotary_pct=0.5, initializer_range=0.1, use_parallel_residual=False,
    )  # fmt: skip
    config.rope_parameters = {**(config.rope_parameters or {}), "rope_theta": 5000.0}
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    return folder


@pytest.mark.parametrize("dtype", ["", "fp16"])
def test_a_round_trip_changes_nothing_but_the_dtype(dtype: str, tmp_path: Path) -> None:
    """Not the activation, the ids of end tokens, the rotary settings, nor unknown keys.

    A step that is known is added.
    """
    source = of_transformers(tmp_path / "mine")
    declared = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**declared, "key_of_mine": [1, None]}))
    ids = torch.arange(9)[None]
    before = AutoModelForCausalLM.from_pretrained(source)
    torch.testing.assert_close(hf.load(source)[0](ids), before(ids).logits, atol=1e-5, rtol=0)
    ours = convert(str(source), tmp_path / "ours", step=5, dtype=dtype)
    for way, back in (
        ("hf", convert(str(source), tmp_path / "again", "hf", dtype=dtype)),
        ("ours", convert(str(ours), tmp_path / "back")),
    ):
        for path in source.glob("*.json"):
            found, wanted = (json.loads((f / path.name).read_text()) for f in (back, source))
            if way == "ours" and path.name == "config.json":
                assert found.pop("trained_step") == 5
            if dtype and path.name == "config.json":
                assert found.pop("dtype") == "float16" and wanted.pop("dtype") == "float32"
            assert found == wanted, (way, path.name)
        after = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
        assert after.generation_config.eos_token_id == 2
        if not dtype:
            assert torch.equal(after(ids).logits, before(ids).logits)


def test_what_convert_wrote_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its folder, and the folder of its steps, go where a released model goes."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_WORKERS", "1")
    tokenizer = train_bpe((str(item) for item in fake_items("piqa", 40)), 384)
    (tmp_path / "piqa.jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in fake_items("piqa", 24))
    )
    for step in (5, 3000):
        model = random_model(tiny(vocab_size=384, max_seq_len=64), step)
        hf.save(model, tmp_path / f"step{step}", tokenizer=tokenizer)
        convert(str(tmp_path / f"step{step}"), tmp_path / "ours")
    one = tmp_path / "ours" / "step-000005"

    def printed(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    plain = convert(str(one), tmp_path / "plain")  # neither folder's name states the step
    one.rename(renamed := tmp_path / "renamed")
    for folder in (plain, renamed):
        assert find_model(str(folder)).steps == [5] and read(str(folder)).step == 5
        with pytest.raises(ConfigError, match="is of step 5, not of step 7"):
            find_source(str(folder)).check(7, "main")
    renamed.rename(one)

    hub = printed("generate", str(tmp_path / "step5"), "--prompt", "The", "--tokens", "5")
    assert printed("generate", str(one), "--prompt", "The", "--tokens", "5") == hub
    asked = ["generate", str(tmp_path / "ours"), "--prompt", "The", "--tokens", "5"]
    assert printed(*asked, "--step", "5") == hub
    tasks = ["--tasks", "piqa", "--items", str(tmp_path), "--limit", "5"]
    table = printed("evaluate", str(tmp_path / "ours"), *tasks, "--steps", "all").splitlines()
    assert [line.split()[4] for line in table[1:]] == ["5", "5", "3000", "3000"]
    assert printed("evaluate", str(one), *tasks).splitlines()[1].split()[4] == "5"
    report = printed("verify", str(tmp_path / "ours"))
    assert "153 of the 154 steps of a Pythia model are missing" in report  # 3000 is one of them
    assert printed("verify", str(one)).startswith(f"{one}: sha256 of 1 set of weights\nstep5 ")
    lm = NamedCheckpointLM(str(tmp_path / "ours"), step=5)
    assert lm.info["model_step"] == 5
    start = find_source(tmp_path / "ours").start(3000)
    assert start.tokenizer_name == str(tmp_path / "ours" / "tokenizer.json")
    assert find_model(str(one)).sha256(5) == hf.load(one, dtype=None)[1].sha256()
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; the nearest"):
        find_model(str(tmp_path / "ours")).model(7)
    weights = one / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 4
    weights.write_bytes(raw)
    assert main(["generate", str(one), "--prompt", "The"]) == 1
    assert "model.safetensors does not have the sha256 in manifest" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "ours")]) == 1
    assert "DEFECT step5" in capsys.readouterr().out
    (tmp_path / "ours" / "tokenizer.json").unlink()
    assert main(["generate", str(tmp_path / "ours"), "--prompt", "The"]) == 1
    assert f"no tokenizer at {tmp_path / 'ours' / 'tokenizer.json'}" in capsys.readouterr().err


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
    assert_equal(hf.load(folder)[0], hf.load(ours)[0])


def test_a_folder_of_native_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """GPT-NeoX 2.x without pipeline stages: files of ranks, and `latest` with the last name."""
    monkeypatch.setitem(OFFICIAL_SIZES, "tiny", Size("tiny", 2, 64, 4, 1e-3, 128))
    models = {step: random_model(OFFICIAL_SIZES["tiny"].model(), step) for step in (10, 20)}
    (tmp_path / "run").mkdir()
    for step, model in models.items():
        write_native(model, tmp_path / "run" / f"global_step{step}", 2, sequential=True)
    (tmp_path / "run" / "latest").write_text("global_step20")
    ids = torch.arange(9)[None]
    for words, step in (((), 20), (("--step", "10"), 10)):
        target = tmp_path / f"hf{step}"
        assert main(["convert", str(tmp_path / "run"), str(target), *words]) == 0
        torch.testing.assert_close(hf.load(target)[0](ids), models[step](ids), atol=2e-5, rtol=0)
    ours = convert(str(tmp_path / "run"), tmp_path / "ours", "pythia")
    assert ours.name == "step-000020"
    capsys.readouterr()
    for name in ("run", "run/global_step10"):
        assert main(["generate", str(tmp_path / name), "--prompt", "x"]) == 1
        assert "has a checkpoint of GPT-NeoX; convert it first" in capsys.readouterr().err
    (tmp_path / "run" / "latest").write_text("../../etc")
    with pytest.raises(CheckpointError, match=r"names the checkpoint '../../etc', but only global"):
        convert(str(tmp_path / "run"), tmp_path / "x")
    (tmp_path / "run" / "latest").unlink()
    with pytest.raises(CheckpointError, match="global_step10, global_step20; pass the folder of"):
        convert(str(tmp_path / "run"), tmp_path / "x")


def test_dtypes(tmp_path: Path) -> None:
    model = random_model(tiny())
    hf.save(model, tmp_path / "step0")
    half = convert(str(tmp_path / "step0"), tmp_path / "half", "hf", dtype="bf16")
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    ours = convert(str(tmp_path / "step0"), tmp_path / "ours", dtype="fp16")
    assert hf.load(ours, dtype=None)[0].embed_in.weight.dtype == torch.float16


def test_a_target_that_exists_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(hf.save(random_model(tiny()), tmp_path / "model"))
    write_native(random_model(tiny()), native := tmp_path / "global_step10", 1)
    monkeypatch.setattr("pythia_book.released.convert.read", lambda *_: pytest.fail("was read"))
    for source, to in ((folder, "hf"), (str(native), "")):
        with pytest.raises(CheckpointError, match="exists; choose a new folder"):
            convert(source, folder, to)


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
