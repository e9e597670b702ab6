"""The benchmark on a GPU, dry: every contender, what does not fit, what crashes; not how fast."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pythia_book.bench import implementations, train_gpu
from pythia_book.bench import rows as throughput_rows

from pythia_core.__main__ import main
from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.kernels import PLAIN
from pythia_core.model import GPTNeoX

TEXT = np.arange(4000, dtype=np.uint16) % 128
DRY = train_gpu.Job("160m", implementations.FIRST, seq_len=16, dry_run=True, tokens=TEXT)
ALL = tuple(implementations.CONTENDERS.values())


@pytest.fixture(autouse=True)
def text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_gpu, "text_tokens", lambda progress=True: TEXT)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gpu, "text_tokens", lambda progress=True: TEXT)
        return list(
            train_gpu.bench_train_gpu(("160m",), dry_run=True, isolate=False, progress=False)
        )


# --- contenders ------------------------------------------------------------------------------


def test_the_model_in_plain_torch_is_the_model() -> None:
    model = GPTNeoX(ModelConfig(2, 32, 2, 128))
    model.init_weights(0)
    text = torch.from_numpy(TEXT[:68].astype(np.int64)).view(4, 17)
    model.loss(text).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    plain = GPTNeoX(model.config, PLAIN)
    plain.load_state_dict(model.state_dict())
    traced = torch.compile(plain.loss, backend="eager", fullgraph=True)  # nothing falls out
    traced(text).backward()
    for mine, p in zip(ours, plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, mine, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("contender", ALL, ids=lambda c: c.name)
def test_every_contender_learns_or_says_why_it_cannot(contender: implementations.Contender) -> None:
    config, device = DRY.config(2), torch.device("cpu")
    if contender.mode == "graph":
        with pytest.raises(ConfigError, match="graph"):
            contender.make(config, device)
        return
    seen = []
    with torch.compiler.set_stance("force_eager"), contender.turn(device):
        step = contender.make(config, device)
        watched = step.args[0].model if contender.who == "ours" else step.args[2]
        before = [p.detach().clone() for p in watched.parameters()]
        step(DRY.batches(2)[0])
        seen = [p.detach() for p in watched.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, seen, strict=True))


def test_a_turn_leaves_the_process_as_it_was() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with replace(implementations.RIVAL, deterministic=True).turn(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled(), "warned of, not refused"
    assert torch.are_deterministic_algorithms_enabled() == before


# --- rows ------------------------------------------------------------------------------------


def test_a_dry_run_measures_everything_and_says_that_it_is_one(rows: list[dict]) -> None:
    assert all(row["dry_run"] is True for row in rows)
    assert [row["kind"] for row in rows[:4]] == ["machine", "ceiling", "ceiling", "ceiling"]
    train = rows[4:]
    assert {r["contender"] for r in train} == {c.name for c in ALL}
    assert {r["contender"] for r in train if "error" in r} == {
        c.name for c in ALL if c.mode == "graph"
    }
    assert {r["purpose"] for r in train} == {"compare", "price", "rows", "accumulate", "seq_len"}
    for row in (r for r in train if "error" not in r):
        assert row["steps_timed"] >= 20
        assert row["tokens_per_s_low"] <= row["tokens_per_s"] <= row["tokens_per_s_high"]
        tokens = row["rows"] * row["seq_len"] * row["micro_batches"]
        assert row["tokens_per_update"] == tokens
        assert row["tokens_per_s"] == pytest.approx(1e3 * tokens / row["ms"])
        assert row["mfu_causal"] is None and row["peak_bytes"] is None
    assert [r["rows"] for r in train if r["purpose"] == "rows"] == [2**i for i in range(7)]
    assert "[dry run: not a result]" in throughput_rows.line(train[0])


def test_scaling_is_of_our_fastest_and_stops_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def fake(job: train_gpu.Job):
        for c in job.contenders:
            row = {**job.common, **c.words, "rows": job.rows or 4}
            seen.append((job.purpose, job.seq_len, row["rows"]))
            if job.purpose == "rows" and job.rows >= 8:
                yield row | {"error": f"{train_gpu.MEMORY}: 80 GB"}
            else:
                yield row | {"tokens_per_s": 2.0 if c.name == "ours compile" else 1.0}

    monkeypatch.setattr(train_gpu, "measure", fake)
    rows = list(train_gpu.bench_train_gpu(("1.4b",), dry_run=True, isolate=False))
    scaled = [r for r in rows if r.get("purpose") == "rows"]
    assert {r["contender"] for r in scaled} == {"ours compile"}
    assert [r["rows"] for r in scaled] == [1, 2, 4, 8]
    lengths = {(length, n) for purpose, length, n in seen if purpose == "seq_len"}
    assert lengths == {(4, 16), (8, 8), (32, 2), (64, 1)}, "as many tokens at every length"


def test_the_order_of_sizes_is_by_worth() -> None:
    found = train_gpu.comparisons(("31m", "160m", "70m"), DRY)
    assert [j.size for j in found] == ["70m", "160m", "31m"] * 3
    assert [j.purpose for j in found] == ["compare"] * 6 + ["price"] * 3
    compiled = [sum(c.mode == "compile" for c in j.contenders) for j in found]
    assert compiled == [1] * 3 + [2] * 3 + [0] * 3


def test_a_row_says_what_the_kernels_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    make = train_gpu._make

    def warning(*arguments):
        logging.getLogger("pythia_core.kernels.dispatch").warning("a kernel fails here")
        return make(*arguments)

    monkeypatch.setattr(train_gpu, "_make", warning)
    (row,) = train_gpu.measure(replace(DRY, contenders=implementations.FIRST[-1:]))
    assert row["said"] == ["a kernel fails here"]


def test_a_spent_budget_gives_rows_that_say_so() -> None:
    found = list(train_gpu.measure(replace(DRY, deadline=1.0)))
    assert [r["error"] for r in found] == [train_gpu.SKIPPED] * len(implementations.FIRST)


def test_what_does_not_fit_together_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd, make = [], train_gpu._make

    def greedy(contender, *rest):
        crowd.append(contender.name)
        if contender.who == "ours" and crowd.count(contender.name) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(contender, *rest)

    monkeypatch.setattr(train_gpu, "_make", greedy)
    job = replace(DRY, contenders=(implementations.FIRST[-1], implementations.PRICES[-1]))
    found = {r["contender"]: r for r in train_gpu.measure(job)}
    assert "error" not in found["ours eager"]
    assert found["ours eager"]["alternates_with"] == ["ours eager"]
    assert found["plain eager"]["alternates_with"] == ["ours eager", "plain eager"]


def test_a_crash_of_a_process_is_a_row() -> None:
    job = replace(DRY, size="no such size", dry_run=False, rows=1)
    found = list(train_gpu._in_process(job))
    assert [r["error"] for r in found] == ["its process ended with code 1"] * len(job.contenders)


# --- memory and text -------------------------------------------------------------------------


def test_rows_are_tried_from_above_the_estimate_down() -> None:
    job = train_gpu.Job("1.4b", implementations.FIRST)
    tries = train_gpu.rows_to_try(job, 80e9)
    assert tries == [2**p for p in range(len(tries) - 1, -1, -1)]
    estimate, fitting = tries[1] * job.seq_len, implementations.FITTING
    need = fitting.activation_bytes(job.model, estimate) + fitting.held_bytes(job.model, estimate)
    assert need < 80e9 < need + fitting.activation_bytes(job.model, estimate)
    assert train_gpu.rows_to_try(replace(job, size="160m"), 80e9)[0] == 16
    assert train_gpu.rows_to_try(replace(job, size="14m"), 80e9)[0] == 32
    assert train_gpu.rows_to_try(replace(job, rows=3), 80e9) == [3]


def test_rows_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def update(job, rows, device):
        tried.append(rows)
        return torch.OutOfMemoryError("CUDA out of memory") if rows > 4 else None

    monkeypatch.setattr(train_gpu, "_try_update", update)
    monkeypatch.setattr(train_gpu, "_total_bytes", lambda device: 80e9)
    monkeypatch.setattr(train_gpu, "_release", lambda device: None)
    job = train_gpu.Job("160m", implementations.FIRST)
    assert train_gpu.fitting_rows(job, SimpleNamespace(type="cuda")) == 4
    assert tried == [16, 8, 4]


def test_groups_hold_what_fits_and_lose_nobody() -> None:
    job = train_gpu.Job("1.4b", ALL)
    made = train_gpu.groups(job, 8, 80e9)
    assert [c for group in made for c in group] == list(ALL) and len(made) > 2
    assert len(train_gpu.groups(replace(job, size="14m"), 4, 80e9)) == 1
    assert all(len(g) == 1 for g in train_gpu.groups(job, 8, 1e9))


def test_batches_are_consecutive_rows_of_the_text() -> None:
    first, second = DRY.batches(2, 2)
    assert first.shape == (2, 17) and first.ravel().tolist() == TEXT[:34].tolist()
    assert second.ravel().tolist() == TEXT[34:68].tolist()


def test_text_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pythia_core.data import prepare

    monkeypatch.undo()
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    text = np.arange(3 * 2049, dtype=np.uint16).reshape(3, 2049)
    source = SimpleNamespace(n_rows=3, rows=lambda start, n: text[start : start + n])
    asked = []
    monkeypatch.setattr(
        prepare, "prepare", lambda data, _: asked.append(data) or SimpleNamespace(rows=source)
    )
    assert (
        train_gpu.text_tokens().tolist()
        == text.ravel().tolist()
        == train_gpu.text_tokens().tolist()
    )
    assert [data.tokenizer for data in asked] == ["neox-20b"]
    np.save(train_gpu.text_file(), text)
    with pytest.raises(DataError, match=r"uint16\(3, 2049\)"):
        train_gpu.text_tokens()


# --- the file and the command ----------------------------------------------------------------


def test_only_rows_of_real_and_newest_runs_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert throughput_rows.measured_rows(path) == []

    def row(run: str, size: str, dry_run: bool = False, **more) -> dict:
        return {"run": run, "kind": "train", "size": size, "dry_run": dry_run, **more}

    old, new = row("1", "70m", tokens_per_s=5.0), row("2", "70m", tokens_per_s=6.0)
    other, failed = row("1", "160m", tokens_per_s=7.0), row("3", "160m", error="skipped")
    dry = row("4", "70m", True, tokens_per_s=9.0)
    machine = {"run": "2", "kind": "machine", "dry_run": False}
    stale = {"run": "0", "kind": "machine", "dry_run": False}
    lines = [old, stale, machine, new, other, failed, dry]
    throughput_rows.write_rows(lines, path, lambda _: None)
    assert throughput_rows.measured_rows(path) == [machine, new, other]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --device cuda", "torch finds no CUDA device; --device cpu measures on the"),
        ("train --device cuda --sizes 9b --dry-run", "unknown size of the benchmark on a GPU '9b'"),
        ("train --device cuda --dry-run --readme", "--readme does not apply to bench train on a G"),
        ("train --budget 3", "--budget does not apply to bench train on a CPU, only to train on"),
        (
            "train --device cuda --dry-run --budget 9min",
            "a time is a number, in seconds or with s, m",
        ),
        (
            "train --device cuda --dry-run --kernels adamw",
            "--kernels does not apply to bench train",
        ),
        ("terms --device cuda", "bench terms measures on the CPU"),
        ("terms --sizes 7k", "it takes no --sizes"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(
    words: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    if "finds no CUDA device" in message and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["bench", *words.split()]) == 1
    assert message in capsys.readouterr().err


def test_a_dry_run_leaves_nothing_where_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(
        train_gpu, "measure", lambda job: train_gpu.unmeasured(job, job.contenders, "no")
    )
    words = ["bench", "train", "--device", "cuda", "--dry-run", "--sizes", "70m"]
    assert main(words) == 0 and not (tmp_path / "results").exists()
    assert "[dry run: not a result]" in capsys.readouterr().out
    file = tmp_path / "rows.jsonl"
    assert main([*words, "--json", str(file)]) == 0
    assert {json.loads(line)["dry_run"] for line in file.read_text().splitlines()} == {True}
