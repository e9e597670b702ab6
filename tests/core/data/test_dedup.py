"""Near-deduplication on texts whose similarities are known by construction."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import stat
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_core.data import dedup
from pythia_core.data import minhash as dedup_pipeline
from pythia_core.data.dedup import EXACT, KEPT, NEAR, RECIPES, Deduplicated, Recipe
from pythia_core.data.dedup import deduplicate as with_bar
from pythia_core.errors import ConfigError, DataError, MissingDependencyError, PythiaError

needs_datatrove = pytest.mark.skipif(
    importlib.util.find_spec("datatrove") is None,
    reason="datatrove is not installed: pip install -e .[dedup]",
)
NEAR_RECIPE = RECIPES["jaccard-0.87"]
N_GRAMS = 200
NO_DATASKETCH = "datasketch, an independent implementation, is not installed"


def deduplicate(texts: list[str], recipe: str | Recipe = NEAR_RECIPE, **given) -> Deduplicated:
    return with_bar(texts, recipe, progress=False, **given)


def random_words(rng: np.random.Generator, n: int = N_GRAMS + 4) -> list[str]:
    """Words of 8 letters: two texts share none, and no n-gram comes twice."""
    letters = rng.integers(97, 123, (n, 8)).astype(np.uint8)
    return [bytes(row).decode() for row in letters]


def with_other_end(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Each of the last n words stands in one more n-gram, so that exactly n of them change."""
    return words[:-n] + random_words(rng, n)


def similarity(changed: int) -> float:
    return (N_GRAMS - changed) / (N_GRAMS + changed)


