"""Near-deduplication: which documents of a corpus stay, and whose copies the others are.

The paper trains every size a second time, on a Pile near-deduplicated by MinHash LSH with threshold
0.87, and gives no more detail. Most likely (the authors have not said so) that was 10 permutations
in one band over word 5-grams, without verification, and the last of several copies stayed: a pair
of similarity J is then found with probability J^10, a quarter of those at 0.87, so that "0.87" is
a name more than a threshold. This is the recipe `eleutherai-0.87`, with differences that are left:
words are what white space separates, hashes are others, and texts are not cut into slices first.

The recipe `jaccard-0.87` does what the name says: it finds candidates with 14 bands of 8 hashes and
keeps those pairs whose Jaccard similarity, counted exactly, is at least 0.87. Nothing is folded,
neither case nor numbers. Not here: the MinHash stages (pythia_core.data.minhash).
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pythia_core.data.minhash import Banding, candidate_pairs
from pythia_core.errors import ConfigError, DataError, MissingDependencyError, one_of, raise_all
from pythia_core.util.progress import bar as progress_bar

EXECUTORS = ("local", "slurm", "ray")
KEPT, EXACT, NEAR = 0, 1, 2
SIMILARITIES = (0.5, 0.6, 0.7, 0.8, 0.87, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Recipe:
    """What counts as a copy, and which copy stays."""

    name: str
    threshold: float = 1.0
    """Jaccard similarity of a near-duplicate; only nominal without `verify`."""
    ngram: int = 5
    buckets: int = 0
    """Bands of a signature; 0: no search for near-duplicates."""
    hashes_per_bucket: int = 1
    verify: bool = True
    """Count the similarity of candidates exactly; otherwise an equal band is enough."""
    keep: str = "first"
    exact: bool = True
    """Find identical texts first, of any length."""

    def __post_init__(self) -> None:
        problems = []
        for name, least in (("ngram", 1), ("buckets", 0), ("hashes_per_bucket", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                problems.append(f"{name} must be a whole number from {least} on, got {value!r}")
        if not 0 < self.threshold <= 1:
            problems.append(f"threshold must be in (0, 1], got {self.threshold!r}")
        if self.keep not in ("first", "last"):
            problems.append(one_of(self.keep, ("first", "last"), "keep"))
        if not self.exact and not self.buckets:
            problems.append("neither exact nor any buckets: nothing would be found")
        raise_all(ConfigError, problems, f"Recipe {self.name!r}")

    @property
    def banding(self) -> Banding:
        return Banding(self.ngram, self.buckets, self.hashes_per_bucket)


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
    """What `deduplicate` found, by document in the order of the corpus."""

    keep: np.ndarray
    """bool: whether the document stays."""
    cluster: np.ndarray
    """int64: number of the document that stays for this one; its own number if it stays."""
    reason: np.ndarray
    """uint8: KEPT; EXACT, the same text stands elsewhere; NEAR, only similar texts do."""
    report: dict[str, Any]
    """Counts before and after, clusters by size, work done, the recipe and its S-curve."""


def s_curve(similarity: np.ndarray | float, buckets: int, hashes: int) -> np.ndarray:
    """Probability that two documents of this Jaccard similarity become a candidate pair."""
    return 1 - (1 - np.asarray(similarity, np.float64) ** hashes) ** buckets


def shingles(text: str, ngram: int = 5) -> frozenset[str]:
    """The word n-grams of a text; none if it has fewer words."""
    words = text.split()
    return frozenset(" ".join(words[i : i + ngram]) for i in range(len(words) - ngram + 1))


def jaccard(a: str, b: str, ngram: int = 5) -> float:
    """Similarity of two texts as sets of word n-grams, counted exactly.

    Two texts too short for an n-gram have similarity 1 if they are the same, else 0.
    """
    left, right = shingles(a, ngram), shingles(b, ngram)
    return _similarity(left, right) if left or right else float(a == b)


def _similarity(a: frozenset[str], b: frozenset[str]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def deduplicate(
    texts: Sequence[str],
    recipe: str | Recipe,
    *,
    workdir: Path | None = None,
    executor: str = "local",
    tasks: int | None = None,
    workers: int | None = None,
    executor_options: dict[str, Any] | None = None,
    progress: bool = True,
) -> Deduplicated:
    """Find the documents that stay: one of each cluster, the first or last as the recipe says.

    A cluster holds what is linked, directly or through others: by the same text, and by a verified
    pair. Verified are the pairs of documents that hang together by equal bands, not only those
    that have one in common, until they are linked. Without verification equal bands are links.
    The result does not depend on `tasks`, `workers` or `executor`. The work grows with the square
    of the number of documents that hang together and are not similar, e.g. filled-in forms.

    The original looks documents up one by one and takes one with a hit out of the index; of
    documents with an equal band the last stays. With one band, as in `eleutherai-0.87`, clusters
    by equal bands leave exactly the same documents. Those too short for an n-gram are compared
    by the exact pass only; the code that most likely was used makes each a copy of all the others.

    Args:
        texts: the documents. They are read several times.
        recipe: a name in RECIPES, or your own.
        workdir: keep intermediate files here, to go on after an interruption. None: a temporary
            folder. Slurm and Ray need one that every node sees.
        executor: "local", "slurm" or "ray"; `tasks`, `workers` and `executor_options`: see
            pythia_core.data.minhash.candidate_pairs.

    Raises:
        ConfigError: an unknown recipe or executor. DataError: something that is not text.
        MissingDependencyError: datatrove or the executor is not installed. PythiaError: a stage
            failed.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ConfigError(one_of(recipe, RECIPES, "recipe"))
        recipe = RECIPES[recipe]
    _check_execution(executor, tasks, workers)
    if executor != "local" and workdir is None:
        raise ConfigError(f"executor={executor!r} needs a workdir that every node can see")
    corpus = _survey(texts, recipe)
    links = _Forest(len(texts))
    numbers = corpus.unique[corpus.words[corpus.unique] >= recipe.ngram]
    pairs = {"candidates": 0, "compared": 0, "linked": 0}
    if recipe.buckets and len(numbers) > 1:
        with tempfile.TemporaryDirectory(prefix="dedup-") as temporary:
            candidates = candidate_pairs(
                texts,
                numbers,
                recipe.banding,
                Path(workdir or temporary),
                executor,
                tasks,
                workers,
                executor_options,
                progress,
            )
        pairs["candidates"] = len(candidates)
        if recipe.verify:
            pairs["compared"] = _link_verified(links, texts, candidates.tolist(), recipe, progress)
        else:
            links.join_all(candidates.tolist())
        pairs["linked"] = links.joined
    links.join_all(zip(corpus.same_as.tolist(), range(len(texts)), strict=True))
    return _result(links, corpus, recipe, pairs)


