"""Preparation in stages: what it makes is, byte for byte, what one process makes in memory."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slurm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pythia_core.config import DEDUP_RECIPES, DataConfig
from pythia_core.data import sharded
from pythia_core.data.prepare import prepare
from pythia_core.data.stages import Stage, Stages
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import DataError, PythiaError
from pythia_core.util import leases
from pythia_core.util.files import fraction

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e .[dedup]")


def prepared(cache: Path, data: DataConfig, staged: bool = True) -> dict[str, bytes]:
    """Prepare data in a cache, and return the content of every file that is there afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_CACHE", str(cache))
        prepare(data, progress=False, staged=staged)
    return made_in(cache)


def in_memory(folder: Path, data: DataConfig) -> dict[str, bytes]:
    """What is made without stages."""
    return prepared(folder / "memory", data, staged=False)


def made_in(cache: Path) -> dict[str, bytes]:
    """The content of every file that was prepared."""
    found = [path for path in sorted((cache / "data").rglob("*")) if path.is_file()]
    return {str(path.relative_to(cache)): path.read_bytes() for path in found}


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Names of the files that are not equal, or are there only once."""
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


def corpus(folder: Path, files: dict[str, Sequence[str]]) -> str:
    """Write texts as .jsonl files."""
    for name, texts in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / name).write_text(lines)
    return str(folder)


def config(folder: str, **given: Any) -> DataConfig:
    settings = {"tokenizer": "bpe-300", "seq_len": 16, "heldout_fraction": 0.1, **given}
    return DataConfig(folder, **settings)


def random_words(rng: np.random.Generator, n: int) -> list[str]:
    letters = rng.integers(97, 123, (n, 6)).astype(np.uint8)
    return [bytes(row).decode() for row in letters]


def texts_with_copies(seed: int, n: int, length: int = 90) -> list[str]:
    """Texts that are copies and edited copies of each other, some in chains; some are short."""
    rng = np.random.default_rng(seed)
    texts = [random_words(rng, length) for _ in range(8)] + [["short", "text"], ["a"]]
    while len(texts) < n:
        words = list(texts[rng.integers(len(texts))])
        for position in rng.integers(0, len(words), rng.integers(0, 3)):
            words[position] = random_words(rng, 1)[0]
        texts.append(words)
    return [" ".join(texts[i]) for i in rng.permutation(n)]


@contextmanager
def before_each_stage(do: Callable[[Stage], None]) -> Iterator[None]:
    """Call a function before each stage that has something to do."""
    run_stage = Stages.run

    def run(stages: Stages, stage: Stage) -> None:
        if stages.incomplete(stage):
            do(stage)
        run_stage(stages, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "run", run)
        yield


SUSPENDED = """\
import os, signal, sys
from pythia_core.data import sharded_dedup
from pythia_core.util import leases
leases.LEASE_SECONDS = 5.0
documents = sharded_dedup._documents
def then_stop(*arguments):
    made = documents(*arguments)
    for number, document in enumerate(made):
        if number == 20:
            os.kill(os.getpid(), signal.SIGSTOP)
        yield document
