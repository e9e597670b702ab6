"""Decides how often a document occurs if repeated as in the Pile (planted domain "copies_pile").

How often documents of the Pile occur follows mostly from its composition. The Pile includes 20 of
its 22 components more than once, up to three times (EPOCHS). Without these repeats, it would have
34.2 % fewer bytes. Elazar et al. 2024 find "more than 60% of documents in The Pile are duplicates
(unsurprisingly due to oversampling)".

Deduplication removed more: 38 % of the tokens (Biderman et al. 2023, section 2.4). No paper says
how the other duplicates are distributed. Here they are near-duplicates: a share NEAR_SHARE of the
long documents has edited copies, whose number follows a power law with the exponent NEAR_EXPONENT,
cut off so that no document occurs more than MOST times. The share is chosen so that deduplication
removes about 38 % of the tokens of the corpus "miniature"; the exponent is our choice.

Two hashes of the text decide, so documents that occur once and documents that occur twice are
random samples of the same text. In the Pile, whole components are repeated instead.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pythia_core.util.files import fraction

EPOCHS = {
    "Pile-CC": (227.12, 1.0),
    "PubMed Central": (90.27, 2.0),
    "Books3": (100.96, 1.5),
    "OpenWebText2": (62.77, 2.0),
    "ArXiv": (56.21, 2.0),
    "Github": (95.16, 1.0),
    "FreeLaw": (51.15, 1.5),
    "Stack Exchange": (32.20, 2.0),
    "USPTO Backgrounds": (22.90, 2.0),
    "PubMed Abstracts": (19.26, 2.0),
    "Gutenberg (PG-19)": (10.88, 2.5),
    "OpenSubtitles": (12.98, 1.5),
    "Wikipedia (en)": (6.38, 3.0),
    "DM Mathematics": (7.75, 2.0),
    "Ubuntu IRC": (5.52, 2.0),
    "BookCorpus2": (6.30, 1.5),
    "EuroParl": (4.59, 2.0),
    "HackerNews": (3.90, 2.0),
    "YoutubeSubtitles": (3.73, 2.0),
    "PhilPapers": (2.38, 2.0),
    "NIH ExPorter": (1.89, 2.0),
    "Enron Emails": (0.88, 2.0),
}
"""Maps each component of the Pile to its raw size in GiB, and to how often one pass over the Pile
reads it (Gao et al. 2020, Table 1)."""
MOST = 32
"""The largest number of times that a document occurs, edited copies included."""
NEAR_SHARE = 0.055
"""The share of the documents of at least NEAR_WORDS words that have edited copies."""
NEAR_EXPONENT = 2.0
"""The number j of edited copies of such a document has a probability proportional to
j ** -NEAR_EXPONENT."""
NEAR_WORDS = 300
"""From this length on, an edited copy is similar enough to be found at the threshold 0.87: at most
(n / 100 + 1) of n words are replaced, each of which is in five n-grams."""


@cache
def exact_shares() -> dict[int, float]:
    """Map a number of occurrences to the share of the Pile's distinct text that occurs that often.

    Components are assumed to share no text. Of a component that is read 1.5 times, half of the
    documents occur once and half twice.
    """
    size: dict[int, float] = {}
    for gigabytes, epochs in EPOCHS.values():
        more = epochs % 1
        for times, share in ((int(epochs), 1 - more), (int(epochs) + 1, more)):
            size[times] = size.get(times, 0.0) + gigabytes * share
    total = sum(size.values())
    return {times: size[times] / total for times in sorted(size) if size[times]}


def occurrences(text: str) -> tuple[int, int]:
    """Return how often a text occurs unchanged (at least once), and its number of edited copies."""
    place, exact = fraction(text, b"copies as in the Pile"), 1
    for times, share in reversed(exact_shares().items()):
        if place < share:
            exact = times
            break
        place -= share
    if len(text.split()) < NEAR_WORDS:
        return exact, 0
    place = fraction(text, b"near-copies as in the Pile")
    return exact, int((place < at_least()).sum())


@cache
def at_least() -> np.ndarray:
    """Return the probability of having at least j edited copies, for j = 1, 2, ..., float[most]."""
    j = np.arange(1, MOST - max(exact_shares()) + 1)
    probability = j**-NEAR_EXPONENT
    return NEAR_SHARE * (probability / probability.sum())[::-1].cumsum()[::-1]
