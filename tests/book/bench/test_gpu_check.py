"""The GPU check: a step that fails, hangs or is killed does not affect the results of others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pythia_book.bench import gpu_check as check
from pythia_book.bench.gpu_check import Step, plan, run_steps, table
from pythia_book.bench.rows import read_rows, write_rows

from pythia_core.__main__ import main
from pythia_core.errors import PythiaError

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
HANGS = ("timeit", "-n", "1", "-r", "1", "import time; print('asleep', flush=True); time.sleep(60)")
FAILS = ("json.tool", "no such file")
WORKS = ("platform",)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> object:
    """Call `condition` until its value is true; return that value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)
    return value


def processes(word: str) -> list[int]:
    """The other processes that have a word in their command lines."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            matches = word in path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if matches and int(path.parent.name) != os.getpid():
            pids.append(int(path.parent.name))
    return pids


@pytest.fixture(autouse=True)
def results(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder with some text to train on, so that none is downloaded."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "bench").mkdir()
    np.save(folder / "bench" / "tokens.npy", np.arange(5000, dtype=np.uint16))
    monkeypatch.setenv("PYTHIA_RESULTS", str(folder))
    return folder


# --- plan ----------------------------------------------------------------------------------------


def test_the_most_useful_steps_come_first(tmp_path: Path) -> None:
    names = [step.name for step in plan(tmp_path, (), (), False)]
    first = ["correctness", "attention", "train 160m", "kernels 160m"]
    assert names[:6] == [*first, "train 70m", "train 410m"]
    assert len(names) == len(set(names)) == 2 + 8 + 5 and "kernels 1b" in names
    extra = {step.name for step in plan(tmp_path, (), (), False) if step.extra}
    assert extra == set(names[4:]), "none was requested by name"
    assert [step.name for step in plan(tmp_path, (), (), True)] == first
    usual = [step.seconds for step in plan(tmp_path, (), (), False) if not step.extra]
    assert sum(usual) <= 9 * 60 - check.EXIT_SECONDS, "a default call of nine minutes is complete"


def test_a_plan_for_chosen_parts_and_sizes(tmp_path: Path, results: Path) -> None:
    steps = plan(tmp_path, ("kernels", "train"), ("70m", "1.4b"), False)
    assert [s.name for s in steps] == ["train 70m", "train 1.4b", "kernels 70m", "kernels 1.4b"]
    assert not any(step.extra for step in steps)
    assert steps[0].seconds < steps[1].seconds, "the compiler takes longer for more layers"
    (results / "bench" / "tokens.npy").unlink()
    again = plan(tmp_path, ("train",), ("70m", "1.4b"), False)
    assert again[0].seconds > steps[0].seconds, "its text has to be prepared first"
    assert again[1] == steps[1]
    (few,) = plan(tmp_path, ("kernels",), ("1b",), False, ("adamw", "attention"))
    assert few.command[few.command.index("--kernels") + 1] == "adamw,attention"
    assert few.seconds < steps[2].seconds
    (study,) = plan(tmp_path, ("study",), (), False)
    assert study.command == ("pythia_core", "study", "gender_bias", "--scale", "gpu-short")
    assert 200 < study.seconds < 535, "fits a command of nine minutes"
    chosen = plan(tmp_path, ("study",), (), True, studies=("errata", "seeds"))
    assert [step.name for step in chosen] == ["study errata", "study seeds"]
    assert {step.command[-1] for step in chosen} == {"smoke"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--only kernel", "unknown part of gpu-check 'kernel'; accepted: correctness, attention, "),
        ("--only study --studies seed", "unknown study 'seed'"),
        ("--sizes 160k", "unknown size of gpu-check '160k'"),
        ("--kernels gelu", "unknown kernel 'gelu'; accepted: linear_cross_entropy, "),
        ("--budget 9min", "expected a time such as 540 or 540s (seconds), 9m or 1h, got '9min'"),
        ("--budget 0", "got '0'"),
        ("--budget=-3m", "got '-3m'"),
        ("--budget m", "got 'm'"),
    ],
)
def test_unknown_parts_sizes_and_budgets_are_refused(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["gpu-check", "--dry-run", "--out", str(out), *words.split()]) == 1
    assert message in capsys.readouterr().err and not out.exists()


def test_results_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").write_text("")
    assert main(["gpu-check", "--dry-run", "--out", str(tmp_path / "out")]) == 1
    assert "cannot write to" in (said := capsys.readouterr().err) and "--out" in said


@WITHOUT_GPU
def test_without_a_gpu_there_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["gpu-check", "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "no CUDA device" in message and "--dry-run" in message and len(message.splitlines()) == 1


# --- running -------------------------------------------------------------------------------------


def test_steps_that_fail_or_hang_do_not_affect_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    steps = [
        Step("fails", FAILS, "", 20.0),
        Step("hangs", HANGS, "", 10.0),
        Step("takes long", WORKS, "", 1000.0),
        Step("takes long, extra", WORKS, "", 1000.0, extra=True),
        Step("works", WORKS, "", 20.0),
    ]
    began = time.monotonic()
    rows = list(run_steps(steps, began + 100, tmp_path, False))
    outcomes = {row["name"]: row["outcome"] for row in rows}
    assert outcomes == {
        "fails": "failed",
        "hangs": "stopped at its limit",
        "takes long": "no time",
        "takes long, extra": "no time",
        "works": "ok",
    }
    assert "No such file" in rows[0]["why"]
    assert 15.0 <= rows[1]["seconds"] < 30.0
    assert [row["name"] for row in rows if row["problem"]] == ["fails", "hangs", "takes long"]
    assert read_rows(tmp_path / "steps.jsonl") == rows
    output = capsys.readouterr().out
    assert "== hangs: may take 15 s of the " in output and " s that are left" in output
    assert "asleep" in (tmp_path / "check.log").read_text()
    assert not processes("asleep")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGKILL, "killed by SIGKILL (possibly out of memory); last output: warming up"),
        (signal.SIGSEGV, "killed by SIGSEGV; last output: warming up"),
    ],
)
def test_the_signal_that_killed_a_step_is_named(
    number: signal.Signals, why: str, tmp_path: Path
) -> None:
    kill = f"import os; print('warming up', flush=True); os.kill(os.getpid(), {number:d})"
    steps = [Step("dies", ("timeit", "-n", "1", "-r", "1", kill), "", 20.0),
             Step("works", WORKS, "", 20.0)]  # fmt: skip
    dies, works = run_steps(steps, time.monotonic() + 100, tmp_path, False)
    assert (dies["outcome"], dies["why"]) == ("failed", why) and works["outcome"] == "ok"


def test_a_full_disk_is_named_and_the_rows_before_are_kept(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a small disk."""
    path = tmp_path / "rows.jsonl"
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from pythia_book.bench.rows import write_rows\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "write_rows(({'number': n} for n in range(99)), Path(sys.argv[1]), print)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"pythia_core.errors.PythiaError: no space left to write {path} (File")
    assert "are kept. Free some space" in last
    kept = done.stdout.splitlines()
    assert len(kept) == 7 and len(read_rows(path)) >= 7, "14 bytes a line"
    with pytest.raises(PythiaError, match=r"no space left to write /dev/full \(No space left"):
        write_rows([{"a": 1}], Path("/dev/full"), lambda _: None)


def test_unsuitable_versions_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    problem = "torch 2.11.0 was built for Triton 3.6.0, but Triton 3.7.1 is installed"
    monkeypatch.setattr("pythia_core.kernels.dispatch.version_problem", lambda: problem)
    monkeypatch.setattr(check, "plan", lambda *_: [])
    words = ["gpu-check", "--dry-run", "--out", str(tmp_path)]
    assert main(words) == 0
    assert f"warning: {problem}" in capsys.readouterr().out
    assert problem in (tmp_path / "check.log").read_text()
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.10.1+cu128"))
    assert main(words) == 1
    message = capsys.readouterr().err
    assert "gpu-check needs torch 2.11 or newer, but torch 2.10.1+cu128 is installed" in message
    assert len(message.splitlines()) == 1


LACKING = "datatrove, datasets, lm_eval, papermill, nbformat, jupyter_book, IPython"


def test_the_steps_import_nothing_that_a_gpu_machine_lacks() -> None:
    code = (
        "import sys\n"
        f"lacking = {LACKING.split(', ')}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in lacking: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from pythia_core.__main__ import main\n"
        "from pythia_book.bench import correctness, gpu_check, kernels, train\n"
        "sys.exit(main('bench kernels --dry-run --sizes 31m --kernels adamw'.split())\n"
        "    or main('bench attention --dry-run --budget 1'.split())\n"
        "    or main('bench train --device cuda --dry-run --sizes 70m --budget 1'.split()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "adamw" in done.stdout and "ours eager" in done.stdout


def test_a_dry_run_ignores_the_estimated_durations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of a GPU: they must not prevent a step from starting or finishing."""
    started = []
    monkeypatch.setattr(
        check, "_run", lambda step, *_: started.append(step) or {"outcome": "ok", "why": ""}
    )
    check.gpu_check(20.0, tmp_path / "a", only=("attention", "kernels"), dry_run=True)
    assert [step.name for step in started] == ["attention", "kernels 160m"]
    monkeypatch.undo()
    slow = Step("slow", ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(3)"), "", 0.1)
    (row,) = run_steps([slow], time.monotonic() + 60, tmp_path, True)
    assert row["outcome"] == "ok"


def test_a_benchmark_without_a_measurement_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark itself exits with 0, but its rows contain no result for the GPU."""
    step = Step("attention", ("pythia_core", "bench"), "attention.jsonl", 20.0)

    def start(step: Step, *_: object) -> subprocess.Popen[bytes]:
        row = {"failed": "CUDA error: an illegal memory access"}
        write_rows([row], tmp_path / step.file, lambda _: None)
        return subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)

    monkeypatch.setattr(check, "_start", start)
    (row,) = run_steps([step], time.monotonic() + 100, tmp_path, True)
    assert row["outcome"] == "failed"
    assert row["why"] == "nothing was measured: CUDA error: an illegal memory access"


def test_failures_are_named_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    steps = [Step("fails", FAILS, "", 20.0), Step("works", WORKS, "", 20.0)]
    monkeypatch.setattr(check, "plan", lambda *_: steps)
    words = ["gpu-check", "--dry-run", "--budget", "2m", "--out", str(tmp_path)]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "1 of 2 steps failed or did not finish: fails (failed)" in printed.err
    assert "works: ok" in printed.out
    monkeypatch.setattr(check, "plan", lambda *_: steps[1:])
    assert main(words) == 0
    (tmp_path / "steps.jsonl").unlink()  # as after a kill in the first step
    write_rows([{"kind": "attention", "dry_run": True}], tmp_path / "attention.jsonl", print)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main([word for word in words if word != "--dry-run"]) == 1
    assert "has the results of a dry run, which must not be mixed" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_results_are_complete_rows_after_a_stop(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    words = ["gpu-check", "--dry-run", "--only", "kernels", "--sizes", "160m,31m,1b"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pythia_core", *words, "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: len(read_rows(out / "kernels.jsonl")) > 3)
        assert len(processes(str(out))) == 2
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    wait_for(lambda: not processes(str(out)), 10)
    text = (out / "kernels.jsonl").read_text()
    assert text.endswith("\n") and all(map(json.loads, text.splitlines()))
    if number == signal.SIGKILL:
        assert process.returncode == -number
        return
    assert process.returncode == 128 + number
    assert stderr.startswith(f"stopped; the results so far are in {out}: run the same command")
    assert len(stderr.splitlines()) == 1
    assert "kernels, ms forward and backward:" in stdout
    assert "kernels 160m: interrupted" in stdout and "kernels 31m" not in stdout


@pytest.mark.slow
def test_a_dry_run_from_end_to_end(results: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["gpu-check", "--dry-run", "--budget", "9m"]) == 0
    out = results / "gpu-check"
    printed = capsys.readouterr().out
    assert len(list(out.iterdir())) <= 8
    assert {row["outcome"] for row in read_rows(out / "steps.jsonl")} == {"ok"}
    checks = read_rows(out / "correctness.jsonl")[1:]
    assert {row["outcome"] for row in checks} == {"passed"}
    names = {row["name"] for row in checks}
    assert {"adamw 160m bf16", "training eager bf16, rows of 32"} <= names
    assert any("ms" in row for row in read_rows(out / "attention.jsonl"))
    assert any("tokens_per_s" in row for row in read_rows(out / "train.jsonl"))
    assert {row["size"] for row in read_rows(out / "kernels.jsonl") if "ms" in row} == {"160m"}
    _, _, table_text = printed.partition("\ncorrectness:\n")
    lines = [text for text in table_text.splitlines() if text.startswith("  ")]
    assert lines and all(text.startswith("  [dry run: not a result] ") for text in lines)
    for name in check.FILES:
        assert {row["dry_run"] for row in read_rows(out / f"{name}.jsonl")} == {True}, name
    titles = ("correctness:", "attention, TFLOP/s", "training:", "kernels, ms", "steps:")
    for title in (*titles, "decisions:"):
        assert f"\n{title}" in printed


# --- results -------------------------------------------------------------------------------------


def test_damaged_lines_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    write_rows([{"a": 4}, {"a": 5}], path, lambda _: None)
    assert read_rows(path) == [{"a": 1}, {"a": 2}, {"a": 4}, {"a": 5}]
    assert caplog.messages == [f"{path} has damaged lines, which were skipped: line 3"], "once"
    path.write_bytes(b'{"a": 1}\n[2]\n\xff\x00\n\n')
    assert read_rows(path) == [{"a": 1}] and "lines 2, 3" in caplog.messages[-1]


@pytest.mark.parametrize("mark", ["", "[dry run: not a result] "])
def test_the_table_has_the_newest_measurements(tmp_path: Path, mark: str) -> None:
    def write(name: str, *rows: dict) -> None:
        marked = [{**row, "dry_run": bool(mark)} for row in rows]
        write_rows(marked, tmp_path / name, lambda _: None)

    machine = {"kind": "machine", "device": "a card"}
    attention = {"kind": "attention", "seq_len": 2048, "head_dim": 64, "library": "flash"}
    attention["ms"] = 1.0
    write(
        "attention.jsonl",
        machine,
        {**attention, "deterministic": False, "bits_repeat": False, "tflops": 400.0},
        {**attention, "deterministic": True, "bits_repeat": True, "tflops": 250.0},
        {"kind": "attention", "library": "cudnn", "failed": "not here"},
    )
    kernel = {"kind": "operation", "size": "1b", "kernel": "adamw", "graph": True}
    write(
        "kernels.jsonl",
        machine,
        {**kernel, "implementation": "ours", "ms": 9.0},
        {**kernel, "implementation": "reference", "ms": 4.0},
        {**kernel, "implementation": "ours", "ms": 2.0},
        {**kernel, "implementation": "torch.compile (inductor)", "ms": 2.2},
        {**kernel, "implementation": "liger", "failed": "not here"},
    )
    write(
        "correctness.jsonl",
        {"kind": "machine", "device": "a card", "triton": False},
        {"name": "adamw 1b bf16", "outcome": "failed", "why": "was right later"},
        {"name": "attention 1b bf16", "outcome": "failed", "why": "outputs differ from fp64 by 1"},
        {"name": "adamw 1b bf16", "outcome": "passed", "why": ""},
    )
    lines = table(tmp_path)
    start = lines.index("decisions:")
    by_kernel = dict(text.removeprefix(f"  {mark}").split(": ", 1) for text in lines[start + 1 :])
    kept = "not measured" if mark else "keep; torch.compile takes 1.1 times as long (1b 1.1)"
    assert by_kernel["adamw_triton"].startswith(kept), "a dry run decides nothing"
    assert by_kernel["gelu_triton"].startswith("not measured")
    assert lines[:start] == [
        "correctness:",
        f"  {mark}1 failed",
        f"  {mark}1 passed",
        f"  {mark}attention 1b bf16: outputs differ from fp64 by 1",
        f"  {mark}Triton was not available, so its kernels were not checked",
        "attention, TFLOP/s forward and backward (with deterministic kernels):",
        f"  {mark} 2048 tokens, head dim  64, flash        400, bits differ (250)",
        "kernels, ms forward and backward:",
        f"  {mark}   1b adamw                ours 2, reference 4, torch.compile (inductor) 2.2",
    ]
