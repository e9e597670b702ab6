"""Find copies and near-copies among the documents of a corpus, and choose which to keep.

The paper used MinHash LSH with threshold 0.87 and gives no more detail. Our guess, which the
authors have not confirmed: one band of 10 hashes of word 5-grams, candidate pairs not verified, the
last copy kept. This would find a pair with Jaccard similarity J with probability J^10: only 25 % at
J = 0.87. The recipe `eleutherai-0.87` follows the guess, except that words end at white space, hash
functions differ, and texts are not split into slices.

The recipe `jaccard-0.87` also checks the exact similarity of each candidate pair. Both recipes use
datatrove's signatures. Its text normalization is switched off, because it would make all numbers
equal, so that tables with different numbers would count as copies.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_core.errors import ConfigError, DataError, MissingDependencyError, one_of, raise_all
from pythia_core.util.progress import bar as progress_bar

if TYPE_CHECKING:
    from networkx.utils import UnionFind

KEPT, EXACT, NEAR = 0, 1, 2
SIMILARITIES = (0.5, 0.6, 0.7, 0.8, 0.87, 0.9, 0.95, 1.0)
_SHINGLES_AT_ONCE = 4096


@dataclass(frozen=True)
class Recipe:
    """A rule for which documents count as copies, and which copy to keep."""

    name: str
    threshold: float = 1.0
    """Minimum Jaccard similarity of near-duplicates; no effect without `verify`."""
    ngram: int = 5
    """Words per n-gram. Two texts are compared by their sets of n-grams."""
    buckets: int = 0
    """Number of bands of a MinHash signature; 0: no search for near-duplicates."""
    hashes_per_bucket: int = 1
    verify: bool = True
    """Whether candidates (documents with an equal band) must also reach `threshold`."""
    keep: str = "first"
    """Which of several copies to keep: "first" or "last" in the corpus."""
    exact: bool = True
    """Whether identical texts are copies even if they are too short for an n-gram."""

    def __post_init__(self) -> None:
        problems = []
        for name, least in (("ngram", 1), ("buckets", 0), ("hashes_per_bucket", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                problems.append(f"{name} must be an integer of at least {least}, got {value!r}")
        if not 0 < self.threshold <= 1:
            problems.append(f"threshold must be in (0, 1], got {self.threshold!r}")
        if self.keep not in ("first", "last"):
            problems.append(one_of(self.keep, ("first", "last"), "keep"))
        if not self.exact and not self.buckets:
            problems.append(
                "this recipe would find no copies; set exact=True, or buckets to at least 1"
            )
        raise_all(ConfigError, problems, f"Recipe {self.name!r}")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("exact"),
        Recipe("jaccard-0.87", threshold=0.87, buckets=14, hashes_per_bucket=8),
        Recipe(
            "eleutherai-0.87",
            threshold=0.87,
            buckets=1,
            hashes_per_bucket=10,
            verify=False,
            keep="last",
        ),
    )
}


@dataclass(frozen=True)
class Deduplicated:
    """The result of `deduplicate`. Each array has one entry per document, in corpus order."""

    keep: np.ndarray
    """bool: whether the document is kept."""
    cluster: np.ndarray
    """int64: index of the kept copy of the document; for a kept document, its own index."""
    reason: np.ndarray
    """uint8: KEPT, EXACT or NEAR. EXACT: the same text occurs earlier (with keep="last": later)."""
    report: dict[str, Any]
    """Keys:
    `recipe`: the fields of the recipe.
    `documents`, `words`, `bytes`: the total `before` and `after` the removal of copies.
    `removed`: numbers of `exact` and `near` copies.
    `too_short`: number of documents too short for an n-gram.
    `clusters`: number of clusters of each size.
    `pairs`: numbers of candidate, compared and linked pairs.
    `caught`: `s_curve` at each of SIMILARITIES."""


def s_curve(similarity: np.ndarray | float, buckets: int, hashes: int) -> np.ndarray:
    """Return the probability that two documents of this Jaccard similarity are a candidate pair.

    The documents of a candidate pair agree in at least one of `buckets` bands of `hashes` hashes.
    """
    return 1 - (1 - np.asarray(similarity, np.float64) ** hashes) ** buckets


def shingles(text: str, ngram: int = 5) -> frozenset[str]:
    """Return the set of word n-grams of a text; a text of fewer than `ngram` words has none."""
    words = text.split()
    return frozenset(" ".join(words[i : i + ngram]) for i in range(len(words) - ngram + 1))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets, which must not both be empty."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def deduplicate(
    texts: Sequence[str], recipe: str | Recipe, *, progress: bool = True
) -> Deduplicated:
    """Group documents into clusters of copies, and choose which document of each to keep.

    Two documents are linked if their texts are equal (only with `recipe.exact`) or if they are a
    candidate pair. With `recipe.verify`, a candidate pair must also reach `recipe.threshold`. A
    cluster is a connected component of links. Verification takes quadratic time if candidate pairs
    connect many dissimilar documents.

    With `eleutherai-0.87`, the result equals that of the code that EleutherAI most likely used,
    with one exception: EleutherAI's code treats all documents too short for an n-gram as copies of
    each other.

    Args:
        recipe: a Recipe, or a name in RECIPES.

    Raises:
        ConfigError: the recipe is unknown.
        DataError: a document is not text.
        MissingDependencyError: datatrove is not installed or not usable.
    """
    from networkx.utils import UnionFind

    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ConfigError(one_of(recipe, RECIPES, "recipe"))
        recipe = RECIPES[recipe]
    corpus = _measure_documents(texts, recipe)
    links = UnionFind()
    indices = corpus.unique[corpus.words[corpus.unique] >= recipe.ngram]
    pairs = {"candidates": 0, "compared": 0, "linked": 0}
    if recipe.buckets and len(indices) > 1:
        candidates = candidate_pairs(texts, indices, recipe, progress).tolist()
        pairs["candidates"] = len(candidates)
        for pair in candidates:
            links.union(*pair)
        if recipe.verify:
            links, pairs["compared"] = _verify_candidates(links, texts, recipe, progress)
        pairs["linked"] = sum(len(cluster) - 1 for cluster in links.to_sets())
    for pair in zip(corpus.same_as.tolist(), range(len(texts)), strict=True):
        links.union(*pair)
    return _summarize(links, corpus, recipe, pairs)


# --- identical texts -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Corpus:
    """The words and bytes of each document, and which documents have the same text."""

    words: np.ndarray
    bytes: np.ndarray
    same_as: np.ndarray
    """Index of the first (with keep="last": the last) document with the same text; without
    `Recipe.exact`, the document's own index."""

    @property
    def unique(self) -> np.ndarray:
        """The indices of one document per distinct text; without `Recipe.exact`, all indices."""
        return np.flatnonzero(self.same_as == np.arange(len(self.same_as)))


