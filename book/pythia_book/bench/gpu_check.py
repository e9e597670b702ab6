"""Checks the kernels on a GPU and measures speed, within a time limit (the command gpu-check).

Each step is a `bench` or `study` command in its own process with a time limit, so a failing or
hanging step does not affect the others. A step starts only if its estimated duration fits the
remaining time.

Results are written to one folder as soon as they are known, so they survive the loss of the
machine: a .jsonl file for each name in `FILES`, and the printed output in check.log. A later call
adds to the same files. The printed table ends with the decisions that follow from all results
(pythia_book.bench.decisions).
"""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pythia_book.bench import cost_model
from pythia_book.bench.decisions import decisions, format_decision
from pythia_book.bench.rows import (
    DRY_RUN,
    Row,
    append,
    fastest_steps,
    format_row,
    measured_rows,
    read_rows,
    require_cuda,
    write_rows,
)
from pythia_core.errors import ConfigError, PythiaError, one_of
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.util.files import project_root, results_dir
from pythia_core.util.stopping import Stopped
from pythia_core.util.workers import exit_with_parent

PARTS = ("correctness", "attention", "train", "kernels", "study")
DEFAULT_PARTS = PARTS[:-1]
FIRST_SIZE = "160m"
STUDY = "gender_bias"
SCALE = "gpu-short"
FILES = ("correctness", "attention", "train", "kernels", "steps")
"""Names of the result files in the results folder, without the suffix .jsonl."""
OVERTIME = 1.5
"""A step is stopped after this multiple of its estimated duration. In a dry run, which may be on a
slow machine, a step is stopped only at the end of the budget."""
CLOSING_SECONDS = 15.0
"""A benchmark starts no more measurements once only this many seconds of its time are left."""
PROGRESS_SECONDS = 15.0
"""Seconds between two lines that show the progress of a step."""
OLDEST_TORCH = (2, 11)
LARGEST_GPU = 150e9
"""Assumed GPU memory, in bytes. A larger memory fits more rows, which take more time."""
SECONDS = {"correctness": 150.0, "attention": 60.0, "train": 15.0, "kernels": 15.0, "study": 30.0}
"""Guessed seconds of each part on a GPU. Training, kernels and studies take longer (see `plan`)."""
DRY_RUN_SECONDS = dict(zip(SECONDS, (12.0, 8.0, 25.0, 10.0, 90.0), strict=True))
"""Guessed seconds of each part in a dry run."""
TEXT_SECONDS, OPERATION_SECONDS = 40.0, 12.0
"""Guesses: seconds to prepare the text, and to compile and time one operation at one size."""
EXIT_SECONDS = 5.0
"""Seconds that a process gets to end after a signal."""


@dataclass(frozen=True)
class Step:
    """One process of gpu-check, which runs a `bench` or `study` command.

    Attributes:
        command: a module and its arguments. {budget} in an argument becomes the number of seconds
            in which the step may start measurements.
        file: name of the result file in the results folder; "" if the step has none.
        seconds: estimated duration.
        extra: whether the step is optional: skipping it for lack of time is not a failure.
    """

    name: str
    command: tuple[str, ...]
    file: str
    seconds: float
    extra: bool = False


# --- plan ----------------------------------------------------------------------------------------


