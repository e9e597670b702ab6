"""Near-deduplication on texts whose similarities are known by construction."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_core.data import dedup
from pythia_core.data.dedup import EXACT, KEPT, NEAR, RECIPES, Deduplicated, Recipe, shingles
from pythia_core.data.dedup import deduplicate as with_bar
from pythia_core.errors import ConfigError, DataError, MissingDependencyError

needs_datatrove = pytest.mark.skipif(
    importlib.util.find_spec("datatrove") is None,
    reason="datatrove is not installed: pip install -e .[dedup]",
)
NEAR_RECIPE = RECIPES["jaccard-0.87"]
N_GRAMS = 200
NO_DATASKETCH = "datasketch, an independent implementation, is not installed"


def deduplicate(texts: list[str], recipe: str | Recipe = NEAR_RECIPE) -> Deduplicated:
    return with_bar(texts, recipe, progress=False)


def random_words(rng: np.random.Generator, n: int = N_GRAMS + 4) -> list[str]:
    """Random words of 8 letters, so that two texts have no word in common and no n-gram repeats."""
    letters = rng.integers(97, 123, (n, 8)).astype(np.uint8)
    return [bytes(row).decode() for row in letters]


def with_new_ending(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Replace the last n words, which changes exactly n of the text's n-grams."""
    return words[:-n] + random_words(rng, n)


def similarity(changed: int) -> float:
    return (N_GRAMS - changed) / (N_GRAMS + changed)


