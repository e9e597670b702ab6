"""One archive with everything a machine without a network needs to run the studies of a scale.

In it: this project, the prepared tokens (encoding the text takes minutes, laying out rows from it
seconds), the wheels that text and items are read from, the released numbers if they are here,
optionally the packages that the machine lacks, a manifest with the sha256 of every file, and
`run.sh`, which checks the hashes, runs every study and leaves what is worth taking home in
`records/`. The archive is a pure function of its parts: files by name, no times, no owners.

Corpora of the user's own files stay on this machine; scales use the built-in ones. The archive is
for carrying, not for publishing: wheels and released numbers have licences of their own. Not here:
the command line (pythia_book.commands.planning), what runs on the other machine (bundle_run.sh).
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pythia_book.corpora.wheels import wheel
from pythia_book.records import commit
from pythia_book.studies.registry import STUDIES, texts_of, wheels_of
from pythia_core import __version__
from pythia_core.config import DataConfig
from pythia_core.data.prepare import prepare_tokens
from pythia_core.errors import ConfigError, DataError, FetchError, one_of, raise_all
from pythia_core.suite import scale_named
from pythia_core.util.files import atomic_file, file_sha256, project_root, require_checkout
from pythia_core.util.progress import bar as progress_bar

TOP = "pythia-bundle"
"""The one folder in the archive."""
PACKAGES = ("papermill", "ipykernel", "tokenizers", "safetensors", "pandas", "scipy", "matplotlib",
            "seaborn", "tqdm", "pyarrow", "datatrove<0.11", "orjson", "regex",
            "xxhash<4")  # fmt: skip
"""What an image with torch alone lacks; for `--wheels`. None of them brings torch; without lm-eval,
which would, the study of scaling leaves one comparison out."""
PROJECT = ("pythia_core", "notebooks", "book", "pyproject.toml", "_config.yml", "_toc.yml",
           "README.md", "LICENSE", "CITATION.cff")  # fmt: skip
"""Files and folders of the project that a checkout without git gives."""
DICTIONARY = 1 << 29
"""Bytes that xz looks back: the tokens of a deduplicated text repeat those of the whole one."""

Part = Path | bytes
"""A file of the archive: where it lies, or what is in it."""


@dataclass(frozen=True)
class Bundle:
    """What was made."""

    path: Path
    sha256: str
    manifest: dict[str, Any]
    """scale, studies, version, and of every file bytes and sha256."""

    def sizes(self) -> dict[str, int]:
        """Bytes by kind of content, before compression."""
        found: dict[str, int] = {}
        for name, entry in self.manifest["files"].items():
            kind = name.split("/")[0]
            kind = "/".join(name.split("/")[:2]) if kind == "cache" else kind
            found[kind] = found.get(kind, 0) + entry["bytes"]
        return found


def check_request(out: Path, scale: str, studies: Sequence[str], parcel: int | None = None) -> None:
    """Refuse what cannot be made, before anything is fetched; see `make_bundle` and `split`.

    Raises:
        ConfigError: with every reason.
    """
    problems = [one_of(study, STUDIES, "study") for study in studies if study not in STUDIES]
    if scale_named(scale).published:
        problems.append(f"scale {scale!r} needs the released models, which do not fit in a bundle")
    if not out.name.endswith((".tar", ".tar.xz")):
        problems.append(f"{out.name}: the archive's name must end with .tar or .tar.xz")
    problems += [] if parcel is None else _small_parcel(parcel)
    raise_all(ConfigError, problems, "bundle")
    require_checkout("packing a bundle")


def make_bundle(
    out: Path,
    scale: str,
    studies: Sequence[str] = STUDIES,
    packages: Path | None = None,
    progress: bool = True,
) -> Bundle:
    """Prepare what is needed here and pack it; `out` appears whole or not at all.

    Args:
        out: *.tar, or *.tar.xz for a smaller one that takes minutes. studies: which will be run.
        packages: folder of package files for the machine (see `fetch_packages`).

    Raises:
        ConfigError: unknown scale or study, a scale of published models, another suffix.
        FetchError, DataError: the text or a wheel cannot be had.
    """
    check_request(out, scale, studies)
    parts: dict[str, Part] = dict(_project())
    parts |= _cache(scale, studies, progress)
    if scale == "gpu":
        parts |= _bench_text(progress)
    parts |= {f"site/{name}": text.encode() for name, text in _distribution().items()}
    parts |= _folder("published", os.environ.get("PYTHIA_PUBLISHED_DIR"))
    parts |= _folder("packages", packages)
    parts["run.sh"] = _script(scale, studies).encode()
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


# --- what goes in ----------------------------------------------------------------------------


def _git(*arguments: str) -> bytes | None:
    """Output of a git command in this checkout; None where there is none."""
    command = ["git", "-C", str(project_root()), *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _commit() -> str:
    """The commit of this checkout as records state it; empty without one."""
    made = commit()
    return f"{made['id']}{'-modified' if made['dirty'] else ''}" if made["id"] else ""


def _project() -> Iterator[tuple[str, Part]]:
    """The project's files, as they are now: what git knows and does not ignore, or PROJECT."""
    root = project_root()
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed and (root / ".git").exists():
        names = listed.decode().split("\0")
    else:
        found = (root / name for name in PROJECT)
        files = (p for f in found for p in ([f] if f.is_file() else f.rglob("*")))
        names = [p.relative_to(root).as_posix() for p in files if "__pycache__" not in p.parts]
    for name in sorted(filter(None, names)):
        if (root / name).is_file():
            yield f"project/{name}", root / name


