"""Preparation in stages: what it makes is, byte for byte, what one process makes in memory."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slurm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pythia_core.__main__ import main
from pythia_core.config import DEDUP_RECIPES, DataConfig
from pythia_core.data import sharded
from pythia_core.data.prepare import prepare
from pythia_core.data.stages import Engine, Local, Slurm, Stage, incomplete, run_tasks
from pythia_core.errors import ConfigError, DataError, PythiaError
from pythia_core.util.files import fraction

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e .[dedup]")


def prepared(cache: Path, data: DataConfig, engine: Engine | None) -> dict[str, bytes]:
    """Prepare data in a cache, and return the content of every file that is there afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_CACHE", str(cache))
        prepare(data, progress=False, engine=engine)
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
    expected = prepared(tmp_path / "memory", data, None)
    found = prepared(tmp_path / "stages", data, Local(1))
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
        for name, engine in (("memory", None), ("stages", Local(1))):
            try:
                results.append(prepared(Path(folder, name), data, engine))
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
    expected = prepared(tmp_path / "memory", data, None)
    assert differences(prepared(tmp_path / "stages", data, Local(2)), expected) == []


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
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999)[:-20]),
        ("x.jsonl.zst", b""),
        ("x.parquet", b"no table"),
        ("x.txt", b"a\0b"),
    ],
)
def test_bad_text_has_the_error_of_one_process(tmp_path: Path, name: str, content: bytes) -> None:
    folder = corpus(tmp_path / "c", {f"{n}.jsonl": texts_with_copies(n, 12) for n in range(3)})
    Path(folder, name).write_bytes(content)
    said = []
    for engine in (None, Local(1)):
        with pytest.raises(DataError) as refused:
            prepared(tmp_path / "cache", config(folder), engine)
        said.append(str(refused.value))
    assert said[0] == said[1] and name in said[0]


def test_bad_text_in_another_process(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c", {"a.jsonl": ["fine"], "c.jsonl": ["fine"]})
    Path(folder, "b.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"b\.jsonl:1: this line is not a JSON object"):
        prepared(tmp_path / "cache", config(folder), Local(2))
    assert not list((tmp_path / "cache" / "data").glob("tokens-*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--on", "local", "--tasks", "0"], "--tasks must be at least 1, got 0"),
        (["--tasks", "2"], "--tasks needs --on local or --on slurm"),
        (["--on", "local", "--partition", "long"], "--partition needs --on slurm"),
        (["--on", "slurm", "--minutes", "0"], "--minutes must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *options]) == 1
    assert words in capsys.readouterr().err


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts_with_copies(0, 12)}))
    with pytest.raises(ConfigError, match="Use --on local"):
        prepared(tmp_path / "cache", data, Slurm(2))


def test_full_disk(tmp_path: Path) -> None:
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts_with_copies(0, 60)}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # large files fail, as on a full disk
    try:
        with pytest.raises(DataError, match=r"no space left .* PYTHIA_CACHE"):
            prepared(tmp_path / "stages", data, Local(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expected = prepared(tmp_path / "memory", data, None)
    assert differences(prepared(tmp_path / "stages", data, Local(1)), expected) == []


def test_corpus_that_changes_while_read(tmp_path: Path) -> None:
    """Nothing remains of what was read."""
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts_with_copies(0, 20)}))

    class Changing(Local):
        def run(self, stage: Stage, folder: Path, progress: bool) -> None:
            corpus(tmp_path / "c", {"a.jsonl": texts_with_copies(1, 20)})
            super().run(stage, folder, progress)

    with pytest.raises(DataError, match="changed while its tokens"):
        prepared(tmp_path / "cache", data, Changing(1))
    assert not list((tmp_path / "cache" / "data").iterdir())


# --- interruptions ---------------------------------------------------------------------------


@dataclass(frozen=True)
class StoppedAfter(Local):
    """Runs a number of stages, then fails as if it had been killed."""

    stages: int = 0
    names: list[str] = field(default_factory=list)

    def run(self, stage: Stage, folder: Path, progress: bool) -> None:
        if not incomplete(stage, folder):
            return
        if len(self.names) == self.stages:
            raise PythiaError("killed")
        self.names.append(stage.name)
        super().run(stage, folder, progress)


