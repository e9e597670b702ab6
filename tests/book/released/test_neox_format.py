"""GPT-NeoX's files of several ranks merge into the model they were cut from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from neox_files import write_native
from pythia_book.released import neox_format
from tiny_models import assert_equal, random_model, tiny

from pythia_core.config import ModelConfig
from pythia_core.errors import CheckpointError

CONFIG = tiny(n_heads=4, vocab_size=128)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_merged_ranks_give_the_same_logits(ranks: int, tmp_path: Path) -> None:
    model = random_model(CONFIG)
    write_native(model, tmp_path / "global_step7", ranks)
    merged = neox_format.load(tmp_path / "global_step7", CONFIG)
    ids = torch.randint(0, 128, (2, 11), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(merged(ids), model(ids), atol=2e-5, rtol=0)
    if ranks == 1:
        assert_equal(model, merged)
    assert neox_format.step_of(tmp_path / "global_step7") == 7


def test_wrong_merges_change_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row-parallel biases averaged in place of summed: the mistake of several converters."""
    model = random_model(CONFIG)
    write_native(model, tmp_path / "native", 2)
    name, _ = neox_format.NATIVE["attention.dense.bias"]
    monkeypatch.setitem(neox_format.NATIVE, "attention.dense.bias", (name, neox_format.mean))
    ids = torch.arange(9)[None]
    merged = neox_format.load(tmp_path / "native", CONFIG)
    assert (merged(ids) - model(ids)).abs().max() > 1e-3


def test_half_precision_is_preserved(tmp_path: Path) -> None:
    write_native(random_model(CONFIG).half(), tmp_path / "native", 2)
    assert neox_format.load(tmp_path / "native", CONFIG).embed_in.weight.dtype == torch.float16


def test_official_sizes_are_known_by_their_shapes(tmp_path: Path) -> None:
    shapes = {"embed_in.weight": torch.empty(50_304, 512, device="meta")}
    assert neox_format._official_config(tmp_path, shapes, 6).n_heads == 8
    write_native(random_model(CONFIG), tmp_path / "native", 1)
    with pytest.raises(
        CheckpointError,
        match="2 layers, width 64 and a vocabulary of 128, which is no official size",
    ):
        neox_format.load(tmp_path / "native")


class Evil:
    """An object that runs code when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    write_native(random_model(CONFIG), tmp_path / "native", 1)
    trap = tmp_path / "ran"
    file = tmp_path / "native" / "layer_03-model_00-model_states.pt"
    torch.save({"input_layernorm.weight": Evil(trap)}, file)
    with pytest.raises(CheckpointError, match=r"was not opened.*may run code"):
        neox_format.load(tmp_path / "native", CONFIG)
    assert not trap.exists()
    run, arguments = Evil(trap).__reduce__()
    run(*arguments)
    assert trap.exists(), "the trap is one: only the refusal kept it shut"


def test_missing_damaged_and_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    write_native(random_model(CONFIG), folder, 2)
    file = folder / "layer_02-model_01-model_states.pt"
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"layer_02-model_01-model_states\.pt is missing"):
        neox_format.load(folder, CONFIG)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        neox_format.load(folder, CONFIG)
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="a dictionary with only tensors"):
        neox_format.load(folder, CONFIG)
    torch.save({"input_layernorm.weight": torch.ones(64), "attention.alibi": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="unknown name attention"):
        neox_format.load(folder, CONFIG)
    with pytest.raises(CheckpointError, match=r"has no layer files .layer_XX"):
        neox_format.load(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny(n_heads=2, vocab_size=128), r"rotary dimensions of 4, but the config has 8"),
        (
            tiny(n_heads=4, vocab_size=129),
            r"embed_in\.weight has shape \(128, 64\), .* needs \(129, 64",
        ),
        (tiny(n_heads=4, vocab_size=128, n_layers=3), r"layers\.2\.input_layernorm\.bias is miss"),
        (tiny(n_heads=4, vocab_size=128, n_layers=1), r"layers\.1\.\S+ belongs to no layer"),
    ],
)
def test_another_config_is_refused(config: ModelConfig, message: str, tmp_path: Path) -> None:
    write_native(random_model(CONFIG), tmp_path / "native", 2)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        neox_format.load(tmp_path / "native", config)