sharded_dedup._documents = then_stop
from pythia_core.__main__ import main
sys.exit(main())
"""
"""A command that suspends itself while it computes the signatures of a shard."""


def start(
    data: DataConfig, cache: Path, *options: str, program: Sequence[str] = ("-m", "pythia_core")
) -> subprocess.Popen[str]:
    """Start the preparation of data as the leader of a process group."""
    command = [sys.executable, *program, "prepare", "--corpus", data.corpus]
    command += ["--tokenizer", data.tokenizer, "--heldout", str(data.heldout_fraction)]
    command += ["--dedup", data.dedup, "--seq-len", str(data.seq_len), *options]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHIA_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(data: DataConfig, cache: Path, *options: str, code: int = 0) -> str:
    """Prepare data by the command; check its exit code, and return what it says."""
    process = start(data, cache, *options)
    _, said = process.communicate(timeout=500)
    assert process.returncode == code, said
    return said


# --- equality --------------------------------------------------------------------------------


@pytest.mark.parametrize("dedup", DEDUP_RECIPES)
def test_every_file_is_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dedup: str
) -> None:
    """Copies and near-copies lie in different shards, files and domains."""
    monkeypatch.setattr(sharded, "FIRST_SHARD_BYTES", 6000)
    texts = texts_with_copies(0, 80)
    parts = {"b/x.jsonl": texts[:45], "a.jsonl": texts[45:], "b/empty.jsonl": [" ", "\n"]}
    parts["held_out.jsonl"] = [next(text for text in texts if fraction(text) < 0.1)]
    data = config(corpus(tmp_path / "c", parts), dedup=dedup)
    expected = in_memory(tmp_path, data)
    found = prepared(tmp_path / "stages", data)
    assert differences(found, expected) == []
    manifests = [json.loads(found[name]) for name in found if name.endswith("manifest.json")]
    report = next(m["tokens"]["dedup"] for m in manifests if "tokens" in m)
    if dedup != "none":
        assert report["removed"]["exact"] > 5
    if dedup == "jaccard-0.87":
        assert report["removed"]["near"] > 5 and report["pairs"]["compared"] > 10


# words of two letters, so that some texts of five words are equal, and many are similar
_TEXTS = st.lists(
    st.one_of(
        st.lists(st.sampled_from(["ab", "cd"]), min_size=1, max_size=7).map(" ".join),
        st.sampled_from([" ", "\r\n", "x" * 50, "é" * 9, "a b c d e f g h\r\ni"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.lists(_TEXTS, min_size=1, max_size=2),
    dedup=st.sampled_from(DEDUP_RECIPES),
    heldout=st.sampled_from([0.0, 1e-6, 0.2]),
    size=st.sampled_from([20, 60]),
)
def test_any_small_corpus_gives_the_same(
    files: list[list[str]], dedup: str, heldout: float, size: int
) -> None:
    """Also the same error, e.g. for too little text."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "FIRST_SHARD_BYTES", size)
        parts = {f"{number}.jsonl": texts for number, texts in enumerate(files)}
        data = config(
            corpus(Path(folder, "c"), parts), dedup=dedup, heldout_fraction=heldout, seq_len=4
        )
        results: list[dict[str, bytes] | str] = []
        for name, staged in (("memory", False), ("stages", True)):
            try:
                results.append(prepared(Path(folder, name), data, staged))
            except DataError as error:
                results.append(str(error))
        expected, found = results
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected
        else:
            assert differences(found, expected) == []