def _cache(scale: str, studies: Sequence[str], progress: bool) -> dict[str, Part]:
    """Prepared tokens and pinned wheels, under the names that the cache gives them."""
    parts: dict[str, Part] = {}
    for data in needed_data(scale, studies):
        folder = prepare_tokens(data, progress)
        parts |= {f"cache/data/{folder.name}/{p.name}": p for p in sorted(folder.iterdir())}
    for name in wheels_of(scale, studies):
        path = wheel(name, progress)
        parts[f"cache/wheels/{path.name}"] = path
    return parts


def _bench_text(progress: bool) -> dict[str, Part]:
    """What `bench train` reads on a GPU; nothing where the 20B tokenizer cannot be had."""
    from pythia_book.bench.train import text_file, text_tokens

    try:
        text_tokens(progress)
    except FetchError as error:
        print(f"without text for the benchmark of training: {error}", file=sys.stderr)
        return {}
    return {"results/bench/tokens.npy": text_file()}


def needed_data(scale: str, studies: Sequence[str]) -> list[DataConfig]:
    """Data whose tokens the studies read; one for each kind of tokens, whatever the order."""
    found = texts_of(scale, studies)
    kinds = {(d.corpus, d.domains, d.tokenizer, d.heldout_fraction, d.dedup): d for d in found}
    return list(kinds.values())


def _distribution() -> dict[str, str]:
    """The metadata by which Python and papermill find this package without it being installed."""
    project = tomllib.loads((project_root() / "pyproject.toml").read_text("utf-8"))["project"]
    groups = []
    for group, points in project.get("entry-points", {}).items():
        groups += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items()), ""]
    folder = f"{project['name'].replace('-', '_')}-{__version__}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {__version__}\n"
    return {f"{folder}/METADATA": metadata, f"{folder}/entry_points.txt": "\n".join(groups)}


def _folder(name: str, folder: str | Path | None) -> dict[str, Part]:
    """The files of a folder, or nothing."""
    if folder is None:
        return {}
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {root} to pack as {name}/")
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {f"{name}/{p.relative_to(root).as_posix()}": p for p in files}


