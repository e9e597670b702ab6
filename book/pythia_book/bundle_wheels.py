"""Fetches the wheels for running notebooks on a machine that has torch and the scientific packages
but no Jupyter.

Versions and hashes are those of requirements.lock. The wheels are for Linux on x86-64.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError, DataError, FetchError
from pythia_core.util.files import atomic_dir, cache_dir

PACKAGES = (
    "asttokens", "attrs", "comm", "entrypoints", "executing", "fastjsonschema", "ipykernel",
    "ipython", "ipython-pygments-lexers", "jsonschema", "jsonschema-specifications",
    "jupyter-client", "jupyter-core", "matplotlib-inline", "nbclient", "nbformat", "nest-asyncio2",
    "papermill", "pexpect", "platformdirs", "prompt-toolkit", "ptyprocess", "pure-eval", "pyzmq",
    "referencing", "rpds-py", "six", "stack-data", "tenacity", "tornado", "traitlets", "wcwidth",
)  # fmt: skip
"""papermill, ipykernel and what they import when a notebook runs: neither completion (jedi) nor the
debugger (debugpy)."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def notebook_wheels(root: Path, python: str) -> list[Path]:
    """Return the paths of the wheels of PACKAGES in the cache, downloaded with pip if necessary.

    Args:
        root: folder with requirements.lock.
        python: version of Python that the wheels are for, e.g. "3.12".

    Raises:
        ConfigError: `python` is not a version like "3.12".
        DataError: requirements.lock lacks a package.
        FetchError: pip could not download a wheel with the pinned sha256.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise ConfigError(f"--wheels needs a version of Python like 3.12, got {python!r}")
    pins = pinned(root / "requirements.lock")
    folder = cache_dir() / "packages" / stable_hash([pins, python])[:16]
    if not folder.is_dir():
        with atomic_dir(folder) as temporary:
            _download(pins, python, temporary)
    return sorted(folder.glob("*.whl"))


def pinned(lock: Path) -> str:
    """Return a lock file's lines for PACKAGES, with the hashes, in pip's format.

    Raises:
        DataError: the file is missing or lacks a package.
    """
    if not lock.is_file():
        raise DataError(f"{lock}, which pins the wheels, does not exist; use a complete checkout")
    blocks = re.finditer(r"^([\w.-]+)==.*(?:\n .*)*", lock.read_text("utf-8"), re.MULTILINE)
    by_name = {re.sub(r"[-_.]+", "-", block[1]).lower(): block[0] for block in blocks}
    if missing := sorted(set(PACKAGES) - set(by_name)):
        raise DataError(f"{lock} does not pin {', '.join(missing)}; run `make lock`")
    return "\n".join(by_name[name] for name in PACKAGES) + "\n"


def _download(pins: str, python: str, folder: Path) -> None:
    """Download the pinned wheels into `folder`; raise FetchError if pip fails."""
    requirements = folder / "requirements.txt"
    requirements.write_text(pins, "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command += ["--python-version", python, "--dest", str(folder), "-r", str(requirements)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise FetchError(
            f"pip could not fetch the wheels for Python {python} (exit {done.returncode}): "
            f"{'; '.join(errors[-2:]) or 'no output'}. Is there network access, and does each "
            "package in requirements.lock have a wheel for this Python?"
        )