def plan(
    out: Path,
    only: Sequence[str],
    sizes: Sequence[str],
    dry_run: bool,
    kernels: Sequence[str] = (),
    studies: Sequence[str] = (STUDY,),
) -> list[Step]:
    """Return the steps of a check, most useful first. The durations are rough guesses.

    Args:
        out: results folder.
        only: a subset of PARTS (default: all but the study).
        sizes: names in ORDER of pythia_book.bench.train; default: all, or only 160m in a dry run.
            By default, the steps of all sizes but 160m are `extra`.
        kernels: the operations to time (default: all).
        studies: the studies that the part `study` runs, at the scale `gpu-short`.

    Raises:
        ConfigError: an unknown part, size, kernel or study.
    """
    from pythia_book.bench import train
    from pythia_book.bench.kernels import KERNELS, SIZES
    from pythia_book.budget import studies_table

    for names, accepted, kind in (
        (only, PARTS, "part of gpu-check"),
        (sizes, train.ORDER, "size of gpu-check"),
        (kernels, KERNELS, "kernel"),
    ):
        for name in names:
            if name not in accepted:
                raise ConfigError(one_of(name, accepted, kind))
    dry = ("--dry-run",) if dry_run else ()

    def bench(benchmark: str, size: str, seconds: float, *more: str) -> Step:
        """Return the step of one benchmark; if `size` is "", the benchmark chooses the sizes."""
        command = ("pythia_core", "bench", benchmark, *more, *dry, "--budget", "{budget}", "--json")
        command = (*command, str(out / f"{benchmark}.jsonl"), *(("--sizes", size) if size else ()))
        extra = bool(size) and not sizes and size != FIRST_SIZE
        return Step(f"{benchmark} {size}".strip(), command, f"{benchmark}.jsonl", seconds, extra)

    def training_seconds(size: str) -> float:
        """Estimate the duration of the main comparison and, at one size, of the options."""
        job = train.Job(size, ())
        return sum(
            train.seconds_needed(i, job, train.estimated_rows(i, job, LARGEST_GPU))
            for group in train.ROUNDS_ON_GPU[: 2 if size == FIRST_SIZE else 1]
            for i in group
        )

    guess = DRY_RUN_SECONDS if dry_run else SECONDS
    chosen_kernels = ("--kernels", ",".join(kernels)) if kernels else ()
    steps: dict[str, list[Step]] = {part: [] for part in only or DEFAULT_PARTS}
    for size in sizes or (
        (FIRST_SIZE,) if dry_run else sorted(train.ORDER, key=lambda s: s != FIRST_SIZE)
    ):
        text_ready = train.text_file().is_file() or steps.get("train")
        seconds = guess["train"] + (0 if text_ready else TEXT_SECONDS)
        seconds += 0 if dry_run else training_seconds(size)
        steps.get("train", []).append(bench("train", size, seconds, "--device", "cuda"))
        if sizes or size in SIZES:
            seconds = guess["kernels"]
            seconds += 0 if dry_run else OPERATION_SECONDS * len(kernels or KERNELS)
            steps.get("kernels", []).append(bench("kernels", size, seconds, *chosen_kernels))
    if "correctness" in steps:
        steps["correctness"] = [bench("correctness", "", guess["correctness"])]
    if "attention" in steps:
        steps["attention"] = [bench("attention", "", guess["attention"])]
    if "study" in steps:
        scale, predicted = "smoke" if dry_run else SCALE, studies_table(SCALE, studies)
        for name, seconds in zip(studies, predicted.total_s, strict=True):
            command = ("pythia_core", "study", name, "--scale", scale)
            seconds = guess["study"] + (0 if dry_run else OVERTIME * seconds)
            steps["study"].append(Step(f"study {name}", command, "", seconds))
    chosen = [step for part in PARTS for step in steps.get(part, ())]
    return sorted(chosen, key=lambda step: step.extra)  # stable: the first size of everything first


# --- running -------------------------------------------------------------------------------------


