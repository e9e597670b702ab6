"""Calls of the command line that several tests make."""

from __future__ import annotations

import pytest

from pythia_core.__main__ import main

TRAIN = ["train", "7k", "--scale", "smoke", "--steps", "12"]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one message with which a command fails."""
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def train(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[str, str]:
    """The id of a run of twelve updates, and what the command printed."""
    assert main([*TRAIN, *arguments]) == 0
    printed = capsys.readouterr().out
    return printed.split()[1].rstrip(":"), printed


def fork(capsys: pytest.CaptureFixture) -> str:
    """The id of that run's fork from step 8 on."""
    return train(["--swap", "masculine_to_feminine", "--start", "8"], capsys)[0]