def planted(
    levels: tuple[int, ...], pairs: int, seed: int = 0
) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Shuffled texts, and (level, number, number) of the planted pairs; level: n-grams changed."""
    rng = np.random.default_rng(seed)
    texts = []
    for level in levels:
        for _ in range(pairs):
            words = random_words(rng)
            texts += [" ".join(words), " ".join(with_other_end(words, level, rng))]
    order = rng.permutation(len(texts))
    place = np.argsort(order)
    where = [
        (level, *sorted((int(place[2 * i]), int(place[2 * i + 1]))))
        for i, level in enumerate(np.repeat(levels, pairs).tolist())
    ]
    return [texts[i] for i in order], where


def family_tree(seed: int, n: int = 90) -> list[str]:
    """Texts copied from texts copied from texts, with edits: clusters of any shape."""
    rng = np.random.default_rng(seed)
    texts = [random_words(rng) for _ in range(6)]
    while len(texts) < n:
        words = list(texts[rng.integers(len(texts))])
        edits = rng.integers(0, 4)
        for place in rng.integers(0, len(words), edits):
            words[place] = random_words(rng, 1)[0]
        texts.append(words)
    return [" ".join(texts[i]) for i in rng.permutation(n)]


def components(n: int, links: list[tuple[int, int]]) -> list[set[int]]:
    """Clusters, the slow and obvious way."""
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
def test_jaccard_is_its_definition(left, right):
    a, b = ({tuple(w[i : i + 3]) for i in range(len(w) - 2)} for w in (left, right))
    expected = len(a & b) / len(a | b) if a | b else float(left == right)
    value = dedup.jaccard(" ".join(left), "\n".join(right), ngram=3)
    if left and (a | b or left != right):
        assert value == expected
    assert value == dedup.jaccard("\t".join(right), " ".join(left), ngram=3) or not a | b


def test_planted_similarities_are_as_computed():
    texts, pairs = planted((1, 13, 14, 100), pairs=3)
    for level, a, b in pairs:
        assert dedup.jaccard(texts[a], texts[b]) == similarity(level)
    assert similarity(13) > 0.87 > similarity(14)


def test_jaccard_of_short_texts():
    assert dedup.jaccard("a b", "a b") == 1
    assert dedup.jaccard("a b", "a c") == 0
    assert dedup.jaccard("a b", "a b c d e") == 0


def test_s_curve():
    assert dedup.s_curve(0.87, 1, 10) == pytest.approx(0.87**10)
    curve = dedup.s_curve(np.array([0.0, 0.87, 1.0]), 14, 8)
    assert curve[0] == 0
    assert 0.99 < curve[1] < 1
    assert curve[2] == 1


# --- jaccard-0.87 ----------------------------------------------------------------------------


@needs_datatrove
def test_all_planted_pairs_above_the_threshold_are_found_and_none_below():
    texts, pairs = planted((1, 5, 10, 13, 14, 15, 20, 40, 100), pairs=30)
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
def test_clusters_are_those_of_comparing_all_with_all(seed, keep):
    texts = family_tree(seed)
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


def test_documents_that_hang_together_are_compared_though_no_link_joins_them(monkeypatch):
    rng = np.random.default_rng(0)
    words = random_words(rng)
    between = words[:60] + random_words(rng, 30) + words[90:]
    texts = [" ".join(w) for w in (words, between, with_other_end(words, 3, rng))]
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
    for recipe in ("jaccard-0.87", "eleutherai-0.87"):  # the other one takes equal hashes as proof
        assert deduplicate(texts, recipe).keep.all()  # datatrove's defaults would merge each pair
    spaced = deduplicate([case[0], case[0].replace(" ", " \n\t")])
    assert spaced.reason.tolist() == [KEPT, NEAR]  # white space makes none


@needs_datatrove
def test_a_long_document_has_the_signature_it_would_have_at_once(tmp_path, monkeypatch):
    sign = dedup_pipeline.pipelines(dedup_pipeline.Banding(5, 14, 8), tmp_path, 1)[0].steps[1]
    shingles = sign.get_shingles(" ".join(random_words(np.random.default_rng(0))))
    assert len(shingles) == N_GRAMS
    at_once = type(sign).get_signature(sign, shingles)
    for part in (7, 200, 4096):
        monkeypatch.setattr(dedup_pipeline, "_SHINGLES_AT_ONCE", part)
        assert sign.get_signature(shingles) == at_once


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
def test_short_and_empty_documents_shift_nothing():
    rng = np.random.default_rng(1)
    words = random_words(rng)
    long, near = " ".join(words), " ".join(with_other_end(words, 4, rng))
    texts = ["", "one two", long, "", "a b c d", near, "one two", long, "x", "a b c d e"]
    found = deduplicate(texts)
    assert found.cluster.tolist() == [0, 1, 2, 0, 4, 2, 1, 2, 8, 9]
    assert found.reason.tolist() == [0, 0, 0, EXACT, 0, NEAR, EXACT, EXACT, 0, 0]
    assert found.report["too_short"] == 6
    last = deduplicate(texts, Recipe("mine", 0.87, buckets=14, hashes_per_bucket=8, keep="last"))
    assert last.cluster.tolist() == [3, 6, 7, 3, 4, 7, 6, 7, 8, 9]


def test_nothing_long_enough_needs_no_datatrove(monkeypatch):
    monkeypatch.setattr(dedup, "candidate_pairs", None)
    assert deduplicate(["a", "b", "a"]).keep.tolist() == [True, True, False]
    empty = deduplicate([])
    assert empty.keep.shape == (0,)
    assert empty.report["clusters"] == {}


# --- eleutherai-0.87, and datasketch as a second opinion --------------------------------------


def signatures(texts: list[str], banding: dedup_pipeline.Banding) -> list[np.ndarray]:
    """What our first stage computes, as one array a document."""
    sign = dedup_pipeline.pipelines(banding, Path("unused"), 1)[0].steps[1]
    return [np.array(sign.get_signature(sign.get_shingles(t)), np.uint64).ravel() for t in texts]


def lsh_of(texts: list[str], banding: dedup_pipeline.Banding):
    """datasketch's index over our signatures, and these as it wants them."""
    datasketch = pytest.importorskip("datasketch", reason=NO_DATASKETCH)
    twice = 2 if banding.buckets == 1 else 1  # it refuses a single band; the same twice is one
    bands = twice * banding.buckets, banding.hashes
    index = datasketch.MinHashLSH(num_perm=math.prod(bands), params=bands)
    hashes = []
    for number, signature in enumerate(signatures(texts, banding)):
        minhash = datasketch.MinHash(num_perm=math.prod(bands))
        minhash.hashvalues = np.tile(signature, twice)
        index.insert(number, minhash)
        hashes.append(minhash)
    return index, hashes