def gpu_check(
    budget: float,
    out: Path,
    only: Sequence[str] = (),
    sizes: Sequence[str] = (),
    dry_run: bool = False,
    kernels: Sequence[str] = (),
    studies: Sequence[str] = (STUDY,),
) -> None:
    """Run the steps that fit the budget, then print a table of all results in `out`.

    Args:
        budget: total seconds for all steps.
        out: results folder, which may already hold results of an earlier call.
        only, sizes, dry_run, kernels, studies: as in `plan`.

    Raises:
        ConfigError: there is no CUDA device (outside a dry run), torch is too old, a part, size or
            kernel is unknown, or `out` would mix results of dry runs and measurements.
        PythiaError: a step failed or was stopped, a required step was skipped, or no space is left
            in `out`. The error names all these steps.
        KeyboardInterrupt: the user stopped the command; the table is printed first.
    """
    deadline = time.monotonic() + budget - EXIT_SECONDS
    if not dry_run:
        require_cuda("gpu-check")
    warning = check_software()
    steps = plan(out, only, sizes, dry_run, kernels, studies)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out must be a folder, but {out} is a file")
    if any(row.get("dry_run") is not dry_run for rows in results(out).values() for row in rows):
        kind = "measurements" if dry_run else "a dry run"
        raise ConfigError(
            f"{out} already has the results of {kind}, which must not be mixed with "
            f"{'a dry run' if dry_run else 'measurements'}; name another folder with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    if warning:
        _log(out, f"warning: {warning}")
    unavailable = (OSError, subprocess.TimeoutExpired)
    with open(out / "check.log", "ab") as log, contextlib.suppress(*unavailable):
        subprocess.run(["nvidia-smi"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=20)
    problems = []
    try:
        for row in run_steps(steps, deadline, out, dry_run):
            if row["problem"]:
                problems.append(f"{row['name']} ({row['outcome']})")
    finally:
        _log(out, "\n".join(["", *table(out), "", f"results are in {out}"]))
    if problems:
        raise PythiaError(
            f"{len(problems)} of {len(steps)} steps failed or did not finish: "
            f"{', '.join(problems)}. The output of all steps is in {out / 'check.log'}"
        )


def check_software() -> str:
    """Return what is wrong with the version of Triton and what to do, or "".

    Raises:
        ConfigError: torch is older than OLDEST_TORCH.
    """
    import torch

    from pythia_core.kernels.dispatch import version_problem

    if torch.__version__ < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ConfigError(
            f"gpu-check needs torch {oldest} or newer, but torch {torch.__version__} is installed; "
            f"run `pip install 'torch>={oldest}'`"
        )
    return version_problem()


def run_steps(steps: Sequence[Step], deadline: float, out: Path, dry_run: bool) -> Iterator[Row]:
    """Run the steps; yield the outcome of each as a row, and append the row to steps.jsonl.

    Args:
        deadline: the time.monotonic() value by which all steps must end.

    Raises:
        Stopped: the user interrupted a step; its processes have been ended.
    """
    for step in steps:
        left = deadline - time.monotonic()
        row: Row = {"kind": "step", "name": step.name, "dry_run": dry_run, "seconds": 0.0}
        if left < step.seconds:
            reason = f"about {step.seconds:.0f} s are needed, but {max(0.0, left):.0f} s are left"
            row |= {"outcome": "no time", "why": reason}
        else:
            row |= _run(step, left, out, dry_run)
        row["problem"] = row["outcome"] != "ok" and not (row["outcome"] == "no time" and step.extra)
        if row["problem"] or row["outcome"] == "ok":
            _log(out, f"== {_outcome_text(row)}")
        write_rows([row], out / "steps.jsonl", lambda _: None)
        yield row
        if row["outcome"] == "interrupted":
            raise Stopped(f"stopped; the results so far are in {out}", row["signal"])


def _run(step: Step, left: float, out: Path, dry_run: bool) -> Row:
    """Run a step in its own process, up to its time limit; return its outcome as columns."""
    limit = left if dry_run else min(OVERTIME * step.seconds, left)
    budget = left if dry_run else max(1.0, min(step.seconds, limit - CLOSING_SECONDS))
    _log(out, f"== {step.name}: may take {limit:.0f} s of the {left:.0f} s that are left")
    log, file = out / "check.log", out / (step.file or "none")
    log_start, rows_before, began = log.stat().st_size, len(read_rows(file)), time.monotonic()
    process = _start(step, budget, log)
    outcome = reason = ""
    stopped_by: Row = {}
    try:
        while not outcome:
            used = time.monotonic() - began
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(max(0.0, min(PROGRESS_SECONDS, limit - used)))
                outcome = "failed" if code else "ok"
                reason = _exit_reason(code, _last_line(log, log_start))
            if not outcome and time.monotonic() - began >= limit:
                outcome = "stopped at its limit"
            elif not outcome:
                used, rows = time.monotonic() - began, len(read_rows(file)) - rows_before
                line = _last_line(log, log_start)[:90]
                print(f"   {used:.0f} s used, {rows} rows so far; last output: {line}", flush=True)
    except KeyboardInterrupt as stop:
        outcome, stopped_by = "interrupted", {"signal": getattr(stop, "number", signal.SIGINT)}
    finally:
        _end(process)
    new = read_rows(file)[rows_before:]
    # rows without a result: failed measurements, and the description of the machine
    failures = [row.get("failed") for row in new if not {"ms", "outcome"} & set(row)]
    if (
        outcome == "ok"
        and step.command[:2] == ("pythia_core", "bench")
        and len(failures) == len(new)
    ):
        outcome, reason = "failed", f"nothing was measured: {next(filter(None, failures), '')}"
    if outcome == "ok" and step.command[:2] == ("pythia_core", "study"):
        _, _, name, _, scale = step.command
        shutil.make_archive(str(out / name), "xztar", results_dir(), f"{name}/{scale}")
    seconds = round(time.monotonic() - began, 1)
    return {"outcome": outcome, "why": reason[:300], "seconds": seconds, **stopped_by}


def _exit_reason(code: int, last_line: str) -> str:
    """Say why a process failed, given its exit code and its last line of output; "" for code 0."""
    if code >= 0:
        return last_line if code else ""
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    perhaps = " (possibly out of memory)" if -code == signal.SIGKILL else ""
    return f"killed by {name}{perhaps}; last output: {last_line}"


def _start(step: Step, budget: float, log: Path) -> subprocess.Popen[bytes]:
    """Start a step in its own session, so that all its processes can be ended together."""
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    code = "from pythia_book.bench.gpu_check import child; child()"
    arguments = [part.replace("{budget}", f"{budget:.0f}") for part in step.command]
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=project_root(),
            env=environment,
        )


def child() -> None:
    """Run a module as `python -m` does; die with all children when the parent process exits."""
    parent, module, *arguments = sys.argv[1:]
    exit_with_parent(int(parent), lambda: os.killpg(0, signal.SIGKILL))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process of a step, if the process still runs, and all its remaining children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)


