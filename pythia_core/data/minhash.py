"""Pairs of documents that may be near-duplicates: the MinHash stages of datatrove, made resumable.

Two stages (pythia_core.data.dedup does the rest): MinHash signatures of word n-grams, then buckets,
in which documents with an equal band of hashes meet. The same stages run in this process or several
(`local`), as Slurm jobs (`slurm`; this process waits for them) or on a Ray cluster (`ray`).

Two of datatrove's defaults are replaced: its normalisation, which makes all numbers equal and so
merges tables and sums that differ, and its English tokenizer, which needs spaCy. Its completion
marks say nothing about inputs or about damage since, so a stage works in a folder named by its
input and is sealed with digests of what it wrote; a stage whose files do not match is run again.
Not here: which pairs are duplicates, and which document of a cluster stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import shutil
import subprocess
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pythia_core.errors import ConfigError, DataError, MissingDependencyError, PythiaError
from pythia_core.util.files import atomic_file
from pythia_core.util.progress import bar as progress_bar

BYTES_PER_TASK = 2**21
SLURM_POLL = 5.0  # seconds between looks at a job
_SHINGLES_AT_ONCE = 4096
_SLICES = 5  # how often the bar of a local stage moves


@dataclass(frozen=True)
class Banding:
    """How signatures are made and compared: `buckets` bands of `hashes` hashes of n-grams."""

    ngram: int
    buckets: int
    hashes: int


class Words:
    """What white space separates; a word tokenizer for datatrove."""

    language = None

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


@dataclass(frozen=True)
class Stage:
    """One pipeline of datatrove: its steps, number of tasks, and what each task writes."""

    name: str
    steps: list[Any]
    outputs: list[list[str]]
    """File names by task, relative to `<folder>/<name>`."""

    @property
    def tasks(self) -> int:
        return len(self.outputs)


def pipelines(banding: Banding, folder: Path, tasks: int) -> list[Stage]:
    """The stages for texts in `folder`/input, one file a task, whatever executes them.

    Raises:
        MissingDependencyError: datatrove, or something it needs, is absent or too new.
    """
    _version()
    try:
        from datatrove.pipeline.dedup.minhash import (
            MinhashConfig,
            MinhashDedupBuckets,
            MinhashDedupSignature,
        )
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.utils.hashing import HashConfig
        from datatrove.utils.text import TextNormConfig
        from datatrove.utils.word_tokenizers import WordTokenizer

        WordTokenizer.register(Words)
        config = MinhashConfig(
            n_grams=banding.ngram,
            num_buckets=banding.buckets,
            hashes_per_bucket=banding.hashes,
            seed=1,
            norm_config=TextNormConfig(
                lowercase=False,
                norm_whitespace=False,  # Words does that
                remove_punctuation=False,
                norm_unicode_diacritics=False,
                norm_numbers=False,
                norm_weekdays=False,
                norm_monthnames=False,
            ),
            hash_config=HashConfig(precision=64, hash_fc="xxhash"),
        )
        signatures, buckets = str(folder / "signatures"), str(folder / "buckets")
        sign = MinhashDedupSignature(signatures, config, language=Words())
        sign.get_signature = types.MethodType(_signature, sign)
        read = JsonlReader(str(folder / "input"), glob_pattern="*.jsonl", add_file_path=False)
        meet = MinhashDedupBuckets(signatures, buckets, config=config)
    except ImportError as error:
        raise MissingDependencyError(
            f"near-deduplication needs datatrove ({error}): pip install -e .[dedup]"
        ) from error
    bands = range(banding.buckets)
    written = [[f"bucket_{b:03d}/{rank:05d}.minhash.sig" for b in bands] for rank in range(tasks)]
    return [
        Stage("signatures", [read, sign], written),
        Stage("buckets", [meet], [[f"{b:05d}_00.dups"] for b in bands]),
    ]


def _version() -> str:
    """datatrove's version; fails if it or its hash function is not usable."""
    try:
        version, xxhash = map(importlib.metadata.version, ("datatrove", "xxhash"))
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            f"near-deduplication needs {error.name}: pip install -e .[dedup]"
        ) from error
    if int(xxhash.split(".")[0]) >= 4:
        raise MissingDependencyError(
            f"datatrove cannot work with xxhash {xxhash}: pip install 'xxhash<4'"
        )
    return version


