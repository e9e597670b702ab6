"""The benchmark of a training step: its implementations, the search for rows that fit, its rows."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pythia_book.bench import cost_model, train
from pythia_book.bench.rows import fastest_steps, format_row, measured_rows, read_rows, write_rows

from pythia_core import kernels
from pythia_core.__main__ import main
from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError, DataError, PythiaError
from pythia_core.kernels import PLAIN
from pythia_core.model import GPTNeoX
from pythia_core.suite import OFFICIAL_SIZES, scale_named
from pythia_core.training.metrics import flops_per_token
from pythia_core.training.optimizer import FlatParameters

TEXT = np.arange(4000, dtype=np.uint16) % 128
FIRST = train.ROUNDS_ON_GPU[0]
ALL = tuple(dict.fromkeys(i for group in train.ROUNDS_ON_GPU for i in group))
DRY = train.Job("160m", FIRST, seq_len=16, dry_run=True, seconds=0.0, tokens=TEXT)


@pytest.fixture(autouse=True)
def text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "text_tokens", lambda progress=True: TEXT)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "text_tokens", lambda progress=True: TEXT)
        measured = list(train.bench_train(("160m",), "cuda", dry_run=True, progress=False))
    return [row for row in measured if not row.get("partial")]


# --- implementations -------------------------------------------------------------------------


def test_the_plain_model_has_the_same_gradients() -> None:
    model = GPTNeoX(ModelConfig(2, 32, 2, 128))
    model.init_weights(0)
    text = torch.from_numpy(TEXT[:68].astype(np.int64)).view(4, 17)
    model.loss(text).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    plain = GPTNeoX(model.config, PLAIN)
    plain.load_state_dict(model.state_dict())
    traced = torch.compile(plain.loss, backend="eager", fullgraph=True)  # without graph breaks
    traced(text).backward()
    for mine, p in zip(ours, plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, mine, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "implementation",
    [*ALL, *train.implementations_on_cpu(("fp32",), ())[:-1]],  # the last are products alone
    ids=lambda i: i.name,
)
def test_every_implementation_updates_its_weights(
    implementation: train.Implementation,
) -> None:
    config, device = DRY.config(2), torch.device("cpu")
    if implementation.mode == "graph":
        with pytest.raises(ConfigError, match="graph"):
            implementation.make(config, device)
        return
    before = torch.are_deterministic_algorithms_enabled()
    with torch.compiler.set_stance("force_eager"):
        step = implementation.make(config, device)
        model = step.args[0].model if implementation.family == "ours" else step.args[2]
        weights = [p.detach().clone() for p in model.parameters()]
        step(DRY.batches(2)[0])
    pairs = zip(weights, model.parameters(), strict=True)
    assert any(not torch.equal(a, b.detach()) for a, b in pairs)
    assert torch.are_deterministic_algorithms_enabled() == before


def test_a_baseline_adds_up_the_gradients_of_its_micro_batches() -> None:
    """An update of 8 micro-batches is that of the whole batch."""
    weights = []
    for rows in (2, 16):  # rows per micro-batch, of 16
        torch.manual_seed(0)
        step = train.Implementation("plain", precision="fp32").make(
            DRY.config(rows), torch.device("cpu")
        )
        step(DRY.batches(16)[0])
        weights.append(torch.cat([p.detach().ravel() for p in step.args[2].parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


def test_the_compiled_formulas_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **k: compiled.append(f) or compile_(f, backend="eager", **k)
    )
    torch.manual_seed(0)
    model = GPTNeoX(ModelConfig(2, 32, 2, 128), replace(kernels.FAST, fuses=lambda x: True))
    model.init_weights(0)
    other = GPTNeoX(model.config, replace(train._with_compiled_formulas(), fuses=lambda x: True))
    other.load_state_dict(model.state_dict())
    assert [f.__name__ for f in compiled] == ["layer_norm_pair_reference", "bias_gelu_reference"]
    text = torch.from_numpy(TEXT[:68].astype(np.int64)).view(4, 17)
    for either in (model, other):
        FlatParameters(either, torch.float32).add_gradients_in_backward(either)
        either.loss(text).backward()
    for ours, p in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, ours.grad, rtol=1e-4, atol=1e-6)


# --- rows ------------------------------------------------------------------------------------


def test_a_dry_run_measures_and_marks_everything(rows: list[dict]) -> None:
    assert all(row["dry_run"] is True for row in rows)
    machine, *measured = rows
    assert machine["kind"] == "machine" and set(machine["matmul_tflop_per_s"]) == {"bf16"}
    assert {r["implementation"] for r in measured} == {i.name for i in ALL}
    assert {r["implementation"] for r in measured if "failed" in r} == {
        i.name for i in ALL if i.mode == "graph"
    }
    for row in (r for r in measured if "failed" not in r):
        assert row["steps_timed"] == 3 * (3 + 1) and row["micro_rows"] == 2
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert row["tokens_per_update"] == row["rows"] * row["seq_len"] == 2**21
        assert row["tokens_per_s"] == pytest.approx(1e3 * 2**21 / row["ms"])
        assert row["mfu"] is None and row["peak_bytes"] is None
    assert "[dry run: not a result]" in format_row(measured[0])


def test_a_group_is_measured_at_every_size_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = []
    monkeypatch.setattr(
        train, "measure", lambda job: jobs.append((job.size, job.implementations, job.rows)) or ()
    )
    list(train.bench_train(("31m", "160m", "70m"), "cuda", dry_run=True, rows=8))
    assert jobs == [
        (size, group, 8) for group in train.ROUNDS_ON_GPU for size in ("70m", "160m", "31m")
    ]


def test_a_whole_update_follows_from_two_small_ones() -> None:
    """With 16 rows at a time, 2M tokens are 64 micro-batches and one optimizer step."""
    job = train.Job("160m", FIRST)
    rounds = [{1: 0.13, 8: 0.83}, {1: 0.14, 8: 0.91}, {1: 0.13, 8: 0.76}]  # 0.1, 0.11, 0.09 each
    entry = train._WarmedUp(train.GRAPH, print, 16, {}, {1: 3, 8: 1}, 1.0, 0, 0, rounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Job, "device", torch.device("cpu"))
        row = train._result(entry, job)
    assert row["ms_micro"] == pytest.approx(100) and row["ms_optimizer"] == pytest.approx(30)
    assert row["ms"] == pytest.approx(64 * 100 + 30)
    assert row["ms_low"] == pytest.approx(64 * 90 + 40)
    assert row["ms_high"] == pytest.approx(64 * 110 + 30)
    assert row["tokens_per_s"] == pytest.approx(2**21 / 6.43)
    assert (row["tokens_per_update"], row["micro_rows"], row["steps_timed"]) == (2**21, 16, 12)


def test_a_cpu_is_measured_in_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from pythia_core.data import prepare

    batch = np.resize(TEXT, (32, 129))
    data = SimpleNamespace(batch=lambda step, n: batch)
    monkeypatch.setattr(prepare, "prepare", lambda *_: data)
    machine, *measured = train.bench_train(
        ("7k",), precisions=("fp32", "bf16"), compiled=(), rounds=2, progress=False
    )
    assert not machine["dry_run"] and set(machine["matmul_tflop_per_s"]) == {"fp32", "bf16"}
    labels = ("ours eager", "transformers eager", "transformers eager, sdpa", "products eager")
    assert [(r["precision"], r["label"]) for r in measured] == [
        (precision, label) for precision in ("fp32", "bf16") for label in labels
    ]
    model = scale_named("laptop").run("7k").model
    for row in measured:
        assert row["tokens_per_update"] == 32 * 128 and row["steps_timed"] == 4
        flops = row["tokens_per_s"] * flops_per_token(model, 128)
        assert row["tflops"] == pytest.approx(flops / 1e12)
        rate = machine["matmul_tflop_per_s"][row["precision"]]
        assert row["matmul_share"] == pytest.approx(row["tflops"] / rate)
    text = train.markdown([machine, *measured])
    ours = measured[0]["tokens_per_s"]
    fastest = max(r["tokens_per_s"] for r in measured if r["family"] == "transformers")
    assert machine["device"] in text and "4,096 tokens per step" in text
    floor = next(r["tokens_per_s"] for r in measured if r["family"] == "products")
    assert machine["precision"] == "fp32" and text.count("**") == 2
    ratios = f"| **{ours / fastest:.2f}x** | {ours / floor:.0%} | {floor / fastest:.2f}x |"
    assert ratios in text
    late = train.Implementation("transformers", "compile", "fp32").columns | {"failed": "too slow"}
    text = train.markdown([machine, *measured, {"size": "7k"} | late])
    assert f"| {fastest:,.0f} [" in text and "; no compile, sdpa, fp32: too slow)" in text


def test_the_products_are_those_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their FLOP are those of an update without attention: 6 per weight and token."""
    flop = []
    product = torch.mm

    def counted(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        flop.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return product(a, b, out=out)

    job = replace(DRY, dry_run=False, kind="cpu", size="25k", seq_len=100)
    step = train.Implementation("products", precision="fp32").make(job.config(7), job.device)
    monkeypatch.setattr(torch, "mm", counted)
    step(np.zeros(0))
    model = job.model
    weights = 12 * model.d_model**2 * model.n_layers + model.vocab_size * model.d_model
    assert sum(flop) == 700 * 6 * weights


def test_a_compilation_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    started = f"echo $$ > {tmp_path}/pid; exec sleep 600"
    with pytest.raises(TimeoutError, match=r"torch.compile was stopped after 0.333 minutes"):
        train._in_time(partial(subprocess.run, ["sh", "-c", started]), 20.0)
    process = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    with contextlib.suppress(OSError):
        assert process.read_text().split()[2] in "ZX"  # dead, but not reaped by its parent
    train._in_time(partial(int, "does not compile"), 60.0)  # the caller will meet the error


def test_rows_contain_the_warnings_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    make = train._warm_up

    def warning(*arguments):
        logging.getLogger("pythia_core.kernels.dispatch").warning("a kernel fails here")
        return make(*arguments)

    monkeypatch.setattr(train, "_warm_up", warning)
    *_, row = train.measure(replace(DRY, implementations=FIRST[3:4], rounds=1))
    assert row["warnings"] == ["a kernel fails here"]


def test_nothing_is_measured_after_the_deadline() -> None:
    rows = list(train.measure(replace(DRY, deadline=1.0)))
    assert [r["failed"] for r in rows] == [train.SKIPPED] * len(FIRST)


def test_implementations_that_do_not_fit_together_are_tried_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts, make = [], train._warm_up

    def fail_first(implementation, *rest):
        attempts.append(implementation.name)
        if implementation.family == "ours" and attempts.count(implementation.name) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(implementation, *rest)

    monkeypatch.setattr(train, "_warm_up", fail_first)
    job = replace(DRY, implementations=(FIRST[3], train.ROUNDS_ON_GPU[1][-1]))
    rows = {r["implementation"]: r for r in train.measure(job)}
    assert "failed" not in rows["ours eager, bf16"]
    assert rows["ours eager, bf16"]["alternates_with"] == ["ours eager, bf16"]
    assert rows["plain eager, bf16"]["alternates_with"] == [
        "ours eager, bf16",
        "plain eager, bf16",
    ]


# --- memory and text -------------------------------------------------------------------------


def test_each_implementation_has_its_own_estimate_of_rows() -> None:
    job = train.Job("1.4b", FIRST)
    rows = {i.label: train.estimated_rows(i, job, 80e9) for i in ALL}
    assert rows["ours eager"] > rows["transformers eager, sdpa"] >= 1
    assert all(r & (r - 1) == 0 for r in rows.values())
    for implementation in ALL:
        r = rows[implementation.label]
        needs = [
            implementation.resident_bytes(job.model, n * job.seq_len)
            + implementation.transient_bytes(job.model, n * job.seq_len)
            for n in (r, 2 * r)
        ]
        assert r == 16 or needs[0] <= 80e9 < needs[1]
    assert train.estimated_rows(train.GRAPH, replace(job, size="160m"), 80e9) == 16
    assert train.estimated_rows(train.GRAPH, replace(job, size="14m"), 80e9) == 32
    assert train.estimated_rows(train.GRAPH, job, 1e9) == 1
    assert train.estimated_rows(train.GRAPH, replace(job, rows=2), 1e9) == 2, "as the user wants"


GPU_JOB = replace(DRY, dry_run=False, implementations=(FIRST[3],))
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def tried_rows(
    monkeypatch: pytest.MonkeyPatch,
    fit: int,
    job: train.Job = GPU_JOB,
    first: int = 2,
    reported: int = 0,
    alone: bool = True,
) -> tuple[list[int], int, str]:
    """Search on a device where `fit` rows fit; measured, twice `reported` rows need all of it."""
    tried = []

    def warm_up(implementation: train.Implementation, job: train.Job, rows: int) -> object:
        tried.append(rows)
        if rows > fit:
            raise FULL
        return SimpleNamespace(bytes_if_doubled=100 * rows / (reported or fit))

    monkeypatch.setattr(train, "_warm_up", warm_up)
    monkeypatch.setattr(train, "_total_bytes", lambda device: 100)
    monkeypatch.setattr(train, "_release", lambda device: None)
    monkeypatch.setattr(train, "most_rows", lambda job: job.rows or 16)
    entry, rows, why = train._warm_up_largest(FIRST[3], job, first, alone)
    assert (entry is None) == bool(why)
    return tried, rows, why


def test_rows_are_doubled_while_memory_lasts_and_halved_when_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert tried_rows(monkeypatch, fit=8) == ([2, 4, 8], 8, "")
    assert tried_rows(monkeypatch, fit=64) == ([2, 4, 8, 16], 16, ""), "at most TOKENS"
    assert tried_rows(monkeypatch, fit=2, first=8) == ([8, 4, 2], 2, "")
    optimistic = tried_rows(monkeypatch, fit=4, reported=16)
    assert optimistic == ([2, 4, 8, 4], 4, ""), "no size is tried for ever"
    fixed = replace(GPU_JOB, rows=4)
    assert tried_rows(monkeypatch, fit=64, job=fixed, first=4) == ([4], 4, "")


def test_our_kernels_are_not_replaced_when_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = {}
    monkeypatch.setattr(
        train,
        "_warm_up",
        lambda i, job, rows: (
            strict.update({i.name: train.dispatch.strict()}) or SimpleNamespace(bytes_if_doubled=0)
        ),
    )
    eager = train.Implementation("ours")
    for implementation in (train.GRAPH, eager, train.BASELINE):
        train._warm_up_largest(implementation, DRY, 2, True)
    assert strict == {train.GRAPH.name: True, eager.name: True, train.BASELINE.name: False}


def test_out_of_memory_says_at_which_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    detail = "CUDA out of memory. Tried to allocate 9 GiB"
    tried, _, why = tried_rows(monkeypatch, fit=0, first=4)
    assert tried == [4, 2, 1]
    assert why == f"out of memory even with one row of 16 tokens: {detail}"
    fixed = replace(GPU_JOB, rows=4)
    tried, rows, why = tried_rows(monkeypatch, fit=2, job=fixed, first=4)
    assert (tried, rows, why) == ([4], 4, f"out of memory with 4 rows of 16 tokens: {detail}")
    together = tried_rows(monkeypatch, fit=2, first=4, alone=False)
    assert together[0] == [4] and together[2], "tried again when nothing else is in memory"


def test_groups_fit_into_memory_and_are_complete() -> None:
    job = train.Job("1.4b", ALL)
    rows = dict.fromkeys((i.name for i in ALL), 8)
    groups = train.groups(job, rows, 80e9)
    assert [c for group in groups for c in group] == list(ALL) and len(groups) > 2
    assert len(train.groups(replace(job, size="14m"), dict.fromkeys(rows, 4), 80e9)) == 1
    assert all(len(g) == 1 for g in train.groups(job, rows, 1e9))


# --- time and failures -----------------------------------------------------------------------


def test_an_implementation_starts_only_if_its_time_is_left() -> None:
    jobs = [train.Job(size, ()) for size in ("160m", "1.4b")]
    compiled = [train.seconds_needed(train.BASELINE, job, 1) for job in jobs]
    eager = [train.seconds_needed(FIRST[3], job, 1) for job in jobs]
    assert compiled[1] - compiled[0] >= 3.5 * 12, "12 more layers"
    assert all(c - e == 3.5 * n for c, e, n in zip(compiled, eager, (12, 24), strict=True))
    implementations = (FIRST[3], train.BASELINE)  # one layer in a dry run: 6 and 9.5 s
    late = replace(DRY, implementations=implementations, deadline=time.time() + 8)
    rows = {row["label"]: row for row in train.measure(late)}
    assert rows["plain compile"]["failed"] == train.SKIPPED and "ms" in rows["ours eager"]


def test_rounds_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(train.time, "time", lambda: clock[0])
    timed = train._seconds

    def slow(step, batches, n, device):
        clock[0] += 1.0
        return timed(step, batches, n, device)

    monkeypatch.setattr(train, "_seconds", slow)
    monkeypatch.setattr(train, "seconds_needed", lambda *_: 0.0)
    job = replace(DRY, implementations=FIRST[3:4], rounds=50, deadline=1010.0)
    *partial, row = train.measure(job)  # 4 seconds to warm up, and 2 per round
    assert row["steps_timed"] == 4 * 3 and "partial" not in row
    assert [r["steps_timed"] for r in partial] == [4, 8, 12] and all(r["partial"] for r in partial)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PythiaError("the GPU is gone")])
