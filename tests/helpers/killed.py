"""Kills a process with SIGKILL before each of its file operations in turn."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.listdir")
"""Audit events of the operations; os.replace is an os.rename, too."""


def killed_everywhere(
    folder: Path, action: Callable[[], object], check: Callable[[], object]
) -> int:
    """Run `action` in forked processes, each killed before its next file operation in `folder`.

    After each kill, `check` is called. The last process is not killed.

    Returns:
        The number of kills.

    Raises:
        AssertionError: the action failed.
    """
    for number in range(10_000):
        child = os.fork()
        if child == 0:
            _kill_at(number, folder)
            try:
                action()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        check()
        if not os.WIFSIGNALED(status):
            assert status == 0, "the action failed (see the traceback above)"
            return number
    raise AssertionError("the action has no end")


def _kill_at(number: int, folder: Path) -> None:
    """Make this process kill itself before the operation with this number."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in OPERATIONS and str(arguments[0]).startswith(str(folder)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)
