"""The GPU check finds wrong numbers, bits that differ, unwritten memory, and failing kernels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pythia_book.bench import correctness
from pythia_book.bench.correctness import _training_problem, check_gpu
from pythia_book.bench.rows import SKIPPED
from torch import Tensor

from pythia_core import kernels
from pythia_core.__main__ import main
from pythia_core.errors import ConfigError, PythiaError
from pythia_core.kernels import dispatch

GELU = kernels.bias_gelu


def kernel_failures(capsys: pytest.CaptureFixture) -> dict[str, str]:
    """Run the command; return the failed checks, name -> reason."""
    assert main(["bench", "correctness", "--dry-run", "--sizes", "31m", "--budget", "9m"]) == 1
    printed = capsys.readouterr()
    rows = [json.loads(text) for text in printed.out.splitlines()]
    failed = {row["name"]: row["why"] for row in rows[1:] if row["outcome"] == "failed"}
    assert (
        printed.err
        == f"error: {len(failed)} of {len(rows) - 1} GPU checks failed: {', '.join(failed)}\n"
    )
    return failed


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pythia_book.bench.correctness._training_problem", lambda *_: "")


def test_every_check_passes_in_a_dry_run(tmp_path: Path) -> None:
    path = tmp_path / "correctness.jsonl"
    words = ["bench", "correctness", "--dry-run", "--sizes", "31m,160m", "--json", str(path)]
    assert main(words) == 0
    machine, *rows = map(json.loads, path.read_text().splitlines())
    assert machine["kind"] == "machine" and machine["triton"] is dispatch.use_triton(torch.empty(0))
    assert all(row["dry_run"] for row in rows)
    assert {row["outcome"] for row in rows} == {"passed"}
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) == 4 * 7 + 4
    assert names[0] == "linear_cross_entropy 160m bf16" and names[-1] == "adamw 31m bf16"
    trained = {f"training eager {p}, rows of 32" for p in ("bf16", "fp32", "fp16")}
    assert trained | {"training eager bf16, rows of 64"} < set(names)


def leave_first_row_unwritten(x: Tensor) -> Tensor:
    fresh = torch.empty_like(x)
    fresh[1:] = x[1:]
    return fresh


COUNT = itertools.count()


@pytest.mark.parametrize(
    ("corrupt", "why"),
    [
        (lambda y: 1.02 * y, "outputs differ from fp64 by a relative error of 0.02; at most 0.00"),
        (
            lambda y: y + 0.1 * (y - y.detach()),
            "gradients differ from fp64 by a relative error of 0.1; at most 0.00",
        ),
        (
            leave_first_row_unwritten,
            "outputs differ from fp64 by a relative error of nan; at most ",
        ),
        (lambda y: y * (1 + (next(COUNT) % 2) * 2**-7), "a second call gives different bits"),
    ],
)
def test_a_wrong_kernel_is_named(
    corrupt: Callable[[Tensor], Tensor],
    why: str,
    no_training: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(kernels, "bias_gelu", lambda *a: corrupt(GELU(*a)))
    failed = kernel_failures(capsys)
    expected = {f"bias_gelu_{f} 31m {p}" for f in ("tanh", "erf") for p in ("bf16", "fp32", "fp16")}
    assert set(failed) == expected
    assert failed["bias_gelu_tanh 31m bf16"].startswith(why)


def test_a_failing_kernel_has_no_fallback(
    no_training: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(*_: object) -> Tensor:
        assert dispatch.strict()
        raise RuntimeError("ptxas died\nat length")

    monkeypatch.setattr(kernels, "attention", fails)
    assert set(kernel_failures(capsys).values()) == {"RuntimeError: ptxas died at length"}


def test_a_wrong_training_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _training_problem("eager", "bf16", "cpu", 32) == ""
    norm = kernels.layer_norm
    wrong = replace(kernels.FAST, layer_norm=lambda x, w, *a: norm(x, 2 * w, *a))
    monkeypatch.setattr(kernels, "FAST", wrong)
    why = _training_problem("eager", "fp32", "cpu", 32)
    assert why.startswith("a loss differs from that of plain PyTorch by ") and why.endswith(
        "; at most 0.001 is allowed"
    )


def test_a_gpu_is_checked_in_every_mode_at_two_row_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(correctness, "_kernel_checks", lambda *_: ())
    names = [name for name, _ in correctness._checks(("31m",), "cuda")]
    assert names == [
        *(f"sums of products, torch.{dtype}" for dtype in ("bfloat16", "float16")),
        *(f"training {m} bf16, rows of {n}" for n in (512, 2048) for m in ("eager", "graph")),
        "training compile bf16, rows of 512",
        *(f"training {m} {p}, rows of 512" for p in ("fp32", "fp16") for m in ("eager", "graph")),
    ]


@pytest.mark.parametrize("lost", ["exp_avg", "exp_avg_sq"])
def test_a_resumption_that_loses_a_moment_is_found(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = correctness.Trainer.state

    def without(self: correctness.Trainer) -> dict:
        saved = state(self)
        optimizer = saved["optimizer"]
        optimizer[lost] = torch.zeros_like(optimizer[lost])
        return saved

    monkeypatch.setattr(correctness.Trainer, "state", without)
    why = _training_problem("eager", "bf16", "cpu", 64)
    assert why.startswith(
        "a run that is saved and resumed halfway gives different bits, first in the"
    )
    assert why.endswith("of update 4"), "the first one that an update after resumption changes"


def test_a_second_run_with_other_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    train, runs = correctness._train_tiny_model, []

    def drifting(*arguments, **more):
        losses, weights = train(*arguments, **more)
        runs.append(arguments)
        return losses, weights + 1e-7 * len(runs)

    monkeypatch.setattr(correctness, "_train_tiny_model", drifting)
    why = _training_problem("eager", "fp32", "cpu", 64)
    assert why == "a second run, in eager mode, gives different bits, in the final weights only"


def test_checks_after_the_budget_are_skipped() -> None:
    _, *rows = check_gpu(("31m",), dry_run=True, budget=-1.0)
    assert {(row["outcome"], row["why"]) for row in rows} == {("skipped", SKIPPED)}


def test_unknown_sizes_and_a_missing_gpu_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown sizes 7k; bench correctness .*: 14m, 31m"):
        next(check_gpu(("7k",), dry_run=True))
    if not torch.cuda.is_available():
        with pytest.raises(
            PythiaError, match="bench correctness needs a GPU, but torch finds no CUDA device; to"
        ):
            next(check_gpu())
