"""The seeds study: runs share weights and batches, claims can fail, gaps are shown."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pythia_book import records
from pythia_book.measurements import LanguageMeasurement
from pythia_book.studies.seeds import figures
from pythia_book.studies.seeds import study as seeds
from pythia_book.studies.seeds.claims import claims as study_claims
from pythia_book.studies.seeds.claims import map_agreement
from pythia_book.studies.seeds.study import Params
from pythia_book.studies.seeds.tables import Measured
from pythia_book.studies.seeds.tables import tables as study_tables
from pythia_book.verdicts import judge

from pythia_core.errors import ConfigError
from pythia_core.suite import DATA_ARMS, suite_configs
from pythia_core.training.runs import find_or_train_all


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seeds": 1}, r"seeds must be a whole number in 2\.\.10, got 1"),
        ({"seeds": 11}, r"seeds must be a whole number in 2\.\.10, got 11"),
        ({"sizes": "7k,25k"}, "means 2 sizes"),
        ({"sizes": "7m"}, "unknown size"),
        ({"neighbour": "25k"}, "one size other than '25k'"),
        ({"neighbour": "7k,13k"}, "must be one size"),
        ({"sizes": "70m"}, "not among the sizes.*set neighbour"),
        ({"bootstrap": 3}, "bootstrap must be"),
        ({"scale": "huge"}, "scale"),
    ],
)
def test_bad_parameters_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Params(**given)


def test_the_neighbour_is_the_next_larger_size() -> None:
    assert (Params().size, Params().neighbour_size) == ("25k", "38k")
    largest = Params(sizes="600k")
    assert (largest.neighbour_size, largest.size_is_smaller) == ("310k", False)
    assert Params(sizes="70m", neighbour="160m").size_is_smaller


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_the_first_runs_are_the_suite_s_own(scale: str) -> None:
    params = Params(scale)
    for (_, arm), config in suite_configs(scale, [params.size]).items():
        assert params.config(1234, 1234, arm) == config
        assert (1234, 1234, arm) in params.cells
    assert len(set(params.cells)) == len(params.cells) == 12


# --- claims on planted numbers ---------------------------------------------------------------

N = 60


def planted(
    params: Params,
    sd: float = 0.0,
    change: float = 0.0,
    order: float = 0.0,
    weights: float = 0.0,
    shift: float = 0.0,
) -> Measured:
    """Values at the last checkpoint with planted spreads over seeds and effect of deduplication.

    `change` is that effect, `sd` its spread; `shift` is the spread of the feminine share.
    """
    rng = np.random.default_rng(1)
    items = rng.normal(5, 1, N)
    last = params.steps[-1]
    draw = {kind: np.linspace(-1, 1, params.seeds) for kind in ("order", "weights", "twin")}
    found: Measured = {}
    for cell in params.cells:
        i, j = (params.seed_values.index(seed) for seed in cell[:2])
        own = rng.normal(0, 0.001, N)
        loss = items + order * draw["order"][i] + weights * draw["weights"][j] + own
        share = 0.3 + shift * draw["twin"][i] + rng.normal(0, 0.01, N)
        right, memorized = (rng.random(N) < 0.5).astype(float), np.zeros(N)
        memorized[: 6 + i] = 1
        if cell[2] == "deduplicated":
            loss = loss + change + sd * draw["twin"][i]
            memorized[: 6 - i % 2] = 0
        values = {"loss": loss, "last_word": right, "feminine_share": share}
        found |= {(cell, last, name): v for name, v in (values | {"memorized": memorized}).items()}
    return found


CLAIMS = {
    "loss": "higher held-out loss",
    "words": "last word",
    "order": "comparably",
    "states": "same states",
    "sizes": "right order",
    "memory": "memorize less",
    "twins": "effect of deduplication",
    "gender": "feminine share",
    "scores": "scores of seed 0",
}
"""Name -> words of a claim."""


def verdicts(
    found: Measured,
    params: Params,
    neighbour: float | None = 4.0,
    released: dict[str, pd.DataFrame] | None = None,
) -> dict[str, str]:
    tables = study_tables(params, found)
    rows = judge(study_claims(params, found, tables, neighbour, released or {}))
    return {
        name: (row["ours"] or row["released"])["verdict"]
        for name, words in CLAIMS.items()
        for row in rows
        if words in row["claim"]
    }


def test_claims_hold_or_fail_with_the_data() -> None:
    params = Params("smoke", seeds=5, bootstrap=200)
    clear = verdicts(planted(params, 0.01, -0.2, 0.02, 0.02, 0.1), params)
    assert clear == {
        "loss": "reproduced",
        "words": "not resolved",  # 60 sentences and five seeds say little
        "order": "not resolved",  # five seeds are too few to show similarity
        "states": "not testable here",
        "sizes": "holds",
        "memory": "reproduced",
        "twins": "holds",
        "gender": "holds",
        "scores": "not testable here",
    }
    many = Params("smoke", seeds=10, bootstrap=100)
    vague = verdicts(planted(many, 0.3, -0.05, 5, 0.02, 0), many)
    assert vague["sizes"] == "does not hold"
    assert vague["loss"] == vague["words"] == "not resolved"
    assert vague["order"] == "contradicted"
    assert vague["gender"] == "not resolved"
    assert verdicts(planted(params, 0.01, 0.2), params)["loss"] == "contradicted"
    assert verdicts(planted(many, order=0.02, weights=0.02), many)["order"] == "reproduced"


def test_the_note_on_neighbouring_sizes_tells_that_their_heads_differ() -> None:
    differ = Params("gpu", "4.7m", seeds=2)  # 32 dims, and 64 in its neighbour 7.4m
    for params, told in ((differ, True), (Params("smoke", seeds=2), False)):
        rows = study_claims(params, {}, study_tables(params, {}), None, {})
        (note,) = (row.ours.note for row in rows if CLAIMS["sizes"] in row.text)
        assert ("width of their heads" in note) == told


def test_gaps_and_a_missing_neighbour_leave_claims_untested() -> None:
    params = Params("smoke", bootstrap=200)
    found = planted(params, 0.01, 0.1, 0.02, 0.02)
    assert verdicts(found, params, neighbour=None)["sizes"] == "not testable here"
    cell = params.cells[0]
    kept = {key: values for key, values in found.items() if key[0] != cell}
    lost = verdicts(kept, params)
    assert lost["order"] == lost["twins"] == lost["gender"] == "not testable here"
    assert set(verdicts({}, params).values()) == {"not testable here"}


def maps(noise: float = 0.0) -> dict[str, pd.DataFrame]:
    """Training maps of ten runs; one of the eight stable ones differs at one of four steps."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(10):
        for step, state in ((0, 0), (13_000, 0), (23_000, 1), (63_000, 1), (143_000, 2)):
            late = seed == 6 and step == 63_000
            score = step / 1e5
            again = score + noise * rng.normal() if seed == 0 else np.nan
            rows.append((seed, seed in (3, 4), step, state + late, score, again))
    names = ["seed", "outlier", "step", "state", "score", "score_410m"]
    return {"training_maps": pd.DataFrame(rows, columns=names)}


