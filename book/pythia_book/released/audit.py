"""Audits the checkpoints of a published model: finds duplicate, missing and unrelated steps.

Some released steps had weights of other steps: 86 of the 154 branches of pythia-2.8b
(EleutherAI/pythia#205), and a shard of step 50,000 of pythia-12b (#206). The files are not damaged,
so only hashes reveal the error. For repositories and git-lfs pointers, the stored hashes are used
and nothing is downloaded. Local safetensors are hashed by tensor, so equal weights are found even
if they are split into other files.

Steps may also be from a different run than step 0, as has been reported for
pythia-160m-weight-seed1 and 2 (#203). All hashes then differ, so the early steps of a local folder
are compared with step 0 (pythia_core.training.lineage).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from pythia_book.released import download
from pythia_core.errors import CheckpointError, PythiaError, count_of
from pythia_core.hf import (
    WEIGHTS,
    Weights,
    has_model,
    is_checkpoint,
    lfs_pointer,
    local_folder,
    step_of,
)
from pythia_core.training.checkpoint import load_checkpoint, sha256_tensors
from pythia_core.training.lineage import TESTED_UP_TO, continues
from pythia_core.training.schedule import OFFICIAL_STEPS, checkpoint_steps
from pythia_core.util.files import file_sha256
from pythia_core.util.progress import bar as progress_bar

PICKLED = (".bin", ".pt")
LAST = f"step{OFFICIAL_STEPS}"
EXPECTED = {
    frozenset({"step0", "step1"}): "expected, because the first update has the learning rate 0",
    frozenset({"main", LAST}): "expected, because main is the last step",
}
ABSENT = "there are no files with weights"
SHOWN = 12
"""Maximum number of names in a list. Further names are only counted."""


@dataclass(frozen=True)
class Entry:
    """The hashes of one revision's weights (say, of "step3000") in one kind of file."""

    revision: str
    kind: str
    """What was hashed: "tensors", "safetensors" or "pickles"; "" without weights. Only hashes of
    the same kind are compared.
    """
    parts: dict[str, str] = field(default_factory=dict)
    """The sha256 of each file, or, for the kind "tensors", of the tensors in each file."""
    whole: str = ""
    """The sha256 of all tensors, of the only file, or of the names and hashes of all files."""
    problem: str = ""
    """Why there is no hash; empty if there is a hash."""


