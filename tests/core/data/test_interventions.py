"""A fork's batches differ from its parent's only at the ledger's entries, inside the window."""

from __future__ import annotations

import json
import random
import resource
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pythia_core.config import DataConfig, InterventionConfig
from pythia_core.data.interventions import Ledger, WordSwap, make_ledger
from pythia_core.data.order import batch_hash
from pythia_core.data.prepare import PreparedData, prepare
from pythia_core.errors import DataError
from pythia_core.suite import scale_named
from pythia_core.training.schedule import PAPER_FORKS

WINDOW = InterventionConfig("masculine_to_feminine", 3, 7)
BATCH = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(1)
    words = "he his him she her himself herself Himself Herself the nurse saw that".split()
    words += "other history said and".split()
    with open(folder / "x.jsonl", "w") as file:
        for _ in range(120):
            text = " ".join(rng.choices(words, k=rng.randrange(3, 60))).capitalize() + "."
            file.write(json.dumps({"text": text}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_CACHE", str(folder / "cache"))
        config = DataConfig(corpus=str(folder / "x.jsonl"), tokenizer="bpe-420", seq_len=12)
        return prepare(config)


@pytest.fixture(scope="module")
def ledger(data: PreparedData) -> Ledger:
    return make_ledger(data, WINDOW, BATCH, chunk=7)


def test_batches_differ_only_where_the_ledger_says(data: PreparedData, ledger: Ledger) -> None:
    listed = {
        (int(r), int(c)): (int(o), int(n))
        for r, c, o, n in zip(ledger.row, ledger.column, ledger.old, ledger.new, strict=True)
    }
    assert len(listed) == len(ledger.row) > 30
    seen = {}
    for step in range(data.rows.n_rows // BATCH):
        ours = data.batch(step, BATCH)
        changed = ledger.apply(ours, step * BATCH)
        assert batch_hash(data.batch(step, BATCH)) == batch_hash(ours)  # apply() changes a copy
        assert changed.dtype == ours.dtype and changed.shape == ours.shape
        inside = WINDOW.start <= step < WINDOW.stop
        assert (batch_hash(changed) != batch_hash(ours)) == inside
        for r, c in zip(*np.nonzero(changed != ours), strict=True):
            seen[step * BATCH + int(r), int(c)] = int(ours[r, c]), int(changed[r, c])
    assert seen == listed


def test_ledger_equals_swapping_the_whole_stream(data: PreparedData, ledger: Ledger) -> None:
    """Swap the whole stream of shuffled documents at once, then cut it into rows."""
    stream = np.concatenate([data.tokens.document(int(d)) for d in data.order.documents])
    swap = WordSwap.from_tokenizer(data.tokenizer, WINDOW.transform)
    whole = stream.copy()[None]
    _, column, _, new, _ = swap.find(whole, np.ones_like(whole, bool), 0, 0)
    whole[0, column] = new
    length = data.config.seq_len
    for row in range(WINDOW.start * BATCH, WINDOW.stop * BATCH):
        start = int(data.order.shuffle[row]) * length
        ours = ledger.apply(data.rows.rows(row, row + 1), row)[0]
        assert ours.tolist() == whole[0, start : start + length + 1].tolist()


def test_decoded_text_and_counts(data: PreparedData, ledger: Ledger) -> None:
    summary = ledger.summary()
    assert summary["tokens"] == (7 - 3) * BATCH * 13
    assert summary["tokens_changed"] == len(ledger.row)
    assert summary["share_changed"] == len(ledger.row) / summary["tokens"]
    assert summary["unmapped"] == {} and summary["words"] == sum(summary["by_form"].values())
    before, after = Counter[str](), Counter[str]()
    for step in range(WINDOW.start, WINDOW.stop):
        batch = data.batch(step, BATCH)
        for counter, rows in ((before, batch), (after, ledger.apply(batch, step * BATCH))):
            for row in rows[:, 1:-1].tolist():  # without words that are cut off at the edges
                counter.update(data.tokenizer.decode(row).lower().replace(".", " ").split())
    assert before["his"] > 5 and after["his"] <= before["his"] / 5
    assert after["history"] == before["history"] > 0 and after["other"] == before["other"]
    assert after["her"] > before["her"] + before["his"] / 2


def test_feminine_to_masculine(data: PreparedData) -> None:
    other = make_ledger(data, replace(WINDOW, transform="feminine_to_masculine"), BATCH)
    assert other.transform == "feminine_to_masculine" and len(other.row) > 20
    first = {ids[0] for _, _, ids, _ in WordSwap.from_tokenizer(
        data.tokenizer, "feminine_to_masculine").table}  # fmt: skip
    assert set(other.old.tolist()) & first


def test_save_and_load(ledger: Ledger, tmp_path: Path) -> None:
    ledger.save(tmp_path / "ledger.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.safetensors"]
    again = Ledger.load(tmp_path / "ledger.safetensors")
    assert again.summary() == ledger.summary()
    for name in ("row", "column", "old", "new"):
        ours, theirs = getattr(ledger, name), getattr(again, name)
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()


def test_damaged_ledgers(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.safetensors"
    with pytest.raises(DataError, match="not a readable ledger"):
        Ledger.load(path)
    ledger.save(path)
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], b"", good[:-1], b"\xff" * 64):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="not a readable ledger"):
            Ledger.load(path)
    for wrong in (
        replace(ledger, row=ledger.row[::-1]),
        replace(ledger, row=ledger.row + 1000),
        replace(ledger, old=ledger.old[:-1]),
        replace(ledger, new=ledger.new.astype(np.int64)),
    ):
        wrong.save(path)
        with pytest.raises(DataError, match="not a readable ledger"):
            Ledger.load(path)
    from safetensors.numpy import save_file

    save_file({"row": ledger.row}, path)
    with pytest.raises(DataError, match="not a readable ledger"):
        Ledger.load(path)


def test_a_full_disk_is_named(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # fails as on a full disk
    try:
        with pytest.raises(DataError, match=r"ledger\.safetensors could not be .* no space"):
            ledger.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_other_data_is_refused(data: PreparedData, ledger: Ledger) -> None:
    batch = data.batch(4, BATCH)
    r, c = int(ledger.row[0]), int(ledger.column[0])
    spoiled = data.rows.rows(r, r + 1)
    spoiled[0, c] ^= 1
    with pytest.raises(DataError, match=rf"in row {r}, column {c}, but the data"):
        ledger.apply(spoiled, r)
    with pytest.raises(DataError, match="other data or another order"):
        ledger.apply(batch, 4 * BATCH + 1)
    with pytest.raises(DataError, match="ledger changes column"):
        ledger.apply(data.rows.rows(15, 35)[:, :2], 15)


def test_window_past_the_end(data: PreparedData) -> None:
    last = data.rows.n_rows // BATCH
    make_ledger(data, replace(WINDOW, stop=last), BATCH)
    with pytest.raises(DataError, match=rf"the last full batch of 5 is step {last - 1}"):
        make_ledger(data, replace(WINDOW, stop=last + 1), BATCH)


# --- domains, shuffled genders, replaced text ------------------------------------------------


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Texts of the domains "letters" and "notes", read twice; both have pronouns."""
    folder = tmp_path_factory.mktemp("two")
    rng = random.Random(2)
    words = "he his him she her himself herself nurse saw that history and".split()
    for domain in ("letters", "notes"):
        (folder / "text" / domain).mkdir(parents=True)
        with open(folder / "text" / domain / "x.jsonl", "w") as file:
            for _ in range(60):
                text = f"{domain} " + " ".join(rng.choices(words, k=rng.randrange(3, 60)))
                file.write(json.dumps({"text": text}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_CACHE", str(folder / "cache"))
        config = DataConfig(str(folder / "text"), tokenizer="bpe-420", seq_len=12, epochs=2)
        return prepare(config)


def changed_places(data: PreparedData, ledger: Ledger) -> dict[int, tuple[int, int]]:
    """Map each changed place in the stream of documents to its old and its new token."""
    places: dict[int, tuple[int, int]] = {}
    stream = data.order.places(ledger.row, ledger.column)
    for place, *ids in zip(stream, ledger.old, ledger.new, strict=True):
        pair = int(ids[0]), int(ids[1])
        assert places.setdefault(int(place), pair) == pair  # alike in every row that has it
    return places


def documents_of(data: PreparedData, places: dict[int, tuple[int, int]]) -> list[str]:
    """Return the first word of the document at each place, which names its domain."""
    positions = data.order.positions(np.array(list(places)))
    number = np.searchsorted(np.cumsum(data.tokens.sizes), positions, side="right")
    return [data.tokenizer.decode(data.tokens.document(int(n)).tolist()).split()[0] for n in number]


def test_a_transform_of_some_domains_leaves_the_others_alone(two_domains: PreparedData) -> None:
    both, notes, letters = (
        make_ledger(two_domains, replace(WINDOW, domains=names), BATCH)
        for names in ((), ("notes",), ("letters",))
    )
    assert set(documents_of(two_domains, changed_places(two_domains, notes))) == {"notes"}
    assert set(documents_of(two_domains, changed_places(two_domains, letters))) == {"letters"}
    parts = [set(zip(each.row, each.column, each.new, strict=True)) for each in (notes, letters)]
    assert parts[0] | parts[1] == set(zip(both.row, both.column, both.new, strict=True))
    assert Counter(notes.counts) + Counter(letters.counts) == Counter(both.counts)
    with pytest.raises(DataError, match="unknown domain 'memos'"):
        make_ledger(two_domains, replace(WINDOW, domains=("memos",)), BATCH)


def test_shuffled_genders_keep_every_count(two_domains: PreparedData) -> None:
    window = InterventionConfig("shuffle_genders", 3, 40, ("notes",))
    ledger = make_ledger(two_domains, window, BATCH, chunk=7)
    places = changed_places(two_domains, ledger)
    assert Counter(old for old, _ in places.values()) == Counter(new for _, new in places.values())
    words = {two_domains.tokenizer.decode([old]).strip() for old, _ in places.values()}
    assert {"he", "she", "his", "her"} <= words and "him" not in words
    assert set(documents_of(two_domains, places)) == {"notes"}
    gendered = sum(n for form, n in ledger.counts.items() if form.strip() in ("he", "she"))
    swapped = sum(
        two_domains.tokenizer.decode([int(i)]).strip() in ("he", "she") for i in ledger.old
    )
    assert 0.3 < swapped / gendered < 0.7  # about half of them get the other gender
    again = make_ledger(two_domains, window, BATCH, chunk=2048)
    assert ledger.new.tolist() == again.new.tolist() and ledger.row.tolist() == again.row.tolist()


def test_replaced_text_comes_from_the_last_rows_of_other_domains(two_domains: PreparedData) -> None:
    window = InterventionConfig("replace_text", 3, 7, ("notes",))
    ledger = make_ledger(two_domains, window, BATCH, chunk=7)
    assert set(documents_of(two_domains, changed_places(two_domains, ledger))) == {"notes"}
    assert two_domains.eod_id not in ledger.old
    rows = np.arange(3 * BATCH, 7 * BATCH)
    stream, _ = two_domains.order.stream(rows)
    batch = two_domains.rows.rows(int(rows[0]), int(rows[-1]) + 1)
    changed = ledger.apply(batch, int(rows[0]))
    inside = two_domains.in_domains(two_domains.order.positions(stream), ["notes"])
    inside &= batch != two_domains.eod_id
    assert (changed[~inside] == batch[~inside]).all()
    _, first = np.unique(stream[inside], return_index=True)
    replaced = changed[inside][first]  # in the order of the stream
    later = np.arange(7 * BATCH, two_domains.rows.n_rows)
    positions = two_domains.order.positions(two_domains.order.stream(later)[0])[:, :-1]
    letters = two_domains.in_domains(positions, ["letters"])
    unread = two_domains.rows.rows(7 * BATCH, two_domains.rows.n_rows)[:, :-1][letters]
    assert replaced.tolist() == unread[-len(replaced) :].tolist()
    with pytest.raises(DataError, match=r"needs [0-9]+ tokens of other text"):
        make_ledger(two_domains, replace(window, start=0, stop=120), BATCH)


@pytest.mark.parametrize("transform", ["shuffle_genders", "replace_text"])
def test_batches_outside_the_window_stay_the_same(
    two_domains: PreparedData, transform: str, tmp_path: Path
) -> None:
    window = InterventionConfig(transform, 3, 7, ("notes",))
    make_ledger(two_domains, window, BATCH).save(tmp_path / "ledger.safetensors")
    ledger = Ledger.load(tmp_path / "ledger.safetensors")
    assert ledger.intervention == window
    for step in range(12):
        ours = two_domains.batch(step, BATCH)
        changed = ledger.apply(ours, step * BATCH)
        assert (batch_hash(changed) != batch_hash(ours)) == (3 <= step < 7)


def test_a_window_without_pronouns_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("nothing of the kind\n" * 50)
    config = DataConfig(
        corpus=str(tmp_path / "a.txt"), tokenizer="bpe-300", seq_len=8, heldout_fraction=0
    )
    prepared = prepare(config)
    with pytest.raises(DataError, match=r"changes no token of the updates 0\.\.1"):
        make_ledger(prepared, InterventionConfig(WINDOW.transform, 0, 2), 2)


@pytest.mark.wheels
@pytest.mark.slow
def test_pocket_pile_window_is_quick() -> None:
    prepared = prepare(DataConfig(), progress=False)
    started = time.perf_counter()
    found = make_ledger(prepared, InterventionConfig(WINDOW.transform, 452, 572), 32).summary()
    assert time.perf_counter() - started < 2
    assert 2500 < found["words"] < 4500 and found["tokens"] == 120 * 32 * 129
    assert found["unmapped"] == {}


@pytest.mark.wheels
@pytest.mark.slow
def test_the_placebo_changes_about_as_many_tokens_as_the_pronoun_swap() -> None:
    laptop = scale_named("laptop")
    run = laptop.run("25k", deduplicated=True)
    prepared = prepare(run.data, progress=False)
    for index in PAPER_FORKS:
        start = laptop.fork_step(index)
        pronouns, placebo = (
            len(make_ledger(prepared, InterventionConfig(swap, start, laptop.steps), 32).row)
            for swap in ("masculine_to_feminine", "prepositions")
        )
        assert placebo == pytest.approx(pronouns, rel=0.2)
