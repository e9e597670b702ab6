"""Processes that another package forks inside our signal handling end on a signal."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable

import pytest

from pythia_core.util.stopping import interruptible, stop_requests


@pytest.mark.parametrize("block", [interruptible, stop_requests])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_forked_process_has_the_default_signals(block: Callable, number: int) -> None:
    with block():
        assert signal.getsignal(number) is not signal.SIG_DFL
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=lambda: theirs.send(signal.getsignal(number)))
        process.start()
        process.join()
        assert ours.recv() is signal.SIG_DFL
        assert signal.getsignal(number) is not signal.SIG_DFL  # in this process nothing changes
