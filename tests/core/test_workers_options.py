"""The options that start workers are the same for all commands, and refused if they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from pythia_core.__main__ import main, parser

STUDY = ("study", "suite", "--scale", "smoke")
PREPARE = ("prepare", "--scale", "smoke")


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (STUDY, ["--gpus", "2"], "--gpus N or --cpus N sets the number of workers; add --on local"),
        (STUDY, ["--on", "slurm"], "needs --gpus N or --cpus N"),
        (PREPARE, ["--on", "slurm"], "needs --cpus N, the number of workers"),
        (STUDY, ["--on", "slurm", "--cpus", "0"], "--cpus must be at least 1, got 0"),
        (STUDY, ["--on", "local", "--cpus", "1", "--gpus", "1"], "choose one"),
        (STUDY, ["--on", "local", "--gpus", "1"], "--gpus 1: this machine has 0 GPUs"),
        (PREPARE, ["--on", "local", "--partition", "p"], "need --on slurm"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_starts(
    command: tuple[str, ...],
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("PYTHIA_RESULTS", "PYTHIA_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert main([*command, *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


def test_options_of_sbatch(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "--sbatch", "--comment=a=b", "--sbatch", "mem=1G"]
    with pytest.raises(SystemExit):  # a value that begins with dashes needs an equals sign
        parser().parse_args(words)
    words[1:3] = ["--sbatch=--comment=a=b"]
    assert parser().parse_args(words).sbatch == [("comment", "a=b"), ("mem", "1G")]
    with pytest.raises(SystemExit):
        parser().parse_args(["prepare", "--sbatch", "mem"])
    assert "expected NAME=VALUE such as account=abc, got 'mem'" in capsys.readouterr().err
