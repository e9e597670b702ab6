"""Continued runs: exact with a kept state, close and stated without; swaps differ by data only."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import continued_fakes as fakes
import numpy as np
import pytest
import torch
from continued_fakes import BATCH, SEQ, SHARD, STEPS, Published
from pythia_book.released import pile
from pythia_book.released.continuation import data as continued_data
from pythia_book.released.continuation import run as continued
from pythia_book.released.continuation.data import RowSwap, TokenFileData, check_swap, swap_summary
from pythia_book.released.continuation.plan import make_plan
from pythia_book.released.continuation.run import Continuation, Rewarm, find_or_continue
from pythia_book.released.continuation.start import published_train
from pythia_book.released.pile import RELEASED
from pythia_book.released.recipe import estimates

from pythia_core import hf
from pythia_core.__main__ import main
from pythia_core.config import ModelConfig
from pythia_core.data.order import batch_hash
from pythia_core.data.tokenizer import load_tokenizer, token_bytes, train_bpe
from pythia_core.errors import CheckpointError, ConfigError, DataError
from pythia_core.training.checkpoint import load_checkpoint, step_folder
from pythia_core.training.runs import find_or_train, find_run, verify
from pythia_core.training.trainer import update_lr
from pythia_core.util.files import results_dir

SWAP = "masculine_to_feminine"
CLOSE = 0.05
"""Nats between the ends of a run that never stopped and of its continuation from weights alone."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    with pytest.MonkeyPatch.context() as patch:
        yield fakes.publish(tmp_path_factory.mktemp("published"), patch)


def go_on(published: Published, step: int, steps: int, swap: str | None = None, **how: object):
    """From the published weights, on the released rows."""
    settings = {"train_config": published.train, "progress": False, **how}
    return find_or_continue(published.models, step, steps, published.rows, swap, **settings)


def losses(run) -> np.ndarray:
    return np.array([row["loss"] for row in run.metrics()])


# --- a run of ours ---------------------------------------------------------------------------


def test_with_its_state_a_run_goes_on_as_if_it_had_never_stopped(published: Published) -> None:
    run = published.run
    ours = find_or_continue(run.folder, 47, STEPS - 47, progress=False)
    assert (
        ours.continuation == Continuation(47, STEPS, 0, "none", 0)
        and "exact" in ours.continuation.described()
    )
    assert ours.final_sha256 == run.final_sha256
    assert ours.steps == list(range(47, STEPS + 1)) == ours.scheduled_steps
    kept = ("step", "loss", "lr", "grad_norm", "batch_hash")
    theirs = [{k: row[k] for k in kept} for row in run.metrics()[47:]]
    assert [{k: row[k] for k in kept} for row in ours.metrics()] == theirs
    assert find_or_continue(run.id, 47, STEPS - 47, progress=False).folder == ours.folder
    opened = find_run(ours.id)
    assert opened == ours and copy.copy(opened) == ours


def test_a_swap_from_a_kept_state_is_the_fork(published: Published) -> None:
    fork = find_or_train(published.run.config.fork(SWAP, 47), progress=False)
    ours = find_or_continue(published.run.folder, 47, STEPS - 47, None, SWAP, progress=False)
    assert ours.final_sha256 == fork.final_sha256 != published.run.final_sha256
    assert ours.control.final_sha256 == published.run.final_sha256
    assert np.array_equal(ours.ledger.row, fork.ledger.row)


def test_a_run_is_found_after_its_folder_of_results_was_moved(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = find_or_continue(published.run.folder, 47, STEPS - 47, None, SWAP, progress=False)
    shutil.copytree(results_dir(), tmp_path / "moved")
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "moved"))
    moved = find_run(ours.id)
    assert moved.folder.parent == moved.control.folder.parent == tmp_path / "moved" / "runs"
    assert verify(moved) == verify(ours)