@pytest.mark.parametrize(
    ("stages", "pattern"),
    [
        (1, "texts/*/*.txt"),
        (1, "texts/*/*.records"),
        (2, "plan/tokenizer.json"),
        (3, "tokens/*/train.bin"),
        (6, "signatures/bucket_003/*.sig"),
        (7, "pairs/*/array"),
        (8, "groups/*/array"),
        (9, "linked/*/array"),
    ],
)
def test_damaged_work_is_not_used(tmp_path: Path, stages: int, pattern: str) -> None:
    """A flipped bit is found by the stage that reads it; without it, the work goes on."""
    texts = texts_with_copies(0, 40)
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts[:20], "b.jsonl": texts[20:]}),
                  dedup="jaccard-0.87")  # fmt: skip
    cache = tmp_path / "cache"
    with pytest.raises(PythiaError, match="killed"):
        prepared(cache, data, StoppedAfter(1, stages))
    work = next((cache / "data").glob("work-*"))
    file = max(work.glob(pattern), key=lambda path: path.stat().st_size)
    good = file.read_bytes()
    file.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    with pytest.raises(DataError, match=rf"is damaged .*delete the folder {re.escape(str(work))}"):
        prepared(cache, data, Local(1))
    file.write_bytes(good)
    rest = StoppedAfter(1, 99)
    found = prepared(cache, data, rest)
    assert differences(found, prepared(tmp_path / "memory", data, None)) == []


def start(data: DataConfig, cache: Path, place: str = "local") -> subprocess.Popen[str]:
    """Start the preparation of data, two tasks at a time, as the leader of a process group."""
    command = [sys.executable, "-m", "pythia_core", "prepare", "--corpus", data.corpus]
    command += ["--tokenizer", data.tokenizer, "--heldout", str(data.heldout_fraction)]
    command += ["--dedup", data.dedup, "--on", place, "--tasks", "2"]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHIA_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(folder: Path, pattern: str, number: int = 1, seconds: float = 300) -> list[Path]:
    """Wait until so many paths match a pattern; return them."""
    end = time.monotonic() + seconds
    while len(found := sorted(folder.glob(pattern))) < number:
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.02)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["all", "worker"])
def test_killed_tasks(tmp_path: Path, victim: str) -> None:
    """What was completed stays and is not done again; what was not, leaves nothing that counts."""
    texts = texts_with_copies(2, 600)
    parts = {f"{n}.jsonl": texts[n::6] for n in range(6)}
    data = config(corpus(tmp_path / "c", parts), dedup="jaccard-0.87", seq_len=128)
    cache = tmp_path / "cache"
    process = start(data, cache)
    wait_for(cache / "data", "work-*/logs/computing signatures/completions/*")
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [n for n in children if b"spawn_main" in Path(f"/proc/{n}/cmdline").read_bytes()]
        os.kill(int(workers[0]), signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1 and "was killed, perhaps because memory ran out" in said
    work = next((cache / "data").glob("work-*"))
    before = {path: path.stat().st_mtime_ns for path in work.glob("logs/*/completions/*")}
    assert not list((cache / "data").glob("rows-*"))
    again = StoppedAfter(1, 99)
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:  # the work folder is deleted when all is done
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        found = prepared(cache, data, again)
    assert time.monotonic() - started < 50, "waited for the claim of a dead process"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    kept = {name: content for name, content in found.items() if "work-" not in name}
    kept = {name: content for name, content in kept.items() if "/." not in name}
    assert differences(kept, prepared(tmp_path / "memory", data, None)) == []


@pytest.mark.slow
def test_two_preparations_at_once(tmp_path: Path) -> None:
    texts = texts_with_copies(3, 60)
    data = config(corpus(tmp_path / "c", {"a.jsonl": texts}), dedup="exact", seq_len=128)
    both = [start(data, tmp_path / "cache") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][0] == said[1][0]
    assert any("waiting for" in error for _, error in said)
    assert not list((tmp_path / "cache" / "data").glob("work-*"))


# --- memory ----------------------------------------------------------------------------------


def _measured(stage: Stage, folder: Path, tasks: list[int], peaks: Any) -> None:
    """Run tasks; report the peak memory of this process in MB."""
    try:
        run_tasks(stage, folder, tasks)
    finally:
        peaks.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


@dataclass
class Measuring:
    """Runs each stage in one new process, and keeps the largest peak of each."""

    peaks: dict[str, int] = field(default_factory=dict)

    def run(self, stage: Stage, folder: Path, progress: bool) -> None:
        """See `Engine.run`."""
        if tasks := incomplete(stage, folder):
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=_measured, args=(stage, folder, tasks, queue))
            process.start()
            self.peaks[stage.name] = queue.get()
            process.join()
            assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Ten times the text takes less than 40 MB more in any stage but the tokenizer's sample."""
    peaks = []
    base = texts_with_copies(4, 50, length=600)
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
        measuring = Measuring()
        data = config(str(folder), dedup="eleutherai-0.87", seq_len=128, heldout_fraction=0.01)
        prepared(tmp_path / "cache", data, measuring)
        peaks.append(measuring.peaks)
    grown = {name: peaks[1][name] - peaks[0][name] for name in peaks[0]}
    assert max(v for name, v in grown.items() if name != "making the tokenizer") < 40, grown