def test_processes_and_any_form_of_file(tmp_path: Path) -> None:
    """Several processes; .gz, .zst, .txt and Parquet; one document longer than a first shard."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = texts_with_copies(1, 60)
    folder = Path(corpus(tmp_path / "c", {"a.jsonl": texts[:20]}))
    (folder / "long.txt").write_text("\n".join(texts) * 60)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[20:40]).encode()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "d.jsonl.zst").write_bytes(pyarrow.compress(lines, "zstd").to_pybytes())
    parquet.write_table(pyarrow.table({"text": texts[40:]}), folder / "e.parquet")
    assert sum(map(len, texts)) * 60 > sharded.FIRST_SHARD_BYTES
    data = config(str(folder), dedup="jaccard-0.87")
    expected = in_memory(tmp_path, data)
    run(data, tmp_path / "stages", "--on", "local", "--cpus", "2")
    assert differences(made_in(tmp_path / "stages"), expected) == []


def test_shards_are_many_for_short_text_and_few_for_long(tmp_path: Path) -> None:
    writer = sharded._ShardWriter
    limits = [writer(tmp_path, number)._limit for number in (0, 3, 4, 8, 400)]
    first = sharded.FIRST_SHARD_BYTES
    assert limits == [first, first, 2 * first, 4 * first, sharded.SHARD_BYTES]


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n'),
        ("x.jsonl", b'{"body": "a"}\n'),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-20]),
        ("x.jsonl.zst", b""),
        ("x.parquet", b"no table"),
        ("x.txt", b"a\0b"),
    ],
)
def test_bad_text_has_the_error_of_one_process(tmp_path: Path, name: str, content: bytes) -> None:
    folder = corpus(tmp_path / "c", {f"{n}.jsonl": texts_with_copies(n, 12) for n in range(3)})
    Path(folder, name).write_bytes(content)
    said = []
    for staged in (False, True):
        with pytest.raises(DataError) as refused:
            prepared(tmp_path / "cache", config(folder), staged)
        said.append(str(refused.value))
    assert said[0] == said[1] and name in said[0]


def test_bad_text_in_other_processes(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c", {"a.jsonl": ["fine"], "c.jsonl": ["fine"]})
    Path(folder, "b.jsonl").write_text("{")
    said = run(config(folder), tmp_path / "cache", "--on", "local", "--cpus", "2", code=1)
    assert "all 2 workers have failed" in said and "1 more with the same last line" in said
    assert re.search(r"b\.jsonl:1: this line is not a JSON object", said)
    assert not list((tmp_path / "cache" / "data").glob("tokens-*"))


def test_full_disk(tmp_path: Path) -> None:
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts_with_copies(0, 60)}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # large files fail, as on a full disk
    try:
        with pytest.raises(DataError, match=r"no space left .* PYTHIA_CACHE"):
            prepared(tmp_path / "stages", data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expected = in_memory(tmp_path, data)
    assert differences(prepared(tmp_path / "stages", data), expected) == []


def test_corpus_that_changes_while_read(tmp_path: Path) -> None:
    """Nothing remains of what was read."""
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts_with_copies(0, 20)}))

    def change(_: Stage) -> None:
        corpus(tmp_path / "c", {"a.jsonl": texts_with_copies(1, 20)})

    with before_each_stage(change), pytest.raises(DataError, match="changed while its tokens"):
        prepared(tmp_path / "cache", data)
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_text_that_was_read_from_other_files_is_not_used(tmp_path: Path) -> None:
    """The content, and so the work folder, is the same, but the time of writing is not."""
    data, cache = six_files(tmp_path), tmp_path / "cache"

    def stop(stage: Stage) -> None:
        if stage.name == "making the tokenizer":
            raise PythiaError("killed")

    with before_each_stage(stop), pytest.raises(PythiaError, match="killed"):
        prepared(cache, data)
    os.utime(tmp_path / "c" / "0.jsonl", (1, 1))
    with pytest.raises(DataError, match="changed while its tokens"):
        prepared(cache, data)
    assert not list((cache / "data").iterdir())


def test_a_folder_that_is_deleted_in_use_is_named(tmp_path: Path) -> None:
    def delete(stage: Stage) -> None:
        if stage.name == "encoding text":
            shutil.rmtree(stage.outputs[0].parents[1])

    with (
        before_each_stage(delete),
        pytest.raises(DataError, match="was deleted while it was in use"),
    ):
        prepared(tmp_path / "cache", six_files(tmp_path))


# --- interruptions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "pattern"),
    [
        ("making the tokenizer", "texts/*/*.txt"),
        ("making the tokenizer", "texts/*/*.records"),
        ("making the tokenizer", "texts/*/entry.json"),
        ("encoding text", "plan/tokenizer.json"),
        ("joining tokens", "tokens/*/train.bin"),
        ("finding candidates", "signatures/*/003.sig"),
        ("finding candidates", "signatures/*/entry.json"),
        ("connecting candidates", "pairs/*/array"),
        ("comparing candidates", "groups/*/array"),
        ("removing duplicates", "linked/*/array"),
    ],
)
def test_damaged_work_is_not_used(tmp_path: Path, before: str, pattern: str) -> None:
    """A flipped bit is found by the stage that reads it; without it, the work goes on."""
    texts = texts_with_copies(0, 40)
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts[:20], "b.jsonl": texts[20:]}),
                  dedup="jaccard-0.87")  # fmt: skip
    cache = tmp_path / "cache"
    done: list[str] = []

    def stop(stage: Stage) -> None:
        if stage.name == before:
            raise PythiaError("killed")
        done.append(stage.name)

    with before_each_stage(stop), pytest.raises(PythiaError, match="killed"):
        prepared(cache, data)
    work = next((cache / "data").glob("work-*"))
    file = max(work.glob(pattern), key=lambda path: path.stat().st_size)
    good = file.read_bytes()
    file.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    with pytest.raises(DataError, match=rf"is damaged .*delete the folder {re.escape(str(work))}"):
        prepared(cache, data)
    file.write_bytes(good)
    with before_each_stage(lambda stage: done.append(stage.name)):
        found = prepared(cache, data)
    assert len(done) == len({*done}) == 12, "no stage was done twice"
    assert differences(found, in_memory(tmp_path, data)) == []


def wait_until(holds: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for(folder: Path, pattern: str) -> None:
    """Wait until a path matches a pattern."""
    wait_until(lambda: list(folder.glob(pattern)))


WORKERS = ("--on", "local", "--cpus", "2")


def six_files(folder: Path) -> DataConfig:
    """Text that takes some seconds."""
    texts = texts_with_copies(2, 600)
    parts = {f"{n}.jsonl": texts[n::6] for n in range(6)}
    return config(corpus(folder / "c", parts), dedup="jaccard-0.87", seq_len=128)


def marks(cache: Path) -> dict[Path, int]:
    """The descriptions of finished tasks' outputs, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in cache.glob("data/work-*/*/[0-9]*/entry.json")}