def _script(scale: str, studies: Sequence[str]) -> str:
    text = (Path(__file__).parent / "bundle_run.sh").read_text("utf-8")
    text = text.replace("@COMMIT@", _commit())
    return text.replace("@SCALE@", scale).replace("@STUDIES@", " ".join(studies))


def platforms(platform: str) -> list[str]:
    """A platform and those whose files run on it too: pip takes no older glibc by itself.

    >>> platforms("manylinux_2_6_x86_64")
    ['manylinux_2_6_x86_64', 'manylinux_2_5_x86_64', 'manylinux1_x86_64']
    """
    match = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
    if not match:
        return [platform] if platform else []
    newest, machine = int(match[1]), match[2]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    return tags + [f"{name}_{machine}" for minor, name in old.items() if newest >= minor]


def fetch_packages(
    folder: Path, names: Sequence[str] = PACKAGES, python: str = "", platform: str = ""
) -> None:
    """Fetch package files with pip for another machine, with what they depend on.

    Args:
        python: its version, e.g. "3.12"; empty: as here. platform: e.g.
            "manylinux_2_28_x86_64"; empty: as here.

    Raises:
        FetchError: pip says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", python] if python else []
    command += [word for tag in platforms(platform) for word in ("--platform", tag)]
    done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise FetchError(
            f"pip could not fetch {', '.join(names)} (exit {done.returncode}): "
            f"{'; '.join(said[-2:]) or done.stderr[-300:]}. Other names: --packages; another "
            "machine: --python and --platform"
        )


# --- the archive -----------------------------------------------------------------------------


def _entry(part: Part) -> dict[str, Any]:
    if isinstance(part, bytes):
        return {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}
    return {"bytes": part.stat().st_size, "sha256": file_sha256(part)}


def _write(target: Path, parts: Mapping[str, Part], compress: bool, progress: bool) -> None:
    total = sum(len(p) if isinstance(p, bytes) else p.stat().st_size for p in parts.values())
    bar = progress_bar(progress, total=total, desc="packing", unit="B", unit_scale=True)
    with bar, _stream(target, compress) as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted(parts):
                part = parts[name]
                info = tarfile.TarInfo(f"{TOP}/{name}")
                info.mode = 0o755 if name.endswith(".sh") else 0o644
                info.size = len(part) if isinstance(part, bytes) else part.stat().st_size
                with io.BytesIO(part) if isinstance(part, bytes) else open(part, "rb") as file:
                    archive.addfile(info, file)
                bar.update(info.size)


@contextmanager
def _stream(target: Path, compress: bool) -> Iterator[BinaryIO]:
    if not compress:
        with open(target, "wb") as file:
            yield file
        return
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": DICTIONARY}]
    with lzma.open(target, "wb", check=lzma.CHECK_CRC32, filters=filters) as file:
        yield file  # type: ignore[misc]


def _small_parcel(parcel: int) -> list[str]:
    """What is wrong with parcels of so many bytes."""
    small = f"parcels of {parcel} bytes are too small; give at least 1 MiB"
    return [small] if parcel < 1 << 20 else []


def split(path: Path, parcel: int) -> list[Path]:
    """Cut a file into PATH.000, PATH.001, ... of at most `parcel` bytes, and drop the whole.

    `cat PATH.* > PATH` puts it together again.

    Raises:
        ConfigError: parcels of less than 1 MiB.
    """
    raise_all(ConfigError, _small_parcel(parcel), "split")
    pieces = []
    with open(path, "rb") as file:
        while piece := file.read(parcel):
            name = path.with_name(f"{path.name}.{len(pieces):03d}")
            with atomic_file(name) as temporary:
                temporary.write_bytes(piece)
            pieces.append(name)
    path.unlink()
    return pieces


def fetched_packages(names: Sequence[str], python: str, platform: str) -> Any:
    """A temporary folder with package files; a context manager."""

    @contextmanager
    def folder() -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="packages-") as temporary:
            fetch_packages(Path(temporary), names, python, platform)
            yield Path(temporary)

    return folder()
