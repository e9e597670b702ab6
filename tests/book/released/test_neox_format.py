"""GPT-NeoX's files of several ranks merge into the model they were cut from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from neox_files import write_native
from pythia_book.released import neox_format
from tiny_models import assert_equal, random_model, tiny

from pythia_core.config import ModelConfig
from pythia_core.errors import CheckpointError

CONFIG = tiny(n_heads=4, vocab_size=128)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_merged_ranks_give_the_same_logits(ranks: int, sequential: bool, tmp_path: Path) -> None:
    model = random_model(CONFIG)
    write_native(model, tmp_path / "global_step7", ranks, sequential)
    assert neox_format.is_native(tmp_path / "global_step7")
    assert len(list((tmp_path / "global_step7").iterdir())) == ranks * (1 if sequential else 5)
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
        match="2 layers, width 64 and a vocabulary of 128, which is not an official size",
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


def touch(path: str) -> None:
    """Create a file: what a pickle wants to run."""
    Path(path).touch()


class Creature:
    """An object that runs code of ours when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return touch, (str(self.path),)


def write(content: Any, file: Path) -> None:
    """Replace a file, whose tensors may still be mapped."""
    torch.save(content, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def test_what_a_file_of_a_rank_would_run_is_not_run(tmp_path: Path) -> None:
    """Objects beside the tensors are skipped, whatever they would do, or the file is refused."""
    folder, trap = tmp_path / "native", tmp_path / "ran"
    write_native(random_model(CONFIG), folder, 1, sequential=True)
    file = folder / "mp_rank_00_model_states.pt"
    state = neox_format._load(file, placeholders=True)
    write({**state, "client_state": [Creature(trap)]}, file)
    assert_equal(random_model(CONFIG), neox_format.load(folder, CONFIG))
    assert not trap.exists()
    write({**state, "client_state": Evil(trap)}, file)
    with pytest.raises(CheckpointError, match=r"was not opened.*may run code"):
        neox_format.load(folder, CONFIG)
    state["module"]["sequential.2.input_layernorm.weight"] = Creature(trap)
    write(state, file)
    with pytest.raises(CheckpointError, match="a dictionary with only tensors"):
        neox_format.load(folder, CONFIG)
    assert not trap.exists()
    run, arguments = Creature(trap).__reduce__()
    run(*arguments)
    assert trap.exists(), "the trap is one"


def test_missing_and_damaged_files_of_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    write_native(random_model(CONFIG), folder, 2, sequential=True)
    file = folder / "mp_rank_01_model_states.pt"
    whole, state = file.read_bytes(), neox_format._load(file, placeholders=True)
    del state["module"]["sequential.3.attention.dense.bias"]
    for content, message in (
        ({"module": None}, "only tensors"),  # with pipeline stages, the layers have files
        ([1], "only tensors"),
        ({"module": {"transformer.wte": torch.ones(1)}}, "has the tensor transformer.wte, which"),
        ({"module": {"sequential.2.x": torch.ones(1)}}, "unknown name x"),
        (state, r"some ranks lack the tensor layers\.1\.attention"),
    ):
        write(content, file)
        with pytest.raises(CheckpointError, match=message):
            neox_format.load(folder, CONFIG)
    for cut in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"mp_rank_01.* is truncated or damaged"):
            neox_format.load(folder, CONFIG)
    (folder / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states\.pt is missing"):
        neox_format.load(folder, CONFIG)


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
    with pytest.raises(CheckpointError, match=r"neither layer files .layer_XX.* nor rank files"):
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