def _check_execution(executor: str, tasks: int | None, workers: int | None) -> None:
    """Raise ConfigError or MissingDependencyError if stages cannot be run this way here."""
    if executor not in EXECUTORS:
        raise ConfigError(one_of(executor, EXECUTORS, "executor"))
    for name, value in (("tasks", tasks), ("workers", workers)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise ConfigError(f"{name} must be a whole number from 1 on, or None, got {value!r}")
    if executor == "slurm" and not shutil.which("sbatch"):
        raise MissingDependencyError(
            "executor='slurm', but there is no sbatch on the PATH: run this on a login node of a "
            "Slurm cluster, or with executor='local'"
        )
    if executor == "ray" and not importlib.util.find_spec("ray"):
        raise MissingDependencyError(
            "executor='ray' needs Ray: pip install -e .[cluster], or use executor='local'"
        )


# --- the corpus as it is ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Corpus:
    """Sizes of the documents, and which have the same text."""

    words: np.ndarray
    bytes: np.ndarray
    same_as: np.ndarray
    """Of the documents with this text the one that stands for all: the one the recipe keeps."""

    @property
    def unique(self) -> np.ndarray:
        return np.flatnonzero(self.same_as == np.arange(len(self.same_as)))


def _survey(texts: Sequence[str], recipe: Recipe) -> _Corpus:
    if isinstance(texts, str):
        raise DataError("texts is one string: give a sequence of documents")
    words, sizes = np.zeros((2, len(texts)), np.int64)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"document {number} is {type(text).__name__}, not str: decode it first")
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"document {number} holds half a surrogate pair at character {error.start}: "
                "decode its source with errors='replace'"
            ) from error
        words[number], sizes[number] = len(text.split()), len(raw)
        groups[hashlib.blake2b(raw, digest_size=16).digest()].append(number)
    same_as = np.arange(len(texts))
    if recipe.exact:
        for group in groups.values():
            same_as[group] = group[0 if recipe.keep == "first" else -1]
    return _Corpus(words, sizes, same_as)


