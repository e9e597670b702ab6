"""Bars are drawn where a person waits, and nowhere else."""

from __future__ import annotations

import io
import os
import sys

import pytest

from pythia_core.util import progress


def test_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv(progress.TERMINAL, raising=False)
    assert list(progress.bar(iterable=range(3))) == [0, 1, 2]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("show", [True, False])
def test_a_kernel_draws_on_the_terminal_that_started_it(
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
    try:
        drawn = os.read(master, 10_000).decode()
    except BlockingIOError:
        drawn = ""
    os.close(master)
    os.close(slave)
    assert ("steps" in drawn) is show


def test_a_terminal_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.TERMINAL, "/nonexistent/terminal")
    with progress.bar(total=1) as bar:
        bar.update()
