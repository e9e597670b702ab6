"""The site that several test files look at, built once per process."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_build import copy_of_the_checkout, strict_build


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a fresh clone; tests only read it."""
    return strict_build(copy_of_the_checkout(tmp_path_factory.mktemp("fresh clone")))