def _measure_documents(texts: Sequence[str], recipe: Recipe) -> _Corpus:
    """Count the words and bytes of each text, and find identical texts."""
    if isinstance(texts, str):
        raise DataError("texts is a single string; pass a sequence of documents")
    words, sizes = np.zeros((2, len(texts)), np.int64)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"document {number} is {type(text).__name__}, not str; decode it first")
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"document {number} has an unpaired surrogate at character {error.start}: "
                "decode its source with errors='replace'"
            ) from error
        words[number], sizes[number] = len(text.split()), len(raw)
        groups[hashlib.blake2b(raw, digest_size=16).digest()].append(number)
    same_as = np.arange(len(texts))
    if recipe.exact:
        for group in groups.values():
            same_as[group] = group[0 if recipe.keep == "first" else -1]
    return _Corpus(words, sizes, same_as)


# --- candidates: MinHash and its bands -------------------------------------------------------


class WhitespaceTokenizer:
    """A word tokenizer for datatrove that splits at white space."""

    language = None

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def minhash_step(recipe: Recipe, folder: str = "unused") -> Any:
    """Make datatrove's pipeline step that writes MinHash signatures into a folder.

    Its `get_signature(get_shingles(text))` is the signature of a text that has n-grams, as lists
    [buckets][hashes_per_bucket].

    Raises:
        MissingDependencyError: datatrove or a dependency of it is absent, or xxhash is too new.
    """
    try:
        _, xxhash = map(importlib.metadata.version, ("datatrove", "xxhash"))
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            f"near-deduplication needs the package {error.name}; install it with "
            "`pip install -e .[dedup]`"
        ) from error
    if int(xxhash.split(".")[0]) >= 4:
        raise MissingDependencyError(
            f"datatrove does not support xxhash {xxhash}; install an older xxhash with "
            "`pip install 'xxhash<4'`"
        )
    try:
        from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
        from datatrove.utils.hashing import HashConfig
        from datatrove.utils.logging import logger
        from datatrove.utils.text import TextNormConfig
        from datatrove.utils.word_tokenizers import WordTokenizer

        logger.disable("datatrove")
        WordTokenizer.register(WhitespaceTokenizer)
        config = MinhashConfig(
            n_grams=recipe.ngram,
            num_buckets=recipe.buckets,
            hashes_per_bucket=recipe.hashes_per_bucket,
            seed=1,
            norm_config=TextNormConfig(
                lowercase=False,
                norm_whitespace=False,  # makes no difference to str.split
                remove_punctuation=False,
                norm_unicode_diacritics=False,
                norm_numbers=False,
                norm_weekdays=False,
                norm_monthnames=False,
            ),
            hash_config=HashConfig(precision=64, hash_fc="xxhash"),
        )

        class Signature(MinhashDedupSignature):
            """Computes signatures in chunks: all hashes of a long text would not fit in memory."""

            def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
                starts = range(0, len(shingles), _SHINGLES_AT_ONCE)
                parts = [
                    super(Signature, self).get_signature(shingles[i : i + _SHINGLES_AT_ONCE])
                    for i in starts
                ]
                return np.min(np.array(parts, np.uint64), axis=0).tolist()

        return Signature(folder, config, language=WhitespaceTokenizer())
    except ImportError as error:
        raise MissingDependencyError(
            f"near-deduplication cannot import datatrove ({error}); install it with "
            "`pip install -e .[dedup]`"
        ) from error


