"""The order of training equals GPT-NeoX v1.0's, which is written here as a slow nested loop."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.order import (
    OrderedRows,
    PreshuffledRows,
    RowOrder,
    batch_hash,
    epochs_needed,
    samples_requested,
    write_rows,
)
from pythia_core.errors import ConfigError, DataError


def corpus(prefix: Path, sizes: list[int]) -> MegatronIndexed:
    """Documents of the given sizes in which every token's id is its position in the file."""
    with IndexedWriter(prefix, 65_000) as out:
        at = 0
        for size in sizes:
            out.add(np.arange(at, at + size))
            at += size
    return MegatronIndexed(prefix)


def slow_rows(documents: list[list[int]], seq_len: int, seed: int, epochs: int) -> list[list[int]]:
    """The rows as GPT-NeoX v1.0 makes them: document by document, sample by sample."""
    rng = np.random.RandomState(seed)
    doc_idx = [d for _ in range(epochs) for d in range(len(documents))]
    shuffled = np.array(doc_idx, dtype=np.int32)
    rng.shuffle(shuffled)
    doc_idx = shuffled.tolist()
    tokens_per_epoch = sum(len(d) for d in documents)
    num_samples = (epochs * tokens_per_epoch - 1) // seq_len
    sample_idx = [(0, 0)]
    doc_idx_index = doc_offset = 0
    while len(sample_idx) <= num_samples:
        remaining = seq_len + 1
        while remaining != 0:
            doc_length = len(documents[doc_idx[doc_idx_index]]) - doc_offset
            remaining -= doc_length
            if remaining <= 0:
                # step back by one token, which is also the first of the next sample
                doc_offset += remaining + doc_length - 1
                remaining = 0
            else:
                doc_idx_index += 1
                doc_offset = 0
        sample_idx.append((doc_idx_index, doc_offset))
    shuffle_idx = np.arange(num_samples, dtype=np.uint32)
    rng.shuffle(shuffle_idx)
    rows = []
    for i in shuffle_idx.tolist():
        (first, offset), (last, end) = sample_idx[i], sample_idx[i + 1]
        if first == last:
            row = documents[doc_idx[first]][offset : end + 1]
        else:
            row = documents[doc_idx[first]][offset:]
            for middle in range(first + 1, last):
                row = row + documents[doc_idx[middle]]
            row = row + documents[doc_idx[last]][: end + 1]
        rows.append(row)
    return rows


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    seq_len=st.integers(2, 17),
    seed=st.sampled_from([0, 1, 2, 9, 1234, 2**32 - 1]),
    epochs=st.integers(1, 3),
)
def test_equals_the_slow_implementation(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    seq_len: int,
    seed: int,
    epochs: int,
) -> None:
    data = corpus(tmp_path_factory.mktemp("order") / "x", sizes)
    if epochs * sum(sizes) < seq_len + 1:
        with pytest.raises(DataError, match="but a row needs"):
            RowOrder(sizes, seq_len, seed, epochs)
        return
    order = RowOrder(data.sizes, seq_len, seed, epochs)
    documents = [data.document(i).tolist() for i in range(len(sizes))]
    expected = slow_rows(documents, seq_len, seed, epochs)
    tokens, valid = order.gather(data, range(order.n_rows))
    assert valid.all() and tokens.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=3, max_size=20),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    policy=st.sampled_from(["joint", "separate"]),
)
def test_context_comes_from_the_stream(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    before: int,
    after: int,
    policy: str,
) -> None:
    seq_len, epochs = 4, 2
    if sum(sizes) < seq_len + 1:
        return
    data = corpus(tmp_path_factory.mktemp("order") / "x", sizes)
    order = RowOrder(sizes, seq_len, 7, epochs, policy)
    stream = np.concatenate([data.document(int(d)) for d in order.documents]).tolist()
    parts = [stream] if policy == "joint" else [stream[: sum(sizes)], stream[sum(sizes) :]]
    per_part = order.n_rows // len(parts)
    tokens, valid = order.gather(data, np.arange(order.n_rows), before, after)
    assert tokens.shape == valid.shape == (order.n_rows, before + seq_len + 1 + after)
    for row, got, mask in zip(order.shuffle.tolist(), tokens, valid, strict=True):
        part, start = parts[row // per_part], (row % per_part) * seq_len
        for column, position in enumerate(range(start - before, start + seq_len + 1 + after)):
            inside = 0 <= position < len(part)
            assert mask[column] == inside
            assert got[column] == (part[position] if inside else 0)


def test_single_places_are_those_of_whole_rows(tmp_path: Path) -> None:
    data = corpus(tmp_path / "x", [5, 0, 9, 3, 12])
    for policy in ("joint", "separate"):
        order = RowOrder(data.sizes, 4, 3, 2, policy)
        rows = np.arange(order.n_rows)
        stream, valid = order.stream(rows)
        assert valid.all()
        assert (data.tokens[order.positions(stream)] == order.gather(data, rows)[0]).all()
        row, column = np.divmod(np.arange(stream.size), stream.shape[1])
        assert (order.places(row, column) == stream.reshape(-1)).all()


def test_separate_epochs_do_not_mix(tmp_path: Path) -> None:
    data = corpus(tmp_path / "x", [5, 0, 9, 12, 3, 8])
    one = RowOrder(data.sizes, 4, 3)
    two = RowOrder(data.sizes, 4, 3, epochs=2, policy="separate")
    assert two.n_rows == 2 * one.n_rows
    rows, _ = two.gather(data, np.arange(two.n_rows))
    assert rows[: one.n_rows].tolist() == one.gather(data, np.arange(one.n_rows))[0].tolist()
    for epoch in np.split(rows, 2):  # at most once per epoch, except tokens shared by two rows
        inner = epoch[:, :-1].reshape(-1)
        assert len(np.unique(inner)) == inner.size == 4 * one.n_rows
    assert rows[: one.n_rows].tolist() != rows[one.n_rows :].tolist()
    joint, _ = RowOrder(data.sizes, 4, 3, epochs=2).gather(data, np.arange(one.n_rows))
    inner = joint[:, :-1].reshape(-1)
    assert len(np.unique(inner)) < inner.size  # "joint" repeats within the first half


def test_the_generator_is_the_one_pythia_used() -> None:
    rng = np.random.RandomState(1234)
    documents = np.arange(10**6, dtype=np.int32)
    rng.shuffle(documents)
    assert hashlib.sha256(documents.tobytes()).hexdigest().startswith("794a68e5d9e0c4c2")
    samples = np.arange(10**6, dtype=np.uint32)
    rng.shuffle(samples)
    assert hashlib.sha256(samples.tobytes()).hexdigest().startswith("9ae37b053026d710")


@pytest.mark.parametrize("seed", range(1, 10))
def test_the_seeds_of_polypythias(tmp_path: Path, seed: int) -> None:
    """Seeds 1 to 9 give nine different orders, by the same algorithm."""
    sizes = np.random.RandomState(0).randint(0, 60, 50).tolist()
    data = corpus(tmp_path / "x", sizes)
    order = RowOrder(data.sizes, 16, seed)
    rows = OrderedRows(data, order)
    documents = [data.document(i).tolist() for i in range(len(sizes))]
    assert rows.rows(0, rows.n_rows).tolist() == slow_rows(documents, 16, seed, 1)
    others = [RowOrder(data.sizes, 16, other) for other in (1234, *range(1, 10)) if other != seed]
    assert all(order.documents.tolist() != other.documents.tolist() for other in others)
    assert all(order.shuffle.tolist() != other.shuffle.tolist() for other in others)


def test_the_order_depends_on_steps_and_batch_size_only_through_epochs(tmp_path: Path) -> None:
    """Explains EleutherAI/gpt-neox#984, where changing train-iters changed the order.

    For any number and size of updates, the rows are the same as long as the number of epochs is.
    With one epoch more, the order differs from the first row on.
    """
    data = corpus(tmp_path / "x", [17, 40, 3, 25, 60, 8, 31])
    seen: dict[int, list[list[int]]] = {}
    for steps in range(1, 60):
        for batch_size in (1, 2, 5):
            epochs = epochs_needed(data.n_tokens, 8, samples_requested(steps, batch_size))
            order = RowOrder(data.sizes, 8, 1234, epochs)
            rows = OrderedRows(data, order)
            read = np.concatenate([rows.batch(k, batch_size) for k in range(steps)]).tolist()
            whole = seen.setdefault(epochs, order.gather(data, range(order.n_rows))[0].tolist())
            assert read == whole[: len(read)], (steps, batch_size)
    assert len(seen) > 10
    assert all(seen[epochs][:10] != seen[epochs + 1][:10] for epochs in list(seen)[:-1])


def test_epochs_needed() -> None:
    wanted = samples_requested(143_000, 1024)  # as in the released runs
    assert wanted == 147_164_160 and samples_requested(1, 1) == 2 and samples_requested(0, 9) == 0
    assert epochs_needed(334_000_000_000, 2048, wanted) == 1
    assert epochs_needed(207_000_000_000, 2048, wanted) == 2
    for tokens in range(1, 40):
        for samples in range(12):
            brute = next(e for e in range(1, 99) if (e * tokens - 1) // 3 >= samples)
            assert epochs_needed(tokens, 3, samples) == brute
    with pytest.raises(DataError, match="empty"):
        epochs_needed(0, 4, 1)


def test_rows_do_not_depend_on_earlier_reads(tmp_path: Path) -> None:
    data = corpus(tmp_path / "x", [30, 40, 11])
    order = RowOrder(data.sizes, 4, 1)
    whole, _ = order.gather(data, np.arange(order.n_rows))
    picked = [5, 0, 5, order.n_rows - 1]
    assert order.gather(data, picked)[0].tolist() == whole[picked].tolist()
    assert RowOrder(data.sizes, 4, 2).shuffle.tolist() != order.shuffle.tolist()


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    data, other = corpus(tmp_path / "x", [30, 5]), corpus(tmp_path / "y", [30, 6])
    order = RowOrder(data.sizes, 4)
    with pytest.raises(DataError, match=r"no row 8; this order has the rows 0\.\.7"):
        order.gather(data, [8])
    with pytest.raises(DataError, match="no row -1"):
        order.gather(data, [-1])
    with pytest.raises(DataError, match="this order was made for"):
        order.gather(other, [0])
    with pytest.raises(ConfigError, match="joint, separate"):
        RowOrder([10], 4, policy="mixed")
    with pytest.raises(ConfigError, match="at least 1"):
        RowOrder([10], 4, epochs=0)
    with pytest.raises(DataError, match="non-negative"):
        RowOrder([10, -1], 4)


def test_document_longer_than_everything(tmp_path: Path) -> None:
    data = corpus(tmp_path / "x", [1, 40_000, 1])
    order = RowOrder(data.sizes, 8)
    rows, _ = order.gather(data, np.arange(order.n_rows))
    assert rows.tolist() == slow_rows([data.document(i).tolist() for i in range(3)], 8, 1234, 1)


def test_documents_of_one_token_or_only_eod(tmp_path: Path) -> None:
    """Nothing of them is left out, and nothing is put between them; the id of EOD is 0."""
    documents = [[0], [7, 0], [5], [0], [0], [9, 0], [3]]
    with IndexedWriter(tmp_path / "x", 300) as out:
        for document in documents:
            out.add(np.array(document))
    data = MegatronIndexed(tmp_path / "x")
    assert (data.n_documents, data.sizes.tolist()) == (7, [1, 2, 1, 1, 1, 2, 1])
    for epochs in (1, 3):
        order = RowOrder(data.sizes, 2, epochs=epochs)
        rows, _ = order.gather(data, np.arange(order.n_rows))
        assert rows.tolist() == slow_rows(documents, 2, 1234, epochs)
        left = Counter(data.tokens.tolist() * epochs) - Counter(rows[:, :-1].ravel().tolist())
        assert left.total() == 1, "the last token is only predicted"


def test_materialized_rows_and_batches(tmp_path: Path) -> None:
    data = corpus(tmp_path / "x", [30, 40, 11])
    order = RowOrder(data.sizes, 4, 1)
    write_rows(tmp_path / "rows.bin", order, data, chunk=3)
    rows = PreshuffledRows([tmp_path / "rows.bin"], 4)
    expected, _ = order.gather(data, np.arange(order.n_rows))
    assert rows.n_rows == order.n_rows == 20
    assert rows.rows(0, 20).tolist() == expected.tolist()
    assert rows.rows(3, 3).shape == (0, 5)
    assert rows.batch(2, 6).tolist() == expected[12:18].tolist()
    with pytest.raises(DataError, match=r"last full batch of 6 is step 2"):
        rows.batch(3, 6)
    with pytest.raises(DataError, match=r"no batch of 21 is full"):
        rows.batch(0, 21)
    with pytest.raises(DataError, match="step must be at least 0"):
        rows.batch(-1, 2)
    with pytest.raises(DataError, match=r"outside 0\.\.20"):
        rows.rows(0, 21)
    batch = rows.batch(0, 2)
    batch[:] = 0  # a batch is a copy, so the file does not change
    assert rows.batch(0, 2).tolist() == expected[:2].tolist()


def test_shards_cut_anywhere_read_as_one_file(tmp_path: Path) -> None:
    ids = np.arange(7 * 5, dtype="<u2")
    raw = ids.tobytes()
    for cuts in ([0, 3, 3, 41, 70], [0, 1, 2, 70], [0, 69, 70]):
        paths = []
        last = len(cuts) - 2
        for i in range(len(cuts) - 1):
            paths.append(tmp_path / f"document-{i:05d}-of-{last:05d}.bin")
            paths[-1].write_bytes(raw[cuts[i] : cuts[i + 1]])
        rows = PreshuffledRows(paths, 4)
        assert rows.rows(0, 7).tolist() == ids.reshape(7, 5).tolist()
        assert [rows.batch(k, 2).tolist() for k in range(3)] == [
            ids.reshape(7, 5)[2 * k : 2 * k + 2].tolist() for k in range(3)
        ]
        with pytest.raises(DataError, match="in order"):
            PreshuffledRows(paths[::-1], 4)
        with pytest.raises(DataError, match="in order"):
            PreshuffledRows(paths[1:], 4)
    with pytest.raises(DataError, match="whole number"):
        PreshuffledRows(paths, 5)
    with pytest.raises(DataError, match="at least 1, got -1"):
        PreshuffledRows(paths, -1)
    with pytest.raises(DataError, match="does not exist"):
        PreshuffledRows([tmp_path / "none.bin"], 4)
    with pytest.raises(DataError, match="list of files with rows is empty"):
        PreshuffledRows([], 4)
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(DataError, match="whole number"):
        PreshuffledRows([tmp_path / "empty.bin"], 4)


@pytest.mark.parametrize("shard", [7, 64, 50, 1000])
def test_batches_from_shards_follow_the_order(tmp_path: Path, shard: int) -> None:
    """Batch k of the pre-shuffled files has rows [B*k, B*(k+1)), even across shards."""
    data = corpus(tmp_path / "x", [30, 5, 44, 12, 80])
    order = RowOrder(data.sizes, 4, 3)
    write_rows(tmp_path / "all.bin", order, data)
    raw = (tmp_path / "all.bin").read_bytes()
    paths = []
    last = (len(raw) - 1) // shard
    for i, at in enumerate(range(0, len(raw), shard)):
        paths.append(tmp_path / f"document-{i:05d}-of-{last:05d}.bin")
        paths[-1].write_bytes(raw[at : at + shard])
    files, made = PreshuffledRows(paths, 4), OrderedRows(data, order)
    assert files.n_rows == made.n_rows == order.n_rows > 40
    for size in (1, 4, 16):
        for step in range(order.n_rows // size):
            expected, _ = order.gather(data, np.arange(size * step, size * (step + 1)))
            np.testing.assert_array_equal(files.batch(step, size), expected)
            np.testing.assert_array_equal(made.batch(step, size), expected)
    for rows in (files, made):
        with pytest.raises(DataError, match="the last full batch of 16"):
            rows.batch(order.n_rows // 16, 16)
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated or missing"):
        PreshuffledRows(paths, 4)


def test_batch_hash() -> None:
    rows = np.arange(12, dtype="<u2").reshape(3, 4)
    name = batch_hash(rows)
    assert len(name) == 32 and name == batch_hash(rows.astype(">i8"))
    assert name == batch_hash(np.asfortranarray(rows))
    assert name != batch_hash(rows.reshape(4, 3))
    assert name != batch_hash(rows[::-1])
    digest = hashlib.sha256(np.array([2, 3, 4], "<u8").tobytes() + rows.astype("<u4").tobytes())
    assert name == digest.hexdigest()[:32]
    with pytest.raises(DataError, match="integer"):
        batch_hash(rows.astype(float))
    with pytest.raises(DataError, match="must be in 0"):
        batch_hash(np.array([-1]))


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda s: sum(s) > 12),
    epochs=st.integers(1, 3),
    policy=st.sampled_from(["joint", "separate"]),
    share=st.floats(0, 1),
    block=st.integers(1, 5),
)
def test_read_counts_equal_a_slow_count(
    sizes: list[int], epochs: int, policy: str, share: float, block: int
) -> None:
    """Every id is its position in the token file, so a row shows which positions it reads."""
    order = RowOrder(sizes, 5, 7, epochs, policy)
    places = SimpleNamespace(
        tokens=np.arange(sum(sizes)), n_documents=len(sizes), n_tokens=sum(sizes), prefix=""
    )
    n_rows = int(share * order.n_rows)
    rows, _ = order.gather(places, np.arange(n_rows))
    counts, again = order.read_counts(n_rows, block)
    inputs = rows[:, :-1]
    np.testing.assert_array_equal(counts, np.bincount(inputs.reshape(-1), minlength=sum(sizes)))
    seen: set[int] = set()
    expected = []
    for start in range(0, n_rows, block):
        repeats = 0
        for place in inputs[start : start + block].reshape(-1).tolist():
            repeats += place in seen
            seen.add(place)
        expected.append(repeats)
    assert again.tolist() == expected


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda s: sum(s) > 30),
    epochs=st.integers(1, 5),
    share=st.floats(0.01, 1),
)
def test_each_pass_reads_the_first_rows_once(sizes: list[int], epochs: int, share: float) -> None:
    """The first pass has the order of a run without repeats; later passes shuffle the same rows."""
    fresh = RowOrder(sizes, 5, 7)
    unique = max(1, int(share * fresh.n_rows))
    order = RowOrder(sizes, 5, 7, epochs, "rows", unique_rows=unique)
    assert order.n_rows == epochs * unique
    passes = order.shuffle.reshape(epochs, unique)
    assert (passes[0] == fresh.shuffle[:unique]).all()
    assert (np.sort(passes, 1) == np.sort(passes[0])).all()
    counts, _ = order.read_counts(order.n_rows, block=7)
    assert set(np.unique(counts)) <= {0, epochs}
    assert counts.sum() == order.n_rows * 5


def test_unique_rows_must_exist_and_need_the_policy_rows() -> None:
    with pytest.raises(DataError, match=r"unique_rows=99, but the text has \d+ rows"):
        RowOrder([40], 4, policy="rows", unique_rows=99)
    for policy, rows in (("joint", 3), ("rows", 0)):
        with pytest.raises(ConfigError, match=f"unique_rows={rows} with epoch policy '{policy}'"):
            RowOrder([40], 4, policy=policy, unique_rows=rows)