def _log(out: Path, text: str) -> None:
    """Print a text, and append it to check.log in the results folder."""
    print(text, flush=True)
    append(out / "check.log", text + "\n")


def _last_line(log: Path, offset: int) -> str:
    """Return the last non-blank line of a log after the byte `offset`; "" if there is none."""
    with open(log, "rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


# --- results -------------------------------------------------------------------------------------


def results(out: Path) -> dict[str, list[Row]]:
    """Map each name in FILES to the rows of that file in a results folder."""
    return {name: read_rows(out / f"{name}.jsonl") for name in FILES}


def table(out: Path) -> list[str]:
    """Format the results in a folder as text lines; of repeated measurements, use the newest."""
    rows = results(out)
    mark = DRY_RUN if any(row.get("dry_run") for kind in rows.values() for row in kind) else ""
    checks = {row["name"]: row for row in rows["correctness"] if "name" in row}
    outcomes = [row["outcome"] for row in checks.values()]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes))]
    failed = [row for row in checks.values() if row["outcome"] == "failed"]
    counts += [f"{row['name']}: {row['why']}"[:200] for row in failed]
    machines = [row for row in rows["correctness"] if "triton" in row]
    if machines and not machines[-1]["triton"]:
        counts.append("Triton was not available, so its kernels were not checked")

    tflops: dict[tuple[int, int, str], dict[bool, str]] = {}
    for row in rows["attention"]:
        if "ms" in row:
            key = row["seq_len"], row["head_dim"], row["library"]
            bits = "" if row["bits_repeat"] else ", bits differ"
            tflops.setdefault(key, {})[row["deterministic"]] = f"{row['tflops']:.3g}{bits}"
    attention = [
        f"{seq_len:>5} tokens, head dim {dim:>3}, {library:<12} "
        f"{rates.get(False, '-')} ({rates.get(True, '-')})"
        for (seq_len, dim, library), rates in sorted(tflops.items())
    ]

    train = fastest_steps([row for row in rows["train"] if "tokens_per_s" in row])

    ms: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows["kernels"]:
        if "ms" in row:
            ms.setdefault((row["size"], row["kernel"]), {})[row["implementation"]] = (
                f"{row['ms']:.3g}"
            )
    kernels = [
        f"{size:>5} {kernel:<20} {', '.join(map(' '.join, times.items()))}"
        for (size, kernel), times in ms.items()
    ]

    steps = {row["name"]: row for row in rows["steps"]}
    blocks = {
        "correctness": counts,
        "attention, TFLOP/s forward and backward (with deterministic kernels)": attention,
        "training": [format_row(row).removeprefix(mark) for row in train],
        "ms per part of an update with one micro-batch (predicted for one H100)": [
            _profile_text(row) for row in train if row.get("profile")
        ],
        "kernels, ms forward and backward": kernels,
        "steps": [_outcome_text(row) for row in steps.values()],
    }
    if rows["kernels"] or rows["attention"]:
        operations = measured_rows(out / "kernels.jsonl", "operation")
        libraries = measured_rows(out / "attention.jsonl", "attention")
        decided = decisions(operations[1:], libraries[1:])  # without the machine's row
        blocks["decisions"] = [format_decision(row) for row in decided]
    return [
        line
        for title, lines in blocks.items()
        if lines
        for line in (f"{title}:", *(f"  {mark}{text}" for text in lines))
    ]


def _profile_text(row: Row) -> str:
    """Format the profile of a row of the kind "train", with predictions, as one line of text."""
    tokens = row["micro_rows"] * row["seq_len"]
    name = "ours" if row["family"] == "ours" else "compiled"
    predicted = cost_model.predicted_profile(OFFICIAL_SIZES[row["size"]].model(), name, tokens)
    parts = ", ".join(
        f"{part} {ms:.3g}" + (f" ({predicted[part]:.3g})" if part in predicted else "")
        for part, ms in row["profile"].items()
    )
    return f"{row['size']:>5} {row['label']:<28} {parts}"


def _outcome_text(row: Row) -> str:
    """Format the outcome of a step as one line of text."""
    took = f", {row['seconds']:.0f} s" if row["seconds"] else ""
    reason = f": {row['why']}" if row["why"] else ""
    return f"{row['name']}: {row['outcome']}{took}{reason}"
