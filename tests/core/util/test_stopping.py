"""Processes that another package forks inside our signal handling end on a signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from pythia_core.util.stopping import Stopped, interruptible, stop_requests


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


class Finalized:
    """An object during whose finalization a signal arrives."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_stops_even_if_python_drops_its_exception() -> None:
    before = sys.unraisablehook
    with pytest.raises(Stopped) as stopped, interruptible():
        del [Finalized()][0]
        time.sleep(10)
        raise AssertionError("the signal was lost")
    assert stopped.value.number == signal.SIGTERM
    assert sys.unraisablehook is before