@needs_datatrove
def test_candidates_are_those_of_datasketch(tmp_path):
    banding = dedup_pipeline.Banding(5, 14, 8)
    texts = family_tree(3) + planted((20, 40, 60), pairs=30)[0]
    index, hashes = lsh_of(texts, banding)
    hits = [(i, j) for i, m in enumerate(hashes) for j in sorted(index.query(m)) if i < j]
    ours = dedup_pipeline.candidate_pairs(
        texts, np.arange(len(texts)), banding, tmp_path, progress=False
    )
    assert set(map(tuple, ours.tolist())) <= set(hits)
    n = len(texts)
    assert components(n, ours.tolist()) == components(n, hits)


@needs_datatrove
def test_one_by_one_removal_from_an_index_leaves_the_same_documents():
    recipe = RECIPES["eleutherai-0.87"]
    texts = family_tree(4, n=150)
    index, hashes = lsh_of(texts, recipe.banding)
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
    # MinHashLSH itself refuses a single band since 2.0; 1.5, of the time of the paper, used it
    chosen = lsh._optimal_param(0.87, 10, 0.5, 0.5)
    assert chosen == (recipe.buckets, recipe.hashes_per_bucket) == (1, 10)


@needs_datatrove
def test_pairs_are_caught_as_often_as_the_s_curve_says():
    levels = (5, 14, 30)
    texts, pairs = planted(levels, pairs=200)
    found = deduplicate(texts, "eleutherai-0.87")
    for level in levels:
        caught = sum(not found.keep[a] for each, a, _ in pairs if each == level)
        p = float(dedup.s_curve(similarity(level), 1, 10))
        assert abs(caught - 200 * p) < 3.5 * math.sqrt(200 * p * (1 - p)), level
    assert all(found.keep[b] for _, _, b in pairs)


# --- tasks, workers, resuming ----------------------------------------------------------------


def same(one: Deduplicated, two: Deduplicated) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("keep", "cluster", "reason")
    )


@needs_datatrove
def test_survivors_do_not_depend_on_tasks_and_workers():
    texts = family_tree(5)
    first = deduplicate(texts, tasks=1)
    assert not first.keep.all()
    for setting in ({"tasks": 2}, {"tasks": 4}, {"tasks": 5, "workers": 2}):
        assert same(first, deduplicate(texts, **setting)), setting


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    texts = family_tree(6)
    workdir = tmp_path_factory.mktemp("finished")
    return texts, deduplicate(texts, workdir=workdir, tasks=2), workdir


@pytest.fixture
def work(finished, tmp_path):
    """(texts, result, folder of intermediate files) of a finished run."""
    texts, result, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (folder,) = tmp_path.iterdir()
    return texts, result, folder


@needs_datatrove
def test_a_finished_run_is_not_run_again_but_other_texts_are(work, monkeypatch):
    texts, result, folder = work
    ran = []
    local = dedup_pipeline._EXECUTE["local"]

    def spy(stage, *given):
        ran.append(stage.name)
        local(stage, *given)

    monkeypatch.setitem(dedup_pipeline._EXECUTE, "local", spy)
    assert same(result, deduplicate(texts, workdir=folder.parent, tasks=2))
    assert ran == []
    other = deduplicate([*texts, "five words make an n-gram"], workdir=folder.parent, tasks=2)
    assert other.keep.sum() == result.keep.sum() + 1
    assert ran == ["signatures", "buckets"]
    assert len(list(folder.parent.iterdir())) == 2