def test_the_training_maps_are_shown_without_a_verdict() -> None:
    e = map_agreement(maps()["training_maps"])
    assert e.value == pytest.approx(100 * (21 + 7 * 0.75) / 28)  # 28 pairs of eight runs
    assert e.low < e.value < e.high <= 100
    params = Params("smoke", bootstrap=200)
    found = planted(params)
    assert verdicts(found, params, released=maps())["scores"] == "holds"
    assert verdicts(found, params, released=maps(2.0))["scores"] == "does not hold"
    assert verdicts(found, params, released=maps())["states"] == "not testable here"


# --- the whole -------------------------------------------------------------------------------


def weights_hash(run) -> str:
    state = run.model(0).state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in state)).hexdigest()


@pytest.mark.wheels
def test_weight_seeds_share_weights_and_order_seeds_share_batches(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    monkeypatch.setattr(records, "recorded_folder", lambda study: None)
    params = Params("smoke", seeds=2, bootstrap=200)
    own = find_or_train_all(suite_configs("smoke", ["7k"]), progress=False)
    trained = {arm: (own["7k", arm].folder / "done.json").stat().st_mtime_ns for arm in DATA_ARMS}
    result = seeds.run(params, progress=False)
    *runs, neighbour = result.measured.runs
    assert len(runs) == 6 and neighbour.config.model.d_model > runs[0].config.model.d_model
    for arm in DATA_ARMS:
        assert own["7k", arm].id in {run.id for run in runs}
        done = own["7k", arm].folder / "done.json"
        assert done.stat().st_mtime_ns == trained[arm], "the suite's run was trained again"

    initial, batches, finals = defaultdict(set), defaultdict(set), set()
    for (order, weights, arm), run in zip(params.cells, runs, strict=True):
        initial[weights].add(weights_hash(run))
        batches[order, arm].add(tuple(row["batch_hash"] for row in run.metrics()))
        finals.add(run.final_sha256)
    for shared in (initial, batches):
        assert all(len(hashes) == 1 for hashes in shared.values()), "one seed gave different runs"
        assert len(set().union(*shared.values())) == len(shared), "two seeds gave the same run"
    assert len(finals) == len(runs)
    assert len({LanguageMeasurement.of(run.data).digest for run in runs}) == 1

    tables = result.tables
    first = tables["trajectories"].query("step == 1 and measure == 'loss'").set_index("kind").sd
    assert first["order"] == 0 < first["weights"], "order mattered before the first update"
    assert result.values["gaps"] == 0 and tables["levels"].value.notna().all()
    assert set(tables["components"].query("measure == 'loss'").kind) == {
        "order", "weights", "rest", "both", "items",
    }  # fmt: skip
    drawings = {name: getattr(figures, name) for name in (
        "curves", "spreads", "parts", "effects")}  # fmt: skip
    svgs = {name: draw(result).svg for name, draw in drawings.items()}
    assert "no released numbers" in figures.training_maps(result).svg
    values = result.values | {"map_agreement": {"value": 90.0, "low": 80.0, "high": 100.0}}
    drawn = figures.training_maps(replace(result, released=maps(), values=values))
    assert drawn.description.endswith("90.0 % of checkpoints")

    run = Path(runs[1].folder)  # a checkpoint lost since is a gap, the rest is unaffected
    shutil.rmtree(run / "evaluations")
    shutil.rmtree(run / "checkpoints" / "step-000016")
    again = seeds.run(params, progress=False)
    assert again.values["gaps"] == 3
    lost = again.tables["levels"][again.tables["levels"].value.isna()]
    assert (
        set(lost.step) == {16} and set(lost.weight_seed) == {1} and set(lost.order_seed) == {1234}
    )
    assert len(lost) == 4 and again.tables["components"].empty
    assert again.tables["bands"].equals(tables["bands"])  # the lost run is not on the diagonal
    for draw in drawings.values():
        assert "<svg" in draw(again).svg
    assert drawings["spreads"](result).svg == svgs["spreads"], "the SVG is not reproducible"
