"""The site that several test files look at, built once per process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import browser
import pytest
from site_build import copy_of_the_checkout, strict_build

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a fresh clone; tests only read it."""
    return strict_build(copy_of_the_checkout(tmp_path_factory.mktemp("fresh clone")))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The machine's browser."""
    with browser.chromium() as running:
        yield running


@pytest.fixture(scope="module")
def address(fresh: Path) -> Iterator[str]:
    """The address at which the site is served; it ends with a slash."""
    with browser.served(fresh) as url:
        yield url