def candidate_pairs(
    texts: Sequence[str], indices: np.ndarray, recipe: Recipe, progress: bool = True
) -> NDArray[np.int64]:
    """Find pairs of documents whose MinHash signatures agree in a band.

    k documents that agree in a band give a chain of k - 1 pairs.

    Args:
        indices: the documents to compare, ascending, each of at least `ngram` words.

    Returns:
        int64[n, 2], the indices of each pair, the smaller first.
    """
    step = minhash_step(recipe)
    with progress_bar(
        progress, total=len(indices), desc="looking for near-duplicates", unit="doc"
    ) as bar:
        signatures = np.empty(
            (len(indices), recipe.buckets, recipe.hashes_per_bucket), dtype=np.uint64
        )
        for row, index in enumerate(indices):
            signatures[row] = step.get_signature(step.get_shingles(texts[index]))
            bar.update()
    chains = []
    for band in signatures.swapaxes(0, 1):
        order = np.lexsort(band.T)
        equal = (band[order[1:]] == band[order[:-1]]).all(axis=1)
        chains.append(np.stack([indices[order[:-1][equal]], indices[order[1:][equal]]], axis=1))
    return np.unique(np.concatenate(chains), axis=0)


# --- clusters --------------------------------------------------------------------------------


def linked_pairs(
    group: Sequence[int], text: Callable[[int], str], recipe: Recipe
) -> tuple[list[tuple[int, int]], int]:
    """Compare documents that candidate pairs connect; also return how many pairs were compared.

    Args:
        group: the numbers of the documents, in corpus order.
        text: returns the text of a document. All documents' n-grams are in memory at once.

    Returns:
        Pairs of documents that reach `recipe.threshold`, always fewer than there are documents.
    """
    from networkx.utils import UnionFind

    links, pairs, compared = UnionFind(), list[tuple[int, int]](), 0
    grams = {number: shingles(text(number), recipe.ngram) for number in group}
    for position, b in enumerate(group):
        for a in group[:position]:
            small, large = sorted((len(grams[a]), len(grams[b])))
            if small < recipe.threshold * large or links[a] == links[b]:
                continue  # sizes too different to reach the threshold, or already linked
            compared += 1
            if jaccard(grams[a], grams[b]) >= recipe.threshold:
                links.union(a, b)
                pairs.append((a, b))
    return pairs, compared