def test_what_was_measured_before_a_stop_is_kept(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured, turns = train._seconds, []

    def stop_in_second_round(step, batches, n, device):
        turns.append(1)
        if len(turns) == 4 + 2 + 1:  # warm-up, and the two updates of a round
            raise RuntimeError("illegal memory access") if isinstance(error, PythiaError) else error
        return measured(step, batches, n, device)

    def check(failed: str) -> None:
        raise error

    monkeypatch.setattr(train, "_seconds", stop_in_second_round)
    monkeypatch.setattr(train, "check_gpu_usable", check)
    path = tmp_path / "rows.jsonl"
    job = replace(DRY, implementations=FIRST[3:4])
    with pytest.raises(type(error)):
        write_rows(train.measure(job), path, lambda _: None)
    rows = read_rows(path)
    assert (rows[0]["steps_timed"], rows[0]["partial"]) == (4, True), "as if the process was killed"
    assert format_row(rows[0] | {"dry_run": False}).endswith("(not all rounds)")
    failed = [row.get("failed") for row in rows[1:]]
    assert failed == ["RuntimeError: illegal memory access"] * isinstance(error, PythiaError)


def test_batches_are_consecutive_rows_of_the_text() -> None:
    first, second = DRY.batches(2, 2)
    assert first.shape == (2, 17) and first.ravel().tolist() == TEXT[:34].tolist()
    assert second.ravel().tolist() == TEXT[34:68].tolist()


def test_the_text_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pythia_core.data import prepare

    monkeypatch.undo()
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    text = np.arange(3 * 2049, dtype=np.uint16).reshape(3, 2049)
    source = SimpleNamespace(n_rows=3, rows=lambda start, n: text[start : start + n])
    prepared = []
    monkeypatch.setattr(
        prepare, "prepare", lambda data, _: prepared.append(data) or SimpleNamespace(rows=source)
    )
    assert train.text_tokens().tolist() == text.ravel().tolist() == train.text_tokens().tolist()
    assert [data.tokenizer for data in prepared] == ["neox-20b"]
    np.save(train.text_file(), text)
    assert train.text_tokens().ndim == 1 and len(prepared) == 2, "a changed file is made again"
    np.save(train.text_file(), text)
    train.text_file().with_name("tokens.npy.sha256").unlink()  # from a version without hashes
    with pytest.raises(DataError, match=r"uint16 and shape \(3, 2049\)"):
        train.text_tokens()


# --- the file and the command ----------------------------------------------------------------


def test_only_measurements_on_the_last_device_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert measured_rows(path, "train") == []

    def row(size: str, dry_run: bool = False, **more) -> dict:
        return {"kind": "train", "size": size, "dry_run": dry_run, **more}

    other, card = ({"kind": "machine", "device": d, "dry_run": False} for d in ("a", "b"))
    again = card | {"torch": "newer"}
    old, new, skipped = row("70m", ms=5.0), row("70m", ms=6.0), row("70m", failed="skipped")
    failed, dry = row("160m", failed="out of memory"), row("70m", True, ms=9.0)
    lines = [other, row("1b", ms=1.0), card, old, failed, again, new, skipped, dry]
    write_rows(lines, path, lambda _: None)
    assert measured_rows(path, "train") == [again, new, failed]
    assert measured_rows(path, "operation") == []


def test_the_fastest_micro_batch_of_an_implementation_counts() -> None:
    def row(micro_rows: int, **more) -> dict:
        return {"size": "1b", "implementation": "ours", "micro_rows": micro_rows, **more}

    old, new, other = row(8, tokens_per_s=9.0), row(8, tokens_per_s=7.0), row(4, tokens_per_s=8.0)
    failed = row(32, failed="out of memory")
    assert fastest_steps([old, failed, other]) == [old]
    assert fastest_steps([old, new, other]) == [other], "the newest of a micro-batch"
    assert fastest_steps([failed]) == [failed]


def test_the_rates_of_a_gpu_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(train, "measure", lambda job: ())
    (first,) = train.bench_train(("70m",), "cuda", dry_run=True, rates_from=path)
    write_rows([first], path, lambda _: None)
    (again,) = train.bench_train(("70m",), "cuda", dry_run=True, rates_from=path)
    assert again == first
    write_rows([first | {"device": "another"}], tmp_path / "b.jsonl", lambda _: None)
    (other,) = train.bench_train(("70m",), "cuda", dry_run=True, rates_from=tmp_path / "b.jsonl")
    assert other["copy_gb_per_s"] != first["copy_gb_per_s"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --rows 8", "--rows does not apply to `bench train` on the device cpu"),
        (
            "train --device cuda --dry-run --rows 3",
            "must be a power of two of rows, at most 1,024, so that it divides an update of 1,024 "
            "rows; got 3",
        ),
        ("train --device cuda", "bench train --device cuda needs a GPU, but torch finds no CUDA"),
        ("train --device cuda --sizes 9b --dry-run", "unknown size '9b'"),
        (
            "train --device cuda --dry-run --write",
            "--write does not apply to `bench train` on the device cuda",
        ),
        ("train --budget 3", "--budget does not apply to `bench train` on the device cpu"),
        (
            "train --device cuda --dry-run --budget 9min",
            "expected a time such as 540",
        ),
    ],
)
def test_bad_options_are_refused(words: str, message: str, capsys: pytest.CaptureFixture) -> None:
    if "finds no CUDA" in message and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["bench", *words.split()]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("benchmark", "option"),
    [("train", "--kernels adamw"), ("terms", "--device cuda"), ("terms", "--sizes 7k"),
     ("attention", "--sizes 160m"), ("kernels", "--rounds 0")],
)  # fmt: skip
def test_options_of_other_benchmarks_are_refused(
    benchmark: str, option: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", benchmark, *option.split()])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_a_dry_run_writes_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(
        train, "measure", lambda job: train.failures(job, job.implementations, "no")
    )
    words = ["bench", "train", "--device", "cuda", "--dry-run", "--sizes", "70m"]
    assert main(words) == 0 and not (tmp_path / "results").exists()
    assert "[dry run: not a result]" in capsys.readouterr().out
    file = tmp_path / "rows.jsonl"
    assert main([*words, "--json", str(file)]) == 0
    assert {json.loads(line)["dry_run"] for line in file.read_text().splitlines()} == {True}