@dataclass(frozen=True)
class Audit:
    """The hashes of a model's checkpoints, and the defects that they reveal."""

    source: str
    entries: tuple[Entry, ...]
    continuing: dict[str, bool | None] = field(default_factory=dict)
    """Whether each local early step continues from step 0; None: the test cannot tell."""
    complete: bool = True
    """Whether a missing step is a defect: on the hub it is, but a folder may hold only some."""

    @property
    def sound(self) -> list[Entry]:
        """The entries that have a hash."""
        return [entry for entry in self.entries if not entry.problem]

    @property
    def missing(self) -> list[int]:
        """The steps without a hash, among the 154 steps at which Pythia models were published."""
        present = {step_of(entry.revision) for entry in self.sound}
        return [step for step in checkpoint_steps(OFFICIAL_STEPS) if step not in present]

    @property
    def unrelated(self) -> list[str]:
        """The early steps whose weights do not continue from those of step 0."""
        return [name for name, related in self.continuing.items() if related is False]

    def duplicates(self) -> list[tuple[list[str], str]]:
        """Return each group of revisions with equal weights, and why equal weights are expected.

        The reason is "" if the weights should differ.
        """
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for entry in self.sound:
            groups[entry.kind, entry.whole].append(entry.revision)
        return [
            (names, EXPECTED.get(frozenset(names), ""))
            for names in groups.values()
            if len(names) > 1
        ]

    def shared_parts(self) -> list[tuple[str, list[str]]]:
        """Return each file that is equal in revisions with different weights, and the revisions."""
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
        """Return one sentence per problem, unexpected duplicate or shared file.

        One more sentence lists the steps that are missing on the hub, if any.
        """
        defects = [f"{entry.revision}: {entry.problem}" for entry in self.entries if entry.problem]
        defects += [
            f"{len(names)} revisions have the same weights, so at least one of the revisions "
            f"has the weights of another step: {_list(names)}"
            for names, reason in self.duplicates()
            if not reason
        ]
        defects += [
            f"{name} has the same content in {len(names)} revisions that differ in other files: "
            f"{_list(names)}"
            for name, names in self.shared_parts()
        ]
        if self.unrelated:
            defects.append(
                f"revisions that do not continue from step0: {_list(self.unrelated)}; they or "
                "step0 are from another run (the signs of their weights agree with those of step0 "
                "no more often than by chance)"
            )
        if self.complete and self.missing:
            defects.append(self._missing_steps())
        return defects

    def _missing_steps(self) -> str:
        """Return a sentence with the steps that are missing."""
        return (
            f"{len(self.missing)} of the 154 steps of a Pythia model are missing: "
            f"{_list(map(str, self.missing))}"
        )

    def report(self) -> str:
        """Return a text with all hashes, all defects, and the expected duplicates."""
        lines = [f"{self.source}: sha256 of {count_of(len(self.sound), 'set')} of weights"]
        width = max((len(entry.revision) for entry in self.entries), default=0)
        lines += [
            f"{entry.revision:<{width}}  {entry.whole if not entry.problem else '-' * 64}  "
            f"{entry.kind}"
            for entry in self.entries
        ]
        lines += [
            f"equal weights in {_list(names)} ({reason})"
            for names, reason in self.duplicates()
            if reason
        ]
        for related, words in (
            (True, "continue from step0"),
            (None, "cannot be compared with step0"),
        ):
            names = [name for name, answer in self.continuing.items() if answer is related]
            lines += [f"early revisions that {words}: {_list(names)}"] if names else []
        wholes = {entry.revision: entry.whole for entry in self.sound}
        if {"step0", "step1"} <= wholes.keys() and wholes["step0"] != wholes["step1"]:
            lines.append(
                "step0 and step1 differ, so the first update had a learning rate above 0, or the "
                "run did not start from step0 (`verify` can tell which, given a folder with the "
                "weights)"
            )
        if self.missing and not self.complete and len(self.entries) > 1:
            lines.append(self._missing_steps())
        return "\n".join([*lines, *(f"DEFECT {text}" for text in self.defects())])


def audit(source: str, progress: bool = True) -> Audit:
    """Hash all checkpoints in a folder of `stepN` folders or in a repository on the hub.

    The folder may also hold a single checkpoint.

    For a repository, the hashes that the hub stores are used, so no weights are downloaded.

    Raises:
        CheckpointError: the source has no steps, or is neither a folder nor a repository.
        FetchError: the repository does not exist, or there is no network access.
    """
    folder = local_folder(source)
    if folder is not None and has_model(folder):
        return Audit(source, tuple(_local_entries(folder)), complete=False)
    if folder is not None:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    elif download.is_repository(source):
        names = download.revisions(source)
    else:
        raise download.not_found(source)
    names = [name for name in names if name == "main" or step_of(name) is not None]
    names.sort(key=lambda name: (name == "main", step_of(name) or 0, name))
    if not names:
        raise CheckpointError(
            f"{source} has no subfolder named like step3000; pass the folder that contains the "
            "folders of the steps"
            if folder
            else f"the repository {source} has no revision named like step3000"
        )
    entries: list[Entry] = []
    with progress_bar(progress, total=len(names), desc="hashing", unit="step") as bar:
        for name in names:
            entries += _local_entries(folder / name) if folder else _remote_entries(source, name)
            bar.update()
    continuing = _continuing(folder, names) if folder else {}
    return Audit(source, tuple(entries), continuing, complete=folder is None)