def test_the_folder_of_another_run_is_refused(published: Published) -> None:
    ours = find_or_continue(published.run.folder, 47, STEPS - 47, progress=False)
    identity, done = ours.folder / "identity.json", ours.folder / "done.json"
    good = identity.read_text()
    for text in (good.replace('"stop": ', '"stop": 1'), "[]", "[" * 100_000):
        identity.write_text(text)
        with pytest.raises(CheckpointError, match=r"other settings|identity\.json cannot be read"):
            find_or_continue(published.run.folder, 47, STEPS - 47, progress=False)
    identity.write_text(good)
    whole = done.read_text()
    shutil.copy(published.run.folder / "done.json", done)
    with pytest.raises(CheckpointError, match=r"identity\.json has changed since the run was"):
        find_or_continue(published.run.folder, 47, STEPS - 47, progress=False)
    done.write_text(whole)
    assert find_or_continue(published.run.folder, 47, STEPS - 47, progress=False).finished


def test_a_fork_is_reported_with_the_run_that_is_its_control(
    published: Published, capsys: pytest.CaptureFixture
) -> None:
    run = published.run
    assert main(["continue", run.id, "--step", "47", "--steps", "13", "--swap", SWAP]) == 0
    printed = capsys.readouterr().out
    assert f"control: run {run.id}, " in printed and f"{SWAP}: run " in printed


def test_beyond_its_end_the_rate_stays_at_the_floor(published: Published) -> None:
    ours = find_or_continue(published.run.folder, STEPS, 3, progress=False)
    floor = published.train.lr_max * published.train.lr_min_ratio
    assert [row["lr"] for row in ours.metrics()] == [floor] * 3
    assert ours.steps == [STEPS, STEPS + 3]
    again = find_or_continue(ours.folder, STEPS + 3, 1, progress=False)  # exact again
    straight = find_or_continue(published.run.folder, STEPS, 4, progress=False)
    assert again.final_sha256 == straight.final_sha256


def test_what_a_run_cannot_do_is_said_at_once(published: Published) -> None:
    run = published.run
    with pytest.raises(CheckpointError, match=r"kept no optimizer state for step 30.* are: .*47"):
        find_or_continue(run.folder, 30, 5, state="kept")
    with pytest.raises(ConfigError, match="the learning rate cannot be re-warmed"):
        find_or_continue(run.folder, 47, 5, rewarm=Rewarm())
    with pytest.raises(CheckpointError, match="no checkpoint of step 99"):
        find_or_continue(run.folder, 99, 5)
    fork = find_or_train(run.config.fork(SWAP, 47), progress=False)
    with pytest.raises(ConfigError, match=r"until step 60, .* Continue from step 60 or later"):
        find_or_continue(fork.folder, 56, 4)


# --- published weights -----------------------------------------------------------------------


def test_without_its_state_it_begins_worse_and_ends_close(published: Published) -> None:
    """Against the run that never stopped, on the same batches, while both still learn fast."""
    theirs = losses(published.run)[30:]
    for rule in (Rewarm(), Rewarm("linear", 5)):
        ours = losses(go_on(published, 30, 30, rewarm=rule))
        assert ours[0] == theirs[0], "before the first update the weights are the source's"
        behind = ours - theirs
        assert behind[1:6].mean() > 0.02, rule
        assert abs(behind[-5:].mean()) < CLOSE, rule


def test_the_rate_is_the_rules(published: Published) -> None:
    carrier = published.run.config
    schedule = [update_lr(carrier, step) for step in range(30, 60)]
    for rule, expected in (
        (Rewarm("linear", 5), [rate * min(1, i / 5) for i, rate in enumerate(schedule)]),
        (Rewarm("none"), schedule),
        (Rewarm("constant"), schedule[:1] * 30),
        (Rewarm(), [0.0, *schedule[1:]]),  # 1 % of 30 updates, rounded up
    ):
        run = go_on(published, 30, 30, rewarm=rule)
        np.testing.assert_allclose([row["lr"] for row in run.metrics()], expected, rtol=1e-12)
    long = continued._continuation(start(133_000), 10_000, "", None)
    assert (long.rule, long.rewarm_updates, long.adam_from) == ("linear", 100, 133_000)
    assert "re-warmed from 0 in 100 updates" in long.described()
    config = replace(carrier, train=published_train(official("70m")))
    assert long.lr(config, 133_000) == 0 and long.lr(config, 133_050) == pytest.approx(5e-5)
    assert long.lr(config, 133_100) == long.lr(config, 142_999) == pytest.approx(1e-4)