# --- profiles --------------------------------------------------------------------------------


def test_kernels_belong_to_the_parts_of_a_step() -> None:
    names = {
        "attention": ["cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_6",
                      "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>(...)",
                      "fmha_cutlassB_bf16_aligned_64x64_k64_sm80"],
        "products": ["nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT", "ampere_bf16_s16816gemm_bf16",
                     "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64"],
        "loss": ["cross_entropy_kernel"],
        "optimizer": ["adamw_kernel"],
        "elementwise": ["pair_backward_kernel", "triton_red_fused_add_3", "rotate_kernel"],
    }  # fmt: skip
    for part, kernels_of_part in names.items():
        assert {train.part_of(name) for name in kernels_of_part} == {part}


def test_a_profile_accounts_for_the_time_of_an_update() -> None:
    x = torch.randn(600, 600)

    def step(batch: np.ndarray) -> None:
        torch.mm(x, x)
        time.sleep(0.02)
        torch.tanh(x[:10])

    parts = train.profile(step, np.zeros((1, 2)), torch.device("cpu"))
    assert parts["products"] > parts["elementwise"] > parts["loss"] == 0
    assert parts["idle"] > 15, "nothing ran for 20 ms"
    predicted = cost_model.predicted_profile(OFFICIAL_SIZES["160m"].model(), "ours", 32_768)
    assert predicted.keys() == parts.keys() - {"idle"}


def test_a_measurement_that_was_cut_replaces_no_complete_one(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    machine = {"kind": "machine", "device": "a card", "dry_run": False}
    row = {"kind": "train", "size": "160m", "implementation": "x", "micro_rows": 4}
    row["dry_run"] = False
    complete, cut = row | {"ms": 1.0, "tokens_per_s": 5.0}, row | {"ms": 2.0, "partial": True}
    for rows, expected in (([cut], 2.0), ([cut, complete], 1.0), ([complete, cut], 1.0)):
        path.unlink(missing_ok=True)
        write_rows([machine, *rows], path, lambda _: None)
        assert measured_rows(path, "train")[1]["ms"] == expected
        assert fastest_steps(rows)[0]["ms"] == expected
