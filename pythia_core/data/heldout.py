"""Which documents are kept out of training: chosen by the hash of their text.

A rule on content, not on position, keeps copies of a text on one side and does not move when
documents are added or reordered. (The Pile's own validation set was never used by Pythia: its
configs name the training set for all three splits.)
"""

from __future__ import annotations

import hashlib

from pythia_core.config import DataConfig
from pythia_core.data.corpus import Tally, open_corpus
from pythia_core.errors import DataError


def choose_heldout(data: DataConfig, tally: Tally, progress: bool) -> tuple[set[int], int]:
    """Numbers of the held-out documents, and the number of characters of the others.

    A document is held out if the first 8 bytes of its text's sha256, as a fraction of 2^64, are
    below heldout_fraction; in a corpus so small that none is, the one with the smallest hash.
    """
    limit = data.heldout_fraction
    held: set[int] = set()
    smallest, lowest = b"\xff" * 33, set[int]()
    lengths = {"all": 0, "held": 0, "lowest": 0}
    number = -1
    for number, document in enumerate(open_corpus(data, progress, tally)):
        digest = hashlib.sha256(document.text.encode("utf-8")).digest()
        lengths["all"] += len(document.text)
        if int.from_bytes(digest[:8], "big") < limit * 2**64:
            held.add(number)
            lengths["held"] += len(document.text)
        if digest < smallest:
            smallest, lowest, lengths["lowest"] = digest, set(), 0
        if digest == smallest:
            lowest.add(number)
            lengths["lowest"] += len(document.text)
    if limit > 0 and not held:
        held, lengths["held"] = lowest, lengths["lowest"]
    if len(held) == number + 1:
        raise DataError(
            f"heldout_fraction={limit} would hold out all {number + 1} document(s) of "
            f"{data.corpus!r} (copies of a text count as one); use 0, a smaller fraction or more "
            "text"
        )
    return held, lengths["all"] - lengths["held"]
