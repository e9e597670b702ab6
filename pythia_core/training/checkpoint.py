"""Save and load checkpoints: folders that are complete or absent, checked by hash when loaded.

A folder `step-000123` has safetensors files and, written last, a manifest with the size and sha256
of each file and a hash of itself. The folder is written under a temporary name, synced and renamed
(pythia_core.util.files.atomic_dir), so a crash at any moment leaves either the whole folder or
none. Nothing is pickled, and nothing is loaded before its hashes are checked: neither safetensors
nor JSON would notice a flipped bit.

There are two kinds: *weights* (as the forward pass used them, so bf16 in bf16 runs) and *state*
(fp32 masters, Adam moments and everything else that exact resumption needs).
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pythia_core.errors import CheckpointError, TrainingError
from pythia_core.util.files import atomic_dir, atomic_file, file_sha256

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")


def step_folder(parent: Path, step: int) -> Path:
    """The folder of a checkpoint."""
    return parent / f"step-{step:06d}"


def saved_steps(parent: Path) -> list[int]:
    """Steps with a complete checkpoint under `parent`, ascending."""
    if not parent.is_dir():
        return []
    matches = (_NAME.fullmatch(p.name) for p in parent.iterdir() if (p / MANIFEST).is_file())
    return sorted(int(match[1]) for match in matches if match)


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes: equal if and only if all tensors are equal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def steps_with_weights(parent: Path) -> list[int]:
    """Steps under `parent` whose weights have not been dropped (see `drop_weights`)."""
    return [s for s in saved_steps(parent) if not _is_dropped(step_folder(parent, s))]


def _is_dropped(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_text()).get("dropped"))
    except (OSError, ValueError, AttributeError):
        return False  # absent or damaged: loading it raises an error


def drop_weights(folder: Path) -> None:
    """Delete a checkpoint's files but not its manifest, which still has their hashes.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    manifest = read_manifest(folder) | {"dropped": True}
    manifest["manifest_sha256"] = _self_hash(manifest)
    with atomic_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True))
    for name in manifest["files"]:
        (folder / name).unlink(missing_ok=True)


def _self_hash(manifest: dict[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def save_checkpoint(
    parent: Path, step: int, files: dict[str, dict[str, Tensor]], meta: dict[str, Any]
) -> Path:
    """Write the folder `step-NNNNNN` under `parent`, unless it exists and is intact.

    Args:
        files: maps the stem of each file to its named tensors, e.g. {"model": {...}}.
        meta: JSON values stored in the manifest.

    Raises:
        TrainingError: the folder cannot be written, e.g. for lack of space; others are untouched.
    """
    target = step_folder(parent, step)
    if _is_dropped(target):
        shutil.rmtree(target)
    if target.exists():
        try:
            load_checkpoint(target)
            return target
        except CheckpointError as error:
            _set_aside(target, error)
    try:
        with atomic_dir(target) as folder:
            for stem, tensors in files.items():
                contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
                save_file(contiguous, folder / f"{stem}.safetensors")
            manifest: dict[str, Any] = {
                "step": step,
                "meta": meta,
                "files": {
                    p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
                    for p in sorted(folder.iterdir())
                },
            }
            manifest["manifest_sha256"] = _self_hash(manifest)
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "no space left" if full or "os error 28" in str(error).lower() else str(error)
        raise TrainingError(
            f"could not save step {step} under {parent}: {reason}. Earlier checkpoints are intact; "
            f"{shutil.disk_usage(parent).free / 1e6:.0f} MB are free there. Free some space or set "
            "PYTHIA_RESULTS to another disk, then run again: training resumes from the last state."
        ) from error
    return target


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest; checks its own hash and the names and sizes of the files.

    Raises:
        CheckpointError: the manifest is absent or malformed, or does not match the files.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["manifest_sha256"] != _self_hash(manifest):
            raise ValueError("its own hash does not match")
        files = manifest["files"]
        sizes = {name: entry["bytes"] for name, entry in files.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint: no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is corrupt: {error}") from error
    actual = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != MANIFEST}
    if actual != sizes and not manifest.get("dropped"):
        wrong = sorted(n for n in actual.keys() | sizes.keys() if actual.get(n) != sizes.get(n))
        raise CheckpointError(
            f"{folder} is corrupt: files that are missing, extra or of the wrong size: "
            f"{', '.join(wrong)}"
        )
    expected = _NAME.fullmatch(folder.name)
    if expected and int(expected[1]) != manifest["step"]:
        raise CheckpointError(
            f"{folder} contains step {manifest['step']}: the folder was renamed or swapped"
        )
    return manifest


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Check every hash, then return all tensors, by file stem and name, and the metadata.

    Raises:
        CheckpointError: the checkpoint is absent or corrupt.
    """
    manifest = read_manifest(folder)
    if manifest.get("dropped"):
        raise CheckpointError(
            f"the weights of {folder} were deleted during training, to save space "
            "(pythia_core.training.retention); to get them, delete the run's folder and train "
            "it again with PYTHIA_KEEP_ALL=1"
        )
    for name, entry in manifest["files"].items():
        actual = file_sha256(folder / name)
        if actual != entry["sha256"]:
            raise CheckpointError(
                f"{folder / name} is corrupt: sha256 {actual[:16]}…, the manifest says "
                f"{entry['sha256'][:16]}…. Delete the run's folder and train it again."
            )
    files = {
        name.removesuffix(".safetensors"): load_file(folder / name) for name in manifest["files"]
    }
    return files, manifest["meta"]


def newest_loadable(
    parent: Path, at_most: int | None = None
) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest intact checkpoint under `parent`, as (step, files, meta); None if there is none.

    A corrupt checkpoint is renamed to `*.corrupt` with a warning, and the next older checkpoint is
    tried. Steps after `at_most` are ignored.
    """
    for step in reversed(saved_steps(parent)):
        if at_most is not None and step > at_most:
            continue
        folder = step_folder(parent, step)
        try:
            return step, *load_checkpoint(folder)
        except CheckpointError as error:
            _set_aside(folder, error)
    return None


def _set_aside(folder: Path, error: CheckpointError) -> None:
    """Rename a corrupt checkpoint to `*.corrupt`, with a warning."""
    aside = folder.with_name(folder.name + ".corrupt")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    warnings.warn(f"{folder.name} was renamed to {aside.name}: {error}", stacklevel=3)


def prune(parent: Path, keep: set[int], newest: int = 2) -> None:
    """Delete checkpoints under `parent`, except the steps in `keep` and the `newest` latest."""
    steps = saved_steps(parent)
    for step in steps[:-newest] if newest else steps:
        if step not in keep:
            shutil.rmtree(step_folder(parent, step))


def delete_temporaries(parent: Path) -> None:
    """Delete temporary folders of saves that were killed. Only call this with the run locked."""
    for leftover in parent.glob(".*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def weight_hashes(parent: Path) -> dict[int, str]:
    """Map each step to one hash of all files of its checkpoint, using the manifests alone.

    Raises:
        CheckpointError: a manifest is damaged.
    """
    hashes = {}
    for step in saved_steps(parent):
        files = read_manifest(step_folder(parent, step))["files"]
        names = sorted((name, entry["sha256"]) for name, entry in files.items())
        hashes[step] = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return hashes


def duplicate_steps(hashes: dict[int, str]) -> list[list[int]]:
    """Groups of steps with equal hashes, like the repeated checkpoints on the Hugging Face hub."""
    groups = defaultdict(list)
    for step, sha256 in hashes.items():
        groups[sha256].append(step)
    return [steps for steps in groups.values() if len(steps) > 1]