@needs_datatrove
@pytest.mark.parametrize(
    "pattern", ["input/*1.jsonl", "signatures/bucket_003/*1.minhash.sig", "buckets/00005_00.dups"]
)
@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped"])
def test_damaged_files_are_made_again(work, pattern, damage):
    texts, result, folder = work
    (file,) = folder.glob(pattern)
    before = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(before[: len(before) // 2])
    else:
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert same(result, deduplicate(texts, workdir=folder.parent, tasks=2))
    assert file.read_bytes() == before


@needs_datatrove
def test_a_killed_stage_goes_on_where_it_was(work):
    texts, result, folder = work
    # As after kill -9 in the second task: no seal, no mark, half a file; later stages never ran.
    for name in ("signatures", "buckets"):
        (folder / f"{name}.sealed.json").unlink()
    (folder / "logs/signatures/completions/00001").unlink()
    half = folder / "signatures/bucket_000/00001.minhash.sig"
    half.write_bytes(half.read_bytes()[:100])
    for gone in ("buckets", "logs/buckets"):
        shutil.rmtree(folder / gone)
    done = folder / "signatures/bucket_000/00000.minhash.sig"
    time_before = done.stat().st_mtime_ns
    assert same(result, deduplicate(texts, workdir=folder.parent, tasks=2))
    assert done.stat().st_mtime_ns == time_before


@needs_datatrove
def test_marks_are_not_believed_where_files_are_missing_or_short(work):
    texts, result, folder = work
    (folder / "signatures.sealed.json").unlink()
    file = folder / "signatures/bucket_000/00001.minhash.sig"
    file.unlink()
    assert same(result, deduplicate(texts, workdir=folder.parent, tasks=2))
    (folder / "signatures.sealed.json").unlink()
    file.write_bytes(file.read_bytes()[:68])
    with pytest.raises(DataError, match="band 0 has"):
        deduplicate(texts, workdir=folder.parent, tasks=2)


@needs_datatrove
def test_a_failing_stage_is_named_and_can_be_run_again(tmp_path, monkeypatch):
    texts = family_tree(7, n=20)

    def broken(self, text):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(dedup_pipeline.Words, "word_tokenize", broken)
        with pytest.raises(PythiaError, match=r"'signatures'.*OSError: no space left") as caught:
            deduplicate(texts, workdir=tmp_path)
    logs = Path(re.search(r"see (\S+)\.", str(caught.value))[1])
    assert "no space left" in (logs / "console.log").read_text()
    assert same(deduplicate(texts, workdir=tmp_path), deduplicate(texts))


@needs_datatrove
def test_datatrove_is_silent_and_its_logger_is_put_back(capfd):
    deduplicate(family_tree(8, n=12), workers=2)
    assert capfd.readouterr() == ("", "")
    from datatrove.utils.logging import logger

    logger.warning("heard again")
    assert "heard again" in capfd.readouterr().err


# --- clusters of machines --------------------------------------------------------------------


@needs_datatrove
def test_the_stages_are_those_of_datatrove(tmp_path):
    first, second = dedup_pipeline.pipelines(dedup_pipeline.Banding(5, 14, 8), tmp_path, tasks=3)
    assert [type(s).__name__ for s in first.steps] == ["JsonlReader", "MinhashDedupSignature"]
    assert [type(s).__name__ for s in second.steps] == ["MinhashDedupBuckets"]
    assert (first.tasks, second.tasks) == (3, 14)
    assert len(first.outputs[2]) == 14


SBATCH = """#!/bin/sh
for script; do :; done
echo "$@" >> "$FAKE_SLURM/calls"
cp "$script" "$FAKE_SLURM/last.slurm"
if ! grep -q merge_stats "$script" && [ -z "$FAKE_LOST" ]; then
  last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
  for i in $(seq 0 "$last"); do
    SLURM_NODELIST=here SLURM_ARRAY_TASK_ID=$i bash "$script" > "$FAKE_SLURM/$i.out" 2>&1
  done
fi
echo Submitted batch job 7
"""


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """A Slurm that runs jobs at once, inside sbatch."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    srun = f'#!/bin/sh\nshift 3\nexec "{sys.executable}" -m datatrove.tools.$*\n'
    scontrol = "#!/bin/sh\necho here\n"
    programs = {"sbatch": SBATCH, "srun": srun, "squeue": "#!/bin/sh\n", "scontrol": scontrol}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(dedup_pipeline, "SLURM_POLL", 0.02)
    return folder


SLURM = {
    "executor": "slurm",
    "executor_options": {"time": "1:00:00", "partition": "cpu", "srun_args": None},
}


@needs_datatrove
def test_slurm_runs_the_same_stages(tmp_path, fake_slurm):
    texts = family_tree(9, n=40)
    recipe = RECIPES["eleutherai-0.87"]
    found = deduplicate(texts, recipe, workdir=tmp_path / "work", tasks=2, **SLURM)
    assert same(found, deduplicate(texts, recipe))
    assert len((fake_slurm / "calls").read_text().splitlines()) == 4  # two stages, two sums


@needs_datatrove
def test_a_slurm_job_that_ended_early_is_an_error(tmp_path, fake_slurm, monkeypatch):
    monkeypatch.setenv("FAKE_LOST", "yes")
    with pytest.raises(PythiaError, match=r"job 7 has ended with 2 of 2 tasks.*'signatures'"):
        deduplicate(family_tree(9, n=20), workdir=tmp_path / "work", tasks=2, **SLURM)


@needs_datatrove
def test_options_that_do_not_fit_are_refused(tmp_path, fake_slurm):
    with pytest.raises(ConfigError, match=r"partition"):
        deduplicate(family_tree(9, n=20), workdir=tmp_path / "work", executor="slurm")
    with pytest.raises(ConfigError, match=r"LocalPipelineExecutor.*colour"):
        deduplicate(family_tree(9, n=20), executor_options={"colour": "red"})


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "given", "error", "words"),
    [
        (["a"], {"recipe": "jaccard-0.78"}, ConfigError, "Did you mean 'jaccard-0.87'"),
        (["a"], {"executor": "slum"}, ConfigError, "Did you mean 'slurm'"),
        (["a"], {"tasks": 0}, ConfigError, "tasks must be .*got 0"),
        (["a"], {"workers": True}, ConfigError, "workers must be .*got True"),
        ("text", {}, DataError, "one string"),
        (["a", b"b"], {}, DataError, "document 1 is bytes"),
        (["a", "b\ud800"], {}, DataError, "document 1 .*half a surrogate"),
    ],
)
def test_bad_input_is_refused(texts, given, error, words):
    with pytest.raises(error, match=words):
        deduplicate(texts, **{"recipe": NEAR_RECIPE, **given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"ngram": 0}, "ngram"),
        ({"buckets": 1.5}, "buckets"),
        ({"keep": "frist"}, "Did you mean 'first'"),
        ({"exact": False}, "nothing would be found"),
        ({"ngram": 0, "keep": "none"}, "2 problems"),
    ],
)
def test_bad_recipes_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Recipe("mine", **given)


def test_missing_programs_and_libraries_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="no sbatch"):
        deduplicate(["a"], executor="slurm", workdir=tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "ray" else found(n))
    with pytest.raises(MissingDependencyError, match=r"pip install -e \.\[cluster\]"):
        deduplicate(["a"], executor="ray", workdir=tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: n)
    with pytest.raises(ConfigError, match="needs a workdir"):
        deduplicate(["a"], executor="ray")


def test_a_missing_or_unusable_datatrove_is_named(monkeypatch):
    texts = family_tree(0, n=8)
    versions = {"datatrove": "0.10.1", "xxhash": "4.0.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(MissingDependencyError, match=r"xxhash 4\.0\.0: pip install 'xxhash<4'"):
        deduplicate(texts)

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(MissingDependencyError, match=r"datatrove: pip install -e \.\[dedup\]"):
        deduplicate(texts)
