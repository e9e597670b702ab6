"""Save and load checkpoints: folders that are complete or absent, checked by hash when loaded.

The checkpoint of step 123 is the folder `step-000123`, with safetensors files and manifest.json.
The manifest has the size and sha256 of each file, and a hash of its own entries. The folder is
written under a temporary name, synced and renamed (pythia_core.util.files.atomic_dir). Nothing is
pickled. All hashes are checked before anything is loaded, because neither safetensors nor JSON
would notice a flipped bit.

*Weights* are saved as the forward pass used them, i.e. in bf16 if a run trains in bf16. A *state*
has the fp32 master weights, Adam's moments and everything else that exact resumption needs. If
several processes share the state, each writes its shard (pythia_core.training.sharding).
"""

from __future__ import annotations

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
from safetensors.torch import load_file, save_file
from torch import Tensor

from pythia_core.config import stable_hash
from pythia_core.errors import CheckpointError, TrainingError
from pythia_core.util.files import (
    FULL_DISK,
    atomic_dir,
    atomic_file,
    file_sha256,
    json_object,
    save_safetensors,
)

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")


def step_folder(parent: Path, step: int) -> Path:
    """Return the folder under `parent` for the checkpoint of a step."""
    return parent / f"step-{step:06d}"


REPAIR = "If this checkpoint is needed, delete the run's folder and train the run again."
"""Advice that ends the messages about corrupt checkpoints."""


def saved_steps(parent: Path) -> list[int]:
    """Return the steps that have a complete checkpoint under `parent`, ascending."""
    if not parent.is_dir():
        return []
    matches = (_NAME.fullmatch(p.name) for p in parent.iterdir() if (p / MANIFEST).is_file())
    return sorted(int(match[1]) for match in matches if match)


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return one sha256 of the names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def steps_with_weights(parent: Path) -> list[int]:
    """Return the steps whose weights are saved under `parent`, and not deleted, ascending."""
    return [s for s in saved_steps(parent) if not _is_dropped(step_folder(parent, s))]


def _is_dropped(folder: Path) -> bool:
    """Return whether `drop_weights` emptied the folder; False if the manifest is unreadable."""
    try:
        return bool(json_object((folder / MANIFEST).read_bytes()).get("dropped"))
    except (OSError, ValueError):
        return False  # absent or damaged: loading it raises an error


def drop_weights(folder: Path) -> None:
    """Delete the files of a checkpoint except its manifest, which still has their hashes.

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
    """Return the sha256 of a manifest without the entry that stores this hash."""
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def save_checkpoint(
    parent: Path, step: int, files: dict[str, dict[str, Tensor]], meta: dict[str, Any]
) -> Path:
    """Write the folder `step-NNNNNN` under `parent`, unless it exists already; return it.

    An existing folder that is corrupt, or has different tensors or `meta`, is renamed to
    `*.corrupt` with a warning: it belongs to another run, or was saved on another machine.

    Args:
        files: maps the stem of each file to its named tensors, e.g. {"model": {...}}.
        meta: JSON values to store in the manifest.

    Raises:
        TrainingError: the folder cannot be written, e.g. for lack of space. Earlier checkpoints are
            untouched.
    """
    if not parent.is_dir():  # to make it again would split the run over two folders
        raise TrainingError(
            f"could not save step {step}: the folder {parent} no longer exists. If it was "
            "moved, move it back, then repeat the command; training resumes from the last state"
        )
    target = step_folder(parent, step)
    if _is_dropped(target):
        shutil.rmtree(target)
    if target.exists():
        try:
            saved, about = load_checkpoint(target)
            ours, theirs = (
                [stable_hash(m), {stem: sha256_tensors(tensors) for stem, tensors in f.items()}]
                for f, m in ((files, meta), (saved, about))
            )
            if ours != theirs:
                raise CheckpointError("training has now produced different values for this step")
            return target
        except CheckpointError as error:
            set_aside(target, error)
    try:
        with atomic_dir(target) as folder:
            for stem, tensors in files.items():
                contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
                save_safetensors(save_file, contiguous, folder / f"{stem}.safetensors")
            entries = {p.name: describe_file(p) for p in sorted(folder.iterdir())}
            write_manifest(folder, step, meta, entries)
    except OSError as error:
        raise TrainingError(not_saved(parent, step, error)) from error
    return target


def describe_file(path: Path) -> dict[str, Any]:
    """Return the entry of a file in a manifest: its size and its sha256."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def write_manifest(
    folder: Path, step: int, meta: dict[str, Any], files: dict[str, dict[str, Any]]
) -> None:
    """Write the manifest of a checkpoint into its folder; `files` has `describe_file` entries."""
    manifest: dict[str, Any] = {"step": step, "meta": meta, "files": files}
    manifest["manifest_sha256"] = _self_hash(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))


