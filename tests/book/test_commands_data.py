"""The commands `inspect` and `find`, on token files and on runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import fork, refusal, train

from pythia_core.__main__ import main
from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.order import OrderedRows, RowOrder, batch_hash, write_rows
from pythia_core.data.tokenizer import EOD, encode_documents, train_bpe

TEXTS = [
    "The ferry leaves at nine.",
    "A red kite over the field, a red kite.",
    "Nothing to see here, nothing at all.",
    "Ferry times: see the kite.",
] * 8
SIZE = ["--seq-len", "16", "--batch-size", "4"]


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Path, OrderedRows, list[str]]:
    """A folder with documents, their rows in shards and a tokenizer; the rows; the options."""
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with IndexedWriter(tmp_path / "x", 400) as out:
        for ids in encode_documents(tokenizer, TEXTS):
            out.add([*ids, tokenizer.token_to_id(EOD)])
    data = MegatronIndexed(tmp_path / "x")
    order = RowOrder(data.sizes, 16)
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "all", order, data)
    raw = (tmp_path / "all").read_bytes()
    for i, part in enumerate((raw[:501], raw[501:])):
        (tmp_path / "rows" / f"document-0000{i}-of-00001.bin").write_bytes(part)
    words = [*SIZE, "--tokenizer", str(tmp_path / "tokenizer.json")]
    return tmp_path, OrderedRows(data, order), words


def test_inspect_shows_a_batch_of_token_files(
    toy: tuple[Path, OrderedRows, list[str]], capsys: pytest.CaptureFixture
) -> None:
    folder, rows, words = toy
    outputs = []
    for name in ("x", "rows"):
        command = ["inspect", "--data", str(folder / name), "--step", "3", "--rows", "2", *words]
        assert main(command) == 0
        outputs.append(capsys.readouterr().out)
        assert f"hash {batch_hash(rows.batch(3, 4))}" in outputs[-1]
    assert outputs[0].split("\n", 1)[1] == outputs[1].split("\n", 1)[1], "files and order agree"
    command = ["inspect", "--data", str(folder / "x"), "--step", "3", "--ids", *SIZE]
    assert main(command) == 0
    assert " ".join(map(str, rows.rows(12, 13)[0])) in capsys.readouterr().out


@pytest.mark.parametrize("extra", [[], ["--ignore-case"], ["--from-step", "2", "--to-step", "5"]])
def test_find_lists_every_occurrence_in_token_files(
    toy: tuple[Path, OrderedRows, list[str]], capsys: pytest.CaptureFixture, extra: list[str]
) -> None:
    folder, rows, words = toy
    assert (
        main(["find", "Ferry", "--data", str(folder / "rows"), "--limit", "999", *words, *extra])
        == 0
    )
    output = capsys.readouterr().out
    from tokenizers import Tokenizer

    decode = Tokenizer.from_file(str(folder / "tokenizer.json")).decode
    first, last = (2, 5) if "--from-step" in extra else (0, rows.n_rows // 4)
    expected = []
    for row in range(4 * first, 4 * last):
        text = decode(rows.rows(row, row + 1)[0].tolist(), skip_special_tokens=False)
        n_found = text.lower().count("ferry") if extra == ["--ignore-case"] else text.count("Ferry")
        expected += [(row // 4, row)] * n_found
    printed = re.findall(r"^step (\d+), row (\d+), token \d+: .*\[\[.*\]\]", output, re.MULTILINE)
    assert [tuple(map(int, pair)) for pair in printed] == expected and expected
    steps = sorted({step for step, _ in expected})
    last_line = (
        f"{len(expected)} occurrences, in {len(steps)} updates, from step {steps[0]} to {steps[-1]}"
        if len(steps) > 1
        else f"{len(expected)} occurrences, in 1 update, at step {steps[0]}"
    )
    assert output.strip().endswith(last_line)


def test_find_matches_tokens_or_nothing(
    toy: tuple[Path, OrderedRows, list[str]], capsys: pytest.CaptureFixture
) -> None:
    folder, _, words = toy
    assert main(["find", "red kite", "--data", str(folder / "x"), "--tokens", *words]) == 0
    assert "[[ red kite]]" in capsys.readouterr().out
    assert main(["find", "zebra", "--data", str(folder / "x"), *words]) == 0
    assert "0 occurrences, in 0 updates\n" in capsys.readouterr().out
    command = ["find", "e", "--data", str(folder / "x"), "--limit", "2", *words]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "(2 shown)" in output and len(re.findall(r"^step ", output, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "--step", "1"], "pass either a RUN, or --data"),
        (["inspect", "x", "--data", "y", "--step", "1"], "pass either a RUN, or --data"),
        (["inspect", "--data", "pile-stndard", "--step", "1"], "Did you mean 'pile-standard'"),
        (["find", "x"], "pass a RUN and a TEXT"),
        (["find", "", "x"], "pass a RUN and a TEXT"),
        (["find", "x", ""], "pass a RUN and a TEXT"),
        (["find", "x", "y", "z"], "put quotes around a TEXT"),
        (["find", "x", "y", "--data", "z"], "put quotes around a TEXT"),
        (["find", "x", "--data", "pile-deduped"], "--to-step"),
        (["find", "nothing", "x"], "no run matches 'nothing'"),
        (["find", "nothing", "--limit", "3", "x"], "no run matches 'nothing'"),
        (["find", "nothing", "--limit", "3", "--", "--he"], "no run matches 'nothing'"),
        (["find", "--limit", "3", "--", "nothing", "--"], "no run matches 'nothing'"),
    ],
)
def test_bad_input_gives_one_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    assert message in refusal(arguments, capsys)


@pytest.mark.wheels
def test_find_in_a_run_and_its_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    control, forked = train([], capsys)[0], fork(capsys)
    steps = {}
    for run in (control, forked):
        assert main(["find", run, " his ", "--limit", "999"]) == 0
        printed = capsys.readouterr().out
        assert "updates 0..11 of 12, 8 rows each" in printed
        steps[run] = [int(s) for s in re.findall(r"^step (\d+),", printed, re.MULTILINE)]
    assert steps[forked] == [step for step in steps[control] if step < 8] != steps[control]
    assert np.all(np.diff(steps[control]) >= 0)
