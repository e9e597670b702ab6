"""Finish a run with the hashes of all its files, so that later damage to any of them is found.

The file done.json exists once a run is finished. Its entries are the hash of the final weights, the
machine, and the hashes of all other files in the folder that studies rely on: identity.json, the
logs, the ledger, and the manifest of every checkpoint and state (which holds the hashes of their
files). The entry "sha256" is the hash of all other entries.

While a run is unfinished, its training states protect it: each has the hashes of the log and of the
checkpoints before it. They are compared before the run is finished (`check_against_state`), so that
done.json never holds the hash of a damaged file.

A done.json from an older version has no hashes of files, and is accepted; see `has_hashes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pythia_core.config import stable_hash
from pythia_core.errors import CheckpointError
from pythia_core.training.checkpoint import (
    manifest_hash,
    manifest_hashes,
    read_manifest,
    saved_steps,
    step_folder,
)
from pythia_core.training.metrics import check_log
from pythia_core.util.files import file_sha256, json_object, write_json

DONE = "done.json"
FILES = ("identity.json", "metrics.jsonl", "ledger.safetensors", "swaps.jsonl")
"""The files in a run's folder that are hashed, where they exist."""
FOLDERS = ("checkpoints", "states")
_WITHOUT_HASHES = {"final_sha256", "machine", "processes"}
"""The entries of a done.json from a version that did not hash the run's files."""
RESTORE_ADVICE = "Restore the run's folder from a copy, or delete it and train the run again"


def write_done(folder: Path, entries: dict[str, Any]) -> None:
    """Write done.json with `entries` and the hashes of the files in a run's folder.

    Raises:
        CheckpointError, DataError: checkpoints or log fail `check_against_state`.
    """
    check_against_state(folder)
    done = entries | {
        "files": {name: file_sha256(folder / name) for name in FILES if (folder / name).exists()},
        **{
            name: {str(step): sha256 for step, sha256 in manifest_hashes(folder / name).items()}
            for name in FOLDERS
        },
    }
    write_json(folder / DONE, done | {"sha256": stable_hash(done)})


def read_done(folder: Path) -> dict[str, Any]:
    """Read done.json.

    Raises:
        CheckpointError: the run is not finished, or the file is damaged.
    """
    path = folder / DONE
    try:
        done = json_object(path.read_bytes())
        body = {key: value for key, value in done.items() if key != "sha256"}
        if not isinstance(done["final_sha256"], str):
            raise ValueError("its hash of the final weights is not a string")
        if has_hashes(done) and done["sha256"] != stable_hash(body):
            raise ValueError("its entries do not have the sha256 that is stored with them")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the run in {folder} is not finished: it has no {DONE}. Train it to its end first"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). {RESTORE_ADVICE}") from error
    return done


def has_hashes(done: dict[str, Any]) -> bool:
    """Return whether a done.json has the hashes of the run's files."""
    return not done.keys() <= _WITHOUT_HASHES


def check_file(folder: Path, name: str) -> None:
    """If the run is finished, check that a file of it still has the hash in done.json.

    Raises:
        CheckpointError: the file, or done.json itself, was changed or damaged.
    """
    if not (folder / DONE).exists():
        return
    done = read_done(folder)
    if has_hashes(done):
        _compare(folder / name, done["files"].get(name))


def check_step(folder: Path, name: str, step: int) -> None:
    """Check that a finished run's checkpoint or state is the one in done.json, by its manifest.

    Args:
        name: "checkpoints" or "states".

    Raises:
        CheckpointError: it is another one, or done.json was changed or damaged.
    """
    if not (folder / DONE).exists():
        return
    done = read_done(folder)
    if has_hashes(done):
        _compare_manifest(folder / name, step, done[name])


def check_against_state(folder: Path, at_most: int | None = None) -> dict[str, str]:
    """Check the log and the checkpoints up to the newest saved state against the hashes in it.

    Nothing is checked without a state. States of older versions do not have all hashes.

    Args:
        at_most: ignore states of later steps.

    Returns:
        The hashes of the manifests of these checkpoints, by step.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or is not the one that was saved.
        DataError: the log has changed.
    """
    states = [s for s in saved_steps(folder / "states") if at_most is None or s <= at_most]
    if not states:
        return {}
    meta = read_manifest(step_folder(folder / "states", states[-1]))["meta"]
    if "log" in meta:
        check_log(folder / "metrics.jsonl", states[-1], meta["log"])
    steps = [step for step in saved_steps(folder / "checkpoints") if step <= states[-1]]
    present = {str(s): manifest_hash(step_folder(folder / "checkpoints", s)) for s in steps}
    recorded = meta.get("checkpoints", present)
    for step in sorted(present.keys() | recorded.keys(), key=int):
        if present.get(step) != recorded.get(step):
            raise CheckpointError(
                f"step {step} in {folder / 'checkpoints'} is not the one that training saved: the "
                f"checkpoint is missing, or the hash of its manifest is not in the state of step "
                f"{states[-1]}. {RESTORE_ADVICE}"
            )
    return present


def check_run_files(folder: Path) -> bool:
    """Check everything in a finished run's folder against done.json, without hashing tensors.

    States may have been deleted to save space; weights too, but not their manifests.

    Returns:
        Whether done.json has hashes to check.

    Raises:
        CheckpointError: a file was changed, damaged, deleted or added since the run was finished.
    """
    done = read_done(folder)
    if not has_hashes(done):
        return False
    for name in FILES:
        _compare(folder / name, done["files"].get(name))
    for name in FOLDERS:
        for step in saved_steps(folder / name):
            _compare_manifest(folder / name, step, done[name])
    return True


def _compare_manifest(parent: Path, step: int, expected: dict[str, str]) -> None:
    """Raise CheckpointError unless the manifest of a step has its hash in `expected`."""
    if manifest_hash(step_folder(parent, step)) != expected.get(str(step)):
        raise CheckpointError(
            f"step {step} in {parent} was changed or added after the run was finished: the hash of "
            f"its manifest is not in {DONE}. {RESTORE_ADVICE}"
        )


def _compare(path: Path, expected: str | None) -> None:
    """Raise CheckpointError unless the file has the expected sha256 (None: there is no file)."""
    actual = file_sha256(path) if path.is_file() else None
    if actual != expected:
        raise CheckpointError(
            f"{path} has changed since the run was finished: its sha256 is "
            f"{actual or 'none (there is no file)'}, but {DONE} states "
            f"{expected or 'none (there was no file)'}. {RESTORE_ADVICE}"
        )
