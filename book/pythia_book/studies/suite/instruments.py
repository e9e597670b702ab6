"""What is planted in the text of the suite, and whether models learn the planted associations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora import miniature, occupations
from pythia_book.stats import slope
from pythia_book.study import Measurements
from pythia_book.tasks.associations import FRAMES, permutation_p
from pythia_book.verdicts import ALPHA
from pythia_core.config import PLANTED, DataConfig
from pythia_core.data.tokenizer import encode_documents

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.data.prepare import PreparedData

ABOUT = {
    "copies": "passages that stand 2, 4, … 128 times",
    "equations": "sums in the paper's prompt format",
    "occupations": "sentences whose pronoun follows the known share of their noun",
    "canaries": "random strings that stand 1, 2, … 16 times",
}
"""Maps each planted domain to what it has, for readers."""


def planted_facts(texts: dict[str, PreparedData]) -> list[dict[str, Any]]:
    """Return, for each planted domain and each text, how much of the training text it is.

    The keys of each row are instrument, arm, tokens, and share (of the text's tokens). The first
    occurrence of a copied passage is not counted.

    Args:
        texts: maps "standard" and "deduplicated" to the prepared texts.
    """
    rows = []
    for arm, text in texts.items():
        counts = {"copies": _copied_tokens(text)}
        domains = text.manifest["tokens"]["corpus"]
        counts |= {name: domains[name]["train_tokens"] for name in PLANTED if name in domains}
        total = text.tokens.n_tokens
        rows += [
            {"instrument": name, "arm": arm, "tokens": tokens, "share": tokens / total}
            for name, tokens in counts.items()
        ]
    return rows


def _copied_tokens(text: PreparedData) -> int:
    """Return how many tokens of a text are planted copies, edited or not, of earlier documents."""
    source: dict[bytes, int] = {}
    copied = miniature.planted(text.config.domains, text.config.corpus)
    for number, (passage, times) in enumerate(copied.items()):
        versions = list(dict.fromkeys(miniature.copies_of(passage, times)))
        for ids in encode_documents(text.tokenizer, versions):
            source[np.array([*ids, text.eod_id], text.tokens.dtype).tobytes()] = number
    seen: set[int] = set()
    tokens = 0
    for number in range(text.tokens.n_documents):
        ids = text.tokens.document(number)
        origin = source.get(ids.tobytes())
        if origin is not None:
            tokens += len(ids) if origin in seen else 0
            seen.add(origin)
    return tokens


def noun_facts(data: DataConfig) -> list[dict[str, Any]]:
    """Return the nouns of the planted sentences, in the order of the measurement.

    The keys of each row are noun, group, sentences, feminine (sentences with a feminine pronoun)
    and log_odds (of a feminine pronoun). The list is empty if the text has no such sentences.
    """
    counts = miniature.document_counts(data.domains, data.corpus)
    return [
        {"noun": p.noun.name, "group": p.noun.group, "sentences": p.sentences,
         "feminine": p.feminine, "log_odds": p.log_odds}
        for p in occupations.plan(counts.get("occupations", 0))
        if "occupations" in counts
    ]  # fmt: skip


def associations_table(measured: Measurements) -> pd.DataFrame:
    """Return how closely each model's log odds of feminine pronouns follow the corpus's.

    Columns: size, arm, group (of nouns), frames ("trained" or "unseen"), value, low and high (slope
    of the model's log odds, a mean over frames, on the corpus's, over the nouns of the group), and
    p (see `permutation_p`; only for made-up nouns, whose log odds were assigned at random).
    """
    import pandas as pd

    nouns = pd.DataFrame(measured.facts["nouns"])
    rows = []
    for (size, arm, frames), odds in measured.under("association"):
        for group in occupations.GROUPS:
            of_group = (nouns.group == group).to_numpy()
            x, y = nouns.log_odds.to_numpy()[of_group], odds[of_group].astype(float)
            fit = slope(x, y)
            p = permutation_p(x, y) if group == "invented" else None
            keys = {"size": size, "arm": arm, "group": group, "frames": frames}
            rows.append(keys | (fit.interval() if fit else {}) | {"p": p})
    return pd.DataFrame(rows)


def flat_p_values(measured: Measurements) -> np.ndarray:
    """Return the p-values of models whose text has flat shares, float64[models].

    Each model is tested against shares that are drawn for it alone, so the p-values should be
    uniform.
    """
    rows = enumerate(measured.facts["nouns"])
    nouns = {row["noun"]: at for at, row in rows if row["group"] == "invented"}
    p = []
    for number, ((_, _, frames), odds) in enumerate(measured.under("flat")):
        if frames == FRAMES[1]:
            shares = occupations.permuted_shares([*nouns], seed=1 + number)
            x = np.array([np.log(shares[name] / (1 - shares[name])) for name in nouns])
            p.append(permutation_p(x, odds[[*nouns.values()]].astype(float), seed=1 + number))
    return np.array(p)


def all_learned(associations: pd.DataFrame, sizes: Sequence[str]) -> tuple[bool, str]:
    """Return whether every model of some sizes has learned the shares of the made-up nouns.

    It has if `p` in unseen frames is below 0.05, divided by the number of models (Bonferroni's
    correction).

    Args:
        associations: the table of `associations_table`.
        sizes: names of the sizes to test.

    Returns:
        Whether every model has; and a note with the number of models and the extremes.
    """
    tested = associations[(associations.group == "invented") & (associations.frames == FRAMES[1])]
    tested = tested[tested["size"].isin(sizes)]
    limit = ALPHA / max(len(tested), 1)
    note = (
        f"{int((tested.p < limit).sum())} of {len(tested)} models; slopes {tested.value.min():.3f} "
        f"to {tested.value.max():.3f}, largest p = {tested.p.max():.2g} (limit {limit:.2g})"
    )
    return bool(len(tested) and (tested.p < limit).all()), note