def _signature(step: Any, shingles: np.ndarray) -> list[list[int]]:
    """A step's signature, in parts: a book's shingles times all hashes would fill the memory."""
    whole = type(step).get_signature
    starts = range(0, len(shingles), _SHINGLES_AT_ONCE)
    parts = [whole(step, shingles[i : i + _SHINGLES_AT_ONCE]) for i in starts]
    return np.min(np.array(parts, np.uint64), axis=0).tolist()


# --- from texts to pairs ---------------------------------------------------------------------


def candidate_pairs(
    texts: Sequence[str],
    numbers: np.ndarray,
    banding: Banding,
    workdir: Path,
    executor: str = "local",
    tasks: int | None = None,
    workers: int | None = None,
    options: dict[str, Any] | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Links int64[n, 2] between documents with an equal band, each once, smaller number first.

    Of k documents with an equal band only k - 1 links are given, a chain; which ones depends on
    `tasks`, which documents hang together does not.

    Args:
        texts: the corpus.
        numbers: which of its documents to compare; each has at least `banding.ngram` words.
        workdir: for intermediate files, in a folder named by the input: what is there is used.
        executor: "local", "slurm" or "ray".
        tasks: into how many parts the texts are split; None: one for each 2 MB, or worker.
        workers: how many tasks at a time; None: one locally, no limit elsewhere.
        options: more arguments of datatrove's executor, e.g. Slurm's `partition` and `time`.

    Raises:
        ConfigError: options that the executor does not have. MissingDependencyError: datatrove
            cannot be used. PythiaError: a stage failed; its log is named.
    """
    if tasks is None:
        n_bytes = sum(len(texts[i]) for i in numbers)
        tasks = max(workers or 1, math.ceil(n_bytes / BYTES_PER_TASK))
    tasks = min(tasks, len(numbers))
    parts = np.array_split(np.asarray(numbers, np.int64), tasks)
    folder = workdir / f"minhash-{_fingerprint(texts, parts, banding)}"
    stages = pipelines(banding, folder, tasks)
    with progress_bar(
        progress, total=1 + tasks + banding.buckets, desc="looking for near-duplicates"
    ) as bar:
        _write_input(folder, texts, parts)
        bar.update()
        for stage in stages:
            _run(stage, folder, executor, workers, options or {}, bar)
    record = 8 * banding.hashes + 4
    for band in range(banding.buckets):
        files = (folder / "signatures" / f"bucket_{band:03d}").iterdir()
        signed = sum(file.stat().st_size for file in files) / record
        if signed != len(numbers):
            raise DataError(
                f"band {band} has {signed:g} signatures of {len(numbers)} documents; files in "
                f"{folder} are damaged: delete that folder and run it again"
            )
    links = [np.fromfile(file, "<u4") for file in sorted((folder / "buckets").glob("*.dups"))]
    file_a, a, file_b, b = np.concatenate(links).astype(np.int64).reshape(-1, 4).T
    starts = np.cumsum([0] + [len(part) for part in parts[:-1]])
    found = np.stack([numbers[starts[file_a] + a], numbers[starts[file_b] + b]], axis=1)
    return np.unique(np.sort(found, axis=1), axis=0).astype(np.int64)


def _fingerprint(texts: Sequence[str], parts: list[np.ndarray], banding: Banding) -> str:
    """Names all that determines the files: texts and their split, settings, datatrove."""
    digest = hashlib.sha256(repr((astuple(banding), _version())).encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        for number in part:
            digest.update(hashlib.sha256(texts[number].encode()).digest())
    return digest.hexdigest()[:16]


def _write_input(folder: Path, texts: Sequence[str], parts: list[np.ndarray]) -> None:
    if _sealed(folder, "input"):
        return
    for rank, part in enumerate(parts):
        with atomic_file(folder / "input" / f"{rank:05d}.jsonl") as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": texts[i]}) + "\n" for i in part)
    _seal(folder, "input")


# --- running a stage -------------------------------------------------------------------------


def _run(
    stage: Stage, folder: Path, how: str, workers: int | None, options: dict[str, Any], bar: Any
) -> None:
    """Run what is missing of a stage and seal it."""
    logs, output = folder / "logs" / stage.name, folder / stage.name
    if _sealed(folder, stage.name):
        bar.update(stage.tasks)
        return
    if _seal_file(folder, stage.name).exists():  # it was whole once and is damaged
        _seal_file(folder, stage.name).unlink()
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(logs, ignore_errors=True)
    for rank, names in enumerate(stage.outputs):
        if not all((output / name).exists() for name in names):
            (logs / "completions" / f"{rank:05d}").unlink(missing_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet(logs / "console.log"):
            _EXECUTE[how](stage, logs, workers, options, bar)
    except (PythiaError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise PythiaError(
            f"stage {stage.name!r} of near-deduplication failed ({type(error).__name__}: {error}); "
            f"see {logs}. Given the same workdir, the next run does only what is missing"
        ) from error
    missing = [n for names in stage.outputs for n in names if not (output / n).exists()]
    if missing:
        raise PythiaError(f"stage {stage.name!r} ended without writing {missing[0]}; see {logs}")
    _seal(folder, stage.name)


def _execute_locally(
    stage: Stage, logs: Path, workers: int | None, options: dict[str, Any], bar: Any
) -> None:
    from datatrove.executor import LocalPipelineExecutor

    workers = min(workers or 1, stage.tasks)
    # fork: the tasks start at once and share this process's silenced error stream
    settings = {"start_method": "fork", **options, "tasks": stage.tasks, "workers": workers}
    step = max(workers, math.ceil(stage.tasks / _SLICES))
    for first in range(0, stage.tasks, step):
        part = {"local_rank_offset": first, "local_tasks": min(step, stage.tasks - first)}
        _made(LocalPipelineExecutor, stage, logs, settings | part).run()
        bar.update(part["local_tasks"])


def _execute_on_ray(
    stage: Stage, logs: Path, workers: int | None, options: dict[str, Any], bar: Any
) -> None:
    from datatrove.executor import RayPipelineExecutor

    settings = {**options, "tasks": stage.tasks, "workers": workers or -1}
    _made(RayPipelineExecutor, stage, logs, settings).run()
    bar.update(stage.tasks)


def _execute_on_slurm(
    stage: Stage, logs: Path, workers: int | None, options: dict[str, Any], bar: Any
) -> None:
    """Submit the stage and wait until its last task is done, or its job has left the queue."""
    from datatrove.executor import SlurmPipelineExecutor

    settings = {"job_name": f"dedup-{stage.name}", **options}
    settings |= {"tasks": stage.tasks, "workers": workers or -1}
    job = _made(SlurmPipelineExecutor, stage, logs, settings)
    job.run()
    left, queued = stage.tasks, True
    while left:
        now = len(job.get_incomplete_ranks(skip_completed=True))
        bar.update(left - now)
        left = now
        if left and not queued:
            raise PythiaError(
                f"Slurm job {job.job_id} has ended with {left} of {stage.tasks} tasks of stage "
                f"{stage.name!r} not done; see {job.slurm_logs_folder}, then run it again"
            )
        if left:
            time.sleep(SLURM_POLL)  # also the time that marks need to show on a shared disk
            seen = subprocess.run(
                ["squeue", "--noheader", "--jobs", str(job.job_id)], capture_output=True, text=True
            )
            gone = not seen.returncode or "Invalid job id" in seen.stderr  # else it may be back
            queued = bool(seen.stdout.strip()) or not gone


_EXECUTE = {"local": _execute_locally, "slurm": _execute_on_slurm, "ray": _execute_on_ray}


def _made(kind: type, stage: Stage, logs: Path, settings: dict[str, Any]) -> Any:
    try:
        return kind(pipeline=stage.steps, logging_dir=str(logs), **settings)
    except TypeError as error:
        raise ConfigError(
            f"executor_options do not fit {kind.__name__} ({error}); what it accepts is what "
            "datatrove documents for it (Slurm needs at least partition and time)"
        ) from error


@contextlib.contextmanager
def _quiet(file: Path) -> Iterator[None]:
    """Send what datatrove tells the error stream to a file."""
    from datatrove.utils.logging import setup_default_logger

    try:
        with open(file, "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
            setup_default_logger()  # binds the logger to the stream of the moment
            yield
    finally:
        setup_default_logger()


# --- seals -----------------------------------------------------------------------------------


def _seal_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.sealed.json"


def _contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()
        found[path.relative_to(folder).as_posix()] = digest
    return found


def _sealed(folder: Path, name: str) -> bool:
    """Whether a stage is finished and its files are as it left them."""
    try:
        expected = json.loads(_seal_file(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return expected == _contents(folder / name)


def _seal(folder: Path, name: str) -> None:
    with atomic_file(_seal_file(folder, name)) as temporary:
        temporary.write_text(json.dumps(_contents(folder / name)), encoding="utf-8")
