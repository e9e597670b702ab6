"""Audit the checkpoints of a published model: one hash per step, repeated ones found, gaps named.

Steps of released models have been served under the wrong name: 86 of pythia-2.8b's 154 branches
held the weights of two others (EleutherAI/pythia#205), a shard of pythia-12b's step 50,000 was that
of the last step (#206). Nothing about such a file is damaged; only its hash, beside the others', is
telling. On the hub the hashes are the repository's own and nothing is downloaded, nor for git-lfs
pointers in a clone. Of files that are there the tensors are hashed, under our names, one at a time
(checkpoint.sha256_tensors), so that equal weights are found whatever file they are in.

Not here: runs of our own (pythia_core.training.runs.verify).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from pythia_book.released import download
from pythia_core.errors import CheckpointError, PythiaError
from pythia_core.hf import WEIGHTS, Weights, lfs_pointer, step_of
from pythia_core.training.checkpoint import MANIFEST, load_checkpoint, sha256_tensors
from pythia_core.training.schedule import OFFICIAL_STEPS, checkpoint_steps
from pythia_core.util.files import file_sha256
from pythia_core.util.progress import bar as progress_bar

PICKLED = (".bin", ".pt")
LAST = f"step{OFFICIAL_STEPS}"
EXPECTED = {
    frozenset({"step0", "step1"}): "expected: the first update runs at learning rate 0",
    frozenset({"main", LAST}): "expected: main is the last step",
}
SHOWN = 12
"""So many names are listed before the rest is counted."""


@dataclass(frozen=True)
class Entry:
    """The weights of one revision, in one kind of files."""

    revision: str
    kind: str
    """What was hashed: "tensors", "safetensors" or "pickles" (files). Only alike is compared."""
    parts: dict[str, str] = field(default_factory=dict)
    """File -> sha256."""
    whole: str = ""
    """sha256 of all tensors; of files: that of the file, or of the table of several."""
    problem: str = ""
    """Why there is no hash."""


@dataclass(frozen=True)
class Audit:
    """What was found of a model."""

    source: str
    entries: tuple[Entry, ...]

    @property
    def sound(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.problem]

    @property
    def missing(self) -> list[int]:
        """Steps of the official 154 of which there are no weights."""
        there = {step_of(entry.revision) for entry in self.sound}
        return [step for step in checkpoint_steps(OFFICIAL_STEPS) if step not in there]

    def repeated(self) -> list[tuple[list[str], str]]:
        """Groups of revisions with equal weights, each with why that is right, or ""."""
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for entry in self.sound:
            groups[entry.kind, entry.whole].append(entry.revision)
        return [
            (names, EXPECTED.get(frozenset(names), ""))
            for names in groups.values()
            if len(names) > 1
        ]

    def shared_parts(self) -> list[tuple[str, list[str]]]:
        """Files that are the same in revisions whose other files differ."""
        groups: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
        for entry in self.sound:
            for name, digest in entry.parts.items():
                groups[entry.kind, name, digest].append(entry)
        return [
            (name, [entry.revision for entry in group])
            for (_, name, _), group in groups.items()
            if len({entry.whole for entry in group}) > 1
        ]

    def defects(self) -> list[str]:
        """What is wrong, a sentence each."""
        found = [f"{entry.revision}: {entry.problem}" for entry in self.entries if entry.problem]
        found += [
            f"{len(names)} revisions hold the same weights, so that all but one are of another "
            f"step: {_list(names)}"
            for names, reason in self.repeated()
            if not reason
        ]
        found += [
            f"{name} is the same file in {len(names)} revisions whose other files differ: "
            f"{_list(names)}"
            for name, names in self.shared_parts()
        ]
        if steps := self.missing:
            found.append(f"{len(steps)} of the 154 steps are missing: {_list(map(str, steps))}")
        return found

    def report(self) -> str:
        """Hashes, step by step, and what was found."""
        lines = [f"{self.source}: sha256 of {len(self.sound)} sets of weights"]
        width = max((len(entry.revision) for entry in self.entries), default=0)
        lines += [
            f"{entry.revision:<{width}}  {entry.whole if not entry.problem else '-' * 64}  "
            f"{entry.kind}"
            for entry in self.entries
        ]
        lines += [
            f"equal weights in {_list(names)} ({reason})"
            for names, reason in self.repeated()
            if reason
        ]
        there = {entry.revision: entry.whole for entry in self.sound}
        if {"step0", "step1"} <= there.keys() and there["step0"] != there["step1"]:
            lines.append("step0 and step1 differ: the first update had a learning rate above 0")
        return "\n".join([*lines, *(f"DEFECT {text}" for text in self.defects())])


def audit(source: str, progress: bool = True) -> Audit:
    """Audit a folder of `stepN` folders, or a repository on the hub.

    Raises:
        CheckpointError: no steps there. FetchError: no such repository, or no network.
    """
    folder = Path(source).expanduser()
    local = folder.is_dir()
    names = (
        [p.name for p in folder.iterdir() if p.is_dir()] if local else download.revisions(source)
    )
    names = sorted((n for n in names if n == "main" or step_of(n) is not None), key=_order)
    if not names:
        raise CheckpointError(
            f"{source} has no revision named like step3000"
            + (": give the folder that holds the folders of the steps" if local else "")
        )
    entries: list[Entry] = []
    with progress_bar(progress, total=len(names), desc="hashing", unit="step") as bar:
        for name in names:
            entries += _local(folder / name) if local else _remote(source, name)
            bar.update()
    return Audit(source, tuple(entries))


def _order(revision: str) -> tuple[int, str]:
    step = step_of(revision)
    return (OFFICIAL_STEPS + 1 if step is None else step, revision)


def _list(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _by_kind(files: Iterable[str]) -> dict[str, list[str]]:
    files = sorted(files)
    kinds = {
        "safetensors": [name for name in files if name.endswith(".safetensors")],
        "pickles": [name for name in files if name.endswith(PICKLED)],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _of_files(revision: str, kind: str, parts: dict[str, str]) -> Entry:
    whole = next(iter(parts.values()))
    if len(parts) > 1:
        whole = sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()
    return Entry(revision, kind, parts, whole)


def _remote(repo: str, revision: str) -> list[Entry]:
    _, files = download.listing(repo, revision)
    kinds = _by_kind(files)
    return [
        _of_files(revision, kind, {name: files[name].blob for name in names})
        for kind, names in kinds.items()
    ] or [Entry(revision, "", problem="no weights there")]


def _local(folder: Path) -> list[Entry]:
    revision = f"step{step}" if (step := step_of(folder.name)) is not None else folder.name
    if (folder / MANIFEST).is_file():
        try:
            tensors = load_checkpoint(folder)[0]["model"]
        except (PythiaError, KeyError) as error:
            return [Entry(revision, "tensors", problem=str(error))]
        whole = sha256_tensors(tensors)
        return [Entry(revision, "tensors", {WEIGHTS: whole}, whole)]
    kinds = _by_kind(p.name for p in folder.iterdir() if p.is_file())
    if not kinds:
        return [Entry(revision, "", problem="no weights there")]
    entries = []
    for kind, names in kinds.items():
        pointers = {name: lfs_pointer(folder / name) for name in names}
        if all(pointers.values()):
            entries.append(_of_files(revision, kind, {n: p for n, p in pointers.items() if p}))
        elif kind == "pickles":  # hashed, never opened
            digests = {name: file_sha256(folder / name) for name in names}
            entries.append(_of_files(revision, kind, digests))
        else:
            entries.append(_of_tensors(folder, revision))
    return entries


def _of_tensors(folder: Path, revision: str) -> Entry:
    try:
        weights = Weights(folder)
    except CheckpointError as error:
        return Entry(revision, "tensors", problem=str(error))
    if weights.problems:
        return Entry(revision, "tensors", problem="; ".join(weights.problems))
    whole = sha256_tensors(weights)
    parts = {
        file: sha256_tensors(
            {n: weights[n] for n, where in weights.shards.items() if where == file}
        )
        for file in sorted(set(weights.shards.values()))
    }
    return Entry(revision, "tensors", parts if len(parts) > 1 else {WEIGHTS: whole}, whole)