def _continuing(folder: Path, names: Iterable[str]) -> dict[str, bool | None]:
    """Map each early step to whether it continues from step 0; omit steps without weights."""
    steps = {step: folder / name for name in names if (step := step_of(name)) is not None}
    initial = _weights(steps[0]) if 0 in steps else None
    if initial is None:
        return {}
    early = ((step, place) for step, place in steps.items() if 0 < step <= TESTED_UP_TO)
    weights = ((f"step{step}", _weights(place)) for step, place in early)
    return {name: continues(initial, later) for name, later in weights if later is not None}


def _weights(folder: Path) -> Mapping[str, Tensor] | None:
    """Return the tensors of a checkpoint of our own or of safetensors files, else None."""
    try:
        if is_checkpoint(folder):
            return load_checkpoint(folder)[0]["model"]
        weights = Weights(folder)
    except (PythiaError, KeyError):
        return None
    return None if weights.problems else weights


def _list(names: Iterable[str]) -> str:
    """Join the first SHOWN names with commas, and add how many more names there are."""
    listed = list(names)
    rest = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _by_kind(files: Iterable[str]) -> dict[str, list[str]]:
    """Group weight files by kind, "safetensors" or "pickles"."""
    files = sorted(files)
    kinds = {
        "safetensors": [name for name in files if name.endswith(".safetensors")],
        "pickles": [name for name in files if name.endswith(PICKLED)],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _file_entry(revision: str, kind: str, parts: dict[str, str]) -> Entry:
    """Return the entry of a revision from the hash of each weight file."""
    whole = next(iter(parts.values()))
    if len(parts) > 1:
        whole = sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()
    return Entry(revision, kind, parts, whole)


def _remote_entries(repo: str, revision: str) -> list[Entry]:
    """Return the hub's hashes: one entry per kind of weight file, or one entry that says ABSENT."""
    _, files = download.listing(repo, revision)
    return [
        _file_entry(revision, kind, {name: files[name].blob for name in names})
        for kind, names in _by_kind(files).items()
    ] or [Entry(revision, "", problem=ABSENT)]


def _local_entries(folder: Path) -> list[Entry]:
    """Return one entry per kind of weight file in a step's folder, or one entry that says ABSENT.

    A checkpoint of our own has one entry, with the hash of the tensors.
    """
    revision = f"step{step}" if (step := step_of(folder.name)) is not None else folder.name
    if is_checkpoint(folder):
        return [_tensor_entry(folder, revision)]
    entries = []
    for kind, names in _by_kind(p.name for p in folder.iterdir() if p.is_file()).items():
        parts = {name: lfs_pointer(folder / name) or "" for name in names}
        if kind == "pickles":  # hashed, never opened
            parts = {name: digest or file_sha256(folder / name) for name, digest in parts.items()}
        complete = all(parts.values())
        entries.append(
            _file_entry(revision, kind, parts) if complete else _tensor_entry(folder, revision)
        )
    return entries or [Entry(revision, "", problem=ABSENT)]


def _tensor_entry(folder: Path, revision: str) -> Entry:
    """Hash the tensors of our own checkpoint or of safetensors files, or record the problem."""
    try:
        if is_checkpoint(folder):
            whole = sha256_tensors(load_checkpoint(folder)[0]["model"])
            return Entry(revision, "tensors", {WEIGHTS: whole}, whole)
        weights = Weights(folder)
    except (PythiaError, KeyError) as error:
        return Entry(revision, "tensors", problem=str(error))
    if weights.problems:
        return Entry(revision, "tensors", problem="; ".join(weights.problems))
    whole = sha256_tensors(weights)
    shards = sorted(set(weights.shards.values()))
    parts = {WEIGHTS: whole}
    if len(shards) > 1:
        names = {shard: [n for n in weights if weights.shards[n] == shard] for shard in shards}
        parts = {shard: sha256_tensors({n: weights[n] for n in names[shard]}) for shard in shards}
    return Entry(revision, "tensors", parts, whole)