@pytest.mark.slow
def test_killed_tasks(tmp_path: Path) -> None:
    """What is done stays, and is not done again; what was not done leaves nothing that counts."""
    data = six_files(tmp_path)
    cache = tmp_path / "cache"
    process = start(data, cache, *WORKERS)
    wait_for(cache / "data", "work-*/signatures/[0-9]*")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1)  # the workers end with their parent
    before = marks(cache)
    assert before and not list((cache / "data").glob("rows-*"))
    started = time.monotonic()
    rmtree = shutil.rmtree

    def keep_work(path: Path, **settings: Any) -> None:
        if not path.name.startswith("work-"):
            rmtree(path, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", keep_work)
        prepared(cache, data)
    assert time.monotonic() - started < 50, "waited for the lease of a dead process"
    assert marks(cache).items() >= before.items()
    kept = {name: content for name, content in made_in(cache).items() if "work-" not in name}
    kept = {name: content for name, content in kept.items() if "/." not in name}
    assert differences(kept, in_memory(tmp_path, data)) == []


@pytest.mark.slow
def test_the_other_workers_do_what_a_killed_one_leaves(tmp_path: Path) -> None:
    data = six_files(tmp_path)
    cache = tmp_path / "cache"
    process = start(data, cache, *WORKERS)
    wait_for(cache / "data", "work-*/signatures/[0-9]*")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "1 of 2 workers have failed; the others have finished the work" in said
    assert differences(made_in(cache), in_memory(tmp_path, data)) == []


@pytest.mark.slow
@pytest.mark.parametrize("all_done", [False, True])
def test_a_process_that_was_suspended_changes_nothing(tmp_path: Path, all_done: bool) -> None:
    """Neither in the shard that another process has done meanwhile, nor when all is done."""
    data, cache = six_files(tmp_path), tmp_path / "cache"
    late = start(data, cache, "--stages", program=("-c", SUSPENDED))
    wait_until(lambda: is_stopped(late.pid))

    def resume(stage: Stage) -> None:
        if stage.name == "finding candidates" and not all_done:
            late.send_signal(signal.SIGCONT)

    with pytest.MonkeyPatch.context() as patch, before_each_stage(resume):
        patch.setattr(leases, "LEASE_SECONDS", 5.0)
        found = prepared(cache, data)
    late.send_signal(signal.SIGCONT)
    _, said = late.communicate(timeout=200)
    assert late.returncode == 0, said
    assert differences(found, in_memory(tmp_path, data)) == []
    assert differences(made_in(cache), found) == []


def is_stopped(pid: int) -> bool:
    return "State:\tT" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.slow
def test_processes_share_the_tasks(tmp_path: Path) -> None:
    texts = texts_with_copies(3, 60)
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts}), dedup="exact", seq_len=128)
    both = [start(data, tmp_path / "cache", "--stages") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    expected = in_memory(tmp_path, data)
    assert differences(made_in(tmp_path / "cache"), expected) == []


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Ten times the text takes less than 40 MB more."""
    peaks = []
    base = texts_with_copies(4, 50, length=600)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_bpe(base, 300).to_str())
    for size in (2, 20):
        rng = np.random.default_rng(size)
        folder = tmp_path / str(size)
        folder.mkdir()
        with open(folder / "x.jsonl", "w") as file:
            while file.tell() < size * 1e6:
                words = base[rng.integers(len(base))].split()
                words = (
                    [words[i] for i in rng.permutation(len(words))] if rng.random() < 0.9 else words
                )
                file.write(json.dumps({"text": " ".join(words)}) + "\n")
        data = config(
            str(folder),
            dedup="eleutherai-0.87",
            seq_len=128,
            heldout_fraction=0.01,
            tokenizer=str(tokenizer),
        )
        process = start(data, tmp_path / "cache", "--stages")
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.communicate()[1].startswith("reading text") and process.returncode == 0
        peaks.append(used.ru_maxrss // 1024)
    assert peaks[1] - peaks[0] < 40, peaks


# --- Slurm -----------------------------------------------------------------------------------


SLURM = ("--on", "slurm", "--cpus", "2")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_slurm(tmp_path: Path) -> None:
    """On two nodes: equal files, the errors of one machine, no jobs left."""
    texts = texts_with_copies(5, 90)
    data = config(
        corpus(tmp_path / "c", {f"{n}.jsonl": texts[n::3] for n in range(3)}), dedup="jaccard-0.87"
    )
    bad = Path(corpus(tmp_path / "bad", {f"{n}.jsonl": texts for n in range(3)}))
    (bad / "1.jsonl").write_text("{")
    cache = tmp_path / "cache"
    said = run(config(str(bad)), cache, *SLURM, code=1)
    assert "1.jsonl:1: this line is not a JSON object" in said
    said = run(data, cache, *SLURM, "--partition", "none", code=1)
    assert re.search(r"Slurm refuses .*[Ii]nvalid partition", said)
    wait_until(lambda: not slurm.job_ids(os.environ), 60)
    shutil.rmtree(cache)
    said = run(data, cache, *SLURM)
    assert re.search(r"Slurm job \d+: 2 x prepare", said)
    expected = in_memory(tmp_path, data)
    assert differences(made_in(cache), expected) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_slurm_commands_and_jobs_that_end_early(tmp_path: Path) -> None:
    """Ctrl-C cancels the jobs; with those of a killed command, and a requeued one, work goes on."""
    data = six_files(tmp_path)
    cache = tmp_path / "cache"
    process = start(data, cache, *SLURM)
    wait_for(cache / "data", "work-*/*/[0-9]*")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "was canceled; its work is saved" in said
    wait_until(lambda: not slurm.job_ids(os.environ), 60)
    process = start(data, cache, *SLURM)
    wait_for(cache / "data", "work-*/plan/entry.json")
    slurm.requeue(slurm.job_ids(os.environ)[0], dict(os.environ))
    process.kill()
    process.communicate()
    assert slurm.job_ids(os.environ)
    run(data, cache, *SLURM)
    assert differences(made_in(cache), in_memory(tmp_path, data)) == []
