"""Processes that another package forks inside our signal handling end on a signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable

import pytest

from pythia_core.util.stopping import interruptible, stop_requests


@pytest.mark.parametrize("block", [interruptible, stop_requests])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_forked_process(block: Callable, number: int) -> None:
    with block():
        handler = signal.getsignal(number)
        assert handler is not signal.SIG_DFL
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
        try:
            os.kill(process.pid, number)  # perhaps before the process has its own handling
            process.join(10)
            assert process.exitcode == -number
        finally:
            process.kill()
        assert signal.getsignal(number) is handler
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
