"""The suite: what its runs share, checks find planted errors, reads are counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pythia_book.studies.suite import study as suite
from pythia_book.studies.suite.proofs import proofs_table
from pythia_book.studies.suite.read_counts import pile_reads
from pythia_book.studies.suite.study import suites_table
from pythia_book.study import Result

from pythia_core.config import DataConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import DATA_ARMS, OFFICIAL_SIZES, scale_named, suite_configs
from pythia_core.training.checkpoint import MANIFEST, _self_hash


def test_twins_differ_in_their_text_only() -> None:
    configs = suite_configs("laptop", scale_named("laptop").sizes)
    assert len(configs) == 16
    for size in scale_named("laptop").sizes:
        standard, deduplicated = (configs[size, arm] for arm in DATA_ARMS)
        assert (standard.model, standard.train) == (deduplicated.model, deduplicated.train)
        assert standard.data.dedup == "none"
        assert deduplicated.data.dedup == "jaccard-0.87"
    assert len({c.data for c in configs.values()}) == 2
    with pytest.raises(ConfigError, match="unknown arm 'both'"):
        suite_configs("laptop", ["7k"], ["both"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sizes": "7k,7k"}, "more than once"),
        ({"sizes": ","}, "no sizes"),
        ({"sizes": "7m"}, "unknown size"),
        ({"scale": "huge"}, "unknown scale"),
        ({"seed": -1}, "seed must be"),
        ({"resume_steps": 1}, "resume_steps must be"),
    ],
)
def test_bad_parameters_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        suite.Params(**given)


def test_reads_of_the_pile_follow_from_its_sizes() -> None:
    """0, 1, 2 reads: 7.6, 39.9, 52.5 % (from the released data order), not 0, 55, 45 %."""
    joint = pile_reads("deduplicated", "joint")
    np.testing.assert_allclose(joint, (0.076, 0.399, 0.525, 0), atol=5e-4)
    np.testing.assert_allclose(
        pile_reads("deduplicated", "separate")[:3], (0, 0.551, 0.449), atol=1e-3
    )
    np.testing.assert_allclose(pile_reads("standard", "joint")[:2], (0.102, 0.898), atol=1e-3)


def test_official_sizes_are_counted_from_their_shapes() -> None:
    table = suite.official_table().set_index("size")
    assert list(table.index) == list(OFFICIAL_SIZES)
    assert table.total["70m"] == 70_426_624
    assert table.non_embedding["12b"] == 11_327_027_200
    assert set(table.tokens) == {299_892_736_000}


def test_pythia_is_the_last_of_the_suites() -> None:
    last = suites_table().iloc[-1]
    assert (last.suite, last.models, last.checkpoints) == ("Pythia", 8, 154)
    assert (last.smallest, last.largest, last.certainty) == ("70M", "12B", "checked")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield suite.run(suite.Params("smoke"), progress=False)


@pytest.mark.wheels
def test_the_suite_passes_every_check(smoke: Result) -> None:
    proofs = smoke.tables["proofs"]
    assert not proofs.failures.any()
    assert (proofs.cases > 0).all()
    assert len(smoke.tables["checkpoints"]) == 4 * 17
    reads = smoke.tables["reads"].groupby(["arm", "policy"])["share"].sum()
    np.testing.assert_allclose(reads, 1)
    assert set(smoke.tables["losses"].columns) == {"size", "arm", "step", "tokens", "loss"}
    config = scale_named("smoke").run("7k").data
    assert config == DataConfig("miniature", ("biographies",), tokenizer="bpe-1024", seq_len=64)


@pytest.mark.wheels
def test_checks_find_planted_errors(smoke: Result) -> None:
    cells = [(size, arm) for size in ("7k", "25k") for arm in DATA_ARMS]
    runs = dict(zip(cells, smoke.runs, strict=True))

    def failures() -> dict[str, int]:
        return proofs_table(runs, 4).groupby("check").failures.sum().to_dict()

    assert not any(failures().values())
    last = runs["25k", "standard"]
    copied, lost = (last.checkpoints / f"step-{step:06d}" for step in (5, 9))
    original = copied.with_name("original")
    copied.rename(original)
    shutil.copytree(last.checkpoints / "step-000016", copied)
    manifest = copied / MANIFEST
    _claim_another_step(manifest, 5)
    log = last.folder / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(
        "".join([*lines[:3], lines[3].replace('"batch_hash": "', '"batch_hash": "0'), *lines[4:]])
    )
    lost.rename(lost.with_name("elsewhere"))
    try:
        found = failures()
        assert (found["distinct"], found["complete"], found["same order"]) == (1, 1, 1)
    finally:
        shutil.rmtree(copied)
        original.rename(copied)
        lost.with_name("elsewhere").rename(lost)
        log.write_text("".join(lines))


def _claim_another_step(manifest: Path, step: int) -> None:
    """Give a copied checkpoint a valid manifest for `step`, as on the Hugging Face hub."""
    values = json.loads(manifest.read_text())
    values["step"] = step
    values["manifest_sha256"] = _self_hash(values)
    manifest.write_text(json.dumps(values))
