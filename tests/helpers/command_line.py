"""Calls of the command line that several tests make."""

from __future__ import annotations

import pytest

from pythia_core.__main__ import main

TRAIN = ["train", "7k", "--scale", "smoke", "--steps", "12"]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run a command that must fail with one error message, and return this message."""
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def train(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[str, str]:
    """Train a run of twelve updates by command; return its id and what the command printed.

    Args:
        arguments: further arguments of the command.
    """
    assert main([*TRAIN, *arguments]) == 0
    printed = capsys.readouterr().out
    return printed.split()[1].rstrip(":"), printed


def fork(capsys: pytest.CaptureFixture) -> str:
    """Continue the run of `train` from step 8 with pronouns swapped; return the new run's id."""
    return train(["--swap", "masculine_to_feminine", "--start", "8"], capsys)[0]
