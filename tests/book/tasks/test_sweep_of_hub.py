"""A sweep over the hub's checkpoints needs room for few of them, and a rerun fetches nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hub_server import FakeHub, serving
from huggingface_hub import constants
from pythia_book.released import disk_budget, download
from pythia_book.released.resolve import PublishedModel
from pythia_book.tasks.sweep import steps_of, sweep
from task_items import fake_items

from pythia_core import hf
from pythia_core.__main__ import main
from pythia_core.config import ModelConfig
from pythia_core.data.tokenizer import train_bpe
from pythia_core.model import GPTNeoX
from pythia_core.util.leases import leased

REPO = "EleutherAI/pythia-70m"
STEPS = [0, 1, 2, 4, 8, 16]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A repository with a revision per step; those of the steps 0 and 1 have equal weights."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_WORKERS", "1")
    monkeypatch.setattr(disk_budget, "WAIT_SECONDS", 0.02)
    fake = FakeHub()
    tokenizer = train_bpe((str(item) for item in fake_items("piqa", 40)), 384)
    for step in STEPS:
        model = GPTNeoX(ModelConfig(1, 16, 2, 384, max_seq_len=64))
        model.init_weights(max(step, 1))
        fake.add(REPO, f"step{step}", hf.save(model, tmp_path / f"step{step}", tokenizer=tokenizer))
    (tmp_path / "piqa.jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in fake_items("piqa", 24))
    )
    yield from serving(fake, monkeypatch, tmp_path / "cache")


def weights(cache: Path) -> list[Path]:
    """Return the files of weights on the disk; a link to a file is not another one."""
    found = []
    for path in cache.glob("*/blobs/*"):
        with suppress(FileNotFoundError):  # renamed at the end of a download
            if path.stat().st_size > 20_000:
                found.append(path)
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def cached(*steps: int) -> list[bool]:
    return [download.has_weights(REPO, f"step{step}") for step in steps]


def test_disk_is_bounded_and_a_rerun_fetches_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, peak, load = PublishedModel(REPO), [0], PublishedModel.model

    def loading(self: PublishedModel, step: int | None = None) -> GPTNeoX:
        loaded = load(self, step)
        if step != STEPS[-1]:  # the next one is fetched meanwhile
            end = time.monotonic() + 2
            while len(weights(tmp_path / "cache")) < 2 and time.monotonic() < end:
                time.sleep(0.01)
        peak.append(len(weights(tmp_path / "cache")))
        return loaded

    monkeypatch.setattr(PublishedModel, "model", loading)
    assert steps_of(model, "all") == STEPS
    table = sweep(model, ["piqa"], STEPS, 0, 5, str(tmp_path), progress=False)
    assert table.value.notna().all() and list(table.step.unique()) == STEPS
    assert max(peak) == 2 and len(peak) == len(STEPS) + 1
    assert weights(tmp_path / "cache") == [] and not disk_budget._waiting(model)
    assert not list(model.folder.rglob("*.lease"))

    before = len(hub.requests)
    again = sweep(PublishedModel(REPO), ["piqa"], STEPS, 0, 5, str(tmp_path), progress=False)
    assert again.equals(table)
    assert not [line for line in hub.requests[before:] if "safetensors" in line]

    kept = sweep(model, ["piqa"], STEPS, 1, 5, str(tmp_path), progress=False, keep=None)
    assert len(kept) == len(table) and all(cached(*STEPS))
    assert len(weights(tmp_path / "cache")) == len(STEPS) - 1, "the steps 0 and 1 share a file"


def test_only_what_the_sweep_has_fetched_is_deleted(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = PublishedModel(REPO)
    for step in (1, 4, 8):
        download.fetch(REPO, f"step{step}")
    left = disk_budget._mark(model, "step8")  # of a sweep that was killed
    left.parent.mkdir(parents=True, exist_ok=True)
    assert left.is_relative_to(constants.HF_HUB_CACHE), "another machine has a cache of its own"
    left.touch()
    arguments = ["evaluate", REPO, "--tasks", "piqa", "--items", str(tmp_path), "--limit", "5"]
    assert main([*arguments, "--steps", "all", "--keep", "0"]) == 0
    assert cached(*STEPS) == [False, True, False, True, False, False]
    assert download.load(REPO, "step1")[0] is not None, "it shares a file with step 0"
    with pytest.raises(SystemExit):
        main([*arguments, "--keep", "some"])


def test_a_checkpoint_that_is_fetched_too_late_is_deleted(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement was faster, and has deleted the checkpoint before it was fetched ahead."""
    fetch, late = download.fetch, threading.Event()

    def fetch_late(*arguments: Any) -> object:
        ahead = threading.current_thread() is not threading.main_thread()
        if ahead:
            late.wait(60)
        fetched = fetch(*arguments)
        if ahead:
            late.clear()
        return fetched

    monkeypatch.setattr(download, "fetch", fetch_late)
    model = PublishedModel(REPO)
    sweep(model, ["piqa"], [0, 1], 0, 5, str(tmp_path), progress=False)
    late.set()
    wait_until(lambda: not late.is_set())
    wait_until(lambda: not any(cached(0, 1)))
    assert not disk_budget._waiting(model)


def test_what_another_process_measures_is_neither_measured_nor_deleted(
    hub: FakeHub, tmp_path: Path
) -> None:
    model = PublishedModel(REPO)
    download.fetch(REPO, "step2")
    mark = disk_budget._mark(model, "step2")
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    with leased(disk_budget._lease(model, "step2")):
        sweep(model, ["piqa"], [0, 1], 0, 5, str(tmp_path), progress=False)
        assert cached(0, 1, 2) == [False, False, True]
