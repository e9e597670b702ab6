"""Commands give the same results as the library; errors are one clear message."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import fork, refusal, train
from tiny_runs import control

from pythia_core.__main__ import main, parser
from pythia_core.commands.training import _run_config
from pythia_core.config import DOMAINS, LARGE_DOMAINS, PLANTED_DOMAINS, DataConfig

COMMANDS = (
    "prepare", "train", "inspect", "verify", "study", "record", "bench", "errata", "evaluate",
    "generate",
)  # fmt: skip


def test_a_full_disk_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("PYTHIA_RESULTS", "/elsewhere/results")
    monkeypatch.setattr("pythia_core.commands.training._prepare", full)
    assert main(["prepare"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left in /elsewhere/results" in line and "run the same command again" in line


def test_help_needs_no_heavy_imports() -> None:
    code = (
        "import sys; from pythia_core.__main__ import parser; parser().format_help();"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "usage: python -m pythia_core" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "600"], "unknown size '600'; accepted: 7k"),
        (["train", "7k", "--scale", "huge"], "unknown scale 'huge'; accepted: smoke, laptop"),
        (["train", "7k", "--micro-batch", "5"], "micro_batch=5 does not divide batch_size=32"),
        (["study", "gender_bia"], "unknown study 'gender_bia'.*Did you mean 'gender_bias'"),
        (["study", "gender_bias", "-p", "seed=1"], "unknown parameter 'seed'"),
        (
            ["inspect", "nothing", "--step", "3"],
            "no run matches 'nothing'; pass .* Existing runs:\n  none yet",
        ),
        (["bench", "train", "--sizes", "9k"], "unknown size '9k'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_1(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    assert re.search(message, refusal(arguments, capsys))


def test_options_for_your_own_text_set_the_data_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "train 7k --scale smoke --corpus my_texts --tokenizer bpe-300 --epochs 4".split()
    config = _run_config(parser().parse_args(words))
    kept = {"seq_len": 64, "heldout_fraction": 0.1}  # the scale's own, as --help says
    own = str(tmp_path / "my_texts")
    assert config.data == DataConfig(own, tokenizer="bpe-300", epochs=4, **kept)
    assert config.model.vocab_size == 384


def data_of(*words: str) -> DataConfig:
    return _run_config(parser().parse_args(["train", "7k", *words])).data


def test_a_text_has_one_name_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    for name in ("texts", "./texts", "set/../texts", "~/texts", str(tmp_path / "texts")):
        assert data_of("--corpus", name).corpus == str(tmp_path / "texts"), name
        assert data_of("--tokenizer", name).tokenizer == str(tmp_path / "texts"), name
    for name in ("pocket-pile", "hf:owner/name", "hf:owner/name::test"):
        assert data_of("--corpus", name).corpus == name
    assert data_of("--corpus", "hf:./set::test").corpus == f"hf:{tmp_path}/set::test"
    assert data_of("--tokenizer", "neox-20b").tokenizer == "neox-20b"


@pytest.mark.parametrize(
    ("option", "name"),
    [("--corpus", "miniature"), ("--tokenizer", "neox-20b"), ("--tokenizer", "bpe-300")],
)
def test_a_name_with_two_meanings_is_refused(
    option: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    assert getattr(data_of(option, name), option[2:]) == name
    (tmp_path / name).mkdir()
    message = refusal(["train", "7k", option, name], capsys)
    assert f"and {tmp_path / name}. Pass ./{name} for the second" in message
    assert getattr(data_of(option, f"./{name}"), option[2:]) == str(tmp_path / name)


def test_a_run_on_a_relative_path_opens_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for variable in ("PYTHIA_RESULTS", "PYTHIA_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    control(tmp_path)  # writes corpus.jsonl
    words = ["--corpus", "corpus.jsonl", "--tokenizer", "bpe-300", "--heldout", "0"]
    words += ["--steps", "2", "--batch-size", "2", "--precision", "fp32"]
    run, _ = train(words, capsys)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "corpus.jsonl").write_text('{"text": "Another text."}')
    assert main(["verify", run]) == 0
    words[1] = str(tmp_path / "corpus.jsonl")
    assert train(words, capsys)[0] == run


@pytest.mark.parametrize("command", ["prepare", "train 7k", "study gender_bias --scale smoke"])
def test_a_cache_that_cannot_be_is_named_before_anything_is_measured(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pythia_core.training.precision.measure", None)
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.setenv("PYTHIA_CACHE", "/dev/null")
    message = refusal(command.split(), capsys)
    assert "cannot write to /dev/null" in message and "set PYTHIA_CACHE to a folder" in message


@pytest.mark.parametrize(
    "words",
    ["train 7k --corpus", "train 7k --tokenizer", "prepare --corpus", "generate --prompt x",
     "inspect --step 1 --data", "verify", "convert RUN", "evaluate RUN --items",
     "continue RUN --step 1 --steps 1 --data", "errata"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_or_name_is_refused(
    words: str, value: str, capsys: pytest.CaptureFixture
) -> None:
    """It is what an unset shell variable gives; a path "" would mean the working folder."""
    with pytest.raises(SystemExit, match="2"):
        main([*words.split(), value])
    assert f"expected a path or a name, got {value!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--steps", "--batch-size", "--order-seed", "--weight-seed", "--start", "--epochs"]
)
def test_counts_of_train_are_whole_numbers(option: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "7k", f"{option}=-1"])
    assert "expected a whole number of at least 0, got '-1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stduy gender_bias", "verify, worker. Did you mean 'study'?"),
        ("train 7k --stps 3", "unrecognized arguments: --stps 3. Did you mean --steps?"),
        ("bench train --round 3 --sizs=7k", "unrecognized arguments: --sizs=7k. Did you mean"),
        ("train 7k 3", "train: error: unrecognized arguments: 3\n"),
    ],
)
def test_a_mistyped_option_is_named_with_the_most_similar_one(
    words: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert message in capsys.readouterr().err


def test_the_option_corpus_plants_every_domain_but_no_control() -> None:
    """A control replaces its domain: a text with both is refused (DataConfig)."""
    for corpus, own in (("miniature", DOMAINS), ("large", LARGE_DOMAINS), ("pocket-pile", DOMAINS)):
        data = _run_config(parser().parse_args(["train", "7k", "--corpus", corpus])).data
        planted = () if corpus == "pocket-pile" else PLANTED_DOMAINS
        assert data.domains == (*own, *planted), corpus


@pytest.mark.wheels
def test_train_inspect_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    _, first = train([], capsys)
    assert "13 checkpoints" in first
    assert train([], capsys)[1] == first, "asking again must return the same run at once"
    forked = fork(capsys)
    assert main(["inspect", forked, "--step", "9", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "this hash equals the hash in the training log" in shown
    assert "tokens are swapped" in shown
    assert main(["verify", forked]) == 0
    assert "training states match" in capsys.readouterr().out


def shell(words: str) -> str:
    """Run a shell command in which `$P` is the program; return what it prints and its code."""
    done = subprocess.run(
        ["bash", "-c", f"{words}; echo code $?"],
        env={**os.environ, "P": f"{sys.executable} -m pythia_core"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout.decode()


@pytest.mark.commands
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("$P errata | head -1 > /dev/null", "code 0\n"),
        ("$P errata >&-", "code 0\n"),
        (
            "$P errata > /dev/full",
            "error: the output could not be written (No space left on device)",
        ),
        ("$P errata nonsense 2>&-", "code 1\n"),
        ("$P errata nonsense <&- 2>&1 >&-", "unknown erratum 'nonsense'"),
        (r"$P errata $'\xff' 2>&1", r"unknown erratum '\udcff'"),
        ("LC_ALL=C PYTHONUTF8=0 $P errata é 2>&1", r"unknown erratum '\udcc3\udca9'"),
        ("LC_ALL=C PYTHONUTF8=0 $P errata > /dev/null", "code 0\n"),
        ("PYTHONIOENCODING=ascii $P errata > /dev/null", "code 0\n"),
    ],
)
def test_streams_and_locales_of_every_kind(words: str, shown: str) -> None:
    printed = shell(words)
    assert shown in printed and "Traceback" not in printed and "Exception" not in printed