def start(step: int):
    model = ModelConfig(n_layers=2, d_model=16, n_heads=2, vocab_size=384, max_seq_len=SEQ)
    return continued.Start("made up", step, model, {})


def official(size: str) -> ModelConfig:
    from pythia_core.suite import OFFICIAL_SIZES

    return OFFICIAL_SIZES[size].model()


def test_the_arms_differ_in_the_swapped_tokens_only(published: Published) -> None:
    swapped = go_on(published, 40, 20, SWAP)
    control = swapped.control
    assert control.finished and control.control == control and control.swaps == []
    assert swapped.continuation == replace(control.continuation, swap=SWAP)
    for k in range(40, 60):
        plain, changed = control.batch(k), swapped.batch(k)
        assert np.array_equal(plain, published.run.data.batch(k, BATCH))
        assert np.array_equal(plain, published.rows.batch(k, BATCH))
        line = swapped.swaps[k - 40]
        assert line["step"] == k + 1 and line["tokens_changed"] == (plain != changed).sum()
        assert control.metrics()[k - 40]["batch_hash"] == batch_hash(plain)
        assert swapped.metrics()[k - 40]["batch_hash"] == batch_hash(changed)
        ledger = swapped.ledger.ledger(plain, k * BATCH)
        assert np.array_equal(ledger.apply(plain, k * BATCH), changed)
    total = swap_summary(swapped.swaps)
    assert 0 < total["tokens_changed"] < total["tokens"] == 20 * BATCH * (SEQ + 1)
    assert total["by_form"][" his"] > 0 and swapped.final_sha256 != control.final_sha256
    first = [
        load_checkpoint(step_folder(r.checkpoints, 40))[0]["model"] for r in (control, swapped)
    ]
    source, _ = hf.load(published.models, "step40")
    for name, tensor in source.state_dict().items():
        assert torch.equal(first[0][name], tensor) and torch.equal(first[1][name], tensor)
    # a finished pair is found again, by name too
    assert go_on(published, 40, 20, SWAP).folder == swapped.folder
    assert find_run(swapped.id).control.folder == control.folder


def test_rows_swap_like_the_text_they_hold(published: Published) -> None:
    tokenizer = published.run.data.tokenizer
    swap = RowSwap(tokenizer, SWAP, 40, 60, BATCH)
    plain = published.rows.batch(45, BATCH)
    decode = [tokenizer.decode(r.tolist()) for r in swap.apply(plain, 45 * BATCH)]
    assert "friend saw her." in "".join(decode)
    assert not re.search(r"\b(he|his|him)\b", "".join(decode))
    unmapped = swap.ledger(plain, 45 * BATCH).unmapped
    assert set(unmapped) <= {" himself", " He", "He"}, "no equal length in so small a vocabulary"
    assert np.array_equal(swap.apply(plain, 39 * BATCH), plain), "outside the window nothing is"