def not_saved(parent: Path, step: int, error: OSError) -> str:
    """Return the message about a checkpoint that cannot be written."""
    reason = "no space left" if error.errno in FULL_DISK else str(error)
    place = next(path for path in (parent, *parent.parents) if path.exists())
    return (
        f"could not save step {step} in {parent}: {reason} "
        f"({shutil.disk_usage(place).free / 1e6:.0f} MB are free). Earlier checkpoints are "
        "intact. Free some space, or move the results folder to another disk and set "
        "PYTHIA_RESULTS to its new path. Then repeat the command; training resumes from the last "
        "state."
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint; check its hash and the names and sizes of the files.

    The files are not checked if `drop_weights` has deleted them.

    Returns:
        A dict with the keys "step", "meta", "manifest_sha256", "files" ({name: {"bytes": ...,
        "sha256": ...}}) and, if the files were deleted, "dropped".

    Raises:
        CheckpointError: the manifest is absent or malformed, or does not match the files.
    """
    try:
        manifest = json_object((folder / MANIFEST).read_bytes())
        if manifest["manifest_sha256"] != _self_hash(manifest):
            raise ValueError("its entries do not have the sha256 stored in manifest_sha256")
        files = manifest["files"]
        sizes = {name: entry["bytes"] for name, entry in files.items()}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a complete checkpoint: its {MANIFEST} is missing. {REPAIR}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = str(error) if isinstance(error, ValueError) else f"malformed ({error!r})"
        raise CheckpointError(f"{folder / MANIFEST} is corrupt: {detail}. {REPAIR}") from error
    actual = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != MANIFEST}
    if actual != sizes and not manifest.get("dropped"):
        wrong = sorted(n for n in actual.keys() | sizes.keys() if actual.get(n) != sizes.get(n))
        raise CheckpointError(
            f"{folder} is corrupt: these files are missing, extra or of the wrong size: "
            f"{', '.join(wrong)}. {REPAIR}"
        )
    expected = _NAME.fullmatch(folder.name)
    if expected and int(expected[1]) != manifest["step"]:
        raise CheckpointError(
            f"{folder} contains the checkpoint of step {manifest['step']}, so the folder must have "
            "been renamed; undo this"
        )
    return manifest


def load_checkpoint(
    folder: Path, hashes: bool = True
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Check all hashes of a checkpoint, then load it.

    Args:
        hashes: whether to check the files' hashes; false only if another process has just done so.

    Returns:
        The tensors, {file stem: {name: tensor}}, and the `meta` of `save_checkpoint`.

    Raises:
        CheckpointError: the checkpoint is absent or corrupt, or its weights were deleted.
    """
    manifest = read_manifest(folder)
    if manifest.get("dropped"):
        raise CheckpointError(
            f"the weights of {folder} were deleted during training, to save space "
            "(pythia_core.training.retention); to get the weights, delete the run's folder and "
            "train the run again with the environment variable PYTHIA_KEEP_ALL=1"
        )
    for name, entry in manifest["files"].items() if hashes else ():
        actual = file_sha256(folder / name)
        if actual != entry["sha256"]:
            raise CheckpointError(
                f"{folder / name} is corrupt: its sha256 is {actual[:16]}…, but {MANIFEST} has "
                f"{entry['sha256'][:16]}…. {REPAIR}"
            )
    files = {
        name.removesuffix(".safetensors"): load_file(folder / name) for name in manifest["files"]
    }
    return files, manifest["meta"]


def newest_loadable(
    parent: Path, at_most: int | None = None
) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Load the newest intact checkpoint under `parent`, up to step `at_most`.

    Corrupt checkpoints are renamed to `*.corrupt` with a warning.

    Returns:
        The step, then the results of `load_checkpoint`; None if there is no intact checkpoint.
    """
    for step in reversed(saved_steps(parent)):
        if at_most is not None and step > at_most:
            continue
        folder = step_folder(parent, step)
        try:
            return step, *load_checkpoint(folder)
        except CheckpointError as error:
            set_aside(folder, error)
    return None


def set_aside(folder: Path, error: CheckpointError) -> None:
    """Rename a corrupt checkpoint to `*.corrupt`, with a warning."""
    aside = folder.with_name(folder.name + ".corrupt")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    warnings.warn(f"the folder {folder.name} was renamed to {aside.name}: {error}", stacklevel=3)


def prune(parent: Path, keep: set[int], newest: int = 2) -> None:
    """Delete checkpoints under `parent`, except the last `newest` and those of steps in `keep`."""
    steps = saved_steps(parent)
    for step in steps[:-newest] if newest else steps:
        if step not in keep:
            shutil.rmtree(step_folder(parent, step))


def delete_temporaries(parent: Path) -> None:
    """Delete what killed processes left under `parent`. Lock the run before calling this."""
    for leftover in parent.glob(".*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def manifest_hashes(parent: Path) -> dict[int, str]:
    """Map each saved step under `parent` to a hash of its manifest, the same after `drop_weights`.

    Raises:
        CheckpointError: a manifest is damaged.
    """
    return {step: manifest_hash(step_folder(parent, step)) for step in saved_steps(parent)}


def manifest_hash(folder: Path) -> str:
    """Return the hash of a checkpoint's manifest, as in `manifest_hashes`.

    Raises:
        CheckpointError: the manifest is absent or damaged.
    """
    manifest = read_manifest(folder)
    return stable_hash({key: manifest[key] for key in ("step", "meta", "files")})


def weight_hashes(parent: Path) -> dict[int, str]:
    """Map each saved step under `parent` to one hash of all its files, read from the manifests.

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
    """Return the groups of steps with equal hashes, given the hash of each step."""
    groups = defaultdict(list)
    for step, sha256 in hashes.items():
        groups[sha256].append(step)
    return [steps for steps in groups.values() if len(steps) > 1]