def texts_with_similar_pairs(
    levels: tuple[int, ...], pairs: int, seed: int = 0
) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Shuffled texts, and (level, index, index) of each pair; level: number of changed n-grams."""
    rng = np.random.default_rng(seed)
    texts = []
    for level in levels:
        for _ in range(pairs):
            words = random_words(rng)
            texts += [" ".join(words), " ".join(with_new_ending(words, level, rng))]
    order = rng.permutation(len(texts))
    index_of = np.argsort(order)
    similar_pairs = [
        (level, *sorted((int(index_of[2 * i]), int(index_of[2 * i + 1]))))
        for i, level in enumerate(np.repeat(levels, pairs).tolist())
    ]
    return [texts[i] for i in order], similar_pairs


def texts_copied_from_each_other(seed: int, n: int = 90) -> list[str]:
    """Texts that are edited copies of each other, in clusters of many shapes; shuffled."""
    rng = np.random.default_rng(seed)
    texts = [random_words(rng) for _ in range(6)]
    while len(texts) < n:
        words = list(texts[rng.integers(len(texts))])
        edits = rng.integers(0, 4)
        for position in rng.integers(0, len(words), edits):
            words[position] = random_words(rng, 1)[0]
        texts.append(words)
    return [" ".join(texts[i]) for i in rng.permutation(n)]


def components(n: int, links: list[tuple[int, int]]) -> list[set[int]]:
    """Connected components of 0..n-1, computed slowly."""
    groups = [{i} for i in range(n)]
    for a, b in links:
        one, two = (next(g for g in groups if i in g) for i in (a, b))
        if one is not two:
            groups.remove(two)
            one |= two
    return groups


def clusters(found: Deduplicated) -> set[frozenset[int]]:
    groups = defaultdict(set)
    for number, survivor in enumerate(found.cluster.tolist()):
        groups[survivor].add(number)
    return {frozenset(g) for g in groups.values()}


# --- similarity ------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), max_size=30))
def test_jaccard_equals_its_definition(left, right):
    a, b = ({tuple(w[i : i + 3]) for i in range(len(w) - 2)} for w in (left, right))
    one, two = shingles(" ".join(left), 3), shingles("\n".join(right), 3)
    assert [{tuple(gram.split()) for gram in grams} for grams in (one, two)] == [a, b]
    if a | b:
        assert dedup.jaccard(one, two) == dedup.jaccard(two, one) == len(a & b) / len(a | b)


def test_similarities_of_the_pairs_are_as_computed():
    texts, pairs = texts_with_similar_pairs((1, 13, 14, 100), pairs=3)
    for level, a, b in pairs:
        assert dedup.jaccard(shingles(texts[a]), shingles(texts[b])) == similarity(level)
    assert similarity(13) > 0.87 > similarity(14)


def test_s_curve():
    assert dedup.s_curve(0.87, 1, 10) == pytest.approx(0.87**10)
    curve = dedup.s_curve(np.array([0.0, 0.87, 1.0]), 14, 8)
    assert curve[0] == 0
    assert 0.99 < curve[1] < 1
    assert curve[2] == 1


# --- jaccard-0.87 ----------------------------------------------------------------------------


@needs_datatrove
def test_all_pairs_above_the_threshold_are_found_and_none_below():
    texts, pairs = texts_with_similar_pairs((1, 5, 10, 13, 14, 15, 20, 40, 100), pairs=30)
    found = deduplicate(texts)
    for level, first, second in pairs:
        above = similarity(level) >= 0.87
        assert found.keep[first]
        assert found.keep[second] == (not above)
        assert found.cluster[second] == (first if above else second)
        assert found.reason[second] == (NEAR if above else KEPT)
    report = found.report
    assert report["documents"] == {"before": 540, "after": 540 - 4 * 30}
    assert report["removed"] == {"exact": 0, "near": 120}
    assert report["clusters"] == {"1": 300, "2": 120}
    assert report["words"]["after"] == 204 * 420
    assert report["bytes"]["before"] == sum(map(len, texts))
    assert report["pairs"]["candidates"] > report["pairs"]["linked"] == 120
    assert json.loads(json.dumps(report)) == report


@needs_datatrove
@pytest.mark.parametrize(("seed", "keep"), [(0, "first"), (1, "last"), (2, "first")])
def test_clusters_equal_those_from_comparing_all_pairs(seed, keep):
    texts = texts_copied_from_each_other(seed)
    n = len(texts)
    grams = [dedup.shingles(t) for t in texts]
    links = [
        (a, b)
        for a, b in itertools.combinations(range(n), 2)
        if len(grams[a] & grams[b]) / len(grams[a] | grams[b]) >= 0.87
    ]
    expected = components(n, links)
    assert 6 < len(expected) < n / 2
    recipe = Recipe("mine", 0.87, buckets=14, hashes_per_bucket=8, keep=keep)
    found = deduplicate(texts, recipe)
    assert clusters(found) == set(map(frozenset, expected))
    pick = min if keep == "first" else max
    assert set(np.flatnonzero(found.keep)) == {pick(group) for group in expected}
    assert found.report["pairs"]["linked"] + found.report["removed"]["exact"] == n - len(expected)


def test_documents_connected_through_others_are_compared_too(monkeypatch):
    rng = np.random.default_rng(0)
    words = random_words(rng)
    between = words[:60] + random_words(rng, 30) + words[90:]
    texts = [" ".join(w) for w in (words, between, with_new_ending(words, 3, rng))]
    chain = np.array([[0, 1], [1, 2]])
    monkeypatch.setattr(dedup, "candidate_pairs", lambda *given: chain)
    found = deduplicate(texts)
    assert found.cluster.tolist() == [0, 1, 0]
    assert found.report["pairs"] == {"candidates": 2, "compared": 3, "linked": 1}


@needs_datatrove
def test_numbers_case_and_punctuation_make_a_difference():
    from datatrove.utils.text import TextNormConfig, simplify_text

    words = random_words(np.random.default_rng(0))
    sums = [" ".join(w if i % 3 else str(i + k) for i, w in enumerate(words)) for k in (0, 5000)]
    case = [" ".join(words), " ".join(w.title() for w in words)]
    marks = [" ".join(words[::-1]), " ".join(words[::-1]).replace(" ", ", ")]
    texts = [*sums, *case, *marks]
    same = TextNormConfig()
    assert all(simplify_text(a, same) == simplify_text(b, same) for a, b in (sums, case, marks))
    for recipe in ("jaccard-0.87", "eleutherai-0.87"):  # with and without verification
        assert deduplicate(texts, recipe).keep.all()  # datatrove's defaults would merge each pair
    spaced = deduplicate([case[0], case[0].replace(" ", " \n\t")])
    assert spaced.reason.tolist() == [KEPT, NEAR]  # white space makes no difference


@needs_datatrove
def test_a_signature_computed_in_chunks_is_the_same(monkeypatch):
    step = dedup.minhash_step(NEAR_RECIPE)
    text = " ".join(random_words(np.random.default_rng(0)))
    at_once = step.get_signature(step.get_shingles(text))
    assert np.shape(at_once) == (14, 8) and len(step.get_shingles(text)) == N_GRAMS
    for part in (7, 200, 4096):
        monkeypatch.setattr(dedup, "_SHINGLES_AT_ONCE", part)
        assert step.get_signature(step.get_shingles(text)) == at_once


# --- exact and short documents ---------------------------------------------------------------


@given(st.lists(st.sampled_from(["", " ", "a", "A", "a b c d e f"]), max_size=12))
@settings(max_examples=60)
def test_exact_copies_of_any_length(texts):
    for keep in ("first", "last"):
        found = deduplicate(texts, Recipe("mine", keep=keep))
        survivors = [texts.index(t) for t in texts]
        if keep == "last":
            survivors = [len(texts) - 1 - texts[::-1].index(t) for t in texts]
        assert found.cluster.tolist() == survivors
        assert found.keep.tolist() == [i == s for i, s in enumerate(survivors)]
        assert found.reason.tolist() == [KEPT if k else EXACT for k in found.keep]


@needs_datatrove
def test_short_and_empty_documents_do_not_shift_indices():
    rng = np.random.default_rng(1)
    words = random_words(rng)
    long, near = " ".join(words), " ".join(with_new_ending(words, 4, rng))
    texts = ["", "one two", long, "", "a b c d", near, "one two", long, "x", "a b c d e"]
    found = deduplicate(texts)
    assert found.cluster.tolist() == [0, 1, 2, 0, 4, 2, 1, 2, 8, 9]
    assert found.reason.tolist() == [0, 0, 0, EXACT, 0, NEAR, EXACT, EXACT, 0, 0]
    assert found.report["too_short"] == 6
    last = deduplicate(texts, Recipe("mine", 0.87, buckets=14, hashes_per_bucket=8, keep="last"))
    assert last.cluster.tolist() == [3, 6, 7, 3, 4, 7, 6, 7, 8, 9]


def test_short_documents_need_no_datatrove(monkeypatch):
    monkeypatch.setattr(dedup, "candidate_pairs", None)
    assert deduplicate(["a", "b", "a"]).keep.tolist() == [True, True, False]
    empty = deduplicate([])
    assert empty.keep.shape == (0,)
    assert empty.report["clusters"] == {}


# --- eleutherai-0.87, and datasketch as a second opinion --------------------------------------


def datasketch_index(texts: list[str], recipe: Recipe):
    """datasketch's index of our signatures, and the signatures as datasketch's objects."""
    datasketch = pytest.importorskip("datasketch", reason=NO_DATASKETCH)
    twice = 2 if recipe.buckets == 1 else 1  # it refuses a single band, so use it twice
    bands = twice * recipe.buckets, recipe.hashes_per_bucket
    index = datasketch.MinHashLSH(num_perm=math.prod(bands), params=bands)
    step, hashes = dedup.minhash_step(recipe), []
    for number, text in enumerate(texts):
        minhash = datasketch.MinHash(num_perm=math.prod(bands))
        minhash.hashvalues = np.tile(np.ravel(step.get_signature(step.get_shingles(text))), twice)
        index.insert(number, minhash)
        hashes.append(minhash)
    return index, hashes


@needs_datatrove
def test_candidates_equal_those_of_datasketch():
    texts = texts_copied_from_each_other(3) + texts_with_similar_pairs((20, 40, 60), pairs=30)[0]
    index, hashes = datasketch_index(texts, NEAR_RECIPE)
    hits = [(i, j) for i, m in enumerate(hashes) for j in sorted(index.query(m)) if i < j]
    n = len(texts)
    ours = dedup.candidate_pairs(texts, np.arange(n), NEAR_RECIPE, progress=False).tolist()
    assert set(map(tuple, ours)) <= set(hits)
    assert components(n, ours) == components(n, hits)


@needs_datatrove
def test_candidates_equal_those_of_datatroves_pipeline(tmp_path):
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupSignature

    texts = texts_copied_from_each_other(5)
    config = dedup.minhash_step(NEAR_RECIPE).config
    sign = MinhashDedupSignature(
        str(tmp_path / "signatures"), config, language=dedup.WhitespaceTokenizer()
    )
    sign.run(Document(text, str(number)) for number, text in enumerate(texts))
    meet = MinhashDedupBuckets(str(tmp_path / "signatures"), str(tmp_path / "pairs"), config=config)
    for band in range(NEAR_RECIPE.buckets):
        meet.run(None, band, NEAR_RECIPE.buckets)
    written = [np.fromfile(file, "<u4") for file in (tmp_path / "pairs").iterdir()]
    expected = np.unique(np.concatenate(written).reshape(-1, 4)[:, [1, 3]], axis=0)
    ours = dedup.candidate_pairs(texts, np.arange(len(texts)), NEAR_RECIPE, progress=False)
    assert len(ours) > 30
    assert ours.tolist() == expected.tolist()


@needs_datatrove
def test_one_by_one_removal_from_an_index_leaves_the_same_documents():
    recipe = RECIPES["eleutherai-0.87"]
    texts = texts_copied_from_each_other(4, n=150)
    index, hashes = datasketch_index(texts, recipe)
    for number, minhash in enumerate(hashes):
        if set(index.query(minhash)) - {number}:
            index.remove(number)
    found = deduplicate(texts, recipe)
    assert [i in index for i in range(len(texts))] == found.keep.tolist()
    assert 6 < found.keep.sum() < 150 - 6
    for group in clusters(found):
        assert found.keep[max(group)]


def test_datasketch_chooses_the_banding_of_the_recipe():
    lsh = pytest.importorskip("datasketch.lsh", reason=NO_DATASKETCH)
    recipe = RECIPES["eleutherai-0.87"]
    # MinHashLSH refuses a single band since 2.0, but used it in 1.5, when the paper was written
    chosen = lsh._optimal_param(0.87, 10, 0.5, 0.5)
    assert chosen == (recipe.buckets, recipe.hashes_per_bucket) == (1, 10)


@needs_datatrove
def test_pairs_are_found_as_often_as_the_s_curve_says():
    levels = (5, 14, 30)
    texts, pairs = texts_with_similar_pairs(levels, pairs=200)
    found = deduplicate(texts, "eleutherai-0.87")
    for level in levels:
        caught = sum(not found.keep[a] for each, a, _ in pairs if each == level)
        p = float(dedup.s_curve(similarity(level), 1, 10))
        assert abs(caught - 200 * p) < 3.5 * math.sqrt(200 * p * (1 - p)), level
    assert all(found.keep[b] for _, _, b in pairs)


@needs_datatrove
def test_datatrove_is_silent(capfd):
    deduplicate(texts_copied_from_each_other(8, n=12))
    assert capfd.readouterr() == ("", "")


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "recipe", "error", "words"),
    [
        (["a"], "jaccard-0.78", ConfigError, "Did you mean 'jaccard-0.87'"),
        ("text", NEAR_RECIPE, DataError, "single string"),
        (["a", b"b"], NEAR_RECIPE, DataError, "document 1 is bytes"),
        (["a", "b\ud800"], NEAR_RECIPE, DataError, "document 1 .*an unpaired surrogate"),
    ],
)
def test_bad_input_is_refused(texts, recipe, error, words):
    with pytest.raises(error, match=words):
        deduplicate(texts, recipe)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"ngram": 0}, "ngram"),
        ({"buckets": 1.5}, "buckets"),
        ({"keep": "frist"}, "Did you mean 'first'"),
        ({"exact": False}, "would find no copies"),
        ({"ngram": 0, "keep": "none"}, "2 problems"),
    ],
)
def test_bad_recipes_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Recipe("mine", **given)


def test_a_missing_or_unusable_datatrove_is_named(monkeypatch):
    texts = texts_copied_from_each_other(0, n=8)
    versions = {"datatrove": "0.10.1", "xxhash": "4.0.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(MissingDependencyError, match=r"xxhash 4\.0\.0; .*pip install 'xxhash<4'"):
        deduplicate(texts)

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(MissingDependencyError, match=r"datatrove; .*pip install -e \.\[dedup\]"):
        deduplicate(texts)
