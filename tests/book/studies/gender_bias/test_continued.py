"""Swaps of published models: measured, from the command line, and in the gender-bias study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from types import SimpleNamespace

import continued_fakes as fakes
import pytest
from continued_fakes import BATCH, SEQ, STEPS, Published
from gender_fakes import fake_items
from pythia_book import records
from pythia_book.notebooks import check_values
from pythia_book.released.continuation.data import TokenFileData
from pythia_book.released.continuation.run import find_or_continue
from pythia_book.studies.gender_bias import continuation, released
from pythia_book.studies.gender_bias import study as gender_bias
from pythia_book.studies.gender_bias.params import Params

from pythia_core.__main__ import main
from pythia_core.errors import ConfigError
from pythia_core.suite import SCALES, size_named
from pythia_core.training.runs import find_run

SWAP = "masculine_to_feminine"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    with pytest.MonkeyPatch.context() as patch:
        yield fakes.publish(tmp_path_factory.mktemp("published"), patch)


@pytest.fixture
def text(published: Published) -> SimpleNamespace:
    data = published.run.data
    return SimpleNamespace(
        tokenizer=data.tokenizer,
        tokens_folder=data.tokens_folder,
        eod_id=data.eod_id,
        fingerprint="f" * 64,
        heldout=SimpleNamespace(tokens=data.tokens.tokens[:4000]),
        config=SimpleNamespace(seq_len=SEQ),
    )


def swapped(published: Published):
    return find_or_continue(
        published.models,
        30,
        30,
        published.rows,
        SWAP,
        train_config=published.train,
        progress=False,
    )


def test_the_control_continues_like_its_source(published: Published) -> None:
    table = continuation.continuity(swapped(published), rows=3, bootstrap=200).set_index("step")
    assert list(table.source_step) == [30, 59] and list(table.index) == [31, 59]
    assert table.difference[31] == 0, "the first update has a learning rate of 0"
    assert table.ours[59] < table.ours[31]
    assert abs(table.difference[59]) < 0.05
    assert not table.low[59] > table.difference[59]  # three rows may be too few for an interval
    fork = find_or_continue(published.run.folder, 47, STEPS - 47, None, SWAP, progress=False)
    assert continuation.continuity(fork).empty, "the control is the source itself"


def test_both_arms_are_measured(published: Published, text: SimpleNamespace) -> None:
    run = swapped(published)
    table = continuation.effects(run, [40, 41, STEPS], fake_items(), text, 200, progress=False)
    last = table[table.step == STEPS].set_index("measure")
    assert last.change["feminine_share"] > 0
    assert not last.low["feminine_share"] <= 0  # few occupations may have no interval
    assert last.change["feminine_share"] == pytest.approx(
        last.swapped["feminine_share"] - last.control["feminine_share"]
    )
    assert {"loss", "crows", "winobias_margin", "last_word"} <= set(last.index)
    with pytest.raises(ConfigError, match="has no swap"):
        continuation.effects(run.control)


def arguments(published: Published, *more: str) -> list[str]:
    how = ["--lr", "0.01", "--schedule-steps", str(STEPS), "--batch-size", str(BATCH)]
    where = ["--data", str(published.shards), "--seq-len", str(SEQ), "--precision", "fp32"]
    start = ["--revision", "step40", "--steps", "6", "--swap", SWAP]
    return ["continue", str(published.models), *start, *where, *how, *more]


def test_from_the_command_line(published: Published, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(published, "--plan")) == 0
    plan = capsys.readouterr().out
    assert f"{6 * BATCH * SEQ:,} tokens per arm, 2 arms" in plan and "sha256" not in plan
    assert main(arguments(published)) == 0
    said = capsys.readouterr().out
    assert said.startswith(plan) and "re-warmed from 0 in 1 updates" in said
    assert "tokens changed" in said and "that neither has read" in said
    (name,) = {line.split("run ")[1][:12] for line in said.splitlines() if line.startswith(SWAP)}
    run = find_run(name)
    for command in (["verify", name], ["inspect", name, "--step", "41", "--rows", "1"]):
        assert main(command) == 0
    seen = capsys.readouterr().out
    assert "the hashes of 7 checkpoints, 6 batches and " in seen
    assert "this hash equals the hash in the training log" in seen and "[ his> her]" in seen
    assert main(["continue", run.id, "--step", "46", "--steps", "2", "--state", "weights"]) == 0
    assert "only the weights of step 46" in capsys.readouterr().out
    for wrong, why in (
        (["--revision", "step41"], "existing revisions: step0"),
        (["--steps", "21"], "enough for only the first 60 updates"),
        (["--step", "47"], "is of step 40, not of step 47"),
        (["--step", "47", "--plan"], "is of step 40, not of step 47"),
        (["--steps", "0", "--plan"], "--steps must be at least 1, got 0"),
        (["--tokenizer", "nowhere.json"], "/nowhere.json; accepted: 'bpe-N'"),
    ):
        assert main(arguments(published, *wrong)) == 1
        assert why in capsys.readouterr().err
    for command, why in (
        (["continue", "nothing", "--steps", "0"], "no run matches 'nothing'"),
        (["continue", run.id, "--steps", "0"], "--steps must be at least 1, got 0"),
        (["continue", run.id, "--steps", "1"], "the step to start from is unknown"),
        (["continue", run.id, "--steps", "1", "--step", "48"], "no checkpoint of step 48"),
    ):
        assert main([*command, "--plan"]) == 1
        assert why in capsys.readouterr().err


def test_long_training_needs_confirmation(capsys: pytest.CaptureFixture) -> None:
    """And nothing is downloaded: there is no server to download from."""
    hub = ["continue", "EleutherAI/pythia-70m-deduped", "--revision", "step133000", "--steps"]
    assert main([*hub, "10000", "--swap", SWAP, "--data", "pile-deduped"]) == 1
    said = capsys.readouterr()
    assert "pass --yes" in said.err and "1.3e+19 FLOP of matrix products" in said.out
    assert main([*hub, "10000"]) == 1
    assert "pass --data pile-deduped" in capsys.readouterr().err


# --- the study -------------------------------------------------------------------------------


@pytest.fixture
def paper(published: Published, monkeypatch: pytest.MonkeyPatch) -> Published:
    """Scale paper reduced to a small made-up release."""
    data = replace(SCALES["paper"].data, seq_len=SEQ)
    small = replace(SCALES["paper"], steps=STEPS, batch_size=BATCH, data=data, sizes=("7k",))
    monkeypatch.setitem(SCALES, "paper", small)
    monkeypatch.setenv(released.MODELS, str(published.models.parent))
    monkeypatch.setenv(released.DATA, str(published.shards))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    monkeypatch.setattr(records, "recorded_folder", lambda study: None)
    return published


def test_the_study_at_scale_paper(
    paper: Published,
    text: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(TokenFileData, "with_heldout", lambda rows: text)
    params = Params("paper", "7k")
    result = gender_bias.run(params, progress=False, items=fake_items())
    control, short, long = result.measured.runs
    assert (control.continuation.start, short.continuation.start, long.continuation.start) == (
        47,
        56,
        47,
    )
    assert short.control == control == long.control
    assert short.continuation.adam_from == 47, "the short swap has its control's optimizer state"
    associations = result.tables["associations"]
    assert set(associations.arm) == {"control", "swap_7", "swap_21"}
    assert set(associations.group) == {"occupations", "definitional"}
    assert set(associations.step) == {47, 56, STEPS}
    ledger = result.tables["ledger"].set_index("arm")
    assert 0 < ledger.tokens_changed["swap_7"] < ledger.tokens_changed["swap_21"]
    assert records._run_entry(short)["role"] == f"{SWAP}-56-{STEPS}"
    tests = [claim for claim in result.claims if claim["ours"]]
    verdicts = {claim["ours"]["verdict"] for claim in tests if claim["kind"] != "check"}
    assert verdicts == {"not testable here"}, "one seed"
    (check,) = [claim["ours"] for claim in tests if claim["kind"] == "check"]
    assert check["verdict"] == "holds" and "2 forks: 0 of 0 batches after" in check["note"]
    # the command, as used on many GPUs, finds the same arms without training again
    rate = str(size_named("7k").lr_max)
    how = ["--schedule-steps", str(STEPS), "--batch-size", str(BATCH), "--lr", rate]
    rows = ["--data", str(paper.shards), "--seq-len", str(SEQ)]
    start = ["continue", str(paper.models), "--revision", "step47", "--steps", "13", "--swap", SWAP]
    assert main([*start, *rows, *how]) == 0
    said = capsys.readouterr().out
    assert f"run {control.id}" in said and f"run {long.id}" in said
    fork = ["continue", control.id, "--step", "56", "--steps", "4", "--swap", SWAP]
    assert main(fork) == 0
    assert f"run {short.id}" in capsys.readouterr().out


def test_missing_models_and_several_seeds_are_refused(
    paper: Published, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    (tmp_path / "pythia-7k-deduped" / "step3").mkdir(parents=True)
    monkeypatch.setenv(released.MODELS, str(tmp_path))
    with pytest.raises(ConfigError, match=r"no config\.json for revision 'step47'"):
        gender_bias.check(Params("paper", "7k"))
    with pytest.raises(ConfigError, match="has only one seed"):
        gender_bias.check(Params("paper", "7k", seeds=2))


def test_unset_variables_are_named_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (released.MODELS, released.DATA):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as refused:
        check_values("gender_bias", asdict(Params("paper")))
    said = str(refused.value)
    assert "set PYTHIA_PAPER_MODELS" in said and "set PYTHIA_PAPER_DATA" in said
    assert "30,000 updates" in said and "10,000 updates" in said and "H100" in said