def test_stopped_and_asked_again_it_ends_in_the_same_bits(
    published: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = go_on(published, 40, 20, SWAP)
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.setattr("pythia_core.training.train.STATE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("pythia_core.training.train.STATE_SHARE", 1e9)
    real = TokenFileData.batch

    def cut(self: TokenFileData, step: int, size: int) -> np.ndarray:
        if step == 53 and cut.armed:
            raise KeyboardInterrupt
        return real(self, step, size)

    cut.armed = False
    go_on(published, 40, 20)  # the control
    cut.armed = True
    monkeypatch.setattr(TokenFileData, "batch", cut)
    with pytest.raises(KeyboardInterrupt):
        go_on(published, 40, 20, SWAP)
    cut.armed = False
    again = go_on(published, 40, 20, SWAP)
    assert again.folder.parent.parent == tmp_path and again.id == whole.id
    assert again.final_sha256 == whole.final_sha256
    assert again.swaps == whole.swaps and len(again.metrics()) == 20
    assert again.steps == whole.steps


# --- what cannot be --------------------------------------------------------------------------


def refused(error: type[Exception], match: str, call) -> None:
    """The error comes, and before anything was trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continued, "train", None)
        with pytest.raises(error, match=match):
            call()


def test_bad_input_is_refused_before_training(published: Published, tmp_path: Path) -> None:
    p = published
    refused(CheckpointError, "existing revisions: step0, step30", lambda: go_on(p, 31, 4))
    refused(
        ConfigError, "is of step 40, not of step 30", lambda: go_on(p, 30, 4, revision="step40")
    )
    refused(ConfigError, "steps must be at least 1, got -5", lambda: go_on(p, 40, -5))
    refused(ConfigError, "step must be at least 0, got -1", lambda: go_on(p, -1, 5))
    refused(DataError, r"last full batch of 4 is step 59", lambda: go_on(p, 59, 2))
    refused(ConfigError, "has only weights", lambda: go_on(p, 40, 4, state="kept"))
    refused(ConfigError, "unknown transform 'sideways'", lambda: go_on(p, 40, 4, "sideways"))
    refused(ConfigError, "is not of a Pythia size", lambda: go_on(p, 40, 4, train_config=None))
    rows = p.rows
    refused(
        ConfigError,
        "comes without training data",
        lambda: find_or_continue(p.models, 40, 4, train_config=p.train),
    )
    (tmp_path / "llama" / "step40").mkdir(parents=True)
    (tmp_path / "llama" / "step40" / "config.json").write_text('{"model_type": "llama"}')
    refused(
        CheckpointError,
        "only models of Pythia's architecture",
        lambda: find_or_continue(tmp_path / "llama", 40, 4, rows, train_config=p.train),
    )
    refused(
        ConfigError,
        "seq_len=129 exceeds",
        lambda: go_on_with(p, replace(rows, seq_len=129)),
    )
    for bad in ({"rule": "gently"}, {"updates": -1}, {"rule": "none", "updates": 3}):
        with pytest.raises(ConfigError):
            Rewarm(**bad)


def go_on_with(published: Published, rows: TokenFileData, swap: str | None = None):
    return find_or_continue(
        published.models, 40, 4, rows, swap, train_config=published.train, progress=False
    )


def test_model_and_rows_must_share_a_vocabulary(published: Published, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    train_bpe(["wholly different words stand here, again and again"] * 9, 300).save(str(other))
    rows = replace(published.rows, tokenizer_name=str(other))
    refused(
        DataError,
        "pass the tokenizer with which the rows were made",
        lambda: go_on_with(published, rows),
    )
    large = tmp_path / "large.json"
    train_bpe([" ".join(f"word{i} is {i * i}" for i in range(900))], 500).save(str(large))
    rows = replace(published.rows, tokenizer_name=str(large))
    refused(ConfigError, "has embeddings for only 384", lambda: go_on_with(published, rows))
    same = tmp_path / "same.json"
    train_bpe([" ".join(f"word{i} is {i * i}" for i in range(900))], 384).save(str(same))
    rows = replace(published.rows, tokenizer_name=str(same))
    refused(ConfigError, "different tokenizers", lambda: go_on_with(published, rows))
    ids = np.full((STEPS * BATCH, SEQ + 1), 400, "<u2")
    (tmp_path / "rows.bin").write_bytes(ids.tobytes())
    rows = TokenFileData(str(tmp_path / "rows.bin"), "", SEQ)
    refused(ConfigError, "have the token id 400", lambda: go_on_with(published, rows))


def test_a_swap_needs_pronouns_that_are_tokens() -> None:
    split = train_bpe(["no such words"] * 3, 300)
    with pytest.raises(
        DataError, match=r"as one token, but this tokenizer splits .*' he' \(3 tokens\)"
    ):
        check_swap(split, SWAP)


def test_the_official_tokenizer_swaps() -> None:
    """The map of the public code, and what it left out or damaged."""
    folder = os.environ.get("PYTHIA_PUBLISHED_DIR")
    path = Path(folder or "") / "20B_tokenizer.json"
    if not folder or not path.is_file():
        pytest.skip("needs the 20B tokenizer: set PYTHIA_PUBLISHED_DIR to a folder that has it")
    tokenizer = load_tokenizer(path)
    pairs = {(s[0], t[0]) for _, _, s, t in check_swap(tokenizer, SWAP).table if len(s) == 1}
    assert {(344, 703), (754, 1500), (521, 617), (779, 617), (15101, 4058)} <= pairs
    assert len(token_bytes(tokenizer)) == 50_277
    text = " he said to himself: the hero gave him his hat. He left; Him they saw"
    row = np.array([tokenizer.encode(text).ids])
    swapped = RowSwap(tokenizer, SWAP, 0, 1, 1).apply(row, 0)
    assert tokenizer.decode(swapped[0].tolist()) == (
        " she said to herself: the hero gave her her hat. She left; Her they saw"
    )


# --- some of the released shards -------------------------------------------------------------


def test_a_folder_may_hold_the_needed_shards_only(
    published: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = b"".join(path.read_bytes() for path in sorted(published.shards.glob("*.bin")))
    shards = replace(RELEASED["pile-deduped"].shards, count=3, bytes_each=SHARD, total=len(raw))
    monkeypatch.setitem(RELEASED, "pile-deduped", replace(RELEASED["pile-deduped"], shards=shards))
    for module in (pile, continued_data):
        monkeypatch.setattr(module, "SEQ_LEN", SEQ)
    fakes.write_shards(tmp_path / "some", raw, SHARD)
    (tmp_path / "some" / "document-00000-of-00002.bin").unlink()
    rows = replace(published.rows, where=str(tmp_path / "some"))
    assert "2 of the 3 released shards" in rows.description
    ours = go_on_with(published, rows, SWAP)
    assert find_run(ours.id).data == rows
    assert ours.folder == go_on(published, 40, 4, SWAP).folder, "the same rows, another place"
    assert find_run(ours.id).data == published.rows
    lacking = rows.missing_shards(10, 14, BATCH)
    assert [(file.name, file.size) for file in lacking] == [("document-00000-of-00002.bin", SHARD)]
    refused(
        DataError,
        r"the updates 0\.\.3 read shards that are missing .*: document-00000-of-00002.bin",
        lambda: find_or_continue(
            published.models, 0, 4, rows, train_config=published.train, progress=False
        ),
    )
    (tmp_path / "some" / "document-00001-of-00002.bin").write_bytes(raw[SHARD:15000])
    with pytest.raises(DataError, match="but the released shard has"):
        _ = replace(rows).rows


# --- the plan --------------------------------------------------------------------------------


def test_the_paper_is_planned_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network is touched: the released shards' sizes and the sizes' names suffice."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub = "EleutherAI/pythia-70m-deduped"
    plan = make_plan(hub, None, None, 133_000, 10_000, TokenFileData("pile-deduped"), True)
    assert plan.tokens == 10_000 * 2_097_152 and plan.arms == 2
    whole = estimates().set_index("size").h100_hours["70m"]  # of the recipe, for 143,000 updates
    assert plan.seconds / 3600 == pytest.approx(whole * 2 * 10_000 / 143_000)
    assert plan.row_bytes == 2 * 10_000 * 4_196_352 and plan.is_large
    text = "\n".join(plan.lines)
    assert "41,943" not in text and "20,971,520,000 tokens per arm" in text
    assert "83.9 GB" in text and "H100" in text and "torchrun" in text
    seed = make_plan(hub, None, None, 0, 10, TokenFileData("pile-seed1"), False)
    assert "PolyPythias' seed 1, read over the network" in seed.rows
    # a folder that has but one of the three shards that the last 7 % lie in
    last = RELEASED["pile-deduped"].shards
    with open(tmp_path / last.names[19], "wb") as file:
        file.truncate(last.sizes[19])  # sparse
    lacking = make_plan(hub, None, None, 133_000, 10_000, TokenFileData(str(tmp_path)), True)
    assert [file.name for file in lacking.missing_shards] == [last.names[18], last.names[20]]
    assert "MISSING SHARD: document-00018-of-00020.bin, 30.0 GB" in "\n".join(lacking.lines)
    with pytest.raises(DataError, match="enough for only the first 143,000 updates"):
        make_plan(hub, None, None, 133_000, 10_001, TokenFileData(str(tmp_path)), True)


def test_published_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    train = published_train(official("70m"))
    assert (train.steps, train.batch_size, train.lr_max, train.micro_batch) == (
        143_000,
        1024,
        1e-3,
        8,
    )
    small = ModelConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=384)
    with pytest.raises(ConfigError, match=r"settings are unknown; pass batch_size .*, lr_max"):
        published_train(small, steps=10)
    assert published_train(small, 16, steps=10, lr_max=0.1, batch_size=6).micro_batch == 0
