"""Bars are drawn on terminals and in notebooks; a log gets plain lines."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import sys
import time

import pytest

from pythia_core.util import progress, workers


def test_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv(progress.TERMINAL, raising=False)
    assert list(progress.bar(iterable=range(3))) == [0, 1, 2]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("show", [True, False])
def test_a_notebook_draws_on_the_terminal_that_started_it(
    monkeypatch: pytest.MonkeyPatch, show: bool
) -> None:
    import fcntl
    import struct
    import termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv(progress.TERMINAL, os.ttyname(slave))
    with progress.bar(show, total=2, desc="steps") as bar:
        bar.update(2)
    os.set_blocking(master, False)
    drawn, until = "", time.monotonic() + (5.0 if show else 0.1)
    while "steps" not in drawn and time.monotonic() < until:  # the output arrives in pieces
        with contextlib.suppress(BlockingIOError):
            drawn += os.read(master, 10_000).decode()
    os.close(master)
    os.close(slave)
    assert ("steps" in drawn) is show


def test_a_closed_terminal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.TERMINAL, "/nonexistent/terminal")
    with progress.bar(total=1) as bar:
        bar.update()


def log_file(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A log as the error stream; not a fixture, because pytest replaces the stream after setup."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv(progress.TERMINAL, "")
    return stream


def test_a_log_gets_lines_at_the_beginning_regularly_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = log_file(monkeypatch)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.2)
    with progress.bar(total=40, desc="encoding", unit="row") as bar:
        for _ in range(40):
            time.sleep(0.02)
            bar.update()
    begin, *between, end = log.getvalue().splitlines()
    assert begin == "encoding" and end == "encoding: done in 00:00"
    assert 2 <= len(between) <= 4
    assert all(re.fullmatch(r"encoding: row \d+ of 40, 00:0\d left", line) for line in between)
    assert "\r" not in log.getvalue()


def test_a_stage_interrupted_at_its_start_writes_a_whole_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(io.StringIO):
        def flush(self) -> None:
            raise KeyboardInterrupt

    log_file(monkeypatch)
    monkeypatch.setattr(sys, "stderr", log := Interrupted())
    with pytest.raises(KeyboardInterrupt):
        progress.bar(total=3, desc="encoding")
    gc.collect()
    assert log.getvalue() == "encoding\n"


def test_a_stage_that_fails_is_not_reported_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_file(monkeypatch)
    with pytest.raises(ZeroDivisionError), progress.bar(total=3, desc="encoding", unit="row"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), progress.bar(desc="fetching", bar_format="{desc}"):
        raise ZeroDivisionError
    assert "done" not in log.getvalue()


def test_many_jobs_share_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_file(monkeypatch)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)

    def job(steps: int) -> int:
        with progress.bar(total=steps, unit="step", desc="not shown") as bar:
            for step in range(steps):
                time.sleep(0.2)
                bar.set_postfix_str(f"{step}k tokens/s, loss 1", refresh=False)
                bar.update()
        return steps

    names = ["600k standard", "7k standard"]
    settings = {"desc": "training", "unit": "run", "names": names, "work": [3.0, 1.0]}
    assert workers.parallel_map(job, [4, 2], in_process=True, **settings) == [4, 2]
    lines = log.getvalue().splitlines()
    assert lines[0] == "training 2 runs" and lines[-1].startswith("training 2 runs: done in")
    text = "training run 1 of 2: 56 %, 00:00 left, 600k standard step 3/4, 2k tokens/s"
    assert text in lines, lines
    assert "training run 2 of 2: 75 %, 00:00 left, 7k standard" in lines
    assert "not shown" not in log.getvalue()


def test_when_all_jobs_are_done_the_line_still_names_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = log_file(monkeypatch)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with workers._ProgressLine(True, "measuring", "checkpoint", (), [0.1] * 10) as line:
        for number in range(10):
            line.done(number)
            line.show({})
    assert "measuring checkpoint 10 of 10: 100 %, 00:00 left" in log.getvalue().splitlines()
    assert "11 of 10" not in log.getvalue()


def test_a_silent_bar_of_a_job_reports_nothing() -> None:
    reports: list[tuple[float, str]] = []
    with progress.reporting(lambda *report: reports.append(report)):
        list(progress.bar(False, iterable=range(3)))
        assert not reports
        list(progress.bar(iterable=range(4), unit="row"))
    assert reports[0] == (0.0, "row 0/4")
