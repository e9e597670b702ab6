"""The benchmark of a training step: its implementations, the search for rows that fit, its rows."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pythia_book.bench import train
from pythia_book.bench.rows import format_row, measured_rows, write_rows

from pythia_core.__main__ import main
from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.kernels import PLAIN
from pythia_core.model import GPTNeoX
from pythia_core.suite import scale_named
from pythia_core.training.metrics import flops_per_token

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
        return list(train.bench_train(("160m",), "cuda", dry_run=True, progress=False))


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
        assert row["steps_timed"] >= 20
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
        tokens = row["rows"] * row["seq_len"]
        assert row["tokens_per_update"] == tokens
        assert row["tokens_per_s"] == pytest.approx(1e3 * tokens / row["ms"])
        assert row["mfu"] is None and row["peak_bytes"] is None
    assert "[dry run: not a result]" in format_row(measured[0])


def test_later_jobs_of_a_size_reuse_the_rows_that_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = []

    def fake(job: train.Job):
        jobs.append((job.size, job.rows))
        yield from (
            job.columns | i.columns | {"rows": 8, "failed": "no"} for i in job.implementations
        )

    monkeypatch.setattr(train, "measure", fake)
    sizes = ("31m", "160m", "70m")
    list(train.bench_train(sizes, "cuda", dry_run=True))
    most_useful_first = ["70m", "160m", "31m"]
    assert jobs == [(s, 0) for s in most_useful_first] + [(s, 8) for s in most_useful_first] * 2


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
    (row,) = train.measure(replace(DRY, implementations=FIRST[-1:]))
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
    job = replace(DRY, implementations=(FIRST[-1], train.ROUNDS_ON_GPU[2][-1]))
    rows = {r["implementation"]: r for r in train.measure(job)}
    assert "failed" not in rows["ours eager, bf16"]
    assert rows["ours eager, bf16"]["alternates_with"] == ["ours eager, bf16"]
    assert rows["plain eager, bf16"]["alternates_with"] == [
        "ours eager, bf16",
        "plain eager, bf16",
    ]


# --- memory and text -------------------------------------------------------------------------


def test_the_search_for_rows_starts_at_twice_the_estimate() -> None:
    job = train.Job("1.4b", FIRST)
    tries = train.rows_to_try(job, 80e9)
    assert tries == [2**p for p in range(len(tries) - 1, -1, -1)]
    estimate, fitting = tries[1] * job.seq_len, train.SIZING_IMPLEMENTATION
    need = fitting.activation_bytes(job.model, estimate) + fitting.resident_bytes(
        job.model, estimate
    )
    assert need < 80e9 < need + fitting.activation_bytes(job.model, estimate)
    assert train.rows_to_try(replace(job, size="160m"), 80e9)[0] == 16
    assert train.rows_to_try(replace(job, size="14m"), 80e9)[0] == 32
    assert train.rows_to_try(replace(job, rows=3), 80e9) == [3]


def test_rows_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def update(job, rows):
        tried.append(rows)
        return torch.OutOfMemoryError("CUDA out of memory") if rows > 4 else None

    monkeypatch.setattr(train, "_try_update", update)
    monkeypatch.setattr(train, "_total_bytes", lambda device: 80e9)
    monkeypatch.setattr(train, "_release", lambda device: None)
    assert train.fitting_rows(train.Job("160m", FIRST)) == 4
    assert tried == [16, 8, 4]


def test_groups_fit_into_memory_and_are_complete() -> None:
    job = train.Job("1.4b", ALL)
    groups = train.groups(job, 8, 80e9)
    assert [c for group in groups for c in group] == list(ALL) and len(groups) > 2
    assert len(train.groups(replace(job, size="14m"), 4, 80e9)) == 1
    assert all(len(g) == 1 for g in train.groups(job, 8, 1e9))


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
    with pytest.raises(DataError, match=r"uint16 and shape \(3, 2049\)"):
        train.text_tokens()


# --- the file and the command ----------------------------------------------------------------


def test_only_measurements_on_the_last_device_count(tmp_path: Path) -> None:
    path, keys = tmp_path / "rows.jsonl", ("size",)
    assert measured_rows(path, "train", keys) == []

    def row(size: str, dry_run: bool = False, **more) -> dict:
        return {"kind": "train", "size": size, "dry_run": dry_run, **more}

    other, card = ({"kind": "machine", "device": d, "dry_run": False} for d in ("a", "b"))
    again = card | {"torch": "newer"}
    old, new, skipped = row("70m", ms=5.0), row("70m", ms=6.0), row("70m", failed="skipped")
    failed, dry = row("160m", failed="out of memory"), row("70m", True, ms=9.0)
    lines = [other, row("1b", ms=1.0), card, old, failed, again, new, skipped, dry]
    write_rows(lines, path, lambda _: None)
    assert measured_rows(path, "train", keys) == [again, new, failed]
    assert measured_rows(path, "operation", keys) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
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