# --- clusters --------------------------------------------------------------------------------


class _Forest:
    """Union-find over document numbers."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))
        self.joined = 0

    def root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self._parent[max(a, b)] = min(a, b)
            self.joined += 1

    def join_all(self, links: Iterable[Sequence[int]]) -> None:
        for a, b in links:
            self.join(a, b)

    def roots(self) -> np.ndarray:
        return np.array([self.root(i) for i in range(len(self._parent))], np.int64)


def _link_verified(
    links: _Forest,
    texts: Sequence[str],
    candidates: list[list[int]],
    recipe: Recipe,
    progress: bool,
) -> int:
    """Join the documents whose similarity reaches the threshold; returns how many were compared."""
    together = _Forest(len(texts))
    together.join_all(candidates)
    members = defaultdict(list)
    for number in sorted({number for pair in candidates for number in pair}):
        members[together.root(number)].append(number)
    compared = 0
    total = sum(map(len, members.values()))
    with progress_bar(progress, total=total, desc="comparing near-duplicates", unit="doc") as bar:
        for group in members.values():
            grams = {number: shingles(texts[number], recipe.ngram) for number in group}
            for position, b in enumerate(group):
                for a in group[:position]:
                    small, large = sorted((len(grams[a]), len(grams[b])))
                    if small < recipe.threshold * large or links.root(a) == links.root(b):
                        continue  # cannot be similar enough, or nothing would change
                    compared += 1
                    if _similarity(grams[a], grams[b]) >= recipe.threshold:
                        links.join(a, b)
                bar.update()
    return compared


def _result(links: _Forest, corpus: _Corpus, recipe: Recipe, pairs: dict[str, int]) -> Deduplicated:
    roots, numbers = links.roots(), np.arange(len(corpus.words))
    survivor = roots  # a root is the first of its cluster
    if recipe.keep == "last":
        last = numbers.copy()
        np.maximum.at(last, roots, numbers)
        survivor = last[roots]
    keep = survivor == numbers
    reason = np.where(corpus.same_as != numbers, EXACT, NEAR).astype(np.uint8)
    reason[keep] = KEPT
    sizes = Counter(np.bincount(roots, minlength=1)[np.unique(roots)].tolist())
    caught = s_curve(np.array(SIMILARITIES), recipe.buckets, recipe.hashes_per_bucket)
    report = {
        "recipe": asdict(recipe),
        "documents": {"before": len(keep), "after": int(keep.sum())},
        "words": {"before": int(corpus.words.sum()), "after": int(corpus.words[keep].sum())},
        "bytes": {"before": int(corpus.bytes.sum()), "after": int(corpus.bytes[keep].sum())},
        "removed": {"exact": int((reason == EXACT).sum()), "near": int((reason == NEAR).sum())},
        "too_short": int((corpus.words < recipe.ngram).sum()),
        "clusters": {str(size): sizes[size] for size in sorted(sizes)},
        "pairs": pairs,
        "caught": {str(s): float(p) for s, p in zip(SIMILARITIES, caught, strict=True)},
    }
    return Deduplicated(keep, survivor, reason, report)