def _verify_candidates(
    candidates: UnionFind, texts: Sequence[str], recipe: Recipe, progress: bool
) -> tuple[UnionFind, int]:
    """Link candidate pairs that reach `recipe.threshold`; also return how many were compared."""
    from networkx.utils import UnionFind

    links, compared = UnionFind(), 0
    groups = [sorted(group) for group in candidates.to_sets()]
    total = sum(map(len, groups))
    with progress_bar(progress, total=total, desc="comparing near-duplicates", unit="doc") as bar:
        for group in groups:
            pairs, n = linked_pairs(group, texts.__getitem__, recipe)
            for pair in pairs:
                links.union(*pair)
            compared += n
            bar.update(len(group))
    return links, compared


def _summarize(
    links: UnionFind, corpus: _Corpus, recipe: Recipe, pairs: dict[str, int]
) -> Deduplicated:
    """Choose the document to keep in each cluster of linked documents, and make the report."""
    pick, indices = min if recipe.keep == "first" else max, np.arange(len(corpus.words))
    survivor, sizes = indices.copy(), Counter[int]()
    for cluster in links.to_sets():
        survivor[list(cluster)] = pick(cluster)
        sizes[len(cluster)] += 1
    keep = survivor == indices
    reason = np.where(corpus.same_as != indices, EXACT, NEAR).astype(np.uint8)
    reason[keep] = KEPT
    report = make_report(
        recipe,
        before=Totals(len(keep), int(corpus.words.sum()), int(corpus.bytes.sum())),
        after=Totals(int(keep.sum()), int(corpus.words[keep].sum()), int(corpus.bytes[keep].sum())),
        exact=int((reason == EXACT).sum()),
        too_short=int((corpus.words < recipe.ngram).sum()),
        sizes=sizes,
        pairs=pairs,
    )
    return Deduplicated(keep, survivor, reason, report)


@dataclass(frozen=True)
class Totals:
    """The number of documents, and the numbers of their words and bytes."""

    documents: int = 0
    words: int = 0
    bytes: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def make_report(
    recipe: Recipe,
    *,
    before: Totals,
    after: Totals,
    exact: int,
    too_short: int,
    sizes: Counter[int],
    pairs: dict[str, int],
) -> dict[str, Any]:
    """Return `Deduplicated.report`.

    Args:
        exact: number of removed documents whose text also occurs elsewhere.
        sizes: number of clusters by their number of documents.
    """
    caught = s_curve(np.array(SIMILARITIES), recipe.buckets, recipe.hashes_per_bucket)
    removed = before.documents - after.documents
    return {
        "recipe": asdict(recipe),
        **{
            name: {"before": getattr(before, name), "after": getattr(after, name)}
            for name in ("documents", "words", "bytes")
        },
        "removed": {"exact": exact, "near": removed - exact},
        "too_short": too_short,
        "clusters": {str(size): sizes[size] for size in sorted(sizes)},
        "pairs": pairs,
        "caught": {str(s): float(p) for s, p in zip(SIMILARITIES, caught, strict=True)},
    }