# --- Slurm -----------------------------------------------------------------------------------


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Slurm of two nodes, and an environment that is not activated."""
    pytest.importorskip("submitit")
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.two_nodes(tmp_path / "slurm") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        folders = environment["PATH"].split(os.pathsep)
        own = str(Path(sys.executable).parent)
        monkeypatch.setenv("PATH", os.pathsep.join(folder for folder in folders if folder != own))
        yield


def queue() -> str:
    """The jobs that wait or run."""
    command = ["squeue", "--noheader", "--format", "%i %T"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("two_nodes")
def test_slurm(tmp_path: Path) -> None:
    """On two nodes: equal files, errors as on one machine, no jobs left."""
    texts = texts_with_copies(5, 90)
    data = config(
        corpus(tmp_path / "c", {f"{n}.jsonl": texts[n::3] for n in range(3)}), dedup="jaccard-0.87"
    )
    bad = Path(corpus(tmp_path / "bad", {f"{n}.jsonl": texts for n in range(3)}))
    (bad / "1.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"1\.jsonl:1: this line is not a JSON object"):
        prepared(tmp_path / "cache", config(str(bad)), Slurm(2))
    with pytest.raises(ConfigError, match=r"Slurm refused .*[Ii]nvalid partition"):
        prepared(tmp_path / "cache", data, Slurm(2, partition="none"))
    assert queue() == ""
    shutil.rmtree(tmp_path / "cache")
    expected = prepared(tmp_path / "memory", data, None)
    assert differences(prepared(tmp_path / "cache", data, Slurm(2)), expected) == []


@pytest.mark.slow
@pytest.mark.usefixtures("two_nodes")
def test_slurm_commands_that_end_early(tmp_path: Path) -> None:
    """Ctrl-C cancels the jobs; those of a killed command are cancelled by the next."""
    texts = texts_with_copies(5, 90)
    data = config(
        corpus(tmp_path / "c", {"a.jsonl": texts[:45], "b.jsonl": texts[45:]}), seq_len=128
    )
    cache = tmp_path / "cache"
    process = start(data, cache, "slurm")
    number = wait_for(cache / "data", "work-*/slurm-job")[0].read_text()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"stopped, and the Slurm job {number} was cancelled; finished parts are saved" in said
    assert queue() == "" and not list(cache.glob("data/work-*/slurm-job"))
    process = start(data, cache, "slurm")
    path = wait_for(cache / "data", "work-*/slurm-job")[0]
    process.kill()
    process.communicate()
    assert path.exists() and queue()
    again = start(data, cache, "slurm")
    _, said = again.communicate(timeout=500)
    assert again.returncode == 0, said
    end = time.monotonic() + 30  # a job has its result shortly before it ends
    while queue() and time.monotonic() < end:
        time.sleep(0.2)
    assert queue() == ""
    found = {str(p.relative_to(cache)): p.read_bytes() for p in cache.glob("data/*/*")}
    assert differences(found, prepared(tmp_path / "memory", data, None)) == []
