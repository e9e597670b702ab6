"""A name on the command line is a run or a published model, which is swept like a run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_tasks

from pythia_core import hf
from pythia_core.config import ModelConfig
from pythia_core.errors import CheckpointError, FetchError, MissingDependencyError
from pythia_core.model import GPTNeoX
from pythia_core.models import LAST, PublishedModel, find_model
from pythia_core.sweep import steps_of, sweep
from pythia_core.tokenizer import train_bpe


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a subfolder per step, read by a stand-in for pythia_core.hf.load."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    folder = tmp_path / "pythia-70m-deduped"
    tokenizer = train_bpe((str(item) for item in test_tasks.made("piqa", 40)), 384)
    for step in (0, 3000):
        place = folder / f"step{step}"
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        (place / "model.safetensors").write_bytes(b"weights")
        tokenizer.save(str(place / "tokenizer.json"))
    (tmp_path / "piqa.jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in test_tasks.made("piqa", 24))
    )

    def load(source: str, revision: str = "main") -> tuple[GPTNeoX, SimpleNamespace]:
        place = Path(source) / revision
        if (place / "config.json").read_text() == "gone":
            raise FetchError("not to be had")
        model = GPTNeoX(ModelConfig(1, 16, 2, 384, max_seq_len=64))
        model.init_weights(int(revision.removeprefix("step")))
        return model.eval().requires_grad_(False), SimpleNamespace(folder=place)

    monkeypatch.setattr(hf, "load", load, raising=False)
    return folder


def test_a_published_model_is_swept_like_a_run(published: Path, tmp_path: Path) -> None:
    model = find_model(str(published))
    assert isinstance(model, PublishedModel)
    assert steps_of(model, "all") == [0, 3000]
    table = sweep(model, ["piqa"], [0, 3000], 0, 5, str(tmp_path), progress=False)
    assert set(table.model) == {"70m"} and table.deduped.all()
    assert table.value.notna().all() and len(table) == 4
    (published / "step3000" / "config.json").write_text("gone")
    again = sweep(model, ["piqa"], [0], 0, 5, str(tmp_path), progress=False)
    assert again.equals(table[table.step == 0].reset_index(drop=True))
    other = sweep(model, ["piqa"], [3000], 0, 6, str(tmp_path), progress=False)
    assert "not to be had" in other.note.item()


def test_what_was_kept_belongs_to_the_files(published: Path) -> None:
    before = PublishedModel(str(published)).id
    assert before.startswith("70m-") and PublishedModel(str(published)).id == before
    (published / "step0" / "model.safetensors").write_bytes(b"other weights")
    assert PublishedModel(str(published)).id != before


def test_a_folder_of_one_step_and_a_pickled_copy(published: Path) -> None:
    assert PublishedModel(str(published / "step3000")).steps == [3000]
    single = published.rename(published.parent / "mine") / "step0"
    assert PublishedModel(str(single.rename(single.parent / "final"))).steps == [LAST]
    model = PublishedModel(str(single.parent))
    assert pickle.loads(pickle.dumps(model)) == model  # noqa: S301
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; the nearest are \[3000\]"):
        model.model(7)


def test_other_names(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="0 runs match 'pythia-70m'"):
        find_model("pythia-70m")
    assert find_model("EleutherAI/pythia-70m").label == "70m"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="is not a run"):
        find_model(str(empty))
    monkeypatch.delattr(hf, "load", raising=False)
    with pytest.raises(MissingDependencyError, match="cannot read published models"):
        find_model(str(published))
