"""Settings of every test and of the processes that tests start; a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm

os.environ.setdefault("PYTHIA_PRECISION", "fp32")  # no test depends on the speed of the machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes, set in the environment, from which our own programs are not found."""
    pytest.importorskip("submitit")
    if reason := slurm.missing():
        pytest.skip(reason)
    own = str(Path(sys.executable).parent)
    with (
        slurm.two_nodes(tmp_path_factory.mktemp("slurm") / "run") as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        words = environment["PATH"].split(os.pathsep)
        environment["PATH"] = os.pathsep.join(word for word in words if word != own)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment
