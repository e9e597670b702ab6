"""Packs an archive with everything that a machine without network access needs to run studies.

The archive contains the code, prepared tokens, evaluation items, released numbers if available, the
sha256 of every file, and `run.sh` (bundle_run.sh), which checks the hashes and runs the studies.
The same files always give the same archive: names are sorted, times and owners are omitted. Corpora
made from the user's own files are not packed, because no scale uses them. Do not publish the
archive: its texts and the released numbers have licenses of their own.
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

from pythia_book.bundle_wheels import notebook_wheels
from pythia_book.corpora.miniature import PROPORTIONS, survey_file
from pythia_book.corpora.wheels import WHEELS
from pythia_book.records import commit
from pythia_book.studies.registry import ALL, STUDIES, texts_of, wheels_of
from pythia_core import __version__
from pythia_core.config import DataConfig
from pythia_core.data.downloads import member_path, wheel, wheel_bytes
from pythia_core.data.prepare import prepare_tokens
from pythia_core.errors import ConfigError, DataError, FetchError, one_of, raise_all
from pythia_core.suite import scale_named
from pythia_core.util.files import atomic_file, cache_dir, file_sha256, require_checkout
from pythia_core.util.progress import bar as progress_bar

TOP = "pythia-bundle"
"""The top folder of the archive."""
PROJECT = ("LICENSE", "notebooks/*.ipynb", "pythia_core/**/*", "book/pythia_book/**/*",
           "book/recorded/*/*/record.json", "book/recorded/*/*/released_*.csv")  # fmt: skip
"""Patterns of the project's files to pack: those that studies read as they run."""
COMPRESSED = (".whl", ".gz")
"""Suffixes of files that xz cannot make smaller."""
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
    wheels_for: str = "",
) -> Bundle:
    """Prepare the data of studies, and write the archive atomically.

    Args:
        out: path of the archive, *.tar or *.tar.xz. A .tar.xz is smaller, but takes minutes.
        studies: the studies that `run.sh` will run.
        max_size: limit of the archive's size in MB; None: no limit.
        wheels_for: a version of Python, e.g. "3.12": pack wheels for running notebooks;
            `run.sh` installs those that the machine lacks. "": pack none.

    Raises:
        ConfigError: an unknown scale or study, a scale that needs released models, a wrong suffix
            of `out`, no checkout to pack, or an archive larger than `max_size`. No archive is left.
        FetchError, DataError: a text or a wheel is not available.
    """
    problems = [one_of(study, ALL, "study") for study in studies if study not in ALL]
    if scale_named(scale).published:
        problems.append(
            f"scale {scale!r} needs the released models, which do not fit in a bundle; choose "
            "another scale"
        )
    if not out.name.endswith((".tar", ".tar.xz")):
        problems.append(f"the archive's name must end with .tar or .tar.xz, got {out.name!r}")
    raise_all(ConfigError, problems, "bundle")
    root = require_checkout("packing a bundle")
    parts: dict[str, Part] = project_files(root)
    if wheels_for:
        parts |= {f"packages/{path.name}": path for path in notebook_wheels(root, wheels_for)}
    parts |= _cache(scale, studies, progress)
    if scale == "gpu":
        parts |= _bench_text(progress)
    parts |= _published()
    script = (Path(__file__).parent / "bundle_run.sh").read_text("utf-8")
    for name, text in (("COMMIT", _commit()), ("SCALE", scale), ("STUDIES", " ".join(studies))):
        script = script.replace(f"@{name}@", text)
    parts["run.sh"] = script.encode()
    xz = out.name.endswith(".xz")
    smallest = sum(_size(part) for name, part in parts.items() if _incompressible(name, xz))
    _check_size(smallest, "at least ", parts, max_size)
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
        _write(temporary, parts, xz, progress)
        _check_size(temporary.stat().st_size, "", parts, max_size)
    return Bundle(out, file_sha256(out), manifest)


def _incompressible(name: str, xz: bool) -> bool:
    """Return whether a file takes as many bytes in the archive as outside it."""
    return not xz or name.endswith(COMPRESSED)


def _check_size(size: float, bound: str, parts: Mapping[str, Part], max_size: float | None) -> None:
    """Raise ConfigError if `size` bytes are more than `max_size` MB.

    `bound` precedes the size in the message: "at least " or "".
    """
    if max_size is None or size <= max_size * 1e6:
        return
    kinds = _by_kind({name: _size(part) for name, part in parts.items()}).items()
    raise ConfigError(
        f"the archive would be {bound}{size / 1e6:.1f} MB, but --max-size allows {max_size:g}. "
        "Before compression, in MB: "
        f"{', '.join(f'{kind} {n_bytes / 1e6:.1f}' for kind, n_bytes in kinds)}. Choose fewer "
        "--studies or a smaller --scale, or name the archive *.tar.xz to compress it"
    )


# --- contents --------------------------------------------------------------------------------


def project_files(root: Path) -> dict[str, Part]:
    """Map names in the archive to the files of the project that studies read, without caches."""
    files = [path for pattern in PROJECT for path in root.glob(pattern) if path.is_file()]
    return {
        f"project/{file.relative_to(root).as_posix()}": file
        for file in files
        if not any(part.startswith((".", "__pycache__")) for part in file.relative_to(root).parts)
    }


def _cache(scale: str, studies: Sequence[str], progress: bool) -> dict[str, Part]:
    """Prepare or download what studies read from the cache; map archive names to these files."""
    root = cache_dir()
    files: list[Path] = []
    for data in needed_data(scale, studies):
        files += prepare_tokens(data, progress).iterdir()
        if data.corpus in PROPORTIONS:
            files.append(survey_file(data.domains, data.corpus))
    if "term_frequency" in studies:
        files += _definitions(scale, progress)
    parts: dict[str, Part] = {f"cache/{p.relative_to(root).as_posix()}": p for p in files}
    for pin in (WHEELS[name] for name in wheels_of(scale, studies)):
        for member in pin.members:
            name = member_path(pin, member).relative_to(root).as_posix()
            parts[f"cache/{name}"] = wheel_bytes(pin, member)
        if not pin.members:
            path = wheel(pin, progress)
            parts[f"cache/wheels/{path.name}"] = path
    return parts


def _definitions(scale: str, progress: bool) -> list[Path]:
    """Return the cached files with the definitions that the study term_frequency tests."""
    from pythia_book.studies.term_frequency.definitions import definitions_file

    return [definitions_file(data, progress) for data in texts_of(scale, ["term_frequency"])]


def _bench_text(progress: bool) -> dict[str, Part]:
    """Map the archive name to the token file of `bench train`; {} on FetchError, with a warning."""
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
